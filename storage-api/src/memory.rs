//! The executable specification: an engine in ordered maps, and the store that it can be closed and reopened over.
//!
//! It chooses what is obvious over what is fast, and is what every other engine is compared with. Positions are a
//! count of all records ever appended; look-ups by position and by key walk the queues.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::batch::{Appended, Applied, WriteBatch, WriteOperation};
use crate::engine::{Capabilities, Engine, Fetch, FetchRequest, KeyQuery, Maintenance, Retention, Row};
use crate::error::{ErrorKind, Result, StorageError};
use crate::limits::{MAX_FETCH_MESSAGES, MAX_SCAN_ROWS};
use crate::record::{LocatedRecord, Record, StoredRecord};
use crate::types::{LogPosition, Mark, QueueKey, QueueOffset, Table, Timestamp, TopicName};

/// Most batches that a [`MemoryStore`] can lose in a crash; when more are unsynced the oldest count as survivors.
pub const MAX_UNSYNCED_BATCHES: usize = 4_096;

/// What stands in for a directory: it outlives the engines opened over it, one at a time. Cheap to clone.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<RwLock<Shared>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::keeping(Some(History::default()))
    }

    /// Cuts the power: an engine that is open finds itself closed, and of the batches applied since the last sync
    /// only the first `keep_unsynced` are found by the next one.
    pub fn crash(&self, keep_unsynced: usize) {
        let mut shared = self.write();
        shared.session = None;
        let Some(history) = &mut shared.history else { return };
        history.unsynced.truncate(keep_unsynced);
        history.settle();
        let survivor = history.base.clone();
        shared.durable = survivor.mark();
        shared.live = survivor;
    }

    fn keeping(history: Option<History>) -> Self {
        let shared =
            Shared { live: State::default(), durable: Mark::default(), history, session: None, next_session: 0 };
        Self { shared: Arc::new(RwLock::new(shared)) }
    }

    // Nothing that runs under this lock leaves the state half changed by a panic, so a poisoned lock is sound.
    fn read(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

/// The engine that keeps everything in ordered maps. It survives no process; over a [`MemoryStore`] it can be closed,
/// reopened and crashed. Dropping it releases the store without syncing.
pub struct MemoryEngine {
    store: MemoryStore,
    session: u64,
    retention: Retention,
}

impl MemoryEngine {
    /// An empty engine over a store of its own, which keeps no history of unsynced batches.
    #[must_use]
    pub fn new() -> Self {
        Self::open(&MemoryStore::keeping(None)).expect("a store that nobody else knows is not locked")
    }

    /// Opens a store, as one opens a directory.
    ///
    /// # Errors
    /// `Locked` while another engine has it open.
    pub fn open(store: &MemoryStore) -> Result<Self> {
        let mut shared = store.write();
        if shared.session.is_some() {
            return Err(StorageError::not_stored(ErrorKind::Locked, "open", "another engine has the store open"));
        }
        let session = shared.next_session;
        shared.next_session += 1;
        shared.session = Some(session);
        Ok(Self { store: store.clone(), session, retention: Retention::default() })
    }

    /// The same engine with another retention, which [`Engine::maintain`] applies. The share of the disk means
    /// nothing here.
    #[must_use]
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    fn read(&self, operation: &'static str) -> Result<RwLockReadGuard<'_, Shared>> {
        let shared = self.store.read();
        if shared.session == Some(self.session) { Ok(shared) } else { Err(closed(operation)) }
    }

    fn write(&self, operation: &'static str) -> Result<RwLockWriteGuard<'_, Shared>> {
        let shared = self.store.write();
        if shared.session == Some(self.session) { Ok(shared) } else { Err(closed(operation)) }
    }
}

fn closed(operation: &'static str) -> StorageError {
    StorageError::not_stored(ErrorKind::Closed, operation, "the engine is closed")
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        let mut shared = self.store.write();
        if shared.session == Some(self.session) {
            shared.session = None;
        }
    }
}

impl Engine for MemoryEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "memory", durable: false, apply_may_stall: false, zero_copy: true }
    }

    fn apply(&self, mut batch: WriteBatch) -> Result<Applied> {
        let mut shared = self.write("apply")?;
        batch.check()?;
        batch.resolve_places(|queue| Ok(shared.live.queues.get(queue).map_or(QueueOffset::ZERO, Queue::end)))?;
        if let Some(history) = &mut shared.history
            && !batch.is_empty()
        {
            history.remember(batch.clone());
        }
        Ok(shared.live.apply(batch))
    }

    fn sync(&self) -> Result<Mark> {
        Ok(self.write("sync")?.sync())
    }

    fn durable(&self) -> Mark {
        self.store.read().durable
    }

    fn fetch(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        self.read("fetch")?.live.fetch(&request)
    }

    fn bounds(&self, queue: &QueueKey) -> Result<Range<QueueOffset>> {
        Ok(self.read("bounds")?.live.queues.get(queue).map_or(QueueOffset::ZERO..QueueOffset::ZERO, Queue::bounds))
    }

    fn queues(&self) -> Result<Vec<(QueueKey, Range<QueueOffset>)>> {
        let shared = self.read("queues")?;
        Ok(shared.live.queues.iter().map(|(key, queue)| (key.clone(), queue.bounds())).collect())
    }

    fn offset_at(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        let shared = self.read("offset_at")?;
        Ok(shared.live.queues.get(queue).map_or(QueueOffset::ZERO, |queue| {
            let earlier = queue.records.partition_point(|stored| stored.stored_at < at);
            queue.min.plus(earlier as u64)
        }))
    }

    fn record_at(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        let shared = self.read("record_at")?;
        Ok(shared.live.queues.iter().find_map(|(key, queue)| {
            let at = queue.records.binary_search_by_key(&position, |stored| stored.position).ok()?;
            Some(LocatedRecord { queue: key.clone(), stored: queue.records[at].clone() })
        }))
    }

    fn find(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        Ok(self.read("find")?.live.find(&query))
    }

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.read("get")?.live.tables.get(table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let shared = self.read("scan")?;
        let Some(rows) = shared.live.tables.get(table).filter(|_| to.is_none_or(|to| from < to)) else {
            return Ok(Vec::new());
        };
        let range = rows.range::<[u8], _>((Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded)));
        Ok(range.take(limit.min(MAX_SCAN_ROWS)).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn maintain(&self, now: Timestamp) -> Result<Maintenance> {
        let mut shared = self.write("maintain")?;
        // What expires here is gone for good, so everything before it must be too.
        shared.sync();
        let trims = shared.live.expired(&self.retention, now);
        let mut done = Maintenance::default();
        for (key, before) in trims {
            let (records, bytes) = shared.live.trim(&key, before);
            done.expired_records += records;
            done.freed_bytes += bytes;
            if let Some(history) = &mut shared.history {
                history.base.trim(&key, before);
            }
        }
        Ok(done)
    }

    fn close(&self) -> Result<()> {
        if let Ok(mut shared) = self.write("close") {
            shared.sync();
            shared.session = None;
        }
        Ok(())
    }
}

