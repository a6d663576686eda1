//! Upkeep: derived files to disk, checkpoints, and what retention removes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cuemq_storage_api::{LogPosition, Maintenance, Result, Timestamp};

use crate::checkpoint::{Checkpoint, QueuePoint};
use crate::consume_queue;
use crate::engine::MmapEngine;
use crate::health::{CLOSE, read_failed};
use crate::index::INDEX_DIRECTORY;
use crate::retention;
use crate::watermark;

/// A checkpoint is written when the log has grown by this many times its last size, if that is more than the setting
/// says: large tables are then not written again and again.
const CHECKPOINT_GROWTH: u64 = 2;

/// The checkpoint that the next opening would begin with.
#[derive(Debug)]
pub(crate) struct LastCheckpoint {
    position: u64,
    bytes: u64,
}

impl LastCheckpoint {
    pub(crate) fn at(position: u64) -> Self {
        Self { position, bytes: 0 }
    }
}

impl MmapEngine {
    pub(crate) fn keep_up(&self, now: Timestamp) -> Result<Maintenance> {
        self.health.check_writable("maintain")?;
        let mut last = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        self.health.check_writable("maintain")?;
        self.spill("maintain")?;
        let durable = self.durable.load(Ordering::Acquire);
        watermark::write(&*self.files, durable)
            .map_err(|error| self.health.poison("maintain", "writing the watermark".to_owned(), error))?;
        let expired = retention::expire(self, now)?;
        let threshold = self.settings.checkpoint_after_bytes.max(last.bytes.saturating_mul(CHECKPOINT_GROWTH));
        let grown = self.catalog("maintain")?.log_end.saturating_sub(last.position);
        if grown >= threshold || expired.is_some() {
            self.checkpoint("maintain", false, &mut last)?;
        }
        match expired {
            Some(expired) => retention::remove(self, expired),
            None => Ok(Maintenance::default()),
        }
    }

    /// Moves the entries that are only in memory to the consume queues' files. A full disk refuses and changes nothing:
    /// the entries stay in memory and are written again later.
    pub(crate) fn spill(&self, operation: &'static str) -> Result<()> {
        let _one_at_a_time = self.spilling.lock().unwrap_or_else(PoisonError::into_inner);
        let tails = self.catalog(operation)?.tails();
        for tail in &tails {
            self.queue_files.write(&tail.key, tail.first, &tail.entries).map_err(|error| {
                let path = self.queue_files.describe(&tail.key, tail.first);
                crate::commit_log::no_room(operation, &path, error, &self.health)
            })?;
        }
        self.catalog_mut(operation)?.forget(&tails);
        Ok(())
    }

    /// Writes a checkpoint of everything applied so far, after all that it speaks of is durable.
    pub(crate) fn checkpoint(&self, operation: &'static str, clean: bool, last: &mut LastCheckpoint) -> Result<()> {
        let checkpoint = {
            // The writer's lock keeps the log's end and the catalog in step; rows are shared and not copied.
            let writer = self.writer(operation)?;
            let catalog = self.catalog(operation)?;
            let point = |queue: &crate::catalog::QueueState| QueuePoint {
                key: queue.key.clone(),
                base: queue.base,
                min: queue.min,
                end: queue.end,
            };
            Checkpoint {
                clean,
                epoch: self.epoch,
                end: writer.log.end(),
                log_start: catalog.log_start,
                times: writer.log.times().clone(),
                queues: catalog.queues().iter().map(point).collect(),
                tables: catalog.tables.clone(),
            }
        };
        self.sync_log(operation)?;
        self.spill(operation)?;
        self.index
            .flush(LogPosition::new(checkpoint.end.position))
            .map_err(|error| self.health.poison(operation, format!("writing {INDEX_DIRECTORY}"), error))?;
        let written = self.queue_files.sync().and_then(|()| checkpoint.write(&*self.files));
        let bytes = written.map_err(|error| self.health.poison(operation, "writing a checkpoint".to_owned(), error))?;
        *last = LastCheckpoint { position: checkpoint.end.position, bytes };
        Ok(())
    }

    /// Makes everything durable and writes what a clean opening needs.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut last = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let durable = self.sync_log(CLOSE)?;
        watermark::write(&*self.files, durable)
            .map_err(|error| self.health.poison(CLOSE, "writing the watermark".to_owned(), error))?;
        self.checkpoint(CLOSE, true, &mut last)
    }

    pub(crate) fn failed_upkeep(&self, error: std::io::Error) -> cuemq_storage_api::StorageError {
        read_failed("maintain", consume_queue::DIRECTORY, error)
    }
}
