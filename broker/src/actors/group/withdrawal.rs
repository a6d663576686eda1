//! Messages that are taken from their group while nobody has them: they have ended, or their queue is too long.
//!
//! One write at a time makes them dead letters, or drops them, and notes that they are done. So a message becomes one
//! dead letter of its group, however often its end is told, also when a crash comes in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::{AsyncContext, Context};
use cuemq_storage_api::{
    FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, StoredRecord, TagHashes, TopicName, WriteBatch,
};

use super::messages::Answer;
use super::offsets::OffsetOwner;
use super::{GroupActor, GroupRequest};
use crate::consumer::session::{Session, Withheld};
use crate::domain::expiry::OnExpiry;
use crate::domain::failed_copy::FailedCopy;
use crate::domain::failure::DeadReason;
use crate::domain::membership::Lease;
use crate::domain::progress::Progress;
use crate::error::Result;
use crate::limits::MAX_FIRE_BYTES;
use crate::message::{ATTEMPTS, MessageId, ORIGIN_TOPIC};
use crate::settings::Flush;
use crate::tables::withdrawn;

/// Pause before messages whose write was refused are tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Messages to take from the group, as far as it has not done them and nobody has them.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    pub(crate) messages: Vec<(QueueKey, QueueOffset)>,
    pub(crate) why: DeadReason,
    /// Hears when what concerned this group is stored.
    pub(crate) reply: Option<Answer<()>>,
}

/// What the write of a withdrawal has in it.
#[derive(Debug)]
pub(crate) struct Withdrawn {
    taken: Vec<(OffsetOwner, QueueOffset)>,
    /// Those taken where the progress has no room to say so.
    ahead: Vec<(OffsetOwner, QueueOffset)>,
    /// The rows that wait for its outcome.
    holds: Vec<(OffsetOwner, u64)>,
    why: DeadReason,
    dropped: u64,
    stored: bool,
}

/// The withdrawals of one group.
#[derive(Debug, Default)]
pub(super) struct Withdrawals {
    /// Whether one is on its way to storage.
    busy: bool,
    /// Bounded by the messages that sessions keep back, and one request of the scheduler.
    waiting: VecDeque<Withdrawal>,
    /// Messages dropped since the broker opened.
    pub(super) dropped: u64,
}

/// One write in the making.
struct Work {
    batch: WriteBatch,
    /// What will be done in each queue, with what is in this write.
    progress: BTreeMap<OffsetOwner, Progress>,
    taken: Vec<(OffsetOwner, QueueOffset)>,
    ahead: Vec<(OffsetOwner, QueueOffset)>,
    dropped: u64,
}

impl GroupActor {
    pub(super) fn withdraw(&mut self, withdrawal: Withdrawal, ctx: &Context<Self>) {
        self.withdrawals.waiting.push_back(withdrawal);
        self.next_withdrawal(ctx);
    }

    /// Messages that ended before they were given out.
    pub(super) fn withdraw_ended(&mut self, queue: &QueueKey, offsets: Vec<QueueOffset>, ctx: &Context<Self>) {
        if !offsets.is_empty() {
            let messages = offsets.into_iter().map(|offset| (queue.clone(), offset)).collect();
            self.withdraw(Withdrawal { messages, why: DeadReason::Expired, reply: None }, ctx);
        }
    }

    /// Begins anew after a restart: it finds every write at its end, and nobody who tells of it.
    pub(super) fn withdraw_again(&mut self, ctx: &Context<Self>) {
        self.withdrawals.busy = false;
        self.next_withdrawal(ctx);
    }

    /// The messages that a session keeps back, after requests about them were lost in a panic.
    pub(super) fn withdraw_what_is_kept(&mut self, session: &Session, ctx: &Context<Self>) {
        let (mut messages, mut done) = (Vec::new(), Vec::new());
        for (queue, lease, offset) in session.withheld() {
            let owner = OffsetOwner { queue: queue.clone(), member: self.owner(&session.member) };
            if self.offsets.is_open(&owner, offset) {
                messages.push((queue, offset));
            } else {
                done.push((queue, lease, offset));
            }
        }
        done.iter().for_each(|(queue, lease, offset)| session.withdrawn(queue, *lease, *offset));
        if !messages.is_empty() {
            self.withdraw(Withdrawal { messages, why: DeadReason::Expired, reply: None }, ctx);
        }
    }

    /// The next one's turn, as far as no other write has the rows of its queues.
    pub(super) fn next_withdrawal(&mut self, ctx: &Context<Self>) {
        while !self.withdrawals.busy
            && let Some(Withdrawal { messages, why, mut reply }) = self.withdrawals.waiting.pop_front()
        {
            let is_held = |queue: &QueueKey| self.offsets.owners_of(queue).iter().any(|o| self.offsets.is_held(o));
            let (held, free): (Vec<_>, Vec<_>) = messages.into_iter().partition(|(queue, _)| is_held(queue));
            let is_blocked = !held.is_empty();
            if is_blocked {
                let (messages, reply) = (held, reply.take());
                self.withdrawals.waiting.push_front(Withdrawal { messages, why, reply });
            }
            if is_blocked && free.is_empty() {
                return;
            }
            // What changed before goes before, as with every failure of a message.
            self.write_offsets();
            self.write_withdrawal(Withdrawal { messages: free, why, reply }, ctx);
        }
    }

