//! The broker's way to its engine: every write passes here, so that acknowledgement, visibility and failure are
//! decided in one place.
//!
//! A write is applied on the caller's thread when the engine never stalls, and on the lane's thread otherwise. What
//! must be durable then waits for the sync thread, which makes everything applied so far durable with one sync and
//! answers everybody who waited (group commit). Reads go straight to the engine.

mod lane;
mod maintenance;
mod passage;
mod scan;
mod span;
mod sync;
mod tail;
mod write;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cuemq_storage_api::{Capabilities, Engine, QueueKey, Result, StorageError, Timestamp, WriteBatch};

pub(crate) use passage::Passage;
pub(crate) use scan::scan_rows;
pub(crate) use tail::{QueueTail, Signal};
pub(crate) use write::{Done, Stored, WriteJob, WriteResult};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, SharedError};
use crate::settings::Flush;
use crate::state::StateCell;
use lane::Lane;
use maintenance::MaintenanceThread;
use passage::Way;
use sync::SyncThread;
use tail::Tails;
use write::Landed;

/// Cheap to clone; all clones share the engine.
#[derive(Clone)]
pub(crate) struct StorageHandle {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    capabilities: Capabilities,
    tails: Tails,
    state: StateCell,
    sync: SyncThread,
    maintenance: MaintenanceThread,
    lane: Option<Lane>,
    way: Way,
}

impl StorageHandle {
    pub(crate) fn start(engine: Arc<dyn Engine>, clock: Clock, state: StateCell) -> std::io::Result<Self> {
        let capabilities = engine.capabilities();
        let sync = SyncThread::start(Arc::clone(&engine), state.clone())?;
        let maintenance = MaintenanceThread::start(Arc::clone(&engine), clock, state.clone())?;
        let lane = if capabilities.apply_may_stall { Some(Lane::new()) } else { None };
        let inner = Inner {
            engine,
            capabilities,
            tails: Tails::default(),
            state,
            sync,
            maintenance,
            lane,
            way: Way::default(),
        };
        let handle = Self { inner: Arc::new(inner) };
        if let Some(lane) = &handle.inner.lane {
            lane.start(Arc::downgrade(&handle.inner))?;
        }
        Ok(handle)
    }

    /// The engine, for reads.
    pub(crate) fn engine(&self) -> &Arc<dyn Engine> {
        &self.inner.engine
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// How far consumers may read a queue; made at the first question, at the end that the engine knows.
    pub(crate) fn tail(&self, queue: &QueueKey) -> Result<Arc<QueueTail>> {
        self.inner.tails.get(queue, &*self.inner.engine)
    }

    /// Writes a batch and calls `done` exactly once: on this thread, the lane's or the sync thread.
    pub(crate) fn write(&self, batch: WriteBatch, flush: Flush, done: impl FnOnce(WriteResult) + Send + 'static) {
        self.submit(WriteJob { batch, flush, applied: None, done: Box::new(done) });
    }

    fn submit(&self, mut job: WriteJob) {
        if job.flush == Flush::Durable {
            job.batch.expect_sync();
        }
        if let Some(cause) = self.inner.state.failure() {
            job.refuse(&unavailable(&cause));
            return;
        }
        match &self.inner.lane {
            Some(lane) => match job.batch.check() {
                Ok(()) => lane.push(job),
                // Before it is merged with others, which it would take down with it.
                Err(invalid) => job.refuse(&SharedError::new(invalid.into())),
            },
            // The engine checks it.
            None => self.inner.apply(vec![job]),
        }
    }

    /// Writes a batch and resolves with the outcome.
    pub(crate) async fn write_and_wait(&self, batch: WriteBatch, flush: Flush) -> std::result::Result<Stored, Error> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.write(batch, flush, move |result| {
            // A caller that has gone away does not need the answer.
            let _ = sender.send(result);
        });
        match receiver.await {
            Ok(result) => result.map_err(|shared| shared.get()),
            Err(_) => Err(Error::lost("the write")),
        }
    }

    /// Resolves when every write handed over before has been applied or refused.
    pub(crate) async fn landed(&self) {
        // An empty batch changes nothing; whether it is refused does not matter.
        let _ = self.write_and_wait(WriteBatch::new(Timestamp::MIN), Flush::Buffered).await;
    }

    /// Ends the threads after everything handed over has been answered, then closes the engine. Blocks.
    pub(crate) fn close(&self) -> Result<()> {
        if let Some(lane) = &self.inner.lane {
            lane.stop();
        }
        self.inner.sync.stop();
        self.inner.maintenance.stop();
        self.inner.engine.close()
    }
}

impl fmt::Debug for StorageHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageHandle").field("engine", &self.inner.capabilities.name).finish_non_exhaustive()
    }
}

fn unavailable(cause: &str) -> SharedError {
    SharedError::new(Error::new(
        ErrorKind::Unavailable,
        format!("the broker has failed ({cause}): mend the cause and reopen it"),
    ))
}

impl Inner {
    /// Applies jobs as one batch and answers them, now or after the next sync.
    fn apply(&self, jobs: Vec<WriteJob>) {
        let (batch, mut parts) = write::merge(jobs);
        for part in &mut parts {
            if let Err(error) = part.find_tails(&self.tails, &*self.engine, &batch) {
                return self.refuse(parts, error);
            }
        }
        let span = tracing::trace_span!("append", engine = self.capabilities.name, operations = batch.len()).entered();
        let engine = &self.engine;
        let applied = catch_unwind(AssertUnwindSafe(|| engine.apply(batch))).unwrap_or_else(|_| {
            Err(StorageError::unknown(cuemq_storage_api::ErrorKind::Poisoned, "apply", "the engine panicked"))
        });
        drop(span);
        match applied {
            Ok(applied) => {
                parts.iter_mut().for_each(write::Part::applied);
                write::split(applied, parts).for_each(|landed| self.acknowledge(landed));
            }
            Err(error) => self.refuse(parts, error),
        }
    }

    fn refuse(&self, parts: Vec<write::Part>, error: StorageError) {
        let fatal = error.outcome() == cuemq_storage_api::Outcome::Unknown
            || error.kind() == cuemq_storage_api::ErrorKind::Poisoned;
        if fatal {
            self.state.fail(&error.to_string());
        }
        let error = SharedError::new(error.into());
        parts.into_iter().for_each(|part| part.refuse(&error));
    }

    fn acknowledge(&self, landed: Landed) {
        if !self.capabilities.durable {
            landed.acknowledge(crate::message::AckLevel::Memory);
        } else if landed.flush() == Flush::Durable {
            self.sync.wait(landed);
        } else {
            landed.acknowledge(crate::message::AckLevel::Buffered);
            self.sync.note_unsynced();
        }
    }
}
