//! Records of a held queue that are in flight to somebody who popped them, and pools that lose what they hold.

use std::ops::Range;

use cuemq_storage_api::{QueueKey, QueueOffset, StoredRecord};

use super::held_queue::HeldQueue;
use super::{Claim, Credit, Session};
use crate::domain::membership::Lease;

impl Session {
    /// Takes a record back that was not looked at: it comes before any other, as if it had never been given out.
    /// False when its queue is no longer held under that lease.
    pub(crate) fn give_back(&self, claim: Claim<'_>, stored: StoredRecord, redeliveries: u32) -> bool {
        let range = stored.offset..stored.offset.plus(1);
        self.settle(claim, &[range], |queue, _| drop(queue.first_again(stored, redeliveries, &self.subscriptions, &[])))
            .is_some()
    }

    /// A record that was in flight is to be given out here.
    pub(crate) fn comes_back(&self, key: &QueueKey, lease: Lease, stored: StoredRecord, redeliveries: u32) {
        let mut woken = None;
        self.change(key, lease, |queue| {
            if queue.elsewhere.remove(&stored.offset) {
                let guests = self.exchange.get().map(|exchange| exchange.guests()).unwrap_or_default();
                woken = queue.first_again(stored, redeliveries, &self.subscriptions, &guests);
            }
        });
        self.wake_members(woken.as_slice());
    }

    /// Records that were in flight are done.
    pub(crate) fn done_elsewhere(&self, key: &QueueKey, lease: Lease, offsets: Range<QueueOffset>) {
        self.change(key, lease, |queue| {
            let behind = queue.elsewhere.split_off(&offsets.start).split_off(&offsets.end);
            queue.elsewhere.extend(behind);
            // A record beyond the window was never given out.
            let _ = queue.progress.ack_range(offsets);
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
