//! Where an operator moves a group's offsets: what is meant, where that leads in one queue, and whether it still is
//! what was meant when it is carried out.

use std::fmt;
use std::ops::Range;

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp};

/// Where a group shall go on. See [`Broker::reset_group`](crate::Broker::reset_group).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetTo {
    /// With the oldest message of each queue.
    Begin,
    /// With the next message that is sent.
    End,
    /// In one queue, with the message at this offset; the other queues stay as they are.
    Offset(u32, QueueOffset),
    /// In each queue with the first message stored at or after this time.
    Time(Timestamp),
}

/// What a group shall pass over. See [`Broker::skip`](crate::Broker::skip).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Skip {
    /// Messages stored before this time.
    OlderThan(Timestamp),
    /// All but the newest so many of each queue.
    KeepLast(u64),
}

/// Either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Goal {
    Reset(ResetTo),
    Skip(Skip),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(ResetTo::Begin) => f.write_str("reset to begin"),
            Self::Reset(ResetTo::End) => f.write_str("reset to end"),
            Self::Reset(ResetTo::Offset(queue, offset)) => write!(f, "reset queue {queue} to offset {offset}"),
            Self::Reset(ResetTo::Time(at)) => write!(f, "reset to time {at}"),
            Self::Skip(Skip::OlderThan(at)) => write!(f, "skip what is older than {at}"),
            Self::Skip(Skip::KeepLast(count)) => write!(f, "skip all but the last {count} of each queue"),
        }
    }
}

/// One queue when a plan is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct QueueState {
    /// The queue.
    pub(crate) queue: QueueKey,
    /// What of it can be read.
    pub(crate) readable: Range<QueueOffset>,
    /// The group's next message; `None` when it never read the queue.
    pub(crate) committed: Option<QueueOffset>,
    /// The first message of the goal's time, if it has one.
    pub(crate) at_time: QueueOffset,
}

/// An offset outside of what can be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NotReadable {
    pub(crate) queue: QueueKey,
    pub(crate) offset: QueueOffset,
    pub(crate) readable: Range<QueueOffset>,
}

impl fmt::Display for NotReadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, offset, readable } = self;
        let Range { start, end } = readable;
        write!(f, "offset {offset} of queue {queue} is not within {start} to {end}: choose one of these")
    }
}

/// How a plan moves a group in one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct OffsetMove {
    /// The queue.
    pub queue: QueueKey,
    /// The group's next message before: the oldest one, where the group never read the queue.
    pub from: QueueOffset,
    /// The group's next message after.
    pub to: QueueOffset,
}

impl OffsetMove {
    /// Messages passed over, or delivered again.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.from.get().abs_diff(self.to.get())
    }

    /// Whether messages are delivered again.
    #[must_use]
    pub fn is_backwards(&self) -> bool {
        self.to < self.from
    }
}

impl Goal {
    /// The time that it speaks of.
    #[must_use]
    pub(crate) fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Reset(ResetTo::Time(at)) | Self::Skip(Skip::OlderThan(at)) => Some(*at),
            _ => None,
        }
    }

    /// Where it leads in a queue; `None` when it does not concern it.
    ///
    /// # Errors
    /// When it names an offset that cannot be read.
    pub(crate) fn plan(&self, state: QueueState) -> Result<Option<OffsetMove>, NotReadable> {
        let QueueState { queue, readable, committed, at_time } = state;
        let from = committed.map_or(readable.start, |committed| committed.max(readable.start));
        let at_time = at_time.clamp(readable.start, readable.end);
        let to = match *self {
            Self::Reset(ResetTo::Begin) => readable.start,
            Self::Reset(ResetTo::End) => readable.end,
            Self::Reset(ResetTo::Time(_)) => at_time,
            Self::Reset(ResetTo::Offset(id, _)) if id != queue.queue.get() => return Ok(None),
            Self::Reset(ResetTo::Offset(_, offset)) => {
                if offset < readable.start || offset > readable.end {
                    return Err(NotReadable { queue, offset, readable });
                }
                offset
            }
            // Never back.
            Self::Skip(Skip::OlderThan(_)) => at_time.max(from),
            Self::Skip(Skip::KeepLast(count)) => QueueOffset::new(readable.end.get().saturating_sub(count)).max(from),
        };
        // A group that never read a queue and has nothing to pass over begins there as it likes.
        let concerned = from != to || committed.is_some() || matches!(self, Self::Reset(_));
        Ok(concerned.then_some(OffsetMove { queue, from, to }))
    }
}

/// What carrying out a move takes by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The group is there, or further.
    Nothing,
    /// Everything below is done.
    Forwards,
    /// Everything from there on is open again.
    Backwards,
}

/// Why a plan means something else by now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Changed {
    /// The group was moved back after the plan was made.
    MovedBack(QueueOffset),
    /// Messages that were to be delivered again have expired.
    Expired(QueueOffset),
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MovedBack(to) => write!(f, "the group was moved back to {to} since"),
            Self::Expired(min) => write!(f, "messages below {min} have expired since"),
        }
    }
}

