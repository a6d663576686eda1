//! Reads of single records: by entry, by position, by time, by key.

use std::io;
use std::ops::ControlFlow;

use bytes::Bytes;
use cuemq_storage_api::limits::MAX_FETCH_MESSAGES;
use cuemq_storage_api::{
    ErrorKind, KeyQuery, LocatedRecord, LogPosition, QueueId, QueueKey, QueueOffset, Record, Result, StorageError,
    StoredRecord, Timestamp, TopicName,
};

use crate::commit_log::format::{RECORD_HEADER_BYTES, RecordHeader, in_frame, item_is_sound};
use crate::commit_log::segment::SegmentReader;
use crate::consume_queue::entry::Entry;
use crate::health::{corrupt, read_failed};
use crate::index::INDEX_DIRECTORY;
use crate::store::Store;

/// Records that this process wrote since it opened the store, and this close behind the log's end, are read without
/// checking their sum: they are still in memory, and nothing but this process has touched them.
const TRUSTED_BYTES: u64 = 64 << 20;
/// A record's item, checked against what it should be.
struct Found {
    header: RecordHeader,
    item: Bytes,
}

/// What stands at a position.
enum Seen {
    Record(LocatedRecord),
    /// Trimmed, expired, or not shown yet.
    Gone,
    /// Something else, or something damaged: the bytes cannot tell.
    NoRecord,
}

impl Found {
    fn stored(self) -> StoredRecord {
        StoredRecord {
            offset: QueueOffset::new(self.header.queue_offset),
            position: LogPosition::new(self.header.position),
            stored_at: Timestamp::from_millis(self.header.stored_at),
            record: self.header.record(self.item),
        }
    }
}

