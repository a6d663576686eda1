//! Which queue of a topic a message goes to.

use std::num::NonZeroU32;

use cuemq_storage_api::limits::MAX_QUEUE_ID;
use cuemq_storage_api::{InvalidInput, QueueId};

/// Every queue id in use.
const MAX_QUEUE_COUNT: u32 = MAX_QUEUE_ID + 1;

/// How many queues a topic has: 1 to as many as there are queue ids (the broker's own limit is lower), so that choosing one of them cannot fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct QueueCount(NonZeroU32);

impl QueueCount {
    /// A single queue, which keeps all messages of a topic in one order.
    pub(crate) const ONE: Self = Self(NonZeroU32::MIN);

    /// Checks a number of queues.
    ///
    /// # Errors
    /// When it is 0 or above 1,000,000.
    pub(crate) fn new(count: u32) -> Result<Self, InvalidInput> {
        match NonZeroU32::new(count) {
            Some(count) if count.get() <= MAX_QUEUE_COUNT => Ok(Self(count)),
            _ => Err(InvalidInput::new(format!("a topic with {count} queues: use 1 to {MAX_QUEUE_COUNT}"))),
        }
    }

    /// The number.
    #[must_use]
    pub(crate) const fn get(self) -> u32 {
        self.0.get()
    }

    /// The ids of all queues, rising.
    pub(crate) fn ids(self) -> impl ExactSizeIterator<Item = QueueId> + use<> {
        (0..self.get()).map(queue_id)
    }

    /// Whether a queue with this id is among them.
    #[must_use]
    pub(crate) fn contains(self, queue: QueueId) -> bool {
        queue.get() < self.get()
    }
}

fn queue_id(id: u32) -> QueueId {
    QueueId::new(id).expect("a queue count is at most the highest queue id plus one")
}

/// A 64-bit hash that never changes: FNV-1a 64, then murmur3's 64-bit finalizer, because FNV's lowest bits alone
/// mix badly (its last bit is a mere parity) and a queue is chosen by remainder.
#[must_use]
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = bytes.iter().fold(FNV_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The queue of a sharding key: the same on every start and in every version while the topic keeps its queue count.
#[must_use]
pub(crate) fn by_sharding_key(key: &str, queues: QueueCount) -> QueueId {
    let remainder = stable_hash(key.as_bytes()) % u64::from(queues.get());
    queue_id(u32::try_from(remainder).expect("a remainder is below its u32 divisor"))
}

/// Where a message goes that waited for a queue while the number of queues changed: by its key, if that chose the queue,
/// or where it was to go; a queue that is no longer written to is stood in for by another one, the same for all.
#[must_use]
pub(crate) fn rerouted(key: Option<&str>, queue: QueueId, before: QueueCount, after: QueueCount) -> QueueId {
    match key {
        Some(key) if by_sharding_key(key, before) == queue => by_sharding_key(key, after),
        _ if after.contains(queue) => queue,
        _ => queue_id(queue.get() % after.get()),
    }
}

/// Takes a topic's queues in turn, from queue 0, for messages without a sharding key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RoundRobin {
    next: u32,
}

impl RoundRobin {
    /// The next queue in turn. The count may grow between calls: the new queues join the round.
    pub(crate) fn choose(&mut self, queues: QueueCount) -> QueueId {
        let chosen = if self.next < queues.get() { self.next } else { 0 };
        self.next = chosen + 1;
        queue_id(chosen)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(n: u32) -> QueueCount {
        QueueCount::new(n).unwrap()
    }

    #[test]
    fn a_queue_count_is_1_to_a_million() {
        assert!(QueueCount::new(0).is_err());
        assert!(QueueCount::new(MAX_QUEUE_COUNT + 1).is_err());
        assert_eq!(count(MAX_QUEUE_COUNT).ids().last().unwrap().get(), MAX_QUEUE_ID);
        assert_eq!(QueueCount::ONE.ids().collect::<Vec<_>>(), [QueueId::FIRST]);
        assert!(count(2).contains(queue_id(1)) && !count(2).contains(queue_id(2)));
    }

    /// Computed apart from this code; they may never change, or messages of one key would change their queue.
    #[test]
    fn the_hash_is_written_down() {
        for (text, hash) in [
            ("", 0xefd0_1f60_ba99_2926),
            ("a", 0x82a2_a958_a9be_ce5b),
            ("foobar", 0x2c22_1949_22d1_672b),
            ("order-1", 0x491b_422e_3af0_d9a5),
            ("order-2", 0xaaca_0c2a_eae3_9bab),
            ("订单", 0x0754_ac3d_6d2e_733a),
        ] {
            assert_eq!(stable_hash(text.as_bytes()), hash, "{text:?}");
        }
        assert_eq!(by_sharding_key("order-1", count(7)).get(), 1);
        assert_eq!(by_sharding_key("order-2", count(4)).get(), 3);
        assert_eq!(by_sharding_key("订单", count(1000)).get(), 882);
    }

    #[test]
    fn keys_that_count_up_spread_evenly() {
        let mut hits = [0u32; 8];
        for order in 0..8000 {
            hits[by_sharding_key(&format!("order-{}", order * 2), count(8)).get() as usize] += 1;
        }
        assert!(hits.iter().all(|n| (850..1150).contains(n)), "{hits:?}");
    }

    #[test]
    fn round_robin_gives_each_queue_its_turn() {
        let mut robin = RoundRobin::default();
        let mut hits = [0u32; 4];
        for _ in 0..400 {
            hits[robin.choose(count(4)).get() as usize] += 1;
        }
        assert_eq!(hits, [100; 4]);
    }

    #[test]
    fn round_robin_follows_a_changed_count() {
        let mut robin = RoundRobin::default();
        let mut take = |n| robin.choose(count(n)).get();
        assert_eq!([take(2), take(2), take(3), take(3), take(3)], [0, 1, 2, 0, 1]);
        assert_eq!([take(1), take(1)], [0, 0]);
    }

    #[test]
    fn what_waited_goes_where_it_would_go_now() {
        let (before, after) = (count(4), count(3));
        for key in ["a", "b", "order-1", "order-2"] {
            let chosen = by_sharding_key(key, before);
            assert_eq!(rerouted(Some(key), chosen, before, after), by_sharding_key(key, after));
            let other = queue_id((chosen.get() + 1) % 3);
            if other != chosen {
                assert_eq!(rerouted(Some(key), other, before, after), other, "somebody else chose it");
            }
        }
        assert_eq!(rerouted(None, queue_id(2), before, after).get(), 2);
        assert_eq!(rerouted(None, queue_id(3), before, after).get(), 0);
    }

    proptest! {
        #[test]
        fn a_key_always_finds_the_same_existing_queue(key in ".{0,40}", n in 1u32..5000) {
            let first = by_sharding_key(&key, count(n));
            prop_assert_eq!(by_sharding_key(&key, count(n)), first);
            prop_assert!(count(n).contains(first));
        }
    }
}
