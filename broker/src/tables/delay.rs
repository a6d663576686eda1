//! Table `delay`: messages that wait for their time.
//!
//! Key: `due time in milliseconds, sign bit flipped, u64 BE | sequence u64 BE`, so that byte order is due order.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::{QueueId, Record, Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode_with_record, encode_with_record};
use crate::domain::delay::TimerKey;

const NAME: &str = "delay";
const VERSION: u8 = 1;
const SIGN: u64 = 1 << 63;
const KEY_BYTES: usize = 16;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// Why a message waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum DelayOrigin {
    /// Its producer wants it later.
    Send,
    /// A consumer group could not consume it and gets it again.
    Retry,
    /// It recurs; the number of its row in the table `recurrence`.
    Recurrence(u64),
}

/// A message that waits for its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DelayRow {
    /// Where it goes when it is due.
    pub(crate) topic: TopicName,
    /// The queue, if it is chosen already.
    pub(crate) queue: Option<QueueId>,
    /// Why it waits.
    pub(crate) origin: DelayOrigin,
    /// The message.
    pub(crate) record: Record,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    topic: String,
    queue: Option<u32>,
    origin: DelayOrigin,
}

/// The key of a timer.
pub(crate) fn key(timer: TimerKey) -> Bytes {
    let mut key = BytesMut::with_capacity(KEY_BYTES);
    key.put_u64(timer.due.as_millis().cast_unsigned() ^ SIGN);
    key.put_u64(timer.sequence);
    key.freeze()
}

/// Reads a key.
///
/// # Errors
/// When it does not have 16 bytes.
pub(crate) fn decode_key(key: &[u8]) -> Result<TimerKey, DecodeError> {
    let bytes: [u8; KEY_BYTES] = key
        .try_into()
        .map_err(|_| DecodeError::new(NAME, format!("key has {} bytes instead of {KEY_BYTES}", key.len())))?;
    let [due, sequence] = halves(bytes);
    Ok(TimerKey::new(Timestamp::from_millis((due ^ SIGN).cast_signed()), sequence))
}

fn halves(bytes: [u8; KEY_BYTES]) -> [u64; 2] {
    let whole = u128::from_be_bytes(bytes);
    [whole >> 64, whole & u128::from(u64::MAX)].map(|half| u64::try_from(half).expect("half of 128 bits is 64 bits"))
}

impl DelayRow {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        let fields =
            Fields { topic: self.topic.as_str().to_owned(), queue: self.queue.map(QueueId::get), origin: self.origin };
        encode_with_record(VERSION, &fields, &self.record)
    }

    /// Reads a row's value; body and attributes are slices of it.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &Bytes) -> Result<Self, DecodeError> {
        let (fields, record): (Fields, Record) = decode_with_record(NAME, VERSION, value)?;
        Ok(Self {
            topic: TopicName::from_stored(&fields.topic).map_err(DecodeError::invalid(NAME))?,
            queue: fields.queue.map(QueueId::new).transpose().map_err(DecodeError::invalid(NAME))?,
            origin: fields.origin,
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::{any_record, hex, tagged_record};

    #[test]
    fn golden_bytes() {
        let row = DelayRow {
            topic: TopicName::new("orders").unwrap(),
            queue: Some(QueueId::new(3).unwrap()),
            origin: DelayOrigin::Retry,
            record: tagged_record(),
        };
        let parts =
            ["010000000b", "066f7264657273", "0103", "01", "0a", "0000000d", "01030070617904040001006131", "626f6479"];
        assert_eq!(hex(&row.encode()), parts.concat());
        let timer = TimerKey::new(Timestamp::from_millis(1_700_000_000_000), 258);
        assert_eq!(hex(&key(timer)), "8000018bcfe568000000000000000102");
        assert_eq!(hex(&key(TimerKey::FIRST)), "0".repeat(32));
    }

    #[test]
    fn damaged_rows_are_refused() {
        assert!(decode_key(&[0; 15]).is_err() && decode_key(&[0; 17]).is_err());
        let row = DelayRow {
            topic: TopicName::new("orders").unwrap(),
            queue: None,
            origin: DelayOrigin::Send,
            record: Record::new("", Timestamp::MIN),
        };
        let value = row.encode();
        for len in 0..value.len() {
            assert!(DelayRow::decode(&value.slice(..len)).is_err(), "cut to {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn keys_are_in_due_order(one: (i64, u64), other: (i64, u64)) {
            let timer = |(due, sequence)| TimerKey::new(Timestamp::from_millis(due), sequence);
            let (one, other) = (timer(one), timer(other));
            prop_assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
            prop_assert_eq!(decode_key(&key(one)), Ok(one));
        }

        #[test]
        fn round_trip(record in any_record(), queue in proptest::option::of(0u32..1000), retry: bool) {
            let row = DelayRow {
                topic: TopicName::from_stored("%RETRY%g").unwrap(),
                queue: queue.map(|id| QueueId::new(id).unwrap()),
                origin: if retry { DelayOrigin::Retry } else { DelayOrigin::Send },
                record,
            };
            prop_assert_eq!(DelayRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(flips in prop::collection::vec((0usize..60, any::<u8>()), 1..6), record in any_record()) {
            let topic = TopicName::new("t").unwrap();
            let mut value = DelayRow { topic, queue: None, origin: DelayOrigin::Send, record }.encode().to_vec();
            for (at, byte) in flips {
                let len = value.len();
                value[at % len] = byte;
            }
            if let Ok(row) = DelayRow::decode(&Bytes::from(value)) {
                prop_assert_eq!(DelayRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
