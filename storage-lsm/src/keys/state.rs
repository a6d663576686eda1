//! The engine's state: the one row of `meta` that every batch rewrites.

use bytes::Bytes;
use cuemq_storage_api::Timestamp;

use super::STATE;
use super::checksum::{self, CHECKSUM_BYTES, take};

const VERSION: u8 = 1;
const VALUE_BYTES: usize = CHECKSUM_BYTES + 1 + 8 + 8 + 8 + 8;
/// Its key.
pub(crate) const KEY: [u8; 1] = [STATE];

/// Where the engine's counters stand behind a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State {
    /// Batches ever applied: the sequence that has no hole.
    pub(crate) batches: u64,
    /// Records ever appended: the position of the next one.
    pub(crate) next_position: u64,
    /// When the last batch was stored.
    pub(crate) stored_at: Timestamp,
    /// Payload bytes of the records that are still there.
    pub(crate) kept_bytes: u64,
}

impl State {
    /// Before the first batch.
    pub(crate) const NEW: Self = Self { batches: 0, next_position: 0, stored_at: Timestamp::MIN, kept_bytes: 0 };

    /// Encodes key and value.
    pub(crate) fn encode(&self) -> (Bytes, Bytes) {
        let mut value = [0; VALUE_BYTES];
        value[4] = VERSION;
        value[5..13].copy_from_slice(&self.batches.to_le_bytes());
        value[13..21].copy_from_slice(&self.next_position.to_le_bytes());
        value[21..29].copy_from_slice(&self.stored_at.as_millis().to_le_bytes());
        value[29..].copy_from_slice(&self.kept_bytes.to_le_bytes());
        let checksum = checksum::checksum_of(&KEY, &value[CHECKSUM_BYTES..]);
        value[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        (Bytes::from_static(&KEY), Bytes::copy_from_slice(&value))
    }

    /// Checks and decodes the row's value.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        let mut rest = checksum::verified(&KEY, value)?;
        if take!(rest, u8) != VERSION {
            return None;
        }
        let batches = take!(rest, u64);
        let next_position = take!(rest, u64);
        let stored_at = Timestamp::from_millis(take!(rest, i64));
        let kept_bytes = take!(rest, u64);
        rest.is_empty().then_some(Self { batches, next_position, stored_at, kept_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_round_trips() {
        let state = State { batches: 3, next_position: 9, stored_at: Timestamp::from_millis(-1), kept_bytes: 77 };
        let (key, value) = state.encode();
        assert_eq!((&key[..], State::decode(&value)), (&KEY[..], Some(state)));
    }
}
