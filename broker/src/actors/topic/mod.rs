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

use actix::{Actor, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueKey, Record, WriteBatch};

pub(crate) use handle::{Routes, TopicHandle};
pub(crate) use messages::SpanRequest;

use super::expiry::Endings;
use super::mailbox::{Drain, Inbox};
use super::room::LimitedQueue;
use crate::domain::length::Size;
use crate::limits::YIELD_AFTER;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::{Done, Passage};
use messages::WaitingSpan;

pub(crate) const KIND: &str = "topic";

#[derive(Debug)]
pub(crate) struct TopicActor {
    shared: Arc<Shared>,
    name: Arc<str>,
    flush: Flush,
    inbox: Arc<Inbox<SpanRequest>>,
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
            let passage = self.shared.storage.passage();
            let Some(request) = self.inbox.pop() else { return };
            self.shared.probe(KIND, &self.name, "AppendAcross");
            if self.append_across(request, &passage, ctx) {
                break;
            }
        }
        if !self.inbox.rest() {
            ctx.wait(tokio::task::yield_now().into_actor(self));
            ctx.notify(Drain);
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

impl TopicActor {
    /// Whether nothing else is done until it is written.
    fn append_across(&self, request: SpanRequest, passage: &Passage<'_>, ctx: &mut Context<Self>) -> bool {
        let (parts, waiting) = request.split();
        let demands = self.demands(&parts);
        if demands.is_empty() {
            write_across(&self.shared, (parts, waiting), |batch, done| passage.write(batch, self.flush, done));
            return false;
        }
        let (shared, flush) = (Arc::clone(&self.shared), self.flush);
        ctx.wait(limited::write(shared, flush, demands, parts, waiting).into_actor(self));
        true
    }

    /// The queues with a limit, and what comes to each.
    fn demands(&self, parts: &Parts) -> Vec<(Arc<LimitedQueue>, Size)> {
        let demand = |(queue, records): &(QueueKey, Vec<Record>)| {
            let topic = self.shared.topics.get(&queue.topic)?;
            let queue = topic.queue(queue.queue).ok()?;
            Some((Arc::clone(queue.limited()?), Size::of(records)))
        };
        parts.iter().filter_map(demand).collect()
    }
}

/// Records of one batch by queue, queues in the order of their first record.
pub(crate) type Parts = Vec<(QueueKey, Vec<Record>)>;
