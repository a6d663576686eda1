//! The messages that are written, and the proof that they are all there.

use bytes::Bytes;
use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, Timestamp, TopicName, WriteBatch,
};

use crate::Result;

/// Different bodies of one size. A prime, so that a batch which lands twice or in another's place is noticed.
pub const BODIES: u64 = 1021;
/// The topic of every benchmark.
pub const TOPIC: &str = "bench";
/// A frame's header in the map engine's log, and that of a record.
const HEADER_BYTES: usize = 64;

/// Bytes in the map engine's log of one batch of messages of this topic, without attributes (`storage-mmap/FORMAT.md`).
#[must_use]
pub const fn frame_bytes(messages: usize, body_bytes: usize) -> usize {
    HEADER_BYTES + messages * (HEADER_BYTES + TOPIC.len() + body_bytes).next_multiple_of(8)
}
/// Messages that one fetch of a check asks for.
const CHECK_FETCH: FetchLimit = FetchLimit { max_messages: 1024, max_bytes: 8 << 20 };

/// The one queue that raw engines write: the same that a topic of one queue has in a broker.
#[must_use]
pub fn queue() -> QueueKey {
    QueueKey::new(TopicName::new(TOPIC).expect("a legal name"), QueueId::FIRST)
}

/// The time of every record that is written without a broker: reading a clock would be part of what is measured.
#[must_use]
pub fn stored_at() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000)
}

/// Bodies of one size, made once, incompressible, with their checksums. Message `n` has body `n` modulo [`BODIES`].
#[derive(Clone, Debug)]
pub struct Bodies {
    bodies: Vec<Bytes>,
    checksums: Vec<u32>,
}

impl Bodies {
    /// Makes them.
    #[must_use]
    pub fn new(body_bytes: usize) -> Self {
        let bodies: Vec<Bytes> = (0..BODIES).map(|number| noise(number, body_bytes)).collect();
        let checksums = bodies.iter().map(|body| crc32c::crc32c(body)).collect();
        Self { bodies, checksums }
    }

    /// Bytes of each body.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.bodies[0].len()
    }

    /// The body of a message; shares its bytes.
    #[must_use]
    pub fn body(&self, message: u64) -> Bytes {
        self.bodies[index(message)].clone()
    }

    /// A batch of messages that follow each other.
    #[must_use]
    pub fn batch(&self, queue: &QueueKey, first: u64, count: usize) -> WriteBatch {
        let records = (first..first + count as u64).map(|n| Record::new(self.body(n), stored_at())).collect();
        let mut batch = WriteBatch::new(stored_at());
        batch.append_all(queue, records);
        batch
    }

    /// Checks that a body is the message's.
    ///
    /// # Errors
    /// Names message and checksums.
    pub fn check(&self, message: u64, body: &[u8]) -> Result<()> {
        let (found, expected) = (crc32c::crc32c(body), self.checksums[index(message)]);
        if found != expected {
            return Err(format!("message {message} has a body with checksum {found:08x}, not {expected:08x}").into());
        }
        Ok(())
    }
}

fn index(message: u64) -> usize {
    usize::try_from(message % BODIES).expect("less than 1021")
}

/// A body whose bytes follow from its number (xorshift), so that runs can be compared.
pub(crate) fn noise(number: u64, body_bytes: usize) -> Bytes {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(body_bytes).collect()
}

/// Which message lies at which offset, noted from receipts.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By offset; [`NOT_NOTED`] where no receipt came yet.
    messages: Vec<u64>,
}

const NOT_NOTED: u64 = u64::MAX;

impl Ledger {
    /// Notes a receipt.
    ///
    /// # Errors
    /// When the offset was given before.
    pub fn note(&mut self, offset: QueueOffset, message: u64) -> Result<()> {
        let at = usize::try_from(offset.get())?;
        if at >= self.messages.len() {
            self.messages.resize(at + 1, NOT_NOTED);
        }
        if std::mem::replace(&mut self.messages[at], message) != NOT_NOTED {
            return Err(format!("offset {offset} was given to two messages").into());
        }
        Ok(())
    }

    /// How far the offsets reach.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.messages.len() as u64
    }

    /// The message at an offset.
    ///
    /// # Errors
    /// When no receipt named it.
    pub fn message(&self, offset: u64) -> Result<u64> {
        let noted = self.messages.get(usize::try_from(offset)?).filter(|message| **message != NOT_NOTED);
        noted.copied().ok_or_else(|| format!("offset {offset} is in no receipt").into())
    }
}

/// Reads a queue from its beginning and checks count, order and every body. Returns how many messages there are.
///
/// # Errors
/// What differs from `count` messages of which `message` says which one lies at an offset.
pub fn check_queue(
    engine: &dyn Engine,
    bodies: &Bodies,
    count: u64,
    message: impl Fn(u64) -> Result<u64>,
) -> Result<u64> {
    let queue = queue();
    let mut next = QueueOffset::ZERO;
    loop {
        let fetch = engine.fetch(FetchRequest::all(&queue, next, CHECK_FETCH))?;
        if fetch.records.is_empty() {
            break;
        }
        for stored in fetch.records {
            if stored.offset != next {
                return Err(format!("offset {} comes where {next} belongs", stored.offset).into());
            }
            bodies.check(message(next.get())?, &stored.record.body)?;
            next = next.plus(1);
        }
    }
    if next.get() != count {
        return Err(format!("the queue has {next} messages, {count} were counted").into());
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuemq_storage_api::MemoryEngine;

    #[test]
    fn a_wrong_count_order_or_body_is_found() {
        let (engine, bodies) = (MemoryEngine::new(), Bodies::new(64));
        engine.apply(bodies.batch(&queue(), 0, 10)).unwrap();
        assert_eq!(check_queue(&engine, &bodies, 10, Ok).unwrap(), 10);
        let error = check_queue(&engine, &bodies, 11, Ok).unwrap_err().to_string();
        assert!(error.contains("has 10 messages, 11 were counted"), "{error}");
        let error = check_queue(&engine, &bodies, 10, |n| Ok(n + 1)).unwrap_err().to_string();
        assert!(error.contains("message 1 has a body with checksum"), "{error}");
    }

    #[test]
    fn a_ledger_wants_each_offset_once() {
        let mut ledger = Ledger::default();
        ledger.note(QueueOffset::new(1), 7).unwrap();
        assert!(ledger.note(QueueOffset::new(1), 8).is_err());
        assert!(ledger.message(0).is_err(), "no receipt for it came");
        assert!(ledger.message(2).is_err());
    }

    #[test]
    fn all_bodies_differ() {
        let bodies = Bodies::new(16);
        let mut checksums = bodies.checksums.clone();
        checksums.sort_unstable();
        checksums.dedup();
        assert_eq!(checksums.len() as u64, BODIES);
    }
}