    fn write_withdrawal(&mut self, withdrawal: Withdrawal, ctx: &Context<Self>) {
        let Withdrawal { messages, why, reply } = withdrawal;
        let mut work = Work {
            batch: WriteBatch::new(self.shared.clock.now()),
            progress: BTreeMap::new(),
            taken: Vec::new(),
            ahead: Vec::new(),
            dropped: 0,
        };
        let mut messages = VecDeque::from(messages);
        while work.batch.payload_bytes() < MAX_FIRE_BYTES
            && let Some((queue, offset)) = messages.pop_front()
        {
            for owner in self.offsets.owners_of(&queue) {
                if let Err(error) = self.take_away(&owner, offset, why, &mut work) {
                    // It stays where it is: whoever reads it next meets the same damage, and says so.
                    tracing::warn!(group = %self.group, %queue, %offset, %error, "a message could not be withdrawn");
                }
            }
        }
        let mut reply = reply;
        if !messages.is_empty() {
            let (messages, reply) = (messages.into(), reply.take());
            self.withdrawals.waiting.push_front(Withdrawal { messages, why, reply });
        }
        let Work { mut batch, progress, taken, ahead, dropped } = work;
        // Owners of whom nothing was taken have nothing to write.
        let changed: BTreeSet<&OffsetOwner> = taken.iter().map(|(owner, _)| owner).collect();
        let mut holds = Vec::with_capacity(changed.len());
        for (owner, progress) in progress.iter().filter(|(owner, _)| changed.contains(owner)) {
            self.offsets.put(owner, progress, &mut batch);
            holds.push((owner.clone(), self.offsets.hold(owner.clone())));
        }
        self.withdrawals.busy = !(taken.is_empty() && ahead.is_empty());
        let busy = self.withdrawals.busy;
        let (inbox, me) = (Arc::clone(&self.inbox), ctx.address());
        self.shared.storage.write(batch, Flush::Buffered, move |result| {
            if busy {
                let stored = result.is_ok();
                // A group that is gone reads from storage what was done when it is back.
                let _ =
                    inbox.push(GroupRequest::Withdrawn(Withdrawn { taken, ahead, holds, why, dropped, stored }), &me);
            }
            super::answer(reply, result.map(|_| ()).map_err(|error| error.get()));
        });
    }

    /// Adds one message to the write, if the group has not done it and nobody has it.
    fn take_away(&self, owner: &OffsetOwner, offset: QueueOffset, why: DeadReason, work: &mut Work) -> Result<()> {
        if !self.offsets.is_open(owner, offset) || self.popping.is_in_flight(&owner.queue, offset) {
            return Ok(());
        }
        let progress = work.progress.entry(owner.clone()).or_insert_with(|| self.offsets.progress_of(owner));
        let has_room = progress.has_room_to_withdraw(offset);
        let was_withdrawn = self.was_withdrawn_ahead(owner, offset)?;
        if !has_room {
            // Too many gaps. One that has not ended is withdrawn when its turn comes.
            return if was_withdrawn || why != DeadReason::Expired {
                Ok(())
            } else {
                self.take_away_ahead(owner, offset, why, work)
            };
        }
        let Some(stored) = self.read(&owner.queue, offset)? else { return Ok(()) };
        if let Some((session, lease)) = self.reader_of(owner)
            && session.withhold(&owner.queue, lease, offset) == Withheld::Out
        {
            return Ok(());
        }
        if was_withdrawn {
            let row = withdrawn::key(&self.group, &owner.queue, owner.member.as_ref(), offset);
            work.batch.delete(&withdrawn::TABLE, row);
        } else {
            self.end_of(owner, stored, why, work)?;
        }
        work.progress.entry(owner.clone()).or_default().withdraw(offset);
        work.taken.push((owner.clone(), offset));
        Ok(())
    }

    /// Adds a message that has ended for which the progress has no room. What a session has read already it finds ended
    /// by itself, and says so behind the acknowledgements that make room.
    fn take_away_ahead(
        &self,
        owner: &OffsetOwner,
        offset: QueueOffset,
        why: DeadReason,
        work: &mut Work,
    ) -> Result<()> {
        let ahead = self.reader_of(owner).is_none_or(|(session, lease)| session.is_ahead(&owner.queue, lease, offset));
        if ahead && let Some(stored) = self.read(&owner.queue, offset)? {
            // First, as it can fail: a row without its letter would hide the message.
            self.end_of(owner, stored, why, work)?;
            let row = withdrawn::key(&self.group, &owner.queue, owner.member.as_ref(), offset);
            work.batch.put(&withdrawn::TABLE, row, withdrawn::row());
            work.ahead.push((owner.clone(), offset));
        }
        Ok(())
    }

