//! What one member of a group holds: its queues, what it has fetched, what it has given out.
//!
//! The group's actor grants and revokes queues; the member reads them from storage by itself, up to what is visible.

mod credit;
mod elsewhere;
mod given;
mod held_queue;
mod ready;
mod withheld;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuemq_storage_api::{
    FetchLimit, FetchRequest, QueueKey, QueueOffset, StoredRecord, TagHashes, Timestamp, TopicName,
};

pub(crate) use credit::Credit;
pub(crate) use given::{Claim, Given, Records};
pub(crate) use held_queue::Granted;
use held_queue::{HeldQueue, QueuePlan};
pub(crate) use withheld::Withheld;

use crate::clock::Clock;
use crate::domain::filter::TagFilter;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::progress::Progress;
use crate::error::{Error, Result};
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES};
use crate::shared::Shared;
use crate::storage::Signal;

/// Shared by the consumer, its deliveries and the group's actor.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) member: MemberId,
    pub(crate) broadcasting: bool,
    order: Order,
    credit: Credit,
    filters: Vec<(TopicName, TagFilter)>,
    /// How often the group's policy has a message come again.
    redeliveries: AtomicU32,
    signal: Arc<Signal>,
    held: Mutex<Held>,
}

/// How a member consumes.
#[derive(Clone, Debug)]
pub(crate) struct SessionSettings {
    /// Whether it gets every queue, with progress of its own.
    pub(crate) broadcasting: bool,
    pub(crate) order: Order,
    /// How much may be out unsettled.
    pub(crate) credit: Credit,
    /// What it subscribes to, a topic once.
    pub(crate) filters: Vec<(TopicName, TagFilter)>,
}

#[derive(Debug, Default)]
struct Held {
    queues: Vec<HeldQueue>,
    cursor: usize,
    /// What was given out and is not settled.
    out: Credit,
    paused: bool,
    closed: Option<Arc<str>>,
}

