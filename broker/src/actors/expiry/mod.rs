//! The scheduler of expiries: at the end of a message's life it tells the groups that have not consumed it.
//!
//! Every message that ends has one row of a table, ordered by its end, from the batch that appends it until every group
//! has dealt with it. A crash in between tells the groups again, and what one has dealt with is done there. Only a
//! window of the rows is in memory. Supervised like all actors.

mod append;
mod handle;

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Supervised, WrapFuture};
use cuemq_storage_api::{QueueKey, QueueOffset, WriteBatch};
use futures_util::future::join_all;

pub(crate) use append::Endings;
pub(crate) use handle::ExpiryHandle;

use super::alarm::{Alarm, Alarmed, set_alarm};
use super::group::{GroupRequest, Withdrawal};
use super::mailbox::{Drain, Inbox};
use super::supervisor::fail_start;
use crate::domain::delay::{DelayEffect, DelaySchedule, TimerKey};
use crate::domain::failure::DeadReason;
use crate::error::{Error, Result};
use crate::limits::{MAX_EXPIRED_MESSAGES, YIELD_AFTER};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::expiry::{self as table, ExpiryRow};

pub(crate) const KIND: &str = "expiry";
/// Pause before groups are told again that could not deal with messages.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the scheduler is asked for.
#[derive(Debug)]
pub(crate) enum ExpiryCommand {
    /// Messages that are in storage by now.
    Stored(Vec<TimerKey>),
}

pub(crate) struct ExpiryActor {
    shared: Arc<Shared>,
    inbox: Arc<Inbox<ExpiryCommand>>,
    schedule: DelaySchedule,
    effects: Vec<DelayEffect>,
    alarm: Alarm,
}

impl Actor for ExpiryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.load(ctx);
    }
}

impl Supervised for ExpiryActor {
    fn restarting(&mut self, ctx: &mut Context<Self>) {
        self.alarm = Alarm::default();
        self.load(ctx);
        if self.inbox.wake_after_restart() {
            ctx.notify(Drain);
        }
    }
}

impl Handler<Drain> for ExpiryActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        for _ in 0..YIELD_AFTER {
            let Some(ExpiryCommand::Stored(timers)) = self.inbox.pop() else { break };
            self.shared.probe(KIND, "scheduler", "Stored");
            timers.into_iter().for_each(|timer| self.schedule.schedule(timer));
        }
        self.go_on(ctx);
        if !self.inbox.rest() {
            ctx.notify(Drain);
        }
    }
}

impl Alarmed for ExpiryActor {
    fn alarm(&mut self) -> &mut Alarm {
        &mut self.alarm
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        self.shared.probe(KIND, "scheduler", "Alarm");
        self.go_on(ctx);
    }
}

impl ExpiryActor {
    pub(crate) fn new(shared: Arc<Shared>, inbox: Arc<Inbox<ExpiryCommand>>) -> Self {
        let mut effects = Vec::new();
        let schedule = DelaySchedule::start(&mut effects);
        Self { shared, inbox, schedule, effects, alarm: Alarm::default() }
    }

    /// Begins anew with what storage has, once every write handed over before has landed.
    fn load(&mut self, ctx: &mut Context<Self>) {
        let storage = self.shared.storage.clone();
        ctx.wait(async move { storage.landed().await }.into_actor(self).map(|(), actor, ctx| {
            actor.effects.clear();
            actor.schedule = DelaySchedule::start(&mut actor.effects);
            actor.go_on(ctx);
        }));
    }

    /// Reads more timers if the window is low, and deals with what has ended; nothing else is done until that is over.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        loop {
            while let Some(DelayEffect::Refill { from, limit }) = self.effects.pop() {
                self.refill(from, limit);
            }
            let ended = self.schedule.due(self.shared.clock.now(), MAX_EXPIRED_MESSAGES, &mut self.effects);
            if !ended.is_empty() {
                return self.end(ended, ctx);
            }
            if self.effects.is_empty() {
                break;
            }
        }
        let (next, clock) = (self.schedule.next_wakeup(), self.shared.clock.clone());
        set_alarm(self, next, &clock, ctx);
    }

    fn refill(&mut self, from: TimerKey, limit: usize) {
        let (mut timers, engine) = (Vec::new(), self.shared.storage.engine());
        let read = scan_rows::<Error>(&**engine, &table::TABLE, &table::key(from), None, limit, |key, _| {
            timers.push(table::decode_key(key)?);
            Ok(())
        });
        match read {
            Ok(count) => self.schedule.refill(&timers, count < limit, &mut self.effects),
            Err(error) => fail_start(&error),
        }
    }

    /// Tells every group, and forgets the rows once all of them have dealt with the messages.
    fn end(&mut self, ended: Vec<TimerKey>, ctx: &mut Context<Self>) {
        let due = match self.messages(&ended) {
            Ok(due) => due,
            Err(error) => fail_start(&error),
        };
        let shared = Arc::clone(&self.shared);
        let dealt_with = async move {
            let told = told(&shared, due).await;
            if told.is_ok() {
                let mut batch = WriteBatch::new(shared.clock.now());
                for timer in &ended {
                    batch.delete(&table::TABLE, table::key(*timer));
                }
                // Rows that stay for now are met again after the next restart: the groups are done with them then.
                let _ = shared.storage.write_and_wait(batch, Flush::Buffered).await;
                return Vec::new();
            }
            ended
        };
        ctx.wait(dealt_with.into_actor(self).map(|left, actor, ctx| {
            actor.tell_again(left, ctx);
            actor.go_on(ctx);
        }));
    }

    /// The messages of these timers; a timer without a row was dealt with by an earlier run of this actor.
    fn messages(&self, timers: &[TimerKey]) -> Result<Vec<(QueueKey, QueueOffset)>> {
        let engine = self.shared.storage.engine();
        let mut messages = Vec::with_capacity(timers.len());
        for timer in timers {
            if let Some(row) = engine.get(&table::TABLE, &table::key(*timer))? {
                let ExpiryRow { queue, offset } = ExpiryRow::decode(&row)?;
                messages.push((queue, offset));
            }
        }
        Ok(messages)
    }

    fn tell_again(&mut self, timers: Vec<TimerKey>, ctx: &mut Context<Self>) {
        if timers.is_empty() || self.shared.check_running().is_err() {
            return;
        }
        let pause = self.shared.clock.sleep(TELL_AGAIN_AFTER);
        ctx.spawn(pause.into_actor(self).map(move |(), actor: &mut Self, ctx: &mut Context<Self>| {
            timers.into_iter().for_each(|timer| actor.schedule.schedule(timer));
            actor.go_on(ctx);
        }));
    }
}

/// Tells every group and waits until each has dealt with what concerns it.
async fn told(shared: &Shared, messages: Vec<(QueueKey, QueueOffset)>) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let groups = shared.groups.all();
    let asked = groups.iter().map(|(_, group)| {
        group.ask(|reply| {
            let messages = messages.clone();
            GroupRequest::Withdraw(Withdrawal { messages, why: DeadReason::Expired, reply: Some(reply) })
        })
    });
    join_all(asked).await.into_iter().collect()
}
