//! One granted queue: how far it is read, what waits to go out, what comes again.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, QueueOffset, StorageError, StoredRecord, Timestamp};

use super::ready::Ready;
use super::{Credit, Next, Records};
use crate::clock::Clock;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::progress::{Acked, Progress};
use crate::error::Result;
use crate::shared::Shared;
use crate::storage::QueueTail;

/// What a member gets with a queue.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    pub(crate) tail: Arc<QueueTail>,
    pub(crate) progress: Progress,
    /// What of it is in flight to somebody who popped it.
    pub(crate) elsewhere: BTreeSet<QueueOffset>,
}

/// One granted queue.
#[derive(Debug)]
pub(super) struct HeldQueue {
    pub(super) key: QueueKey,
    pub(super) lease: Lease,
    pub(super) tail: Arc<QueueTail>,
    /// What is done, as the group's actor knows it or soon will: bounds how far to fetch.
    pub(super) progress: Progress,
    pub(super) next: QueueOffset,
    pub(super) ready: Ready,
    pub(super) again: VecDeque<Again>,
    /// Open, but in flight to somebody who popped it: passed over.
    pub(super) elsewhere: BTreeSet<QueueOffset>,
    /// Fetched or not, these are given to nobody: the group deals with them.
    pub(super) withheld: BTreeSet<QueueOffset>,
    /// When the first of what waits here ends; nothing ends before.
    pub(super) first_end: Option<Timestamp>,
    pub(super) outstanding: usize,
    pub(super) revoked: bool,
}

#[derive(Debug)]
pub(super) struct Again {
    at: Timestamp,
    pub(super) stored: StoredRecord,
    redeliveries: u32,
}

pub(super) enum QueuePlan {
    Give(Records, u32),
    Fetch { from: QueueOffset, until: QueueOffset },
    Ended(Vec<QueueOffset>),
    Wait(Option<Timestamp>),
}

impl HeldQueue {
    pub(super) fn new(granted: Granted, order: Order) -> Self {
        let Granted { key, lease, tail, progress, elsewhere } = granted;
        let next = progress.next_open(progress.committed());
        let (ready, again) = (Ready::new(order), VecDeque::new());
        let (withheld, first_end, outstanding, revoked) = (BTreeSet::new(), None, 0, false);
        Self { key, lease, tail, progress, next, ready, again, elsewhere, withheld, first_end, outstanding, revoked }
    }

    pub(super) fn plan(&mut self, clock: &Clock, order: Order, room: Credit) -> QueuePlan {
        if let Some(end) = self.first_end
            && !self.revoked
        {
            let now = clock.now();
            if end <= now {
                return QueuePlan::Ended(self.withhold_ended(now));
            }
        }
        let ordered = order == Order::Queue;
        if self.revoked || (ordered && self.outstanding > 0) {
            return QueuePlan::Wait(None);
        }
        let mut soonest = None;
        if !self.again.is_empty() {
            let now = clock.now();
            let due = self.again.iter().position(|again| again.at <= now);
            if let Some(again) = due.and_then(|at| self.again.remove(at)) {
                return QueuePlan::Give(Records::One(again.stored), again.redeliveries);
            }
            soonest = self.again.iter().map(|again| again.at).min();
            // In order: nothing overtakes a record that will come again.
            if ordered {
                return QueuePlan::Wait(soonest);
            }
        }
        if let Some(records) = self.ready.take(room) {
            return QueuePlan::Give(records, 0);
        }
        // What was done before a restart is not read again.
        self.next = self.progress.next_open(self.next);
        let (from, until) = (self.next, self.tail.visible().min(self.progress.window_end()));
        if from < until && self.ready.has_room() { QueuePlan::Fetch { from, until } } else { QueuePlan::Wait(soonest) }
    }

    /// Passes over everything below `to` that is not outstanding.
    pub(super) fn skip_to(&mut self, to: QueueOffset) {
        self.progress.commit(to);
        self.ready.pass_over(to);
        let ready = &mut self.ready;
        self.again.retain(|Again { stored, .. }| {
            let stays = stored.offset >= to;
            if !stays {
                ready.done(stored.offset..stored.offset.plus(1));
            }
            stays
        });
        self.withheld = self.withheld.split_off(&to);
        self.next = self.next.max(to);
    }

    /// Takes up what a fetch brought and somebody wants, and marks what it passed over as done; returns the ranges that
    /// the group does not know of yet.
    pub(super) fn take_up(
        &mut self,
        wanted: Vec<StoredRecord>,
        fetched: Range<QueueOffset>,
    ) -> Vec<Range<QueueOffset>> {
        let mut at = fetched.start;
        let mut gaps = Vec::new();
        let mut kept: BTreeSet<QueueOffset> = self.elsewhere.range(fetched.clone()).copied().collect();
        kept.extend(self.withheld.range(fetched.clone()));
        kept.extend(wanted.iter().map(|stored| stored.offset));
        for offset in kept {
            gaps.push(at..offset);
            at = offset.plus(1);
        }
        gaps.push(at..fetched.end);
        self.ready.extend(wanted);
        // Within the window, because the fetch was; what was done before is not told again.
        gaps.retain(|gap| matches!(self.progress.ack_range(gap.clone()), Ok(Acked::Advanced(_) | Acked::Kept)));
        gaps
    }

    /// Has a record that was out come again; one that was passed over meanwhile is done.
    pub(super) fn again_at(&mut self, at: Timestamp, stored: StoredRecord, redeliveries: u32) {
        if self.progress.is_acked(stored.offset) {
            self.ready.done(stored.offset..stored.offset.plus(1));
        } else {
            self.note_ends(std::iter::once(&stored));
            self.again.push_back(Again { at, stored, redeliveries });
        }
    }

    /// Has a record go out before any other.
    pub(super) fn first_again(&mut self, stored: StoredRecord, redeliveries: u32) {
        if !self.progress.is_acked(stored.offset) {
            self.note_ends(std::iter::once(&stored));
            self.again.push_front(Again { at: Timestamp::MIN, stored, redeliveries });
        }
    }

    /// A fetch below the queue's minimum: retention went past the group. Goes on at the minimum.
    pub(super) fn after_failed_fetch(
        &mut self,
        error: StorageError,
        shared: &Shared,
        from: QueueOffset,
    ) -> Result<Option<Next>> {
        let bounds = shared.storage.engine().bounds(&self.key)?;
        if error.kind() != cuemq_storage_api::ErrorKind::OutOfRange || bounds.start <= from {
            return Err(error.into());
        }
        tracing::warn!(queue = %self.key, %from, min = %bounds.start, "messages expired before the group read them");
        self.progress.commit(bounds.start);
        self.next = bounds.start;
        let ranges = vec![from..bounds.start];
        Ok(Some(Next::Skipped { key: self.key.clone(), lease: self.lease, ranges }))
    }
}
