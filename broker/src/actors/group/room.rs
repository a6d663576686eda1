//! Room for what is to come into a queue of limited length: how much of it waits, and how the oldest make way.

use std::collections::HashMap;
use std::ops::Range;

use actix::{AsyncContext, Context, WrapFuture};
use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueKey, QueueOffset, TagHashes};
use tokio::sync::oneshot;

use super::messages::Answer;
use super::offsets::OffsetOwner;
use super::withdrawal::Withdrawal;
use super::{GroupActor, GroupRequest};
use crate::actors::room::came_back;
use crate::domain::failure::DeadReason;
use crate::domain::length::{MaxLength, Overflow, Size, Sizes, how_many_free};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{FETCH_BYTES, FETCH_MESSAGES, MAX_MEASURED_MESSAGES};

/// How often room is made again when somebody else took what was to go.
const MAX_TRIES: u32 = 8;

/// Asks for room. Whoever asks holds the queue's lock: nobody else appends meanwhile.
#[derive(Debug)]
pub(crate) struct RoomRequest {
    pub(crate) queue: QueueKey,
    pub(crate) limit: MaxLength,
    pub(crate) incoming: Size,
    /// How often room was made for it already.
    pub(crate) tries: u32,
    /// The room there is now; `None` when the group does not read the queue.
    pub(crate) reply: Answer<Option<Size>>,
}

/// Sizes of what waits, of queues whose bytes are limited.
#[derive(Debug, Default)]
pub(super) struct Measured {
    queues: HashMap<QueueKey, Sizes>,
}

impl GroupActor {
    pub(super) fn make_room(&mut self, request: RoomRequest, ctx: &mut Context<Self>) {
        match self.room_in(&request) {
            Ok(Found::Room(room)) => drop(request.reply.send(Ok(room))),
            Ok(Found::TooLong(_)) if request.tries >= MAX_TRIES => {
                let text = format!("the oldest messages of queue {} cannot make room now: send again", request.queue);
                drop(request.reply.send(Err(Error::new(ErrorKind::Full, text))));
            }
            Ok(Found::TooLong(oldest)) => self.make_way(request, oldest, ctx),
            Err(error) => drop(request.reply.send(Err(error))),
        }
    }

    /// Takes the oldest from the group, and looks again once that is stored.
    fn make_way(&mut self, mut request: RoomRequest, oldest: Vec<QueueOffset>, ctx: &mut Context<Self>) {
        let messages = oldest.into_iter().map(|offset| (request.queue.clone(), offset)).collect();
        let (reply, gone) = oneshot::channel();
        self.withdraw(Withdrawal { messages, why: DeadReason::MaxLength, reply: Some(reply) }, ctx);
        let (inbox, me) = (std::sync::Arc::clone(&self.inbox), ctx.address());
        request.tries += 1;
        let look_again = async move {
            let outcome = gone.await.unwrap_or_else(|_| Err(Error::lost("the making of room")));
            match outcome {
                // Behind the news that the messages are done.
                Ok(()) => drop(inbox.push(GroupRequest::MakeRoom(request), &me)),
                Err(error) => drop(request.reply.send(Err(error))),
            }
        };
        ctx.spawn(look_again.into_actor(self));
    }

    /// Somebody has left, or the group begins anew: what was in hands waits again.
    pub(super) fn everything_came_back(&self) {
        for queue in self.offsets.queues().filter(|queue| !queue.topic.is_system()) {
            came_back(&self.shared, queue);
        }
    }

