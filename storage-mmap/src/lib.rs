//! The commit-log storage engine of CueMQ.
//!
//! One log holds every batch as one checksummed frame; all else is derived from it. A frame is encoded in place, into the
//! mapped end of the log, or, if a sync is expected behind it, written with one positioned write. A read hands out slices
//! of a read-only map. One thread, `cuemq-mmap-prepare`, fills room ahead of the writer; another, `cuemq-mmap-read`, reads
//! and checks the log ahead of what takes it in while a store is opened that was not closed.
//!
//! ```text
//! MANIFEST      format, shape of the files, epoch          checkpoint   state at one position of the log
//! LOCK          one process per directory                  watermark    how much of the log was surely on disk
//! commitlog/    frames, in files of one size               index/       key and time look-up
//! consumequeue/ <topic>/<queue>/: 20 bytes per record
//! ```
//!
//! `FORMAT.md` has every byte of every file.

mod catalog;
mod checkpoint;
mod commit_log;
mod consume_queue;
mod cursor;
mod engine;
mod fetching;
pub mod files;
mod health;
mod index;
mod manifest;
mod mapped_file;
mod opening;
mod preparer;
mod reader;
mod reading;
mod replace;
mod retention;
mod settings;
mod spill;
mod store;
mod tables;
mod upkeep;
mod watermark;
mod writer;

pub use engine::MmapEngine;
pub use settings::{MmapSettings, RetentionSettings};
