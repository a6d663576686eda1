//! What can be tuned.

use std::time::Duration;

use cuemq_storage_api::{InvalidInput, Retention};
use serde::{Deserialize, Serialize};

const MIB: u64 = 1 << 20;
/// fjall's journals are 64 MiB long, so the bound on all of them cannot be lower.
const SMALLEST_JOURNAL_BYTES: u64 = 64 * MIB;
const SMALLEST_MEMTABLE_BYTES: u64 = MIB;
const MOST_WORKER_THREADS: usize = 64;

/// How an [`LsmEngine`](crate::LsmEngine) uses memory, disk and threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LsmSettings {
    /// Bytes of blocks and filters kept in memory for readers. Default 64 MiB, at least 1 MiB.
    pub cache_bytes: u64,
    /// Bytes of records collected in memory before they are written as a sorted table; the other spaces use a quarter
    /// of it each. At most four full ones wait beside the one being filled. Larger means fewer stalls and more memory.
    /// Set when the store is made, kept from then on. Default 64 MiB, at least 1 MiB.
    pub memtable_bytes: u64,
    /// Bytes of full journals that may wait to become tables. They and the one being filled, up to 64 MiB, are read
    /// again when a store is opened that was not closed, at some 60 MiB a second. Default 64 MiB, which is the least.
    pub journal_bytes: u64,
    /// Threads that write and merge tables. Default 2, from 1 to 64.
    pub worker_threads: usize,
    /// Free bytes on the disk below which appends are refused as `Full`; table rows are refused below half of it,
    /// trims and deletes never. What is left lets consumers go on and merges finish. Default 256 MiB.
    pub reserve_bytes: u64,
    /// Records stored longer ago than this expire. Default 259,200 s (72 hours).
    pub retention_seconds: u64,
    /// When all records together have more payload bytes than this, the oldest expire. Default: no bound.
    pub retention_bytes: Option<u64>,
    /// When the disk is fuller than this share (percent), the oldest records expire, whatever their age. Default 85,
    /// from 1 to 100 (never).
    pub disk_watermark_percent: u8,
}

impl Default for LsmSettings {
    fn default() -> Self {
        let retention = Retention::default();
        Self {
            cache_bytes: 64 * MIB,
            memtable_bytes: 64 * MIB,
            journal_bytes: SMALLEST_JOURNAL_BYTES,
            worker_threads: 2,
            reserve_bytes: 256 * MIB,
            retention_seconds: retention.age.as_secs(),
            retention_bytes: retention.max_bytes,
            disk_watermark_percent: retention.disk_watermark_percent,
        }
    }
}

impl LsmSettings {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the field, its value and its range.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        at_least("cache_bytes", self.cache_bytes, MIB)?;
        at_least("memtable_bytes", self.memtable_bytes, SMALLEST_MEMTABLE_BYTES)?;
        at_least("journal_bytes", self.journal_bytes, SMALLEST_JOURNAL_BYTES)?;
        if !(1..=MOST_WORKER_THREADS).contains(&self.worker_threads) {
            return Err(InvalidInput::new(format!(
                "worker_threads is {}: use 1 to {MOST_WORKER_THREADS}",
                self.worker_threads
            )));
        }
        if !(1..=100).contains(&self.disk_watermark_percent) {
            return Err(InvalidInput::new(format!(
                "disk_watermark_percent is {}: use 1 to 100",
                self.disk_watermark_percent
            )));
        }
        Ok(())
    }

    /// The retention that these settings ask for.
    #[must_use]
    pub fn retention(&self) -> Retention {
        Retention {
            age: Duration::from_secs(self.retention_seconds),
            max_bytes: self.retention_bytes,
            disk_watermark_percent: self.disk_watermark_percent,
        }
    }
}

fn at_least(field: &str, value: u64, least: u64) -> Result<(), InvalidInput> {
    if value < least {
        return Err(InvalidInput::new(format!("{field} is {value}: use at least {least}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_a_bad_field_is_named() {
        let good = LsmSettings::default();
        good.validate().unwrap();
        let bad = [
            ("cache_bytes", LsmSettings { cache_bytes: 0, ..good.clone() }),
            ("memtable_bytes", LsmSettings { memtable_bytes: 9, ..good.clone() }),
            ("journal_bytes", LsmSettings { journal_bytes: MIB, ..good.clone() }),
            ("worker_threads", LsmSettings { worker_threads: 0, ..good.clone() }),
            ("disk_watermark_percent", LsmSettings { disk_watermark_percent: 101, ..good }),
        ];
        for (field, settings) in bad {
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