    fn room_in(&mut self, request: &RoomRequest) -> Result<Found> {
        let RoomRequest { queue, limit, incoming, .. } = request;
        let owner = OffsetOwner { queue: queue.clone(), member: None };
        if self.offsets.committed(&owner).is_none() {
            self.take_up_new_queues(&queue.topic)?;
        }
        if self.offsets.committed(&owner).is_none() {
            return Ok(Found::Room(None));
        }
        let waiting = self.waiting_in(&owner, limit)?;
        let mut size =
            Size { messages: waiting.iter().map(|range| range.end.get() - range.start.get()).sum(), bytes: 0 };
        let offsets = || waiting.iter().flat_map(|range| (range.start.get()..range.end.get()).map(QueueOffset::new));
        let sizes = if limit.bytes.is_some() { Some(self.measure(queue, &waiting)?) } else { None };
        if let Some(sizes) = sizes {
            size.bytes = waiting.iter().map(|range| sizes.bytes(range)).sum();
        }
        let excess = limit.excess(size, *incoming);
        if limit.policy != Overflow::DropHead || excess == Size::default() {
            return Ok(Found::Room(Some(limit.room_beside(size))));
        }
        let each = offsets().map(|offset| sizes.map_or(0, |sizes| sizes.bytes(&(offset..offset.plus(1)))));
        let count = how_many_free(each, excess);
        Ok(Found::TooLong(offsets().take(count).collect()))
    }

    /// What waits in a queue: not done, and in nobody's hands unless that counts. Rising ranges.
    fn waiting_in(&self, owner: &OffsetOwner, limit: &MaxLength) -> Result<Vec<Range<QueueOffset>>> {
        let bounds = self.shared.storage.engine().bounds(&owner.queue)?;
        let reader = self.reader_of(owner).filter(|_| !limit.keeps_places());
        let held = reader.and_then(|(session, lease)| session.waiting(&owner.queue, lease, bounds.end));
        let mut ranges = held.unwrap_or_else(|| {
            let mut progress = self.offsets.progress_of(owner);
            if !limit.keeps_places() {
                // Nobody holds the queue, but some of it may be popped.
                for offset in self.popping.in_flight_of(&owner.queue) {
                    let _ = progress.ack(offset);
                }
            }
            progress.open_ranges(progress.committed()..bounds.end).collect()
        });
        for range in &mut ranges {
            range.start = range.start.max(bounds.start);
        }
        ranges.retain(|range| range.start < range.end);
        Ok(ranges)
    }

    /// The sizes of everything that waits.
    fn measure(&mut self, queue: &QueueKey, waiting: &[Range<QueueOffset>]) -> Result<&Sizes> {
        let (Some(first), Some(last)) = (waiting.first(), waiting.last()) else {
            self.measured.queues.remove(queue);
            return Ok(self.measured.queues.entry(queue.clone()).or_default());
        };
        if last.end.get() - first.start.get() > MAX_MEASURED_MESSAGES {
            let text = format!(
                "queue {queue} has more than {MAX_MEASURED_MESSAGES} messages behind the oldest that waits, too many for \
                 a limit of bytes: consume some"
            );
            return Err(Error::new(ErrorKind::Full, text));
        }
        let sizes = self.measured.queues.entry(queue.clone()).or_default();
        // Set back, or never measured: begin anew.
        if sizes.base() > first.start || sizes.end() < first.start {
            *sizes = Sizes::from(first.start);
        }
        sizes.forget_below(first.start);
        if sizes.end() < last.end {
            let engine = self.shared.storage.engine();
            sizes_of(&**engine, queue, sizes.end()..last.end)?.into_iter().for_each(|bytes| sizes.push(bytes));
        }
        Ok(sizes)
    }
}

enum Found {
    Room(Option<Size>),
    /// These have to go.
    TooLong(Vec<QueueOffset>),
}

/// The payload bytes of every message of a range.
///
/// # Errors
/// A failed read.
pub(crate) fn sizes_of(engine: &dyn Engine, queue: &QueueKey, range: Range<QueueOffset>) -> Result<Vec<u64>> {
    let (mut from, mut sizes) = (range.start, Vec::new());
    while from < range.end {
        let limit = FetchLimit { max_messages: FETCH_MESSAGES, max_bytes: FETCH_BYTES };
        let request = FetchRequest { queue, from, until: Some(range.end), limit, tags: &TagHashes::All };
        let fetch = engine.fetch(request)?;
        if fetch.next <= from {
            break;
        }
        sizes.extend(fetch.records.iter().map(|stored| stored.record.payload_bytes() as u64));
        from = fetch.next;
    }
    Ok(sizes)
}
