//! Reading: queues, positions, times, keys and tables. Every record's checksum is verified on every read.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;
use cuemq_storage_api::limits::{MAX_FETCH_MESSAGES, MAX_SCAN_ROWS};
use cuemq_storage_api::{
    ErrorKind, Fetch, FetchRequest, KeyQuery, LocatedRecord, LogPosition, QueueKey, QueueOffset, Result, Row,
    StorageError, StoredRecord, Table, Timestamp,
};

use super::{KvEngine, corrupt, read_failed};
use crate::keys::consume_queue::{self, QueueRow};
use crate::keys::log::LogRow;
use crate::keys::{key_index, log, table};
use crate::kv::{KvView, OrderedKv, Space};

/// Positions between two wanted records up to which it is cheaper to scan over them than to seek: a step of a scan
/// costs a third of a microsecond, a seek some five.
const SCAN_OVER_POSITIONS: u64 = 16;
/// Records larger than this on average are looked up one by one unless they are neighbours: skipping one in a scan
/// reads it all the same.
const SCAN_OVER_BYTES: u64 = 4096;
/// Rows wanted from which a scan is left open at its end and simply stopped: fjall looks for an end in every block that
/// it reads, which costs more than the one block too many of each table behind the end.
const OPEN_SCAN_ROWS: u64 = 64;
/// Room for records that a fetch prepares before it knows how many there are.
const PREPARED_RECORDS: usize = 256;

/// What a fetch found in the consume queue.
struct Selection {
    rows: Vec<(u64, QueueRow)>,
    next: u64,
}

/// Why a row could not be had: deleted by a trim in the meantime, or damaged.
enum Lack {
    Missing(String),
    Failed(StorageError),
}

impl From<StorageError> for Lack {
    fn from(error: StorageError) -> Self {
        Self::Failed(error)
    }
}

impl<K: OrderedKv> KvEngine<K> {
    pub(super) fn read_queue(&self, request: &FetchRequest<'_>) -> Result<Fetch> {
        let store = self.store("fetch")?;
        let (number, bounds) = self.reach(request.queue);
        check_reach(request, &bounds)?;
        let until = request.until.unwrap_or(bounds.end).clamp(request.from, bounds.end);
        let Some(number) = number.filter(|_| request.from < until && request.limit.max_messages > 0) else {
            return Ok(Fetch { records: Vec::new(), next: request.from, bounds });
        };
        let view = store.view();
        let found = select(&view, number, request, until)
            .and_then(|selection| Ok((read_records(&view, number, &selection.rows)?, selection.next)));
        match found {
            Ok((records, next)) => Ok(Fetch { records, next: QueueOffset::new(next), bounds }),
            Err(Lack::Failed(error)) => Err(error),
            Err(Lack::Missing(what)) => {
                // A trim may have overtaken this fetch.
                check_reach(request, &self.reach(request.queue).1)?;
                Err(corrupt("fetch", what))
            }
        }
    }

    fn reach(&self, queue: &QueueKey) -> (Option<u32>, Range<QueueOffset>) {
        match self.registry().find(queue) {
            Some((number, queue)) => (Some(number), queue.bounds()),
            None => (None, QueueOffset::ZERO..QueueOffset::ZERO),
        }
    }

    pub(super) fn search_time(&self, queue: &QueueKey, at: Timestamp) -> Result<QueueOffset> {
        let store = self.store("offset_at")?;
        loop {
            let (number, bounds) = self.reach(queue);
            let Some(number) = number else { return Ok(bounds.start) };
            match halve(&store.view(), number, &bounds, at) {
                Ok(offset) => return Ok(QueueOffset::new(offset)),
                Err(Lack::Failed(error)) => return Err(error),
                // Trimmed in the meantime: look within the new bounds, which are smaller.
                Err(Lack::Missing(what)) if self.reach(queue).1.start == bounds.start => {
                    return Err(corrupt("offset_at", what));
                }
                Err(Lack::Missing(_)) => {}
            }
        }
    }

    pub(super) fn read_position(&self, position: LogPosition) -> Result<Option<LocatedRecord>> {
        let store = self.store("record_at")?;
        let key = log::key(position.get());
        let value = store.view().get(Space::Log, &key).map_err(|error| read_failed("record_at", error))?;
        Ok(value.and_then(|value| log::decode(&key, value)).and_then(|row| self.locate(row)))
    }

    /// Names the queue of a record; `None` when it was trimmed or is not published yet.
    fn locate(&self, row: LogRow) -> Option<LocatedRecord> {
        let registry = self.registry();
        let queue = registry.queue(row.queue)?;
        queue
            .bounds()
            .contains(&row.stored.offset)
            .then(|| LocatedRecord { queue: queue.key.clone(), stored: row.stored })
    }

