//! Records by position: the space `log`.

use bytes::{Buf, Bytes};
use cuemq_storage_api::{Attributes, LogPosition, QueueOffset, Record, StoredRecord, Timestamp};

use super::checksum::{self, CHECKSUM_BYTES, take};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = CHECKSUM_BYTES + 1 + 4 + 8 + 8 + 8 + 2;
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 8;

/// The key of a position.
pub(crate) fn key(position: u64) -> [u8; KEY_BYTES] {
    position.to_be_bytes()
}

/// The position in a key.
pub(crate) fn position(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

/// A record with what the queue number resolves to left open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogRow {
    pub(crate) queue: u32,
    pub(crate) stored: StoredRecord,
}

/// Bytes that key and value of a record take.
pub(crate) fn row_bytes(record: &Record) -> usize {
    KEY_BYTES + HEADER_BYTES + record.payload_bytes()
}

/// Adds the key and, behind it, the value to a buffer.
pub(crate) fn encode(
    buffer: &mut Vec<u8>,
    position: u64,
    queue: u32,
    offset: u64,
    stored_at: Timestamp,
    record: &Record,
) {
    let key = key(position);
    let attributes = record.attributes.as_bytes();
    let attributes_len = u16::try_from(attributes.len()).expect("a checked record has at most 32 KiB of attributes");
    let mut header = [0; HEADER_BYTES];
    header[4] = VERSION;
    header[5..9].copy_from_slice(&queue.to_le_bytes());
    header[9..17].copy_from_slice(&offset.to_le_bytes());
    header[17..25].copy_from_slice(&stored_at.as_millis().to_le_bytes());
    header[25..33].copy_from_slice(&record.born_at.as_millis().to_le_bytes());
    header[33..].copy_from_slice(&attributes_len.to_le_bytes());
    buffer.extend_from_slice(&key);
    let value = buffer.len();
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(attributes);
    buffer.extend_from_slice(&record.body);
    let checksum = checksum::checksum_of(&key, &buffer[value + CHECKSUM_BYTES..]);
    buffer[value..value + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks and decodes a row; attributes and body are slices of the value.
pub(crate) fn decode(key: &[u8], mut value: Bytes) -> Option<LogRow> {
    let mut rest = checksum::verified(key, &value)?;
    if take!(rest, u8) != VERSION {
        return None;
    }
    let queue = take!(rest, u32);
    let offset = take!(rest, u64);
    let stored_at = Timestamp::from_millis(take!(rest, i64));
    let born_at = Timestamp::from_millis(take!(rest, i64));
    let attributes_len = usize::from(take!(rest, u16));
    if attributes_len > rest.len() {
        return None;
    }
    value.advance(HEADER_BYTES);
    // Most records have none, and an empty slice of a shared buffer would be counted all the same.
    let attributes = match attributes_len {
        0 => Attributes::EMPTY,
        len => Attributes::from_stored(value.split_to(len)),
    };
    let record = Record { attributes, body: value, born_at };
    let position = LogPosition::new(position(key)?);
    Some(LogRow { queue, stored: StoredRecord { offset: QueueOffset::new(offset), position, stored_at, record } })
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::AttributesBuilder;

    use super::*;

    #[test]
    fn records_round_trip() {
        let mut attributes = AttributesBuilder::default();
        attributes.tag("pay").key("k");
        let attributes = attributes.build().unwrap();
        for record in [
            Record::new(&b"body"[..], Timestamp::from_millis(-7)).with_attributes(attributes),
            Record::new(Bytes::new(), Timestamp::MAX),
        ] {
            let mut buffer = Vec::new();
            encode(&mut buffer, 9, 3, 5, Timestamp::from_millis(11), &record);
            assert_eq!(buffer.len(), row_bytes(&record));
            let mut value = Bytes::from(buffer);
            let key = value.split_to(KEY_BYTES);
            let row = decode(&key, value.clone()).unwrap();
            assert_eq!((row.queue, row.stored.offset.get(), row.stored.position.get()), (3, 5, 9));
            assert_eq!((row.stored.stored_at, &row.stored.record), (Timestamp::from_millis(11), &record));
            assert_eq!(decode(&super::key(8), value), None, "under another key");
        }
    }
}
