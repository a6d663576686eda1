//! The ordered store in maps, for tests: its disk can lose what was not synced.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cuemq_storage_api::ErrorKind;

use crate::kv::{KvBatch, KvError, KvResult, KvRow, KvView, OrderedKv, Space};

type Rows = BTreeMap<Bytes, Bytes>;
type Spaces = [Rows; Space::ALL.len()];
type Change = (Space, Bytes, Option<Bytes>);

/// What outlives the stores opened over it, one at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Disk>);

#[derive(Debug, Default)]
struct Disk {
    content: Mutex<Content>,
    locked: AtomicBool,
    failing: AtomicBool,
    stall: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

/// Holds up one commit between its landing and its return, as back-pressure does; dropping it lets the commit go on.
pub(crate) struct Stall {
    landed: Receiver<()>,
    _release: Sender<()>,
}

impl Stall {
    /// Returns when the commit has landed.
    pub(crate) fn wait(&self) {
        self.landed.recv().unwrap();
    }
}

#[derive(Debug, Default)]
struct Content {
    live: Arc<Spaces>,
    synced: Spaces,
    unsynced: Vec<Vec<Change>>,
}

impl MemoryDisk {
    /// Opens the store.
    pub(crate) fn open(&self) -> KvResult<MemoryKv> {
        if self.0.locked.swap(true, Ordering::SeqCst) {
            return Err(KvError { kind: ErrorKind::Locked, source: "another store is open".into() });
        }
        Ok(MemoryKv(self.clone()))
    }

    /// Cuts the power: of the batches since the last sync the first `keep_unsynced` survive.
    pub(crate) fn crash(&self, keep_unsynced: usize) {
        let mut content = self.0.content.lock().unwrap();
        content.unsynced.truncate(keep_unsynced);
        content.settle();
        content.live = Arc::new(content.synced.clone());
    }

    /// Makes every later commit and sync fail, or work again.
    pub(crate) fn fail(&self, failing: bool) {
        self.0.failing.store(failing, Ordering::SeqCst);
    }

    /// Makes the next commit stall once it has landed.
    pub(crate) fn stall(&self) -> Stall {
        let ((landing, landed), (release, released)) = (channel(), channel());
        *self.0.stall.lock().unwrap() = Some((landing, released));
        Stall { landed, _release: release }
    }

    /// Replaces the bytes of one row, as rot would.
    pub(crate) fn damage(&self, space: Space, key: &[u8], value: Option<Bytes>) {
        let mut content = self.0.content.lock().unwrap();
        change(Arc::make_mut(&mut content.live), (space, Bytes::copy_from_slice(key), value));
    }

    /// Every row of a space.
    pub(crate) fn rows(&self, space: Space) -> Vec<KvRow> {
        let content = self.0.content.lock().unwrap();
        content.live[space.number()].iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn check(&self) -> KvResult<()> {
        match self.0.failing.load(Ordering::SeqCst) {
            true => Err(KvError { kind: ErrorKind::Io, source: "the disk was told to fail".into() }),
            false => Ok(()),
        }
    }
}

impl Content {
    fn settle(&mut self) {
        for row in self.unsynced.drain(..).flatten() {
            change(&mut self.synced, row);
        }
    }
}

fn change(spaces: &mut Spaces, (space, key, value): Change) {
    let rows = &mut spaces[space.number()];
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    };
}

/// An open store.
#[derive(Debug)]
pub(crate) struct MemoryKv(MemoryDisk);

impl Drop for MemoryKv {
    fn drop(&mut self) {
        self.0.0.locked.store(false, Ordering::SeqCst);
    }
}

impl OrderedKv for MemoryKv {
    type Batch = MemoryBatch;
    type View = MemoryView;

    fn batch(&self, changes: usize) -> MemoryBatch {
        MemoryBatch(Vec::with_capacity(changes))
    }

    fn commit(&self, batch: MemoryBatch) -> KvResult<()> {
        self.0.check()?;
        let mut content = self.0.0.content.lock().unwrap();
        let live = Arc::make_mut(&mut content.live);
        batch.0.iter().cloned().for_each(|row| change(live, row));
        content.unsynced.push(batch.0);
        drop(content);
        let stall = self.0.0.stall.lock().unwrap().take();
        if let Some((landing, released)) = stall {
            landing.send(()).unwrap();
            // Ends when the other side is dropped.
            let _ = released.recv();
        }
        Ok(())
    }

    fn view(&self) -> MemoryView {
        MemoryView(self.0.0.content.lock().unwrap().live.clone())
    }

    fn sync(&self) -> KvResult<()> {
        self.0.check()?;
        self.0.0.content.lock().unwrap().settle();
        Ok(())
    }

    fn close(self) {}
}

/// Changes in order.
pub(crate) struct MemoryBatch(Vec<Change>);

impl KvBatch for MemoryBatch {
    fn put(&mut self, space: Space, key: Bytes, value: Bytes) {
        self.0.push((space, key, Some(value)));
    }

    fn delete(&mut self, space: Space, key: Bytes) {
        self.0.push((space, key, None));
    }
}

/// The maps as they were when the view was made.
#[derive(Clone)]
pub(crate) struct MemoryView(Arc<Spaces>);

impl MemoryView {
    fn iterate(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> impl DoubleEndedIterator<Item = KvRow> {
        let to = to.map_or(Bound::Unbounded, |to| Bound::Excluded(to.max(from)));
        let rows = self.0[space.number()].range::<[u8], _>((Bound::Included(from), to));
        rows.map(|(key, value)| (key.clone(), value.clone()))
    }
}

impl KvView for MemoryView {
    fn get(&self, space: Space, key: &[u8]) -> KvResult<Option<Bytes>> {
        Ok(self.0[space.number()].get(key).cloned())
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> impl Iterator<Item = KvResult<KvRow>> {
        self.iterate(space, from, to).map(Ok)
    }

    fn last(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> KvResult<Option<KvRow>> {
        Ok(self.iterate(space, from, to).next_back())
    }
}
