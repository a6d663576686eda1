//! Table `consumer_offset`: how far each group is in each queue.
//!
//! Key: `group | 0 | topic | 0 | queue u32 BE`, and in broadcasting groups `| 0 | member` behind it. No name contains
//! a zero byte, so the rows of a group lie together and in the order of their queues.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{GroupName, QueueId, QueueKey, QueueOffset, Table, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
pub(crate) use super::keys::keys_of_group;
use crate::domain::member::MemberId;
use crate::domain::progress::{MAX_ACKED_RANGES, MAX_WITHDRAWN_RANGES, Progress};

const NAME: &str = "consumer_offset";
const VERSION: u8 = 2;
const QUEUE_BYTES: usize = 4;
const MAX_RANGES: usize = MAX_ACKED_RANGES + MAX_WITHDRAWN_RANGES;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// How far a group, or one member of a broadcasting group, is in one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConsumerOffsetRow {
    /// Everything below is done.
    pub(crate) committed: QueueOffset,
    /// What is done above it: rising ranges that do not touch, at most [`MAX_ACKED_RANGES`] and
    /// [`MAX_WITHDRAWN_RANGES`] together.
    pub(crate) acked: Vec<Range<QueueOffset>>,
    /// How many of the messages that are done no member wanted.
    pub(crate) unwanted: u64,
}

/// Ranges as gap and length, each counted from the end of the one before: small numbers take one byte.
#[derive(Serialize, Deserialize)]
struct Fields {
    committed: u64,
    acked: Vec<(u64, u64)>,
    unwanted: u64,
}

/// Whose progress in which queue a row tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ConsumerOffsetKey {
    /// The group.
    pub(crate) group: GroupName,
    /// The queue.
    pub(crate) queue: QueueKey,
    /// The member, in a broadcasting group.
    pub(crate) member: Option<MemberId>,
}

/// The key of a row.
pub(crate) fn key(group: &GroupName, queue: &QueueKey, member: Option<&MemberId>) -> Bytes {
    let (group, topic) = (group.as_str().as_bytes(), queue.topic.as_str().as_bytes());
    let mut key = BytesMut::with_capacity(group.len() + topic.len() + 3 + QUEUE_BYTES + member.map_or(0, name_len));
    for name in [group, topic] {
        key.put_slice(name);
        key.put_u8(0);
    }
    key.put_u32(queue.queue.get());
    if let Some(member) = member {
        key.put_u8(0);
        key.put_slice(member.as_str().as_bytes());
    }
    key.freeze()
}

fn name_len(member: &MemberId) -> usize {
    member.as_str().len()
}

/// Reads a key.
///
/// # Errors
/// When it is not of this table's form.
pub(crate) fn decode_key(key: &[u8]) -> Result<ConsumerOffsetKey, DecodeError> {
    let malformed = || DecodeError::new(NAME, "key is not group, topic, queue");
    let mut names = key.splitn(3, |byte| *byte == 0);
    let mut name = || str::from_utf8(names.next().unwrap_or_default()).map_err(|_| malformed());
    let group = GroupName::new(name()?).map_err(DecodeError::invalid(NAME))?;
    let topic = TopicName::from_stored(name()?).map_err(DecodeError::invalid(NAME))?;
    let (queue, member) = names.next().and_then(|rest| rest.split_first_chunk()).ok_or_else(malformed)?;
    let queue = QueueId::new(u32::from_be_bytes(*queue)).map_err(DecodeError::invalid(NAME))?;
    let member = match member {
        [] => None,
        [0, member @ ..] => {
            let member = str::from_utf8(member).map_err(|_| malformed())?;
            Some(MemberId::new(member).map_err(DecodeError::invalid(NAME))?)
        }
        _ => return Err(malformed()),
    };
    Ok(ConsumerOffsetKey { group, queue: QueueKey::new(topic, queue), member })
}

impl ConsumerOffsetRow {
    /// The row that keeps this progress.
    pub(crate) fn of(progress: &Progress, unwanted: u64) -> Self {
        Self { committed: progress.committed(), acked: progress.acked_ranges().collect(), unwanted }
    }

    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        let mut end = self.committed.get();
        let acked = self.acked.iter().map(|range| {
            let gap = range.start.get() - end;
            end = range.end.get();
            (gap, end - range.start.get())
        });
        let acked = acked.collect();
        encode(VERSION, &Fields { acked, committed: self.committed.get(), unwanted: self.unwanted })
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged: too many ranges, touching or empty ones, offsets that cannot be.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let Fields { committed, acked: encoded, unwanted } = decode(NAME, VERSION, value)?;
        if encoded.len() > MAX_RANGES {
            let reason = format!("{} acknowledged ranges, more than {MAX_RANGES}", encoded.len());
            return Err(DecodeError::new(NAME, reason));
        }
        let mut end = offset(Some(committed))?;
        let mut row = Self { committed: end, acked: Vec::with_capacity(encoded.len()), unwanted };
        for (gap, len) in encoded {
            if gap == 0 || len == 0 {
                return Err(DecodeError::new(NAME, "an acknowledged range is empty or touches the one before"));
            }
            let start = offset(end.get().checked_add(gap))?;
            end = offset(start.get().checked_add(len))?;
            row.acked.push(start..end);
        }
        Ok(row)
    }
}

