//! Records by position: the space `log`.

use bytes::{BufMut, Bytes, BytesMut};
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

/// Encodes key and value at the end of an empty buffer and takes both out.
pub(crate) fn encode(
    buffer: &mut BytesMut,
    position: u64,
    queue: u32,
    offset: u64,
    stored_at: Timestamp,
    record: &Record,
) -> (Bytes, Bytes) {
    buffer.put_slice(&key(position));
    let key = buffer.split().freeze();
    let attributes = record.attributes.as_bytes();
    let attributes_len = u16::try_from(attributes.len()).expect("a checked record has at most 32 KiB of attributes");
    checksum::begin(buffer);
    buffer.put_u8(VERSION);
    buffer.put_u32_le(queue);
    buffer.put_u64_le(offset);
    buffer.put_i64_le(stored_at.as_millis());
    buffer.put_i64_le(record.born_at.as_millis());
    buffer.put_u16_le(attributes_len);
    buffer.put_slice(attributes);
    buffer.put_slice(&record.body);
    let value = checksum::seal(&key, buffer);
    (key, value)
}

/// Checks and decodes a row; attributes and body are slices of the value.
pub(crate) fn decode(key: &[u8], value: &Bytes) -> Option<LogRow> {
    let mut rest = checksum::verified(key, value)?;
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
    let body_at = HEADER_BYTES + attributes_len;
    let record = Record {
        attributes: Attributes::from_stored(value.slice(HEADER_BYTES..body_at)),
        body: value.slice(body_at..),
        born_at,
    };
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
            let mut buffer = BytesMut::with_capacity(row_bytes(&record));
            let (key, value) = encode(&mut buffer, 9, 3, 5, Timestamp::from_millis(11), &record);
            assert_eq!(key.len() + value.len(), row_bytes(&record));
            let row = decode(&key, &value).unwrap();
            assert_eq!((row.queue, row.stored.offset.get(), row.stored.position.get()), (3, 5, 9));
            assert_eq!((row.stored.stored_at, &row.stored.record), (Timestamp::from_millis(11), &record));
            assert_eq!(decode(&super::key(8), &value), None, "under another key");
        }
    }
}
