//! One small row per record, by queue and offset: the space `cq`.

use cuemq_storage_api::Timestamp;

use super::checksum::{self, CHECKSUM_BYTES, take};

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 12;
const HAS_KEYS: u8 = 1;
/// Where what the checksum covers begins in key and value together.
const REST: usize = KEY_BYTES + CHECKSUM_BYTES;
const REST_BYTES: usize = 8 + 4 + 8 + 8 + 1;
/// Bytes that key and value take.
pub(crate) const ROW_BYTES: usize = REST + REST_BYTES;

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
    /// Encodes the key and, behind it, the value.
    pub(crate) fn encode(&self, queue: u32, offset: u64) -> [u8; ROW_BYTES] {
        let key = key(queue, offset);
        let mut rest = [0; REST_BYTES];
        rest[..8].copy_from_slice(&self.position.to_le_bytes());
        rest[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        rest[12..20].copy_from_slice(&self.tag_hash.to_le_bytes());
        rest[20..28].copy_from_slice(&self.stored_at.as_millis().to_le_bytes());
        rest[28] = if self.has_keys { HAS_KEYS } else { 0 };
        let checksum = checksum::checksum_of_small(&key, &rest);
        let mut row = [0; ROW_BYTES];
        row[..KEY_BYTES].copy_from_slice(&key);
        row[KEY_BYTES..REST].copy_from_slice(&checksum.to_le_bytes());
        row[REST..].copy_from_slice(&rest);
        row
    }

    /// Checks and decodes a row.
    pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let (checksum, rest) = value.split_first_chunk::<CHECKSUM_BYTES>()?;
        let rest: &[u8; REST_BYTES] = rest.try_into().ok()?;
        if u32::from_le_bytes(*checksum) != checksum::checksum_of_small(key, rest) {
            return None;
        }
        let mut rest = &rest[..];
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
        let encoded = row.encode(7, 300);
        let (key, value) = encoded.split_at(KEY_BYTES);
        assert_eq!(QueueRow::decode(key, value), Some(row));
        assert_eq!((queue(key), offset(key)), (Some(7), Some(300)));
        assert!(super::key(7, 300) < super::key(7, 65_536) && super::key(7, 65_536) < super::key(256, 0));
    }
}
