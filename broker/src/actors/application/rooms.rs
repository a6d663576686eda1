//! Room for what transactions send to queues that may not grow beyond a length.
//!
//! It is found before the groups are asked for their rows: whoever makes room for something needs rows of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, WriteBatch};

use super::{Send, Submission};
use crate::actors::room::{LimitedQueue, Room, limited};
use crate::domain::length::Size;
use crate::error::{Result, SharedError};
use crate::shared::Shared;

/// What the transactions of a round send to limited queues.
#[derive(Default)]
pub(super) struct Demands(BTreeMap<QueueKey, (Arc<LimitedQueue>, Size)>);

/// The rooms of a round, or why there is none, held until its write is applied.
#[derive(Default)]
pub(super) struct Rooms(BTreeMap<QueueKey, std::result::Result<Room, SharedError>>);

/// What one transaction sends to limited queues.
pub(super) type Shares = BTreeMap<QueueKey, Size>;

impl Demands {
    /// Adds what a transaction sends; false, and nothing is added, when a queue could never hold all of it.
    pub(super) fn add(&mut self, shared: &Shared, submission: &Submission) -> bool {
        let mut more = Vec::new();
        for (key, size) in shares_of(shared, submission) {
            let Some(queue) = limited(shared, &key) else { continue };
            let sum = self.0.get(&key).map_or(size, |(_, sum)| sum.and(size));
            if queue.too_large(sum).is_some() {
                return false;
            }
            more.push((key, (queue, sum)));
        }
        self.0.extend(more);
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Finds room for everything, in the order in which everybody locks.
    pub(super) async fn find(self, shared: Arc<Shared>) -> Rooms {
        let mut rooms = BTreeMap::new();
        for (key, (queue, size)) in self.0 {
            rooms.insert(key, queue.room_for(&shared, size).await.map_err(SharedError::new));
        }
        Rooms(rooms)
    }
}

impl Rooms {
    /// What a transaction takes of the rooms; `None` when it has to run again, because its topic's queues changed.
    ///
    /// # Errors
    /// `Full` when there is too little room, or why that is not known.
    pub(super) fn check(&self, shared: &Shared, submission: &Submission) -> Result<Option<Shares>> {
        let shares = shares_of(shared, submission);
        for (key, size) in &shares {
            if let Some(error) = limited(shared, key).and_then(|queue| queue.too_large(*size)) {
                return Err(error);
            }
            match self.0.get(key) {
                Some(Ok(room)) if size.fits_in(room.free) => {}
                Some(Ok(room)) => return Err(room.refusal(false)),
                Some(Err(error)) => return Err(error.get()),
                None => return Ok(None),
            }
        }
        Ok(submission.is_routed_as_now(shared).then_some(shares))
    }

    /// Takes what was found to be there.
    pub(super) fn take(&mut self, shares: &Shares) {
        for (key, size) in shares {
            if let Some(Ok(room)) = self.0.get_mut(key) {
                room.take(*size);
            }
        }
    }

    /// Adds to the batch of a round what makes its room.
    pub(super) fn begin_in(&self, batch: &mut WriteBatch) {
        self.0.values().flatten().for_each(|room| room.begin_in(batch));
    }
}

impl Submission {
    /// Whether everything that it sends to limited queues still goes to the queue for which room was found.
    fn is_routed_as_now(&self, shared: &Shared) -> bool {
        self.sends.iter().all(|send| match send {
            Send::Now(queue, record) if limited(shared, queue).is_some() => shared
                .topics
                .get(&queue.topic)
                .is_none_or(|topic| topic.routes().take(queue.queue, record.attributes.sharding_key())),
            Send::Now(..) | Send::Later(..) => true,
        })
    }
}

fn shares_of(shared: &Shared, submission: &Submission) -> Shares {
    let mut shares = Shares::new();
    if submission.only_look {
        return shares;
    }
    for send in &submission.sends {
        if let Send::Now(queue, record) = send
            && limited(shared, queue).is_some()
        {
            let share = shares.entry(queue.clone()).or_default();
            *share = share.and(Size::of([record]));
        }
    }
    shares
}
