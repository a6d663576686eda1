//! One message that a group has to deal with: a stored message of the topic, or what came of its failures.

use std::ops::RangeInclusive;

use cuemq::{DeadReason, QueueKey, Timestamp};

/// Where a message stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Status {
    /// It may be delivered from this time on, and has to be from that one on.
    Ready {
        from: Timestamp,
        surely: Timestamp,
    },
    /// Somebody has it, since this change of the membership.
    Out {
        member: u64,
        epoch: u64,
        delivery: u64,
    },
    Over,
}

/// Where in the topic a message is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Home {
    pub(crate) queue: QueueKey,
    pub(crate) offset: u64,
    pub(crate) stored_at: Timestamp,
    /// Messages stored in the topic before it, and changes of the number of its queues.
    pub(crate) place: u64,
    pub(crate) generation: u64,
}

/// One message as a group sees it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The number that the message carries.
    pub(crate) message: u64,
    pub(crate) status: Status,
    /// Its sharding key: where order counts, messages of one key come one after the other.
    pub(crate) key: Option<u8>,
    /// Once it is stored in the topic. What has failed has none: it comes by way of the retry topic.
    pub(crate) home: Option<Home>,
    pub(crate) is_retry: bool,
    /// Failed deliveries that storage knows of.
    pub(crate) failures: u32,
    /// Failed deliveries that only the member knows of who had them.
    pub(crate) failures_in_memory: u32,
    pub(crate) expires_at: Option<Timestamp>,
    /// Somebody had it when it ended.
    pub(crate) ended_in_hand: bool,
    /// When it comes again if nobody settles it: popped messages only.
    pub(crate) invisible_until: Option<Timestamp>,
    /// The holder may have lost its queue meanwhile: the message may come to another.
    pub(crate) loose: bool,
    /// The delivery by which somebody had it when an operator had the group pass over it.
    pub(crate) passed_over: Option<u64>,
}

impl Entry {
    pub(crate) fn new(message: u64, key: Option<u8>, from: Timestamp, expires_at: Option<Timestamp>) -> Self {
        Self {
            message,
            status: Status::Ready { from, surely: from },
            key,
            home: None,
            is_retry: false,
            failures: 0,
            failures_in_memory: 0,
            expires_at,
            ended_in_hand: false,
            invisible_until: None,
            loose: false,
            passed_over: None,
        }
    }

    /// What comes again after a failure, by way of the retry topic.
    pub(crate) fn retry_of(&self) -> Self {
        Self { home: None, is_retry: true, loose: false, invisible_until: None, ..self.clone() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.status == Status::Over
    }

    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether it is where somebody could find it.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_retry || self.home.is_some()
    }

    pub(crate) fn end(&mut self) {
        self.status = Status::Over;
        self.loose = false;
    }

    /// Nobody has it any more.
    pub(crate) fn free(&mut self, from: Timestamp, surely: Timestamp) {
        self.status = Status::Ready { from, surely };
        self.loose = false;
    }
}

/// A dead letter that has to be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Letter {
    pub(crate) message: u64,
    pub(crate) key: Option<u8>,
    pub(crate) reason: DeadReason,
    pub(crate) attempts: RangeInclusive<u32>,
    /// It arrives only as somebody looks for his next message: the member that had it last, or
    /// whoever reads the queue for the first time, or again.
    pub(crate) may_be_late: bool,
}
