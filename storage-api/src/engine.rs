//! The contract that every storage engine keeps.

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::batch::{Applied, WriteBatch};
use crate::error::Result;
use crate::record::{LocatedRecord, StoredRecord};
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp, TopicName};

/// A storage engine: one sequence of atomic batches over queues of records and ordered tables.
///
/// Methods block; none needs a runtime. All may be called from any thread, readers beside a writer. What
/// [`apply`](Engine::apply) has returned is seen by every read that starts afterwards. The laws of each method are
/// in its own documentation and are checked, one by one, by the [conformance suite](crate::conformance).
pub trait Engine: Debug + Send + Sync + 'static {
    /// What this engine is and can do; constant for its life.
    fn capabilities(&self) -> Capabilities;

    /// Lands a batch whole or not at all, behind every batch applied before it.
    ///
    /// Laws: offsets of a queue are dense from 0 and never reused; positions rise; stored times never fall; a
    /// reader sees all of the batch or nothing. An empty batch changes nothing and returns the current mark.
    ///
    /// # Errors
    /// `Invalid`, `Full`, `Closed`, `Poisoned` with `NotStored`: nothing was written and the engine goes on as
    /// before. `Io` with `Unknown`: the engine is poisoned and accepts no write until it is reopened.
    fn apply(&self, batch: WriteBatch) -> Result<Applied>;

    /// Makes everything applied before the call survive a power cut, and returns the mark up to which that holds.
    ///
    /// Laws: the result is at least the mark of every batch applied before the call; one sync serves all of them.
    ///
    /// # Errors
    /// Any failure poisons the engine: a second attempt could succeed without the data (promises 2.3).
    fn sync(&self) -> Result<Mark>;

    /// The mark up to which batches are known to be durable; never falls while the engine is open.
    fn durable(&self) -> Mark;

    /// Records of one queue from an offset on, in offset order without a gap (but for those the filter skips).
    ///
    /// Laws: at least one matching record comes back if there is one in reach, even if it alone is larger than
    /// `max_bytes`; beyond that both limits hold. [`Fetch::next`] is where to go on; it has passed over skipped
    /// records. From the queue's end: nothing, and `next` is the end. A queue that never had a record is empty at 0.
    ///
    /// # Errors
    /// `OutOfRange` below the queue's minimum or above its end, naming both. `Corrupt` if a record's checksum fails.
    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch>;

    /// The offsets `[min, end)` that can be fetched; `0..0` for a queue that never had a record.
    ///
    /// # Errors
    /// Only `Closed` or a failed read.
    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>>;

    /// Every queue that ever had a record, with its bounds, in key order.
    ///
    /// # Errors
    /// Only `Closed` or a failed read.
    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>>;

    /// The first offset within bounds whose record was stored at or after `at`; the queue's end if there is none.
    ///
    /// # Errors
    /// Only `Closed`, `Corrupt` or a failed read.
    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset>;

    /// The record at exactly this position; `None` if no record begins there or it was trimmed or expired.
    ///
    /// # Errors
    /// `Closed` or a failed read. Whether damaged bytes or no record stand there cannot be told, so both are `None`.
    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>>;

    /// Records of a topic that carry a key, newest first, stored within a time range; never a hash collision's.
    ///
    /// # Errors
    /// Only `Closed`, `Corrupt` or a failed read.
    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>>;

    /// A row of an ordered table.
    ///
    /// # Errors
    /// Only `Closed`, `Corrupt` or a failed read.
    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>>;

    /// Rows of an ordered table with keys in `[from, to)`, in byte order of their keys, at most `limit` of them.
    /// Without `to`, up to the last row. To go on, scan again from the last key with one zero byte behind it.
    ///
    /// # Errors
    /// Only `Closed`, `Corrupt` or a failed read.
    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>>;

    /// Does the work that keeps the store small and its next opening fast: writes derived files and checkpoints,
    /// applies retention at `now`. Called now and then from a thread that may block, never concurrently with itself.
    ///
    /// Laws: nothing visible changes but the minimum of queues whose records expired.
    ///
    /// # Errors
    /// A failed write poisons the engine, as in [`sync`](Engine::sync).
    fn maintain(&self, now: Timestamp) -> Result<Maintenance>;

    /// Syncs, writes what makes the next opening fast, releases the lock. A second call does nothing and succeeds;
    /// after it every other operation is `Closed`.
    ///
    /// # Errors
    /// What the final sync met; the engine is closed all the same.
    fn close(&self) -> Result<()>;
}

