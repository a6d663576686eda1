//! Whether the engine still takes work: open, poisoned or closed.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use cuemq_storage_api::{ErrorKind, Result, StorageError};

/// The operation that still passes once closing has begun.
pub(crate) const CLOSE: &str = "close";

/// One way only: healthy, then perhaps poisoned, then closing and closed.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poisoned: OnceLock<String>,
    closing: AtomicBool,
}

impl Health {
    /// Lets reads pass until the engine is being closed. What closing itself does passes always.
    pub(crate) fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.is_closing() && operation != CLOSE {
            return Err(StorageError::not_stored(ErrorKind::Closed, operation, "the engine is closed"));
        }
        Ok(())
    }

    /// Lets writes pass until something failed or the engine is closed.
    pub(crate) fn check_writable(&self, operation: &'static str) -> Result<()> {
        self.check_open(operation)?;
        match self.poisoned.get() {
            None => Ok(()),
            Some(cause) => Err(poisoned(operation, cause)),
        }
    }

    /// Stops all writes for good, and makes the error of the failure that caused it.
    pub(crate) fn poison(&self, operation: &'static str, context: String, cause: io::Error) -> StorageError {
        self.poisoned.get_or_init(|| format!("{operation}: {context}: {cause}"));
        StorageError::unknown(ErrorKind::Io, operation, context).with_source(cause)
    }

    /// Stops all writes after a panic left a lock poisoned.
    pub(crate) fn poison_by_panic(&self, operation: &'static str) -> StorageError {
        poisoned(operation, self.poisoned.get_or_init(|| "an earlier write panicked".to_owned()))
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Begins to close: a write that does not hold the writer lock by now is refused. False if it has begun before.
    pub(crate) fn begin_close(&self) -> bool {
        !self.closing.swap(true, Ordering::AcqRel)
    }
}

fn poisoned(operation: &'static str, cause: &str) -> StorageError {
    let context = format!("no write is accepted until the engine is reopened, because of: {cause}");
    StorageError::not_stored(ErrorKind::Poisoned, operation, context)
}

/// The error of a failed read, or of a write that surely changed nothing.
pub(crate) fn read_failed(operation: &'static str, path: &str, cause: io::Error) -> StorageError {
    StorageError::not_stored(ErrorKind::Io, operation, path.to_owned()).with_source(cause)
}

/// The error of damaged bytes.
pub(crate) fn corrupt(operation: &'static str, context: String) -> StorageError {
    StorageError::not_stored(ErrorKind::Corrupt, operation, context)
}
