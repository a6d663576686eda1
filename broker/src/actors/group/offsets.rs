//! The group's progress in memory, and what of it has yet to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cuemq_storage_api::{GroupName, QueueKey, QueueOffset, Timestamp, TopicName, WriteBatch};

use super::in_place::FailedInPlace;
use super::messages::{Answer, QueueLag};
use super::withdrawn_ahead::WithdrawnAhead;
use super::{GroupActor, Start};
use crate::domain::member::MemberId;
use crate::domain::membership::Lease;
use crate::domain::progress::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::consumer_offset::{self, ConsumerOffsetRow};

/// Whose progress in which queue; `member` only in broadcasting groups.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OffsetOwner {
    pub(super) queue: QueueKey,
    pub(super) member: Option<MemberId>,
}

pub(super) struct Offsets {
    group: GroupName,
    progress: BTreeMap<OffsetOwner, Progress>,
    /// How many messages nobody wanted.
    unwanted: BTreeMap<OffsetOwner, u64>,
    /// Deliveries that failed in their place.
    pub(super) failed_in_place: FailedInPlace,
    /// Messages that were withdrawn where `progress` has no room to say so.
    pub(super) withdrawn_ahead: WithdrawnAhead,
    changed: BTreeSet<OffsetOwner>,
    /// What changed since the last write, to be applied again to what a restart reads back.
    unwritten: Vec<Change>,
    replies: Vec<Answer<()>>,
    /// Owners whose rows wait for the outcome of another write.
    held: BTreeMap<OffsetOwner, Hold>,
    next_hold: u64,
}

/// While a batch of somebody else's that holds an owner's row is on its way to storage, no other row of that owner is
/// written: one of now would take back what the batch acknowledges.
#[derive(Default)]
struct Hold {
    number: u64,
    /// Those who wait for acknowledgements that came meanwhile.
    replies: Vec<Answer<()>>,
    /// Whether an operator's write has gone over the batch's row.
    overwritten: bool,
}

/// One step of an owner's progress.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Done(OffsetOwner, Range<QueueOffset>),
    Reset(OffsetOwner, QueueOffset),
}

impl Change {
    fn owner(&self) -> &OffsetOwner {
        match self {
            Self::Done(owner, _) | Self::Reset(owner, _) => owner,
        }
    }
}

impl GroupActor {
    /// Takes in what a member has done with a queue that it holds.
    pub(super) fn acknowledge_of(
        &mut self,
        member: &MemberId,
        queue: QueueKey,
        lease: Lease,
        ranges: Vec<Range<QueueOffset>>,
        unwanted: bool,
        reply: Option<Answer<()>>,
    ) {
        match self.check_lease(member, &queue, lease) {
            Ok(()) => {
                let owner = OffsetOwner { queue, member: self.owner(member) };
                self.offsets.acknowledge(&self.shared, &owner, ranges, unwanted, reply);
            }
            Err(stale) => super::answer(reply, Err(stale)),
        }
    }
}

impl Offsets {
    pub(super) fn new(group: GroupName) -> Self {
        let (progress, changed) = (BTreeMap::new(), BTreeSet::new());
        let (unwritten, replies, held) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (unwanted, failed_in_place) = (BTreeMap::new(), FailedInPlace::default());
        let withdrawn_ahead = WithdrawnAhead::default();
        let next_hold = 0;
        Self {
            group,
            progress,
            unwanted,
            failed_in_place,
            withdrawn_ahead,
            changed,
            unwritten,
            replies,
            held,
            next_hold,
        }
    }

    /// Reads everything back from storage and applies what was not written yet. What lies above the end of its queue
    /// is cut off before anything new is appended (promise P6).
    pub(super) fn reload(&mut self, shared: &Shared) -> Result<()> {
        // The outcome of every write is in what is read now.
        for (_, hold) in std::mem::take(&mut self.held) {
            self.replies.extend(hold.replies);
        }
        self.progress.clear();
        let engine = shared.storage.engine();
        self.failed_in_place.reload(&**engine, &self.group)?;
        self.withdrawn_ahead.reload(&**engine, &self.group)?;
        let keys = consumer_offset::keys_of_group(&self.group);
        let (group, progress_of, changed) = (&self.group, &mut self.progress, &mut self.changed);
        let unwanted = &mut self.unwanted;
        scan_rows::<Error>(
            &**engine,
            &consumer_offset::TABLE,
            &keys.start,
            Some(&keys.end),
            usize::MAX,
            |key, row| {
                let (key, row) = (consumer_offset::decode_key(key)?, ConsumerOffsetRow::decode(row)?);
                let end = engine.bounds(&key.queue)?.end;
                let (progress, clamped) = Progress::recover(row.committed, row.acked, end);
                let owner = OffsetOwner { queue: key.queue, member: key.member };
                if let Some(clamped) = clamped {
                    tracing::warn!(%group, queue = %owner.queue, ?clamped, "a committed offset lay above the log's end");
                    changed.insert(owner.clone());
                }
                if row.unwanted > 0 {
                    // What was counted since is not written yet.
                    let known = unwanted.entry(owner.clone()).or_default();
                    *known = row.unwanted.max(*known);
                }
                progress_of.insert(owner, progress);
                Ok(())
            },
        )?;
        let unwritten = std::mem::take(&mut self.unwritten);
        for change in unwritten {
            self.apply(shared, change)?;
        }
        Ok(())
    }

