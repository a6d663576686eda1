//! One timer of an actor, moved as its machine wishes.

use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle, WrapFuture};
use cuemq_storage_api::Timestamp;

use crate::clock::Clock;

/// The time at which an actor is woken next, if at all.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    set: Option<(Timestamp, SpawnHandle)>,
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
        ctx.cancel_future(earlier);
    }
    let Some(at) = at else { return };
    let sleep = clock.sleep_until(at).into_actor(actor).map(|(), actor: &mut A, ctx: &mut Context<A>| {
        actor.alarm().set = None;
        actor.ring(ctx);
    });
    actor.alarm().set = Some((at, ctx.spawn(sleep)));
}
