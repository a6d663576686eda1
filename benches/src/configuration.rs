//! What is measured: paths, engines, sizes, batches.

use std::fmt;

use crate::profile::Profile;
use crate::store::EngineKind;

/// Messages that a sender of single messages has in flight beside the lone one.
pub const SINGLES_IN_FLIGHT: usize = 256;
/// Batches that a sender of batches has in flight.
pub const BATCHES_IN_FLIGHT: usize = 4;
/// Messages that one fetch of a cold read asks for.
pub const COLD_FETCH_MESSAGES: usize = 256;

/// One way through the engines or the broker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Path {
    /// `apply` alone.
    AppendBuffered,
    /// `apply` and `sync`.
    AppendDurable,
    /// Writers through the broker, each waiting for a durable receipt before its next message.
    GroupCommit,
    /// Single messages through the broker.
    SendSingle,
    /// Batches through the broker.
    SendBatch,
    /// Produce, deliver to a member of a group, acknowledge.
    EndToEnd,
    /// Reads of what was just written.
    FetchTail,
    /// First read of the files after opening.
    FetchCold,
    /// Opening after a clean close.
    ReopenClean,
    /// Opening what a process that was killed left behind.
    ReopenDropped,
}

/// What a path is held against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// Encoding records in place.
    Limit,
    /// One batch per sync.
    BatchPerSync,
    /// Half the writers per sync: one cohort fills while the other one syncs.
    HalfTheWritersPerSync,
    /// One message per round trip between two threads.
    Ping,
    /// Nothing.
    None,
}

impl Path {
    /// All paths in the order of the report.
    pub const ALL: [Self; 10] = [
        Self::AppendBuffered,
        Self::AppendDurable,
        Self::GroupCommit,
        Self::SendSingle,
        Self::SendBatch,
        Self::EndToEnd,
        Self::FetchTail,
        Self::FetchCold,
        Self::ReopenClean,
        Self::ReopenDropped,
    ];

