//! Opening: reads where the counters stood, checks that the spaces agree, and asks the watermark whether all is there.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, RwLock};

use cuemq_storage_api::{Result, StorageError};

use super::{FixedParts, KvEngine, Parts, Room, Store, Writer, corrupt, read_failed};
use crate::keys::consume_queue::{self, QueueRow};
use crate::keys::state::State;
use crate::keys::{log, queue, state};
use crate::kv::{KvView, OrderedKv, Space};
use crate::published::Published;
use crate::registry::{Queue, Registry};
use crate::watermark::Watermark;

impl<K: OrderedKv> KvEngine<K> {
    /// Takes over an opened store.
    pub(crate) fn open(kv: K, parts: Parts) -> Result<Self> {
        let (state, registry) = recover(&kv.view())?;
        let Parts { capabilities, retention, reserve_bytes, disk, directory } = parts;
        let watermark = match &directory {
            Some(directory) => Some(Watermark::open(directory.path(), registry.applied)?),
            None => None,
        };
        if let Some(directory) = &directory {
            directory.drop_kept_journals();
        }
        Ok(Self {
            parts: FixedParts { capabilities, retention, reserve_bytes, disk },
            store: RwLock::new(Some(Store { kv, directory })),
            writer: Mutex::new(Writer { state, room: Room::default() }),
            // What was found was read back from a store that syncs its journal when it is opened.
            durable: AtomicU64::new(state.batches),
            published: RwLock::new(Published::new(registry)),
            syncing: Mutex::new(watermark),
            poisoned: AtomicBool::new(false),
        })
    }
}

fn failed(error: crate::kv::KvError) -> StorageError {
    read_failed("open", error)
}

fn recover(view: &impl KvView) -> Result<(State, Registry)> {
    let last = match view.last(Space::Log, &[], None).map_err(failed)? {
        Some((key, value)) => Some(log::decode(&key, value).ok_or_else(|| damaged("the last record", &key))?),
        None => None,
    };
    let last_position = last.as_ref().map(|last| last.stored.position.get());
    let state = match view.get(Space::Meta, &state::KEY).map_err(failed)? {
        Some(value) => State::decode(&value).ok_or_else(|| damaged("the state", &state::KEY))?,
        None => State::NEW,
    };
    if let Some(last) = last_position.filter(|last| *last >= state.next_position) {
        let next = state.next_position;
        return Err(corrupt("open", format!("the log goes to position {last}, but the state says {next} is next")));
    }
    let mut registry = Registry::default();
    registry.applied = (&state).into();
    for row in view.range(Space::Meta, &queue::FIRST, Some(&queue::END)) {
        let (key, value) = row.map_err(failed)?;
        let number = queue::number(&key).filter(|number| *number as usize == registry.len());
        let (Some(number), Some((name, min))) = (number, queue::decode(&key, &value)) else {
            return Err(damaged("a queue's row", &key));
        };
        let end = end_of(view, number, last_position)?.max(min);
        registry.push(Queue { key: name, min, end, swept: 0 });
    }
    if let Some((key, _)) = view.last(Space::ConsumeQueue, &[], None).map_err(failed)?
        && consume_queue::queue(&key).is_none_or(|number| number as usize >= registry.len())
    {
        return Err(corrupt("open", format!("the queue of row {key:02x?} is not among the {} known", registry.len())));
    }
    if let Some(last) = last
        && registry.queue(last.queue).is_none_or(|queue| queue.end <= last.stored.offset.get())
    {
        let (offset, queue) = (last.stored.offset, last.queue);
        return Err(corrupt("open", format!("the log ends with offset {offset} of queue {queue}, which lacks it")));
    }
    Ok((state, registry))
}

/// The offset behind the last row of a queue; 0 when there is none.
fn end_of(view: &impl KvView, number: u32, last_position: Option<u64>) -> Result<u64> {
    let (first, end) = (consume_queue::key(number, 0), consume_queue::key(number, u64::MAX));
    let Some((key, value)) = view.last(Space::ConsumeQueue, &first, Some(&end)).map_err(failed)? else {
        return Ok(0);
    };
    let (Some(offset), Some(row)) = (consume_queue::offset(&key), QueueRow::decode(&key, &value)) else {
        return Err(damaged("a consume queue row", &key));
    };
    if last_position.is_none_or(|last| row.position > last) {
        let position = row.position;
        return Err(corrupt("open", format!("queue {number} ends at position {position}, which the log lacks")));
    }
    Ok(offset + 1)
}

fn damaged(what: &str, key: &[u8]) -> StorageError {
    corrupt("open", format!("{what} is damaged (key {key:02x?}): restore a copy"))
}
