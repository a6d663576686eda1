//! The queues in memory: their numbers and bounds.

use std::collections::HashMap;
use std::ops::Range;

use cuemq_storage_api::{QueueKey, QueueOffset};

use crate::watermark::Durable;

/// Most queues that one engine keeps; each costs some 100 bytes of memory.
pub(crate) const MAX_QUEUES: usize = 1 << 24;

/// A queue with the offsets `[min, end)`; rows below `swept` have been deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Queue {
    pub(crate) key: QueueKey,
    pub(crate) min: u64,
    pub(crate) end: u64,
    pub(crate) swept: u64,
}

impl Queue {
    /// The offsets that can be fetched.
    pub(crate) fn bounds(&self) -> Range<QueueOffset> {
        QueueOffset::new(self.min)..QueueOffset::new(self.end)
    }
}

/// Every queue that ever had a record, as readers see them. Numbers count from 0 in the order in which the queues came into being.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    numbers: HashMap<QueueKey, u32>,
    queues: Vec<Queue>,
    /// How far the batches have come that readers see.
    pub(crate) applied: Durable,
}

impl Registry {
    /// A queue's number.
    pub(crate) fn number(&self, key: &QueueKey) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    /// A queue by its number.
    pub(crate) fn queue(&self, number: u32) -> Option<&Queue> {
        self.queues.get(usize::try_from(number).ok()?)
    }

    /// A queue by its number, to change it.
    pub(crate) fn queue_mut(&mut self, number: u32) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(number).ok()?)
    }

    /// A queue by its name.
    pub(crate) fn find(&self, key: &QueueKey) -> Option<(u32, &Queue)> {
        let number = self.number(key)?;
        Some((number, self.queue(number)?))
    }

    /// How many queues there are; the number of the next one.
    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// Adds a queue under the next number.
    pub(crate) fn push(&mut self, queue: Queue) {
        let number = u32::try_from(self.queues.len()).expect("there are at most MAX_QUEUES queues");
        self.numbers.insert(queue.key.clone(), number);
        self.queues.push(queue);
    }

    /// Every queue with its number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Queue)> {
        (0u32..).zip(&self.queues)
    }
}
