//! What a group's actor is asked for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::{QueueKey, QueueOffset, Timestamp, TopicName};
use tokio::sync::oneshot;

use super::commit::Claim;
use super::failure::Failure;
use super::in_place::InPlaceFailure;
use super::letters::LetterRequest;
use super::operation::Operation;
use super::pop::PopRequest;
use super::room::RoomRequest;
use super::withdrawal::{Withdrawal, Withdrawn};
use crate::actors::application::PrepareReply;
use crate::consumer::session::Session;
use crate::domain::assignment::AssignmentStrategy;
use crate::domain::member::{MemberId, Room};
use crate::domain::membership::Lease;
use crate::domain::retry::RetryPolicy;
use crate::error::{Error, Result};

/// The answer to a request whose asker waits.
pub(crate) type Answer<T> = oneshot::Sender<Result<T>>;

/// Every request, in one order: a release never overtakes the acknowledgement before it.
#[derive(Debug)]
pub(crate) enum GroupRequest {
    /// Takes a member in.
    Join { session: Arc<Session>, topics: BTreeSet<TopicName>, room: Option<Room>, start: Start, reply: Answer<()> },
    /// A member is gone; what it held is free. Named by its session, because its name may be somebody else's.
    Leave { session: Arc<Session> },
    /// A member has finished with a revoked queue.
    Released { queue: QueueKey, lease: Lease },
    /// Messages are done.
    Acknowledge {
        member: MemberId,
        queue: QueueKey,
        lease: Lease,
        ranges: Vec<Range<QueueOffset>>,
        /// Whether no member wanted them, which is counted.
        unwanted: bool,
        reply: Option<Answer<()>>,
    },
    /// A message was not consumed: it comes again, or becomes a dead letter.
    Fail(Box<Failure>),
    /// A message was not consumed and keeps its place.
    FailInPlace(Box<InPlaceFailure>),
    /// The copy of such a message is stored and with it that the message is done, or the write has failed.
    Failed { queue: QueueKey, offset: QueueOffset, stored: bool, hold: u64 },
    /// Dead letters are sent again or thrown away.
    Letters(LetterRequest),
    /// The write of such a request has an outcome.
    LettersHandled,
    /// Whatever a pop consumer asks for.
    Pop(PopRequest),
    /// Messages that nobody has are taken away: they have ended, or there are too many.
    Withdraw(Withdrawal),
    /// The write of that has an outcome.
    Withdrawn(Withdrawn),
    /// How much more may wait in a queue of limited length.
    MakeRoom(RoomRequest),
    /// Where consumption of a queue stands; `None` when the group never read it.
    Committed { queue: QueueKey, reply: Answer<Option<QueueOffset>> },
    /// Sets where consumption goes on, forwards or back. Refused while a member holds the queue.
    Reset { queue: QueueKey, to: QueueOffset, reply: Answer<()> },
    /// An operator asks or moves something.
    Operate(Box<Operation>),
    /// Checks what a transaction acknowledges, and lets nothing in between until that is stored or given up.
    Prepare { claims: Vec<Claim>, reply: PrepareReply },
    /// What the group looks like now.
    Describe { reply: Answer<GroupDescription> },
    /// How the group shares queues and retries and whether it is paused, from now on.
    Configure { strategy: AssignmentStrategy, retry: RetryPolicy, paused: bool },
    /// A topic's number of queues is about to change: ordered members stop at what can be seen. Answers with how many
    /// earlier changes the group has passed; `None` when it does not read the topic.
    Hold { topic: TopicName, reply: Answer<Option<usize>> },
    /// A topic was created, grew or was deleted.
    TopicChanged { topic: TopicName },
    /// After a panic: make good what was lost with the request at hand.
    CatchUp,
    /// The broker stops or has failed: every session ends.
    Close { why: Arc<str> },
}

