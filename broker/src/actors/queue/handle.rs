//! The way to a queue actor: starts it, hands it requests, answers them if it is given up.

use std::collections::VecDeque;
use std::sync::Arc;

use actix::Addr;
use cuemq_storage_api::{QueueKey, Record};

use super::burst::Burst;
use super::{KIND, QueueActor, Ticket};
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::admission::Taken;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::QueueTail;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct QueueHandle {
    key: QueueKey,
    tail: Arc<QueueTail>,
    inbox: Arc<Inbox<Burst>>,
    address: Addr<QueueActor>,
}

impl QueueHandle {
    /// Starts the queue's actor.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        key: QueueKey,
        flush: Flush,
    ) -> Result<Self, cuemq_storage_api::StorageError> {
        let tail = shared.storage.tail(&key)?;
        let inbox = Inbox::new();
        let identity = Identity::new(KIND, &key);
        let actor = QueueActor {
            shared: Arc::clone(shared),
            key: key.clone(),
            name: Arc::clone(&identity.name),
            flush,
            inbox: Arc::clone(&inbox),
            admitted: Vec::new(),
        };
        let abandoned = Arc::clone(&inbox);
        let orphaned = move || refuse_all(&abandoned, "its queue has failed");
        let address = shared.supervision.start(shared.arbiters.carrier(), identity, move || actor, orphaned);
        Ok(Self { key, tail, inbox, address })
    }

    pub(crate) fn key(&self) -> &QueueKey {
        &self.key
    }

    pub(crate) fn tail(&self) -> &Arc<QueueTail> {
        &self.tail
    }

    /// Hands a message over: it joins those that wait. From here on it lands, whether or not anybody waits for it.
    pub(crate) fn send(&self, record: Record, clock: &Clock, taken: Taken<'_>) -> Ticket {
        let add = |waiting: &mut VecDeque<Burst>| match waiting.back_mut() {
            Some(burst) if burst.has_room(&record) => burst.join(record, taken),
            _ => {
                let burst = Burst::single(record, clock.now(), taken.keep());
                let ticket = burst.last_ticket();
                waiting.push_back(burst);
                ticket
            }
        };
        self.inbox.add(&self.address, add).unwrap_or_else(|_| Ticket::refused(gone("its queue is closed")))
    }

    /// Hands a batch over, which is stored as one. From here on it lands, whether or not anybody waits for it.
    pub(crate) fn send_batch(&self, records: Vec<Record>, bytes: usize, taken: Taken<'_>) -> Ticket {
        let burst = Burst::batch(records, bytes, taken.keep());
        let ticket = burst.last_ticket();
        if let Err(burst) = self.inbox.push(burst, &self.address) {
            burst.refuse(gone("its queue is closed"));
        }
        ticket
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
