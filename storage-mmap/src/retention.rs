//! Retention: which segments may go, and what that does to the queues.
//!
//! First the queues' minima rise and readers see it, then a checkpoint makes that durable, then files go. A crash in
//! between leaves files that the next opening removes, never a queue that points into a hole.

use cuemq_storage_api::{LogPosition, Maintenance, QueueKey, Result, Timestamp};

use crate::health::read_failed;
use crate::index::INDEX_DIRECTORY;
use crate::store::Store;

/// What is about to go.
#[derive(Debug)]
pub(crate) struct Expired {
    segments: Vec<u64>,
    /// Queues whose base rose, with the new one.
    queues: Vec<(QueueKey, u64)>,
    records: u64,
    log_start: u64,
}

/// Decides what expires at `now` and raises the queues' minima. The caller writes a checkpoint, then calls [`remove`].
pub(crate) fn expire(engine: &Store, now: Timestamp) -> Result<Option<Expired>> {
    let segments = doomed(engine, now)?;
    let Some(last) = segments.last() else { return Ok(None) };
    let log_start = last + engine.segments.segment_bytes();
    let queues: Vec<QueueKey> = engine.catalog("maintain")?.queues().iter().map(|queue| queue.key.clone()).collect();
    let mut raised = Vec::new();
    for key in queues {
        let base = first_at_or_after(engine, &key, log_start)?;
        raised.push((key, base));
    }
    let mut records = 0;
    {
        // Both at once: a batch applied meanwhile lies above the new start anyway.
        let mut writer = engine.writer("maintain")?;
        let mut catalog = engine.catalog_mut("maintain")?;
        raised.retain(|(key, base)| {
            let Some(slot) = catalog.slot(key) else { return false };
            let queue = catalog.at_mut(slot);
            let rises = queue.base < *base;
            records += base.saturating_sub(queue.min);
            queue.base = queue.base.max(*base);
            queue.min = queue.min.max(*base);
            rises
        });
        catalog.log_start = log_start;
        writer.log.forget_before(log_start);
    }
    Ok(Some(Expired { segments, queues: raised, records, log_start }))
}

/// The oldest segments that have to go, never the one being written.
fn doomed(engine: &Store, now: Timestamp) -> Result<Vec<u64>> {
    let retention = &engine.settings.retention;
    let (times, active, end) = {
        let writer = engine.writer("maintain")?;
        (writer.log.times().clone(), writer.log.active_start(), writer.log.end().position)
    };
    let log_start = engine.catalog("maintain")?.log_start;
    let segment_bytes = engine.segments.segment_bytes();
    let space = engine.files.disk_space().map_err(|error| read_failed("maintain", &engine.files.describe(), error))?;
    let mut used = space.total_bytes.saturating_sub(space.free_bytes);
    let watermark = u128::from(space.total_bytes) * u128::from(retention.disk_watermark_percent);
    let mut doomed = Vec::new();
    let mut start = log_start;
    while start < active {
        // A segment without a time holds no record.
        let last = times.get(&start).copied().unwrap_or(i64::MIN);
        let too_old = now.since(Timestamp::from_millis(last)) > retention.age();
        let too_much = retention.max_bytes.is_some_and(|most| end - start > most);
        let too_full = u128::from(used) * 100 > watermark;
        if !(too_old || too_much || too_full) {
            break;
        }
        doomed.push(start);
        used = used.saturating_sub(segment_bytes);
        start += segment_bytes;
    }
    Ok(doomed)
}

/// The first offset of a queue whose record lies at or after a position; the queue's end if none does.
fn first_at_or_after(engine: &Store, key: &QueueKey, position: u64) -> Result<u64> {
    let (mut low, mut high) = {
        let catalog = engine.catalog("maintain")?;
        catalog.queue(key).map_or((0, 0), |queue| (queue.base, queue.end))
    };
    // Most queues have nothing that old: one look at their oldest record tells.
    if low < high && engine.entries("maintain", key, low, 1)?.first().is_some_and(|entry| entry.position >= position) {
        return Ok(low);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        let entries = engine.entries("maintain", key, middle, 1)?;
        if entries.first().is_some_and(|entry| entry.position < position) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Removes the files of what expired.
pub(crate) fn remove(engine: &Store, expired: Expired) -> Result<Maintenance> {
    let failed = |error| engine.health.poison("maintain", "removing expired files".to_owned(), error);
    for start in &expired.segments {
        engine.segments.remove(*start).map_err(failed)?;
    }
    engine.segments.sync_directory().map_err(failed)?;
    for (key, base) in &expired.queues {
        engine.queue_files.expire(key, *base).map_err(failed)?;
    }
    engine
        .index
        .expire_below(LogPosition::new(expired.log_start))
        .map_err(|error| read_failed("maintain", INDEX_DIRECTORY, error))?;
    let freed_bytes = expired.segments.len() as u64 * engine.segments.segment_bytes();
    Ok(Maintenance { freed_bytes, expired_records: expired.records })
}
