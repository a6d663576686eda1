//! Moves a backlog to another topic, slice by slice.
//!
//! While it goes on the topic's queues belong to nobody in the group: members finish what they have and get no more.
//! A slice is one write: the copies, and the group's offsets behind what was copied. So at any moment, also after a
//! kill, a message is either still to be consumed here or lies in the other topic, and never both.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{LocatedRecord, QueueId, QueueKey, QueueOffset, TagHashes, TopicName, WriteBatch};

use super::messages::Answer;
use super::offsets::OffsetOwner;
use super::{GroupActor, Start};
use crate::actors::expiry::Endings;
use crate::actors::room::Room;
use crate::actors::topic::TopicHandle;
use crate::audit::audit_row;
use crate::broker::unknown_topic;
use crate::domain::audit::AuditAction;
use crate::domain::diverted_copy::diverted;
use crate::domain::length::Size;
use crate::domain::member::MemberId;
use crate::domain::progress::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_DIVERT_BYTES;
use crate::message::MessageId;
use crate::query::StoredOrder;
use crate::settings::Flush;
use crate::storage::Signal;
use crate::tables::audit::AuditRow;

/// Names one diversion of a topic by one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DivertId {
    pub(crate) topic: TopicName,
    pub(crate) number: u64,
}

/// See [`Operation`](super::Operation).
#[derive(Debug)]
pub(crate) enum DivertRequest {
    /// Takes the topic's queues from the members. `granted` is woken whenever one of them is free.
    Begin { id: DivertId, to: TopicName, note: String, granted: Arc<Signal>, reply: Answer<()> },
    /// Moves the oldest messages, at most `most` and no more than leave a backlog of `until_lag`; into queues of limited
    /// length as many as these rooms hold.
    Slice { id: DivertId, most: usize, until_lag: u64, rooms: Vec<Room>, reply: Answer<Slice> },
    /// Gives the queues back.
    End { id: DivertId, reply: Option<Answer<()>> },
}

/// What became of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Slice {
    /// So many messages were moved, so many are left.
    Moved { messages: u64, lag: u64 },
    /// The next message goes to a queue of limited length that has no room for its size.
    NoRoom { queue: QueueKey, size: Size },
    /// Members still have messages in hand; a queue that becomes free is announced.
    Waits,
    /// The backlog is small enough; this much is left.
    Done { lag: u64 },
}

/// A diversion under way.
pub(super) struct Divert {
    number: u64,
    to: TopicName,
    granted: Arc<Signal>,
    messages: u64,
    /// From where to where the group was moved.
    moved: BTreeMap<QueueId, (QueueOffset, QueueOffset)>,
}

/// A slice that is being written.
struct Copied {
    messages: u64,
    endings: Endings,
    /// Held until it is written.
    rooms: Vec<Room>,
    /// Where the next message would go, and does not fit.
    no_room: Option<(QueueKey, Size)>,
    progress: Vec<(OffsetOwner, QueueOffset, Progress)>,
}

/// Holds the queues of a topic that is being diverted; no member can have this name.
fn holder() -> MemberId {
    MemberId::new("%divert").expect("a legal name")
}

impl GroupActor {
    pub(super) fn divert(&mut self, request: DivertRequest, ctx: &mut Context<Self>) {
        match request {
            DivertRequest::Begin { id, to, note, granted, reply } => {
                let divert = Divert { number: id.number, to, granted, messages: 0, moved: BTreeMap::new() };
                self.begin_divert(id.topic, divert, note, reply, ctx);
            }
            DivertRequest::Slice { id, most, until_lag, rooms, reply } => {
                self.slice(id, (most, until_lag), rooms, reply, ctx);
            }
            DivertRequest::End { id, reply } => self.end_divert(&id, reply, ctx),
        }
    }

    /// A queue of a topic without members was granted: to the holder of a diversion, which waits for that.
    pub(super) fn granted_to_nobody(&self, queue: &QueueKey) {
        if let Some(divert) = self.diverts.get(&queue.topic) {
            divert.granted.wake();
        }
    }

    fn begin_divert(
        &mut self,
        topic: TopicName,
        divert: Divert,
        note: String,
        reply: Answer<()>,
        ctx: &mut Context<Self>,
    ) {
        self.write_offsets();
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let row = AuditRow {
            action: AuditAction::DivertBegan,
            group: Some(self.group.clone()),
            topic: Some(topic.clone()),
            queues: Vec::new(),
            note,
        };
        let checked = self.check_divert(&topic).and_then(|()| audit_row(&self.shared, &mut batch, &row));
        if let Err(error) = checked {
            let _ = reply.send(Err(error));
            return;
        }
        let storage = self.shared.storage.clone();
        let write = async move { storage.write_and_wait(batch, Flush::Durable).await };
        self.operating = true;
        ctx.wait(write.into_actor(self).map(move |written, actor, ctx| {
            actor.operating = false;
            let begun = written.map(|_| actor.take_topic(topic, divert, ctx));
            let _ = reply.send(begun);
        }));
    }

