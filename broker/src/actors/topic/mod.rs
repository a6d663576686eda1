//! One topic: owns its queues and the writes that span several of them.
//!
//! A message with an order key goes to its queue's actor. A batch whose messages belong to several queues is one
//! atomic write, made here. Supervised by the root's supervision; a restart loses nothing, because the queues are
//! actors of their own and the topic's settings are in storage.

mod change;
mod handle;
mod limited;
mod messages;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use actix::{Actor, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueKey, Record, WriteBatch};

pub(crate) use change::readable;
pub(crate) use handle::{Routes, TopicHandle};
pub(crate) use messages::SpanRequest;

use super::expiry::Endings;
use super::mailbox::{Drain, Inbox, go_on};
use crate::limits::YIELD_AFTER;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::Done;
use messages::WaitingSpan;

pub(crate) const KIND: &str = "topic";

#[derive(Debug)]
pub(crate) struct TopicActor {
    shared: Arc<Shared>,
    name: Arc<str>,
    flush: Flush,
    inbox: Arc<Inbox<SpanRequest>>,
    /// There if the topic's queues are limited in length.
    limited: Option<Spanning>,
}

impl Actor for TopicActor {
    type Context = Context<Self>;
}

impl Supervised for TopicActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        if self.inbox.wake_after_restart() {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for TopicActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        for _ in 0..YIELD_AFTER {
            if let Some(spanning) = &self.limited {
                let (shared, inbox) = (Arc::clone(&self.shared), Arc::clone(&self.inbox));
                ctx.wait(limited::write_next(shared, self.flush, inbox, spanning.clone()).into_actor(self));
                break;
            }
            let passage = self.shared.storage.passage();
            let Some(request) = self.inbox.pop() else { return };
            self.shared.probe(KIND, &self.name, "AppendAcross");
            write_across(&self.shared, request.split(), |batch, done| passage.write(batch, self.flush, done));
        }
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
    }
}

/// Makes one write of a batch that spans queues.
fn write_across(shared: &Arc<Shared>, (parts, waiting): (Parts, WaitingSpan), write: impl FnOnce(WriteBatch, Done)) {
    let (mut batch, mut endings) = (WriteBatch::new(shared.clock.now()), Endings::default());
    for (queue, records) in parts {
        endings.append_all(shared, &mut batch, &queue, records);
    }
    let (shared, store_id) = (Arc::clone(shared), shared.store_id);
    write(
        batch,
        Box::new(move |result| {
            if result.is_ok() {
                endings.stored(&shared);
            }
            waiting.answer(store_id, &result);
        }),
    );
}

/// What batches over limited queues and a change of these queues share.
#[derive(Clone, Debug)]
pub(super) struct Spanning {
    /// Held from taking a batch up to its outcome.
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Whether a change is being stored: what waits was sent under it, and waits for that.
    parked: Arc<AtomicBool>,
}

/// Records of one batch by queue, queues in the order of their first record.
pub(crate) type Parts = Vec<(QueueKey, Vec<Record>)>;
