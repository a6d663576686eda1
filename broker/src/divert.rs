//! Moves the backlog of a group out of the way, into a topic that many can drain.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, TopicName};
use futures_util::future::select;

use crate::actors::group::{DivertId, DivertRequest, GroupHandle, GroupRequest, Operation, Slice};
use crate::actors::room::Room;
use crate::broker::{Broker, unknown_topic};
use crate::domain::length::Size;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_DIVERT_MESSAGES, MAX_NOTE_BYTES, MAX_QUEUES_PER_TOPIC};
use crate::settings::TopicSpec;
use crate::storage::Signal;

/// How often more queues a topic gets that is made for a diversion.
const MORE_QUEUES: u32 = 4;

type OnProgress = Box<dyn FnMut(DivertProgress) -> ControlFlow<()> + Send>;

/// How a backlog is diverted. See [`Broker::divert`].
#[must_use = "options do nothing by themselves"]
pub struct DivertOptions {
    queues: Option<u32>,
    until_lag: u64,
    slice: usize,
    note: String,
    progress: Option<OnProgress>,
}

impl Default for DivertOptions {
    fn default() -> Self {
        Self { queues: None, until_lag: 0, slice: MAX_DIVERT_MESSAGES, note: String::new(), progress: None }
    }
}

impl fmt::Debug for DivertOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DivertOptions").field("until_lag", &self.until_lag).finish_non_exhaustive()
    }
}

impl DivertOptions {
    /// Until nothing is left, into a topic with four times as many queues.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the queues of the other topic, if it has to be made: 1 to 1024, default four times the queues of the first.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Ends the diversion once no more than so many messages are left: the newest stay. Default 0.
    pub fn until_lag(mut self, lag: u64) -> Self {
        self.until_lag = lag;
        self
    }

    /// Sets how many messages one write moves, 1 to 1024 (the default): the group handles nothing else meanwhile.
    pub fn slice(mut self, messages: usize) -> Self {
        self.slice = messages;
        self
    }

    /// Says why, for the audit log.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Is told after every slice, and ends the diversion with [`ControlFlow::Break`]. It must not block.
    pub fn on_progress(mut self, told: impl FnMut(DivertProgress) -> ControlFlow<()> + Send + 'static) -> Self {
        self.progress = Some(Box::new(told));
        self
    }
}

/// How far a diversion is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DivertProgress {
    /// Messages moved so far.
    pub moved: u64,
    /// Messages left in the topic that the group has not consumed.
    pub lag: u64,
}

/// What a diversion did.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DivertReport {
    /// Messages moved.
    pub moved: u64,
    /// Writes that it took.
    pub slices: u64,
    /// Messages that were left for the members.
    pub lag: u64,
    /// Whether [`DivertOptions::on_progress`] ended it.
    pub stopped: bool,
}

/// Gives the queues back when the diversion ends, however that comes.
struct Diverting {
    group: Arc<GroupHandle>,
    id: Option<DivertId>,
}

impl Diverting {
    async fn end(mut self) -> Result<()> {
        let Some(id) = self.id.take() else { return Ok(()) };
        ask(&self.group, |reply| DivertRequest::End { id, reply: Some(reply) }).await
    }
}

impl Drop for Diverting {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let end = Operation::Divert(DivertRequest::End { id, reply: None });
            self.group.post(GroupRequest::Operate(Box::new(end)));
        }
    }
}

async fn ask<T>(
    group: &GroupHandle,
    request: impl FnOnce(tokio::sync::oneshot::Sender<Result<T>>) -> DivertRequest,
) -> Result<T> {
    group.ask(|reply| GroupRequest::Operate(Box::new(Operation::Divert(request(reply))))).await
}

impl Broker {
    /// Moves what a group has not consumed of a topic into the topic `to`, which is made with more queues if it does
    /// not exist, for another group to drain: oldest first, until no more than
    /// [`until_lag`](DivertOptions::until_lag) messages are left. Producers go on meanwhile.
    ///
    /// While it goes on the members of the group get nothing of the topic; it begins when they have settled what they
    /// had in hand. They get the queues back by themselves when it ends: when it is done, when
    /// [`on_progress`](DivertOptions::on_progress) says so, when this future is dropped, or with the process.
    ///
    /// Each slice is one durable write of the copies and of the group's offsets behind them: nothing is lost or
    /// doubled, whenever the process is killed. Copies keep body, tag, keys, sharding key, properties and time of
    /// birth, and say where they came from ([`Received::origin_id`](crate::Received::origin_id)). Messages of one
    /// sharding key keep their order in `to`; what the members get afterwards may overtake what still lies there.
    ///
    /// # Errors
    /// `UnknownGroup`, `UnknownTopic`; `Invalid` names a bad name or number, or a broadcasting group; `Conflict` when
    /// the group diverts this topic already; `Full` when `to` is limited in length, refuses what is too much and has no
    /// room for the next message: what was moved before stays moved, the rest stays with the group; `NotStored` or `Unknown` when a write failed: what was moved before
    /// stays moved, and another call goes on there.
    pub async fn divert(&self, group: &str, topic: &str, to: &str, mut options: DivertOptions) -> Result<DivertReport> {
        self.shared().check_running()?;
        let group = self.group_handle(group)?;
        let (topic, to) = (TopicName::new(topic)?, TopicName::new(to)?);
        check(&topic, &to, &options)?;
        self.topic_for_diversion(&topic, &to, options.queues).await?;
        let id = DivertId { topic, number: self.shared().take_number() };
        let granted = Arc::<Signal>::default();
        let note = format!("to {to}, until {} are left. {}", options.until_lag, options.note);
        // From the question on: dropped while the answer is awaited it ends as well.
        let diverting = Diverting { group: Arc::clone(&group), id: Some(id.clone()) };
        let (begun, wakes, target) = (id.clone(), Arc::clone(&granted), to.clone());
        ask(&group, |reply| DivertRequest::Begin { id: begun, to, note, granted: wakes, reply }).await?;
        let report = self.slices(&group, &id, (&target, &granted), &mut options).await?;
        diverting.end().await?;
        Ok(report)
    }

