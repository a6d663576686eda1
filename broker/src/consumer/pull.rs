//! Reads queues by offset: the program decides where to read and when to commit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuemq_storage_api::{FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, TagHashes, Timestamp, TopicName};
use futures_util::future::select;

use super::pledge::{Acknowledged, Committed, PositionPledge, known, note};
use super::received::Received;
use crate::actors::group::{GroupHandle, GroupRequest};
use crate::broker::{Keeper, unknown_topic};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::FETCH_BYTES;
use crate::storage::{QueueTail, Signal};

/// Where to go on reading a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeekTo {
    /// The oldest message there is.
    Begin,
    /// The next message that is sent.
    End,
    /// This offset; it has to lie within the queue's bounds.
    Offset(QueueOffset),
    /// The first message stored at or after this time.
    Time(Timestamp),
}

/// A consumer that is not a member of its group: it reads the queues it is told to, and only keeps its committed
/// offsets under the group's name. See [`Broker::pull_consumer`](crate::Broker::pull_consumer).
pub struct PullConsumer {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    queues: BTreeMap<QueueKey, Assigned>,
    signal: Arc<Signal>,
    auto_commit: bool,
    /// Queues take turns: which comes first in the next poll.
    turn: usize,
}

struct Assigned {
    tail: Arc<QueueTail>,
    next: QueueOffset,
    /// What has been committed, as far as this consumer knows.
    committed: Committed,
}

impl fmt::Debug for PullConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullConsumer").field("group", self.group.name()).finish_non_exhaustive()
    }
}

impl PullConsumer {
    pub(crate) fn new(keeper: Arc<Keeper>, group: Arc<GroupHandle>) -> Self {
        Self { keeper, group, queues: BTreeMap::new(), signal: Arc::default(), auto_commit: false, turn: 0 }
    }

    /// Has every poll commit what the poll before it returned: whoever polls again has processed that. Off by default.
    #[must_use]
    pub fn auto_commit(mut self, auto: bool) -> Self {
        self.auto_commit = auto;
        self
    }

