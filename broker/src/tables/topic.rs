//! Table `topic`: what each topic is made of. Key: the topic's name.

use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode, whole_millis};
use crate::domain::expiry::OnExpiry;
use crate::domain::length::MaxLength;
use crate::domain::routing::QueueCount;
use crate::domain::topic_rules::TopicRules;

const NAME: &str = "topic";
const VERSION: u8 = 4;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// What a topic is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TopicRow {
    /// How many queues are written to.
    pub(crate) queues: QueueCount,
    /// How many may hold messages, at least as many.
    pub(crate) read_queues: QueueCount,
    /// Whether its messages are durable before they are acknowledged; `None` leaves that to the broker's settings.
    pub(crate) durable_ack: Option<bool>,
    /// What it demands of its messages.
    pub(crate) rules: TopicRules,
    /// When it was created.
    pub(crate) created_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    queues: u32,
    read_queues: u32,
    durable_ack: Option<bool>,
    created_at: i64,
    ttl_ms: Option<u64>,
    on_expiry: OnExpiry,
    max_length: Option<MaxLength>,
}

/// The key of a topic.
pub(crate) fn key(topic: &TopicName) -> Bytes {
    Bytes::copy_from_slice(topic.as_str().as_bytes())
}

/// Reads a key.
///
/// # Errors
/// When it is not a topic's name.
pub(crate) fn decode_key(key: &[u8]) -> Result<TopicName, DecodeError> {
    let name = str::from_utf8(key).map_err(|error| DecodeError::new(NAME, format!("key: {error}")))?;
    TopicName::from_stored(name).map_err(DecodeError::invalid(NAME))
}

impl TopicRow {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        let Self { queues, read_queues, durable_ack, rules, created_at } = self;
        let fields = Fields {
            queues: queues.get(),
            read_queues: read_queues.get(),
            durable_ack: *durable_ack,
            created_at: created_at.as_millis(),
            ttl_ms: rules.ttl.map(whole_millis),
            on_expiry: rules.on_expiry,
            max_length: rules.max_length,
        };
        encode(VERSION, &fields)
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version, damaged, or has a number of queues that no topic can have.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        let queues = QueueCount::new(fields.queues).map_err(DecodeError::invalid(NAME))?;
        let read_queues = QueueCount::new(fields.read_queues).map_err(DecodeError::invalid(NAME))?;
        if read_queues < queues {
            let reason = format!("{} queues are written to and {} read", queues.get(), read_queues.get());
            return Err(DecodeError::new(NAME, reason));
        }
        Ok(Self {
            queues,
            read_queues,
            durable_ack: fields.durable_ack,
            rules: TopicRules {
                ttl: fields.ttl_ms.map(Duration::from_millis),
                on_expiry: fields.on_expiry,
                max_length: fields.max_length,
            },
            created_at: Timestamp::from_millis(fields.created_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    #[test]
    fn golden_bytes() {
        let row = TopicRow {
            queues: QueueCount::new(300).unwrap(),
            read_queues: QueueCount::new(301).unwrap(),
            durable_ack: Some(true),
            rules: TopicRules {
                ttl: Some(Duration::from_secs(60)),
                on_expiry: OnExpiry::Drop,
                max_length: Some(MaxLength::of_messages(100)),
            },
            created_at: Timestamp::from_millis(1_700_000_000_000),
        };
        assert_eq!(hex(&row.encode()), "04fb2c01fb2d010101fd00d0ca9f1703000001fb60ea010101640000");
        let topic = TopicName::new("orders").unwrap();
        assert_eq!(&key(&topic)[..], b"orders");
        assert_eq!(decode_key(&key(&topic)), Ok(topic));
    }

    #[test]
    fn what_no_topic_can_be_is_refused() {
        assert!(TopicRow::decode(&[VERSION, 0, 0, 0, 0, 0, 0, 0]).unwrap_err().to_string().contains("0 queues"));
        let fewer = TopicRow::decode(&[VERSION, 3, 2, 0, 0, 0, 0, 0]).unwrap_err().to_string();
        assert!(fewer.contains("3 queues are written to and 2"), "{fewer}");
        assert!(decode_key(b"a b").is_err() && decode_key(&[0xff]).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(queues in 1u32..999_000, durable_ack: Option<bool>, at: i64, ttl: Option<u64>, drop: bool, most: Option<u64>) {
            let queues = QueueCount::new(queues).unwrap();
            let read_queues = QueueCount::new(queues.get() + 5).unwrap();
            let on_expiry = if drop { OnExpiry::Drop } else { OnExpiry::DeadLetter };
            let max_length = most.map(MaxLength::of_bytes);
            let rules = TopicRules { ttl: ttl.map(Duration::from_millis), on_expiry, max_length };
            let row = TopicRow { queues, read_queues, durable_ack, rules, created_at: Timestamp::from_millis(at) };
            prop_assert_eq!(TopicRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(any::<u8>(), 0..40)) {
            value.insert(0, VERSION);
            if let Ok(row) = TopicRow::decode(&value) {
                prop_assert_eq!(TopicRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
