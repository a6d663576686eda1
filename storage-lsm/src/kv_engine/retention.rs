//! Maintenance: expires the oldest records and deletes the rows of what was trimmed or expired.
//!
//! A trim or an expiry only raises a queue's minimum, in one small durable step; the rows below it are deleted here, in
//! chunks, from the front. A crash between the two leaves rows that nobody can reach and that the next call deletes.

use std::collections::BTreeMap;

use bytes::BytesMut;
use cuemq_storage_api::{ErrorKind, Maintenance, Result, StorageError, Timestamp};

use super::{KvEngine, corrupt, read_failed};
use crate::keys::consume_queue::{self, QueueRow};
use crate::keys::{key_index, log, queue};
use crate::kv::{KvBatch, KvView, OrderedKv, Space};

/// Records deleted in one step, during which no batch is applied.
const SWEEP_CHUNK: usize = 512;
/// Records expired in one step.
const EXPIRY_CHUNK: usize = 4096;
/// Most steps of each kind that one call takes; what is left waits for the next call.
const MOST_STEPS: usize = 1024;
/// Deleted rows free the disk only when tables are merged, so a full disk takes at most this share of all records at
/// each call, or it would take them all before the first byte is free.
const DISK_EXPIRY_SHARE: u64 = 16;

/// The records of one queue that a step deletes.
struct Sweep<B> {
    changes: B,
    swept: u64,
    payload_bytes: u64,
}

/// What one step of expiry found: new minima and whether more may follow.
#[derive(Default)]
struct Expired {
    minima: BTreeMap<u32, u64>,
    payload_bytes: u64,
    next_position: Option<u64>,
}

impl<K: OrderedKv> KvEngine<K> {
    pub(super) fn tidy(&self, now: Timestamp) -> Result<Maintenance> {
        let store = self.store("maintain")?;
        // What expires here is gone for good, so everything before it must be durable too.
        self.sync_store(&store, "maintain")?;
        self.keep_watermark("maintain")?;
        let mut done = Maintenance::default();
        self.sweep_all(&store, &mut done)?;
        self.expire(&store, now, &mut done)?;
        self.sweep_all(&store, &mut done)?;
        Ok(done)
    }

