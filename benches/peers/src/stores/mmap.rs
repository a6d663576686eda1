//! CueMQ's map engine by itself.

use cuemq_benches::place::Place;
use cuemq_benches::profile::Profile;
use cuemq_benches::store::EngineKind;
use cuemq_benches::workload::queue;
use cuemq_storage_api::{Engine, Fetch, FetchLimit, FetchRequest, QueueKey, QueueOffset};
use tempfile::TempDir;

use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, PAGE_BYTES, Page, Store};

pub(crate) struct MmapStore {
    queue: QueueKey,
    // Before its folder, so that it is closed first.
    engine: Box<dyn Engine>,
    folder: TempDir,
    flush: Flush,
}

impl MmapStore {
    pub(crate) fn open(place: &Place, flush: Flush) -> Result<Self> {
        Self::open_in(place.folder()?, flush)
    }

    /// Over a folder that a broker may have filled.
    pub(super) fn open_in(folder: TempDir, flush: Flush) -> Result<Self> {
        let engine = EngineKind::Mmap.open(folder.path(), &Profile::quick())?;
        Ok(Self { queue: queue(), engine, folder, flush })
    }

    fn apply(&self, load: &Load<'_>, first: u64) -> Result<()> {
        let mut batch = load.bodies.batch(&self.queue, first, load.batch);
        if self.flush == Flush::Durable {
            batch.expect_sync();
        }
        let applied = self.engine.apply(batch)?;
        let landed = applied.appends.first().map(|appended| appended.first.get());
        if landed != Some(first) {
            return Err(format!("message {first} landed at offset {landed:?}").into());
        }
        if self.flush == Flush::Durable && self.engine.sync()? < applied.mark {
            return Err("a sync covers less than was applied".into());
        }
        Ok(())
    }
}

impl Store for MmapStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        load.run(|first| self.apply(load, first))
    }

    fn fetch(&mut self, from: u64, messages: usize) -> Result<Box<dyn Page>> {
        let limit = FetchLimit { max_messages: messages, max_bytes: PAGE_BYTES };
        let request = FetchRequest::all(&self.queue, QueueOffset::new(from), limit);
        Ok(Box::new(Fetched(self.engine.fetch(request)?)))
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        let Self { engine, folder, flush, .. } = *self;
        engine.close()?;
        drop(engine);
        Ok(Box::new(Self::open_in(folder, flush)?))
    }
}

struct Fetched(Fetch);

impl Page for Fetched {
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        self.0.records.iter().try_for_each(|stored| see(stored.offset.get(), &stored.record.body))
    }
}