    async fn topic_for_diversion(&self, topic: &TopicName, to: &TopicName, queues: Option<u32>) -> Result<()> {
        let source = self.shared().topics.get(topic).ok_or_else(|| unknown_topic(topic))?;
        if self.shared().topics.get(to).is_some() {
            return Ok(());
        }
        let more = source.queue_count().get().saturating_mul(MORE_QUEUES).min(MAX_QUEUES_PER_TOPIC);
        let spec = TopicSpec::new(to.as_str()).queues(queues.unwrap_or(more)).flush(source.flush());
        match self.create_topic(spec).await {
            Err(error) if error.kind() != ErrorKind::Exists => Err(error),
            _ => Ok(()),
        }
    }

    async fn slices(
        &self,
        group: &GroupHandle,
        id: &DivertId,
        (to, granted): (&TopicName, &Signal),
        options: &mut DivertOptions,
    ) -> Result<DivertReport> {
        let mut report = DivertReport { moved: 0, slices: 0, lag: 0, stopped: false };
        let (most, until_lag) = (options.slice, options.until_lag);
        let mut wanted = None;
        loop {
            self.shared().check_running()?;
            let rooms = self.rooms_in(to, wanted.take()).await?;
            match ask(group, |reply| DivertRequest::Slice { id: id.clone(), most, until_lag, rooms, reply }).await? {
                Slice::Moved { messages, lag } => {
                    (report.moved, report.slices, report.lag) = (report.moved + messages, report.slices + 1, lag);
                    let progress = DivertProgress { moved: report.moved, lag };
                    if options.progress.as_mut().is_some_and(|told| told(progress).is_break()) {
                        report.stopped = true;
                        return Ok(report);
                    }
                }
                Slice::NoRoom { queue, size } => wanted = Some((queue, size)),
                Slice::Waits => {
                    let ended = std::pin::pin!(self.shared().state.ended());
                    select(std::pin::pin!(granted.wait()), ended).await;
                }
                Slice::Done { lag } => {
                    report.lag = lag;
                    return Ok(report);
                }
            }
        }
    }
}

impl Broker {
    /// The room that there is in the queues of a topic if they are limited in length, with some made in one of them.
    async fn rooms_in(&self, to: &TopicName, wanted: Option<(QueueKey, Size)>) -> Result<Vec<Room>> {
        let (shared, mut rooms) = (self.shared(), Vec::new());
        let Some(topic) = shared.topics.get(to) else { return Ok(rooms) };
        // In the order in which everybody locks.
        for queue in topic.queues() {
            let Some(limited) = queue.limited() else { continue };
            let size = wanted.as_ref().filter(|(key, _)| key == queue.key()).map(|(_, size)| *size);
            if let Some(error) = size.and_then(|size| limited.too_large(size)) {
                return Err(error);
            }
            let room = limited.room_for(shared, size.unwrap_or_default()).await?;
            if size.is_some_and(|size| !size.fits_in(room.free)) {
                return Err(room.refusal(false));
            }
            rooms.push(room);
        }
        Ok(rooms)
    }
}

fn check(topic: &TopicName, to: &TopicName, options: &DivertOptions) -> Result<()> {
    let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
    if topic == to {
        return invalid(format!("topic {topic} cannot be diverted into itself: name another topic"));
    }
    if options.slice == 0 || options.slice > MAX_DIVERT_MESSAGES {
        return invalid(format!("a slice of {} messages: use 1 to {MAX_DIVERT_MESSAGES}", options.slice));
    }
    if options.note.len() > MAX_NOTE_BYTES {
        let bytes = options.note.len();
        return invalid(format!("the note has {bytes} bytes, more than {MAX_NOTE_BYTES}: shorten it"));
    }
    Ok(())
}
