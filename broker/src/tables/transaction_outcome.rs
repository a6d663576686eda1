//! Table `transaction_outcome`: what was decided lately, so that a repeated decision is told from an opposite one.
//! Key: `transaction u64 BE`, as in table `half_message`.

use bytes::Bytes;
use cuemq_storage_api::{Table, Timestamp};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
pub(crate) use super::half_message::{decode_key, key};
use crate::domain::transaction::Decision;

const NAME: &str = "transaction_outcome";
const VERSION: u8 = 1;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TransactionOutcomeRow {
    /// The decision.
    pub(crate) decision: Decision,
    /// When it was stored.
    pub(crate) at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    committed: bool,
    at: i64,
}

impl TransactionOutcomeRow {
    /// The row's value.
    pub(crate) fn encode(&self) -> Bytes {
        encode(VERSION, &Fields { committed: self.decision == Decision::Commit, at: self.at.as_millis() })
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        let decision = if fields.committed { Decision::Commit } else { Decision::Rollback };
        Ok(Self { decision, at: Timestamp::from_millis(fields.at) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    #[test]
    fn golden_bytes() {
        let row = |decision, at| TransactionOutcomeRow { decision, at: Timestamp::from_millis(at) };
        assert_eq!(hex(&row(Decision::Commit, 7).encode()), "01010e");
        assert_eq!(hex(&row(Decision::Rollback, -1).encode()), "010001");
        assert!(TransactionOutcomeRow::decode(&[1, 2, 0]).is_err(), "neither committed nor rolled back");
    }

    proptest! {
        #[test]
        fn round_trip(committed: bool, at: i64) {
            let decision = if committed { Decision::Commit } else { Decision::Rollback };
            let row = TransactionOutcomeRow { decision, at: Timestamp::from_millis(at) };
            prop_assert_eq!(TransactionOutcomeRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(any::<u8>(), 0..12)) {
            value.insert(0, VERSION);
            if let Ok(row) = TransactionOutcomeRow::decode(&value) {
                prop_assert_eq!(TransactionOutcomeRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
