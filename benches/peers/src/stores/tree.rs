//! The crate `fjall`, an LSM tree, by itself: one keyspace, message numbers as keys.

use cuemq_benches::place::Place;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Slice};
use tempfile::TempDir;

use super::rows::Rows;
use crate::Result;
use crate::load::{Appended, Load};
use crate::store::{Flush, Page, Store, Writers};

pub(crate) struct TreeStore {
    // Before its folder, so that it is closed first.
    queue: Keyspace,
    database: Database,
    folder: TempDir,
    flush: Flush,
}

impl TreeStore {
    pub(crate) fn open(place: &Place, flush: Flush) -> Result<Self> {
        Self::open_in(place.folder()?, flush)
    }

    fn open_in(folder: TempDir, flush: Flush) -> Result<Self> {
        let database = Database::builder(folder.path()).open()?;
        let queue = database.keyspace("queue", KeyspaceCreateOptions::default)?;
        Ok(Self { queue, database, folder, flush })
    }

    fn append_batch(&self, load: &Load<'_>, first: u64) -> Result<()> {
        // A single row is faster without a batch where nothing is synced.
        if load.batch == 1 && self.flush == Flush::Buffered {
            return Ok(self.queue.insert(key(first), load.bodies.body(first))?);
        }
        let mut batch = self.database.batch().durability(Some(match self.flush {
            Flush::Buffered => PersistMode::Buffer,
            Flush::Durable => PersistMode::SyncData,
        }));
        for message in (first..).take(load.batch) {
            batch.insert(&self.queue, key(message), load.bodies.body(message));
        }
        Ok(batch.commit()?)
    }
}

fn key(message: u64) -> Slice {
    Slice::from(message.to_be_bytes())
}

impl Store for TreeStore {
    fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
        load.run(|first| self.append_batch(load, first))
    }

    fn fetch(&mut self, from: u64, messages: usize) -> Result<Box<dyn Page>> {
        let rows = self.queue.range(key(from)..).take(messages);
        let bodies = rows.map(|row| row.value()).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(Box::new(Rows { first: from, bodies }))
    }

    fn group_commit(&mut self, writers: &Writers<'_>) -> Result<Option<Appended>> {
        let write = |message| {
            let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
            batch.insert(&self.queue, key(message), writers.bodies.body(message));
            Ok(batch.commit()?)
        };
        writers.on_threads(write).map(Some)
    }

    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
        let Self { queue, database, folder, flush } = *self;
        drop((queue, database));
        Ok(Box::new(Self::open_in(folder, flush)?))
    }
}
