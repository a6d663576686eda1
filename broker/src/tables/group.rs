//! Table `group`: how each consumer group consumes. Key: the group's name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{GroupName, QueueId, QueueKey, Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::retry::RetryPolicy;

const NAME: &str = "group";
const VERSION: u8 = 2;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// How a consumer group consumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GroupRow {
    /// Whether every member gets every message, instead of sharing the queues.
    pub(crate) broadcasting: bool,
    /// How the queues are shared; checked by [`AssignmentStrategy::check`] before it gets here.
    pub(crate) strategy: AssignmentStrategy,
    /// When failed messages come again; checked by [`RetryPolicy::check`] before it gets here.
    pub(crate) retry: RetryPolicy,
    /// Whether its members get nothing new.
    pub(crate) paused: bool,
    /// When the group was first seen.
    pub(crate) created_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    broadcasting: bool,
    strategy: StoredStrategy,
    retry: Retry,
    paused: bool,
    created_at: i64,
}

/// The order of these is part of the format: add behind the last.
#[derive(Serialize, Deserialize)]
enum StoredStrategy {
    Averaging,
    Circle,
    ConsistentHash,
    Configured(NamedQueues),
    MachineRoom(NamedQueues),
}

/// Each topic and name stands once, rising; a queue is the index of its topic, its number, and the index of its name.
#[derive(Serialize, Deserialize)]
struct NamedQueues {
    topics: Vec<String>,
    names: Vec<String>,
    queues: Vec<(u32, u32, u32)>,
}

/// The order of these is part of the format: add behind the last. Pauses are in milliseconds.
#[derive(Serialize, Deserialize)]
enum Retry {
    Schedule(Vec<u64>),
    Exponential { first: u64, longest: u64, redeliveries: u32 },
    Fixed { pause: u64, redeliveries: u32 },
}

/// The key of a group.
pub(crate) fn key(group: &GroupName) -> Bytes {
    Bytes::copy_from_slice(group.as_str().as_bytes())
}

/// Reads a key.
///
/// # Errors
/// When it is not a group's name.
pub(crate) fn decode_key(key: &[u8]) -> Result<GroupName, DecodeError> {
    let name = str::from_utf8(key).map_err(|error| DecodeError::new(NAME, format!("key: {error}")))?;
    GroupName::new(name).map_err(DecodeError::invalid(NAME))
}

impl GroupRow {
    /// The row's value. Pauses are kept to the millisecond.
    ///
    /// # Panics
    /// With a strategy that [`AssignmentStrategy::check`] or a retry policy that [`RetryPolicy::check`] refuses for its size.
    pub(crate) fn encode(&self) -> Bytes {
        let fields = Fields {
            broadcasting: self.broadcasting,
            strategy: encode_strategy(&self.strategy),
            retry: encode_retry(&self.retry),
            paused: self.paused,
            created_at: self.created_at.as_millis(),
        };
        encode(VERSION, &fields)
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version, damaged, or has a strategy or a retry policy out of its bounds.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        let retry = decode_retry(fields.retry);
        retry.check().map_err(DecodeError::invalid(NAME))?;
        let strategy = decode_strategy(fields.strategy)?;
        strategy.check().map_err(DecodeError::invalid(NAME))?;
        Ok(Self {
            broadcasting: fields.broadcasting,
            strategy,
            retry,
            paused: fields.paused,
            created_at: Timestamp::from_millis(fields.created_at),
        })
    }
}

fn encode_strategy(strategy: &AssignmentStrategy) -> StoredStrategy {
    match strategy {
        AssignmentStrategy::Averaging => StoredStrategy::Averaging,
        AssignmentStrategy::Circle => StoredStrategy::Circle,
        AssignmentStrategy::ConsistentHash => StoredStrategy::ConsistentHash,
        AssignmentStrategy::Configured(queues) => StoredStrategy::Configured(encode_named(queues)),
        AssignmentStrategy::MachineRoom(queues) => StoredStrategy::MachineRoom(encode_named(queues)),
    }
}

