//! Table `recurrence`: messages that come again and again.
//!
//! Key: the number of the recurrence, u64 BE. The message itself waits in the table `delay`, under the timer that the
//! row names: each firing replaces both rows in the batch that appends the message.

use bytes::Bytes;
use cuemq_storage_api::{Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
use crate::domain::delay::TimerKey;
use crate::domain::recurrence::Recurrence;

const NAME: &str = "recurrence";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// A message that comes again and again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RecurrenceRow {
    /// Where it comes.
    pub(crate) topic: TopicName,
    /// When it comes.
    pub(crate) recurrence: Recurrence,
    /// The key under which it waits for its next time.
    pub(crate) timer: TimerKey,
    /// How often it came.
    pub(crate) fired: u64,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    topic: String,
    pattern: String,
    zone: String,
    due: i64,
    sequence: u64,
    fired: u64,
}

/// The key of a recurrence.
pub(crate) fn key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Reads a key.
///
/// # Errors
/// When it does not have 8 bytes.
pub(crate) fn decode_key(key: &[u8]) -> Result<u64, DecodeError> {
    let bytes = key.try_into().map_err(|_| DecodeError::new(NAME, format!("key has {} bytes instead of 8", key.len())));
    bytes.map(u64::from_be_bytes)
}

impl RecurrenceRow {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        let fields = Fields {
            topic: self.topic.as_str().to_owned(),
            pattern: self.recurrence.pattern().to_owned(),
            zone: self.recurrence.zone().to_owned(),
            due: self.timer.due.as_millis(),
            sequence: self.timer.sequence,
            fired: self.fired,
        };
        encode(VERSION, &fields)
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged, or its time zone is not known on this machine.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        Ok(Self {
            topic: TopicName::from_stored(&fields.topic).map_err(DecodeError::invalid(NAME))?,
            recurrence: Recurrence::cron(&fields.pattern, &fields.zone).map_err(DecodeError::invalid(NAME))?,
            timer: TimerKey::new(Timestamp::from_millis(fields.due), fields.sequence),
            fired: fields.fired,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    fn row(due: i64, sequence: u64, fired: u64) -> RecurrenceRow {
        RecurrenceRow {
            topic: TopicName::new("t").unwrap(),
            recurrence: Recurrence::cron("@daily", "UTC").unwrap(),
            timer: TimerKey::new(Timestamp::from_millis(due), sequence),
            fired,
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hex(&row(-1, 3, 4).encode()),
            ["01", "0174", "06406461696c79", "03555443", "01", "03", "04"].concat()
        );
        assert_eq!(hex(&key(258)), "0000000000000102");
        assert!(decode_key(&[0; 7]).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(due: i64, sequence: u64, fired: u64) {
            let row = row(due, sequence, fired);
            prop_assert_eq!(RecurrenceRow::decode(&row.encode()), Ok(row));
            prop_assert_eq!(decode_key(&key(sequence)), Ok(sequence));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(flips in prop::collection::vec((0usize..30, any::<u8>()), 1..5)) {
            let mut value = row(1_700_000_000_000, 7, 9).encode().to_vec();
            for (at, byte) in flips {
                let len = value.len();
                value[at % len] = byte;
            }
            if let Ok(row) = RecurrenceRow::decode(&value) {
                prop_assert_eq!(RecurrenceRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
