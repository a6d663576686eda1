//! Records that are kept back from the program: they have ended, and the group has yet to deal with them.

use std::collections::BTreeSet;
use std::ops::Range;

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

    /// Whether the session has yet to read as far as this message, so that it will keep it back by itself once that has
    /// ended.
    pub(crate) fn is_ahead(&self, key: &QueueKey, lease: Lease, offset: QueueOffset) -> bool {
        let held = self.lock();
        let queue = held.queues.iter().find(|q| q.key == *key && q.lease == lease);
        queue.is_none_or(|queue| {
            offset >= queue.next && !queue.withheld.contains(&offset) && !queue.elsewhere.contains(&offset)
        })
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

    /// What of a queue nobody has: read and not given out, or to be read up to `end`. Rising ranges; `None` when it is
    /// not held under that lease.
    pub(crate) fn waiting(&self, key: &QueueKey, lease: Lease, end: QueueOffset) -> Option<Vec<Range<QueueOffset>>> {
        let held = self.lock();
        held.queues.iter().find(|q| q.key == *key && q.lease == lease).map(|queue| queue.waiting_ranges(end))
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

    fn waiting_ranges(&self, end: QueueOffset) -> Vec<Range<QueueOffset>> {
        let mut read: Vec<QueueOffset> = self.waiting().map(|stored| stored.offset).collect();
        read.sort_unstable();
        let mut ranges: Vec<Range<QueueOffset>> = Vec::new();
        let mut add = |range: Range<QueueOffset>| match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.start < range.end => ranges.push(range),
            _ => {}
        };
        read.into_iter().for_each(|offset| add(offset..offset.plus(1)));
        for open in self.progress.open_ranges(self.next..end) {
            let kept_back = self.withheld.range(open.clone()).chain(self.elsewhere.range(open.clone()));
            let kept_back: BTreeSet<QueueOffset> = kept_back.copied().collect();
            let mut at = open.start;
            for offset in kept_back {
                add(at..offset);
                at = offset.plus(1);
            }
            add(at..open.end);
        }
        ranges
    }
}