impl Store {
    /// One to `count` entries of a queue from an offset on, which lies below its end.
    pub(crate) fn entries(
        &self,
        operation: &'static str,
        queue: &QueueKey,
        offset: u64,
        count: usize,
    ) -> Result<Vec<Entry>> {
        let in_files = {
            let catalog = self.catalog(operation)?;
            let state = catalog.queue(queue).ok_or_else(|| out_of_range(queue, offset, &(0..0)))?;
            if let Some(tail) = state.tail_from(offset) {
                return Ok(tail[..tail.len().min(count)].to_vec());
            }
            state.tail_start() - offset
        };
        let count = count.min(usize::try_from(in_files).unwrap_or(usize::MAX));
        self.queue_files.read(queue, offset, count).map_err(|error| {
            let path = self.queue_files.describe(queue, offset);
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
                    self.gone_or(operation, queue, offset, || corrupt(operation, format!("{path} lacks entries")))
                }
                _ => read_failed(operation, &path, error),
            }
        })
    }

    /// Retention may have overtaken a reader: then the offset is out of range, and nothing is damaged.
    fn gone_or(
        &self,
        operation: &'static str,
        queue: &QueueKey,
        offset: u64,
        otherwise: impl FnOnce() -> StorageError,
    ) -> StorageError {
        match self.catalog(operation) {
            Err(error) => error,
            Ok(catalog) => match catalog.queue(queue) {
                Some(state) if offset < state.min => out_of_range(queue, offset, &(state.min..state.end)),
                _ => otherwise(),
            },
        }
    }

    /// Checks that the item that an entry points to is that record, and that its sum holds if it has to.
    pub(crate) fn check_record(
        &self,
        operation: &'static str,
        reader: &mut SegmentReader<'_>,
        queue: &QueueKey,
        offset: u64,
        entry: &Entry,
        log_end: u64,
    ) -> Result<RecordHeader> {
        let (position, size) = (entry.position, u64::from(entry.size));
        let damaged = |what: &str| self.damaged(operation, queue, offset, position, what);
        if !self.may_hold(position, size, log_end) {
            return Err(self.gone_or(operation, queue, offset, || damaged("is no record")));
        }
        let item = match reader.look(position, in_frame(entry.size as usize)) {
            Ok(item) => item,
            Err(error) => {
                let place = self.segments.describe(position);
                return Err(self.gone_or(operation, queue, offset, || read_failed(operation, &place, error)));
            }
        };
        let Some(header) = record_header(item, position, size) else {
            return Err(self.gone_or(operation, queue, offset, || damaged("is no record")));
        };
        if !is_of_entry(&header, item, queue, offset, entry)
            || !self.is_trusted(position, log_end) && !item_is_sound(item)
        {
            return Err(self.gone_or(operation, queue, offset, || damaged("is damaged")));
        }
        Ok(header)
    }

    fn damaged(
        &self,
        operation: &'static str,
        queue: &QueueKey,
        offset: u64,
        position: u64,
        what: &str,
    ) -> StorageError {
        let place = self.segments.describe(position);
        corrupt(operation, format!("offset {offset} of {queue}, at {place}, {what}: restore the file from a copy"))
    }

    fn is_trusted(&self, position: u64, log_end: u64) -> bool {
        position >= self.trusted_from(log_end)
    }

    /// From where on records are read without checking their sum.
    pub(crate) fn trusted_from(&self, log_end: u64) -> u64 {
        self.opened_at.max(log_end.saturating_sub(TRUSTED_BYTES))
    }

    /// Whether an item of this size can lie at a position at all.
    #[inline]
    fn may_hold(&self, position: u64, size: u64, log_end: u64) -> bool {
        let to_segment_end = self.segments.start_of(position) + self.segments.segment_bytes() - position;
        let left = log_end.saturating_sub(position).min(to_segment_end);
        size <= left && size >= RECORD_HEADER_BYTES as u64
    }

    pub(crate) fn locate(&self, position: u64) -> Result<Option<LocatedRecord>> {
        match self.look_at("record_at", position)? {
            Seen::Record(record) => Ok(Some(record)),
            Seen::Gone | Seen::NoRecord => Ok(None),
        }
    }

    /// What stands at a position of which nothing is known.
    fn look_at(&self, operation: &'static str, position: u64) -> Result<Seen> {
        let (log_start, log_end) = {
            let catalog = self.catalog(operation)?;
            (catalog.log_start, catalog.log_end)
        };
        if position < log_start || position >= log_end {
            return Ok(Seen::Gone);
        }
        let mut reader = SegmentReader::new(&self.segments, log_end);
        let found = self.whole_item(&mut reader, position, log_end);
        if self.catalog(operation)?.log_start > position {
            return Ok(Seen::Gone); // Retention came first.
        }
        let found = found.map_err(|error| read_failed(operation, &self.segments.describe(position), error))?;
        // A body may hold a forged record that is right in itself; only the queue's own entry says what is one.
        let Some((found, queue)) = found.and_then(|found| stored_key(&found).map(|queue| (found, queue))) else {
            return Ok(Seen::NoRecord);
        };
        let offset = found.header.queue_offset;
        let bounds = self.catalog(operation)?.queue(&queue).map_or(0..0, |state| state.min..state.end);
        if !bounds.contains(&offset) {
            return Ok(if offset < bounds.start { Seen::Gone } else { Seen::NoRecord });
        }
        match self.entries(operation, &queue, offset, 1) {
            Ok(entries) if entries.first().is_some_and(|entry| entry.position == position) => {
                Ok(Seen::Record(LocatedRecord { queue, stored: found.stored() }))
            }
            Ok(_) => Ok(Seen::NoRecord),
            Err(error) if error.kind() == ErrorKind::OutOfRange => Ok(Seen::Gone),
            Err(error) => Err(error),
        }
    }

    /// The item at a position, if a record with a right sum begins there.
    fn whole_item(&self, reader: &mut SegmentReader<'_>, position: u64, log_end: u64) -> io::Result<Option<Found>> {
        if !self.may_hold(position, RECORD_HEADER_BYTES as u64, log_end) {
            return Ok(None);
        }
        let Some(header) = RecordHeader::decode(reader.look(position, RECORD_HEADER_BYTES)?) else { return Ok(None) };
        if header.position != position || !self.may_hold(position, u64::from(header.len), log_end) {
            return Ok(None);
        }
        let item = reader.slice(position, in_frame(header.len as usize))?;
        Ok(item_is_sound(&item).then_some(Found { header, item }))
    }

    pub(crate) fn search_time(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        loop {
            match self.halve(queue, at) {
                // Retention moved the minimum while we searched: search again above it.
                Err(error) if error.kind() == ErrorKind::OutOfRange => {}
                other => return other,
            }
        }
    }

    fn halve(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        let (mut low, mut high, log_end) = {
            let catalog = self.catalog("offset_at")?;
            let Some(state) = catalog.queue(queue) else { return Ok(QueueOffset::ZERO) };
            (state.min, state.end, catalog.log_end)
        };
        let mut reader = SegmentReader::new(&self.segments, log_end);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.time_of(&mut reader, queue, middle, log_end)? < at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(QueueOffset::new(low))
    }

    fn time_of(
        &self,
        reader: &mut SegmentReader<'_>,
        queue: &QueueKey,
        offset: u64,
        log_end: u64,
    ) -> Result<Timestamp> {
        let entries = self.entries("offset_at", queue, offset, 1)?;
        let header = self.check_record("offset_at", reader, queue, offset, &entries[0], log_end)?;
        Ok(Timestamp::from_millis(header.stored_at))
    }

    pub(crate) fn search_key(&self, query: KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        self.health.check_open("find")?;
        let limit = query.limit.min(MAX_FETCH_MESSAGES);
        let mut found = Ok(Vec::new());
        if limit == 0 || query.from >= query.to {
            return found;
        }
        let mut visit = |position: LogPosition| match self.candidate(&query, position) {
            Ok(None) => ControlFlow::Continue(()),
            Ok(Some(record)) => match &mut found {
                Ok(records) => {
                    records.push(record);
                    if records.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }
                Err(_) => ControlFlow::Break(()),
            },
            Err(error) => {
                found = Err(error);
                ControlFlow::Break(())
            }
        };
        self.index.candidates(query.topic.as_str(), query.key, query.from..query.to, &mut visit).map_err(|error| {
            match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => {
                    corrupt("find", format!("{INDEX_DIRECTORY}: {error}: reopen the store to make the index again"))
                }
                _ => read_failed("find", INDEX_DIRECTORY, error),
            }
        })?;
        found
    }

    /// The record at a position that the index names, if it is what the query asks for.
    fn candidate(&self, query: &KeyQuery<'_>, position: LogPosition) -> Result<Option<LocatedRecord>> {
        match self.look_at("find", position.get())? {
            Seen::Record(record) => {
                let is_it = record.queue.topic == *query.topic
                    && (query.from..query.to).contains(&record.stored.stored_at)
                    && has_key(&record.stored.record, query.key);
                Ok(is_it.then_some(record))
            }
            Seen::Gone => Ok(None),
            Seen::NoRecord => {
                let place = self.segments.describe(position.get());
                Err(corrupt("find", format!("the index names a record in {place}, where none is whole")))
            }
        }
    }
}