    pub(super) fn search_key(&self, query: &KeyQuery<'_>) -> Result<Vec<LocatedRecord>> {
        let store = self.store("find")?;
        let failed = |error| read_failed("find", error);
        let limit = query.limit.min(MAX_FETCH_MESSAGES);
        let hash = key_index::hash(query.topic, query.key);
        let (first, end) =
            (key_index::key(hash, u64::MAX), hash.checked_add(1).map(|next| key_index::key(next, u64::MAX)));
        let view = store.view();
        let mut found = Vec::new();
        for row in view.range(Space::KeyIndex, &first, end.as_ref().map(<[u8; 16]>::as_slice)) {
            if found.len() == limit {
                break;
            }
            let (key, value) = row.map_err(failed)?;
            let (Some(position), Some(stored_at)) = (key_index::position(&key), key_index::decode(&key, &value)) else {
                return Err(corrupt("find", format!("key index row {key:02x?} is damaged")));
            };
            if stored_at < query.from {
                break; // older ones follow
            }
            if stored_at >= query.to {
                continue;
            }
            let key = log::key(position);
            // A row outlives its record only when that was too damaged to tell its keys as it was deleted.
            let Some(value) = view.get(Space::Log, &key).map_err(failed)? else { continue };
            let row = log::decode(&key, value).ok_or_else(|| damaged_record("find", position))?;
            let Some(located) = self.locate(row) else { continue };
            let carries = located.stored.record.attributes.keys().any(|key| key == query.key);
            if carries && located.queue.topic == *query.topic {
                found.push(located);
            }
        }
        Ok(found)
    }

    pub(super) fn read_row(&self, table: &Table, row: &[u8]) -> Result<Option<Bytes>> {
        let store = self.store("get")?;
        let key = table::key(table, row);
        let value = self.table_view(&store).get(Space::Meta, &key).map_err(|error| read_failed("get", error))?;
        let Some(value) = value else { return Ok(None) };
        let value = table::decode(&key, &value).ok_or_else(|| damaged_row("get", table, row))?;
        Ok(Some(value))
    }

