//! How far a group may be given the queues of a topic whose number of queues was changed.
//!
//! ```text
//!  queue 0  ─── ─── ─── ─── ┃ ─── ───        ┃ the end of each queue when the change was made
//!  queue 1  ─── ───         ┃ ─── ─── ───
//!  queue 2  (new)           ┃ ───            behind it, a key may be in another queue than before it
//! ```
//! After a change a sharding key belongs to another queue. Whoever keeps the order of keys reads nothing behind the
//! change before everything in front of it is done, in all queues.

use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueOffset};

use super::routing::QueueCount;

/// One change of a topic's number of queues: where each queue that could be read ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct QueueChange {
    ends: Vec<QueueOffset>,
}

impl QueueChange {
    /// A change at these ends, from queue 0 on.
    #[must_use]
    pub(crate) fn new(ends: Vec<QueueOffset>) -> Self {
        Self { ends }
    }

    /// The same for a topic of which only the first queues are still read: nothing is left in the others to wait for.
    #[must_use]
    pub(crate) fn within(mut self, queues: QueueCount) -> Self {
        self.ends.truncate(usize::try_from(queues.get()).unwrap_or(usize::MAX));
        self
    }

    /// The ends, from queue 0 on.
    #[must_use]
    pub(crate) fn ends(&self) -> &[QueueOffset] {
        &self.ends
    }

    /// Where a queue ended; one that was made later had nothing.
    #[must_use]
    pub(crate) fn end(&self, queue: QueueId) -> QueueOffset {
        usize::try_from(queue.get()).ok().and_then(|at| self.ends.get(at)).copied().unwrap_or(QueueOffset::ZERO)
    }

    /// Whether everything in front of it is done; `done` says below which offset everything is, in each queue.
    #[must_use]
    pub(crate) fn is_passed(&self, done: impl Fn(QueueId) -> QueueOffset) -> bool {
        self.first_open(0, done).is_none()
    }

    /// The first queue from the `from`th on that is not done up to its end.
    fn first_open(&self, from: usize, done: impl Fn(QueueId) -> QueueOffset) -> Option<usize> {
        (from..self.ends.len()).find(|at| {
            let id = u32::try_from(*at).ok().and_then(|id| QueueId::new(id).ok());
            // An end of zero asks for nothing, and most new queues have it.
            self.ends[*at] > QueueOffset::ZERO && id.is_some_and(|id| done(id) < self.ends[*at])
        })
    }
}

/// How many of a topic's changes a group has passed.
#[must_use]
pub(crate) fn passed(changes: &[QueueChange], done: impl Fn(QueueId) -> QueueOffset) -> usize {
    changes.iter().take_while(|change| change.is_passed(&done)).count()
}

/// Where one group, or one member of a broadcasting group, stands to a topic's changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fences {
    /// Oldest first.
    changes: Arc<[QueueChange]>,
    /// A change that is being made: nothing behind what can be seen now is given out before it is over.
    coming: Option<QueueChange>,
    /// How many changes are passed, and which queue of the next one is waited for.
    passed: usize,
    waits_for: usize,
}

impl Fences {
    /// Before the first change, until [`advance`](Self::advance) is told what is done.
    #[must_use]
    pub(crate) fn new(changes: Arc<[QueueChange]>, coming: Option<QueueChange>) -> Self {
        Self { changes, coming, passed: 0, waits_for: 0 }
    }

    /// The change that is being made.
    #[must_use]
    pub(crate) fn coming(&self) -> Option<&QueueChange> {
        self.coming.as_ref()
    }

    /// Opens what was waited for, as far as `done` says. True when the limits are others now.
    pub(crate) fn advance(&mut self, done: impl Fn(QueueId) -> QueueOffset) -> bool {
        let before = self.passed;
        while let Some(change) = self.changes.get(self.passed) {
            match change.first_open(self.waits_for, &done) {
                Some(at) => {
                    self.waits_for = at;
                    break;
                }
                None => (self.passed, self.waits_for) = (self.passed + 1, 0),
            }
        }
        self.passed > before
    }

    /// The first offset of a queue that may not be given out yet; `None` when there is no limit.
    #[must_use]
    pub(crate) fn limit(&self, queue: QueueId) -> Option<QueueOffset> {
        self.changes.get(self.passed).or(self.coming.as_ref()).map(|change| change.end(queue))
    }

    /// Whether no queue has a limit, so that nobody needs to remember this.
    #[must_use]
    pub(crate) fn are_open(&self) -> bool {
        self.passed == self.changes.len() && self.coming.is_none()
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
