//! Keeps an actor alive across panics.
//!
//! actix's own `Supervisor` restarts an actor that stops itself, but a panic ends actor, mailbox and address. This
//! one polls the actor's future inside `catch_unwind`: a panic loses the request at hand and nothing else. The actor
//! pauses (longer each time), rebuilds its state from storage in [`Supervised::restarting`] and goes on with the same
//! address and the same mailbox. Too many panics within the window end it: whoever supervises is told, what waited
//! is answered, and the broker shows the failure.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};

use actix::dev::{ContextFut, channel};
use actix::{Actor, Addr, Context, Supervised};
use actix_rt::ArbiterHandle;

use crate::clock::Clock;
use crate::domain::restart::{Decision, RestartBudget, RestartSettings};
use crate::error::Error;
use crate::limits::MAILBOX_SLOTS;

/// Who an actor is: its kind and its own name, as logs and failures show it.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) kind: &'static str,
    pub(crate) name: Arc<str>,
}

impl Identity {
    pub(crate) fn new(kind: &'static str, name: impl fmt::Display) -> Self {
        Self { kind, name: name.to_string().into() }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Hears of an actor that is given up: who and why.
pub(crate) type GaveUp = Arc<dyn Fn(&Identity, &str) + Send + Sync>;

/// What an actor's supervisor needs besides the actor.
#[derive(Clone)]
pub(crate) struct Supervision {
    pub(crate) clock: Clock,
    /// Restarts of all actors of the broker since it opened.
    pub(crate) restarts: Arc<AtomicU64>,
    /// Called once an actor is given up, with who and why.
    pub(crate) gave_up: GaveUp,
}

impl fmt::Debug for Supervision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervision").finish_non_exhaustive()
    }
}

impl Supervision {
    /// Starts an actor on an arbiter. Its address works at once and for as long as the actor is kept alive.
    /// `make` runs on the arbiter; `orphaned` runs when the actor is given up, to answer what waits for it.
    pub(crate) fn start<A>(
        &self,
        arbiter: &ArbiterHandle,
        identity: Identity,
        make: impl FnOnce() -> A + Send + 'static,
        orphaned: impl FnOnce() + Send + 'static,
    ) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + Supervised,
    {
        let (sender, receiver) = channel::channel(MAILBOX_SLOTS);
        let address = Addr::new(sender);
        let supervision = self.clone();
        arbiter.spawn_fn(move || {
            let mut watch = Watch { supervision, identity, orphaned: Some(Box::new(orphaned)) };
            match catch_unwind(AssertUnwindSafe(make)) {
                Ok(actor) => {
                    let running = Context::with_receiver(receiver).into_future(actor);
                    let budget = RestartBudget::new(RestartSettings::default());
                    actix_rt::spawn(Guarded { running: Some(Box::new(running)), budget, pause: None, watch });
                }
                Err(panic) => watch.give_up(&panic_text(&*panic)),
            }
        });
        address
    }
}

struct Watch {
    supervision: Supervision,
    identity: Identity,
    orphaned: Option<Box<dyn FnOnce() + Send>>,
}

impl Watch {
    fn give_up(&mut self, cause: &str) {
        (self.supervision.gave_up)(&self.identity, cause);
        if let Some(orphaned) = self.orphaned.take() {
            orphaned();
        }
    }
}

/// The future that an arbiter runs for one actor.
struct Guarded<A: Actor<Context = Context<A>> + Supervised> {
    running: Option<Box<ContextFut<A, Context<A>>>>,
    budget: RestartBudget,
    pause: Option<Pin<Box<actix_rt::time::Sleep>>>,
    watch: Watch,
}

impl<A: Actor<Context = Context<A>> + Supervised> Guarded<A> {
    /// Decides what follows a panic; false when the actor is given up. How many panics are too many is counted by the
    /// broker's clock. The pause is one of real time: it spares the machine, and a program whose test has stopped the
    /// clock gets its actor back without turning it.
    #[allow(clippy::disallowed_methods, reason = "see above; no rule of the broker depends on how long it takes")]
    fn after_panic(&mut self, panic: &(dyn Any + Send)) -> bool {
        let cause = panic_text(panic);
        let identity = &self.watch.identity;
        match self.budget.on_panic(self.watch.supervision.clock.now()) {
            Decision::RestartAfter(pause) => {
                tracing::warn!(actor = %identity, cause, ?pause, "an actor panicked and will be restarted");
                self.watch.supervision.restarts.fetch_add(1, Ordering::Relaxed);
                self.pause = Some(Box::pin(actix_rt::time::sleep(pause)));
                true
            }
            Decision::GiveUp => {
                tracing::error!(actor = %identity, cause, "an actor panicked too often and is given up");
                let running = self.running.take();
                // Dropping it may run its `stopping` and `stopped`, which may panic again.
                if catch_unwind(AssertUnwindSafe(|| drop(running))).is_err() {
                    tracing::error!(actor = %identity, "the actor panicked again while it was dropped");
                }
                self.watch.give_up(&cause);
                false
            }
        }
    }
}

impl<A: Actor<Context = Context<A>> + Supervised> Future for Guarded<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            let Some(running) = &mut this.running else { return Poll::Ready(()) };
            let step = if let Some(pause) = &mut this.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                this.pause = None;
                catch_unwind(AssertUnwindSafe(|| if running.restart() { None } else { Some(Poll::Ready(())) }))
            } else {
                catch_unwind(AssertUnwindSafe(|| Some(Pin::new(&mut **running).poll(cx))))
            };
            match step {
                Ok(Some(Poll::Ready(()))) => {
                    this.running = None;
                    return Poll::Ready(());
                }
                Ok(Some(Poll::Pending)) => return Poll::Pending,
                Ok(None) => {}
                Err(panic) if this.after_panic(&*panic) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// Ends the actor's current run because its state cannot be read back: to its supervisor one more failed start.
pub(crate) fn fail_start(error: &Error) -> ! {
    resume_unwind(Box::new(format!("the actor's state cannot be read back: {error}")))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").to_owned()
}
