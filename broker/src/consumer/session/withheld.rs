//! Records that are kept back from the program: they have ended, and the group has yet to deal with them.

use cuemq_storage_api::{QueueKey, QueueOffset, StoredRecord, Timestamp};

use super::Session;
use super::held_queue::HeldQueue;
use crate::domain::expiry::expires_at;
use crate::domain::membership::Lease;

/// What a session says of a message that shall be withdrawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Withheld {
    /// It will not be given out.
    Kept,
    /// Somebody has it, or has just settled it.
    Out,
}

impl Session {
    /// Keeps a message back from now on, unless somebody has it.
    pub(crate) fn withhold(&self, key: &QueueKey, lease: Lease, offset: QueueOffset) -> Withheld {
        let mut held = self.lock();
        match held.queues.iter_mut().find(|q| q.key == *key && q.lease == lease) {
            Some(queue) => queue.withhold(offset),
            None => Withheld::Kept,
        }
    }

    /// A message that was kept back is done.
    pub(crate) fn withdrawn(&self, key: &QueueKey, lease: Lease, offset: QueueOffset) {
        let mut held = self.lock();
        if let Some(queue) = held.queues.iter_mut().find(|q| q.key == *key && q.lease == lease) {
            queue.withheld.remove(&offset);
            // Where there is no room for it, the group had none either and keeps it open.
            let _ = queue.progress.withdraw(offset);
        }
        drop(held);
        self.signal.wake();
    }

    /// Everything that is kept back.
    pub(crate) fn withheld(&self) -> Vec<(QueueKey, Lease, QueueOffset)> {
        let held = self.lock();
        let of = |q: &HeldQueue| q.withheld.iter().map(|offset| (q.key.clone(), q.lease, *offset)).collect::<Vec<_>>();
        held.queues.iter().flat_map(of).collect()
    }
}

impl HeldQueue {
    fn withhold(&mut self, offset: QueueOffset) -> Withheld {
        if self.withheld.contains(&offset) {
            return Withheld::Kept;
        }
        if self.elsewhere.contains(&offset) {
            return Withheld::Out;
        }
        let waited = self.waiting().any(|stored| stored.offset == offset);
        if waited {
            self.take_out(|stored| stored.offset == offset);
        }
        if waited || (offset >= self.next && !self.progress.is_acked(offset)) {
            self.withheld.insert(offset);
            Withheld::Kept
        } else {
            Withheld::Out
        }
    }

    /// Notes when the first of these records ends, so that nobody looks before.
    pub(super) fn note_ends<'a>(&mut self, records: impl Iterator<Item = &'a StoredRecord>) {
        let first = records.filter_map(|stored| expires_at(&stored.record.attributes)).min();
        self.first_end = match (self.first_end, first) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }

    /// Keeps back what has ended by now; the offsets, for the group.
    pub(super) fn withhold_ended(&mut self, now: Timestamp) -> Vec<QueueOffset> {
        let has_ended = |stored: &StoredRecord| expires_at(&stored.record.attributes).is_some_and(|end| end <= now);
        let ended = self.waiting().filter(|stored| has_ended(stored)).map(|stored| stored.offset);
        let mut ended: Vec<QueueOffset> = ended.collect();
        ended.sort_unstable();
        self.take_out(has_ended);
        self.withheld.extend(&ended);
        self.first_end = self.waiting().filter_map(|stored| expires_at(&stored.record.attributes)).min();
        ended
    }
}
