//! What operators do that is written down.

use std::fmt;

/// What an operator did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum AuditAction {
    /// A group's offsets were set anew.
    Reset,
    /// Messages were passed over without being consumed.
    Skip,
    /// The diversion of a backlog began.
    DivertBegan,
    /// The diversion of a backlog ended.
    DivertEnded,
    /// A group was paused.
    Pause,
    /// A paused group goes on.
    Resume,
    /// A topic got another number of queues.
    QueueChange,
    /// Messages were deleted.
    Purge,
    /// Dead letters were sent to where they came from.
    Redrive,
}

impl AuditAction {
    /// The words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Skip => "skip",
            Self::DivertBegan => "divert began",
            Self::DivertEnded => "divert ended",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::QueueChange => "queue change",
            Self::Purge => "purge",
            Self::Redrive => "redrive",
        }
    }
}

impl fmt::Display for AuditAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
