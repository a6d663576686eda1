//! What readers see: every queue's bounds and newest entries, every table, the ends of the log. One lock guards all of
//! it, so that a batch over many queues and tables appears in one step.

use std::collections::HashMap;
use std::ops::Range;

use cuemq_storage_api::{QueueKey, QueueOffset, Table};

use crate::consume_queue::entry::Entry;
use crate::tables::{RowChange, RowRoom, Tables};

/// A tail's capacity is given back after its entries went to disk when it is larger than this.
const KEPT_TAIL_ENTRIES: usize = 16;

/// One queue as readers see it.
#[derive(Clone, Debug)]
pub(crate) struct QueueState {
    pub(crate) key: QueueKey,
    /// The first offset whose record is still in the log.
    pub(crate) base: u64,
    /// The first offset that can be fetched: `base`, or what a trim raised it to.
    pub(crate) min: u64,
    pub(crate) end: u64,
    /// The newest entries, up to `end`, which are not in the queue's files yet.
    pub(crate) tail: Vec<Entry>,
}

impl QueueState {
    pub(crate) fn empty(key: QueueKey) -> Self {
        Self { key, base: 0, min: 0, end: 0, tail: Vec::new() }
    }

    pub(crate) fn bounds(&self) -> Range<QueueOffset> {
        QueueOffset::new(self.min)..QueueOffset::new(self.end)
    }

    /// The first offset of the tail.
    pub(crate) fn tail_start(&self) -> u64 {
        self.end - self.tail.len() as u64
    }

    /// Entries of the tail from an offset on; `None` below it.
    pub(crate) fn tail_from(&self, offset: u64) -> Option<&[Entry]> {
        let skip = offset.checked_sub(self.tail_start())?;
        self.tail.get(usize::try_from(skip).ok()?..)
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        self.tail.push(entry);
        self.end += 1;
    }

    pub(crate) fn trim(&mut self, before: u64) {
        self.min = self.min.max(before.min(self.end));
    }

    /// Forgets the tail's oldest entries, which are in the queue's files now.
    fn forget(&mut self, count: usize) {
        self.tail.drain(..count);
        if self.tail.is_empty() && self.tail.capacity() > KEPT_TAIL_ENTRIES {
            self.tail = Vec::new();
        }
    }
}

/// Entries of one queue on their way to its files.
#[derive(Debug)]
pub(crate) struct TailCopy {
    pub(crate) slot: usize,
    pub(crate) key: QueueKey,
    pub(crate) first: u64,
    pub(crate) entries: Vec<Entry>,
}

/// Everything readers see.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    queues: Vec<QueueState>,
    slots: HashMap<QueueKey, usize>,
    pub(crate) tables: Tables,
    /// Where the oldest segment begins.
    pub(crate) log_start: u64,
    /// Where the next frame will begin.
    pub(crate) log_end: u64,
    /// Entries in all tails together.
    buffered: usize,
}

/// What the catalog holds once a batch is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// Entries in all tails together.
    pub(crate) buffered: usize,
    /// Entries in the longest tail that the batch added to.
    pub(crate) longest_tail: usize,
}

/// The changes of one batch, made ready outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) new_queues: Vec<QueueKey>,
    /// Slot and number of entries, in order.
    pub(crate) appends: Vec<(usize, usize)>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) trims: Vec<(usize, u64)>,
    pub(crate) rows: Vec<RowChange>,
    room: RowRoom,
}

impl Staged {
    pub(crate) fn put_row(&mut self, table: &Table, key: &[u8], value: &[u8]) {
        self.rows.push(self.room.put(table, key, value));
    }

    pub(crate) fn delete_row(&mut self, table: &Table, key: &[u8]) {
        self.rows.push(self.room.delete(table, key));
    }

    pub(crate) fn clear(&mut self) {
        self.new_queues.clear();
        self.appends.clear();
        self.entries.clear();
        self.trims.clear();
        self.rows.clear();
    }
}

impl Catalog {
    /// A catalog without queues.
    pub(crate) fn new(tables: Tables, log_start: u64) -> Self {
        Self { tables, log_start, ..Self::default() }
    }

    pub(crate) fn add_queue(&mut self, queue: QueueState) -> usize {
        let slot = self.queues.len();
        self.slots.insert(queue.key.clone(), slot);
        self.buffered += queue.tail.len();
        self.queues.push(queue);
        slot
    }

    pub(crate) fn slot(&self, key: &QueueKey) -> Option<usize> {
        self.slots.get(key).copied()
    }

    pub(crate) fn queue(&self, key: &QueueKey) -> Option<&QueueState> {
        self.slot(key).map(|slot| &self.queues[slot])
    }

    pub(crate) fn at(&self, slot: usize) -> &QueueState {
        &self.queues[slot]
    }

    pub(crate) fn at_mut(&mut self, slot: usize) -> &mut QueueState {
        &mut self.queues[slot]
    }

    /// All queues, in the order of their first records.
    pub(crate) fn queues(&self) -> &[QueueState] {
        &self.queues
    }

    /// Entries that are in memory only.
    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Adds one entry to the end of a queue.
    pub(crate) fn push(&mut self, slot: usize, entry: Entry) {
        self.queues[slot].push(entry);
        self.buffered += 1;
    }

    /// Shows a whole batch.
    pub(crate) fn publish(&mut self, staged: &mut Staged, log_end: u64) -> Published {
        for key in staged.new_queues.drain(..) {
            self.add_queue(QueueState::empty(key));
        }
        let (mut entries, mut longest_tail) = (&staged.entries[..], 0);
        for (slot, count) in &staged.appends {
            let queue = &mut self.queues[*slot];
            let (appended, rest) = entries.split_at(*count);
            queue.tail.extend_from_slice(appended);
            queue.end += *count as u64;
            longest_tail = longest_tail.max(queue.tail.len());
            entries = rest;
        }
        self.buffered += staged.entries.len();
        for (slot, before) in &staged.trims {
            self.queues[*slot].trim(*before);
        }
        for change in staged.rows.drain(..) {
            self.tables.change(change);
        }
        self.log_end = log_end;
        Published { buffered: self.buffered, longest_tail }
    }

    /// Copies of tails that have at least so many entries, which is not 0: up to `most` of those in `slots`. And the slot
    /// to go on with.
    pub(crate) fn tails(&self, slots: Range<usize>, at_least: usize, most: usize) -> (Vec<TailCopy>, usize) {
        let mut copies = Vec::new();
        for slot in slots.clone() {
            let queue = &self.queues[slot];
            if queue.tail.len() < at_least {
                continue;
            }
            if copies.len() == most {
                return (copies, slot);
            }
            let (key, first, entries) = (queue.key.clone(), queue.tail_start(), queue.tail.clone());
            copies.push(TailCopy { slot, key, first, entries });
        }
        (copies, slots.end)
    }

    /// Forgets entries that are in the queues' files now.
    pub(crate) fn forget(&mut self, written: &[TailCopy]) {
        for copy in written {
            self.forget_tail(copy.slot, copy.entries.len());
        }
    }

    /// Forgets a queue's oldest entries in memory, which are in its files now.
    pub(crate) fn forget_tail(&mut self, slot: usize, count: usize) {
        self.queues[slot].forget(count);
        self.buffered -= count;
    }
}