    fn apply(&mut self, shared: &Shared, change: Change) -> Result<()> {
        let owner = match &change {
            Change::Reset(owner, to) => {
                self.progress.entry(owner.clone()).or_default().reset(*to);
                owner
            }
            Change::Done(owner, range) => {
                let progress = self.progress.entry(owner.clone()).or_default();
                if progress.ack_range(range.clone()).is_err() {
                    let min = shared.storage.engine().bounds(&owner.queue)?.start;
                    if range.end > min {
                        let text = format!("offset {} of queue {} was never delivered", range.end, owner.queue);
                        return Err(Error::new(ErrorKind::OutOfRange, text));
                    }
                    // Expired before the group read it: retention's word is final.
                    progress.commit(min);
                }
                owner
            }
        };
        self.changed.insert(owner.clone());
        self.unwritten.push(change);
        Ok(())
    }

    pub(super) fn acknowledge(
        &mut self,
        shared: &Shared,
        owner: &OffsetOwner,
        ranges: Vec<Range<QueueOffset>>,
        unwanted: bool,
        reply: Option<Answer<()>>,
    ) {
        if unwanted {
            let passed = self.pass_over(shared, owner, ranges);
            return super::answer(reply, passed);
        }
        for range in ranges {
            if let Err(error) = self.apply(shared, Change::Done(owner.clone(), range)) {
                super::answer(reply, Err(error));
                return;
            }
        }
        self.answer_when_written(owner, reply);
    }

    /// Acknowledges what no member wants, and counts it.
    pub(super) fn pass_over(
        &mut self,
        shared: &Shared,
        owner: &OffsetOwner,
        ranges: Vec<Range<QueueOffset>>,
    ) -> Result<()> {
        let done = |offsets: &Self| offsets.progress.get(owner).map_or(0, Progress::total_done);
        let before = done(self);
        let passed = ranges.into_iter().try_for_each(|range| self.apply(shared, Change::Done(owner.clone(), range)));
        let more = done(self).saturating_sub(before);
        if more > 0 {
            *self.unwanted.entry(owner.clone()).or_default() += more;
        }
        passed
    }

    /// Answers once everything of this owner that changed so far is written.
    pub(super) fn answer_when_written(&mut self, owner: &OffsetOwner, reply: Option<Answer<()>>) {
        match self.held.get_mut(owner) {
            Some(hold) => hold.replies.extend(reply),
            None => self.replies.extend(reply),
        }
    }

    /// Whether a batch with this owner's row is on its way.
    pub(super) fn is_held(&self, owner: &OffsetOwner) -> bool {
        self.held.contains_key(owner)
    }

    /// Whether it has changed since its row was written.
    pub(super) fn has_changes(&self, owner: &OffsetOwner) -> bool {
        self.changed.contains(owner)
    }

    /// Holds back an owner's row until [`release`](Self::release) tells what became of a batch that has it. The answer
    /// names this hold. Everything that changed before has to be written, and no other batch be on its way.
    pub(super) fn hold(&mut self, owner: OffsetOwner) -> u64 {
        self.next_hold += 1;
        let hold = Hold { number: self.next_hold, ..Hold::default() };
        self.held.insert(owner, hold);
        self.next_hold
    }

    /// The outcome of the batch is known: with it `done` was acknowledged. A hold of before a restart is gone.
    pub(super) fn release(&mut self, owner: &OffsetOwner, number: u64, done: Option<QueueOffset>) {
        if self.held.get(owner).is_none_or(|hold| hold.number != number) {
            return;
        }
        let hold = self.held.remove(owner).unwrap_or_default();
        if let Some(offset) = done {
            // One beyond the window has expired or was reset by now.
            let _ = self.progress.entry(owner.clone()).or_default().ack(offset);
            if hold.overwritten {
                self.changed.insert(owner.clone());
            }
        }
        self.replies.extend(hold.replies);
    }

