//! What one member of a group holds: its queues, what it has fetched, what it has given out.
//!
//! The group's actor grants and revokes queues; the member reads them from storage by itself, up to what is visible.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuemq_storage_api::{FetchLimit, FetchRequest, QueueKey, QueueOffset, StorageError, StoredRecord, Timestamp};

use crate::domain::filter::TagFilter;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::progress::{Acked, Progress};
use crate::error::{Error, Result};
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES, MAX_UNACKED_BYTES, MAX_UNACKED_MESSAGES, REDELIVERY_PAUSE};
use crate::shared::Shared;
use crate::storage::{QueueTail, Signal};

/// Shared by the consumer, its deliveries and the group's actor.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) member: MemberId,
    pub(crate) broadcasting: bool,
    ordered: bool,
    filters: Vec<(cuemq_storage_api::TopicName, TagFilter)>,
    signal: Arc<Signal>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    queues: Vec<HeldQueue>,
    cursor: usize,
    unacked: usize,
    unacked_bytes: usize,
    closed: Option<Arc<str>>,
}

/// One granted queue.
#[derive(Debug)]
struct HeldQueue {
    key: QueueKey,
    lease: Lease,
    tail: Arc<QueueTail>,
    /// What is done, as the group's actor knows it or soon will: bounds how far to fetch.
    progress: Progress,
    next: QueueOffset,
    ready: VecDeque<StoredRecord>,
    again: VecDeque<Again>,
    outstanding: usize,
    revoked: bool,
}

#[derive(Debug)]
struct Again {
    at: Timestamp,
    stored: StoredRecord,
    redeliveries: u32,
}

/// What a member gets with a queue.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    pub(crate) tail: Arc<QueueTail>,
    pub(crate) progress: Progress,
}

/// A record given out, with what it takes to settle it.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) key: QueueKey,
    pub(crate) lease: Lease,
    pub(crate) stored: StoredRecord,
    pub(crate) redeliveries: u32,
}

/// What follows from looking for the next record.
#[derive(Debug)]
pub(crate) enum Next {
    Record(Box<Given>),
    /// Records that no subscription wants: done without a delivery.
    Skipped {
        key: QueueKey,
        lease: Lease,
        ranges: Vec<Range<QueueOffset>>,
    },
    /// Nothing now; look again when the signal comes or at this time.
    Wait(Option<Timestamp>),
}

/// What follows from settling a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    /// The queue was revoked and this was its last record: tell the group.
    Release,
}