    /// Its name in criterion's files and in `summary.json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AppendBuffered => "append_buffered",
            Self::AppendDurable => "append_durable",
            Self::GroupCommit => "group_commit",
            Self::SendSingle => "send_single",
            Self::SendBatch => "send_batch",
            Self::EndToEnd => "end_to_end",
            Self::FetchTail => "fetch_tail",
            Self::FetchCold => "fetch_cold",
            Self::ReopenClean => "reopen_clean",
            Self::ReopenDropped => "reopen_dropped",
        }
    }

    /// What happens in it, in one or two sentences.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::AppendBuffered => "Raw engine, one thread: makes a batch and applies it; nothing is synced.",
            Self::AppendDurable => "Raw engine, one thread: applies a batch and syncs.",
            Self::GroupCommit => {
                "Through the actors, durable flush: each writer sends one message and waits for its receipt. Held against \
                 half the writers per sync: while one half is synced the other one sends."
            }
            Self::SendSingle => "Through the actors, buffered flush: one sender of single messages, some in flight.",
            Self::SendBatch => "Through the actors, buffered flush: one sender of batches, four in flight.",
            Self::EndToEnd => {
                "Through the actors, buffered flush: produced (single messages with 256 in flight, or batches with \
                 four), delivered to the one member of a group, body checked, acknowledged."
            }
            Self::FetchTail => "Raw engine, one thread: fetches in a queue that was just written, bodies not read.",
            Self::FetchCold => {
                "Raw engine, one thread: the store was closed, its files' pages dropped from the page cache \
                 (fadvise) and the store reopened; then the first read of the whole queue in fetches of 256, bodies \
                 checked. The device's own cache is not emptied."
            }
            Self::ReopenClean => "Opens a store that was closed; its files are in the page cache.",
            Self::ReopenDropped => {
                "Opens a copy of a store that was taken while it was open and synced: what a process that was killed \
                 leaves behind. The files are in the page cache."
            }
        }
    }

    /// What the number behind the size means.
    #[must_use]
    pub fn parameter(self) -> &'static str {
        match self {
            Self::GroupCommit => "writers",
            Self::SendSingle => "in flight",
            Self::FetchCold | Self::ReopenClean | Self::ReopenDropped => "stored",
            Self::FetchTail => "fetch",
            Self::AppendBuffered | Self::AppendDurable | Self::SendBatch | Self::EndToEnd => "batch",
        }
    }

    /// What acknowledged or read data survives in this path.
    #[must_use]
    pub fn flush(self) -> &'static str {
        match self {
            Self::AppendDurable | Self::GroupCommit => "durable",
            Self::AppendBuffered | Self::SendSingle | Self::SendBatch | Self::EndToEnd => "buffered",
            Self::FetchTail | Self::FetchCold | Self::ReopenClean | Self::ReopenDropped => "read only",
        }
    }

    /// Whether the result is a time per opening instead of messages per second.
    #[must_use]
    pub fn is_reopen(self) -> bool {
        matches!(self, Self::ReopenClean | Self::ReopenDropped)
    }

    /// What it is held against with this parameter.
    #[must_use]
    pub fn bound(self, parameter: usize) -> Bound {
        match self {
            Self::AppendDurable => Bound::BatchPerSync,
            Self::GroupCommit => Bound::HalfTheWritersPerSync,
            Self::SendSingle if parameter == 1 => Bound::Ping,
            Self::ReopenClean | Self::ReopenDropped => Bound::None,
            _ => Bound::Limit,
        }
    }

    /// The parameters that a profile measures for a size.
    #[must_use]
    pub fn parameters(self, profile: &Profile, body_bytes: usize) -> Vec<usize> {
        match self {
            Self::AppendBuffered | Self::FetchTail => profile.batches.clone(),
            Self::AppendDurable => profile.batches.iter().copied().filter(|batch| *batch <= 64).collect(),
            Self::GroupCommit => vec![16, 256],
            Self::SendSingle => vec![1, SINGLES_IN_FLIGHT],
            Self::SendBatch => profile.batches.iter().copied().filter(|batch| *batch >= 64).collect(),
            Self::EndToEnd => vec![1, 64],
            Self::FetchCold | Self::ReopenClean | Self::ReopenDropped => {
                usize::try_from(profile.loaded_messages(body_bytes)).into_iter().collect()
            }
        }
    }

    /// Whether the path says anything about an engine: without files there is nothing to sync or to reopen.
    #[must_use]
    pub fn suits(self, engine: EngineKind) -> bool {
        let needs_files = matches!(
            self,
            Self::AppendDurable | Self::GroupCommit | Self::FetchCold | Self::ReopenClean | Self::ReopenDropped
        );
        engine != EngineKind::Memory || !needs_files
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing to measure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Configuration {
    /// The way.
    pub path: Path,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Batch, writers, messages in flight or messages stored: [`Path::parameter`] says which.
    pub parameter: usize,
    /// The engine.
    pub engine: EngineKind,
}

impl Configuration {
    /// Everything that a profile measures: criterion's groups are path and size.
    #[must_use]
    pub fn all(profile: &Profile) -> Vec<Self> {
        let mut all = Vec::new();
        for path in Path::ALL {
            for &body_bytes in &profile.body_bytes {
                for engine in EngineKind::ALL.into_iter().filter(|engine| path.suits(*engine)) {
                    let parameters = path.parameters(profile, body_bytes);
                    all.extend(parameters.into_iter().map(|parameter| Self { path, body_bytes, parameter, engine }));
                }
            }
        }
        all
    }

    /// The name of criterion's group: the size is part of it, so that the parameter is the x of its plots.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{}/{}", self.path, self.body_bytes)
    }

    /// Messages that one iteration counts.
    #[must_use]
    pub fn messages_per_iteration(&self) -> u64 {
        match self.path {
            Path::SendSingle => 1,
            _ => self.parameter as u64,
        }
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.path, self.body_bytes, self.engine, self.parameter)
    }
}
