//! One small row per record, by queue and offset: the space `cq`.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::Timestamp;

use super::checksum::{self, CHECKSUM_BYTES, take};

const KEY_BYTES: usize = 12;
const HAS_KEYS: u8 = 1;
/// Bytes that key and value take.
pub(crate) const ROW_BYTES: usize = KEY_BYTES + CHECKSUM_BYTES + 8 + 4 + 8 + 8 + 1;

/// The key of an offset.
pub(crate) fn key(queue: u32, offset: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&queue.to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The queue number in a key.
pub(crate) fn queue(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*key.first_chunk()?))
}

/// The offset in a key.
pub(crate) fn offset(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(4..)?.try_into().ok()?))
}

/// What a queue knows of a record without touching it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QueueRow {
    pub(crate) position: u64,
    pub(crate) payload_bytes: u32,
    pub(crate) tag_hash: i64,
    pub(crate) stored_at: Timestamp,
    pub(crate) has_keys: bool,
}

impl QueueRow {
    /// Encodes key and value at the end of an empty buffer and takes both out.
    pub(crate) fn encode(&self, buffer: &mut BytesMut, queue: u32, offset: u64) -> (Bytes, Bytes) {
        buffer.put_slice(&key(queue, offset));
        let key = buffer.split().freeze();
        checksum::begin(buffer);
        buffer.put_u64_le(self.position);
        buffer.put_u32_le(self.payload_bytes);
        buffer.put_i64_le(self.tag_hash);
        buffer.put_i64_le(self.stored_at.as_millis());
        buffer.put_u8(if self.has_keys { HAS_KEYS } else { 0 });
        let value = checksum::seal(&key, buffer);
        (key, value)
    }

    /// Checks and decodes a row.
    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let mut rest = checksum::verified(key, value)?;
        let position = take!(rest, u64);
        let payload_bytes = take!(rest, u32);
        let tag_hash = take!(rest, i64);
        let stored_at = Timestamp::from_millis(take!(rest, i64));
        let [flags] = *rest else { return None };
        Some(Self { position, payload_bytes, tag_hash, stored_at, has_keys: flags & HAS_KEYS != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_sort_by_queue_then_offset() {
        let row = QueueRow {
            position: u64::MAX >> 11,
            payload_bytes: 77,
            tag_hash: -5,
            stored_at: Timestamp::from_millis(3),
            has_keys: true,
        };
        let (key, value) = row.encode(&mut BytesMut::new(), 7, 300);
        assert_eq!(key.len() + value.len(), ROW_BYTES);
        assert_eq!(QueueRow::decode(&key, &value), Some(row));
        assert_eq!((queue(&key), offset(&key)), (Some(7), Some(300)));
        assert!(super::key(7, 300) < super::key(7, 65_536) && super::key(7, 65_536) < super::key(256, 0));
    }
}