/// Everything behind the lock. The engine whose session this is has it open.
struct Shared {
    live: State,
    durable: Mark,
    history: Option<History>,
    session: Option<u64>,
    next_session: u64,
}

impl Shared {
    fn sync(&mut self) -> Mark {
        if let Some(history) = &mut self.history {
            history.settle();
        }
        self.durable = self.live.mark();
        self.durable
    }
}

/// What a crash goes back to: the state at the last sync, and the batches since then.
#[derive(Default)]
struct History {
    base: State,
    unsynced: VecDeque<WriteBatch>,
}

impl History {
    fn remember(&mut self, batch: WriteBatch) {
        if self.unsynced.len() == MAX_UNSYNCED_BATCHES
            && let Some(oldest) = self.unsynced.pop_front()
        {
            self.base.apply(oldest);
        }
        self.unsynced.push_back(batch);
    }

    fn settle(&mut self) {
        for batch in self.unsynced.drain(..) {
            self.base.apply(batch);
        }
    }
}

#[derive(Clone)]
struct State {
    queues: BTreeMap<QueueKey, Queue>,
    tables: BTreeMap<Table, BTreeMap<Bytes, Bytes>>,
    batches: u64,
    next_position: u64,
    stored_at: Timestamp,
}

impl Default for State {
    fn default() -> Self {
        let (queues, tables) = (BTreeMap::new(), BTreeMap::new());
        Self { queues, tables, batches: 0, next_position: 0, stored_at: Timestamp::MIN }
    }
}

#[derive(Clone, Default)]
struct Queue {
    min: QueueOffset,
    records: VecDeque<StoredRecord>,
}

impl Queue {
    fn end(&self) -> QueueOffset {
        self.min.plus(self.records.len() as u64)
    }

    fn bounds(&self) -> Range<QueueOffset> {
        self.min..self.end()
    }

    fn index_of(&self, offset: QueueOffset) -> usize {
        usize::try_from(offset.get() - self.min.get()).expect("an offset within bounds indexes what is in memory")
    }
}

impl State {
    fn mark(&self) -> Mark {
        Mark(self.batches)
    }

    fn apply(&mut self, batch: WriteBatch) -> Applied {
        let stored_at = self.stored_at.max(batch.stored_at());
        if !batch.is_empty() {
            self.stored_at = stored_at;
            self.batches += 1;
        }
        let (mut appends, mut positions) = (Vec::new(), Vec::new());
        for operation in batch.into_operations() {
            match operation {
                WriteOperation::Append { queue, records } => {
                    positions.reserve(records.len());
                    appends.push(self.append(queue, records, &mut positions));
                }
                WriteOperation::Put { table, key, value } => {
                    self.tables.entry(table).or_default().insert(key, value);
                }
                WriteOperation::PutPlaced { .. } => unreachable!("places are resolved before a batch is applied"),
                WriteOperation::Delete { table, key } => {
                    self.tables.get_mut(&table).map(|rows| rows.remove(&key));
                }
                WriteOperation::Trim { queue, before } => {
                    self.trim(&queue, before);
                }
            }
        }
        Applied { mark: self.mark(), stored_at, appends, positions }
    }

