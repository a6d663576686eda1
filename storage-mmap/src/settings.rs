//! What can be tuned.

use std::time::Duration;

use cuemq_storage_api::{ErrorKind, Result, Retention, StorageError};
use serde::{Deserialize, Serialize};

/// Segments are a multiple of this, so that maps and disk blocks end with them.
const PAGE_BYTES: u64 = 4096;
/// A consume-queue entry and a blank frame say their length in 32 bits.
const MAX_SEGMENT_BYTES: u64 = 2 << 30;
/// A consume-queue file stays below 2 GiB.
const MAX_CONSUME_QUEUE_ENTRIES: u32 = 100_000_000;
/// Slots and entries are numbered in 32 bits, signed on RocketMQ's side.
const MAX_INDEX_NUMBER: u32 = 1 << 30;

/// Settings of a store. Unknown keys are errors; missing ones take their default.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MmapSettings {
    /// Bytes of one commit-log file: a multiple of 4096 from 8 KiB to 2 GiB, 1 GiB by default (RocketMQ's
    /// `mappedFileSizeCommitLog`). Fixed when the store is made. The largest batch is 128 bytes smaller.
    pub segment_bytes: u64,
    /// Bytes taken from the disk ahead of the writer in one step: a multiple of 4096, 16 MiB by default. Larger steps
    /// make fewer pauses, smaller ones a smaller new store.
    pub allocate_step_bytes: u64,
    /// Most bytes that are filled with zeros ahead of the writer, on a thread of the engine's own: 0 to 2 GiB, 64 MiB by
    /// default. While it writes, a store that grows slowly has less ahead: no more than was written since the last sync,
    /// but always 256 KiB, so that no sync becomes much longer by it. While it rests, one whose batches expect syncs has as
    /// much ahead, and synced, as they have taken since it was opened. 0 fills nothing ahead.
    pub prepare_bytes: u64,
    /// Entries of one consume-queue file: 1 to 100 million, 300,000 by default (RocketMQ's value). Fixed when the
    /// store is made.
    pub consume_queue_entries: u32,
    /// Hash slots of one key-index file: 1 to 2^30, 5,000,000 by default (RocketMQ's value). Fixed when the store is made.
    pub index_slots: u32,
    /// Entries of one key-index file: 2 to 2^30, 20,000,000 by default (RocketMQ's value; number 0 is never used). Fixed when the store is made.
    pub index_entries: u32,
    /// How long records are kept.
    pub retention: RetentionSettings,
    /// Writes are refused while the disk is fuller than this share: 1 to 100 percent, 95 by default. Looked at
    /// whenever the log takes room from the disk.
    pub disk_full_percent: u8,
    /// Bytes of new log after which [`maintain`](cuemq_storage_api::Engine::maintain) writes a checkpoint: at least
    /// 1, 64 MiB by default. After a crash at most about this much, or twice the size of the tables if that is more,
    /// is replayed.
    pub checkpoint_after_bytes: u64,
    /// Most memory, by estimate, for rows of tables that changed since the last checkpoint: with more of it the next
    /// [`maintain`](cuemq_storage_api::Engine::maintain) writes a checkpoint, from which all other rows are read. At
    /// least 1, 64 MiB by default. Twice as much, and what changes meanwhile, is taken while a checkpoint is written.
    pub table_memory_bytes: u64,
}

/// How long records are kept; whole segments go, never the one being written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// Records stored longer ago than this many milliseconds may go; 72 hours by default (RocketMQ's `fileReservedTime`).
    pub age_ms: u64,
    /// The oldest records go when the log is larger than this many bytes; unlimited by default.
    pub max_bytes: Option<u64>,
    /// The oldest records go while the disk is fuller than this share, whatever their age: 1 to 100 percent, 85 by
    /// default.
    pub disk_watermark_percent: u8,
}

impl Default for MmapSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 1 << 30,
            allocate_step_bytes: 16 << 20,
            prepare_bytes: 64 << 20,
            consume_queue_entries: 300_000,
            index_slots: 5_000_000,
            index_entries: 20_000_000,
            retention: RetentionSettings::default(),
            disk_full_percent: 95,
            checkpoint_after_bytes: 64 << 20,
            table_memory_bytes: 64 << 20,
        }
    }
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Retention::default().into()
    }
}