    /// Raises minima over the oldest records, in the order of the log.
    fn expire(&self, kv: &K, now: Timestamp, done: &mut Maintenance) -> Result<()> {
        let mut over = self.bytes_over()?;
        let mut from = 0;
        for _ in 0..MOST_STEPS {
            let step = self.oldest(kv, from, now, over)?;
            self.raise_minima(kv, &step.minima, done)?;
            over = over.saturating_sub(step.payload_bytes);
            match step.next_position {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(())
    }

    /// How many payload bytes must go whatever their age.
    fn bytes_over(&self) -> Result<u64> {
        let kept = self.writer("maintain")?.state.kept_bytes;
        let over = self.parts.retention.max_bytes.map_or(0, |most| kept.saturating_sub(most));
        if self.parts.retention.disk_watermark_percent >= 100 {
            return Ok(over);
        }
        let room = self.parts.disk.room().map_err(|error| {
            StorageError::not_stored(ErrorKind::Io, "maintain", "how full the disk is").with_source(error)
        })?;
        let disk_over = room.over(self.parts.retention.disk_watermark_percent);
        Ok(over.max(disk_over.min(kept.div_ceil(DISK_EXPIRY_SHARE))))
    }

    /// The records from a position on that are too old, or among the first `over` bytes.
    fn oldest(&self, kv: &K, from: u64, now: Timestamp, over: u64) -> Result<Expired> {
        let published = self.registry().applied.next_position;
        let (first, end) = (log::key(from), log::key(published));
        let mut step = Expired::default();
        let view = kv.view();
        for row in view.range(Space::Log, &first, Some(&end)).take(EXPIRY_CHUNK) {
            let (key, value) = row.map_err(|error| read_failed("maintain", error))?;
            let Some(row) = log::decode(&key, value) else {
                return Err(corrupt("maintain", format!("the record under {key:02x?} (space log) is damaged")));
            };
            let old = now.since(row.stored.stored_at) > self.parts.retention.age;
            if !old && step.payload_bytes >= over {
                step.next_position = None;
                return Ok(step);
            }
            step.payload_bytes += row.stored.record.payload_bytes() as u64;
            step.minima.insert(row.queue, row.stored.offset.get() + 1);
            step.next_position = Some(row.stored.position.get() + 1);
        }
        Ok(step)
    }

    fn raise_minima(&self, kv: &K, minima: &BTreeMap<u32, u64>, done: &mut Maintenance) -> Result<()> {
        let _writer = self.writer("maintain")?;
        let mut changes = kv.batch(minima.len());
        let mut buffer = BytesMut::new();
        let mut raised = Vec::new();
        for (number, min) in minima {
            let registry = self.registry();
            let Some(queue) = registry.queue(*number).filter(|queue| queue.min < *min) else { continue };
            let (key, value) = queue::encode(&mut buffer, *number, &queue.key, *min);
            changes.put(Space::Meta, key, value);
            raised.push((*number, *min));
        }
        if raised.is_empty() {
            return Ok(());
        }
        kv.commit(changes).map_err(|error| self.poison("maintain", error))?;
        let mut registry = self.registry_mut();
        for (number, min) in raised {
            let Some(queue) = registry.queue_mut(number) else { continue };
            done.expired_records += min - queue.min;
            queue.min = min;
        }
        Ok(())
    }

    /// Deletes the rows below every queue's minimum.
    fn sweep_all(&self, kv: &K, done: &mut Maintenance) -> Result<()> {
        let behind: Vec<_> = self
            .registry()
            .iter()
            .filter(|(_, queue)| queue.swept < queue.min)
            .map(|(number, queue)| (number, queue.swept, queue.min))
            .collect();
        let mut steps = 0;
        for (number, mut swept, min) in behind {
            while swept < min {
                if steps == MOST_STEPS {
                    return Ok(());
                }
                steps += 1;
                let sweep = self.sweep(kv, number, swept, min)?;
                swept = sweep.swept;
                done.freed_bytes += sweep.payload_bytes;
                self.commit_sweep(kv, number, sweep)?;
            }
        }
        Ok(())
    }

    /// Collects what a step deletes: the rows of the first records in `[swept, min)`.
    fn sweep(&self, kv: &K, number: u32, swept: u64, min: u64) -> Result<Sweep<K::Batch>> {
        let failed = |error| read_failed("maintain", error);
        let topic = self.registry().queue(number).map(|queue| queue.key.topic.clone());
        let mut sweep = Sweep { changes: kv.batch(2 * SWEEP_CHUNK), swept: min, payload_bytes: 0 };
        let mut buffer = BytesMut::new();
        let view = kv.view();
        let (first, end) = (consume_queue::key(number, swept), consume_queue::key(number, min));
        for (count, row) in view.range(Space::ConsumeQueue, &first, Some(&end)).enumerate() {
            let (key, value) = row.map_err(failed)?;
            let (Some(offset), row) = (consume_queue::offset(&key), QueueRow::decode(&key, &value)) else {
                return Err(corrupt("maintain", format!("key {key:02x?} in space cq is not an offset")));
            };
            if count == SWEEP_CHUNK {
                sweep.swept = offset;
                break;
            }
            sweep.changes.delete(Space::ConsumeQueue, key);
            let Some(row) = row else {
                tracing::warn!(queue = number, offset, "a damaged row expired; its record stays behind");
                continue;
            };
            sweep.payload_bytes += u64::from(row.payload_bytes);
            let log_key = copied(&mut buffer, &log::key(row.position));
            if row.has_keys
                && let Some(topic) = &topic
                && let Some(value) = view.get(Space::Log, &log_key).map_err(failed)?
                && let Some(record) = log::decode(&log_key, value)
            {
                for name in record.stored.record.attributes.keys() {
                    let index_key = key_index::key(key_index::hash(topic, name), row.position);
                    sweep.changes.delete(Space::KeyIndex, copied(&mut buffer, &index_key));
                }
            }
            sweep.changes.delete(Space::Log, log_key);
        }
        Ok(sweep)
    }

    fn commit_sweep(&self, kv: &K, number: u32, sweep: Sweep<K::Batch>) -> Result<()> {
        let mut writer = self.writer("maintain")?;
        let mut state = writer.state;
        state.kept_bytes = state.kept_bytes.saturating_sub(sweep.payload_bytes);
        let mut changes = sweep.changes;
        let (key, value) = state.encode();
        changes.put(Space::Meta, key, value);
        kv.commit(changes).map_err(|error| self.poison("maintain", error))?;
        writer.state = state;
        if let Some(queue) = self.registry_mut().queue_mut(number) {
            queue.swept = sweep.swept;
        }
        Ok(())
    }
}

fn copied(buffer: &mut BytesMut, key: &[u8]) -> bytes::Bytes {
    buffer.extend_from_slice(key);
    buffer.split().freeze()
}
