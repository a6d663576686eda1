//! Upkeep: derived files to disk, checkpoints, and what retention removes.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use cuemq_storage_api::{LogPosition, Maintenance, Result, Timestamp};

use crate::checkpoint::{CHECKPOINT, Checkpoint, QueuePoint};
use crate::commit_log::no_room;
use crate::consume_queue;
use crate::health::{CLOSE, read_failed};
use crate::index::INDEX_DIRECTORY;
use crate::retention::{self, Expired};
use crate::store::Store;
use crate::watermark;

/// A checkpoint is written when the log has grown by this many times its last size, if that is more than the setting
/// says: large tables are then not written again and again.
const CHECKPOINT_GROWTH: u64 = 2;

/// Where upkeep stands.
#[derive(Debug)]
pub(crate) struct Upkeep {
    /// Position and size of the checkpoint that the next opening would begin with.
    checkpoint_at: u64,
    checkpoint_bytes: u64,
    /// What the watermark file says.
    watermark: u64,
    /// Expired, but not removed yet: the checkpoint that has to come first failed.
    expired: Option<Expired>,
}

impl Upkeep {
    pub(crate) fn new(checkpoint_at: u64) -> Self {
        Self { checkpoint_at, checkpoint_bytes: 0, watermark: 0, expired: None }
    }
}

impl Store {
    pub(crate) fn keep_up(&self, now: Timestamp) -> Result<Maintenance> {
        self.health.check_writable("maintain")?;
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        self.health.check_writable("maintain")?;
        self.spill("maintain", 1)?;
        self.raise_watermark("maintain", &mut upkeep)?;
        if upkeep.expired.is_none() {
            upkeep.expired = retention::expire(self, now)?;
        }
        let growth = upkeep.checkpoint_bytes.saturating_mul(CHECKPOINT_GROWTH);
        let threshold = self.settings.checkpoint_after_bytes.max(growth);
        let grown = self.catalog("maintain")?.log_end.saturating_sub(upkeep.checkpoint_at);
        let mut indexed = Ok(());
        // Rows that changed leave memory with a checkpoint.
        let heavy = self.catalog("maintain")?.tables.young_bytes() as u64 >= self.settings.table_memory_bytes;
        if grown >= threshold || heavy || upkeep.expired.is_some() {
            indexed = self.checkpoint("maintain", false, &mut upkeep)?;
        }
        let done = match upkeep.expired.take() {
            Some(expired) => retention::remove(self, expired)?,
            None => Maintenance::default(),
        };
        indexed.map(|()| done)
    }

    fn raise_watermark(&self, operation: &'static str, upkeep: &mut Upkeep) -> Result<()> {
        let durable = self.durable.load(Ordering::Acquire);
        if durable > upkeep.watermark {
            watermark::write(&*self.files, durable)
                .map_err(|error| no_room(operation, watermark::PATH, error, &self.health))?;
            upkeep.watermark = durable;
        }
        Ok(())
    }

    /// Writes a checkpoint of everything applied so far, after all that it speaks of is durable. The inner result is
    /// that of the key index: it is not needed for anything but look-ups, and the next opening makes it whole.
    fn checkpoint(&self, operation: &'static str, clean: bool, upkeep: &mut Upkeep) -> Result<Result<()>> {
        let (checkpoint, rows) = {
            // The writer's lock keeps the log's end and the catalog in step; no row is copied.
            let writer = self.writer(operation)?;
            let mut catalog = self.catalog_mut(operation)?;
            let rows = catalog.tables.freeze();
            let checkpoint = Checkpoint {
                clean,
                epoch: self.epoch,
                end: writer.log.end(),
                log_start: catalog.log_start,
                times: writer.log.times().clone(),
                queues: catalog.queues().iter().map(QueuePoint::of).collect(),
            };
            (checkpoint, rows)
        };
        self.sync_log(operation)?;
        self.spill(operation, 1)?;
        self.queue_files
            .sync()
            .map_err(|error| self.health.poison(operation, format!("syncing {}", consume_queue::DIRECTORY), error))?;
        let indexed = self.index.flush(LogPosition::new(checkpoint.end.position));
        let written = checkpoint
            .write(&*self.files, &rows)
            .map_err(|error| no_room(operation, CHECKPOINT, error, &self.health))?;
        self.catalog_mut(operation)?.tables.rebase(written.base);
        upkeep.checkpoint_at = checkpoint.end.position;
        upkeep.checkpoint_bytes = written.bytes;
        Ok(indexed.map_err(|error| {
            let context = format!("writing {INDEX_DIRECTORY}: look-ups by key fail until the store is reopened");
            read_failed(operation, &context, error)
        }))
    }

    /// Makes everything durable and writes what a clean opening needs.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_log(CLOSE)?;
        self.raise_watermark(CLOSE, &mut upkeep)?;
        self.checkpoint(CLOSE, true, &mut upkeep)?
    }
}
