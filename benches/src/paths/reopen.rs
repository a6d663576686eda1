//! Opens stores: after a close, and after the end of a process that could not close.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use cuemq_storage_api::Engine;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tempfile::TempDir;

use super::fetch::load;
use super::{Rig, Setting};
use crate::Result;
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, check_queue, queue};

/// Copies are written in such steps, like the room that an engine fills ahead: the cache has a file in pieces as large as
/// they were written, and reads small pieces more slowly.
const COPY_BYTES: usize = 256 << 10;

/// Opens the store in a folder and checks that its queue is whole.
fn open(setting: &Setting, folder: &Path) -> Result<(Box<dyn Engine>, Duration)> {
    let watch = Stopwatch::start();
    let engine = setting.configuration.engine.open(folder, &setting.profile)?;
    let time = watch.elapsed();
    let (bounds, count) = (engine.bounds(&queue())?, setting.configuration.messages_per_iteration());
    if bounds.start.get() != 0 || bounds.end.get() != count {
        return Err(format!("the opened queue has {bounds:?}, {count} messages were written").into());
    }
    Ok((engine, time))
}

pub(super) struct CleanRig {
    setting: Setting,
    bodies: Bodies,
    folder: TempDir,
}

impl CleanRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let bodies = Bodies::new(setting.configuration.body_bytes);
        let folder = setting.place.folder()?;
        let engine = setting.configuration.engine.open(folder.path(), &setting.profile)?;
        load(&*engine, &bodies, setting.configuration.messages_per_iteration())?;
        engine.close()?;
        Ok(Self { setting, bodies, folder })
    }
}

impl Rig for CleanRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for _ in 0..iterations {
            let (engine, opening) = open(&self.setting, self.folder.path())?;
            time += opening;
            engine.close()?;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        let (engine, _) = open(&self.setting, self.folder.path())?;
        let count = self.setting.configuration.messages_per_iteration();
        let verified = check_queue(&*engine, &self.bodies, count, Ok)?;
        engine.close()?;
        Ok(verified)
    }
}

pub(super) struct DroppedRig {
    setting: Setting,
    bodies: Bodies,
    /// What the open and synced store had on the disk.
    image: TempDir,
}

impl DroppedRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let bodies = Bodies::new(setting.configuration.body_bytes);
        let folder = setting.place.folder()?;
        let engine = setting.configuration.engine.open(folder.path(), &setting.profile)?;
        load(&*engine, &bodies, setting.configuration.messages_per_iteration())?;
        engine.sync()?;
        let image = setting.place.folder()?;
        copy(folder.path(), image.path())?;
        engine.close()?;
        Ok(Self { setting, bodies, image })
    }

    /// An opening mends the store, so each one gets a copy of its own.
    fn open_copy(&self) -> Result<(Box<dyn Engine>, Duration, TempDir)> {
        let folder = self.setting.place.folder()?;
        copy(self.image.path(), folder.path())?;
        let (engine, time) = open(&self.setting, folder.path())?;
        Ok((engine, time, folder))
    }
}

impl Rig for DroppedRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for _ in 0..iterations {
            let (engine, opening, _folder) = self.open_copy()?;
            time += opening;
            engine.close()?;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        let (engine, _, _folder) = self.open_copy()?;
        let count = self.setting.configuration.messages_per_iteration();
        let verified = check_queue(&*engine, &self.bodies, count, Ok)?;
        engine.close()?;
        Ok(verified)
    }
}

/// Copies a directory and syncs the files, so that an opening does not wait for what only the copy left unwritten.
/// What was never written to a file stays a hole.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&entry.path(), &target)?;
        } else {
            copy_file(&File::open(entry.path())?, &File::create(&target)?)?;
        }
    }
    Ok(())
}

fn copy_file(from: &File, to: &File) -> Result<()> {
    let (length, mut buffer) = (from.metadata()?.len(), vec![0; COPY_BYTES]);
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // There is no data behind this.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let step = usize::try_from(end - at)?.min(buffer.len());
            from.read_exact_at(&mut buffer[..step], at)?;
            to.write_all_at(&buffer[..step], at)?;
            at += step as u64;
        }
    }
    to.sync_all()?;
    Ok(())
}
