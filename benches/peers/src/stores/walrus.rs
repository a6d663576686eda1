//! The crate `walrus-rust`: a write-ahead log of topics.

use std::ffi::OsStr;
use std::sync::Arc;

use walrus_rust::{Entry, FsyncSchedule, ReadConsistency, Walrus};

use super::rows::Rows;
use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, PAGE_BYTES, Page, Store, Writers};

/// Names the folder of all its logs. Only the environment can.
const DIRECTORY_VARIABLE: &str = "WALRUS_DATA_DIR";
/// Without it the crate prints a line for each message.
const QUIET_VARIABLE: &str = "WALRUS_QUIET";
/// Reads between two writes of a reader's position: nobody asks for one here.
const CONSISTENCY: ReadConsistency = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
/// A topic stays within its first block. In a topic of several, `batch_read_for_topic` skips messages: it plans the
/// newest block behind a part of the one before. And `read_next` writes its position to the disk for each message of the
/// newest block, whatever the consistency.
const BLOCK_BYTES: u64 = 10 << 20;
const HEADER_BYTES: u64 = 64;

/// What has to be in a process's environment when it starts.
pub(crate) fn environment(directory: &OsStr) -> [(&'static str, &OsStr); 2] {
    [(DIRECTORY_VARIABLE, directory), (QUIET_VARIABLE, OsStr::new("1"))]
}

/// Whether that is there.
pub(crate) fn has_environment() -> bool {
    environment(OsStr::new("")).iter().all(|(name, _)| std::env::var_os(name).is_some())
}

/// Both logs of a run. Each keeps its thread and the handles of its files until the process ends, so a store is a new
/// topic in one of them.
pub(crate) struct Walruses {
    buffered: Arc<Walrus>,
    durable: Arc<Walrus>,
    topics: u64,
}

impl Walruses {
    pub(crate) fn open() -> Result<Self> {
        if !has_environment() {
            return Err(format!("{DIRECTORY_VARIABLE} and {QUIET_VARIABLE} have to be set").into());
        }
        let open = |key, schedule| Walrus::with_consistency_and_schedule_for_key(key, CONSISTENCY, schedule);
        // In this order: the first schedule of a process decides whether files are opened with O_SYNC, which would make
        // buffered appends wait for the disk, and batches sync message by message.
        let buffered = Arc::new(open("buffered", FsyncSchedule::NoFsync)?);
        let durable = Arc::new(open("durable", FsyncSchedule::SyncEach)?);
        Ok(Self { buffered, durable, topics: 0 })
    }

    pub(crate) fn topic(&mut self, flush: Flush) -> WalrusStore {
        self.topics += 1;
        let log = match flush {
            Flush::Buffered => &self.buffered,
            Flush::Durable => &self.durable,
        };
        WalrusStore { log: Arc::clone(log), topic: format!("t{}", self.topics), flush, room: BLOCK_BYTES }
    }
}

pub(crate) struct WalrusStore {
    log: Arc<Walrus>,
    topic: String,
    flush: Flush,
    /// Bytes left of the topic's block.
    room: u64,
}

impl WalrusStore {
    fn append_batch(&self, load: &Load<'_>, first: u64) -> Result<()> {
        let bodies = (first..).take(load.batch).map(|message| load.bodies.body(message));
        // A batch is synced whatever the schedule says, so buffered appends are faster one by one.
        if self.flush == Flush::Buffered || load.batch == 1 {
            for body in bodies {
                self.log.append_for_topic(&self.topic, &body)?;
            }
            return Ok(());
        }
        let bodies: Vec<_> = bodies.collect();
        let slices: Vec<&[u8]> = bodies.iter().map(AsRef::as_ref).collect();
        Ok(self.log.batch_append_for_topic(&self.topic, &slices)?)
    }
}

impl Store for WalrusStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        let message_bytes = HEADER_BYTES + load.bodies.body(0).len() as u64;
        let room = (self.room / message_bytes).saturating_sub(load.batch as u64);
        let done = Load { most: load.most.min(room), ..*load }.run(|first| self.append_batch(load, first))?;
        self.room -= done.messages * message_bytes;
        Ok(done)
    }

    fn fetch(&mut self, from: u64, _messages: usize) -> Result<Box<dyn Page>> {
        // It hands out what comes next and remembers its position; it has no offsets.
        let entries = self.log.batch_read_for_topic(&self.topic, PAGE_BYTES, true)?;
        Ok(Box::new(Rows { first: from, bodies: entries.into_iter().map(|Entry { data }| data).collect() }))
    }

    fn group_commit(&mut self, writers: &Writers<'_>) -> Result<Option<Appended>> {
        let write = |message| Ok(self.log.append_for_topic(&self.topic, &writers.bodies.body(message))?);
        writers.on_threads(write).map(Some)
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        // Its files stay open until the process ends, so another opening would prove nothing.
        Ok(self)
    }
}
