//! Room in queues that may not grow beyond a length.
//!
//! Whoever appends to such a queue holds its lock from asking for room until the append is stored, so that what was found
//! to fit still does. Queues without a limit have no lock and are never asked about.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cuemq_storage_api::{GroupName, QueueId, QueueKey, QueueOffset, Record, TopicName, WriteBatch};
use futures_util::future::join_all;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::group::{GroupRequest, RoomRequest};
use crate::domain::failed_copy::refused_copy;
use crate::domain::length::{MaxLength, Overflow, Size};
use crate::error::{Error, ErrorKind, Result};
use crate::shared::Shared;

/// A queue with a limit.
#[derive(Debug)]
pub(crate) struct LimitedQueue {
    key: QueueKey,
    limit: MaxLength,
    lock: Arc<Mutex<()>>,
    /// Whether somebody is about to look whether it is too long.
    watched: AtomicBool,
}

/// Room in one queue, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Room {
    /// How much fits.
    pub(crate) free: Size,
    queue: Arc<LimitedQueue>,
    /// Groups that read the queue.
    readers: Vec<GroupName>,
    /// Where the queue shall begin, if nobody reads it and its oldest messages make room.
    begin: Option<QueueOffset>,
    _lock: OwnedMutexGuard<()>,
}

/// Why there is no room, and who keeps what is refused.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) error: Error,
    /// The rooms that were found to be too small, still held.
    pub(crate) rooms: Vec<Room>,
}

impl LimitedQueue {
    pub(crate) fn new(key: QueueKey, limit: MaxLength) -> Arc<Self> {
        Arc::new(Self { key, limit, lock: Arc::default(), watched: AtomicBool::new(false) })
    }

    pub(crate) fn limit(&self) -> &MaxLength {
        &self.limit
    }

    /// Asks for room, and has it made if the limit's policy says so.
    ///
    /// # Errors
    /// When a group could not be asked; nothing shall be written then.
    pub(crate) async fn room_for(self: &Arc<Self>, shared: &Shared, incoming: Size) -> Result<Room> {
        let lock = self.lock().await;
        self.room_under(lock, shared, incoming).await
    }

    /// Keeps everybody else from appending.
    pub(crate) async fn lock(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.lock).lock_owned().await
    }

    /// As [`room_for`](Self::room_for), with the lock at hand.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn room_under(
        self: &Arc<Self>,
        lock: OwnedMutexGuard<()>,
        shared: &Shared,
        incoming: Size,
    ) -> Result<Room> {
        let groups = shared.groups.all();
        let asked = groups.iter().map(|(_, group)| {
            let (queue, limit) = (self.key.clone(), self.limit);
            group.ask(move |reply| GroupRequest::MakeRoom(RoomRequest { queue, limit, incoming, tries: 0, reply }))
        });
        let (mut free, mut readers) = (self.limit.whole(), Vec::new());
        for ((name, _), answer) in groups.iter().zip(join_all(asked).await) {
            let answer = answer.map_err(|error| {
                let text =
                    format!("the message was not stored: whether queue {} has room is unknown: {error}", self.key);
                Error::new(ErrorKind::NotStored, text)
            })?;
            if let Some(room) = answer {
                free = free.least(room);
                readers.push(name.clone());
            }
        }
        let mut room = Room { free, queue: Arc::clone(self), readers, begin: None, _lock: lock };
        if room.readers.is_empty() {
            room.without_readers(shared, incoming)?;
        }
        Ok(room)
    }

    /// Messages came back: has the oldest make way, if there are too many now. It waits for whoever appends, so that what
    /// is being stored is seen.
    fn watch(self: &Arc<Self>, shared: &Arc<Shared>) {
        if self.limit.keeps_places() || self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let (queue, shared) = (Arc::clone(self), Arc::clone(shared));
        shared.arbiters.control().clone().spawn(async move {
            let lock = queue.lock().await;
            // What comes back from here on is looked after again.
            queue.watched.store(false, Ordering::Release);
            if let Err(error) = queue.room_under(lock, &shared, Size::default()).await {
                tracing::warn!(queue = %queue.key, %error, "the oldest could not make way for what came back");
            }
        });
    }

    fn full(&self, kept: bool) -> Error {
        let outcome = if kept { "kept as a dead letter and not delivered" } else { "not stored" };
        let text = format!(
            "queue {} holds as much as its max_length of {} allows, so the message was {outcome}: send it when consumers \
             have caught up, or give the topic a larger max_length or the policy DropHead",
            self.key, self.limit
        );
        Error::new(ErrorKind::Full, text)
    }

    /// Why something does not even fit into the empty queue, if it does not.
    pub(crate) fn too_large(&self, incoming: Size) -> Option<Error> {
        (!incoming.fits_in(self.limit.whole())).then(|| {
            let text = format!(
                "{} messages with {} bytes at once are more than the max_length of queue {}, {}: send fewer at once, or \
                 give the topic a larger max_length",
                incoming.messages, incoming.bytes, self.key, self.limit
            );
            Error::new(ErrorKind::Full, text)
        })
    }
}

