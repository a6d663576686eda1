//! The delay scheduler: stores delayed messages, and moves each to its queue when it is due.
//!
//! Every delayed message is one row of a table, ordered by due time, from before its sender hears of it until the
//! batch that appends it to its queue and deletes the row. So nothing is lost or doubled by a crash, and a restart
//! only has to read the table again. Supervised like all actors.

mod change;
mod count;
mod handle;
mod limited;
mod messages;
mod recur;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueKey, TopicName, WriteBatch};

use count::{CountOn, Counting};
pub(crate) use handle::DelayHandle;
pub(crate) use messages::{Change, ChangeRequest, Changed, DelayCommand, DelayRequest, RecurRequest};

use super::alarm::{Alarm, Alarmed, set_alarm};
use super::expiry::Endings;
use super::mailbox::{Drain, Inbox, go_on};
use super::supervisor::fail_start;
use crate::domain::delay::{DelayEffect, DelaySchedule, TimerKey};
use crate::error::{Error, Result};
use crate::limits::{MAX_DRAIN_BYTES, MAX_DRAIN_REQUESTS, MAX_FIRE_BYTES, MAX_FIRE_MESSAGES};
use crate::scheduled::ScheduledId;
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::delay::{self as table, DelayOrigin, DelayRow};

pub(crate) const KIND: &str = "delay";

pub(crate) struct DelayActor {
    shared: Arc<Shared>,
    /// Its own handle, through which writes report back; set when it starts.
    me: Option<DelayHandle>,
    inbox: Arc<Inbox<DelayCommand>>,
    schedule: DelaySchedule,
    effects: Vec<DelayEffect>,
    /// Requests taken from the inbox and not yet handed to storage.
    admitted: Vec<DelayRequest>,
    /// Changes taken from the inbox and not yet handed to storage.
    changes: Vec<ChangeRequest>,
    alarm: Alarm,
    /// Handed to storage to be moved or taken back, outcome not known yet: their rows may still be there, and must not
    /// be moved twice. Bounded by the rows of the table.
    firing: HashSet<TimerKey>,
    /// Changes of messages that are among `firing`: each waits for that outcome. Bounded by their permits.
    parked: HashMap<TimerKey, Vec<ChangeRequest>>,
    counting: Counting,
}

impl Actor for DelayActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.me = Some(DelayHandle::new(Arc::clone(&self.inbox), ctx.address()));
        self.load(ctx);
    }
}

impl Supervised for DelayActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        self.alarm = Alarm::default();
        self.load(ctx);
        let taken = !self.admitted.is_empty() || !self.changes.is_empty() || !self.parked.is_empty();
        if self.inbox.wake_after_restart() || taken {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for DelayActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        self.admit();
        self.store();
        self.carry_out_changes();
        self.go_on(ctx);
        if !self.inbox.rest() {
            go_on(self, ctx);
        }
    }
}

impl Alarmed for DelayActor {
    fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        self.shared.probe(KIND, "scheduler", "Alarm");
        self.go_on(ctx);
    }
}

