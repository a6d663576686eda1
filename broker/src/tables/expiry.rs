//! Table `expiry`: when messages in queues end.
//!
//! Key: as in table `delay`, with the message's end in the place of its due time. Value: `topic and queue as fields |
//! queue offset u64 BE`. The offset is filled in by the engine, in the batch that appends the message.

use bytes::Bytes;
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, Table, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
pub(crate) use super::delay::{decode_key, key};

const NAME: &str = "expiry";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// Which message ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ExpiryRow {
    /// Where it lies.
    pub(crate) queue: QueueKey,
    /// Its offset there.
    pub(crate) offset: QueueOffset,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    topic: String,
    queue: u32,
}

/// What the value of a row begins with, for a message of this queue; its offset follows.
pub(crate) fn prefix(queue: &QueueKey) -> Bytes {
    encode(VERSION, &Fields { topic: queue.topic.as_str().to_owned(), queue: queue.queue.get() })
}

impl ExpiryRow {
    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let (fields, offset) =
            value.split_last_chunk().ok_or_else(|| DecodeError::new(NAME, "value ends within its offset"))?;
        let Fields { topic, queue } = decode(NAME, VERSION, fields)?;
        let topic = TopicName::from_stored(&topic).map_err(DecodeError::invalid(NAME))?;
        let queue = QueueId::new(queue).map_err(DecodeError::invalid(NAME))?;
        let offset = u64::from_be_bytes(*offset);
        if offset > MAX_POSITION {
            return Err(DecodeError::new(NAME, "an offset is above 2^53"));
        }
        Ok(Self { queue: QueueKey::new(topic, queue), offset: QueueOffset::new(offset) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    fn queue(topic: &str, id: u32) -> QueueKey {
        QueueKey::new(TopicName::from_stored(topic).unwrap(), QueueId::new(id).unwrap())
    }

    fn value(queue: &QueueKey, offset: u64) -> Vec<u8> {
        [&prefix(queue)[..], &offset.to_be_bytes()].concat()
    }

    #[test]
    fn golden_bytes() {
        let value = value(&queue("orders", 3), 258);
        assert_eq!(hex(&value), ["01", "066f7264657273", "03", "0000000000000102"].concat());
        let row = ExpiryRow { queue: queue("orders", 3), offset: QueueOffset::new(258) };
        assert_eq!(ExpiryRow::decode(&value), Ok(row));
    }

    #[test]
    fn damaged_rows_are_refused() {
        let whole = value(&queue("orders", 3), 258);
        for len in 0..whole.len() {
            assert!(ExpiryRow::decode(&whole[..len]).is_err(), "cut to {len} bytes");
        }
        let beyond = value(&queue("orders", 3), MAX_POSITION + 1);
        assert!(ExpiryRow::decode(&beyond).unwrap_err().to_string().contains("above 2^53"));
    }

    proptest! {
        #[test]
        fn round_trip(id in 0u32..1_000_000, offset in 0..=MAX_POSITION, name in "[A-Za-z0-9_%-]{1,134}") {
            let queue = queue(&name, id);
            let row = ExpiryRow { offset: QueueOffset::new(offset), queue: queue.clone() };
            prop_assert_eq!(ExpiryRow::decode(&value(&queue, offset)), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            bytes.insert(0, VERSION);
            if let Ok(row) = ExpiryRow::decode(&bytes) {
                prop_assert_eq!(ExpiryRow::decode(&value(&row.queue, row.offset.get())), Ok(row));
            }
        }
    }
}
