//! The write lane of an engine whose writes may stall: one thread takes what waits, merges it and applies it once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::Inner;
use super::write::WriteJob;
use crate::error::{Error, ErrorKind, SharedError};
use crate::limits::{MAX_DRAIN_BYTES, MAX_DRAIN_RECORDS, MAX_LANE_JOBS};

#[derive(Default)]
struct Queue {
    jobs: VecDeque<WriteJob>,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

pub(super) struct Lane {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self { shared: Arc::default(), thread: Mutex::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "one of the broker's own threads, joined in `stop`")]
    pub(super) fn start(&self, inner: Weak<Inner>) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("cuemq-lane".into()).spawn(move || {
            while let Some(jobs) = shared.next() {
                match inner.upgrade() {
                    Some(inner) => inner.apply(jobs),
                    None => return,
                }
            }
        })?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    pub(super) fn push(&self, job: WriteJob) {
        let mut queue = self.shared.lock();
        if queue.stopping {
            drop(queue);
            job.refuse(&SharedError::new(Error::closed("the broker")));
        } else if queue.jobs.len() >= MAX_LANE_JOBS {
            drop(queue);
            let text = format!("{MAX_LANE_JOBS} writes wait for the engine: wait for some of them, then retry");
            job.refuse(&SharedError::new(Error::new(ErrorKind::Full, text)));
        } else {
            queue.jobs.push_back(job);
            let first = queue.jobs.len() == 1;
            drop(queue);
            if first {
                self.shared.changed.notify_one();
            }
        }
    }

    /// Ends the thread once everything pushed has been applied.
    pub(super) fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The lane's own code does not panic; an engine's panic is caught where it is called.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, up to one merged batch; `None` when the thread may end.
    fn next(&self) -> Option<Vec<WriteJob>> {
        let mut queue = self.lock();
        while queue.jobs.is_empty() {
            if queue.stopping {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut records, mut bytes, mut count) = (0, 0, 0);
        for job in &queue.jobs {
            records += job.batch.len();
            bytes += job.batch.payload_bytes();
            if count > 0 && (records > MAX_DRAIN_RECORDS || bytes > MAX_DRAIN_BYTES) {
                break;
            }
            count += 1;
        }
        Some(queue.jobs.drain(..count).collect())
    }
}
