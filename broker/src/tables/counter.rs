//! Table `counter`: the bounds below which numbers count as given. Key: the counter's name.

use bytes::Bytes;
use cuemq_storage_api::Table;

use super::codec::{DecodeError, decode, encode};

const NAME: &str = "counter";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// How often the store was opened: makes the numbers of each opening distinct.
pub(crate) const OPENINGS: &str = "openings";
/// Tells this store's message ids from every other's.
pub(crate) const STORE_ID: &str = "store_id";

/// The key of a counter.
pub(crate) fn key(counter: &'static str) -> Bytes {
    Bytes::from_static(counter.as_bytes())
}

/// The value: every number below it counts as given.
pub(crate) fn encode_bound(bound: u64) -> Bytes {
    encode(VERSION, &bound)
}

/// Reads a value.
///
/// # Errors
/// When it is of another version or damaged.
pub(crate) fn decode_bound(value: &[u8]) -> Result<u64, DecodeError> {
    decode(NAME, VERSION, value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&encode_bound(4096)), "01fb0010");
        assert_eq!((&key(OPENINGS)[..], &key(STORE_ID)[..]), (&b"openings"[..], &b"store_id"[..]));
    }

    proptest! {
        #[test]
        fn round_trip(bound: u64) {
            prop_assert_eq!(decode_bound(&encode_bound(bound)), Ok(bound));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(any::<u8>(), 0..12)) {
            value.insert(0, VERSION);
            if let Ok(bound) = decode_bound(&value) {
                prop_assert_eq!(decode_bound(&encode_bound(bound)), Ok(bound));
            }
        }
    }
}
