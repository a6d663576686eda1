//! Table `group`: how each consumer group consumes. Key: the group's name.

use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{GroupName, Table, Timestamp};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::retry::RetryPolicy;

const NAME: &str = "group";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// How a consumer group consumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GroupRow {
    /// Whether every member gets every message, instead of sharing the queues.
    pub(crate) broadcasting: bool,
    /// How the queues are shared.
    pub(crate) strategy: AssignmentStrategy,
    /// When failed messages come again; checked by [`RetryPolicy::check`] before it gets here.
    pub(crate) retry: RetryPolicy,
    /// When the group was first seen.
    pub(crate) created_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    broadcasting: bool,
    strategy: Strategy,
    retry: Retry,
    created_at: i64,
}

/// The order of these is part of the format: add behind the last.
#[derive(Serialize, Deserialize)]
enum Strategy {
    Averaging,
    Circle,
    ConsistentHash,
}

/// The order of these is part of the format: add behind the last. Pauses are in milliseconds.
#[derive(Serialize, Deserialize)]
enum Retry {
    Schedule(Vec<u64>),
    Exponential { first: u64, longest: u64, redeliveries: u32 },
    Fixed { pause: u64, redeliveries: u32 },
}

/// The key of a group.
pub(crate) fn key(group: &GroupName) -> Bytes {
    Bytes::copy_from_slice(group.as_str().as_bytes())
}

/// Reads a key.
///
/// # Errors
/// When it is not a group's name.
pub(crate) fn decode_key(key: &[u8]) -> Result<GroupName, DecodeError> {
    let name = str::from_utf8(key).map_err(|error| DecodeError::new(NAME, format!("key: {error}")))?;
    GroupName::new(name).map_err(DecodeError::invalid(NAME))
}

impl GroupRow {
    /// The row's value. Pauses are kept to the millisecond.
    ///
    /// # Panics
    /// With a retry policy that [`RetryPolicy::check`] refuses for its number of redeliveries.
    pub(crate) fn encode(&self) -> Bytes {
        let fields = Fields {
            broadcasting: self.broadcasting,
            strategy: match self.strategy {
                AssignmentStrategy::Averaging => Strategy::Averaging,
                AssignmentStrategy::Circle => Strategy::Circle,
                AssignmentStrategy::ConsistentHash => Strategy::ConsistentHash,
            },
            retry: encode_retry(&self.retry),
            created_at: self.created_at.as_millis(),
        };
        encode(VERSION, &fields)
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version, damaged, or has a retry policy out of its bounds.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        let retry = decode_retry(fields.retry);
        retry.check().map_err(DecodeError::invalid(NAME))?;
        Ok(Self {
            broadcasting: fields.broadcasting,
            strategy: match fields.strategy {
                Strategy::Averaging => AssignmentStrategy::Averaging,
                Strategy::Circle => AssignmentStrategy::Circle,
                Strategy::ConsistentHash => AssignmentStrategy::ConsistentHash,
            },
            retry,
            created_at: Timestamp::from_millis(fields.created_at),
        })
    }
}

fn encode_retry(policy: &RetryPolicy) -> Retry {
    let millis = |pause: Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    match policy {
        RetryPolicy::Schedule(pauses) => Retry::Schedule(pauses.iter().copied().map(millis).collect()),
        RetryPolicy::Exponential { first, longest, redeliveries } => {
            Retry::Exponential { first: millis(*first), longest: millis(*longest), redeliveries: *redeliveries }
        }
        RetryPolicy::Fixed { pause, redeliveries } => {
            Retry::Fixed { pause: millis(*pause), redeliveries: *redeliveries }
        }
    }
}

fn decode_retry(retry: Retry) -> RetryPolicy {
    let pause = Duration::from_millis;
    match retry {
        Retry::Schedule(pauses) => RetryPolicy::Schedule(pauses.into_iter().map(pause).collect()),
        Retry::Exponential { first, longest, redeliveries } => {
            RetryPolicy::Exponential { first: pause(first), longest: pause(longest), redeliveries }
        }
        Retry::Fixed { pause: every, redeliveries } => RetryPolicy::Fixed { pause: pause(every), redeliveries },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::retry::MAX_REDELIVERIES;
    use crate::tables::codec::tests::hex;

    fn row(strategy: AssignmentStrategy, retry: RetryPolicy) -> GroupRow {
        GroupRow { broadcasting: false, strategy, retry, created_at: Timestamp::from_millis(7) }
    }

    #[test]
    fn golden_bytes() {
        let pause = Duration::from_millis;
        let schedule = RetryPolicy::Schedule(vec![pause(1), pause(300)]);
        let exponential = RetryPolicy::Exponential { first: pause(1), longest: pause(2), redeliveries: 3 };
        let fixed = RetryPolicy::Fixed { pause: pause(9), redeliveries: 4 };
        for (row, bytes) in [
            (row(AssignmentStrategy::Averaging, schedule), "010000000201fb2c010e"),
            (row(AssignmentStrategy::Circle, exponential), "010001010102030e"),
            (row(AssignmentStrategy::ConsistentHash, fixed), "0100020209040e"),
        ] {
            assert_eq!(hex(&row.encode()), bytes, "{row:?}");
            assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
        }
        let group = GroupName::new("billing").unwrap();
        assert_eq!(&key(&group)[..], b"billing");
        assert_eq!(decode_key(&key(&group)), Ok(group));
    }

    #[test]
    fn the_longest_schedule_fits_and_a_longer_one_is_refused() {
        let schedule = |len| RetryPolicy::Schedule(vec![Duration::from_secs(86_400); len]);
        let most = usize::try_from(MAX_REDELIVERIES).unwrap();
        let longest = row(AssignmentStrategy::Averaging, schedule(most));
        assert_eq!(GroupRow::decode(&longest.encode()), Ok(longest));
        let longer = row(AssignmentStrategy::Averaging, schedule(most + 1));
        assert!(GroupRow::decode(&longer.encode()).unwrap_err().to_string().contains("1001 redeliveries"));
    }

    proptest! {
        #[test]
        fn round_trip(pauses in prop::collection::vec(0u64..10_000_000, 0..30), broadcasting: bool, at: i64) {
            let retry = RetryPolicy::Schedule(pauses.into_iter().map(Duration::from_millis).collect());
            let created_at = Timestamp::from_millis(at);
            let row = GroupRow { broadcasting, created_at, ..row(AssignmentStrategy::Circle, retry) };
            prop_assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(0u8..5, 0..40)) {
            value.insert(0, VERSION);
            if let Ok(row) = GroupRow::decode(&value) {
                prop_assert_eq!(GroupRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
