//! Requests that carry payload wait here, beside the actor's own mailbox: a burst costs one wake-up, what waits
//! survives a panic of the actor, and the bound is the senders' permits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, WrapFuture};

/// Tells an actor that its inbox has something for it. At most one is under way per inbox.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Drain;

/// The waiting requests of one actor.
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
}

/// The inbox's actor is gone.
#[derive(Debug)]
pub(crate) struct Closed;

struct State<T> {
    waiting: VecDeque<T>,
    /// Whether a `Drain` is under way or being handled.
    awake: bool,
    closed: bool,
}

impl<T> Inbox<T> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { waiting: VecDeque::new(), awake: false, closed: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request in and wakes the actor if it sleeps; gives the request back when the actor is gone.
    pub(crate) fn push<A>(&self, request: T, actor: &Addr<A>) -> Result<(), T>
    where
        A: Actor<Context = Context<A>> + Handler<Drain>,
    {
        let mut request = Some(request);
        let put = |waiting: &mut VecDeque<T>| waiting.extend(request.take());
        match self.add(put, || post(actor, Drain)) {
            Ok(()) => Ok(()),
            Err(Closed) => Err(request.take().expect("a closed inbox takes nothing")),
        }
    }

    /// Has `put` add to what waits, and calls `wake` if the actor sleeps: it has to send it a [`Drain`].
    ///
    /// # Errors
    /// When the actor is gone; then neither was called.
    pub(crate) fn add<R>(&self, put: impl FnOnce(&mut VecDeque<T>) -> R, wake: impl FnOnce()) -> Result<R, Closed> {
        let mut state = self.lock();
        if state.closed {
            return Err(Closed);
        }
        let put = put(&mut state.waiting);
        let asleep = !std::mem::replace(&mut state.awake, true);
        drop(state);
        if asleep {
            wake();
        }
        Ok(put)
    }

    /// The next request; `None` puts the inbox to sleep: the next push sends a `Drain` again.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        let request = state.waiting.pop_front();
        if request.is_none() {
            state.awake = false;
        }
        request
    }

    /// The next request, for an actor that ends each `Drain` with [`rest`](Inbox::rest) or with another one.
    pub(crate) fn next(&self) -> Option<T> {
        self.lock().waiting.pop_front()
    }

    /// Whether nothing waits; if so, the inbox goes to sleep.
    pub(crate) fn rest(&self) -> bool {
        let mut state = self.lock();
        state.awake = !state.waiting.is_empty();
        !state.awake
    }

    /// After a restart of the actor: whether it has to drain what waited. Keeps the inbox awake if so.
    pub(crate) fn wake_after_restart(&self) -> bool {
        !self.rest()
    }

    /// A sum over what waits.
    pub(crate) fn sum(&self, of: impl Fn(&T) -> usize) -> usize {
        self.lock().waiting.iter().map(of).sum()
    }

    /// Refuses every later push and hands out what waits.
    pub(crate) fn close(&self) -> VecDeque<T> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.sum(|_| 1)).finish_non_exhaustive()
    }
}

/// Sends an actor its next [`Drain`] once its neighbours on the thread have had their turns.
pub(crate) fn go_on<A>(actor: &A, ctx: &mut Context<A>)
where
    A: Actor<Context = Context<A>> + Handler<Drain>,
{
    // Whoever has left its turn last may be the first to get it back, so it leaves a second one.
    let neighbours = async {
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    };
    ctx.wait(neighbours.into_actor(actor));
    ctx.notify(Drain);
}

/// Sends a control message that nobody waits for. Only for messages of which few can be under way: the mailbox does
/// not bound them. An actor that is gone has told the root before, so the loss is known.
#[expect(clippy::disallowed_methods, reason = "its one home; see above")]
pub(crate) fn post<A, M>(actor: &Addr<A>, message: M)
where
    A: Actor<Context = Context<A>> + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    actor.do_send(message);
}
