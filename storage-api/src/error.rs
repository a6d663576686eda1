//! Errors that say what to do, and whether the write surely did not happen.

use std::error::Error as StdError;
use std::fmt;

/// A value that no engine accepts; the text names the value, the limit and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidInput(String);

impl InvalidInput {
    /// Wraps the reason.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for InvalidInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for InvalidInput {}

/// What the caller can do about a [`StorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can never succeed: change it.
    Invalid,
    /// The offset asked for is outside the queue's bounds: read the bounds and choose again.
    OutOfRange,
    /// No room (disk, configured size, position space): free some, then retry. Reads go on.
    Full,
    /// A passing condition: retry later.
    Unavailable,
    /// Another process or handle holds the directory.
    Locked,
    /// Stored bytes are damaged: the text names the file and the offset. Restore or salvage.
    Corrupt,
    /// The store was written by an older or newer version: the text names both. Nothing was touched.
    Version,
    /// A write or sync failed earlier: no further write is accepted until the engine is reopened.
    Poisoned,
    /// The engine was closed.
    Closed,
    /// The operating system refused: the source tells why.
    Io,
}

/// Whether a failed write may be found after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Surely nothing was written: a retry cannot duplicate.
    NotStored,
    /// It may or may not have been written: a retry may duplicate.
    Unknown,
}

/// The error of every engine operation.
#[derive(Debug)]
pub struct StorageError {
    kind: ErrorKind,
    outcome: Outcome,
    operation: &'static str,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl StorageError {
    /// An error of an operation that surely changed nothing.
    #[must_use]
    pub fn not_stored(kind: ErrorKind, operation: &'static str, context: impl Into<String>) -> Self {
        Self { kind, outcome: Outcome::NotStored, operation, context: context.into(), source: None }
    }

    /// An error of an operation that may have changed something.
    #[must_use]
    pub fn unknown(kind: ErrorKind, operation: &'static str, context: impl Into<String>) -> Self {
        Self { kind, outcome: Outcome::Unknown, operation, context: context.into(), source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the write may have happened.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The operation that failed, such as `apply`.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// What was being done, with the values in the text.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Full | ErrorKind::Unavailable | ErrorKind::Locked)
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.context)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        match self.outcome {
            Outcome::NotStored => Ok(()),
            Outcome::Unknown => f.write_str(" (the write may or may not be stored)"),
        }
    }
}

impl StdError for StorageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<InvalidInput> for StorageError {
    fn from(invalid: InvalidInput) -> Self {
        Self::not_stored(ErrorKind::Invalid, "check", invalid.0)
    }
}

/// The result of every engine operation.
pub type Result<T> = std::result::Result<T, StorageError>;