/// Whether a record is the one that an entry of a queue means.
#[inline]
pub(crate) fn is_of_entry(header: &RecordHeader, item: &[u8], queue: &QueueKey, offset: u64, entry: &Entry) -> bool {
    header.queue_offset == offset
        && header.queue == queue.queue.get()
        && header.tag_hash == entry.tag_hash
        && is_same(header.topic(item), queue.topic.as_str().as_bytes())
}

/// Whether two names are the same. `==` of slices reads 32 bytes at once and with them, behind a short name, a line of the
/// body, which nobody has brought near: that was a third of a fetch's time.
#[inline]
fn is_same(stored: &[u8], name: &[u8]) -> bool {
    stored.len() == name.len() && stored.iter().zip(name).fold(0, |differ, (one, other)| differ | (one ^ other)) == 0
}

/// The header of an item that says of itself that it is a record at this position and of this size. Its sum is not
/// checked.
#[inline]
pub(crate) fn record_header(item: &[u8], position: u64, size: u64) -> Option<RecordHeader> {
    RecordHeader::decode(item).filter(|header| header.position == position && u64::from(header.len) == size)
}

fn has_key(record: &Record, key: &str) -> bool {
    record.attributes.keys().any(|candidate| candidate == key)
}

fn stored_key(found: &Found) -> Option<QueueKey> {
    let topic = std::str::from_utf8(found.header.topic(&found.item)).ok()?;
    Some(QueueKey::new(TopicName::from_stored(topic).ok()?, QueueId::new(found.header.queue).ok()?))
}

pub(crate) fn out_of_range(queue: &QueueKey, offset: u64, bounds: &std::ops::Range<u64>) -> StorageError {
    let context = format!("offset {offset} of {queue} is outside its bounds {}..{}", bounds.start, bounds.end);
    StorageError::not_stored(ErrorKind::OutOfRange, "fetch", context)
}