    /// The outcome of a transaction's batch is known: with it these changes were stored. Holds of before a restart are
    /// gone, and the changes have been read back.
    pub(super) fn conclude(&mut self, holds: &[u64], changes: Vec<Change>) {
        for change in changes {
            let owner = change.owner();
            let Some(hold) = self.held.get(owner).filter(|hold| holds.contains(&hold.number)) else { continue };
            if hold.overwritten {
                self.changed.insert(owner.clone());
            }
            let progress = self.progress.entry(owner.clone()).or_default();
            match change {
                // One beyond the window has expired or was reset by now.
                Change::Done(_, range) => drop(progress.ack_range(range)),
                Change::Reset(_, to) => progress.reset(to),
            }
        }
        let replies = &mut self.replies;
        self.held.retain(|_, hold| {
            let ends = holds.contains(&hold.number);
            if ends {
                replies.append(&mut hold.replies);
            }
            !ends
        });
    }

    /// Adds an acknowledgement to a batch that does more, such as storing the copy for a retry. It counts here only
    /// once [`release`](Self::release) says so: the batch may be refused.
    pub(super) fn acknowledge_in(&self, owner: &OffsetOwner, offset: QueueOffset, batch: &mut WriteBatch) {
        let mut progress = self.progress.get(owner).cloned().unwrap_or_default();
        // One beyond the window has expired by now: then the row says nothing new.
        let _ = progress.ack(offset);
        self.put(owner, &progress, batch);
    }

    /// Whether a message is done, as far as is known.
    pub(super) fn is_done(&self, owner: &OffsetOwner, offset: QueueOffset) -> bool {
        self.progress.get(owner).is_some_and(|progress| progress.is_acked(offset))
    }

    /// Whether the group, or the member of a broadcasting one, knows the queue and has not done this message.
    pub(super) fn is_open(&self, owner: &OffsetOwner, offset: QueueOffset) -> bool {
        self.progress.get(owner).is_some_and(|progress| !progress.is_acked(offset))
    }

    /// Whose progress there is in a queue.
    pub(super) fn owners_of(&self, queue: &QueueKey) -> Vec<OffsetOwner> {
        let first = OffsetOwner { queue: queue.clone(), member: None };
        let owners = self.progress.range(first..).map(|(owner, _)| owner);
        owners.take_while(|owner| owner.queue == *queue).cloned().collect()
    }

    pub(super) fn progress_of(&self, owner: &OffsetOwner) -> Progress {
        self.progress.get(owner).cloned().unwrap_or_default()
    }

    /// A message was withdrawn, and storage has it.
    pub(super) fn withdrawn(&mut self, owner: &OffsetOwner, offset: QueueOffset) {
        self.progress.entry(owner.clone()).or_default().withdraw(offset);
        // An operator's write may have gone over the batch's row.
        self.changed.insert(owner.clone());
    }

    /// Takes in what a member has done, after requests of it were lost in a panic.
    pub(super) fn catch_up(&mut self, shared: &Shared, owner: &OffsetOwner, done: &Progress) -> Result<()> {
        let known = self.progress.entry(owner.clone()).or_default();
        if known.commit(done.committed()) {
            self.changed.insert(owner.clone());
        }
        done.acked_ranges().try_for_each(|range| self.apply(shared, Change::Done(owner.clone(), range)))
    }

    pub(super) fn reset(&mut self, owner: &OffsetOwner, to: QueueOffset, reply: Answer<()>) {
        self.progress.entry(owner.clone()).or_default().reset(to);
        self.changed.insert(owner.clone());
        self.unwritten.push(Change::Reset(owner.clone(), to));
        self.answer_when_written(owner, Some(reply));
    }

    /// Whether members have progress of their own.
    pub(super) fn is_broadcasting(&self) -> bool {
        self.progress.keys().any(|owner| owner.member.is_some())
    }

    /// The progress in a queue after an operator has moved it; nothing is changed yet.
    pub(super) fn moved(&self, owner: &OffsetOwner, to: QueueOffset, backwards: bool) -> Progress {
        match self.progress.get(owner) {
            Some(progress) if !backwards => {
                let mut progress = progress.clone();
                progress.commit(to);
                progress
            }
            _ => Progress::starting_at(to),
        }
    }

    /// Adds the row that keeps this progress to a batch that does more.
    pub(super) fn put(&self, owner: &OffsetOwner, progress: &Progress, batch: &mut WriteBatch) {
        let unwanted = self.unwanted.get(owner).copied().unwrap_or(0);
        if owner.member.is_none() {
            self.failed_in_place.delete_done(&self.group, &owner.queue, progress, batch);
        }
        Self::put_of(&self.group, owner, progress, unwanted, batch);
    }

    /// As [`put`](Self::put), for somebody who only knows the group's name.
    pub(super) fn put_of(
        group: &GroupName,
        owner: &OffsetOwner,
        progress: &Progress,
        unwanted: u64,
        batch: &mut WriteBatch,
    ) {
        let key = consumer_offset::key(group, &owner.queue, owner.member.as_ref());
        batch.put(&consumer_offset::TABLE, key, ConsumerOffsetRow::of(progress, unwanted).encode());
    }

