//! Rows of the ordered tables, in `meta`.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::Table;

use super::TABLE;
use super::checksum::{self, CHECKSUM_BYTES};

/// The key of a row: the table's name with its length in front, so that no two tables mix.
pub(crate) fn key(table: &Table, row: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix_bytes(table) + row.len());
    key.extend_from_slice(&[TABLE, name_bytes(table)]);
    key.extend_from_slice(table.as_str().as_bytes());
    key.extend_from_slice(row);
    key
}

/// The first key behind every row of a table.
pub(crate) fn end(table: &Table) -> Vec<u8> {
    let mut end = key(table, &[]);
    let last = end.last_mut().expect("a table's name is not empty");
    *last += 1; // a name is ASCII, so this cannot overflow
    end
}

/// Bytes in front of the row's own key.
pub(crate) fn prefix_bytes(table: &Table) -> usize {
    2 + table.as_str().len()
}

fn name_bytes(table: &Table) -> u8 {
    u8::try_from(table.as_str().len()).expect("a table's name has at most 63 bytes")
}

/// Encodes a row's key at the end of an empty buffer and takes it out.
pub(crate) fn encode_key(buffer: &mut BytesMut, table: &Table, row: &[u8]) -> Bytes {
    buffer.reserve(prefix_bytes(table) + row.len());
    buffer.put_slice(&[TABLE, name_bytes(table)]);
    buffer.put_slice(table.as_str().as_bytes());
    buffer.put_slice(row);
    buffer.split().freeze()
}

/// Encodes key and value at the end of an empty buffer and takes both out.
pub(crate) fn encode(buffer: &mut BytesMut, table: &Table, row: &[u8], value: &[u8]) -> (Bytes, Bytes) {
    let key = encode_key(buffer, table, row);
    buffer.reserve(CHECKSUM_BYTES + value.len());
    checksum::begin(buffer);
    buffer.put_slice(value);
    let value = checksum::seal(&key, buffer);
    (key, value)
}

/// Checks a value and takes the checksum off.
pub(crate) fn decode(key: &[u8], value: &Bytes) -> Option<Bytes> {
    checksum::verified(key, value)?;
    Some(value.slice(CHECKSUM_BYTES..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_round_trip_and_tables_do_not_mix() {
        let (short, long) = (Table::named("a"), Table::named("ab"));
        let (key, value) = encode(&mut BytesMut::new(), &short, b"b\xff", b"v");
        assert_eq!(decode(&key, &value).as_deref(), Some(&b"v"[..]));
        assert_eq!(&key[..], super::key(&short, b"b\xff"));
        assert_eq!(&key[prefix_bytes(&short)..], b"b\xff");
        assert!(key[..] < end(&short)[..]);
        assert!(super::key(&long, b"")[..] >= end(&short)[..], "ab holds nothing of a");
        assert!(super::key(&short, &[0xff; 9])[..] < end(&short)[..]);
    }
}
