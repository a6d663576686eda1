//! Table `dead_letter`: which dead letters have been dealt with, while older ones of their group are still open.
//!
//! Key: `group | 0 | offset u64 BE`, the letter's place in the group's dead-letter queue. No name contains a zero
//! byte, so the rows of a group lie together and in the order of its letters. A letter without a row is open; one
//! below the queue's minimum has been dealt with and needs no row any more.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{GroupName, QueueOffset, Table, Timestamp};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
pub(crate) use super::keys::keys_of_group;

const NAME: &str = "dead_letter";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// What became of a letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// It was sent to its topic again.
    ToOrigin,
    /// It was given to its group again.
    ToGroup,
    /// It was thrown away.
    Purged,
}

/// A letter that has been dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeadLetterRow {
    /// How.
    pub(crate) fate: Fate,
    /// When.
    pub(crate) at: Timestamp,
}

/// The key of a letter.
pub(crate) fn key(group: &GroupName, offset: QueueOffset) -> Bytes {
    let group = group.as_str().as_bytes();
    let mut key = BytesMut::with_capacity(group.len() + 9);
    key.put_slice(group);
    key.put_u8(0);
    key.put_u64(offset.get());
    key.freeze()
}

/// The half-open range of keys that holds these letters of a group.
pub(crate) fn keys(group: &GroupName, letters: &Range<QueueOffset>) -> Range<Bytes> {
    key(group, letters.start)..key(group, letters.end)
}

/// Reads the letter's offset from a key.
///
/// # Errors
/// When it is not of this table's form.
pub(crate) fn decode_key(key: &[u8]) -> Result<(GroupName, QueueOffset), DecodeError> {
    let malformed = || DecodeError::new(NAME, "key is not group, offset");
    let at = key.iter().position(|byte| *byte == 0).ok_or_else(malformed)?;
    let group = str::from_utf8(&key[..at]).map_err(|_| malformed())?;
    let group = GroupName::new(group).map_err(DecodeError::invalid(NAME))?;
    let offset: [u8; 8] = key[at + 1..].try_into().map_err(|_| malformed())?;
    let offset = u64::from_be_bytes(offset);
    if offset > MAX_POSITION {
        return Err(DecodeError::new(NAME, "an offset is above 2^53"));
    }
    Ok((group, QueueOffset::new(offset)))
}

impl DeadLetterRow {
    /// The row's value.
    pub(crate) fn encode(self) -> Bytes {
        encode(VERSION, &(self.fate, self.at.as_millis()))
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let (fate, at) = decode(NAME, VERSION, value)?;
        Ok(Self { fate, at: Timestamp::from_millis(at) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    const FATES: [Fate; 3] = [Fate::ToOrigin, Fate::ToGroup, Fate::Purged];

    fn group(name: &str) -> GroupName {
        GroupName::new(name).unwrap()
    }

    #[test]
    fn golden_bytes() {
        for (fate, bytes) in FATES.into_iter().zip(["0100fb0004", "0101fb0004", "0102fb0004"]) {
            assert_eq!(hex(&DeadLetterRow { fate, at: Timestamp::from_millis(512) }.encode()), bytes);
        }
        assert_eq!(&key(&group("g"), QueueOffset::new(258))[..], b"g\0\0\0\0\0\0\0\x01\x02");
    }

    #[test]
    fn a_scan_finds_exactly_the_letters_of_a_group() {
        let of_g = keys_of_group(&group("g"));
        for offset in [0, 255, MAX_POSITION] {
            assert!(of_g.contains(&key(&group("g"), QueueOffset::new(offset))));
            assert!(!of_g.contains(&key(&group("g-"), QueueOffset::new(offset))));
            assert!(!of_g.contains(&key(&group("f"), QueueOffset::new(offset))));
        }
        let some = keys(&group("g"), &(QueueOffset::new(3)..QueueOffset::new(256)));
        let inside = |offset| some.contains(&key(&group("g"), QueueOffset::new(offset)));
        assert_eq!([2, 3, 255, 256].map(inside), [false, true, true, false]);
    }

    #[test]
    fn damaged_rows_are_refused() {
        let high = [b"g\0".as_slice(), &[0xff; 8]].concat();
        for bad in
            [&b""[..], b"g", b"g\0", b"g\0\0\0\0\0\0\0\0", b"g\0\0\0\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0\0", &high]
        {
            assert!(decode_key(bad).is_err(), "{bad:?}");
        }
        for bad in [&[][..], &[1], &[1, 3, 0], &[2, 0, 0], &[1, 0, 0, 0]] {
            assert!(DeadLetterRow::decode(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(g in "[A-Za-z0-9_-]{1,20}x", offset in 0..MAX_POSITION, fate in 0usize..3, at: i64) {
            let (group, offset) = (group(&g), QueueOffset::new(offset));
            let bytes = key(&group, offset);
            prop_assert!(bytes < key(&group, offset.plus(1)));
            prop_assert_eq!(decode_key(&bytes), Ok((group, offset)));
            let row = DeadLetterRow { fate: FATES[fate], at: Timestamp::from_millis(at) };
            prop_assert_eq!(DeadLetterRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Ok((group, offset)) = decode_key(&bytes) {
                prop_assert_eq!(&key(&group, offset)[..], &bytes[..]);
            }
            bytes.insert(0, VERSION);
            if let Ok(row) = DeadLetterRow::decode(&bytes) {
                prop_assert_eq!(DeadLetterRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
