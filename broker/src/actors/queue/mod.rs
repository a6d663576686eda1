//! One queue of one topic: takes what waits, makes one atomic write of it, answers each sender.
//!
//! It owns the order of its queue's sends: requests are written in the order in which they came. It keeps nothing
//! that storage does not have, so a restart reads nothing back; requests that waited are still in the inbox, and
//! those it had admitted and not yet handed to storage go first when it runs again. Supervised like all actors.

mod burst;
mod handle;
mod limited;
mod outcome;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use actix::fut::{ActorStreamExt, ready};
use actix::{Actor, AsyncContext, Context, Handler, Supervised, WrapFuture, WrapStream};
use cuemq_storage_api::{QueueKey, WriteBatch};
use futures_util::{FutureExt, Stream, stream};

pub(crate) use burst::Burst;
pub(crate) use handle::QueueHandle;
pub(crate) use outcome::Ticket;

use super::expiry::Endings;
use super::lingering::Lingering;
use super::mailbox::{Drain, Inbox, go_on};
use super::room::LimitedQueue;
use crate::limits::{
    MAX_BURST_RECORDS, MAX_DRAIN_BYTES, MAX_DRAIN_RECORDS, MAX_DRAIN_REQUESTS, WRITE_BYTES, WRITE_RECORDS,
};
use crate::settings::Flush;
use crate::shared::Shared;
pub(crate) const KIND: &str = "queue";

#[derive(Debug)]
pub(crate) struct QueueActor {
    inbox: Arc<Inbox<Burst>>,
    writer: Arc<Mutex<QueueWriter>>,
    lingering: Lingering,
    /// Whether it goes its [`rounds`].
    goes_round: bool,
}

/// Takes what waits and writes it. The actor's, but for the moment of a change of the topic's queues: then whatever
/// was sent before the change is written ahead of it, by whoever makes the change.
#[derive(Debug)]
pub(super) struct QueueWriter {
    shared: Arc<Shared>,
    key: QueueKey,
    name: Arc<str>,
    flush: Flush,
    limited: Option<Arc<LimitedQueue>>,
    inbox: Arc<Inbox<Burst>>,
    admitted: Vec<Burst>,
    /// Whether a change of the topic's queues is being stored: what waits was sent under it, and waits for that.
    parked: Arc<AtomicBool>,
}

impl Actor for QueueActor {
    type Context = Context<Self>;
}

impl Supervised for QueueActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.admitted.retain_mut(Burst::lose_what_is_at_hand);
        self.lingering.end();
        // They went with the old context.
        self.goes_round = false;
        if self.inbox.wake_after_restart() || !writer.admitted.is_empty() {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for QueueActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        if self.turn(ctx) && !self.goes_round {
            self.goes_round = true;
            ctx.spawn(rounds().into_actor(self).take_while(|(), actor, ctx| ready(actor.round(ctx))).finish());
        }
    }
}

/// One item each time that the thread's other actors have had their turns. One stream for as long as an actor stays awake:
/// a message to itself would cost the allocator two boxes a turn.
fn rounds() -> impl Stream<Item = ()> {
    stream::unfold((), |()| tokio::task::yield_now().map(|()| Some(((), ()))))
}

impl QueueActor {
    /// Takes what waits, up to a turn's bounds. Whether the actor stays awake for another turn.
    fn turn(&mut self, ctx: &mut Context<Self>) -> bool {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.parked.load(Ordering::Acquire) {
            // Whoever ends the change wakes the actor if something waits.
            self.lingering.end();
            self.inbox.rest();
            return false;
        }
        let mut turn = Load::default();
        while turn.has_room() && writer.admit(&mut turn) {
            if let Some(limited) = writer.limited.clone() {
                ctx.wait(limited::write(Arc::clone(&self.writer), limited).into_actor(self));
                break;
            }
            writer.write();
        }
        drop(writer);
        if turn.has_room() && self.lingers(turn.requests > 0) {
            return true;
        }
        self.lingering.end();
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
        false
    }

