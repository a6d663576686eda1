//! Writing: apply, sync, and the room that is kept free for those who must go on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, RwLockWriteGuard};

use cuemq_storage_api::{Applied, ErrorKind, Mark, QueueOffset, Result, StorageError, WriteBatch};

use super::draft::{Draft, Drafted, Size, Touched};
use super::{KvEngine, Room, Writer};
use crate::keys::state::State;
use crate::kv::{KvError, OrderedKv};
use crate::published::Published;
use crate::registry::Queue;

/// Written bytes after which the disk is looked at again, while it has room.
const LOOK_AGAIN_BYTES: u64 = 16 << 20;
/// A record is written to a journal and to a table.
const COPIES: u64 = 2;

/// A batch between its commit and its publication. Dropping it ends that, however the commit went.
struct Hidden<'a, K: OrderedKv>(&'a KvEngine<K>);

impl<K: OrderedKv> Drop for Hidden<'_, K> {
    fn drop(&mut self) {
        self.0.registry_mut().show();
    }
}

impl<K: OrderedKv> KvEngine<K> {
    pub(super) fn write(&self, mut batch: WriteBatch) -> Result<Applied> {
        let store = self.store("apply")?;
        batch.check()?;
        let mut writer = self.writer("apply")?;
        if batch.is_empty() {
            let stored_at = writer.state.stored_at.max(batch.stored_at());
            let mark = Mark(writer.state.batches);
            return Ok(Applied { mark, stored_at, appends: Vec::new(), positions: Vec::new() });
        }
        batch.resolve_places(|queue| {
            Ok(self.registry().find(queue).map_or(QueueOffset::ZERO, |(_, queue)| queue.bounds().end))
        })?;
        let size = Size::of(&batch);
        self.check_room(&mut writer.room, &batch, size)?;
        let changes = store.batch(size.rows());
        let Drafted { changes, state, touched, applied } =
            Draft::encode(&self.registry(), writer.state, changes, &batch, size)?;
        let hidden = size.is_mixed().then(|| self.hide(&store));
        store.commit(changes).map_err(|error| self.poison("apply", error))?;
        self.publish(state, touched);
        writer.state = state;
        drop(hidden);
        Ok(applied)
    }

    /// The writer's turn.
    pub(super) fn writer(&self, operation: &'static str) -> Result<MutexGuard<'_, Writer>> {
        let writer = self.writer.lock();
        if writer.is_err() {
            // A panic between commit and publication: only a reopened engine knows what is stored.
            self.poisoned.store(true, Ordering::SeqCst);
        }
        self.check_healthy(operation)?;
        Ok(writer.unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn registry_mut(&self) -> RwLockWriteGuard<'_, Published<K::View>> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets readers of tables see the store as it is now until the batch that comes next is published, or has failed.
    fn hide(&self, kv: &K) -> Hidden<'_, K> {
        self.registry_mut().hide(kv.view());
        Hidden(self)
    }

    fn publish(&self, state: State, touched: BTreeMap<u32, Touched>) {
        let mut registry = self.registry_mut();
        for (number, Touched { key, min, end, .. }) in touched {
            match registry.queue_mut(number) {
                Some(queue) => (queue.min, queue.end) = (min, end),
                None => registry.push(Queue { key, min, end, swept: 0 }),
            }
        }
        registry.applied = (&state).into();
        registry.show();
    }

    /// Refuses what would fill the disk, before the store meets the end of it and fails for good.
    fn check_room(&self, room: &mut Room, batch: &WriteBatch, size: Size) -> Result<()> {
        let needed = (batch.payload_bytes() as u64).saturating_mul(COPIES);
        let keep = match (size.records, size.table_puts) {
            (0, 0) => return Ok(()),
            // Consumers' progress and the like may use half of the reserve.
            (0, _) => self.parts.reserve_bytes / 2,
            _ => self.parts.reserve_bytes,
        };
        let wanted = keep.saturating_add(needed);
        if room.unseen_bytes >= LOOK_AGAIN_BYTES || room.free.saturating_sub(room.unseen_bytes) < wanted {
            let seen = self.parts.disk.room().map_err(|error| {
                StorageError::not_stored(ErrorKind::Io, "apply", "how full the disk is").with_source(error)
            })?;
            *room = Room { free: seen.free, unseen_bytes: 0 };
            if room.free < wanted {
                let context = format!(
                    "the disk has {} bytes free, but {needed} are to be written and {keep} kept free: free some",
                    room.free
                );
                return Err(StorageError::not_stored(ErrorKind::Full, "apply", context));
            }
        }
        room.unseen_bytes += needed;
        Ok(())
    }

    /// Makes everything published so far durable. Callers that wait for one another share one sync.
    pub(super) fn sync_store(&self, kv: &K, operation: &'static str) -> Result<Mark> {
        self.check_healthy(operation)?;
        let wanted = self.registry().applied;
        let mut watermark = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_healthy(operation)?;
        let durable = self.durable.load(Ordering::SeqCst);
        if durable >= wanted.batches {
            return Ok(Mark(durable));
        }
        let reached = self.registry().applied;
        kv.sync().map_err(|error| self.sync_failed(operation, error))?;
        self.durable.store(reached.batches, Ordering::SeqCst);
        if let Some(watermark) = &mut *watermark {
            watermark.raise(reached).map_err(|error| self.watermark_failed(operation, error))?;
        }
        Ok(Mark(reached.batches))
    }

    /// Makes the watermark itself durable.
    pub(super) fn keep_watermark(&self, operation: &'static str) -> Result<()> {
        let watermark = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(watermark) = &*watermark else { return Ok(()) };
        watermark.sync().map_err(|error| self.watermark_failed(operation, error))
    }

    fn sync_failed(&self, operation: &'static str, error: KvError) -> StorageError {
        self.poisoned.store(true, Ordering::SeqCst);
        let context = "the store could not be synced: reopen the engine";
        StorageError::unknown(error.kind, operation, context).with_source(error.source)
    }

    fn watermark_failed(&self, operation: &'static str, error: std::io::Error) -> StorageError {
        self.poisoned.store(true, Ordering::SeqCst);
        let context = "the watermark could not be written: reopen the engine";
        StorageError::unknown(ErrorKind::Io, operation, context).with_source(error)
    }
}
