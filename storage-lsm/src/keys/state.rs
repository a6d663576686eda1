//! The engine's state: the one row of `meta` that every batch rewrites.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::Timestamp;

use super::STATE;
use super::checksum::{self, take};

const VERSION: u8 = 1;
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
    pub(crate) fn encode(&self, buffer: &mut BytesMut) -> (Bytes, Bytes) {
        checksum::begin(buffer);
        buffer.put_u8(VERSION);
        buffer.put_u64_le(self.batches);
        buffer.put_u64_le(self.next_position);
        buffer.put_i64_le(self.stored_at.as_millis());
        buffer.put_u64_le(self.kept_bytes);
        (Bytes::from_static(&KEY), checksum::seal(&KEY, buffer))
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
        let (key, value) = state.encode(&mut BytesMut::new());
        assert_eq!((&key[..], State::decode(&value)), (&KEY[..], Some(state)));
    }
}