impl Room {
    /// Everything in the queue counts where nobody reads it; its oldest messages go without a trace.
    fn without_readers(&mut self, shared: &Shared, incoming: Size) -> Result<()> {
        let (engine, queue) = (shared.storage.engine(), &self.queue);
        let bounds = engine.bounds(&queue.key)?;
        let sizes = if queue.limit.bytes.is_some() {
            super::group::sizes_of(&**engine, &queue.key, bounds.clone())?
        } else {
            vec![0; usize::try_from(bounds.end.get() - bounds.start.get()).unwrap_or(usize::MAX)]
        };
        let stored = Size { messages: sizes.len() as u64, bytes: sizes.iter().sum() };
        self.free = queue.limit.room_beside(stored);
        if queue.limit.policy == Overflow::DropHead && !incoming.fits_in(self.free) {
            let keep = queue.limit.whole().less(incoming);
            let excess = stored.less(keep);
            let gone = crate::domain::length::how_many_free(sizes, excess);
            self.begin = Some(bounds.start.plus(gone as u64));
            self.free = incoming;
        }
        Ok(())
    }

    /// Takes part of the room; false when there is too little.
    pub(crate) fn take(&mut self, incoming: Size) -> bool {
        let fits = incoming.fits_in(self.free);
        if fits {
            self.free = self.free.less(incoming);
        }
        fits
    }

    /// Adds to the batch of an append what makes its room.
    pub(crate) fn begin_in(&self, batch: &mut WriteBatch) {
        if let Some(begin) = self.begin {
            batch.trim(&self.queue.key, begin);
        }
    }

    /// Adds the dead letters of a record that is refused, if the policy wants them; whether it is kept.
    ///
    /// # Errors
    /// When the copy is more than an engine stores.
    pub(crate) fn keep_refused(&self, record: &Record, batch: &mut WriteBatch) -> Result<bool> {
        if self.queue.limit.policy != Overflow::RejectNewDeadLetter {
            return Ok(false);
        }
        for group in &self.readers {
            let letters = QueueKey::new(TopicName::dead_letter_of(group), QueueId::FIRST);
            batch.append(&letters, refused_copy(record, &self.queue.key, batch.stored_at())?);
        }
        Ok(!self.readers.is_empty())
    }

    /// What a sender is told who is refused.
    pub(crate) fn refusal(&self, kept: bool) -> Error {
        self.queue.full(kept)
    }

    pub(crate) fn key(&self) -> &QueueKey {
        &self.queue.key
    }
}

/// Messages of a queue came back from whoever had them: if its length is limited the limit holds again.
pub(crate) fn came_back(shared: &Arc<Shared>, queue: &QueueKey) {
    if let Some(limited) = limited(shared, queue) {
        limited.watch(shared);
    }
}

/// The queue that a message goes to, if that is one with a limit.
pub(crate) fn limited(shared: &Shared, queue: &QueueKey) -> Option<Arc<LimitedQueue>> {
    let topic = shared.topics.get(&queue.topic).filter(|topic| topic.rules().max_length.is_some())?;
    topic.queue(queue.queue).ok()?.limited().cloned()
}

/// Room for everything that one batch appends to limited queues, all or none.
///
/// # Errors
/// `Full` names the first queue that has too little. The rooms come back then, so that what is refused can be kept.
pub(crate) async fn rooms_for(
    shared: &Shared,
    mut demands: Vec<(Arc<LimitedQueue>, Size)>,
) -> std::result::Result<Vec<Room>, NoRoom> {
    // Everybody locks in one order.
    demands.sort_by(|(one, _), (other, _)| one.key.cmp(&other.key));
    let mut rooms = Vec::with_capacity(demands.len());
    if let Some(error) = demands.iter().find_map(|(queue, incoming)| queue.too_large(*incoming)) {
        return Err(NoRoom { error, rooms });
    }
    let mut refused = None;
    for (queue, incoming) in demands {
        match queue.room_for(shared, incoming).await {
            Ok(mut room) => {
                if !room.take(incoming) {
                    refused.get_or_insert_with(|| room.refusal(false));
                }
                rooms.push(room);
            }
            Err(error) => return Err(NoRoom { error, rooms: Vec::new() }),
        }
    }
    match refused {
        None => Ok(rooms),
        Some(error) => Err(NoRoom { error, rooms }),
    }
}