impl Session {
    pub(crate) fn new(
        member: MemberId,
        broadcasting: bool,
        ordered: bool,
        filters: Vec<(cuemq_storage_api::TopicName, TagFilter)>,
    ) -> Arc<Self> {
        let (signal, held) = (Arc::default(), Mutex::default());
        Arc::new(Self { member, broadcasting, ordered, filters, signal, held })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_ordered(&self) -> bool {
        self.ordered
    }

    pub(crate) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Takes up a queue.
    pub(crate) fn grant(&self, granted: Granted) {
        let Granted { key, lease, tail, progress } = granted;
        let next = progress.next_open(progress.committed());
        let mut held = self.lock();
        held.drop_queue(&key);
        tail.listen(&self.signal);
        let (ready, again) = (VecDeque::new(), VecDeque::new());
        held.queues.push(HeldQueue { key, lease, tail, progress, next, ready, again, outstanding: 0, revoked: false });
        drop(held);
        self.signal.wake();
    }

    /// Gives nothing more out from a queue; true when nothing of it is outstanding, so that it is free at once.
    pub(crate) fn revoke(&self, key: &QueueKey, lease: Lease) -> bool {
        let mut held = self.lock();
        let Some(at) = held.queues.iter().position(|q| q.key == *key && q.lease == lease) else { return true };
        held.queues[at].revoked = true;
        let free = held.queues[at].outstanding == 0;
        if free {
            held.drop_queue(key);
        }
        free
    }

    /// Loses a queue at once; what is outstanding will be refused.
    pub(crate) fn fence(&self, key: &QueueKey, lease: Lease) {
        let mut held = self.lock();
        if held.queues.iter().any(|q| q.key == *key && q.lease == lease) {
            held.drop_queue(key);
        }
    }

    /// Ends the session; whoever waits for a record is told why.
    pub(crate) fn close(&self, why: &str) {
        let mut held = self.lock();
        held.queues.clear();
        held.closed.get_or_insert_with(|| why.into());
        drop(held);
        self.signal.wake();
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Whether it holds a queue under a lease.
    pub(crate) fn holds(&self, key: &QueueKey, lease: Lease) -> bool {
        self.lock().queues.iter().any(|q| q.key == *key && q.lease == lease)
    }

    /// What it holds and how far it is, for a group that has lost requests in a panic.
    pub(crate) fn holdings(&self) -> Vec<(QueueKey, Lease, Progress)> {
        self.lock().queues.iter().map(|q| (q.key.clone(), q.lease, q.progress.clone())).collect()
    }

    /// The queues held now, in order.
    pub(crate) fn queues(&self) -> Vec<QueueKey> {
        let mut keys: Vec<_> = self.lock().queues.iter().map(|q| q.key.clone()).collect();
        keys.sort();
        keys
    }

    /// Looks for the next record: one that is due again, one that is ready, or one fetched now.
    pub(crate) fn next(&self, shared: &Shared) -> Result<Next> {
        loop {
            let plan = self.plan(shared.clock.now())?;
            match plan {
                Plan::Give(given) => return Ok(Next::Record(given)),
                Plan::Wait(at) => return Ok(Next::Wait(at)),
                Plan::Fetch { key, lease, from, until } => {
                    if let Some(skipped) = self.fetch(shared, key, lease, from, until)? {
                        return Ok(skipped);
                    }
                }
            }
        }
    }

    fn plan(&self, now: Timestamp) -> Result<Plan> {
        let mut held = self.lock();
        if let Some(why) = &held.closed {
            return Err(Error::new(crate::error::ErrorKind::Closed, format!("the consumer is closed: {why}")));
        }
        if held.unacked >= MAX_UNACKED_MESSAGES || held.unacked_bytes >= MAX_UNACKED_BYTES {
            return Ok(Plan::Wait(None));
        }
        let (count, mut soonest) = (held.queues.len(), None);
        for step in 0..count {
            let at = (held.cursor + step) % count;
            match held.queues[at].plan(now, self.ordered) {
                QueuePlan::Give(stored, redeliveries) => {
                    held.cursor = at + 1;
                    return Ok(Plan::Give(held.give(at, stored, redeliveries)));
                }
                QueuePlan::Fetch { from, until } => {
                    held.cursor = at;
                    let queue = &held.queues[at];
                    return Ok(Plan::Fetch { key: queue.key.clone(), lease: queue.lease, from, until });
                }
                QueuePlan::Wait(Some(again)) => {
                    soonest = Some(soonest.map_or(again, |known: Timestamp| known.min(again)));
                }
                QueuePlan::Wait(None) => {}
            }
        }
        Ok(Plan::Wait(soonest))
    }

    /// Reads records of one queue into it, outside the lock; what was skipped on the way is returned to be settled.
    fn fetch(
        &self,
        shared: &Shared,
        key: QueueKey,
        lease: Lease,
        from: QueueOffset,
        until: QueueOffset,
    ) -> Result<Option<Next>> {
        let filter = self.filters.iter().find(|(topic, _)| *topic == key.topic).map(|(_, filter)| filter);
        let tags = filter.map(TagFilter::hashes).unwrap_or_default();
        let limit = FetchLimit { max_messages: FETCH_MESSAGES, max_bytes: FETCH_BYTES };
        let request = FetchRequest { queue: &key, from, until: Some(until), limit, tags: &tags };
        let fetched = shared.storage.engine().fetch(request);
        let mut held = self.lock();
        let Some(queue) = held.queues.iter_mut().find(|q| q.key == key && q.lease == lease) else { return Ok(None) };
        let fetch = match fetched {
            Ok(fetch) => fetch,
            Err(error) => return queue.after_failed_fetch(error, shared, from),
        };
        queue.next = fetch.next;
        let wanted = |stored: &StoredRecord| filter.is_none_or(|f| f.matches(stored.record.attributes.tag()));
        let progress = &queue.progress;
        queue.ready.extend(fetch.records.into_iter().filter(|r| wanted(r) && !progress.is_acked(r.offset)));
        let ranges = queue.settle_skipped(from..fetch.next);
        Ok((!ranges.is_empty()).then_some(Next::Skipped { key, lease, ranges }))
    }

    /// A record was acknowledged: it is done.
    pub(crate) fn acknowledged(&self, given: &Given) -> Option<Settled> {
        self.settle(given, |queue| {
            // A record beyond the window was never given out.
            let _ = queue.progress.ack(given.stored.offset);
        })
    }

    /// A record comes again to this member at `at`.
    pub(crate) fn again_at(&self, given: &Given, at: Timestamp) -> Option<Settled> {
        let settled = self.settle(given, |queue| {
            let again = Again { at, stored: given.stored.clone(), redeliveries: given.redeliveries + 1 };
            queue.again.push_back(again);
        });
        self.signal.wake();
        settled
    }

    /// A record was dropped unacknowledged: it comes again after a pause.
    pub(crate) fn abandoned(&self, given: &Given, now: Timestamp) -> Option<Settled> {
        self.again_at(given, now.plus(REDELIVERY_PAUSE))
    }

    /// Takes a record back; `None` when its queue is no longer held under that lease.
    fn settle(&self, given: &Given, change: impl FnOnce(&mut HeldQueue)) -> Option<Settled> {
        let mut held = self.lock();
        held.unacked = held.unacked.saturating_sub(1);
        held.unacked_bytes = held.unacked_bytes.saturating_sub(given.stored.record.payload_bytes());
        let queue = held.queues.iter_mut().find(|q| q.key == given.key && q.lease == given.lease)?;
        queue.outstanding = queue.outstanding.saturating_sub(1);
        change(queue);
        let release = queue.revoked && queue.outstanding == 0;
        if release {
            held.drop_queue(&given.key);
        }
        drop(held);
        // Credit or an ordered queue may have become free.
        self.signal.wake();
        Some(if release { Settled::Release } else { Settled::Done })
    }
}

enum Plan {
    Give(Box<Given>),
    Fetch { key: QueueKey, lease: Lease, from: QueueOffset, until: QueueOffset },
    Wait(Option<Timestamp>),
}

enum QueuePlan {
    Give(StoredRecord, u32),
    Fetch { from: QueueOffset, until: QueueOffset },
    Wait(Option<Timestamp>),
}

impl Held {
    fn give(&mut self, at: usize, stored: StoredRecord, redeliveries: u32) -> Box<Given> {
        self.unacked += 1;
        self.unacked_bytes += stored.record.payload_bytes();
        let queue = &mut self.queues[at];
        queue.outstanding += 1;
        Box::new(Given { key: queue.key.clone(), lease: queue.lease, stored, redeliveries })
    }

    fn drop_queue(&mut self, key: &QueueKey) {
        self.queues.retain(|queue| queue.key != *key);
    }
}

impl HeldQueue {
    fn plan(&mut self, now: Timestamp, ordered: bool) -> QueuePlan {
        if self.revoked || (ordered && self.outstanding > 0) {
            return QueuePlan::Wait(None);
        }
        let due = self.again.iter().position(|again| again.at <= now);
        if let Some(again) = due.and_then(|at| self.again.remove(at)) {
            return QueuePlan::Give(again.stored, again.redeliveries);
        }
        let soonest = self.again.iter().map(|again| again.at).min();
        // In order: nothing overtakes a record that will come again.
        if ordered && soonest.is_some() {
            return QueuePlan::Wait(soonest);
        }
        if let Some(stored) = self.ready.pop_front() {
            return QueuePlan::Give(stored, 0);
        }
        let until = self.tail.visible().min(self.progress.window_end());
        if self.next < until { QueuePlan::Fetch { from: self.next, until } } else { QueuePlan::Wait(soonest) }
    }

    /// Marks what a fetch passed over as done; returns the ranges that the group does not know of yet.
    fn settle_skipped(&mut self, fetched: Range<QueueOffset>) -> Vec<Range<QueueOffset>> {
        let mut at = fetched.start;
        let mut gaps = Vec::new();
        for stored in self.ready.iter().filter(|stored| stored.offset >= fetched.start) {
            gaps.push(at..stored.offset);
            at = stored.offset.plus(1);
        }
        gaps.push(at..fetched.end);
        // Within the window, because the fetch was; what was done before is not told again.
        gaps.retain(|gap| matches!(self.progress.ack_range(gap.clone()), Ok(Acked::Advanced(_) | Acked::Kept)));
        gaps
    }

    /// A fetch below the queue's minimum: retention went past the group. Goes on at the minimum.
    fn after_failed_fetch(&mut self, error: StorageError, shared: &Shared, from: QueueOffset) -> Result<Option<Next>> {
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