/// Compares a move with how far the group is by now. Progress changes nothing: a group that went on meanwhile has
/// less to pass over or more to be given again. Only a group that was moved back, or messages that are no longer
/// there, make it another plan.
///
/// # Errors
/// When it would do other than was shown.
pub(crate) fn step(planned: &OffsetMove, committed: Option<QueueOffset>, min: QueueOffset) -> Result<Step, Changed> {
    let now = committed.map_or(min, |committed| committed.max(min));
    if now < planned.from {
        return Err(Changed::MovedBack(now));
    }
    if planned.is_backwards() {
        return if planned.to < min { Err(Changed::Expired(min)) } else { Ok(Step::Backwards) };
    }
    // In a queue that the group never read it has to be put down where the group begins.
    let never_read = committed.is_none() && planned.to >= min;
    Ok(if planned.to > now || never_read { Step::Forwards } else { Step::Nothing })
}

#[cfg(test)]
mod tests {
    use cuemq_storage_api::{QueueId, TopicName};

    use super::*;

    fn at(offset: u64) -> QueueOffset {
        QueueOffset::new(offset)
    }

    fn queue() -> QueueKey {
        QueueKey::new(TopicName::new("orders").unwrap(), QueueId::new(3).unwrap())
    }

    fn plan(goal: Goal, committed: Option<u64>, at_time: u64) -> Result<Option<OffsetMove>, NotReadable> {
        let (readable, committed) = (at(10)..at(100), committed.map(at));
        goal.plan(QueueState { queue: queue(), readable, committed, at_time: at(at_time) })
    }

    #[test]
    fn goals() {
        let time = Timestamp::MIN;
        for (goal, committed, at_time, from, to) in [
            (Goal::Reset(ResetTo::Begin), Some(50), 0, 50, 10),
            (Goal::Reset(ResetTo::End), Some(50), 0, 50, 100),
            (Goal::Reset(ResetTo::End), None, 0, 10, 100),
            (Goal::Reset(ResetTo::Offset(3, at(70))), Some(50), 0, 50, 70),
            (Goal::Reset(ResetTo::Offset(3, at(100))), Some(50), 0, 50, 100),
            (Goal::Reset(ResetTo::Time(time)), Some(50), 20, 50, 20),
            (Goal::Reset(ResetTo::Time(time)), Some(50), 120, 50, 100),
            // What expired unread is behind the group already.
            (Goal::Reset(ResetTo::Begin), Some(5), 0, 10, 10),
            (Goal::Skip(Skip::OlderThan(time)), Some(50), 80, 50, 80),
            (Goal::Skip(Skip::OlderThan(time)), Some(50), 20, 50, 50),
            (Goal::Skip(Skip::OlderThan(time)), Some(50), 120, 50, 100),
            (Goal::Skip(Skip::KeepLast(5)), Some(50), 0, 50, 95),
            (Goal::Skip(Skip::KeepLast(60)), Some(50), 0, 50, 50),
            (Goal::Skip(Skip::KeepLast(80)), None, 0, 10, 20),
            (Goal::Skip(Skip::KeepLast(0)), Some(50), 0, 50, 100),
        ] {
            let planned = plan(goal, committed, at_time).unwrap().unwrap();
            assert_eq!((planned.from, planned.to), (at(from), at(to)), "{goal} from {committed:?}");
            assert_eq!(planned.messages(), from.abs_diff(to));
            assert!(!planned.is_backwards() || matches!(goal, Goal::Reset(_)), "a skip never goes back");
        }
    }

    #[test]
    fn an_offset_concerns_its_queue_and_has_to_be_readable() {
        assert_eq!(plan(Goal::Reset(ResetTo::Offset(2, at(70))), None, 0), Ok(None));
        assert_eq!(plan(Goal::Skip(Skip::KeepLast(u64::MAX)), None, 0), Ok(None), "nothing to pass over");
        for offset in [9, 101] {
            let error = plan(Goal::Reset(ResetTo::Offset(3, at(offset))), None, 0).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("offset {offset} of queue orders/3 is not within 10 to 100: choose one of these")
            );
        }
    }

    #[test]
    fn progress_changes_nothing_and_a_move_back_everything() {
        for (from, to, now, min, expected) in [
            // Forwards: what is left of it.
            (50, 80, Some(50), 10, Ok(Step::Forwards)),
            (50, 80, Some(79), 10, Ok(Step::Forwards)),
            (50, 80, Some(80), 10, Ok(Step::Nothing)),
            (50, 80, Some(95), 10, Ok(Step::Nothing)),
            (50, 80, Some(49), 10, Err(Changed::MovedBack(at(49)))),
            (50, 80, Some(50), 90, Ok(Step::Nothing)),
            // Backwards: whatever was done since comes again too.
            (50, 20, Some(50), 10, Ok(Step::Backwards)),
            (50, 20, Some(90), 10, Ok(Step::Backwards)),
            (50, 20, Some(30), 10, Err(Changed::MovedBack(at(30)))),
            (50, 20, Some(50), 21, Err(Changed::Expired(at(21)))),
            // Nothing to do, and nothing done.
            (50, 50, Some(50), 10, Ok(Step::Nothing)),
            (50, 50, Some(60), 10, Ok(Step::Nothing)),
            // Never read.
            (10, 10, None, 10, Ok(Step::Forwards)),
            (10, 40, None, 10, Ok(Step::Forwards)),
            (10, 40, None, 41, Ok(Step::Nothing)),
        ] {
            let planned = OffsetMove { queue: queue(), from: at(from), to: at(to) };
            assert_eq!(step(&planned, now.map(at), at(min)), expected, "{from} to {to}, now {now:?}, min {min}");
        }
    }
}
