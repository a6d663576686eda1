//! How much a member may have out.

use std::collections::VecDeque;

use cuemq_storage_api::StoredRecord;

use crate::limits::{MAX_POPPED_MESSAGES, MAX_UNACKED_BYTES, MAX_UNACKED_MESSAGES};

/// An amount of messages: what may be out unsettled, what is, or the room between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Credit {
    pub(crate) messages: usize,
    /// Of payload.
    pub(crate) bytes: usize,
}

impl Credit {
    /// What one consumer may have out.
    pub(crate) const CONSUMER: Self = Self { messages: MAX_UNACKED_MESSAGES, bytes: MAX_UNACKED_BYTES };
    /// What a pool of pop consumers may have: the group bounds their number, and their bodies are not kept.
    pub(crate) const POOL: Self = Self { messages: MAX_POPPED_MESSAGES, bytes: usize::MAX };

    /// What remains of it when this much is out; nothing once either is used up.
    pub(super) fn less(self, out: Self) -> Option<Self> {
        let rest = |most: usize, used: usize| most.checked_sub(used).filter(|rest| *rest > 0);
        Some(Self { messages: rest(self.messages, out.messages)?, bytes: rest(self.bytes, out.bytes)? })
    }

    /// How many of these there is room for; one is always given, however large.
    pub(super) fn for_next(self, ready: &VecDeque<StoredRecord>) -> usize {
        let mut bytes = 0usize;
        let fits = ready.iter().take(self.messages).take_while(|stored| {
            let had_room = bytes < self.bytes;
            bytes = bytes.saturating_add(stored.record.payload_bytes());
            had_room
        });
        fits.count()
    }
}
