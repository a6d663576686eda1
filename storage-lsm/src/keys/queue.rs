//! The registry of queues: rows of `meta` that give a queue its number and keep its minimum.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::{QueueId, QueueKey, TopicName};

use super::QUEUE;
use super::checksum::{self, take};

const KEY_BYTES: usize = 5;
/// Every queue's key is at least this.
pub(crate) const FIRST: [u8; 1] = [QUEUE];
/// And below this.
pub(crate) const END: [u8; 1] = [QUEUE + 1];

/// The key of a queue number.
pub(crate) fn key(number: u32) -> [u8; KEY_BYTES] {
    let mut key = [QUEUE; KEY_BYTES];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The queue number in a key.
pub(crate) fn number(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

/// Encodes key and value at the end of an empty buffer and takes both out.
pub(crate) fn encode(buffer: &mut BytesMut, number: u32, queue: &QueueKey, min: u64) -> (Bytes, Bytes) {
    buffer.put_slice(&key(number));
    let key = buffer.split().freeze();
    checksum::begin(buffer);
    buffer.put_u64_le(min);
    buffer.put_u32_le(queue.queue.get());
    buffer.put_slice(queue.topic.as_str().as_bytes());
    let value = checksum::seal(&key, buffer);
    (key, value)
}

/// Checks and decodes a row: the queue and its minimum.
pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<(QueueKey, u64)> {
    let mut rest = checksum::verified(key, value)?;
    let min = take!(rest, u64);
    let queue = QueueId::new(take!(rest, u32)).ok()?;
    let topic = TopicName::from_stored(std::str::from_utf8(rest).ok()?).ok()?;
    Some((QueueKey::new(topic, queue), min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_round_trip() {
        let queue = QueueKey::new(TopicName::from_stored("%RETRY%g").unwrap(), QueueId::new(999_999).unwrap());
        let (key, value) = encode(&mut BytesMut::new(), 70_000, &queue, 12);
        assert_eq!((number(&key), decode(&key, &value)), (Some(70_000), Some((queue, 12))));
        assert!(key[..] >= FIRST[..] && key[..] < END[..]);
    }
}
