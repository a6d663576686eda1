//! Runs the engine's maintenance now and then, on a thread that may block.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use cuemq_storage_api::{Engine, ErrorKind, Outcome, StorageError};

use crate::clock::Clock;
use crate::limits::MAINTENANCE_INTERVAL;
use crate::state::StateCell;

pub(super) struct MaintenanceThread {
    stopping: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl MaintenanceThread {
    #[expect(clippy::disallowed_methods, reason = "one of the broker's own threads, joined in `stop`")]
    pub(super) fn start(engine: Arc<dyn Engine>, clock: Clock, state: StateCell) -> std::io::Result<Self> {
        let stopping = Arc::new((Mutex::new(false), Condvar::new()));
        let watched = Arc::clone(&stopping);
        let thread = std::thread::Builder::new().name("cuemq-maintain".into()).spawn(move || {
            while wait(&watched) {
                maintain(&*engine, &clock, &state);
            }
        })?;
        Ok(Self { stopping, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn stop(&self) {
        *self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.1.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the engine is caught where it is called.
            let _ = thread.join();
        }
    }
}

/// Waits one interval; false when the thread shall end.
fn wait(stopping: &(Mutex<bool>, Condvar)) -> bool {
    let guard = stopping.0.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = stopping.1.wait_timeout_while(guard, MAINTENANCE_INTERVAL, |stop| !*stop);
    let (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
    !*guard
}

fn maintain(engine: &dyn Engine, clock: &Clock, state: &StateCell) {
    let done = catch_unwind(AssertUnwindSafe(|| engine.maintain(clock.now())))
        .unwrap_or_else(|_| Err(StorageError::unknown(ErrorKind::Poisoned, "maintain", "the engine panicked")));
    match done {
        Ok(done) if done.freed_bytes > 0 || done.expired_records > 0 => {
            tracing::info!(done.freed_bytes, done.expired_records, "records expired");
        }
        Ok(_) => {}
        Err(error) if error.outcome() == Outcome::Unknown || error.kind() == ErrorKind::Poisoned => {
            state.fail(&error.to_string());
        }
        Err(error) => tracing::warn!(%error, "maintenance is put off"),
    }
}
