//! One queue of one topic: takes what waits, makes one atomic write of it, answers each sender.
//!
//! It owns the order of its queue's sends: requests are written in the order in which they came. It keeps nothing
//! that storage does not have, so a restart reads nothing back; requests that waited are still in the inbox, and
//! those it had admitted and not yet handed to storage go first when it runs again. Supervised like all actors.

mod handle;
mod messages;

use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueKey, WriteBatch};

pub(crate) use handle::QueueHandle;
pub(crate) use messages::{AppendRequest, CallbackOnce, Records, Reply};

use super::mailbox::{Drain, Inbox};
use crate::limits::{MAX_DRAIN_BYTES, MAX_DRAIN_RECORDS, MAX_DRAIN_REQUESTS};
use crate::settings::Flush;
use crate::shared::Shared;

pub(crate) const KIND: &str = "queue";

#[derive(Debug)]
pub(crate) struct QueueActor {
    shared: Arc<Shared>,
    key: QueueKey,
    name: Arc<str>,
    flush: Flush,
    inbox: Arc<Inbox<AppendRequest>>,
    admitted: Vec<AppendRequest>,
}

impl Actor for QueueActor {
    type Context = Context<Self>;
}

impl Supervised for QueueActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        if self.inbox.wake_after_restart() || !self.admitted.is_empty() {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for QueueActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        self.admit();
        self.write();
        if !self.inbox.rest() {
            // Neighbours on this thread come first; then the rest of the burst.
            ctx.wait(tokio::task::yield_now().into_actor(self));
            ctx.notify(Drain);
        }
    }
}

impl QueueActor {
    /// Takes requests one by one, so that one that panics is lost alone.
    fn admit(&mut self) {
        let mut records: usize = self.admitted.iter().map(|request| request.records.len()).sum();
        let mut bytes: usize = self.admitted.iter().map(|request| request.records.payload_bytes()).sum();
        while self.admitted.len() < MAX_DRAIN_REQUESTS && records < MAX_DRAIN_RECORDS && bytes < MAX_DRAIN_BYTES {
            let Some(request) = self.inbox.pop() else { return };
            self.shared.probe(KIND, &self.name, "Append");
            records += request.records.len();
            bytes += request.records.payload_bytes();
            self.admitted.push(request);
        }
    }

    /// Makes one batch of what was admitted. Records move into the batch, replies into its answer.
    fn write(&mut self) {
        if self.admitted.is_empty() {
            return;
        }
        let mut waiting = Vec::with_capacity(self.admitted.len());
        let mut records = Vec::with_capacity(self.admitted.len());
        for request in self.admitted.drain(..) {
            waiting.push(request.take_records(&mut records));
        }
        let mut batch = WriteBatch::new(self.shared.clock.now());
        batch.append_all(&self.key, records);
        let (key, store_id) = (self.key.clone(), self.shared.store_id);
        self.shared.storage.write(batch, self.flush, move |result| messages::answer(&key, store_id, waiting, &result));
    }
}
