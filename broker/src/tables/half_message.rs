//! Table `half_message`: messages whose transaction is not decided. Key: `transaction u64 BE`.

use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{GroupName, QueueId, Record, Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode_with_record, encode_with_record, whole_millis};
use crate::domain::transaction::TransactionId;

const NAME: &str = "half_message";
const VERSION: u8 = 2;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// A message that is invisible until its transaction is decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HalfMessageRow {
    /// Whose members are asked for the decision.
    pub(crate) group: GroupName,
    /// Where the message goes when it is committed.
    pub(crate) topic: TopicName,
    /// The queue within it, chosen at the beginning.
    pub(crate) queue: QueueId,
    /// When the transaction began, by the broker's clock.
    pub(crate) begun_at: Timestamp,
    /// How often the group was asked.
    pub(crate) checks: u32,
    /// When it is asked next.
    pub(crate) next_check_at: Timestamp,
    /// How long the message lives once it is committed, in whole milliseconds.
    pub(crate) ttl: Option<Duration>,
    /// The message.
    pub(crate) record: Record,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    group: String,
    topic: String,
    queue: u32,
    begun_at: i64,
    checks: u32,
    next_check_at: i64,
    ttl_ms: Option<u64>,
}

/// The key of a transaction, here and in table `transaction_outcome`.
pub(crate) fn key(transaction: TransactionId) -> Bytes {
    Bytes::copy_from_slice(&transaction.0.to_be_bytes())
}

/// Reads a key.
///
/// # Errors
/// When it does not have 8 bytes.
pub(crate) fn decode_key(key: &[u8]) -> Result<TransactionId, DecodeError> {
    let bytes =
        key.try_into().map_err(|_| DecodeError::new(NAME, format!("key has {} bytes instead of 8", key.len())))?;
    Ok(TransactionId(u64::from_be_bytes(bytes)))
}

impl HalfMessageRow {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        let fields = Fields {
            group: self.group.as_str().to_owned(),
            topic: self.topic.as_str().to_owned(),
            queue: self.queue.get(),
            begun_at: self.begun_at.as_millis(),
            checks: self.checks,
            next_check_at: self.next_check_at.as_millis(),
            ttl_ms: self.ttl.map(whole_millis),
        };
        encode_with_record(VERSION, &fields, &self.record)
    }

    /// Reads a row's value; body and attributes are slices of it.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &Bytes) -> Result<Self, DecodeError> {
        let (fields, record): (Fields, Record) = decode_with_record(NAME, VERSION, value)?;
        Ok(Self {
            group: GroupName::new(&fields.group).map_err(DecodeError::invalid(NAME))?,
            topic: TopicName::from_stored(&fields.topic).map_err(DecodeError::invalid(NAME))?,
            queue: QueueId::new(fields.queue).map_err(DecodeError::invalid(NAME))?,
            begun_at: Timestamp::from_millis(fields.begun_at),
            checks: fields.checks,
            next_check_at: Timestamp::from_millis(fields.next_check_at),
            ttl: fields.ttl_ms.map(Duration::from_millis),
            record,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::{any_record, hex, tagged_record};

    const GOLDEN: &str = concat!(
        "0200000029",
        "087061796d656e7473",
        "066f726465727303",
        "fd00d0ca9f17030000",
        "02",
        "fda0d3cc9f17030000",
        "01fb60ea",
        "0a",
        "0000000d",
        "01030070617904040001006131",
        "626f6479"
    );

    fn row(record: Record) -> HalfMessageRow {
        HalfMessageRow {
            group: GroupName::new("payments").unwrap(),
            topic: TopicName::new("orders").unwrap(),
            queue: QueueId::new(3).unwrap(),
            begun_at: Timestamp::from_millis(1_700_000_000_000),
            checks: 2,
            next_check_at: Timestamp::from_millis(1_700_000_066_000),
            ttl: Some(Duration::from_secs(60)),
            record,
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&row(tagged_record()).encode()), GOLDEN);
        assert_eq!(hex(&key(TransactionId(258))), "0000000000000102");
        assert_eq!(decode_key(&key(TransactionId(258))), Ok(TransactionId(258)));
        assert!(decode_key(&[0; 7]).is_err());
    }

    #[test]
    fn a_row_that_was_cut_is_refused() {
        let value = row(Record::new("", Timestamp::MIN)).encode();
        for len in 0..value.len() {
            assert!(HalfMessageRow::decode(&value.slice(..len)).is_err(), "cut to {len} bytes");
        }
    }

    proptest! {
        #[test]
        fn round_trip(record in any_record(), checks: u32, begun_at: i64, next: i64) {
            let (begun_at, next_check_at) = (Timestamp::from_millis(begun_at), Timestamp::from_millis(next));
            let row = HalfMessageRow { checks, begun_at, next_check_at, ..row(record) };
            prop_assert_eq!(HalfMessageRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(flips in prop::collection::vec((0usize..80, any::<u8>()), 1..6), record in any_record()) {
            let mut value = row(record).encode().to_vec();
            for (at, byte) in flips {
                let len = value.len();
                value[at % len] = byte;
            }
            if let Ok(row) = HalfMessageRow::decode(&Bytes::from(value)) {
                prop_assert_eq!(HalfMessageRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
