//! The broker's one error: what to do, whether anything may have happened, and a text that names cause and fix.

use std::error::Error as StdError;
use std::fmt;

use cuemq_storage_api::{ErrorKind as StorageKind, InvalidInput, Outcome, StorageError};

use crate::message::Message;
use crate::settings::InvalidSetting;
use crate::tables::DecodeError;

/// What the caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can never succeed as it is: the text names the value, the limit and the fix.
    Invalid,
    /// The topic does not exist and was not created: the text says how to create it.
    UnknownTopic,
    /// The consumer group does not exist.
    UnknownGroup,
    /// Something of that name exists already and differs.
    Exists,
    /// Too much is under way, or the disk is full: wait for some of it, then retry.
    Full,
    /// It surely did not happen; a retry may succeed and cannot duplicate.
    NotStored,
    /// It may or may not have happened; a retry may duplicate.
    Unknown,
    /// The broker has failed; [`BrokerState`](crate::BrokerState) names the cause. Reopen it.
    Unavailable,
    /// The broker, producer or consumer was closed.
    Closed,
    /// The receipt, lease or assignment is no longer valid: the message belongs to somebody else now.
    Stale,
    /// The opposite was decided before, or others changed the same too often in between.
    Conflict,
    /// The program's own transaction gave up with [`Error::aborted`]: nothing of it was done.
    Aborted,
    /// An offset outside the queue's bounds: the text names them.
    OutOfRange,
    /// Stored bytes are damaged or of another version: the text names the file.
    Corrupt,
}

/// Every failing operation of the embed API returns this.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of every operation of the embed API.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    pub(crate) fn closed(what: &str) -> Self {
        Self::new(ErrorKind::Closed, format!("{what} is closed: open it again"))
    }

    /// The answer when whoever had the request is gone: nobody can tell how far it came.
    pub(crate) fn lost(what: &str) -> Self {
        Self::new(
            ErrorKind::Unknown,
            format!("{what} was interrupted: it may or may not have happened, a retry may duplicate it"),
        )
    }

    /// The word of a program that gives up its own [transaction](crate::Broker::transaction): nothing of it is done.
    #[must_use]
    pub fn aborted(why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Aborted, why.to_string())
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same request may succeed later without any change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Full | ErrorKind::NotStored | ErrorKind::Unknown)
    }

    /// Whether nothing has surely happened: a retry cannot duplicate. False only for [`ErrorKind::Unknown`].
    #[must_use]
    pub fn is_certainly_not_applied(&self) -> bool {
        self.kind != ErrorKind::Unknown
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<InvalidInput> for Error {
    fn from(invalid: InvalidInput) -> Self {
        Self::new(ErrorKind::Invalid, invalid.to_string())
    }
}

impl From<InvalidSetting> for Error {
    fn from(invalid: InvalidSetting) -> Self {
        Self::new(ErrorKind::Invalid, invalid.to_string())
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        let kind = match (error.outcome(), error.kind()) {
            (Outcome::Unknown, _) => ErrorKind::Unknown,
            (_, StorageKind::Invalid) => ErrorKind::Invalid,
            (_, StorageKind::OutOfRange) => ErrorKind::OutOfRange,
            (_, StorageKind::Full) => ErrorKind::Full,
            (_, StorageKind::Poisoned) => ErrorKind::Unavailable,
            (_, StorageKind::Closed) => ErrorKind::Closed,
            (_, StorageKind::Corrupt | StorageKind::Version) => ErrorKind::Corrupt,
            _ => ErrorKind::NotStored,
        };
        Self { kind, text: error.to_string(), source: Some(Box::new(error)) }
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        StorageError::from(error).into()
    }
}

/// A storage error as it is told to each of the many callers whose requests shared one write.
#[derive(Debug, Clone)]
pub(crate) struct SharedError {
    kind: ErrorKind,
    text: std::sync::Arc<str>,
}

impl SharedError {
    pub(crate) fn new(error: Error) -> Self {
        Self { kind: error.kind, text: error.text.into() }
    }

    pub(crate) fn get(&self) -> Error {
        Error::new(self.kind, &*self.text)
    }
}

/// A message that was not taken, together with the reason. Nothing was stored.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub error: Error,
    /// The message, to be sent again.
    pub message: Box<Message>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Rejected {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        rejected.error
    }
}
