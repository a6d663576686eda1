//! The engine's one thread: it fills room ahead of the writer, has the next window's pages ready, and writes entries of
//! consume queues.
//!
//! All of it is also done by the writer, later and in smaller pieces, so the thread may lag, fail or be absent.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use cuemq_storage_api::Result;

use crate::commit_log::ahead::Rest;
use crate::commit_log::no_room;
use crate::store::Store;

const NAME: &str = "cuemq-mmap-prepare";

/// Runs the thread; it ends with [`Preparer::stop`].
#[derive(Debug)]
pub(crate) struct Preparer {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    store: Arc<Store>,
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Preparer {
    /// No thread at all.
    pub(crate) fn none() -> Self {
        Self { running: Mutex::new(None) }
    }

    /// Starts the thread. Where the operating system has none to give, the store works without.
    pub(crate) fn start(store: &Arc<Store>) -> Self {
        let is_ending = Arc::new(AtomicBool::new(false));
        let (shared, ending) = (Arc::clone(store), Arc::clone(&is_ending));
        #[expect(clippy::disallowed_methods, reason = "the one place where this thread is started; `stop` joins it")]
        let started = Builder::new().name(NAME.to_owned()).spawn(move || work(&shared, &ending));
        match started {
            Ok(thread) => {
                let running = Running { store: Arc::clone(store), is_ending, thread };
                Self { running: Mutex::new(Some(running)) }
            }
            Err(error) => {
                tracing::warn!(store = store.files.describe(), %error, "no thread {NAME}: the writer prepares room");
                Self::none()
            }
        }
    }

    /// Ends the thread and waits for it: at most for one step of its work.
    pub(crate) fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { store, is_ending, thread }) = running else { return };
        is_ending.store(true, Ordering::SeqCst);
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::warn!(store = store.files.describe(), "the thread {NAME} had panicked");
        }
    }
}

fn work(store: &Store, is_ending: &AtomicBool) {
    let is_ending = || is_ending.load(Ordering::SeqCst) || store.health.check_writable("prepare").is_err();
    let has_to_spill = || store.spills_from.load(Ordering::Relaxed) != 0;
    while !is_ending() {
        store.ahead.take_down();
        if let Some(task) = store.ahead.task() {
            if let Err(error) = store.ahead.carry_out(task) {
                store.is_unprepared(&error);
            }
        } else if !has_to_spill() {
            let is_idle = || !is_ending() && store.ahead.task().is_none() && !has_to_spill();
            if !store.ahead.lacks_reserve() {
                store.ahead.sleep(|| is_idle() && !store.ahead.lacks_reserve());
            } else if let Some(rest) = store.ahead.rest(is_idle) {
                store.fill_reserve(&rest, is_ending);
            }
        }
        // Taken before the work, so that a tail that grows meanwhile is seen again.
        let spills_from = store.spills_from.swap(0, Ordering::Relaxed);
        if spills_from != 0
            && let Err(error) = store.spill("prepare", spills_from)
        {
            tracing::debug!(store = store.files.describe(), %error, "the consume queues could not be written");
        }
    }
}

impl Store {
    /// Fills the reserve while the log is at rest, and syncs each step of it, so that no sync of frames has to.
    fn fill_reserve(&self, rest: &Rest, is_ending: impl Fn() -> bool) {
        while !is_ending() {
            let more = self.ahead.fill_reserve(rest).unwrap_or_else(|error| self.is_unprepared(&error));
            // A failed sync has poisoned the store, which says so to whoever writes next.
            if !more || self.sync_all("prepare").is_err() {
                return;
            }
        }
    }

    /// The writer goes on without.
    pub(crate) fn is_unprepared(&self, error: &io::Error) -> bool {
        tracing::debug!(store = self.files.describe(), %error, "room could not be prepared");
        false
    }

    /// Fills room for so many bytes behind the log's end; see [`MmapEngine::prepare_room`](crate::MmapEngine::prepare_room).
    pub(crate) fn prepare_room(&self, bytes: u64) -> Result<()> {
        let room = self.writer("prepare_room")?.log.room();
        let upto = room.used().saturating_add(bytes).min(room.segment_bytes());
        room.fill(upto).map_err(|error| no_room("prepare_room", &room.path(), error, &self.health))?;
        self.sync_all("prepare_room").map(|_| ())
    }
}

#[cfg(test)]
#[path = "tests/reserve.rs"]
mod tests;
