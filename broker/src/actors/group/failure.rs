//! A message that was not consumed: its copy for later, or its dead letter, and the acknowledgement of the original,
//! in one write.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use actix::{AsyncContext, Context};
use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, StoredRecord, TopicName, WriteBatch};

use super::messages::Answer;
use super::offsets::OffsetOwner;
use super::{GroupActor, GroupRequest};
use crate::actors::expiry::Endings;
use crate::domain::delay::TimerKey;
use crate::domain::failed_copy::{FailedCopy, expires_at};
use crate::domain::failure::{DeadReason, FailureCause, Verdict, judge};
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::error::{Error, ErrorKind, Result};
use crate::message::MessageId;
use crate::settings::Flush;
use crate::tables::delay::{self, DelayOrigin, DelayRow};

/// A message that its group could not consume. Whoever says so, [`GroupActor::fail`] is the only way on.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The member that has the message and its lease of the queue; `None` when nobody has it.
    pub(crate) holder: Option<(MemberId, Lease)>,
    /// Where the message lies: a queue of its topic, or of the group's retry topic.
    pub(crate) queue: QueueKey,
    /// The message.
    pub(crate) stored: StoredRecord,
    /// The id under which it was first stored.
    pub(crate) origin_id: MessageId,
    /// How many of its deliveries failed; this one is among them if it is one.
    pub(crate) failures: u32,
    pub(crate) cause: FailureCause,
    /// Hears when copy and acknowledgement are stored.
    pub(crate) reply: Answer<()>,
}

/// Failures that wait for one of the same queue that is on its way to storage. Bounded by what members may have out.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<QueueKey, VecDeque<Failure>>);

impl Failures {
    fn put_off(&mut self, failure: Failure) {
        self.0.entry(failure.queue.clone()).or_default().push_back(failure);
    }

    fn next(&mut self, queue: &QueueKey) -> Option<Failure> {
        let waiting = self.0.get_mut(queue)?;
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.0.remove(queue);
        }
        next
    }

    /// Tells those who wait that nothing was done.
    pub(super) fn refuse_all(&mut self, why: &str) {
        for failure in self.take_all() {
            let error = Error::new(ErrorKind::Closed, format!("the message was not failed: {why}"));
            let _ = failure.reply.send(Err(error));
        }
    }

    /// All of them, none of which has begun.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Failure> {
        std::mem::take(&mut self.0).into_values().flatten()
    }
}

impl GroupActor {
    /// Has a message come again or become a dead letter, as the group's policy says, and acknowledges the original with
    /// the same write.
    pub(super) fn fail(&mut self, failure: Failure, ctx: &Context<Self>) {
        let owner = OffsetOwner { queue: failure.queue.clone(), member: None };
        if self.offsets.is_held(&owner) {
            // One of this queue at a time: whether the one before is acknowledged is not known yet.
            self.failures.put_off(failure);
            return;
        }
        // What changed before goes before; what changes from now on waits for the outcome: written behind this, a row
        // without its acknowledgement would take that back until the next write.
        if self.offsets.has_changes(&owner) {
            self.write_offsets();
        }
        let Failure { holder, queue, .. } = &failure;
        let checked = holder.as_ref().map_or(Ok(()), |(member, lease)| self.check_lease(member, queue, *lease));
        match checked.and_then(|()| self.failure_batch(&failure)) {
            Ok((batch, timer, endings)) => {
                let hold = self.offsets.hold(owner);
                let (shared, inbox, me) = (Arc::clone(&self.shared), Arc::clone(&self.inbox), ctx.address());
                self.shared.storage.write(batch, Flush::Buffered, move |result| {
                    // Only now it is known whether the original is done. A group that is gone reads that from storage
                    // when it is back.
                    let (queue, offset, stored) = (failure.queue, failure.stored.offset, result.is_ok());
                    let _ = inbox.push(GroupRequest::Failed { queue, offset, stored, hold }, &me);
                    if let (Ok(_), Some(timer)) = (&result, timer) {
                        shared.delayed.add(1);
                        shared.delay_handle().stored(vec![timer]);
                    }
                    if result.is_ok() {
                        endings.stored(&shared);
                    }
                    let _ = failure.reply.send(result.map(|_| ()).map_err(|error| error.get()));
                });
            }
            Err(error) => {
                let _ = failure.reply.send(Err(error));
            }
        }
    }

