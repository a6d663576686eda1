//! SYNC: what it takes to make 4 KiB survive a power cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;

use super::Spread;
use crate::Result;
use crate::stopwatch::Stopwatch;

const BLOCK_BYTES: usize = 4096;
const BLOCK: [u8; BLOCK_BYTES] = [7; BLOCK_BYTES];
/// Blocks of the file, which is written once before: allocating blocks is no part of the limit.
const BLOCKS: u64 = 1024;

/// A file that was written before.
#[derive(Debug)]
pub struct SyncFile {
    file: File,
    // Removed after the file is closed.
    _folder: TempDir,
    block: u64,
}

impl SyncFile {
    /// Writes the file, in a folder of its own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(directory: &Path) -> Result<Self> {
        let folder = tempfile::tempdir_in(directory)?;
        let file = File::create(folder.path().join("sync"))?;
        for number in 0..BLOCKS {
            file.write_all_at(&BLOCK, number * BLOCK_BYTES as u64)?;
        }
        file.sync_all()?;
        Ok(Self { file, _folder: folder, block: 0 })
    }

    /// SYNC: the time of a positioned write of 4 KiB and an `fdatasync`, one thread, so many times.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[expect(clippy::cast_precision_loss, reason = "a sync takes less than 2^52 ns")]
    pub fn time(&mut self, rounds: usize) -> Result<Spread> {
        let mut nanos = Vec::with_capacity(rounds);
        for _ in 0..rounds.max(1) {
            let watch = Stopwatch::start();
            self.file.write_all_at(&BLOCK, self.block * BLOCK_BYTES as u64)?;
            self.file.sync_data()?;
            nanos.push(watch.elapsed().as_nanos() as f64);
            self.block = (self.block + 1) % BLOCKS;
        }
        Ok(Spread::of(nanos))
    }
}