/// What an engine is and can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// A short name for tables and logs: `memory`, `mmap`, `lsm`.
    pub name: &'static str,
    /// Whether [`Engine::sync`] makes anything survive the process; the in-memory engine's does not.
    pub durable: bool,
    /// Whether [`Engine::apply`] may stall for long (compaction, network): the broker then keeps it off its actors.
    pub apply_may_stall: bool,
    /// Whether bodies are handed out as slices of the store, without a copy.
    pub zero_copy: bool,
}

/// How much one fetch may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchLimit {
    /// At most this many records; 0 returns none.
    pub max_messages: usize,
    /// At most this many payload bytes, but always at least one record.
    pub max_bytes: usize,
}

impl FetchLimit {
    /// A limit on records alone.
    #[must_use]
    pub const fn messages(max_messages: usize) -> Self {
        Self { max_messages, max_bytes: usize::MAX }
    }
}

/// Which records a fetch passes on, by the tag hash in the consume queue, before any body is touched. Two tags may
/// share a hash, so the caller checks the tag itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum TagHashes {
    /// Every record.
    #[default]
    All,
    /// Records whose tag has one of these hashes.
    AnyOf(Vec<i64>),
}

impl TagHashes {
    /// Whether a record with this tag hash passes.
    #[must_use]
    #[inline]
    pub fn matches(&self, hash: i64) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf(hashes) => hashes.contains(&hash),
        }
    }
}

/// The question of one fetch.
#[derive(Clone, Copy, Debug)]
pub struct FetchRequest<'a> {
    /// The queue to read.
    pub queue: &'a QueueKey,
    /// The first offset wanted.
    pub from: QueueOffset,
    /// Read only below this offset: how a broker hides what is not durable yet. `None` reads to the end.
    pub until: Option<QueueOffset>,
    /// How much to return.
    pub limit: FetchLimit,
    /// Which records to pass on.
    pub tags: &'a TagHashes,
}

impl<'a> FetchRequest<'a> {
    /// Every record from an offset on, within a limit.
    #[must_use]
    pub fn all(queue: &'a QueueKey, from: QueueOffset, limit: FetchLimit) -> Self {
        Self { queue, from, until: None, limit, tags: &TagHashes::All }
    }
}

/// The answer to one fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The records, in offset order.
    pub records: Vec<StoredRecord>,
    /// Where the next fetch goes on.
    pub next: QueueOffset,
    /// The queue's bounds when it was read.
    pub bounds: Range<QueueOffset>,
}

/// The question of one key look-up.
#[derive(Clone, Copy, Debug)]
pub struct KeyQuery<'a> {
    /// The topic to look in.
    pub topic: &'a TopicName,
    /// The whole key.
    pub key: &'a str,
    /// Stored at or after this time.
    pub from: Timestamp,
    /// Stored before this time.
    pub to: Timestamp,
    /// At most this many records.
    pub limit: usize,
}

/// One row of an ordered table.
pub type Row = (Bytes, Bytes);

/// How long records are kept when nothing trims them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Records stored longer ago may go. RocketMQ's `fileReservedTime`: 72 hours.
    pub age: Duration,
    /// The oldest records go when the log is larger than this many bytes.
    pub max_bytes: Option<u64>,
    /// The oldest records go when the disk is fuller than this share (percent), whatever their age.
    pub disk_watermark_percent: u8,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(72 * 3600), max_bytes: None, disk_watermark_percent: 85 }
    }
}

/// What one [`Engine::maintain`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Maintenance {
    /// Bytes of log given back to the disk.
    pub freed_bytes: u64,
    /// Records that expired.
    pub expired_records: u64,
}
