//! Failed deliveries of messages that keep their place: each is stored when it is reported, so that neither a crash nor a
//! move of the queue loses count.

use std::collections::BTreeMap;

use cuemq_storage_api::{Engine, GroupName, QueueKey, QueueOffset, WriteBatch};

use super::GroupActor;
use super::messages::Answer;
use super::offsets::OffsetOwner;
use crate::domain::in_place::InPlaceFailures;
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::progress::Progress;
use crate::error::{Error, Result};
use crate::settings::Flush;
use crate::storage::scan_rows;
use crate::tables::in_place as table;

/// A delivery failed, and its message comes again in its place.
#[derive(Debug)]
pub(crate) struct InPlaceFailure {
    pub(crate) member: MemberId,
    pub(crate) lease: Lease,
    pub(crate) queue: QueueKey,
    pub(crate) offset: QueueOffset,
    /// What is known now of all its failures.
    pub(crate) failures: InPlaceFailures,
    /// Hears when that is stored.
    pub(crate) reply: Option<Answer<()>>,
}

/// What is known of the messages of each queue that failed in their place. Bounded by the open messages of the queues.
#[derive(Debug, Default)]
pub(super) struct FailedInPlace(BTreeMap<QueueKey, BTreeMap<QueueOffset, InPlaceFailures>>);

impl FailedInPlace {
    /// Reads everything back from storage.
    pub(super) fn reload(&mut self, engine: &dyn Engine, group: &GroupName) -> Result<()> {
        self.0.clear();
        let (keys, of) = (table::keys_of_group(group), &mut self.0);
        scan_rows::<Error>(engine, &table::TABLE, &keys.start, Some(&keys.end), usize::MAX, |key, row| {
            let (_, queue, offset) = table::decode_key(key)?;
            of.entry(queue).or_default().insert(offset, InPlaceFailures::decode(row)?);
            Ok(())
        })?;
        Ok(())
    }

    /// What is known of one queue's messages.
    pub(super) fn of(&self, queue: &QueueKey) -> BTreeMap<QueueOffset, InPlaceFailures> {
        self.0.get(queue).cloned().unwrap_or_default()
    }

    /// What is known of one message.
    pub(super) fn of_message(&self, queue: &QueueKey, offset: QueueOffset) -> Option<&InPlaceFailures> {
        self.0.get(queue)?.get(&offset)
    }

    /// Adds to a batch with a queue's progress that the rows of what is done go.
    pub(super) fn delete_done(&self, group: &GroupName, queue: &QueueKey, progress: &Progress, batch: &mut WriteBatch) {
        let known = self.0.get(queue).into_iter().flatten();
        for (offset, _) in known.filter(|(offset, _)| progress.is_acked(**offset)) {
            batch.delete(&table::TABLE, table::key(group, queue, *offset));
        }
    }

    /// Forgets what is done; the rows are gone with the progress that was written.
    pub(super) fn forget_done(&mut self, queue: &QueueKey, progress: &Progress) {
        let Some(known) = self.0.get_mut(queue) else { return };
        known.retain(|offset, _| !progress.is_acked(*offset));
        if known.is_empty() {
            self.0.remove(queue);
        }
    }
}

impl GroupActor {
    pub(super) fn fail_in_place(&mut self, failure: InPlaceFailure) {
        let InPlaceFailure { member, lease, queue, offset, failures, reply } = failure;
        if let Err(stale) = self.check_lease(&member, &queue, lease) {
            return super::answer(reply, Err(stale));
        }
        let owner = OffsetOwner { queue, member: None };
        if self.offsets.is_done(&owner, offset) {
            // Somebody passed over it meanwhile.
            return super::answer(reply, Ok(()));
        }
        let mut batch = WriteBatch::new(self.shared.clock.now());
        batch.put(&table::TABLE, table::key(&self.group, &owner.queue, offset), failures.encode());
        self.offsets.failed_in_place.0.entry(owner.queue).or_default().insert(offset, failures);
        self.shared.storage.write(batch, Flush::Buffered, move |result| {
            super::answer(reply, result.map(|_| ()).map_err(|error| error.get()));
        });
    }
}