fn offset(offset: Option<u64>) -> Result<QueueOffset, DecodeError> {
    offset
        .filter(|offset| *offset <= MAX_POSITION)
        .map(QueueOffset::new)
        .ok_or_else(|| DecodeError::new(NAME, "an offset is above 2^53"))
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::limits::MAX_TABLE_KEY_BYTES;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::progress::MAX_OPEN_MESSAGES;
    use crate::tables::codec::tests::hex;

    fn group(name: &str) -> GroupName {
        GroupName::new(name).unwrap()
    }

    fn queue(topic: &str, id: u32) -> QueueKey {
        QueueKey::new(TopicName::new(topic).unwrap(), QueueId::new(id).unwrap())
    }

    fn offsets(range: Range<u64>) -> Range<QueueOffset> {
        QueueOffset::new(range.start)..QueueOffset::new(range.end)
    }

    #[test]
    fn golden_bytes() {
        let row = ConsumerOffsetRow {
            committed: QueueOffset::new(1000),
            acked: vec![offsets(1001..1003), offsets(1300..1301)],
            unwanted: 7,
        };
        assert_eq!(hex(&row.encode()), "02fbe803020102fb29010107");
        let member = MemberId::new("m1").unwrap();
        assert_eq!(&key(&group("g"), &queue("t", 258), None)[..], b"g\0t\0\0\0\x01\x02");
        assert_eq!(&key(&group("g"), &queue("t", 258), Some(&member))[..], b"g\0t\0\0\0\x01\x02\0m1");
    }

    #[test]
    fn the_largest_rows_and_keys_fit() {
        let mut progress = Progress::default();
        for offset in (1..2 * MAX_OPEN_MESSAGES).step_by(2) {
            progress.ack(QueueOffset::new(offset)).unwrap();
        }
        let row = ConsumerOffsetRow::of(&progress, 0);
        assert_eq!(row.encode().len(), 6 + 2 * MAX_ACKED_RANGES);
        assert_eq!(ConsumerOffsetRow::decode(&row.encode()), Ok(row));

        let longest = TopicName::retry_of(&group(&"g".repeat(127)));
        let member = MemberId::new(&"m".repeat(255)).unwrap();
        let key = key(&group(&"g".repeat(127)), &QueueKey::new(longest, QueueId::FIRST), Some(&member));
        assert!(key.len() <= MAX_TABLE_KEY_BYTES);
    }

    #[test]
    fn a_scan_finds_exactly_the_rows_of_a_group() {
        let of_g = keys_of_group(&group("g"));
        let last = key(&group("g"), &queue("t", 999_999), Some(&MemberId::new("\u{10ffff}").unwrap()));
        for inside in [key(&group("g"), &queue("t", 0), None), last] {
            assert!(of_g.contains(&inside), "{inside:?}");
        }
        for outside in [key(&group("g-"), &queue("t", 0), None), key(&group("f"), &queue("t", 0), None)] {
            assert!(!of_g.contains(&outside), "{outside:?}");
        }
    }

    #[test]
    fn damaged_rows_are_refused() {
        for (bytes, hint) in [
            (&[2, 5, 1, 0, 1, 0][..], "empty or touches"),
            (&[2, 5, 1, 1, 0, 0], "empty or touches"),
            (&[2, 253, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], "above 2^53"),
            (&[2, 5, 1, 253, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0], "above 2^53"),
        ] {
            let error = ConsumerOffsetRow::decode(bytes).unwrap_err().to_string();
            assert!(error.contains(hint), "{bytes:?}: {error}");
        }
        let many = Fields { committed: 0, acked: vec![(1, 1); MAX_RANGES + 1], unwanted: 0 };
        assert!(ConsumerOffsetRow::decode(&encode(VERSION, &many)).unwrap_err().to_string().contains("3073"));
        for bad in [&b"g"[..], b"g\0t", b"g\0t\0\0\0\0", b"g\0t\0\0\0\0\0x", b"\0t\0\0\0\0\0", b"g\0t\0\xff\0\0\0"] {
            assert!(decode_key(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(committed in 0u64..1 << 40, unwanted: u64, steps in prop::collection::vec((1u64..400, 1u64..400), 0..50)) {
            let mut end = committed;
            let acked = steps.into_iter().map(|(gap, len)| {
                let start = end + gap;
                end = start + len;
                offsets(start..end)
            }).collect();
            let row = ConsumerOffsetRow { committed: QueueOffset::new(committed), acked, unwanted };
            prop_assert_eq!(ConsumerOffsetRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn keys_round_trip_in_queue_order(g in "[A-Za-z0-9_-]{1,20}x", t in "[A-Za-z0-9_-]{1,20}x", id in 0u32..999_999, m in proptest::option::of("[^\\p{Cc}]{1,40}")) {
            let member = m.map(|name| MemberId::new(&name).unwrap());
            let bytes = key(&group(&g), &queue(&t, id), member.as_ref());
            let decoded = ConsumerOffsetKey { group: group(&g), queue: queue(&t, id), member };
            prop_assert!(bytes < key(&group(&g), &queue(&t, id + 1), None));
            prop_assert_eq!(decode_key(&bytes), Ok(decoded));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(decoded) = decode_key(&bytes) {
                prop_assert_eq!(&key(&decoded.group, &decoded.queue, decoded.member.as_ref())[..], &bytes[..]);
            }
            bytes.insert(0, VERSION);
            if let Ok(row) = ConsumerOffsetRow::decode(&bytes) {
                prop_assert_eq!(ConsumerOffsetRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
