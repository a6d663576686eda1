//! Where the records with a key are, newest first: the space `key`.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::{Timestamp, TopicName};

use super::checksum::{self, take};

const KEY_BYTES: usize = 16;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The hash under which a topic's key is filed.
pub(crate) fn hash(topic: &TopicName, key: &str) -> u64 {
    let bytes = topic.as_str().bytes().chain([b'#']).chain(key.bytes());
    bytes.fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

/// The key of a record under a hash.
pub(crate) fn key(hash: u64, position: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&hash.to_be_bytes());
    key[8..].copy_from_slice(&(!position).to_be_bytes());
    key
}

/// The position in a key.
pub(crate) fn position(key: &[u8]) -> Option<u64> {
    Some(!u64::from_be_bytes(key.get(8..)?.try_into().ok()?))
}

/// Encodes key and value at the end of an empty buffer and takes both out.
pub(crate) fn encode(buffer: &mut BytesMut, hash: u64, position: u64, stored_at: Timestamp) -> (Bytes, Bytes) {
    buffer.put_slice(&key(hash, position));
    let key = buffer.split().freeze();
    checksum::begin(buffer);
    buffer.put_i64_le(stored_at.as_millis());
    let value = checksum::seal(&key, buffer);
    (key, value)
}

/// Checks a value and tells when its record was stored.
pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<Timestamp> {
    let mut rest = checksum::verified(key, value)?;
    let stored_at = take!(rest, i64);
    rest.is_empty().then_some(Timestamp::from_millis(stored_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_sorts_first() {
        let hash = hash(&TopicName::new("t").unwrap(), "k");
        assert!(key(hash, 9) < key(hash, 8) && key(hash, 256) < key(hash, 255));
        let (key, value) = encode(&mut BytesMut::new(), hash, 9, Timestamp::from_millis(4));
        assert_eq!(position(&key), Some(9));
        assert_eq!(decode(&key, &value), Some(Timestamp::from_millis(4)));
    }

    #[test]
    fn the_hash_is_fnv_1a_and_never_changes() {
        assert_eq!(hash(&TopicName::new("a").unwrap(), "b"), 0xe649_cb19_048b_e20d);
    }
}
