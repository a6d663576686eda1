//! The way to a queue actor: starts it when it is first needed, hands it requests, answers them if it is given up.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use actix::Addr;
use cuemq_storage_api::{QueueKey, Record};

use super::burst::{Burst, UsualSize};
use super::{KIND, QueueActor, QueueWriter, Ticket};
use crate::actors::lingering::Lingering;
use crate::actors::mailbox::{Drain, Inbox, post};
use crate::actors::room::LimitedQueue;
use crate::actors::supervisor::Identity;
use crate::admission::Taken;
use crate::domain::topic_rules::TopicRules;
use crate::error::{Error, ErrorKind};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::QueueTail;

/// Held by the topic's handle.
#[derive(Debug)]
pub(crate) struct QueueHandle {
    key: QueueKey,
    flush: Flush,
    tail: Arc<QueueTail>,
    limited: Option<Arc<LimitedQueue>>,
    inbox: Arc<Inbox<Burst>>,
    usual: UsualSize,
    /// There once somebody has sent: an idle queue costs no actor.
    running: OnceLock<Running>,
    /// Whether a change of the topic's queues is being stored; shared by the topic's queues.
    parked: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Running {
    address: Addr<QueueActor>,
    /// The actor's own, which ends with it: it knows the broker, and the broker knows this handle.
    writer: Weak<Mutex<QueueWriter>>,
}

impl QueueHandle {
    /// The way to a queue. Its actor starts with the first message.
    pub(crate) fn new(
        shared: &Shared,
        key: QueueKey,
        flush: Flush,
        rules: &TopicRules,
        parked: Arc<AtomicBool>,
    ) -> Result<Self, cuemq_storage_api::StorageError> {
        let tail = shared.storage.tail(&key)?;
        let limited = rules.max_length.map(|limit| LimitedQueue::new(key.clone(), limit));
        let (inbox, usual, running) = (Inbox::new(), UsualSize::default(), OnceLock::new());
        Ok(Self { key, flush, tail, limited, inbox, usual, running, parked })
    }

    fn start(&self, shared: &Arc<Shared>) -> Running {
        let identity = Identity::new(KIND, &self.key);
        let writer = Arc::new(Mutex::new(QueueWriter {
            shared: Arc::clone(shared),
            key: self.key.clone(),
            name: Arc::clone(&identity.name),
            flush: self.flush,
            limited: self.limited.clone(),
            inbox: Arc::clone(&self.inbox),
            admitted: Vec::new(),
            parked: Arc::clone(&self.parked),
        }));
        let (inbox, lingering) = (Arc::clone(&self.inbox), Lingering::new(shared.settings.stay_awake));
        let actor = QueueActor { inbox, writer: Arc::clone(&writer), lingering, goes_round: false };
        let abandoned = Arc::clone(&self.inbox);
        let (left_behind, left) = (Arc::clone(&writer), Arc::downgrade(&writer));
        let orphaned = move || {
            refuse_all(&abandoned, "its queue has failed");
            // What was being written: dropped, it tells its senders that nobody knows.
            left_behind.lock().unwrap_or_else(PoisonError::into_inner).admitted.clear();
        };
        let address = shared.supervision.start(shared.arbiters.carrier(), identity, move || actor, orphaned);
        Running { address, writer: left }
    }

    fn wake(&self, shared: &Arc<Shared>) {
        post(&self.running.get_or_init(|| self.start(shared)).address, Drain);
    }

    /// Hands everything that was sent so far to storage, while nobody sends.
    pub(crate) fn write_all(&self) {
        if let Some(writer) = self.running.get().and_then(|running| running.writer.upgrade()) {
            writer.lock().unwrap_or_else(PoisonError::into_inner).write_all();
        }
    }

    /// Gives up everything that was sent so far, while nobody sends and nothing is being written.
    pub(crate) fn take_all(&self) -> Vec<Burst> {
        let writer = self.running.get().and_then(|running| running.writer.upgrade());
        writer.map_or_else(Vec::new, |writer| writer.lock().unwrap_or_else(PoisonError::into_inner).take_all())
    }

    /// Takes what was sent to another queue.
    pub(crate) fn take_over(&self, shared: &Arc<Shared>, burst: Burst) {
        let mut burst = Some(burst);
        if self.inbox.add(|waiting| waiting.extend(burst.take()), || self.wake(shared)).is_err() {
            burst.into_iter().for_each(|burst| burst.refuse(gone("its queue is closed")));
        }
    }

    /// Has the actor go on if something waits.
    pub(crate) fn go_on(&self, shared: &Arc<Shared>) {
        if self.waiting() > 0 {
            self.wake(shared);
        }
    }

    /// Refuses what waits, and goes on taking more.
    pub(crate) fn refuse_waiting(&self, why: &str) {
        while let Some(burst) = self.inbox.pop() {
            burst.refuse(gone(why));
        }
    }

    pub(crate) fn key(&self) -> &QueueKey {
        &self.key
    }

    /// Its limit, if it has one: whoever appends asks it for room.
    pub(crate) fn limited(&self) -> Option<&Arc<LimitedQueue>> {
        self.limited.as_ref()
    }

    pub(crate) fn tail(&self) -> &Arc<QueueTail> {
        &self.tail
    }

    /// Hands a message over: it joins those that wait. From here on it lands, whether or not anybody waits for it.
    pub(crate) fn send(&self, shared: &Arc<Shared>, record: Record, taken: Taken<'_>) -> Ticket {
        let add = |waiting: &mut VecDeque<Burst>| match waiting.back_mut() {
            // Where room may be short each message is refused or taken by itself.
            Some(burst) if self.limited.is_none() && burst.has_room(&record) => burst.join(record, taken, &self.usual),
            _ => {
                let burst = Burst::single(record, shared.clock.now(), taken.keep(), &self.usual);
                let ticket = burst.last_ticket();
                waiting.push_back(burst);
                ticket
            }
        };
        let added = self.inbox.add(add, || self.wake(shared));
        added.unwrap_or_else(|_| Ticket::refused(gone("its queue is closed")))
    }

    /// Hands a batch over, which is stored as one. From here on it lands, whether or not anybody waits for it.
    pub(crate) fn send_batch(
        &self,
        shared: &Arc<Shared>,
        records: Vec<Record>,
        bytes: usize,
        taken: Taken<'_>,
    ) -> Ticket {
        let burst = Burst::batch(records, bytes, taken.keep());
        let ticket = burst.last_ticket();
        let added = self.inbox.add(|waiting| waiting.push_back(burst), || self.wake(shared));
        added.map_or_else(|_| Ticket::refused(gone("its queue is closed")), |()| ticket)
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.inbox.sum(Burst::requests)
    }

    /// Refuses what waits and whatever comes: the topic is deleted.
    pub(crate) fn close(&self) {
        refuse_all(&self.inbox, "its topic was deleted");
    }

    /// Refuses what waits and whatever comes: the broker has stopped.
    pub(crate) fn end(&self) {
        refuse_all(&self.inbox, "the broker has stopped");
    }
}

fn refuse_all(inbox: &Inbox<Burst>, why: &str) {
    for burst in inbox.close() {
        burst.refuse(gone(why));
    }
}

fn gone(why: &str) -> Error {
    Error::new(ErrorKind::NotStored, format!("the message was not stored: {why}"))
}