    /// Copy and acknowledgement of a message are stored, or are not. If they are, it is done whoever holds its queue by
    /// now.
    pub(super) fn failed(
        &mut self,
        queue: QueueKey,
        offset: QueueOffset,
        stored: bool,
        hold: u64,
        ctx: &mut Context<Self>,
    ) {
        let owner = OffsetOwner { queue, member: None };
        self.offsets.release(&owner, hold, stored.then_some(offset));
        self.prepare_waiting(ctx);
        self.next_withdrawal(ctx);
        self.next_failures(&owner, ctx);
    }

    /// Failures of a queue that have waited for another write, as long as that does not hold its row.
    pub(super) fn next_failures(&mut self, owner: &OffsetOwner, ctx: &Context<Self>) {
        // One that is refused holds nothing.
        while !self.offsets.is_held(owner)
            && let Some(next) = self.failures.next(&owner.queue)
        {
            self.fail(next, ctx);
        }
    }

    /// Has those that were put off begin anew, behind what waits.
    pub(super) fn repeat_failures(&mut self, ctx: &Context<Self>) {
        for failure in self.failures.take_all() {
            let _ = self.inbox.push(GroupRequest::Fail(Box::new(failure)), &ctx.address());
        }
    }

    fn failure_batch(&mut self, failure: &Failure) -> Result<(WriteBatch, Option<TimerKey>, Endings)> {
        let Failure { queue, stored, cause, .. } = failure;
        let owner = OffsetOwner { queue: queue.clone(), member: None };
        if self.offsets.is_done(&owner, stored.offset) {
            // Whoever had the message before has given it up, and that was stored only after it was handed on.
            let text = format!("message {} of queue {queue} is done already: nothing is left to do", stored.offset);
            return Err(Error::new(ErrorKind::Stale, text));
        }
        let now = self.shared.clock.now();
        let mut batch = WriteBatch::new(now);
        let (mut timer, mut endings) = (None, Endings::default());
        let copy = |dead: Option<DeadReason>| {
            let (failed, error) = (cause.is_of_a_delivery(), cause.error());
            let (origin_id, failures) = (failure.origin_id, failure.failures);
            FailedCopy { original: stored, queue, origin_id, failures, failed, error, dead, now }.record()
        };
        match judge(&self.policy, cause, failure.failures, expires_at(&stored.record), now) {
            Verdict::AgainNow => {
                let retries = first_queue(TopicName::retry_of(&self.group));
                endings.append(&self.shared, &mut batch, &retries, copy(None)?);
            }
            Verdict::AgainAt(due) => {
                let key = *timer.insert(TimerKey::new(due, self.shared.take_number()));
                let row = DelayRow {
                    topic: TopicName::retry_of(&self.group),
                    queue: Some(QueueId::FIRST),
                    origin: DelayOrigin::Retry,
                    record: copy(None)?,
                };
                batch.put(&delay::TABLE, delay::key(key), row.encode());
            }
            Verdict::Dead(reason) if self.drops(&owner, stored, reason) => self.withdrawals.dropped += 1,
            Verdict::Dead(reason) => {
                batch.append(&first_queue(TopicName::dead_letter_of(&self.group)), copy(Some(reason))?);
            }
        }
        self.offsets.acknowledge_in(&owner, stored.offset, &mut batch);
        Ok((batch, timer, endings))
    }
}

/// The one queue of the group's own topics.
fn first_queue(topic: TopicName) -> QueueKey {
    QueueKey::new(topic, QueueId::FIRST)
}
