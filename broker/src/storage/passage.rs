//! The way for writes that append to the queues of topics past the queues' own actors: delayed messages that are due,
//! half messages that are committed, batches that span queues.
//!
//! Whoever makes such a write chooses the queues and hands the write over within one passage. A change of a topic's
//! queues closes the way: nobody is within a passage when the queues change, and what is handed over before the way
//! is open again waits, so that the change can be stored ahead of everything that was sent under it.

use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use cuemq_storage_api::WriteBatch;

use super::{StorageHandle, Stored, WriteJob, WriteResult};
use crate::error::{Error, SharedError};
use crate::settings::Flush;

/// Whether the way is closed, and what waits. Bounded by what the actors have in hand: a write of each delayed message
/// that is due, of each open transaction, and of each batch that was admitted.
#[derive(Default)]
pub(super) struct Way {
    closed: RwLock<bool>,
    waiting: Mutex<Vec<WriteJob>>,
}

/// While it lives no topic's queues change.
pub(crate) struct Passage<'a> {
    storage: &'a StorageHandle,
    closed: RwLockReadGuard<'a, bool>,
}

impl Passage<'_> {
    /// As [`StorageHandle::write`].
    pub(crate) fn write(&self, batch: WriteBatch, flush: Flush, done: impl FnOnce(WriteResult) + Send + 'static) {
        self.hand_over(WriteJob { batch, flush, applied: None, done: Box::new(done) });
    }

    /// As [`write`](Self::write), and calls `applied` as soon as reads find the batch: a durable one is acknowledged
    /// only after the next sync. A batch that is refused drops `applied` before it calls `done`.
    pub(crate) fn write_in_steps(
        &self,
        batch: WriteBatch,
        flush: Flush,
        applied: impl FnOnce() + Send + 'static,
        done: impl FnOnce(WriteResult) + Send + 'static,
    ) {
        self.hand_over(WriteJob { batch, flush, applied: Some(Box::new(applied)), done: Box::new(done) });
    }

    fn hand_over(&self, job: WriteJob) {
        if *self.closed {
            self.storage.inner.way.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(job);
        } else {
            self.storage.submit(job);
        }
    }
}

impl Passage<'_> {
    /// Hands a batch over at once; the answer resolves with the outcome.
    pub(crate) fn write_and_wait(
        &self,
        batch: WriteBatch,
        flush: Flush,
    ) -> impl Future<Output = Result<Stored, Error>> + use<> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.write(batch, flush, move |result| {
            // A caller that has gone away does not need the answer.
            let _ = sender.send(result);
        });
        async move {
            match receiver.await {
                Ok(result) => result.map_err(|shared| shared.get()),
                Err(_) => Err(Error::lost("the write")),
            }
        }
    }
}

impl StorageHandle {
    /// Begins a passage. Not within another one of the same thread.
    pub(crate) fn passage(&self) -> Passage<'_> {
        let closed = self.inner.way.closed.read().unwrap_or_else(PoisonError::into_inner);
        Passage { storage: self, closed }
    }

    /// Closes the way and calls `change` while nobody is within a passage.
    pub(crate) fn close_way<R>(&self, change: impl FnOnce() -> R) -> R {
        let mut closed = self.inner.way.closed.write().unwrap_or_else(PoisonError::into_inner);
        *closed = true;
        change()
    }

    /// Opens the way. What waited is written, in its order, or refused.
    pub(crate) fn open_way(&self, refused: Option<&SharedError>) {
        let mut closed = self.inner.way.closed.write().unwrap_or_else(PoisonError::into_inner);
        *closed = false;
        let waiting = std::mem::take(&mut *self.inner.way.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for job in waiting {
            match refused {
                Some(error) => job.refuse(error),
                None => self.submit(job),
            }
        }
    }
}