    /// How far an owner is, if it ever read the queue, and how many messages nobody wanted.
    pub(super) fn known(&self, owner: &OffsetOwner) -> (Option<Progress>, u64) {
        (self.progress.get(owner).cloned(), self.unwanted.get(owner).copied().unwrap_or(0))
    }

    /// Takes over progress that is stored already.
    pub(super) fn adopt(&mut self, owner: OffsetOwner, progress: Progress) {
        if let Some(hold) = self.held.get_mut(&owner) {
            hold.overwritten = true;
        }
        self.progress.insert(owner, progress);
    }

    pub(super) fn committed(&self, owner: &OffsetOwner) -> Option<QueueOffset> {
        self.progress.get(owner).map(Progress::committed)
    }

    /// The queues that the group shares and has read.
    pub(super) fn queues(&self) -> impl Iterator<Item = &QueueKey> {
        self.progress.keys().filter(|owner| owner.member.is_none()).map(|owner| &owner.queue)
    }

    /// Whose progress there is in a topic.
    pub(super) fn readers_of(&self, topic: &TopicName) -> BTreeSet<Option<MemberId>> {
        self.progress.keys().filter(|owner| owner.queue.topic == *topic).map(|owner| owner.member.clone()).collect()
    }

    /// The progress a member begins with; chosen by `start` and remembered when the group never read the queue.
    pub(super) fn open(&mut self, shared: &Shared, owner: &OffsetOwner, start: Start) -> Result<Progress> {
        let engine = shared.storage.engine();
        let bounds = engine.bounds(&owner.queue)?;
        if !self.progress.contains_key(owner) {
            let first = match start {
                Start::Earliest => bounds.start,
                Start::Latest => shared.storage.tail(&owner.queue)?.visible(),
                Start::At(at) => engine.offset_at(&owner.queue, at)?,
            };
            self.progress.insert(owner.clone(), Progress::starting_at(first));
            self.changed.insert(owner.clone());
            self.unwritten.push(Change::Reset(owner.clone(), first));
        }
        let progress = self.progress.entry(owner.clone()).or_default();
        if progress.commit(bounds.start) {
            tracing::warn!(group = %self.group, queue = %owner.queue, min = %bounds.start, "messages expired unread");
            self.changed.insert(owner.clone());
        }
        Ok(progress.clone())
    }

    /// Everything that changed since the last write and is not held back, and who waits for it.
    pub(super) fn take_batch(&mut self, now: Timestamp) -> Option<(WriteBatch, Vec<Answer<()>>)> {
        let replies = std::mem::take(&mut self.replies);
        let held = &self.held;
        let (later, writable): (BTreeSet<_>, BTreeSet<_>) =
            std::mem::take(&mut self.changed).into_iter().partition(|owner| held.contains_key(owner));
        self.unwritten.retain(|change| held.contains_key(change.owner()));
        self.changed = later;
        if writable.is_empty() && replies.is_empty() {
            return None;
        }
        let mut batch = WriteBatch::new(now);
        for owner in writable {
            self.put_row(&owner, &mut batch);
            if let (None, Some(progress)) = (&owner.member, self.progress.get(&owner)) {
                self.failed_in_place.forget_done(&owner.queue, progress);
            }
        }
        Some((batch, replies))
    }

    /// Adds to a batch of progress that what is known of messages which it has passed goes.
    pub(super) fn forget_passed(&mut self, shared: &Shared, batch: &mut WriteBatch) {
        let progress = &self.progress;
        let committed = |owner: &OffsetOwner| progress.get(owner).map(Progress::committed);
        let deleted = self.withdrawn_ahead.delete_passed(&**shared.storage.engine(), &self.group, committed, batch);
        if let Err(error) = deleted {
            tracing::warn!(group = %self.group, %error, "rows of withdrawn messages cannot be removed");
        }
    }

    fn put_row(&self, owner: &OffsetOwner, batch: &mut WriteBatch) {
        if let Some(progress) = self.progress.get(owner) {
            self.put(owner, progress, batch);
        }
    }

    pub(super) fn lags(&self, shared: &Shared) -> Result<Vec<QueueLag>> {
        let lag = |(owner, progress): (&OffsetOwner, &Progress)| {
            Ok(QueueLag {
                queue: owner.queue.clone(),
                member: owner.member.as_ref().map(ToString::to_string),
                committed: progress.committed(),
                end: shared.storage.tail(&owner.queue)?.visible(),
                unwanted: self.unwanted.get(owner).copied().unwrap_or(0),
            })
        };
        self.progress.iter().map(lag).collect()
    }
}
