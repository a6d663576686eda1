//! Reads the raw engine: what was just written, and files that nobody has read since the store was opened.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueKey, QueueOffset};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use super::{Rig, Setting};
use crate::Result;
use crate::configuration::COLD_FETCH_MESSAGES;
use crate::place::files_below;
use crate::stopwatch::Stopwatch;
use crate::store::EngineKind;
use crate::workload::{Bodies, check_queue, queue};

/// Messages per batch while a store is loaded.
const LOAD_BATCH: u64 = 256;

/// Writes messages `0..count` to an empty store.
pub(crate) fn load(engine: &dyn Engine, bodies: &Bodies, count: u64) -> Result<()> {
    let queue = queue();
    let mut first = 0;
    while first < count {
        let now = LOAD_BATCH.min(count - first);
        engine.apply(bodies.batch(&queue, first, usize::try_from(now)?))?;
        first += now;
    }
    Ok(())
}

pub(super) struct TailRig {
    queue: QueueKey,
    bodies: Bodies,
    kind: EngineKind,
    engine: Box<dyn Engine>,
    // Removed after the engine is gone.
    folder: TempDir,
    count: u64,
    fetch: usize,
    next: u64,
}

impl TailRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let configuration = setting.configuration;
        let bodies = Bodies::new(configuration.body_bytes);
        let folder = setting.place.folder()?;
        let engine = configuration.engine.open(folder.path(), &setting.profile)?;
        let fetch = configuration.parameter;
        let count = setting.profile.loaded_messages(configuration.body_bytes).max(fetch as u64);
        load(&*engine, &bodies, count)?;
        Ok(Self { queue: queue(), bodies, kind: configuration.engine, engine, folder, count, fetch, next: 0 })
    }
}

impl Rig for TailRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let limit = FetchLimit::messages(self.fetch);
        let watch = Stopwatch::start();
        for _ in 0..iterations {
            if self.next + self.fetch as u64 > self.count {
                self.next = 0;
            }
            let from = QueueOffset::new(self.next);
            let fetch = black_box(self.engine.fetch(FetchRequest::all(&self.queue, from, limit))?);
            if fetch.records.len() != self.fetch || fetch.records[0].offset != from {
                return Err(format!("{} records came at offset {from}", fetch.records.len()).into());
            }
            self.next += self.fetch as u64;
        }
        Ok(watch.elapsed())
    }

    fn finish(&mut self) -> Result<u64> {
        let verified = check_queue(&*self.engine, &self.bodies, self.count, Ok)?;
        self.kind.discard(&*self.engine, self.folder.path())?;
        Ok(verified)
    }
}

pub(super) struct ColdRig {
    setting: Setting,
    queue: QueueKey,
    bodies: Bodies,
    folder: TempDir,
    count: u64,
    verified: u64,
}

impl ColdRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let configuration = setting.configuration;
        let bodies = Bodies::new(configuration.body_bytes);
        let folder = setting.place.folder()?;
        let engine = configuration.engine.open(folder.path(), &setting.profile)?;
        let count = configuration.messages_per_iteration();
        load(&*engine, &bodies, count)?;
        engine.close()?;
        Ok(Self { setting, queue: queue(), bodies, folder, count, verified: 0 })
    }

    /// Reads and checks the whole queue.
    fn read(&self, engine: &dyn Engine) -> Result<Duration> {
        let limit = FetchLimit::messages(COLD_FETCH_MESSAGES);
        let mut next = 0;
        let watch = Stopwatch::start();
        while next < self.count {
            let fetch = engine.fetch(FetchRequest::all(&self.queue, QueueOffset::new(next), limit))?;
            if fetch.records.is_empty() {
                return Err(format!("nothing came at offset {next} of {}", self.count).into());
            }
            for stored in fetch.records {
                if stored.offset.get() != next {
                    return Err(format!("offset {} comes where {next} belongs", stored.offset).into());
                }
                self.bodies.check(next, &stored.record.body)?;
                next += 1;
            }
        }
        Ok(watch.elapsed())
    }
}

impl Rig for ColdRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for _ in 0..iterations {
            drop_pages(self.folder.path())?;
            let engine = self.setting.configuration.engine.open(self.folder.path(), &self.setting.profile)?;
            time += self.read(&*engine)?;
            self.verified += self.count;
            engine.close()?;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        Ok(self.verified)
    }
}

/// Has the operating system forget the pages of all files below a directory. Only clean pages can go, so the files
/// are synced before.
pub(crate) fn drop_pages(directory: &Path) -> Result<()> {
    for path in files_below(directory)? {
        let file = File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