/// What follows from looking for the next records.
#[derive(Debug)]
pub(crate) enum Next {
    Given(Given),
    /// Records that no subscription wants: done without a delivery.
    Skipped {
        key: QueueKey,
        lease: Lease,
        ranges: Vec<Range<QueueOffset>>,
    },
    /// Records that have ended before they were given out: the group deals with them.
    Ended {
        key: QueueKey,
        offsets: Vec<QueueOffset>,
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
    pub(crate) fn new(member: MemberId, settings: SessionSettings) -> Arc<Self> {
        let SessionSettings { broadcasting, order, credit, filters } = settings;
        let (redeliveries, signal, held) = (AtomicU32::default(), Arc::default(), Mutex::default());
        Arc::new(Self { member, broadcasting, order, credit, filters, redeliveries, signal, held })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// Most redeliveries of one message, as the group's actor told it last.
    pub(crate) fn redeliveries(&self) -> u32 {
        self.redeliveries.load(Ordering::Relaxed)
    }

    pub(crate) fn set_redeliveries(&self, most: u32) {
        self.redeliveries.store(most, Ordering::Relaxed);
    }

    /// Gives nothing more out until it is told to go on; what is out can be settled.
    pub(crate) fn pause(&self, paused: bool) {
        self.lock().paused = paused;
        self.signal.wake();
    }

    pub(crate) fn signal(&self) -> &Arc<Signal> {
        &self.signal
    }

    /// Takes up a queue.
    pub(crate) fn grant(&self, granted: Granted) {
        let mut held = self.lock();
        held.drop_queue(&granted.key);
        granted.tail.listen(&self.signal);
        held.queues.push(HeldQueue::new(granted, self.order));
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

    /// Passes over everything below `to`, which is done by an operator's word. What is outstanding stays with its
    /// holder.
    pub(crate) fn skip_to(&self, key: &QueueKey, lease: Lease, to: QueueOffset) {
        let mut held = self.lock();
        if let Some(queue) = held.queues.iter_mut().find(|q| q.key == *key && q.lease == lease) {
            queue.skip_to(to);
        }
        drop(held);
        self.signal.wake();
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

    /// Looks for the next records: one that is due again, or up to `most` of a queue that are ready or fetched now.
    pub(crate) fn next(&self, shared: &Shared, most: usize) -> Result<Next> {
        loop {
            let plan = self.plan(&shared.clock, most)?;
            match plan {
                Plan::Give(given) => return Ok(Next::Given(given)),
                Plan::Wait(at) => return Ok(Next::Wait(at)),
                Plan::Ended { key, offsets } => return Ok(Next::Ended { key, offsets }),
                Plan::Fetch { key, lease, from, until } => {
                    if let Some(skipped) = self.fetch(shared, key, lease, from, until)? {
                        return Ok(skipped);
                    }
                }
            }
        }
    }

    fn plan(&self, clock: &Clock, most: usize) -> Result<Plan> {
        let mut held = self.lock();
        if let Some(why) = &held.closed {
            return Err(Error::new(crate::error::ErrorKind::Closed, format!("the consumer is closed: {why}")));
        }
        if held.paused {
            return Ok(Plan::Wait(None));
        }
        let Some(mut room) = self.credit.less(held.out) else { return Ok(Plan::Wait(None)) };
        let (count, mut soonest) = (held.queues.len(), None);
        room.messages = match self.order {
            Order::Concurrent | Order::Key => most.min(room.messages),
            // One at a time, because the next one may not go ahead of one that fails.
            Order::Queue => 1,
        };
        for step in 0..count {
            let at = (held.cursor + step) % count;
            match held.queues[at].plan(clock, self.order, room) {
                QueuePlan::Give(records, redeliveries) => {
                    held.cursor = at + 1;
                    return Ok(Plan::Give(held.give(at, records, redeliveries)));
                }
                QueuePlan::Fetch { from, until } => {
                    held.cursor = at;
                    let queue = &held.queues[at];
                    return Ok(Plan::Fetch { key: queue.key.clone(), lease: queue.lease, from, until });
                }
                QueuePlan::Ended(offsets) => {
                    return Ok(Plan::Ended { key: held.queues[at].key.clone(), offsets });
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
        if queue.next != from {
            // It was moved on meanwhile.
            return Ok(None);
        }
        let fetch = match fetched {
            Ok(fetch) => fetch,
            Err(error) => return queue.after_failed_fetch(error, shared, from),
        };
        queue.next = fetch.next;
        queue.note_ends(fetch.records.iter());
        let keeps_back = !queue.elsewhere.is_empty() || !queue.withheld.is_empty();
        if tags == TagHashes::All && !queue.progress.has_acked_ranges() && !keeps_back {
            queue.ready.extend(fetch.records);
            return Ok(None);
        }
        let wanted = |stored: &StoredRecord| filter.is_none_or(|f| f.matches(stored.record.attributes.tag()));
        let (progress, elsewhere, withheld) = (&queue.progress, &queue.elsewhere, &queue.withheld);
        let is_kept_back = |at: &QueueOffset| elsewhere.contains(at) || withheld.contains(at);
        let open = |r: &StoredRecord| !progress.is_acked(r.offset) && !is_kept_back(&r.offset);
        let wanted = fetch.records.into_iter().filter(|r| wanted(r) && open(r)).collect();
        let ranges = queue.take_up(wanted, from..fetch.next);
        Ok((!ranges.is_empty()).then_some(Next::Skipped { key, lease, ranges }))
    }

    /// Records were acknowledged: they are done.
    pub(crate) fn acknowledged(&self, claim: Claim<'_>, ranges: &[Range<QueueOffset>]) -> Option<Settled> {
        self.settle(claim, |queue| {
            for range in ranges {
                // A record beyond the window was never given out.
                let _ = queue.progress.ack_range(range.clone());
                queue.ready.done(range.clone());
            }
        })
    }

    /// Records come again to this member at `at`.
    pub(crate) fn again_at(
        &self,
        claim: Claim<'_>,
        records: impl Iterator<Item = StoredRecord>,
        redeliveries: u32,
        at: Timestamp,
    ) -> Option<Settled> {
        self.settle(claim, |queue| {
            records.for_each(|stored| queue.again_at(at, stored, redeliveries + 1));
        })
    }

    /// Takes records back; `None` when their queue is no longer held under that lease.
    fn settle(&self, claim: Claim<'_>, change: impl FnOnce(&mut HeldQueue)) -> Option<Settled> {
        let mut held = self.lock();
        held.out.messages = held.out.messages.saturating_sub(claim.records);
        held.out.bytes = held.out.bytes.saturating_sub(claim.bytes);
        let queue = held.queues.iter_mut().find(|q| q.lease == claim.lease && q.key == *claim.key);
        let release = queue.map(|queue| {
            queue.outstanding = queue.outstanding.saturating_sub(claim.records);
            change(queue);
            queue.revoked && queue.outstanding == 0
        });
        if release == Some(true) {
            held.drop_queue(claim.key);
        }
        drop(held);
        // Credit or an ordered queue may have become free, or a record come back.
        self.signal.wake();
        release.map(|release| if release { Settled::Release } else { Settled::Done })
    }
}

enum Plan {
    Give(Given),
    Fetch { key: QueueKey, lease: Lease, from: QueueOffset, until: QueueOffset },
    Ended { key: QueueKey, offsets: Vec<QueueOffset> },
    Wait(Option<Timestamp>),
}

impl Held {
    fn give(&mut self, at: usize, records: Records, redeliveries: u32) -> Given {
        let stored = records.as_slice();
        self.out.messages += stored.len();
        self.out.bytes += stored.iter().map(|stored| stored.record.payload_bytes()).sum::<usize>();
        let queue = &mut self.queues[at];
        queue.outstanding += stored.len();
        Given { key: queue.key.clone(), lease: queue.lease, records, redeliveries }
    }

    fn drop_queue(&mut self, key: &QueueKey) {
        self.queues.retain(|queue| queue.key != *key);
    }
}