fn decode_strategy(strategy: StoredStrategy) -> Result<AssignmentStrategy, DecodeError> {
    Ok(match strategy {
        StoredStrategy::Averaging => AssignmentStrategy::Averaging,
        StoredStrategy::Circle => AssignmentStrategy::Circle,
        StoredStrategy::ConsistentHash => AssignmentStrategy::ConsistentHash,
        StoredStrategy::Configured(queues) => AssignmentStrategy::Configured(decode_named(&queues)?),
        StoredStrategy::MachineRoom(queues) => AssignmentStrategy::MachineRoom(decode_named(&queues)?),
    })
}

fn encode_named(queues: &BTreeMap<QueueKey, String>) -> NamedQueues {
    let topics: Vec<&str> =
        queues.keys().map(|queue| queue.topic.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let names: Vec<&str> = queues.values().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect();
    let index = |among: &[&str], name: &str| {
        let at = among.binary_search(&name).expect("it was made of these names");
        u32::try_from(at).expect("a strategy is bounded")
    };
    let queue = |(queue, name): (&QueueKey, &String)| {
        (index(&topics, queue.topic.as_str()), queue.queue.get(), index(&names, name))
    };
    let queues = queues.iter().map(queue).collect();
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    NamedQueues { queues, topics: owned(topics), names: owned(names) }
}

fn decode_named(named: &NamedQueues) -> Result<BTreeMap<QueueKey, String>, DecodeError> {
    let at = |among: &[String], index: u32| {
        let found = usize::try_from(index).ok().and_then(|index| among.get(index)).cloned();
        found.ok_or_else(|| DecodeError::new(NAME, format!("strategy: no name {index}")))
    };
    let queue = |(topic, queue, name): &(u32, u32, u32)| {
        let topic = TopicName::from_stored(&at(&named.topics, *topic)?).map_err(DecodeError::invalid(NAME))?;
        let queue = QueueId::new(*queue).map_err(DecodeError::invalid(NAME))?;
        Ok((QueueKey::new(topic, queue), at(&named.names, *name)?))
    };
    named.queues.iter().map(queue).collect()
}

fn encode_retry(policy: &RetryPolicy) -> Retry {
    let millis = |pause: Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    match policy {
        RetryPolicy::Schedule(pauses) => Retry::Schedule(pauses.iter().copied().map(millis).collect()),
        RetryPolicy::Exponential { first, longest, redeliveries } => {
            Retry::Exponential { first: millis(*first), longest: millis(*longest), redeliveries: *redeliveries }
        }
        RetryPolicy::Fixed { pause, redeliveries } => {
            Retry::Fixed { pause: millis(*pause), redeliveries: *redeliveries }
        }
    }
}

fn decode_retry(retry: Retry) -> RetryPolicy {
    let pause = Duration::from_millis;
    match retry {
        Retry::Schedule(pauses) => RetryPolicy::Schedule(pauses.into_iter().map(pause).collect()),
        Retry::Exponential { first, longest, redeliveries } => {
            RetryPolicy::Exponential { first: pause(first), longest: pause(longest), redeliveries }
        }
        Retry::Fixed { pause: every, redeliveries } => RetryPolicy::Fixed { pause: pause(every), redeliveries },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::retry::MAX_REDELIVERIES;
    use crate::tables::codec::tests::hex;

    fn row(strategy: AssignmentStrategy, retry: RetryPolicy) -> GroupRow {
        GroupRow { broadcasting: false, strategy, retry, paused: false, created_at: Timestamp::from_millis(7) }
    }

    #[test]
    fn golden_bytes() {
        let pause = Duration::from_millis;
        let schedule = RetryPolicy::Schedule(vec![pause(1), pause(300)]);
        let exponential = RetryPolicy::Exponential { first: pause(1), longest: pause(2), redeliveries: 3 };
        let fixed = RetryPolicy::Fixed { pause: pause(9), redeliveries: 4 };
        let configured = AssignmentStrategy::configured([("b", 1, "y"), ("a", 300, "x"), ("b", 0, "x")]).unwrap();
        let rooms = AssignmentStrategy::machine_room([("a", 0, "eu")]).unwrap();
        for (row, bytes) in [
            (
                row(configured, fixed.clone()),
                "0200030201610162020178017903\
              00fb2c0100010000010101020904\
              000e",
            ),
            (row(rooms, fixed.clone()), "0200040101610102657501000000020904000e"),
            (row(AssignmentStrategy::Averaging, schedule), "020000000201fb2c01000e"),
            (row(AssignmentStrategy::Circle, exponential), "02000101010203000e"),
            (row(AssignmentStrategy::ConsistentHash, fixed), "020002020904000e"),
        ] {
            assert_eq!(hex(&row.encode()), bytes, "{row:?}");
            assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
        }
        let group = GroupName::new("billing").unwrap();
        assert_eq!(&key(&group)[..], b"billing");
        assert_eq!(decode_key(&key(&group)), Ok(group));
    }

    #[test]
    fn the_longest_schedule_fits_and_a_longer_one_is_refused() {
        let schedule = |len| RetryPolicy::Schedule(vec![Duration::from_secs(86_400); len]);
        let most = usize::try_from(MAX_REDELIVERIES).unwrap();
        let longest = row(AssignmentStrategy::Averaging, schedule(most));
        assert_eq!(GroupRow::decode(&longest.encode()), Ok(longest));
        let longer = row(AssignmentStrategy::Averaging, schedule(most + 1));
        assert!(GroupRow::decode(&longer.encode()).unwrap_err().to_string().contains("1001 redeliveries"));
    }

    /// The largest strategy beside the largest retry policy.
    #[test]
    fn the_largest_row_fits_and_a_larger_strategy_is_refused() {
        let name = |id: u32| format!("{:0250}", id % 47);
        let queues = |n: u32| AssignmentStrategy::configured((0..n).map(|id| ("t", 300 + id, name(id)))).unwrap();
        let longest = Duration::from_secs(366 * 24 * 3600);
        let retry = RetryPolicy::Schedule(vec![longest; usize::try_from(MAX_REDELIVERIES).unwrap()]);
        let largest = row(queues(3072), retry.clone());
        let bytes = largest.encode();
        assert!(bytes.len() > 30_000, "{} bytes are not the worst", bytes.len());
        assert!(GroupRow::decode(&bytes).is_ok_and(|row| row == largest));
        let larger = row(queues(3073), retry).encode();
        assert!(GroupRow::decode(&larger).unwrap_err().to_string().contains("3073 queues"));
        let queues = NamedQueues { topics: vec!["t".into()], names: vec![], queues: vec![(0, 0, 0)] };
        let nameless = StoredStrategy::Configured(queues);
        assert!(decode_strategy(nameless).unwrap_err().to_string().contains("no name 0"));
    }

    fn any_strategy() -> impl Strategy<Value = AssignmentStrategy> {
        let queues = prop::collection::vec(("[a-z]{1,5}", 0u32..2000, "[a-z]{1,9}"), 0..40);
        prop_oneof![
            Just(AssignmentStrategy::Circle),
            queues.clone().prop_map(|queues| AssignmentStrategy::configured(queues).unwrap()),
            queues.prop_map(|queues| AssignmentStrategy::machine_room(queues).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(
            pauses in prop::collection::vec(0u64..10_000_000, 0..30),
            strategy in any_strategy(),
            broadcasting: bool,
            paused: bool,
            at: i64,
        ) {
            let retry = RetryPolicy::Schedule(pauses.into_iter().map(Duration::from_millis).collect());
            let created_at = Timestamp::from_millis(at);
            let row = GroupRow { broadcasting, paused, created_at, ..row(strategy, retry) };
            prop_assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(0u8..5, 0..40)) {
            value.insert(0, VERSION);
            if let Ok(row) = GroupRow::decode(&value) {
                prop_assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
