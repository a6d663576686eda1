//! Writes batches to the raw engine.

use std::hint::black_box;
use std::time::Duration;

use cuemq_storage_api::{Engine, QueueKey};
use tempfile::TempDir;

use super::{Rig, Setting};
use crate::Result;
use crate::configuration::Path;
use crate::stopwatch::Stopwatch;
use crate::workload::{Bodies, check_queue, queue};

pub(super) struct AppendRig {
    setting: Setting,
    bodies: Bodies,
    queue: QueueKey,
    // Before its folder, so that it is closed first.
    engine: Box<dyn Engine>,
    folder: TempDir,
    /// Messages in the present store.
    stored: u64,
    verified: u64,
}

impl AppendRig {
    pub(super) fn new(setting: Setting) -> Result<Self> {
        let bodies = Bodies::new(setting.configuration.body_bytes);
        let folder = setting.place.folder()?;
        let engine = setting.configuration.engine.open(folder.path(), &setting.profile)?;
        Ok(Self { setting, bodies, queue: queue(), engine, folder, stored: 0, verified: 0 })
    }

    fn batch(&self) -> usize {
        self.setting.configuration.parameter
    }

    /// Iterations until the present store is full.
    fn room(&self) -> u64 {
        self.setting.iterations_per_store().saturating_sub(self.stored / self.batch() as u64)
    }

    /// Puts an empty store in place of a full one.
    fn change_store(&mut self) -> Result<()> {
        self.verify_once()?;
        self.setting.configuration.engine.discard(&*self.engine, self.folder.path())?;
        let folder = self.setting.place.folder()?;
        self.engine = self.setting.configuration.engine.open(folder.path(), &self.setting.profile)?;
        self.folder = folder;
        self.stored = 0;
        Ok(())
    }

    fn verify_once(&mut self) -> Result<()> {
        if self.verified == 0 {
            self.verified = check_queue(&*self.engine, &self.bodies, self.stored, Ok)?;
        }
        Ok(())
    }

    fn append(&mut self, batches: u64) -> Result<()> {
        let (count, sync) = (self.batch(), self.setting.configuration.path == Path::AppendDurable);
        for _ in 0..batches {
            let batch = self.bodies.batch(&self.queue, self.stored, count);
            let applied = black_box(self.engine.apply(batch)?);
            let landed = applied.appends.first().map(|appended| appended.first.get());
            if landed != Some(self.stored) {
                return Err(format!("message {} landed at offset {landed:?}", self.stored).into());
            }
            if sync && self.engine.sync()? < applied.mark {
                return Err("a sync covers less than was applied".into());
            }
            self.stored += count as u64;
        }
        Ok(())
    }
}

impl Rig for AppendRig {
    fn run(&mut self, iterations: u64) -> Result<Duration> {
        let (mut left, mut time) = (iterations, Duration::ZERO);
        while left > 0 {
            if self.room() == 0 {
                self.change_store()?;
            }
            let now = left.min(self.room());
            let watch = Stopwatch::start();
            self.append(now)?;
            time += watch.elapsed();
            left -= now;
        }
        Ok(time)
    }

    fn finish(&mut self) -> Result<u64> {
        self.verify_once()?;
        let kind = self.setting.configuration.engine;
        if self.setting.configuration.path == Path::AppendDurable {
            self.engine.close()?;
            // Durable is what another opening finds.
            let engine = kind.open(self.folder.path(), &self.setting.profile)?;
            self.verified = check_queue(&*engine, &self.bodies, self.stored, Ok)?;
            engine.close()?;
        } else {
            kind.discard(&*self.engine, self.folder.path())?;
        }
        Ok(self.verified)
    }
}