    fn check_divert(&self, topic: &TopicName) -> Result<()> {
        self.check_shared_progress()?;
        if let Some(divert) = self.diverts.get(topic) {
            let text = format!("topic {topic} is being diverted to {} already: let that end first", divert.to);
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        self.topic(topic).map(|_| ())
    }

    fn topic(&self, name: &TopicName) -> Result<Arc<TopicHandle>> {
        self.shared.topics.get(name).ok_or_else(|| unknown_topic(name))
    }

    fn take_topic(&mut self, topic: TopicName, divert: Divert, ctx: &mut Context<Self>) {
        let Some(handle) = self.shared.topics.get(&topic) else { return };
        self.diverts.insert(topic.clone(), divert);
        let (now, mut effects) = (self.shared.clock.now(), Vec::new());
        self.membership.reserve(topic, handle.queue_count(), holder(), now, &mut effects);
        self.perform(effects, ctx);
        self.write_offsets();
    }

    fn slice(
        &mut self,
        id: DivertId,
        measure: (usize, u64),
        rooms: Vec<Room>,
        reply: Answer<Slice>,
        ctx: &mut Context<Self>,
    ) {
        self.write_offsets();
        // Queues are chosen and written to while they stay what they are.
        let storage = self.shared.storage.clone();
        let passage = storage.passage();
        let (batch, copied) = match self.slice_batch(&id, measure, rooms) {
            Ok(Ok(slice)) => slice,
            Ok(Err(nothing)) => {
                let _ = reply.send(Ok(nothing));
                return;
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let write = passage.write_and_wait(batch, Flush::Durable);
        self.operating = true;
        ctx.wait(write.into_actor(self).map(move |written, actor, _| {
            actor.operating = false;
            let moved = written.and_then(|_| actor.take_over(&id, copied));
            let _ = reply.send(moved);
        }));
    }

    /// One write of the next messages in the order in which they were stored; or why there is none.
    fn slice_batch(
        &mut self,
        id: &DivertId,
        (most, until_lag): (usize, u64),
        rooms: Vec<Room>,
    ) -> Result<std::result::Result<(WriteBatch, Copied), Slice>> {
        let divert = self.diverts.get(&id.topic).filter(|divert| divert.number == id.number);
        let divert = divert.ok_or_else(|| Error::closed(&format!("the diversion of topic {}", id.topic)))?;
        let (source, target) = (self.topic(&id.topic)?, self.topic(&divert.to)?);
        let lag = self.lag_of(&source)?;
        if lag <= until_lag {
            return Ok(Err(Slice::Done { lag }));
        }
        let held = |queue: &QueueKey| self.membership.holding(queue).is_some_and(|held| held.member == holder());
        // All of them before the first message: a key whose messages lie in two queues keeps its order too.
        if !source.queues().iter().all(|queue| held(queue.key())) {
            return Ok(Err(Slice::Waits));
        }
        let most = most.min(usize::try_from(lag - until_lag).unwrap_or(usize::MAX));
        let mut progress = Vec::new();
        for queue in source.queues() {
            let owner = OffsetOwner { queue: queue.key().clone(), member: None };
            let open = self.offsets.open(&self.shared, &owner, Start::Earliest)?;
            progress.push((owner, open, queue.tail().visible()));
        }
        // What a queue that was never read begins with goes before, not over what follows.
        self.write_offsets();
        let (batch, copied) = self.copy_oldest(progress, &target, most, rooms)?;
        Ok(match &copied.no_room {
            Some((queue, size)) if copied.messages == 0 => Err(Slice::NoRoom { queue: queue.clone(), size: *size }),
            _ if copied.progress.is_empty() => Err(Slice::Done { lag }),
            _ => Ok((batch, copied)),
        })
    }

    fn copy_oldest(
        &self,
        open: Vec<(OffsetOwner, Progress, QueueOffset)>,
        target: &TopicHandle,
        most: usize,
        mut rooms: Vec<Room>,
    ) -> Result<(WriteBatch, Copied)> {
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let range = |(owner, progress, end): &(OffsetOwner, Progress, QueueOffset)| {
            (owner.queue.clone(), progress.committed()..*end)
        };
        let ranges = open.iter().map(range).collect();
        let mut open: BTreeMap<QueueKey, (OffsetOwner, QueueOffset, Progress)> = open
            .into_iter()
            .map(|(owner, progress, _)| (owner.queue.clone(), (owner, progress.committed(), progress)))
            .collect();
        let (engine, mut messages) = (self.shared.storage.engine(), 0);
        let (mut endings, mut no_room) = (Endings::default(), None);
        let mut records = StoredOrder::new(&**engine, &TagHashes::All, ranges)?;
        while messages < most && batch.payload_bytes() < MAX_DIVERT_BYTES {
            let Some(LocatedRecord { queue, stored }) = records.next()? else { break };
            let Some((owner, _, progress)) = open.get_mut(&queue) else { continue };
            if progress.is_acked(stored.offset) || self.was_withdrawn_ahead(owner, stored.offset)? {
                continue;
            }
            let id = MessageId::new(self.shared.store_id, stored.position);
            let routes = target.routes();
            let chosen = routes.choose(stored.record.attributes.sharding_key());
            let copy = diverted(&stored, &queue, id)?;
            if chosen.limited().is_some() {
                let size = Size::of([&copy]);
                let room = rooms.iter_mut().find(|room| room.key() == chosen.key());
                if !room.is_some_and(|room| room.take(size)) {
                    // The next write begins with it.
                    no_room = Some((chosen.key().clone(), size));
                    break;
                }
            }
            endings.append(&self.shared, &mut batch, chosen.key(), copy);
            progress.commit(stored.offset.plus(1));
            messages += 1;
        }
        let moved = open.into_values().filter(|(_, from, progress)| progress.committed() > *from).collect::<Vec<_>>();
        for (owner, _, progress) in &moved {
            self.offsets.put(owner, progress, &mut batch);
        }
        if messages > 0 {
            rooms.iter().for_each(|room| room.begin_in(&mut batch));
        }
        Ok((batch, Copied { messages: messages as u64, endings, rooms, no_room, progress: moved }))
    }

    /// A slice is stored: the group is behind it.
    fn take_over(&mut self, id: &DivertId, copied: Copied) -> Result<Slice> {
        copied.endings.stored(&self.shared);
        drop(copied.rooms);
        let divert = self.diverts.get_mut(&id.topic);
        if let Some(divert) = divert {
            divert.messages += copied.messages;
            for (owner, from, progress) in &copied.progress {
                let moved = divert.moved.entry(owner.queue.queue).or_insert((*from, *from));
                moved.1 = progress.committed();
            }
        }
        for (owner, _, progress) in copied.progress {
            self.offsets.adopt(owner, progress);
        }
        Ok(Slice::Moved { messages: copied.messages, lag: self.lag_of(&*self.topic(&id.topic)?)? })
    }

    fn lag_of(&self, topic: &TopicHandle) -> Result<u64> {
        let lag = |queue: &Arc<crate::actors::queue::QueueHandle>| {
            let min = self.shared.storage.engine().bounds(queue.key())?.start;
            let owner = OffsetOwner { queue: queue.key().clone(), member: None };
            let committed = self.offsets.committed(&owner).map_or(min, |committed| committed.max(min));
            Ok(queue.tail().visible().get().saturating_sub(committed.get()))
        };
        topic.queues().iter().map(lag).sum()
    }

    fn end_divert(&mut self, id: &DivertId, reply: Option<Answer<()>>, ctx: &mut Context<Self>) {
        if self.diverts.get(&id.topic).is_none_or(|divert| divert.number != id.number) {
            super::answer(reply, Ok(()));
            return;
        }
        let Some(divert) = self.diverts.remove(&id.topic) else { return };
        let mut effects = Vec::new();
        self.membership.unreserve(&id.topic, self.shared.clock.now(), &mut effects);
        self.perform(effects, ctx);
        self.write_offsets();
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let row = AuditRow {
            action: AuditAction::DivertEnded,
            group: Some(self.group.clone()),
            topic: Some(id.topic.clone()),
            queues: divert.moved.iter().map(|(queue, (from, to))| (*queue, *from, *to)).collect(),
            note: format!("{} messages to {}", divert.messages, divert.to),
        };
        if let Err(error) = audit_row(&self.shared, &mut batch, &row) {
            super::answer(reply, Err(error));
            return;
        }
        self.shared.storage.write(batch, Flush::Durable, move |written| {
            super::answer(reply, written.map(|_| ()).map_err(|error| error.get()));
        });
    }
}
