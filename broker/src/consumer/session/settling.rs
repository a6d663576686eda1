//! What becomes of records that are out: done, or to come again; and what a member leaves behind.

use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, QueueOffset, StoredRecord, Timestamp};

use super::held_queue::HeldQueue;
use super::{Claim, Held, Session};
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;

/// What follows from settling a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    /// The queue was revoked and this was its last record: tell the group.
    Release,
}

/// What a member that is gone leaves behind in one queue of another.
#[derive(Debug)]
pub(crate) struct Recalled {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    /// What nobody wants any more.
    pub(crate) unwanted: Vec<Range<QueueOffset>>,
    /// Whether the queue was revoked and waited for it alone.
    pub(crate) free: bool,
}

impl Session {
    /// Records were acknowledged: they are done.
    pub(crate) fn acknowledged(&self, claim: Claim<'_>, ranges: &[Range<QueueOffset>]) -> Option<Settled> {
        self.settle(claim, ranges, |queue, guest| {
            for range in ranges {
                // A record beyond the window was never given out.
                let _ = queue.progress.ack_range(range.clone());
                if let Some(lane) = queue.lane(guest) {
                    lane.done(range.clone());
                }
            }
        })
    }

    /// Records come again to this member at `at`; `redeliveries` counts those that they do not tell of themselves.
    pub(crate) fn again_at(
        &self,
        claim: Claim<'_>,
        records: impl Iterator<Item = StoredRecord>,
        redeliveries: u32,
        at: Timestamp,
    ) -> Option<Settled> {
        let records: Vec<StoredRecord> = records.collect();
        let ranges: Vec<_> = records.iter().map(|stored| stored.offset..stored.offset.plus(1)).collect();
        self.settle(claim, &ranges, |queue, guest| {
            let mut ends = Vec::new();
            for stored in records {
                // One that was passed over meanwhile is done.
                let done = queue.progress.is_acked(stored.offset);
                let Some(lane) = queue.lane(guest) else { break };
                if done {
                    lane.done(stored.offset..stored.offset.plus(1));
                } else {
                    ends.push(stored.clone());
                    lane.again_at(at, stored, redeliveries);
                }
            }
            queue.note_ends(ends.iter());
        })
    }

    /// Takes records back; `None` when their queue is no longer held under that lease.
    pub(super) fn settle(
        &self,
        claim: Claim<'_>,
        ranges: &[Range<QueueOffset>],
        change: impl FnOnce(&mut HeldQueue, Option<&MemberId>),
    ) -> Option<Settled> {
        let mut held = self.lock();
        held.out.messages = held.out.messages.saturating_sub(claim.records);
        held.out.bytes = held.out.bytes.saturating_sub(claim.bytes);
        let settled = match claim.holder {
            None => held.settle(claim, None, ranges, change),
            Some(holder) => {
                drop(held);
                holder.lock().settle(claim, Some(&self.member), ranges, change)
            }
        };
        // Credit or an ordered queue may have become free, or a record come back.
        self.signal.wake();
        settled
    }

    /// Takes back what a fellow had of its queues that is gone, and shares it among the others.
    pub(super) fn recall(&self, gone: &MemberId) -> Vec<Recalled> {
        let Some(exchange) = self.exchange.get() else { return Vec::new() };
        let (mut recalled, mut woken) = (Vec::new(), Vec::new());
        let mut held = self.lock();
        let guests = exchange.guests();
        for queue in &mut held.queues {
            let (unwanted, to) = queue.recall(gone, &self.subscriptions, &guests);
            woken.extend(to);
            let free = queue.revoked && queue.outstanding() == 0;
            if free || !unwanted.is_empty() {
                recalled.push(Recalled { key: queue.key.clone(), lease: queue.lease, unwanted, free });
            }
        }
        held.queues.retain(|queue| !queue.revoked || queue.outstanding() > 0);
        drop(held);
        self.wake_members(&woken);
        self.signal.wake();
        recalled
    }

    /// Shares what no member wanted so far, because another one has come.
    pub(super) fn unpark(&self) {
        let Some(exchange) = self.exchange.get() else { return };
        let mut held = self.lock();
        let guests = exchange.guests();
        let share = |queue: &mut HeldQueue| queue.unpark(&self.subscriptions, &guests);
        let woken: Vec<MemberId> = held.queues.iter_mut().flat_map(share).collect();
        drop(held);
        self.wake_members(&woken);
        self.signal.wake();
    }

    pub(super) fn wake_members(&self, members: &[MemberId]) {
        let Some(exchange) = self.exchange.get().filter(|_| !members.is_empty()) else { return };
        for guest in exchange.guests().iter().filter(|guest| members.contains(&guest.member)) {
            guest.session().inspect(|session| session.signal.wake());
        }
    }

    /// Has a fellow with other tags hear of everything new in its queues, so that it can have them read.
    pub(super) fn let_listen(&self, fellow: &Arc<Session>) {
        if self.subscriptions == fellow.subscriptions {
            return;
        }
        for (holder, other) in [(self, &**fellow), (&**fellow, self)] {
            let tails: Vec<_> = {
                let held = holder.lock();
                held.queues.iter().filter(|q| other.may_want(&q.key)).map(|q| Arc::clone(&q.tail)).collect()
            };
            tails.iter().for_each(|tail| tail.listen(&other.signal));
        }
    }
}

impl Held {
    fn settle(
        &mut self,
        claim: Claim<'_>,
        guest: Option<&MemberId>,
        ranges: &[Range<QueueOffset>],
        change: impl FnOnce(&mut HeldQueue, Option<&MemberId>),
    ) -> Option<Settled> {
        let queue = self.queues.iter_mut().find(|q| q.lease == claim.lease && q.key == *claim.key)?;
        // What was taken back from a guest is another's by now.
        if !queue.lane(guest)?.returned(claim.records, ranges.iter().cloned()) {
            return None;
        }
        change(queue, guest);
        let release = queue.revoked && queue.outstanding() == 0;
        if release {
            self.drop_queue(claim.key);
        }
        Some(if release { Settled::Release } else { Settled::Done })
    }
}
