//! Sends dead letters again: one, or many at a rate.

use std::fmt;
use std::num::NonZeroU32;

use cuemq_storage_api::{GroupName, QueueId, QueueOffset, TopicName};
use futures_util::future::select;

use super::{DeadLetter, DeadLetters};
use crate::actors::group::{LetterToHandle, LetterToSend};
use crate::domain::letters::{Edited, LetterFilter, for_group, for_origin};
use crate::domain::pace::Pace;
use crate::error::Result;
use crate::limits::MAX_LETTER_BATCH;
use crate::tables::dead_letter::Fate;

/// Who gets a letter that is sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RedriveTo {
    /// Everybody who reads the topic it was first sent to: it is stored there as a new message, in the queue of its
    /// sharding key, or in the queue it was in.
    #[default]
    Origin,
    /// The group that could not consume it, and nobody else. Its attempts count from 0 again.
    Group,
}

impl RedriveTo {
    pub(super) fn fate(self) -> Fate {
        match self {
            Self::Origin => Fate::ToOrigin,
            Self::Group => Fate::ToGroup,
        }
    }
}

/// How [`redrive_all`](DeadLetters::redrive_all) goes about it. The default: to the origin, as fast as it goes.
#[derive(Default)]
#[must_use]
pub struct RedriveOptions {
    to: RedriveTo,
    rate: Option<NonZeroU32>,
    progress: Option<Progress>,
}

type Progress = Box<dyn FnMut(RedriveProgress) + Send>;

impl fmt::Debug for RedriveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedriveOptions").field("to", &self.to).field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl RedriveOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who gets the letters.
    pub fn to(mut self, to: RedriveTo) -> Self {
        self.to = to;
        self
    }

    /// At most this many a second of the broker's clock; 0 is as fast as it goes. Time in which the re-drive was held
    /// up is made up for by no more than one second's worth.
    pub fn per_second(mut self, rate: u32) -> Self {
        self.rate = NonZeroU32::new(rate);
        self
    }

    /// Called after every write, at most 256 letters apart.
    pub fn on_progress(mut self, progress: impl FnMut(RedriveProgress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

/// How far a re-drive is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RedriveProgress {
    /// Letters sent again.
    pub redriven: u64,
    /// Letters looked at, whether the filter means them or not.
    pub examined: u64,
    /// Letters to be looked at in all.
    pub total: u64,
}

/// What a re-drive did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Redrive {
    /// Letters sent again.
    pub redriven: u64,
    /// Letters that the filter means and that were not sent: their topic is gone, their queue is limited in length and
    /// has no room, or somebody else dealt with them meanwhile.
    pub passed_over: u64,
}

/// What the group's actor has to do with a letter.
pub(super) fn to_handle(
    letter: &DeadLetter,
    edited: Option<&Edited>,
    to: RedriveTo,
    group: &GroupName,
) -> Result<LetterToHandle> {
    let record = &letter.stored().record;
    let send = match to {
        RedriveTo::Origin => {
            let record = for_origin(record, edited)?;
            let queue = record.attributes.sharding_key().is_none().then(|| letter.origin_queue());
            LetterToSend { topic: TopicName::from_stored(letter.topic())?, queue, record }
        }
        RedriveTo::Group => {
            let record = for_group(record, edited)?;
            LetterToSend { topic: TopicName::retry_of(group), queue: Some(QueueId::FIRST), record }
        }
    };
    Ok(LetterToHandle { offset: letter.offset(), send: Some(send) })
}

pub(super) async fn all(letters: &DeadLetters, filter: &LetterFilter, options: RedriveOptions) -> Result<Redrive> {
    let RedriveOptions { to, rate, mut progress } = options;
    let (shared, queue) = (letters.keeper.shared(), &letters.queue);
    let (start, end) = (queue.start()?, queue.end());
    let mut pace = rate.map(|rate| Pace::new(rate, shared.clock.now()));
    let (mut at, mut redrive, mut operation) = (start, Redrive::default(), letters.operation());
    while at < end {
        let most = wait_for_turn(letters, pace.as_mut()).await?;
        let part = queue.read(at, end, most, filter)?;
        at = part.next;
        if !part.letters.is_empty() {
            let wanted = part.letters.iter().map(|letter| to_handle(letter, None, to, letters.group.name()));
            let wanted: Vec<_> = wanted.collect::<Result<_>>()?;
            let sent = letters.handle(to.fate(), wanted, false, &mut operation).await?.letters;
            pace.iter_mut().for_each(|pace| pace.spend(sent as u64));
            redrive.redriven += sent as u64;
            redrive.passed_over += part.letters.len().saturating_sub(sent) as u64;
        }
        if let Some(progress) = &mut progress {
            progress(RedriveProgress {
                redriven: redrive.redriven,
                examined: between(start, at.min(end)),
                total: between(start, end),
            });
        }
    }
    Ok(redrive)
}

fn between(start: QueueOffset, end: QueueOffset) -> u64 {
    end.get().saturating_sub(start.get())
}

/// How many letters may go now; waits until there is one.
async fn wait_for_turn(letters: &DeadLetters, pace: Option<&mut Pace>) -> Result<usize> {
    let shared = letters.keeper.shared();
    let Some(pace) = pace else { return Ok(MAX_LETTER_BATCH) };
    loop {
        shared.check_running()?;
        let due = usize::try_from(pace.due(shared.clock.now())).unwrap_or(MAX_LETTER_BATCH);
        if due > 0 {
            return Ok(due.min(MAX_LETTER_BATCH));
        }
        let ended = std::pin::pin!(shared.state.ended());
        select(shared.clock.sleep_until(pace.next()), ended).await;
    }
}
