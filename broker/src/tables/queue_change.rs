//! Table `queue_change`: where each queue of a topic ended when the number of its queues was changed.
//!
//! Key: `topic | 0 | number u64 BE`; the rows of a topic lie together, the oldest first. A table of its own and no
//! part of the topic's row, because the ends of 16 changes of 1024 queues do not fit into one row's fields.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{QueueOffset, Table, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
use crate::domain::fence::QueueChange;
use crate::limits::MAX_QUEUES_PER_TOPIC;

const NAME: &str = "queue_change";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

#[derive(Serialize, Deserialize)]
struct Fields {
    ends: Vec<u64>,
}

/// The key of a topic's change; numbers rise.
pub(crate) fn key(topic: &TopicName, number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(topic.as_str().len() + 9);
    key.put_slice(topic.as_str().as_bytes());
    key.put_u8(0);
    key.put_u64(number);
    key.freeze()
}

/// The half-open range of keys that holds all changes of a topic.
pub(crate) fn keys_of_topic(topic: &TopicName) -> Range<Bytes> {
    let bound = |last: u8| [topic.as_str().as_bytes(), &[last]].concat().into();
    bound(0)..bound(1)
}

/// Reads the number out of a key.
///
/// # Errors
/// When it is not of this table's form.
pub(crate) fn decode_key(key: &[u8]) -> Result<u64, DecodeError> {
    let malformed = || DecodeError::new(NAME, "key is not topic and number");
    let (topic, number) = key.split_last_chunk::<8>().ok_or_else(malformed)?;
    let (zero, topic) = topic.split_last().ok_or_else(malformed)?;
    let name = str::from_utf8(topic).ok().filter(|_| *zero == 0).ok_or_else(malformed)?;
    TopicName::from_stored(name).map_err(DecodeError::invalid(NAME))?;
    Ok(u64::from_be_bytes(*number))
}

/// The row's value.
///
/// # Panics
/// With more queues than a topic may have.
pub(crate) fn encode_row(change: &QueueChange) -> Bytes {
    encode(VERSION, &Fields { ends: change.ends().iter().map(|end| end.get()).collect() })
}

/// Reads a row's value.
///
/// # Errors
/// When it is of another version, damaged, or names more queues than a topic may have or offsets that no queue has.
pub(crate) fn decode_row(value: &[u8]) -> Result<QueueChange, DecodeError> {
    let fields: Fields = decode(NAME, VERSION, value)?;
    if fields.ends.len() > MAX_QUEUES_PER_TOPIC as usize {
        let reason = format!("{} queues, more than {MAX_QUEUES_PER_TOPIC}", fields.ends.len());
        return Err(DecodeError::new(NAME, reason));
    }
    if let Some(end) = fields.ends.iter().find(|end| **end > MAX_POSITION) {
        return Err(DecodeError::new(NAME, format!("a queue ends at {end}, more than {MAX_POSITION}")));
    }
    Ok(QueueChange::new(fields.ends.into_iter().map(QueueOffset::new).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    fn change(ends: impl IntoIterator<Item = u64>) -> QueueChange {
        QueueChange::new(ends.into_iter().map(QueueOffset::new).collect())
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&encode_row(&change([0, 7, 300]))), "01030007fb2c01");
        let topic = TopicName::new("orders").unwrap();
        assert_eq!(&key(&topic, 258)[..], b"orders\0\0\0\0\0\0\0\x01\x02");
        assert_eq!(decode_key(&key(&topic, 258)), Ok(258));
        assert!(keys_of_topic(&topic).contains(&key(&topic, u64::MAX)));
        assert!(!keys_of_topic(&topic).contains(&key(&TopicName::new("orders2").unwrap(), 0)));
    }

    #[test]
    fn the_largest_row_fits_and_a_larger_one_is_refused() {
        let largest = change(vec![MAX_POSITION; 1024]);
        assert_eq!(decode_row(&encode_row(&largest)), Ok(largest));
        assert!(decode_row(&encode_row(&change(vec![0; 1025]))).unwrap_err().to_string().contains("1025 queues"));
        assert!(decode_key(b"orders").is_err() && decode_key(b"orders\x01\0\0\0\0\0\0\0\0").is_err());
    }

    proptest! {
        #[test]
        fn round_trip(ends in prop::collection::vec(0..=MAX_POSITION, 0..50)) {
            let change = change(ends);
            prop_assert_eq!(decode_row(&encode_row(&change)), Ok(change));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(any::<u8>(), 0..40)) {
            value.insert(0, VERSION);
            if let Ok(change) = decode_row(&value) {
                prop_assert_eq!(decode_row(&encode_row(&change)), Ok(change));
            }
        }
    }
}
