//! CueMQ's LSM engine: the [storage contract](cuemq_storage_api) over [fjall](https://docs.rs/fjall), an LSM tree.
//!
//! ```no_run
//! use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, Timestamp,
//!     TopicName, WriteBatch};
//! use cuemq_storage_lsm::{LsmEngine, LsmSettings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = LsmEngine::open("data/orders", &LsmSettings::default())?;
//! let queue = QueueKey::new(TopicName::new("orders")?, QueueId::FIRST);
//! let now = Timestamp::from_millis(1_700_000_000_000);
//! let mut batch = WriteBatch::new(now);
//! batch.append(&queue, Record::new("one pizza", now));
//! engine.apply(batch)?; // in order, readable, survives the process
//! engine.sync()?; // survives a power cut
//! let fetched = engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, FetchLimit::messages(32)))?;
//! assert_eq!(&fetched.records[0].record.body[..], b"one pizza");
//! engine.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # When to choose it
//!
//! Tables may be larger than memory, single records go as they are trimmed (not whole files), and space comes back as
//! tables are merged. It costs: every record is written at least twice, and `apply` takes as long as two insertions
//! into a sorted map per record and may stall for half a second while tables are merged
//! (`Capabilities::apply_may_stall`: the broker keeps it off its actors). The engine over mapped files is an order of
//! magnitude faster.
//!
//! # What it keeps
//!
//! * A batch is one atomic fjall batch over four key spaces: bodies by position, one small row per queue offset, one
//!   row per key, and tables with the engine's own state. Positions count records, dense from 0.
//! * `apply` returns when the batch is in the operating system's hands: SIGKILL loses nothing. `sync` is one
//!   `fdatasync` for everything applied before, and `apply` goes on beside it.
//! * Every value has a checksum over its key and itself, verified on every read. Every batch rewrites one row with the
//!   count of batches; the file `watermark` holds that count as of the last sync, so a store that lost synced batches
//!   is refused with `Corrupt` when it is opened. fjall alone would open it.
//! * A trim or an expiry raises a queue's minimum at once; `maintain` deletes the rows in chunks. The space on disk
//!   follows when fjall merges the tables.
//! * One handle per directory, also between processes. Formats that this version does not know are refused untouched.
//!
//! # Bounds
//!
//! Memory: the cache, up to five memtables of `memtable_bytes` and up to five of a quarter of it for each of the three
//! small spaces, and about 100 bytes per queue. fjall back-pressures writers at four full memtables. Disk: twice the
//! records, at worst, plus the journals. `apply` refuses with `Full` while the disk has less than `reserve_bytes` free,
//! before fjall meets the end of the disk and fails for good.
//! Opening takes milliseconds after [`close`](cuemq_storage_api::Engine::close). After a crash it reads the journals: half
//! a second for records of 256 bytes, some seconds for tiny ones.
//!
//! A body that a fetch returns is a slice of a cached block or of the buffer of the batch that wrote it: copy what is
//! kept for long.

mod directory;
mod disk_space;
mod engine;
mod fjall_kv;
mod journals;
mod keys;
mod kv;
mod kv_engine;
#[cfg(test)]
mod memory_kv;
mod published;
mod registry;
mod settings;
mod watermark;

pub use engine::LsmEngine;
pub use settings::LsmSettings;

#[cfg(test)]
mod tests;
