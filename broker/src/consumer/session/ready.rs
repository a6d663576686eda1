//! What a queue's member has read and not given out yet.

use std::collections::VecDeque;
use std::ops::Range;

use cuemq_storage_api::{QueueOffset, StoredRecord};

use super::{Credit, Records};
use crate::domain::key_order::KeyOrder;
use crate::domain::order::Order;

/// Bounded by the open messages of a queue, and by `MAX_HELD_BACK_BYTES` and one fetch.
#[derive(Debug)]
pub(super) enum Ready {
    InOrder(VecDeque<StoredRecord>),
    ByKey(KeyOrder<StoredRecord>),
}

impl Ready {
    pub(super) fn new(order: Order) -> Self {
        match order {
            Order::Concurrent | Order::Queue => Self::InOrder(VecDeque::new()),
            Order::Key => Self::ByKey(KeyOrder::default()),
        }
    }

    /// Takes up what was read, in the order of the queue.
    pub(super) fn extend(&mut self, records: Vec<StoredRecord>) {
        match self {
            // Taken over as it is: nothing is moved.
            Self::InOrder(ready) if ready.is_empty() => *ready = records.into(),
            Self::InOrder(ready) => ready.extend(records),
            Self::ByKey(ready) => records.into_iter().for_each(|stored| push(ready, stored)),
        }
    }

    /// Takes up one that may lie before others.
    pub(super) fn insert(&mut self, stored: StoredRecord) {
        match self {
            Self::InOrder(ready) => {
                let at = ready.partition_point(|other| other.offset < stored.offset);
                ready.insert(at, stored);
            }
            Self::ByKey(ready) => push(ready, stored),
        }
    }

    /// The next ones that may go out and that there is room for; one is always given, however large.
    pub(super) fn take(&mut self, room: Credit) -> Option<Records> {
        match self {
            Self::InOrder(ready) => match room.for_next(ready) {
                0 => None,
                1 => ready.pop_front().map(Records::One),
                count if count == ready.len() => Some(Records::Many(std::mem::take(ready).into())),
                count => Some(Records::Many(ready.drain(..count).collect())),
            },
            Self::ByKey(ready) => take_by_key(ready, room),
        }
    }

    /// Messages that were out are done.
    pub(super) fn done(&mut self, range: Range<QueueOffset>) {
        if let Self::ByKey(ready) = self {
            ready.done(range);
        }
    }

    /// Drops what lies below `to`.
    pub(super) fn pass_over(&mut self, to: QueueOffset) {
        match self {
            Self::InOrder(ready) => ready.retain(|stored| stored.offset >= to),
            Self::ByKey(ready) => ready.pass_over(to),
        }
    }

    /// Drops what does not stay.
    pub(super) fn retain(&mut self, stays: impl FnMut(&StoredRecord) -> bool) {
        match self {
            Self::InOrder(ready) => ready.retain(stays),
            Self::ByKey(ready) => ready.retain(stays),
        }
    }

    /// Everything, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &StoredRecord> {
        let (in_order, by_key) = match self {
            Self::InOrder(ready) => (Some(ready.iter()), None),
            Self::ByKey(ready) => (None, Some(ready.iter())),
        };
        in_order.into_iter().flatten().chain(by_key.into_iter().flatten())
    }

    /// Whether nothing more may go out, if nothing may go out now, before more was read.
    pub(super) fn is_exhausted(&self) -> bool {
        match self {
            Self::InOrder(ready) => ready.is_empty(),
            // What is left waits for its keys.
            Self::ByKey(_) => true,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::InOrder(ready) => ready.len(),
            Self::ByKey(ready) => ready.len(),
        }
    }

    /// The payload of all of them.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::InOrder(ready) => ready.iter().map(|stored| stored.record.payload_bytes()).sum(),
            Self::ByKey(ready) => ready.bytes(),
        }
    }

    pub(super) fn into_records(self) -> Vec<StoredRecord> {
        match self {
            Self::InOrder(ready) => ready.into(),
            Self::ByKey(ready) => ready.into_items().collect(),
        }
    }
}

fn push(ready: &mut KeyOrder<StoredRecord>, stored: StoredRecord) {
    let (attributes, bytes) = (stored.record.attributes.clone(), stored.record.payload_bytes());
    ready.push(stored.offset, attributes.sharding_key(), bytes, stored);
}

fn take_by_key(ready: &mut KeyOrder<StoredRecord>, room: Credit) -> Option<Records> {
    let first = Some(()).filter(|()| room.messages > 0).and_then(|()| ready.take())?;
    let mut bytes = first.record.payload_bytes();
    if room.messages == 1 {
        return Some(Records::One(first));
    }
    let mut records = vec![first];
    while records.len() < room.messages && bytes < room.bytes {
        let Some(stored) = ready.take() else { break };
        bytes = bytes.saturating_add(stored.record.payload_bytes());
        records.push(stored);
    }
    // No two are of one key: a batch may as well be in the order of its queue.
    records.sort_unstable_by_key(|stored| stored.offset);
    Some(Records::Many(records))
}
