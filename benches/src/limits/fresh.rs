//! What a log pays at the least: appends, each with a sync, to room that the disk has only promised, or that holds zeros.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use crate::Result;
use crate::place::fill;
use crate::stopwatch::Stopwatch;

/// Room is taken in steps of this, as the map engine takes it.
const STEP_BYTES: u64 = 64 << 20;

/// What stands where a log goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoomAhead {
    /// Nothing: the disk has promised the room.
    Promised,
    /// Zeros that were written and synced before.
    Zeros,
}

/// A file that grows by whole appends of one size.
#[derive(Debug)]
pub struct FreshLog {
    file: File,
    ahead: RoomAhead,
    // Removed after the file is closed.
    _folder: TempDir,
    piece: Vec<u8>,
    appends: u64,
    taken: u64,
}

impl FreshLog {
    /// An empty file in a folder of its own, for appends of so many bytes to such room.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(directory: &Path, append_bytes: usize, ahead: RoomAhead) -> Result<Self> {
        let folder = tempfile::tempdir_in(directory)?;
        let path = folder.path().join("log");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { file, ahead, _folder: folder, piece: vec![7; append_bytes], appends: 0, taken: 0 })
    }

    fn end(&self) -> u64 {
        self.appends * self.piece.len() as u64
    }

    /// Has room for so many appends more; what it takes to make it is not a part of them.
    ///
    /// # Errors
    /// When the file cannot be made longer.
    pub fn prepare(&mut self, appends: u64) -> Result<()> {
        let end = self.end() + appends * self.piece.len() as u64;
        if end > self.taken {
            let upto = end.next_multiple_of(STEP_BYTES);
            fallocate(&self.file, FallocateFlags::empty(), self.taken, upto - self.taken)?;
            if self.ahead == RoomAhead::Zeros {
                fill(&self.file, self.taken..upto)?;
            }
            self.file.sync_all()?;
            self.taken = upto;
        }
        Ok(())
    }

    /// Appends and syncs; returns the time of both.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self) -> Result<Duration> {
        self.prepare(1)?;
        let watch = Stopwatch::start();
        self.file.write_all_at(&self.piece, self.end())?;
        self.file.sync_data()?;
        self.appends += 1;
        Ok(watch.elapsed())
    }

    /// The same so many times for a thread that asks for each append and waits for the answer; returns the time in all.
    /// Both threads sleep while they wait; one that stays awake answers sooner.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_when_asked(&mut self, appends: u64) -> Result<Duration> {
        self.prepare(appends)?;
        let (ask, asked) = sync_channel::<()>(1);
        let (answer, answered) = sync_channel(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for () in asked {
                    // The asker has gone away only when it failed itself.
                    if answer.send(self.append().map(|_| ())).is_err() {
                        return;
                    }
                }
            });
            let watch = Stopwatch::start();
            for _ in 0..appends {
                ask.send(())?;
                answered.recv()??;
            }
            drop(ask);
            Ok(watch.elapsed())
        })
    }

    /// Reads everything back; returns how many appends there are.
    ///
    /// # Errors
    /// What differs from what was appended.
    pub fn check(&self) -> Result<u64> {
        let mut found = vec![0; self.piece.len()];
        for number in 0..self.appends {
            self.file.read_exact_at(&mut found, number * self.piece.len() as u64)?;
            if found != self.piece {
                return Err(format!("append {number} of {} came back changed", self.appends).into());
            }
        }
        Ok(self.appends)
    }
}