impl GroupRequest {
    /// The name by which a probe knows it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Join { .. } => "Join",
            Self::Leave { .. } => "Leave",
            Self::Released { .. } => "Released",
            Self::Acknowledge { .. } => "Acknowledge",
            Self::Fail(_) => "Fail",
            Self::FailInPlace(_) => "FailInPlace",
            Self::Failed { .. } => "Failed",
            Self::Letters(_) => "Letters",
            Self::LettersHandled => "LettersHandled",
            Self::Pop(request) => request.name(),
            Self::Withdraw(_) => "Withdraw",
            Self::Withdrawn(_) => "Withdrawn",
            Self::MakeRoom(_) => "MakeRoom",
            Self::Committed { .. } => "Committed",
            Self::Reset { .. } => "Reset",
            Self::Operate(_) => "Operate",
            Self::Prepare { .. } => "Prepare",
            Self::Describe { .. } => "Describe",
            Self::Configure { .. } => "Configure",
            Self::Hold { .. } => "Hold",
            Self::TopicChanged { .. } => "TopicChanged",
            Self::CatchUp => "CatchUp",
            Self::Close { .. } => "Close",
        }
    }
}

impl GroupRequest {
    /// Takes more acknowledgements into this one, if it is one of the same holder that nobody waits for and what is
    /// added follows what it has.
    pub(super) fn join_acknowledgement(
        &mut self,
        by: &MemberId,
        of: &QueueKey,
        under: Lease,
        more: &[Range<QueueOffset>],
    ) -> bool {
        let Self::Acknowledge { member, queue, lease, ranges, unwanted: false, reply: None } = self else {
            return false;
        };
        let ([next], Some(last)) = (more, ranges.last_mut()) else { return false };
        // However long they get together: nothing is open between them, which is what counts.
        let follows = last.end == next.start && (*lease, &*member, &*queue) == (under, by, of);
        if follows {
            last.end = next.end;
        }
        follows
    }

    /// Tells whoever waits for the settling of a message that nothing was done.
    pub(super) fn refuse(self, error: Error) {
        let reply = match self {
            Self::Acknowledge { reply, .. } => reply,
            Self::Fail(failure) => Some(failure.reply),
            Self::FailInPlace(failure) => failure.reply,
            Self::Withdraw(withdrawal) => withdrawal.reply,
            _ => None,
        };
        super::answer(reply, Err(error));
    }
}

/// Where a group begins with a queue that it never read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    Earliest,
    Latest,
    At(Timestamp),
}

/// One member as administration shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MemberDescription {
    /// Its name.
    pub member: String,
    /// The queues it reads, in order.
    pub queues: Vec<QueueKey>,
}

/// One queue as a group stands to it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct QueueLag {
    /// The queue.
    pub queue: QueueKey,
    /// For broadcasting groups: whose progress this is.
    pub member: Option<String>,
    /// The next offset to consume.
    pub committed: QueueOffset,
    /// The queue's visible end.
    pub end: QueueOffset,
    /// Messages that were passed over because no member wanted their tags.
    pub unwanted: u64,
}

impl QueueLag {
    /// Messages not yet consumed.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.end.get().saturating_sub(self.committed.get())
    }
}

/// A consumer group as administration shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its live members.
    pub members: Vec<MemberDescription>,
    /// Every queue it has read.
    pub queues: Vec<QueueLag>,
    /// Whether its members get nothing new at the moment.
    pub paused: bool,
    /// Messages in flight to its pop consumers.
    pub in_flight: usize,
    /// Messages that were dropped because their time to live was over, since the broker opened. Those that became dead
    /// letters are not among them.
    pub expired: u64,
}

impl GroupDescription {
    /// Messages not yet consumed, over all queues.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.queues.iter().map(QueueLag::lag).sum()
    }

    /// Messages that no member wanted, over all queues.
    #[must_use]
    pub fn unwanted(&self) -> u64 {
        self.queues.iter().map(|queue| queue.unwanted).sum()
    }
}
