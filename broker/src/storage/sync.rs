//! Group commit: one thread makes everything applied so far durable and answers everybody who waited for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cuemq_storage_api::{Engine, ErrorKind, StorageError};

use super::write::Landed;
use crate::limits::FLUSH_INTERVAL;
use crate::message::AckLevel;
use crate::state::StateCell;

/// Turns that the thread leaves to others, with its eyes open, before it goes to sleep after a sync: some tens of
/// microseconds where nobody wants them, and less than a wake-up takes where somebody does.
const LINGERING_TURNS: usize = 256;
/// It lingers only where a sync had so few waiters that their next sends are waited for and nothing else: then being woken
/// would be a third of the time between two syncs. Where there are more, they need the processor themselves.
const MOST_WAITERS_TO_LINGER_FOR: usize = 16;

pub(super) struct SyncThread {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Bounded by the limits on what is in flight: every waiter holds its senders' permits.
#[derive(Default)]
struct Queue {
    waiting: Vec<Landed>,
    unsynced: bool,
    stopping: bool,
}

impl SyncThread {
    #[expect(clippy::disallowed_methods, reason = "one of the broker's own threads, joined in `stop`")]
    pub(super) fn start(engine: Arc<dyn Engine>, state: StateCell) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let run = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("cuemq-sync".into()).spawn(move || run.serve(&*engine, &state))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn wait(&self, landed: Landed) {
        let mut queue = self.shared.lock();
        queue.waiting.push(landed);
        let first = queue.waiting.len() == 1;
        drop(queue);
        if first {
            self.shared.changed.notify_one();
        }
    }

    /// Asks for a sync within the flush interval.
    pub(super) fn note_unsynced(&self) {
        let mut queue = self.shared.lock();
        if !std::mem::replace(&mut queue.unsynced, true) {
            drop(queue);
            self.shared.changed.notify_one();
        }
    }

    /// Ends the thread once everybody who waits has an answer.
    pub(super) fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic there has been turned into the broker's failure already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, engine: &dyn Engine, state: &StateCell) {
        let mut lingers = false;
        while let Some(waiting) = self.next(lingers) {
            lingers = (1..=MOST_WAITERS_TO_LINGER_FOR).contains(&waiting.len());
            let span = tracing::trace_span!("sync", waiters = waiting.len()).entered();
            let synced = catch_unwind(AssertUnwindSafe(|| engine.sync()))
                .unwrap_or_else(|_| Err(StorageError::unknown(ErrorKind::Poisoned, "sync", "the engine panicked")));
            drop(span);
            let synced = synced.and_then(|mark| {
                let covered = waiting.iter().all(|landed| landed.mark() <= mark);
                let short =
                    || StorageError::unknown(ErrorKind::Poisoned, "sync", "the sync covers less than was applied");
                covered.then_some(()).ok_or_else(short)
            });
            if let Err(error) = &synced {
                state.fail(&error.to_string());
            }
            for landed in waiting {
                let answer = AssertUnwindSafe(|| match &synced {
                    Ok(()) => landed.acknowledge(AckLevel::Durable),
                    Err(error) => landed.unknown(error),
                });
                if catch_unwind(answer).is_err() {
                    tracing::error!("a callback panicked while it was told of a durable write");
                }
            }
        }
    }

    /// Looks for a while whether somebody waits, without going to sleep.
    fn linger(&self) -> MutexGuard<'_, Queue> {
        for _ in 0..LINGERING_TURNS {
            let queue = self.lock();
            if !queue.waiting.is_empty() || queue.stopping {
                return queue;
            }
            drop(queue);
            std::thread::yield_now();
        }
        self.lock()
    }

    /// Waits for something to sync; `None` when the thread may end.
    fn next(&self, lingers: bool) -> Option<Vec<Landed>> {
        let mut queue = if lingers { self.linger() } else { self.lock() };
        loop {
            if !queue.waiting.is_empty() {
                queue.unsynced = false;
                return Some(std::mem::take(&mut queue.waiting));
            }
            if queue.stopping {
                return None;
            }
            if queue.unsynced {
                let (guard, timeout) =
                    self.changed.wait_timeout(queue, FLUSH_INTERVAL).unwrap_or_else(PoisonError::into_inner);
                queue = guard;
                if timeout.timed_out() {
                    queue.unsynced = false;
                    return Some(std::mem::take(&mut queue.waiting));
                }
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
