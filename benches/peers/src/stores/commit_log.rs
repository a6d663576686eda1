//! The crate `commitlog`: a log of one queue with an index, written with `write` and read with `pread`.

use std::fs::File;

use commitlog::message::{MessageBuf, MessageSet};
use commitlog::{CommitLog, LogOptions, ReadLimit};
use cuemq_benches::place::Place;
use tempfile::TempDir;

use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, PAGE_BYTES, Page, Store};

/// Its bound on one append; the default of 1 MB is too small for batches of 1024.
const MAX_APPEND_BYTES: usize = 16 << 20;
/// Entries that the index has room for at once; it would grow, but slowly.
const INDEX_ENTRIES: usize = 1 << 20;
/// The first segment, which no measurement fills.
const SEGMENT: &str = "00000000000000000000.log";

pub(crate) struct CommitLogStore {
    log: CommitLog,
    /// The log's file once more, to sync it: the crate itself never does.
    segment: File,
    // Used again for every batch, so that nothing is allocated.
    buffer: MessageBuf,
    folder: TempDir,
    flush: Flush,
}

impl CommitLogStore {
    pub(crate) fn open(place: &Place, flush: Flush) -> Result<Self> {
        Self::open_in(place.folder()?, flush)
    }

    fn open_in(folder: TempDir, flush: Flush) -> Result<Self> {
        let mut options = LogOptions::new(folder.path());
        options.message_max_bytes(MAX_APPEND_BYTES).index_max_items(INDEX_ENTRIES);
        let log = CommitLog::new(options)?;
        let segment = File::open(folder.path().join(SEGMENT))?;
        Ok(Self { log, segment, buffer: MessageBuf::default(), folder, flush })
    }

    fn append_batch(&mut self, load: &Load<'_>, first: u64) -> Result<()> {
        self.buffer.clear();
        for message in (first..).take(load.batch) {
            let pushed = self.buffer.push(load.bodies.body(message));
            pushed.map_err(|error| format!("message {message} is refused: {error:?}"))?;
        }
        let landed = self.log.append(&mut self.buffer)?.first();
        if landed != first {
            return Err(format!("message {first} landed at offset {landed}").into());
        }
        if self.flush == Flush::Durable {
            // Syncs the full pages of the index, and of the log nothing.
            self.log.flush()?;
            self.segment.sync_data()?;
        }
        Ok(())
    }
}

impl Store for CommitLogStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        load.run(|first| self.append_batch(load, first))
    }

    fn fetch(&mut self, from: u64, _messages: usize) -> Result<Box<dyn Page>> {
        Ok(Box::new(Read(self.log.read(from, ReadLimit::max_bytes(PAGE_BYTES))?)))
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        let Self { log, folder, flush, .. } = *self;
        drop(log);
        Ok(Box::new(Self::open_in(folder, flush)?))
    }
}

struct Read(MessageBuf);

impl Page for Read {
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|message| see(message.offset(), message.payload()))
    }
}