    /// Reads all queues of a topic, each from the group's committed offset or, without one, from the oldest message.
    /// Retry and dead-letter topics (`%RETRY%group`, `%DLQ%group`) can be read too.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub async fn assign_topic(&mut self, topic: &str) -> Result<()> {
        let name = TopicName::from_stored(topic)?;
        let handle = self.keeper.shared().topics.get(&name).ok_or_else(|| unknown_topic(&name))?;
        for queue in handle.queues() {
            self.assign_queue(queue.key().clone()).await?;
        }
        Ok(())
    }

    /// Reads one queue of a topic, from the same place.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` when the topic has no such queue.
    pub async fn assign(&mut self, topic: &str, queue: u32) -> Result<()> {
        let name = TopicName::from_stored(topic)?;
        let handle = self.keeper.shared().topics.get(&name).ok_or_else(|| unknown_topic(&name))?;
        let key = handle.queue(QueueId::new(queue)?)?.key().clone();
        self.assign_queue(key).await
    }

    async fn assign_queue(&mut self, key: QueueKey) -> Result<()> {
        let asked = key.clone();
        let committed = self.group.ask(|reply| GroupRequest::Committed { queue: asked, reply }).await?;
        let storage = &self.keeper.shared().storage;
        let bounds = storage.engine().bounds(&key)?;
        let tail = storage.tail(&key)?;
        tail.listen(&self.signal);
        let next = committed.unwrap_or(bounds.start).clamp(bounds.start, bounds.end);
        let committed = Arc::new(Mutex::new(committed));
        self.queues.insert(key, Assigned { tail, next, committed });
        Ok(())
    }

    /// The assigned queues and where each will be read next.
    #[must_use]
    pub fn positions(&self) -> Vec<(QueueKey, QueueOffset)> {
        self.queues.iter().map(|(key, assigned)| (key.clone(), assigned.next)).collect()
    }

    /// Goes on reading a queue elsewhere. Nothing is committed by that.
    ///
    /// # Errors
    /// `Invalid` when the queue is not assigned; `OutOfRange` names the queue's bounds.
    pub fn seek(&mut self, topic: &str, queue: u32, to: SeekTo) -> Result<QueueOffset> {
        let key = QueueKey::new(TopicName::from_stored(topic)?, QueueId::new(queue)?);
        let assigned = self.queues.get_mut(&key).ok_or_else(|| not_assigned(&key))?;
        let engine = self.keeper.shared().storage.engine();
        let bounds = engine.bounds(&key)?;
        let offset = match to {
            SeekTo::Begin => bounds.start,
            SeekTo::End => assigned.tail.visible(),
            SeekTo::Time(at) => engine.offset_at(&key, at)?.min(assigned.tail.visible()),
            SeekTo::Offset(offset) if (bounds.start..=bounds.end).contains(&offset) => offset,
            SeekTo::Offset(offset) => {
                let text = format!("offset {offset} of queue {key} is not within {} to {}", bounds.start, bounds.end);
                return Err(Error::new(ErrorKind::OutOfRange, text));
            }
        };
        assigned.next = offset;
        self.signal.wake();
        Ok(offset)
    }

    /// Up to `max` messages, in offset order per queue; waits up to `wait` for the first, then takes what is there.
    /// Nothing after `wait`: an empty answer.
    ///
    /// # Errors
    /// `OutOfRange` when the next message has expired: seek; `Closed` or `Unavailable` when the broker has ended.
    pub async fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Received>> {
        if self.auto_commit {
            self.commit().await?;
        }
        let clock = self.keeper.shared().clock.clone();
        let until = clock.now().plus(wait);
        loop {
            self.keeper.shared().check_running()?;
            let messages = self.take(max)?;
            if !messages.is_empty() || clock.now() >= until || max == 0 {
                return Ok(messages);
            }
            let signal = std::pin::pin!(self.signal.wait());
            let ended = std::pin::pin!(self.keeper.shared().state.ended());
            select(signal, select(ended, clock.sleep_until(until))).await;
        }
    }

    fn take(&mut self, max: usize) -> Result<Vec<Received>> {
        let shared = self.keeper.shared();
        let mut messages = Vec::new();
        let (count, turn) = (self.queues.len(), self.turn);
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let Some((key, assigned)) = self.queues.iter_mut().nth((turn.wrapping_add(step)) % count) else { break };
            let until = assigned.tail.visible();
            let limit = FetchLimit { max_messages: max - messages.len(), max_bytes: FETCH_BYTES };
            if limit.max_messages == 0 || assigned.next >= until {
                continue;
            }
            let (from, tags) = (assigned.next, &TagHashes::All);
            let request = FetchRequest { queue: key, from, until: Some(until), limit, tags };
            let fetch = shared.storage.engine().fetch(request)?;
            assigned.next = fetch.next;
            let receive = |stored| Received::new(key.clone(), stored, shared.store_id, 0);
            messages.extend(fetch.records.into_iter().map(receive));
        }
        Ok(messages)
    }

    /// Commits what all polls so far have returned.
    ///
    /// # Errors
    /// `Conflict` when a member of the group reads one of the queues; `NotStored` or `Unknown` when the write failed.
    pub async fn commit(&mut self) -> Result<()> {
        for (key, assigned) in &self.queues {
            if known(&assigned.committed) != Some(assigned.next) {
                let (queue, to) = (key.clone(), assigned.next);
                self.group.ask(|reply| GroupRequest::Reset { queue, to, reply }).await?;
                note(&assigned.committed, to);
            }
        }
        Ok(())
    }

    /// What a transaction needs to commit what all polls so far have returned.
    pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> {
        let moved = self.queues.iter().filter(|(_, assigned)| known(&assigned.committed) != Some(assigned.next));
        let pledge = |(key, assigned): (&QueueKey, &Assigned)| {
            let (group, committed) = (Arc::clone(&self.group), Arc::clone(&assigned.committed));
            let pledge = PositionPledge { group, queue: key.clone(), to: assigned.next, committed };
            Acknowledged::Position(Arc::new(pledge))
        };
        moved.map(pledge).collect()
    }

    /// What is committed for a queue; `None` when nothing ever was.
    ///
    /// # Errors
    /// `Invalid` names a bad topic or queue.
    pub async fn committed(&self, topic: &str, queue: u32) -> Result<Option<QueueOffset>> {
        let queue = QueueKey::new(TopicName::from_stored(topic)?, QueueId::new(queue)?);
        self.group.ask(|reply| GroupRequest::Committed { queue, reply }).await
    }
}

fn not_assigned(key: &QueueKey) -> Error {
    Error::new(ErrorKind::Invalid, format!("queue {key} is not assigned: call assign first"))
}
