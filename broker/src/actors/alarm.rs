//! One timer of an actor, moved as its machine wishes.
//!
//! It is not cancelled by actix: a restart numbers futures anew but keeps the cancellations that were not carried out
//! yet, so that one from before a panic would hit the first timer after it.

use actix::{Actor, ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::Timestamp;
use futures_util::future::{AbortHandle, abortable};

use crate::clock::Clock;

/// The time at which an actor is woken next, if at all.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    set: Option<(Timestamp, AbortHandle)>,
}

impl Alarm {
    /// Whether it rings at this time or before.
    pub(super) fn rings_by(&self, at: Timestamp) -> bool {
        self.set.as_ref().is_some_and(|(set, _)| *set <= at)
    }
}

/// An actor with an alarm.
pub(super) trait Alarmed: Actor<Context = Context<Self>> {
    /// Its alarm.
    fn alarm(&mut self) -> &mut Alarm;

    /// What it does when the alarm rings; it sets the next one itself.
    fn ring(&mut self, ctx: &mut Context<Self>);
}

/// Has `actor` woken at `at` and at no other time.
pub(super) fn set_alarm<A: Alarmed>(actor: &mut A, at: Option<Timestamp>, clock: &Clock, ctx: &mut Context<A>) {
    if actor.alarm().set.as_ref().map(|(at, _)| *at) == at {
        return;
    }
    if let Some((_, earlier)) = actor.alarm().set.take() {
        earlier.abort();
    }
    let Some(at) = at else { return };
    let (sleep, handle) = abortable(clock.sleep_until(at));
    actor.alarm().set = Some((at, handle));
    ctx.spawn(sleep.into_actor(actor).map(|slept, actor: &mut A, ctx: &mut Context<A>| {
        if slept.is_ok() {
            actor.alarm().set = None;
            actor.ring(ctx);
        }
    }));
}
