//! Table `in_place`: what is known of the failed deliveries of messages that keep their place in a queue.
//!
//! Key: `group | 0 | topic | 0 | queue u32 BE | offset u64 BE`. No name contains a zero byte, so the rows of a group lie
//! together. A row is written when a delivery fails in its place, and deleted with the group's progress behind it.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, Table, Timestamp, TopicName};

use super::codec::{DecodeError, decode, encode};
pub(crate) use super::keys::keys_of_group;
use super::place::{PLACE_BYTES, decode_place, put_place};
use crate::domain::in_place::InPlaceFailures;
use crate::limits::MAX_ERROR_BYTES;

const NAME: &str = "in_place";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// The key of a message's row.
pub(crate) fn key(group: &GroupName, queue: &QueueKey, offset: QueueOffset) -> Bytes {
    let (group, topic) = (group.as_str().as_bytes(), queue.topic.as_str().as_bytes());
    let mut key = BytesMut::with_capacity(group.len() + topic.len() + 2 + PLACE_BYTES);
    for name in [group, topic] {
        key.put_slice(name);
        key.put_u8(0);
    }
    put_place(&mut key, queue.queue, offset);
    key.freeze()
}

/// Reads the message's place from a key.
///
/// # Errors
/// When it is not of this table's form.
pub(crate) fn decode_key(key: &[u8]) -> Result<(GroupName, QueueKey, QueueOffset), DecodeError> {
    let malformed = || DecodeError::new(NAME, "key is not group, topic, queue, offset");
    let mut names = key.splitn(3, |byte| *byte == 0);
    let mut name = || str::from_utf8(names.next().unwrap_or_default()).map_err(|_| malformed());
    let group = GroupName::new(name()?).map_err(DecodeError::invalid(NAME))?;
    let topic = TopicName::from_stored(name()?).map_err(DecodeError::invalid(NAME))?;
    let (queue, offset) = decode_place(NAME, topic, names.next().ok_or_else(malformed)?)?;
    Ok((group, queue, offset))
}

impl InPlaceFailures {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        encode(VERSION, &(self.failures, self.first_failed_at.as_millis(), self.last_error.as_deref()))
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let (failures, first, last_error): (u32, i64, Option<String>) = decode(NAME, VERSION, value)?;
        if last_error.as_ref().is_some_and(|error| error.len() > MAX_ERROR_BYTES) {
            return Err(DecodeError::new(NAME, "an error text is too long"));
        }
        Ok(Self { failures, first_failed_at: Timestamp::from_millis(first), last_error })
    }
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::limits::MAX_POSITION;
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;
    use crate::tables::place::tests::place;

    #[test]
    fn golden_bytes() {
        let row = |last_error: Option<&str>| InPlaceFailures {
            failures: 3,
            first_failed_at: Timestamp::from_millis(512),
            last_error: last_error.map(str::to_owned),
        };
        assert_eq!(hex(&row(None).encode()), "0103fb000400");
        assert_eq!(hex(&row(Some("no")).encode()), "0103fb000401026e6f");
        let group = GroupName::new("g").unwrap();
        let bytes = key(&group, &place("%RETRY%g", 1), QueueOffset::new(258));
        assert_eq!(&bytes[..], b"g\0%RETRY%g\0\0\0\0\x01\0\0\0\0\0\0\x01\x02");
        let of_group = keys_of_group(&group);
        assert!(of_group.contains(&bytes));
        assert!(!of_group.contains(&key(&GroupName::new("g-").unwrap(), &place("t", 0), QueueOffset::ZERO)));
    }

    proptest! {
        #[test]
        fn round_trip(
            g in "[A-Za-z0-9_-]{1,20}x", t in "[A-Za-z0-9_-]{1,20}x", queue in 0u32..1000, offset in 0..MAX_POSITION,
            failures: u32, at: i64, last_error in prop::option::of(".{0,40}"),
        ) {
            let (group, queue, offset) = (GroupName::new(&g).unwrap(), place(&t, queue), QueueOffset::new(offset));
            prop_assert_eq!(decode_key(&key(&group, &queue, offset)), Ok((group, queue, offset)));
            let row = InPlaceFailures { failures, first_failed_at: Timestamp::from_millis(at), last_error };
            prop_assert_eq!(InPlaceFailures::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((group, queue, offset)) = decode_key(&bytes) {
                prop_assert_eq!(&key(&group, &queue, offset)[..], &bytes[..]);
            }
            bytes.insert(0, VERSION);
            if let Ok(row) = InPlaceFailures::decode(&bytes) {
                prop_assert_eq!(InPlaceFailures::decode(&row.encode()), Ok(row));
            }
        }
    }
}