    fn append(&mut self, queue: QueueKey, records: Vec<Record>, positions: &mut Vec<LogPosition>) -> Appended {
        let queue = self.queues.entry(queue).or_default();
        let first = queue.end();
        let count = u32::try_from(records.len()).expect("a checked batch has at most 65536 operations");
        for record in records {
            let (offset, position) = (queue.end(), LogPosition::new(self.next_position));
            queue.records.push_back(StoredRecord { offset, position, stored_at: self.stored_at, record });
            positions.push(position);
            self.next_position += 1;
        }
        Appended { first, count }
    }

    /// Forgets records below `before` and says how many, and how many payload bytes they had.
    fn trim(&mut self, queue: &QueueKey, before: QueueOffset) -> (u64, u64) {
        let Some(queue) = self.queues.get_mut(queue) else { return (0, 0) };
        let before = before.clamp(queue.min, queue.end());
        let gone = queue.records.drain(..queue.index_of(before));
        let (count, bytes) = gone.fold((0, 0), |(n, bytes), r| (n + 1, bytes + r.record.payload_bytes() as u64));
        queue.min = before;
        (count, bytes)
    }

    fn fetch(&self, request: &FetchRequest<'_>) -> Result<Fetch> {
        let empty = Queue::default();
        let queue = self.queues.get(request.queue).unwrap_or(&empty);
        let (bounds, from) = (queue.bounds(), request.from);
        if from < bounds.start || from > bounds.end {
            let context =
                format!("offset {from} of {} is outside its bounds {}..{}", request.queue, bounds.start, bounds.end);
            return Err(StorageError::not_stored(ErrorKind::OutOfRange, "fetch", context));
        }
        let until = request.until.unwrap_or(bounds.end).clamp(from, bounds.end);
        let (mut records, mut bytes, mut next) = (Vec::new(), 0usize, from);
        for stored in queue.records.range(queue.index_of(from)..queue.index_of(until)) {
            if records.len() >= request.limit.max_messages.min(MAX_FETCH_MESSAGES) {
                break;
            }
            if request.tags.matches(stored.record.attributes.tag_hash()) {
                bytes = bytes.saturating_add(stored.record.payload_bytes());
                if bytes > request.limit.max_bytes && !records.is_empty() {
                    break;
                }
                records.push(stored.clone());
            }
            next = stored.offset.plus(1);
        }
        Ok(Fetch { records, next, bounds })
    }

    fn find(&self, query: &KeyQuery<'_>) -> Vec<LocatedRecord> {
        let mut found = Vec::new();
        for (key, queue) in self.queues_of(query.topic) {
            let before = queue.records.partition_point(|stored| stored.stored_at < query.from);
            let in_time = queue.records.range(before..).take_while(|stored| stored.stored_at < query.to);
            let with_key = in_time.filter(|stored| stored.record.attributes.keys().any(|key| key == query.key));
            found.extend(with_key.map(|stored| LocatedRecord { queue: key.clone(), stored: stored.clone() }));
        }
        found.sort_unstable_by_key(|located| std::cmp::Reverse(located.stored.position));
        found.truncate(query.limit.min(MAX_FETCH_MESSAGES));
        found
    }

    fn queues_of(&self, topic: &TopicName) -> impl Iterator<Item = (&QueueKey, &Queue)> {
        let first = QueueKey::new(topic.clone(), crate::types::QueueId::FIRST);
        self.queues.range(first..).take_while(move |(key, _)| key.topic == *topic)
    }

    /// Where each queue's records stop being expired: by age, and, oldest first, by the size of all.
    fn expired(&self, retention: &Retention, now: Timestamp) -> Vec<(QueueKey, QueueOffset)> {
        let over = retention.max_bytes.map_or(LogPosition::default(), |max_bytes| self.first_within(max_bytes));
        let expired = self.queues.iter().map(|(key, queue)| {
            let gone = queue
                .records
                .partition_point(|stored| now.since(stored.stored_at) > retention.age || stored.position < over);
            (key.clone(), queue.min.plus(gone as u64))
        });
        expired.collect()
    }

    /// The position from which on all records together have at most `max_bytes` payload bytes.
    fn first_within(&self, max_bytes: u64) -> LogPosition {
        let all = self.queues.values().flat_map(|queue| &queue.records);
        let mut sizes: Vec<_> = all.map(|stored| (stored.position, stored.record.payload_bytes() as u64)).collect();
        sizes.sort_unstable();
        let mut kept = 0u64;
        let newest_over = sizes.iter().rev().find(|(_, bytes)| {
            kept += bytes;
            kept > max_bytes
        });
        newest_over.map_or(LogPosition::default(), |(position, _)| LogPosition::new(position.get() + 1))
    }
}
