//! The way to a queue actor: starts it, hands it requests, answers them if it is given up.

use std::sync::Arc;

use actix::Addr;
use cuemq_storage_api::QueueKey;

use super::{AppendRequest, KIND, QueueActor};
use crate::actors::mailbox::Inbox;
use crate::actors::supervisor::Identity;
use crate::error::{Error, ErrorKind};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::QueueTail;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct QueueHandle {
    key: QueueKey,
    tail: Arc<QueueTail>,
    inbox: Arc<Inbox<AppendRequest>>,
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

    /// Hands a request over. From here on it lands, whether or not anybody waits for the answer.
    pub(crate) fn append(&self, request: AppendRequest) {
        if let Err(request) = self.inbox.push(request, &self.address) {
            request.refuse(gone("its queue is closed"));
        }
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.inbox.len()
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

fn refuse_all(inbox: &Inbox<AppendRequest>, why: &str) {
    for request in inbox.close() {
        request.refuse(gone(why));
    }
}

fn gone(why: &str) -> Error {
    Error::new(ErrorKind::NotStored, format!("the message was not stored: {why}"))
}