impl DelayActor {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Arc<Inbox<DelayCommand>>) -> Self {
        let mut effects = Vec::new();
        let schedule = DelaySchedule::start(&mut effects);
        Self {
            shared,
            me: None,
            inbox,
            schedule,
            effects,
            admitted: Vec::new(),
            changes: Vec::new(),
            alarm: Alarm::default(),
            firing: HashSet::new(),
            parked: HashMap::new(),
            counting: Counting::default(),
        }
    }

    /// Begins anew with what storage has, once every write handed over before has landed.
    fn load(&mut self, ctx: &mut Context<Self>) {
        let storage = self.shared.storage.clone();
        ctx.wait(async move { storage.landed().await }.into_actor(self).map(|(), actor, ctx| {
            actor.effects.clear();
            actor.firing.clear();
            actor.changes.extend(actor.parked.drain().flat_map(|(_, requests)| requests));
            actor.schedule = DelaySchedule::start(&mut actor.effects);
            actor.go_on(ctx);
            ctx.notify(CountOn);
        }));
    }

    fn admit(&mut self) {
        let mut bytes = 0;
        while self.admitted.len() + self.changes.len() < MAX_DRAIN_REQUESTS && bytes < MAX_DRAIN_BYTES {
            match self.inbox.pop() {
                None => return,
                Some(DelayCommand::Schedule(request)) => {
                    self.shared.probe(KIND, "scheduler", "Schedule");
                    bytes += request.record.payload_bytes();
                    self.admitted.push(*request);
                }
                Some(DelayCommand::Change(request)) => {
                    self.shared.probe(KIND, "scheduler", "Change");
                    self.changes.push(request);
                }
                Some(DelayCommand::Recur(request)) => {
                    self.shared.probe(KIND, "scheduler", "Recur");
                    self.recur(*request);
                }
                Some(DelayCommand::Stored(timers)) => {
                    self.shared.probe(KIND, "scheduler", "Stored");
                    let waiting = timers.into_iter().filter(|timer| !self.firing.contains(timer));
                    waiting.for_each(|timer| self.schedule.schedule(timer));
                }
                Some(DelayCommand::Fired(timers)) => {
                    self.shared.probe(KIND, "scheduler", "Fired");
                    for timer in timers {
                        self.firing.remove(&timer);
                        self.changes.extend(self.parked.remove(&timer).into_iter().flatten());
                    }
                }
            }
        }
    }

    /// Stores what was admitted as one batch; each sender hears of it, and the machine, once it is stored.
    fn store(&mut self) {
        if self.admitted.is_empty() {
            return;
        }
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let (mut waiting, mut flush) = (Vec::with_capacity(self.admitted.len()), Flush::Buffered);
        for request in std::mem::take(&mut self.admitted) {
            match self.put(&request, &mut batch) {
                Ok(timer) => {
                    if request.flush == Flush::Durable {
                        flush = Flush::Durable;
                    }
                    waiting.push((timer, request));
                }
                Err(error) => request.answer(Err(error)),
            }
        }
        let (me, count) = (self.me.clone(), waiting.len());
        let shared = Arc::clone(&self.shared);
        self.shared.storage.write(batch, flush, move |result| {
            if let (Ok(_), Some(delay)) = (&result, &me) {
                delay.stored(waiting.iter().map(|(timer, _)| *timer).collect());
            } else {
                shared.delayed.subtract(count);
            }
            for (timer, request) in waiting {
                let id = ScheduledId::new(shared.store_id, timer);
                let stored = result.as_ref().map(|stored| (id, stored.level)).map_err(|error| error.get());
                request.answer(stored);
            }
        });
    }

    fn put(&self, request: &DelayRequest, batch: &mut WriteBatch) -> Result<TimerKey> {
        let timer = TimerKey::new(request.due, self.shared.take_number());
        let row = DelayRow {
            topic: request.topic.clone(),
            queue: request.queue,
            origin: DelayOrigin::Send,
            record: request.record.clone(),
        };
        self.count_one()?;
        batch.put(&table::TABLE, table::key(timer), row.encode());
        Ok(timer)
    }

    /// Moves what is due, reads more timers if the window is low, and sets the alarm for the next.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        loop {
            while let Some(DelayEffect::Refill { from, limit }) = self.effects.pop() {
                self.refill(from, limit);
            }
            let due = self.schedule.due(self.shared.clock.now(), MAX_FIRE_MESSAGES, &mut self.effects);
            if due.is_empty() && self.effects.is_empty() {
                break;
            }
            match self.fire(due) {
                Ok(limited) if limited.is_empty() => {}
                Ok(limited) => return self.fire_within(limited, ctx),
                Err(error) => fail_start(&error),
            }
        }
        self.set_alarm(ctx);
    }

    fn refill(&mut self, from: TimerKey, limit: usize) {
        let mut timers = Vec::new();
        let (engine, firing) = (self.shared.storage.engine(), &self.firing);
        let read = scan_rows::<Error>(&**engine, &table::TABLE, &table::key(from), None, limit, |key, _| {
            let timer = table::decode_key(key)?;
            if !firing.contains(&timer) {
                timers.push(timer);
            }
            Ok(())
        });
        match read {
            Ok(count) => self.schedule.refill(&timers, count < limit, &mut self.effects),
            Err(error) => fail_start(&error),
        }
    }

    /// Moves due messages of queues with a limit, and goes on once that is over.
    fn fire_within(&mut self, limited: Vec<TimerKey>, ctx: &mut Context<Self>) {
        let moved = limited::fire(Arc::clone(&self.shared), limited);
        ctx.wait(moved.into_actor(self).map(|fired, actor, ctx| {
            let counted = fired.moved.iter().filter(|timer| actor.is_counted(**timer)).count();
            actor.shared.delayed.add(fired.again.len());
            actor.shared.delayed.subtract(counted);
            fired.again.into_iter().for_each(|timer| actor.schedule.schedule(timer));
            if let (Some(me), false) = (&actor.me, fired.later.is_empty()) {
                me.stored_later(&actor.shared, fired.later);
            }
            actor.go_on(ctx);
        }));
    }

    /// Appends due messages to their queues and deletes their rows, as one batch. Those of queues with a limit come
    /// back.
    fn fire(&mut self, due: Vec<TimerKey>) -> Result<Vec<TimerKey>> {
        let mut limited = Vec::new();
        let storage = self.shared.storage.clone();
        let passage = storage.passage();
        let (mut batch, mut endings) = (WriteBatch::new(self.shared.clock.now()), Endings::default());
        let (mut fired, mut flush, mut bytes) = (Vec::new(), Flush::Buffered, 0);
        // The next times of those that recur.
        let mut again = Vec::new();
        for timer in due {
            if bytes > MAX_FIRE_BYTES {
                // Its turn comes with the next batch.
                self.schedule.schedule(timer);
                continue;
            }
            // A row that is gone was moved by an earlier run of this actor.
            let key = table::key(timer);
            let Some(row) = self.shared.storage.engine().get(&table::TABLE, &key)? else { continue };
            let mut row = DelayRow::decode(&row)?;
            if self.shared.topics.get(&row.topic).is_some_and(|topic| topic.rules().max_length.is_some()) {
                limited.push(timer);
                continue;
            }
            bytes += row.record.payload_bytes();
            let (queue, wanted) = self.target(&row);
            if let DelayOrigin::Recurrence(number) = row.origin {
                again.extend(recur::comes_again(&self.shared, number, &row, &mut batch)?);
                row.record.born_at = timer.due;
            }
            if wanted == Flush::Durable {
                flush = Flush::Durable;
            }
            endings.append(&self.shared, &mut batch, &queue, row.record);
            batch.delete(&table::TABLE, key);
            fired.push(timer);
        }
        if fired.is_empty() {
            return Ok(limited);
        }
        self.firing.extend(&fired);
        let counted = fired.iter().filter(|timer| self.is_counted(**timer)).count();
        let (me, shared) = (self.me.clone(), Arc::clone(&self.shared));
        passage.write(batch, flush, move |result| {
            me.iter().for_each(|delay| delay.fired(fired.clone()));
            match result {
                Ok(_) => {
                    shared.delayed.add(again.len());
                    shared.delayed.subtract(counted);
                    me.iter().for_each(|delay| delay.stored(again.clone()));
                    endings.stored(&shared);
                }
                Err(error) => {
                    tracing::warn!(error = %error.get(), messages = fired.len(), "due messages could not be moved yet");
                    if let (true, Some(delay)) = (error.get().is_certainly_not_applied(), me) {
                        delay.stored_later(&shared, fired);
                    }
                }
            }
        });
        Ok(limited)
    }

    /// The queue of a due message. One whose topic was deleted goes where an operator finds it.
    fn target(&self, row: &DelayRow) -> (QueueKey, Flush) {
        match self.shared.topics.get(&row.topic) {
            Some(topic) => {
                let routes = topic.routes();
                let chosen = row.queue.and_then(|id| routes.queue(id));
                let chosen = chosen.unwrap_or_else(|| routes.choose(row.record.attributes.sharding_key()));
                (chosen.key().clone(), topic.flush())
            }
            None => {
                tracing::warn!(topic = %row.topic, "the topic of a delayed message was deleted");
                (QueueKey::new(undeliverable(), cuemq_storage_api::QueueId::FIRST), Flush::Durable)
            }
        }
    }

    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let (next, clock) = (self.schedule.next_wakeup(), self.shared.clock.clone());
        set_alarm(self, next, &clock, ctx);
    }
}

/// Where delayed messages go whose topic was deleted before they were due.
pub(crate) fn undeliverable() -> TopicName {
    TopicName::from_stored("rmq_sys_UNDELIVERABLE").expect("a legal name")
}
