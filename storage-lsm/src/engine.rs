//! The engine over fjall: opening, and the contract handed through.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use cuemq_storage_api::{
    Applied, Capabilities, Engine, Fetch, FetchRequest, KeyQuery, LocatedRecord, LogPosition, Maintenance, Mark,
    QueueKey, QueueOffset, Result, Row, StorageError, Table, Timestamp, WriteBatch,
};

use crate::directory::Directory;
use crate::disk_space::{DiskSpace, FileSystem};
use crate::fjall_kv::FjallKv;
use crate::kv_engine::{KvEngine, Parts};
use crate::settings::LsmSettings;

const CAPABILITIES: Capabilities = Capabilities { name: "lsm", durable: true, apply_may_stall: true, zero_copy: false };

/// The storage contract over fjall, an LSM tree. See the [crate documentation](crate).
///
/// Dropping it without [`close`](Engine::close) hands everything applied to the disk and releases the directory.
#[derive(Debug)]
pub struct LsmEngine(KvEngine<FjallKv>);

impl LsmEngine {
    /// Opens the store in a directory, which is made if there is none, and locks it.
    ///
    /// # Errors
    /// `Invalid` for settings out of range; `Locked` while another handle, in this process or another, has the
    /// directory open; `Version` for another format or a directory that holds something else, with nothing touched;
    /// `Corrupt` for damage, and for a store that ends before its watermark; `Io`.
    pub fn open(directory: impl AsRef<Path>, settings: &LsmSettings) -> Result<Self> {
        let disk = FileSystem(directory.as_ref().to_owned());
        Self::open_on(directory.as_ref(), settings, Box::new(disk))
    }

    pub(crate) fn open_on(path: &Path, settings: &LsmSettings, disk: Box<dyn DiskSpace>) -> Result<Self> {
        settings.validate()?;
        let directory = Directory::open(path)?;
        let made = directory.store_was_made()?;
        directory.keep_journals();
        let kv = FjallKv::open(&directory.store(), settings, made).map_err(|error| {
            let context = format!("the store in {}{}", directory.store().display(), directory.kept_journals());
            StorageError::not_stored(error.kind, "open", context).with_source(error.source)
        })?;
        let parts = Parts {
            capabilities: CAPABILITIES,
            retention: settings.retention(),
            reserve_bytes: settings.reserve_bytes,
            disk,
            directory: Some(directory),
        };
        KvEngine::open(kv, parts).map(Self)
    }
}

impl Engine for LsmEngine {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn apply(&self, batch: WriteBatch) -> Result<Applied> {
        self.0.apply(batch)
    }

    fn sync(&self) -> Result<Mark> {
        self.0.sync()
    }

    fn durable(&self) -> Mark {
        self.0.durable()
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.0.fetch(request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        self.0.bounds(queue)
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        self.0.queues()
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        self.0.offset_at(queue, at)
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        self.0.record_at(position)
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.0.find(query)
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        self.0.get(table, key)
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        self.0.scan(table, from, to, limit)
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        self.0.maintain(now)
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}
