//! Records of a held queue that are in flight to somebody who popped them, and pools that lose what they hold.

use cuemq_storage_api::{QueueKey, QueueOffset, StoredRecord};

use super::held_queue::HeldQueue;
use super::{Claim, Credit, Session};
use crate::domain::membership::Lease;

impl Session {
    /// Takes a record back that was not looked at: it comes before any other, as if it had never been given out.
    /// False when its queue is no longer held under that lease.
    pub(crate) fn give_back(&self, claim: Claim<'_>, stored: StoredRecord, redeliveries: u32) -> bool {
        self.settle(claim, |queue| queue.first_again(stored, redeliveries)).is_some()
    }

    /// A record that was in flight is to be given out here.
    pub(crate) fn comes_back(&self, key: &QueueKey, lease: Lease, stored: StoredRecord, redeliveries: u32) {
        self.change(key, lease, |queue| {
            if queue.elsewhere.remove(&stored.offset) {
                queue.first_again(stored, redeliveries);
            }
        });
    }

    /// A record that was in flight is done.
    pub(crate) fn done_elsewhere(&self, key: &QueueKey, lease: Lease, offset: QueueOffset) {
        self.change(key, lease, |queue| {
            queue.elsewhere.remove(&offset);
            // A record beyond the window was never given out.
            let _ = queue.progress.ack(offset);
        });
    }

    fn change(&self, key: &QueueKey, lease: Lease, change: impl FnOnce(&mut HeldQueue)) {
        let mut held = self.lock();
        if let Some(queue) = held.queues.iter_mut().find(|q| q.lease == lease && q.key == *key) {
            change(queue);
        }
        drop(held);
        self.signal.wake();
    }

    /// Forgets every queue and whatever of it was given out.
    pub(crate) fn lose_everything(&self) {
        let mut held = self.lock();
        held.queues.clear();
        held.out = Credit::default();
    }
}
