//! SYNC: what it takes to make 4 KiB survive a power cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Spread;
use crate::Result;
use crate::stopwatch::Stopwatch;

const BLOCK_BYTES: usize = 4096;
/// Blocks of the file, which is written once before: allocating blocks is no part of the limit.
const BLOCKS: u64 = 1024;

/// The time of a positioned write of 4 KiB and an `fdatasync` on a file that was written before, one thread.
///
/// # Errors
/// When the file cannot be written.
#[expect(clippy::cast_precision_loss, reason = "a sync takes less than 2^52 ns")]
pub fn sync_time(directory: &Path, rounds: usize) -> Result<Spread> {
    let folder = tempfile::tempdir_in(directory)?;
    let file = File::create(folder.path().join("sync"))?;
    let block = [7u8; BLOCK_BYTES];
    for number in 0..BLOCKS {
        file.write_all_at(&block, number * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let mut nanos = Vec::with_capacity(rounds);
    for number in (0..BLOCKS).cycle().take(rounds.max(1)) {
        let watch = Stopwatch::start();
        file.write_all_at(&block, number * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        nanos.push(watch.elapsed().as_nanos() as f64);
    }
    Ok(Spread::of(nanos))
}