impl From<Retention> for RetentionSettings {
    fn from(retention: Retention) -> Self {
        Self {
            age_ms: u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX),
            max_bytes: retention.max_bytes,
            disk_watermark_percent: retention.disk_watermark_percent,
        }
    }
}

impl RetentionSettings {
    /// How long records may stay.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.age_ms)
    }
}

impl MmapSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// `Invalid`, naming the field, its value and its range.
    pub fn validate(&self) -> Result<()> {
        let size = |name, bytes: u64, range: std::ops::RangeInclusive<u64>| {
            check(
                range.contains(&bytes) && bytes.is_multiple_of(PAGE_BYTES),
                format_args!("{name} is {bytes}: use a multiple of 4096 from {} to {}", range.start(), range.end()),
            )
        };
        let count = |name, count: u32, range: std::ops::RangeInclusive<u32>| {
            check(range.contains(&count), format_args!("{name} is {count}: use {} to {}", range.start(), range.end()))
        };
        let percent = |name, percent: u8| {
            check((1..=100).contains(&percent), format_args!("{name} is {percent}: use 1 to 100 percent"))
        };
        size("segment_bytes", self.segment_bytes, 2 * PAGE_BYTES..=MAX_SEGMENT_BYTES)?;
        size("allocate_step_bytes", self.allocate_step_bytes, PAGE_BYTES..=MAX_SEGMENT_BYTES)?;
        check(
            self.prepare_bytes <= MAX_SEGMENT_BYTES,
            format_args!("prepare_bytes is {}: use 0 to {MAX_SEGMENT_BYTES}", self.prepare_bytes),
        )?;
        count("consume_queue_entries", self.consume_queue_entries, 1..=MAX_CONSUME_QUEUE_ENTRIES)?;
        count("index_slots", self.index_slots, 1..=MAX_INDEX_NUMBER)?;
        count("index_entries", self.index_entries, 2..=MAX_INDEX_NUMBER)?;
        percent("disk_full_percent", self.disk_full_percent)?;
        percent("retention.disk_watermark_percent", self.retention.disk_watermark_percent)?;
        check(self.checkpoint_after_bytes > 0, format_args!("checkpoint_after_bytes is 0: use at least 1"))?;
        check(self.table_memory_bytes > 0, format_args!("table_memory_bytes is 0: use at least 1"))
    }
}

fn check(holds: bool, problem: std::fmt::Arguments<'_>) -> Result<()> {
    if holds { Ok(()) } else { Err(StorageError::not_stored(ErrorKind::Invalid, "open", problem.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        MmapSettings::default().validate().unwrap();
    }

    #[test]
    fn a_bad_field_is_named() {
        let good = MmapSettings::default;
        let retention = RetentionSettings { disk_watermark_percent: 101, ..RetentionSettings::default() };
        for (settings, field) in [
            (MmapSettings { segment_bytes: 4096, ..good() }, "segment_bytes"),
            (MmapSettings { segment_bytes: 10_000, ..good() }, "segment_bytes"),
            (MmapSettings { segment_bytes: 4 << 30, ..good() }, "segment_bytes"),
            (MmapSettings { allocate_step_bytes: 0, ..good() }, "allocate_step_bytes"),
            (MmapSettings { prepare_bytes: (2 << 30) + 1, ..good() }, "prepare_bytes"),
            (MmapSettings { consume_queue_entries: 0, ..good() }, "consume_queue_entries"),
            (MmapSettings { index_slots: 0, ..good() }, "index_slots"),
            (MmapSettings { index_entries: 1, ..good() }, "index_entries"),
            (MmapSettings { disk_full_percent: 0, ..good() }, "disk_full_percent"),
            (MmapSettings { checkpoint_after_bytes: 0, ..good() }, "checkpoint_after_bytes"),
            (MmapSettings { table_memory_bytes: 0, ..good() }, "table_memory_bytes"),
            (MmapSettings { retention, ..good() }, "disk_watermark_percent"),
        ] {
            let error = settings.validate().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.context().contains(field), "{error} names {field}");
        }
    }
}
