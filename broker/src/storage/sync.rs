//! Group commit: one thread makes everything applied so far durable and answers everybody who waited for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cuemq_storage_api::{Engine, ErrorKind, StorageError};

use super::write::Landed;
use crate::limits::FLUSH_INTERVAL;
use crate::message::AckLevel;
use crate::state::StateCell;

/// Turns that the thread leaves to others, with its eyes open, before it goes on or to sleep after a sync: some tens of
/// microseconds where nobody wants them, and less than a wake-up takes where somebody does.
const LINGERING_TURNS: usize = 256;
/// Whoever waits already is not kept waiting for others for longer than this, a large sync: on a busy machine a turn may
/// take milliseconds to come back.
const LINGERING_AT_MOST: Duration = Duration::from_millis(1);
/// So few records are awaited again in full before the next sync: what it costs hardly depends on how many they are.
const SMALL_PARTY_RECORDS: usize = 64;
/// Of more records this part: the rest sends while they are synced.
const LARGE_PARTY_SHARE: usize = 4;

/// How many records the next sync waits for, while the thread lingers, when so many have just been answered: those who
/// got their answers are about to send again. Without this the first of them has a sync of his own, for which all others
/// wait. Measured in turns: a quarter more messages from 16 and from 64 writers, a tenth from 256 and 1,024; waiting for all
/// of these would be a fifth less.
fn party(answered: usize) -> usize {
    answered.min(SMALL_PARTY_RECORDS).max(answered / LARGE_PARTY_SHARE)
}

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
    /// Records of all that wait, as [`Landed::records`] counts them.
    records: usize,
    unsynced: bool,
    stopping: bool,
}

impl Queue {
    /// All that wait, for the sync that begins now and covers whatever was applied.
    fn take(&mut self) -> Vec<Landed> {
        (self.records, self.unsynced) = (0, false);
        std::mem::take(&mut self.waiting)
    }
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
        queue.records += landed.records();
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
        let mut wanted = 0;
        while let Some(waiting) = self.next(wanted) {
            wanted = party(waiting.iter().map(Landed::records).sum());
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

    /// Looks for a while whether so many records wait, without going to sleep.
    #[expect(clippy::disallowed_methods, reason = "how long a thread looks decides nothing about a message")]
    fn linger(&self, wanted: usize) -> MutexGuard<'_, Queue> {
        let begun = Instant::now();
        for _ in 0..LINGERING_TURNS {
            let queue = self.lock();
            let enough = queue.records >= wanted || queue.stopping;
            if enough || queue.records > 0 && begun.elapsed() >= LINGERING_AT_MOST {
                return queue;
            }
            drop(queue);
            std::thread::yield_now();
        }
        self.lock()
    }

    /// Waits for something to sync; `None` when the thread may end.
    fn next(&self, wanted: usize) -> Option<Vec<Landed>> {
        let mut queue = self.linger(wanted);
        loop {
            if !queue.waiting.is_empty() {
                return Some(queue.take());
            }
            if queue.stopping {
                return None;
            }
            if queue.unsynced {
                let (guard, timeout) =
                    self.changed.wait_timeout(queue, FLUSH_INTERVAL).unwrap_or_else(PoisonError::into_inner);
                queue = guard;
                if timeout.timed_out() {
                    return Some(queue.take());
                }
            } else {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_awaited_in_full_and_many_in_part() {
        let parties = [0, 1, 2, 63, 64, 65, 256, 400, 1024, 100_000].map(party);
        assert_eq!(parties, [0, 1, 2, 63, 64, 64, 64, 100, 256, 25_000]);
    }

    #[test]
    fn lingering_ends_though_nobody_comes() {
        let shared = Shared::default();
        assert_eq!(shared.linger(1000).records, 0);
        shared.lock().records = 1;
        assert_eq!(shared.linger(1000).records, 1);
    }

    #[test]
    fn whoever_makes_up_the_party_ends_it() {
        let shared = Shared::default();
        shared.lock().records = 64;
        assert_eq!(shared.linger(64).records, 64);
    }
}