    /// Whether a message was withdrawn by a row of its own.
    pub(super) fn was_withdrawn_ahead(&self, owner: &OffsetOwner, offset: QueueOffset) -> Result<bool> {
        let engine = self.shared.storage.engine();
        self.offsets.withdrawn_ahead.has(&**engine, &self.group, owner, offset)
    }

    /// Adds the message's dead letter to the write, or counts that it is dropped.
    fn end_of(&self, owner: &OffsetOwner, stored: StoredRecord, why: DeadReason, work: &mut Work) -> Result<()> {
        if self.drops(owner, &stored, why) {
            work.dropped += 1;
            return Ok(());
        }
        let failures =
            self.offsets.failed_in_place.of_message(&owner.queue, stored.offset).filter(|_| owner.member.is_none());
        let stored = match failures {
            Some(failures) => failures.marked(stored),
            None => stored,
        };
        let failures = stored.record.attributes.property(ATTEMPTS).and_then(|n| n.parse().ok()).unwrap_or(0);
        let copy = FailedCopy {
            original: &stored,
            queue: &owner.queue,
            origin_id: MessageId::new(self.shared.store_id, stored.position),
            failures,
            failed: false,
            error: None,
            dead: Some(why),
            now: work.batch.stored_at(),
        };
        let letters = QueueKey::new(TopicName::dead_letter_of(&self.group), QueueId::FIRST);
        work.batch.append(&letters, copy.record()?);
        Ok(())
    }

    /// Whether a message is dropped rather than kept as a dead letter. Members of broadcasting groups have no dead
    /// letters of their own.
    pub(super) fn drops(&self, owner: &OffsetOwner, stored: &StoredRecord, why: DeadReason) -> bool {
        if owner.member.is_some() {
            return true;
        }
        let origin = stored.record.attributes.property(ORIGIN_TOPIC).map(TopicName::from_stored);
        let topic = origin.and_then(|name| name.ok()).unwrap_or_else(|| owner.queue.topic.clone());
        let on_expiry = self.shared.topics.get(&topic).map_or(OnExpiry::DeadLetter, |topic| topic.rules().on_expiry);
        why == DeadReason::Expired && on_expiry == OnExpiry::Drop
    }

    /// The session that reads a queue for this owner, if any does.
    pub(super) fn reader_of(&self, owner: &OffsetOwner) -> Option<(&Session, Lease)> {
        match &owner.member {
            Some(member) => self.sessions.get(member).map(|joined| (&*joined.session, joined.lease)),
            None => {
                let holding = self.membership.holding(&owner.queue)?;
                self.sessions.get(&holding.member).map(|joined| (&*joined.session, holding.lease))
            }
        }
    }

    fn read(&self, queue: &QueueKey, offset: QueueOffset) -> Result<Option<StoredRecord>> {
        let engine = self.shared.storage.engine();
        if !engine.bounds(queue)?.contains(&offset) {
            return Ok(None);
        }
        let request = FetchRequest {
            queue,
            from: offset,
            until: Some(offset.plus(1)),
            limit: FetchLimit::messages(1),
            tags: &TagHashes::All,
        };
        Ok(engine.fetch(request)?.records.pop())
    }

    /// The write of a withdrawal has an outcome.
    pub(super) fn withdrawn(&mut self, withdrawn: Withdrawn, ctx: &mut Context<Self>) {
        let Withdrawn { taken, ahead, holds, why, dropped, stored } = withdrawn;
        self.withdrawals.busy = false;
        holds.iter().for_each(|(owner, hold)| self.offsets.release(owner, *hold, None));
        if stored {
            self.withdrawals.dropped += dropped;
            ahead.iter().for_each(|(owner, offset)| self.offsets.withdrawn_ahead.add(owner, *offset));
            for (owner, offset) in taken {
                self.offsets.withdrawn(&owner, offset);
                if let Some((session, lease)) = self.reader_of(&owner) {
                    session.withdrawn(&owner.queue, lease, offset);
                }
            }
        } else if self.shared.check_running().is_ok() {
            // Refused for now: what sessions keep back must not be forgotten.
            let messages = taken.into_iter().chain(ahead).map(|(owner, offset)| (owner.queue, offset)).collect();
            let (inbox, me) = (Arc::clone(&self.inbox), ctx.address());
            let pause = self.shared.clock.sleep(AGAIN_AFTER);
            self.shared.arbiters.control().spawn(async move {
                pause.await;
                let _ = inbox.push(GroupRequest::Withdraw(Withdrawal { messages, why, reply: None }), &me);
            });
        }
        self.prepare_waiting(ctx);
        holds.iter().for_each(|(owner, _)| self.next_failures(owner, ctx));
        self.next_withdrawal(ctx);
    }
}
