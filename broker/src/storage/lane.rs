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
    /// Whether the thread waits and has not been woken: a wake-up is a system call, and most pushes meet a busy thread.
    idle: bool,
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

    /// Hands a job to the thread. It is refused once the lane stops, and as `Full` when too many wait. An empty job asks
    /// whether everything before it has landed, and a refusal would say so too early: it always finds room, and whoever
    /// asks waits for the answer before asking again.
    pub(super) fn push(&self, job: WriteJob) {
        let mut queue = self.shared.lock();
        if queue.stopping {
            drop(queue);
            job.refuse(&SharedError::new(Error::closed("the broker")));
        } else if queue.jobs.len() >= MAX_LANE_JOBS && !job.batch.is_empty() {
            drop(queue);
            let text = format!("{MAX_LANE_JOBS} writes wait for the engine: wait for some of them, then retry");
            job.refuse(&SharedError::new(Error::new(ErrorKind::Full, text)));
        } else {
            queue.jobs.push_back(job);
            let wake = std::mem::take(&mut queue.idle);
            drop(queue);
            if wake {
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
            queue.idle = true;
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.idle = false;
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use bytes::Bytes;
    use cuemq_storage_api::{Table, Timestamp, WriteBatch};

    use super::*;
    use crate::settings::Flush;
    use crate::storage::write::WriteResult;

    const TABLE: Table = Table::named("t");

    fn job(rows: usize, done: impl FnOnce(WriteResult) + Send + 'static) -> WriteJob {
        let mut batch = WriteBatch::new(Timestamp::MIN);
        for row in 0..rows {
            batch.put(&TABLE, row.to_be_bytes().to_vec(), Bytes::new());
        }
        WriteJob { batch, flush: Flush::Buffered, applied: None, done: Box::new(done) }
    }

    fn waiting(lane: &Lane) -> usize {
        lane.shared.lock().jobs.len()
    }

    #[test]
    fn a_lane_that_nobody_serves_refuses_rather_than_grows() {
        let lane = Lane::new();
        for _ in 0..MAX_LANE_JOBS {
            lane.push(job(1, |_| {}));
        }
        let (answer, answers) = channel();
        let refused = answer.clone();
        lane.push(job(1, move |result| refused.send(result.map(drop).map_err(|error| error.get().kind())).unwrap()));
        assert_eq!(answers.try_recv().unwrap(), Err(ErrorKind::Full));
        assert_eq!(waiting(&lane), MAX_LANE_JOBS);
        // Whoever asks whether what was handed over has landed must not be told so while it has not.
        let landed = answer.clone();
        lane.push(job(0, move |result| landed.send(result.map(drop).map_err(|error| error.get().kind())).unwrap()));
        assert!(answers.try_recv().is_err());
        assert_eq!(waiting(&lane), MAX_LANE_JOBS + 1);
        lane.stop();
        lane.push(job(1, move |result| answer.send(result.map(drop).map_err(|error| error.get().kind())).unwrap()));
        assert_eq!(answers.try_recv().unwrap(), Err(ErrorKind::Closed));
    }

    #[test]
    fn what_waits_is_taken_in_order_up_to_one_batch() {
        let lane = Lane::new();
        let sizes = [1, MAX_DRAIN_RECORDS - 1, 1, MAX_DRAIN_RECORDS + 1, 2];
        for rows in sizes {
            lane.push(job(rows, |_| {}));
        }
        let take = || lane.shared.next().unwrap().iter().map(|job| job.batch.len()).collect::<Vec<_>>();
        assert_eq!(take(), sizes[..2]);
        assert_eq!(take(), sizes[2..3]);
        assert_eq!(take(), sizes[3..4], "one that is larger alone goes alone");
        assert_eq!(take(), sizes[4..]);
        lane.stop();
        assert!(lane.shared.next().is_none());
    }
}