    /// A turn of its rounds; false when it was the last one.
    fn round(&mut self, ctx: &mut Context<Self>) -> bool {
        self.goes_round = self.turn(ctx);
        self.goes_round
    }

    /// Whether it looks once more before it sleeps. Threads that have something to do come first.
    #[expect(clippy::disallowed_methods, reason = "how long an actor looks decides nothing about a message")]
    fn lingers(&mut self, found: bool) -> bool {
        let lingers = self.lingering.goes_on(found, Instant::now());
        if lingers {
            std::thread::yield_now();
        }
        lingers
    }
}

/// What the actor has taken on in one turn.
#[derive(Clone, Copy, Default)]
struct Load {
    requests: usize,
    records: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, burst: &Burst) {
        self.requests += burst.requests();
        self.records += burst.records();
        self.bytes += burst.bytes();
    }

    /// Whether one more burst fits into the turn.
    fn has_room(&self) -> bool {
        self.requests + MAX_BURST_RECORDS <= MAX_DRAIN_REQUESTS
            && self.records < MAX_DRAIN_RECORDS
            && self.bytes < MAX_DRAIN_BYTES
    }

    /// Whether it is time to write: senders go on while the next write is made, and whoever waits for the first of
    /// them does not wait for the last.
    fn is_a_write(&self) -> bool {
        self.records >= WRITE_RECORDS || self.bytes >= WRITE_BYTES
    }
}

impl QueueWriter {
    /// Hands everything that waits to storage.
    fn write_all(&mut self) {
        // What a panic has left: the actor has not been restarted yet.
        self.admitted.retain_mut(Burst::lose_what_is_at_hand);
        loop {
            let mut load = Load::default();
            while !load.is_a_write() && load.has_room() {
                let Some(burst) = self.inbox.pop() else { break };
                load.add(&burst);
                self.admitted.push(burst);
            }
            if self.admitted.is_empty() {
                return;
            }
            self.write();
        }
    }

    /// Gives up everything that waits, in order.
    fn take_all(&mut self) -> Vec<Burst> {
        // What a panic has left: the actor has not been restarted yet.
        self.admitted.retain_mut(Burst::lose_what_is_at_hand);
        let mut all = std::mem::take(&mut self.admitted);
        all.extend(std::iter::from_fn(|| self.inbox.pop()));
        all
    }

    /// Takes what waits, up to one write; false when there is nothing.
    fn admit(&mut self, turn: &mut Load) -> bool {
        self.look_at_the_last();
        let mut load = Load::default();
        self.admitted.iter().for_each(|burst| load.add(burst));
        while !load.is_a_write() && turn.has_room() {
            let Some(burst) = self.inbox.next() else { break };
            load.add(&burst);
            turn.add(&burst);
            self.admitted.push(burst);
            self.look_at_the_last();
        }
        !self.admitted.is_empty()
    }

    /// Shows each request to the test's probe, if there is one, so that one that panics is lost alone.
    fn look_at_the_last(&mut self) {
        if self.shared.is_probed()
            && let Some(burst) = self.admitted.last_mut()
        {
            let (shared, name) = (&self.shared, &self.name);
            burst.look_at_each(|| {
                shared.probe(KIND, name, "Append");
            });
        }
    }

    /// Makes one batch of what was admitted. Records move into the batch, those who wait into its answer.
    fn write(&mut self) {
        if self.admitted.is_empty() {
            return;
        }
        let mut waiting = Vec::with_capacity(self.admitted.len());
        let (mut batch, mut endings) = (WriteBatch::new(self.shared.clock.now()), Endings::default());
        for burst in self.admitted.drain(..) {
            let (records, rest) = burst.into_parts();
            endings.append_all(&self.shared, &mut batch, &self.key, records);
            waiting.push(rest);
        }
        let (key, store_id) = (self.key.clone(), self.shared.store_id);
        let told = (!endings.is_empty()).then(|| Arc::clone(&self.shared));
        self.shared.storage.write(batch, self.flush, move |result| {
            if let (Some(shared), Ok(_)) = (told, &result) {
                endings.stored(&shared);
            }
            burst::answer(&key, store_id, waiting, result);
        });
    }
}
