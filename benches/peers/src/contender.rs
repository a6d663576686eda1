//! Who takes part, and on which terms.

use std::ffi::OsStr;
use std::fmt;

use cuemq_benches::place::Place;
use serde::Serialize;

use crate::Result;
use crate::store::{Flush, Store};
use crate::stores::broker::BrokerStore;
use crate::stores::commit_log::CommitLogStore;
use crate::stores::mmap::MmapStore;
use crate::stores::sqlite::SqliteStore;
use crate::stores::tree::TreeStore;
use crate::stores::walrus::{self, Walruses};

/// Somebody who takes part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Contender {
    /// CueMQ's map engine by itself.
    Engine,
    /// CueMQ through the broker's handles.
    Broker,
    /// The same, but each append waits for the receipt of the one before: what a hop between threads costs.
    BrokerAlone,
    /// The crate `commitlog`.
    CommitLog,
    /// The crate `walrus-rust`.
    Walrus,
    /// SQLite through the crate `rusqlite`.
    Sqlite,
    /// The crate `fjall`.
    Fjall,
}

/// What a contender promises and what it leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Terms {
    /// How it is used where nobody waits for the disk.
    pub buffered: &'static str,
    /// How it is used where an append waits until it survives a power cut.
    pub durable: &'static str,
    /// What happens in a fetch.
    pub fetch: &'static str,
    /// What it does not do that others do.
    pub leaves_out: &'static str,
}

impl Contender {
    /// Everybody, CueMQ first.
    pub const ALL: [Self; 7] =
        [Self::Engine, Self::Broker, Self::BrokerAlone, Self::CommitLog, Self::Walrus, Self::Sqlite, Self::Fjall];
    /// Those of CueMQ that peers are held against.
    pub const OURS: [Self; 2] = [Self::Engine, Self::Broker];

    /// A short name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "CueMQ mmap engine",
            Self::Broker => "CueMQ broker",
            Self::BrokerAlone => "CueMQ broker, 1 in flight",
            Self::CommitLog => "commitlog",
            Self::Walrus => "walrus-rust",
            Self::Sqlite => "SQLite",
            Self::Fjall => "fjall",
        }
    }

    /// The package whose version counts.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Self::Engine | Self::Broker | Self::BrokerAlone => "cuemq",
            Self::CommitLog => "commitlog",
            Self::Walrus => "walrus-rust",
            Self::Sqlite => "rusqlite",
            Self::Fjall => "fjall",
        }
    }

    /// Whether it belongs to the peers.
    #[must_use]
    pub fn is_peer(self) -> bool {
        !matches!(self, Self::Engine | Self::Broker | Self::BrokerAlone)
    }

    /// Whether its durable appends are measured: a durable broker has one append in flight in any case.
    #[must_use]
    pub fn takes_part(self, flush: Flush) -> bool {
        self != Self::BrokerAlone || flush == Flush::Buffered
    }

    /// How it is used, what that promises, and what it leaves out.
    #[must_use]
    pub fn terms(self) -> Terms {
        match self {
            Self::Engine => Terms {
                buffered: "apply of one WriteBatch into the map; nothing is synced",
                durable: "apply, then sync",
                fetch: "slices of the map, not copied",
                leaves_out: "groups, delays, transactions: they are the broker's. It does checksum each record, write a \
                             consume queue, take batches whole or not at all, and recover",
            },
            Self::Broker | Self::BrokerAlone => Terms {
                buffered: "flush buffered (the sync thread syncs every 200 ms); 256 single messages or 4 batches are in \
                           flight, or 1 where it says so",
                durable: "flush durable: each append waits for a receipt of level durable, 1 in flight",
                fetch: "polls of a pull consumer, bodies not copied",
                leaves_out: "nothing: all that the engine does, and each append goes to an actor and its receipt back",
            },
            Self::CommitLog => Terms {
                buffered: "one write per batch",
                durable: "write, flush (which syncs only full pages of the index), and an fdatasync of the log's file by \
                          this benchmark, since the crate never syncs it: the end of the index can be lost all the same",
                fetch: "pread into a new buffer, CRC checked",
                leaves_out: "one queue, one writer; no recovery that checks the log; no groups, keys, retention by age",
            },
            Self::Walrus => Terms {
                buffered: "append_for_topic under NoFsync, also in batches: batch_append_for_topic syncs whatever the \
                           schedule says",
                durable: "append_for_topic or batch_append_for_topic under SyncEach: write, then fsync. Failed writes of \
                          single messages are ignored",
                fetch: "batch_read_for_topic, copied, FNV checked; the position is kept in memory. Within one block of \
                        10 MiB, because in a topic of several blocks it skips messages, as this benchmark's check found",
                leaves_out: "no offsets, no second reader of a topic, no groups, keys or retention; not read through \
                             another opening here, as its files stay open until the process ends",
            },
            Self::Sqlite => Terms {
                buffered: "WAL, synchronous=OFF, prepared statements, one transaction per batch",
                durable: "WAL, synchronous=FULL, the same. 16 writers share one connection",
                fetch: "rows copied into one buffer, 64 MiB cache and a map of 256 MiB",
                leaves_out: "no CRC over rows; the WAL's own checksums cover what is replayed",
            },
            Self::Fjall => Terms {
                buffered: "insert, or one batch with PersistMode::Buffer",
                durable: "one batch with PersistMode::SyncData",
                fetch: "range over the keyspace, values shared",
                leaves_out: "keys and values only: no offsets, times, topics or second index; syncs under a lock, so \
                             that writers do not share a sync",
            },
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Opens stores.
pub struct Opener {
    place: Place,
    walruses: Walruses,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Opener {
    /// Opens new stores in a place. One per process, as a peer keeps global state.
    ///
    /// # Errors
    /// When the environment that a peer wants is not there; see [`environment`].
    pub fn new(place: Place) -> Result<Self> {
        Ok(Self { place, walruses: Walruses::open()? })
    }

    /// Where the stores lie.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A new empty store.
    ///
    /// # Errors
    /// Whatever the contender meets.
    pub fn open(&mut self, contender: Contender, flush: Flush) -> Result<Box<dyn Store>> {
        let place = &self.place;
        Ok(match contender {
            Contender::Engine => Box::new(MmapStore::open(place, flush)?),
            Contender::Broker => Box::new(BrokerStore::open(place, flush, false)?),
            Contender::BrokerAlone => Box::new(BrokerStore::open(place, flush, true)?),
            Contender::CommitLog => Box::new(CommitLogStore::open(place, flush)?),
            Contender::Walrus => Box::new(self.walruses.topic(flush)),
            Contender::Sqlite => Box::new(SqliteStore::open(place, flush)?),
            Contender::Fjall => Box::new(TreeStore::open(place, flush)?),
        })
    }
}

/// Variables that have to be in the environment of a process that uses an [`Opener`]; a directory of the process's own.
#[must_use]
pub fn environment(directory: &OsStr) -> [(&'static str, &OsStr); 2] {
    walrus::environment(directory)
}

/// Whether these variables are there.
#[must_use]
pub fn has_environment() -> bool {
    walrus::has_environment()
}
