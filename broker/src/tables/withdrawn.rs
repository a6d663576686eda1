//! Table `withdrawn`: messages that were taken from a group long before it comes to them, for whom its row in table
//! `consumer_offset` has no room.
//!
//! Key: `group | 0 | topic | 0 | member | 0 | queue u32 BE | offset u64 BE`; the member is empty unless the group
//! broadcasts. No name contains a zero byte, so the rows of a group lie together. A row is written in one batch with the
//! message's dead letter, and deleted when the group's progress has the message or has passed it.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, Table, TopicName};

use super::codec::{DecodeError, encode};
pub(crate) use super::keys::keys_of_group;
use super::place::{PLACE_BYTES, decode_place, put_place};
use crate::domain::member::MemberId;

const NAME: &str = "withdrawn";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// The key of a message's row.
pub(crate) fn key(group: &GroupName, queue: &QueueKey, member: Option<&MemberId>, offset: QueueOffset) -> Bytes {
    let names = [group.as_str(), queue.topic.as_str(), member.map_or("", MemberId::as_str)];
    let mut key = BytesMut::with_capacity(names.iter().map(|name| name.len() + 1).sum::<usize>() + PLACE_BYTES);
    for name in names {
        key.put_slice(name.as_bytes());
        key.put_u8(0);
    }
    put_place(&mut key, queue.queue, offset);
    key.freeze()
}

/// The value of every row: that there is one says it all.
pub(crate) fn row() -> Bytes {
    encode(VERSION, &())
}

/// Whose message a row is about, and where it lies.
///
/// # Errors
/// When the key is not of this table's form.
pub(crate) fn decode_key(key: &[u8]) -> Result<(GroupName, QueueKey, Option<MemberId>, QueueOffset), DecodeError> {
    let malformed = || DecodeError::new(NAME, "key is not group, topic, member, queue, offset");
    let mut names = key.splitn(4, |byte| *byte == 0);
    let mut name = || str::from_utf8(names.next().unwrap_or_default()).map_err(|_| malformed());
    let group = GroupName::new(name()?).map_err(DecodeError::invalid(NAME))?;
    let topic = TopicName::from_stored(name()?).map_err(DecodeError::invalid(NAME))?;
    let member = match name()? {
        "" => None,
        member => Some(MemberId::new(member).map_err(DecodeError::invalid(NAME))?),
    };
    let (queue, offset) = decode_place(NAME, topic, names.next().ok_or_else(malformed)?)?;
    Ok((group, queue, member, offset))
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::limits::MAX_POSITION;
    use proptest::prelude::*;

    use super::*;
    use crate::tables::place::tests::place;

    #[test]
    fn golden_bytes() {
        let (group, member) = (GroupName::new("g").unwrap(), MemberId::new("m").unwrap());
        let of_group = key(&group, &place("%RETRY%g", 1), None, QueueOffset::new(258));
        assert_eq!(&of_group[..], b"g\0%RETRY%g\0\0\0\0\0\x01\0\0\0\0\0\0\x01\x02");
        let of_member = key(&group, &place("t", 1), Some(&member), QueueOffset::new(2));
        assert_eq!(&of_member[..], b"g\0t\0m\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(&row()[..], [1]);
        let range = keys_of_group(&group);
        assert!(range.contains(&of_group) && range.contains(&of_member));
        assert!(!range.contains(&key(&GroupName::new("g-").unwrap(), &place("t", 0), None, QueueOffset::ZERO)));
    }

    proptest! {
        #[test]
        fn round_trip(
            g in "[A-Za-z0-9_-]{1,20}x", t in "[A-Za-z0-9_-]{1,20}x", m in prop::option::of("[a-z0-9]{1,20}"),
            queue in 0u32..1000, offset in 0..MAX_POSITION,
        ) {
            let (group, queue, offset) = (GroupName::new(&g).unwrap(), place(&t, queue), QueueOffset::new(offset));
            let member = m.map(|m| MemberId::new(&m).unwrap());
            let bytes = key(&group, &queue, member.as_ref(), offset);
            prop_assert_eq!(decode_key(&bytes), Ok((group, queue, member, offset)));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((group, queue, member, offset)) = decode_key(&bytes) {
                prop_assert_eq!(&key(&group, &queue, member.as_ref(), offset)[..], &bytes[..]);
            }
        }
    }
}
