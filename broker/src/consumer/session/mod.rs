//! What one member of a group holds: its queues, what it has fetched, what it has given out.
//!
//! The group's actor grants and revokes queues; the member reads them from storage by itself, up to what is visible.

mod credit;
mod elsewhere;
mod exchange;
mod given;
mod held_queue;
mod lane;
mod reading;
mod ready;
mod settling;
mod withheld;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, Timestamp, TopicName};

pub(crate) use credit::Credit;
pub(crate) use exchange::Exchange;
pub(crate) use given::{Claim, Given, Records};
pub(crate) use held_queue::Granted;
use held_queue::HeldQueue;
pub(crate) use settling::{Recalled, Settled};
pub(crate) use withheld::Withheld;

use crate::domain::filter::TagFilter;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::order::Order;
use crate::domain::progress::Progress;
use crate::domain::subscriptions::Subscriptions;
use crate::storage::Signal;

/// Shared by the consumer, its deliveries and the group's actor.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) member: MemberId,
    pub(crate) broadcasting: bool,
    order: Order,
    credit: Credit,
    subscriptions: Subscriptions,
    /// Its fellows, once it is taken in; a broadcasting member has none.
    exchange: OnceLock<Arc<Exchange>>,
    /// Counts questions for the next records: fellows take turns.
    turn: AtomicUsize,
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
    /// Records that are done without a delivery: no member wants them, or they expired.
    Skipped {
        key: QueueKey,
        lease: Lease,
        ranges: Vec<Range<QueueOffset>>,
        unwanted: bool,
    },
    /// Records that have ended before they were given out: the group deals with them.
    Ended {
        key: QueueKey,
        offsets: Vec<QueueOffset>,
    },
    /// Nothing now; look again when the signal comes or at this time.
    Wait(Option<Timestamp>),
}

impl Session {
    pub(crate) fn new(member: MemberId, settings: SessionSettings) -> Arc<Self> {
        let SessionSettings { broadcasting, order, credit, filters } = settings;
        let (redeliveries, signal, held) = (AtomicU32::default(), Arc::default(), Mutex::default());
        let (subscriptions, exchange, turn) = (Subscriptions::new(filters), OnceLock::new(), AtomicUsize::default());
        Arc::new(Self {
            member,
            broadcasting,
            order,
            credit,
            subscriptions,
            exchange,
            turn,
            redeliveries,
            signal,
            held,
        })
    }

    /// Joins the others of its group, before it gets its first queue.
    pub(crate) fn enter(self: &Arc<Self>, exchange: &Arc<Exchange>) {
        // A member joins one group once.
        let _ = self.exchange.set(Arc::clone(exchange));
        exchange.join(self);
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
        let (key, tail) = (granted.key.clone(), Arc::clone(&granted.tail));
        tail.listen(&self.signal);
        held.queues.push(HeldQueue::new(granted, self.order));
        drop(held);
        if let Some(exchange) = self.exchange.get().filter(|exchange| exchange.is_mixed()) {
            exchange.let_listen(self, &key, &tail);
        }
        self.signal.wake();
    }

    /// Gives nothing more out from a queue; true when nothing of it is outstanding, so that it is free at once.
    pub(crate) fn revoke(&self, key: &QueueKey, lease: Lease) -> bool {
        let mut held = self.lock();
        let Some(at) = held.queues.iter().position(|q| q.key == *key && q.lease == lease) else { return true };
        held.queues[at].revoked = true;
        let free = held.queues[at].outstanding() == 0;
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

    /// Reads nothing at or behind these offsets of a topic's queues, until it is told otherwise.
    pub(crate) fn set_fences(&self, topic: &TopicName, of: impl Fn(QueueId) -> Option<QueueOffset>) {
        let mut held = self.lock();
        for queue in held.queues.iter_mut().filter(|queue| queue.key.topic == *topic) {
            queue.fence = of(queue.key.queue);
        }
        drop(held);
        self.signal.wake();
    }

    /// Queues of a topic of which more was read than may be now.
    pub(crate) fn read_past_fences(&self, topic: &TopicName) -> Vec<QueueKey> {
        let held = self.lock();
        let past =
            |queue: &&HeldQueue| queue.key.topic == *topic && queue.fence.is_some_and(|fence| queue.next > fence);
        held.queues.iter().filter(past).map(|queue| queue.key.clone()).collect()
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
}

impl Held {
    fn drop_queue(&mut self, key: &QueueKey) {
        self.queues.retain(|queue| queue.key != *key);
    }
}