    pub(super) fn read_rows(&self, table: &Table, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<Row>> {
        let store = self.store("scan")?;
        if to.is_some_and(|to| from >= to) {
            return Ok(Vec::new());
        }
        let first = table::key(table, from);
        let end = to.map_or_else(|| table::end(table), |to| table::key(table, to));
        let view = self.table_view(&store);
        let mut rows = Vec::new();
        for row in view.range(Space::Meta, &first, Some(&end)).take(limit.min(MAX_SCAN_ROWS)) {
            let (key, value) = row.map_err(|error| read_failed("scan", error))?;
            let row_key = key.slice(table::prefix_bytes(table)..);
            let value = table::decode(&key, &value).ok_or_else(|| damaged_row("scan", table, &row_key))?;
            rows.push((row_key, value));
        }
        Ok(rows)
    }
}

fn check_reach(request: &FetchRequest<'_>, bounds: &Range<QueueOffset>) -> Result<()> {
    let (queue, from) = (request.queue, request.from);
    if from < bounds.start || from > bounds.end {
        let context = format!("offset {from} of {queue} is outside its bounds {}..{}", bounds.start, bounds.end);
        return Err(StorageError::not_stored(ErrorKind::OutOfRange, "fetch", context));
    }
    Ok(())
}

/// Walks the queue's rows until a limit is met; bodies are not touched.
fn select(
    view: &impl KvView,
    number: u32,
    request: &FetchRequest<'_>,
    until: QueueOffset,
) -> std::result::Result<Selection, Lack> {
    let most = request.limit.max_messages.min(MAX_FETCH_MESSAGES);
    let (first, end) = (consume_queue::key(number, request.from.get()), consume_queue::key(number, until.get()));
    let mut selection = Selection { rows: Vec::with_capacity(most.min(PREPARED_RECORDS)), next: request.from.get() };
    let missing = |offset: u64| Lack::Missing(format!("queue {number} has no row for its offset {offset}"));
    let mut bytes = 0usize;
    let wanted = (until.get() - request.from.get()).min(most as u64);
    let mut rows = view.range(Space::ConsumeQueue, &first, (wanted < OPEN_SCAN_ROWS).then_some(&end[..]));
    while selection.next < until.get() && selection.rows.len() < most {
        let row = rows.next().ok_or_else(|| missing(selection.next))?;
        let (key, value) = row.map_err(|error| read_failed("fetch", error))?;
        if key[..] != consume_queue::key(number, selection.next)[..] {
            return Err(missing(selection.next));
        }
        let row = QueueRow::decode(&key, &value).ok_or_else(|| damaged_queue_row("fetch", number, selection.next))?;
        if request.tags.matches(row.tag_hash) {
            bytes = bytes.saturating_add(row.payload_bytes as usize);
            if bytes > request.limit.max_bytes && !selection.rows.is_empty() {
                return Ok(selection);
            }
            selection.rows.push((selection.next, row));
        }
        selection.next += 1;
    }
    Ok(selection)
}

/// Reads the selected records: by scans where their positions lie close together, one by one elsewhere.
fn read_records(
    view: &impl KvView,
    number: u32,
    rows: &[(u64, QueueRow)],
) -> std::result::Result<Vec<StoredRecord>, Lack> {
    let bytes: u64 = rows.iter().map(|(_, row)| u64::from(row.payload_bytes)).sum();
    let gap = if bytes > SCAN_OVER_BYTES * rows.len() as u64 { 1 } else { SCAN_OVER_POSITIONS };
    let mut records = Vec::with_capacity(rows.len());
    for run in rows.chunk_by(|(_, one), (_, next)| next.position.saturating_sub(one.position) <= gap) {
        read_run(view, number, run, &mut records)?;
    }
    Ok(records)
}

fn read_run(
    view: &impl KvView,
    number: u32,
    run: &[(u64, QueueRow)],
    records: &mut Vec<StoredRecord>,
) -> std::result::Result<(), Lack> {
    let failed = |error| read_failed("fetch", error);
    let missing = |row: &QueueRow| Lack::Missing(format!("the log has no record at position {}", row.position));
    let [(_, first), .., (_, last)] = run else {
        let [(offset, row)] = run else { return Ok(()) };
        let key = log::key(row.position);
        let value = view.get(Space::Log, &key).map_err(failed)?.ok_or_else(|| missing(row))?;
        records.push(checked(number, *offset, row, log::decode(&key, value))?);
        return Ok(());
    };
    let (begin, end) = (log::key(first.position), log::key(last.position + 1));
    let few = last.position - first.position < OPEN_SCAN_ROWS;
    let mut found = view.range(Space::Log, &begin, few.then_some(&end[..]));
    for (offset, row) in run {
        let wanted = log::key(row.position);
        loop {
            let (key, value) = found.next().ok_or_else(|| missing(row))?.map_err(failed)?;
            match key[..].cmp(&wanted) {
                Ordering::Less => {}
                Ordering::Equal => break records.push(checked(number, *offset, row, log::decode(&key, value))?),
                Ordering::Greater => return Err(missing(row)),
            }
        }
    }
    Ok(())
}

/// The record, if it is whole and the one that the queue's row speaks of.
fn checked(number: u32, offset: u64, row: &QueueRow, found: Option<LogRow>) -> Result<StoredRecord> {
    found
        .filter(|found| found.queue == number && found.stored.offset.get() == offset)
        .map(|found| found.stored)
        .ok_or_else(|| damaged_record("fetch", row.position))
}

/// The first offset within bounds that was stored at or after a time.
fn halve(
    view: &impl KvView,
    number: u32,
    bounds: &Range<QueueOffset>,
    at: Timestamp,
) -> std::result::Result<u64, Lack> {
    let (mut low, mut high) = (bounds.start.get(), bounds.end.get());
    while low < high {
        let middle = low + (high - low) / 2;
        let key = consume_queue::key(number, middle);
        let value = view.get(Space::ConsumeQueue, &key).map_err(|error| read_failed("offset_at", error))?;
        let value = value.ok_or_else(|| Lack::Missing(format!("queue {number} has no row for its offset {middle}")))?;
        let row = QueueRow::decode(&key, &value).ok_or_else(|| damaged_queue_row("offset_at", number, middle))?;
        if row.stored_at < at { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

fn damaged_record(operation: &'static str, position: u64) -> StorageError {
    corrupt(operation, format!("the record at position {position} (space log) is damaged: restore or salvage"))
}

fn damaged_queue_row(operation: &'static str, number: u32, offset: u64) -> StorageError {
    corrupt(operation, format!("offset {offset} of queue number {number} (space cq) is damaged: restore or salvage"))
}

fn damaged_row(operation: &'static str, table: &Table, row: &[u8]) -> StorageError {
    corrupt(operation, format!("row {row:02x?} of table {table} (space meta) is damaged: restore or salvage"))
}
