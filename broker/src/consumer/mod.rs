//! Receives messages: as a member of a consumer group ([`Consumer`]), or by offsets that the program keeps in hand
//! ([`PullConsumer`]).

mod builder;
mod delivery;
mod pull;
mod received;
pub(crate) mod session;
mod worker;

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::QueueKey;
use futures_util::future::{Either, select};

pub use builder::{ConsumerBuilder, StartAt};
pub use delivery::Delivery;
pub use pull::{PullConsumer, SeekTo};
pub use received::Received;
pub use worker::WorkerHandle;

use crate::actors::group::{GroupHandle, GroupRequest};
use crate::broker::Keeper;
use crate::error::Result;
use session::{Next, Session, Settled};

/// A member of a consumer group. The group shares the queues of its topics among its members (or, broadcasting, gives
/// all of them to each); what one member does not acknowledge comes again, to it or, when it leaves, to another.
///
/// Dropping it leaves the group.
pub struct Consumer {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    session: Arc<Session>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("group", self.group.name())
            .field("member", &self.session.member)
            .finish_non_exhaustive()
    }
}

impl Consumer {
    pub(crate) fn new(keeper: Arc<Keeper>, group: Arc<GroupHandle>, session: Arc<Session>) -> Self {
        Self { keeper, group, session }
    }

    /// The name of this member within its group.
    #[must_use]
    pub fn member(&self) -> &str {
        self.session.member.as_str()
    }

    /// The queues this member reads now, in order. They change as members come and go.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueKey> {
        self.session.queues()
    }

    /// The next message; waits until there is one. At most 1,000 messages are out unacknowledged at a time.
    ///
    /// # Errors
    /// `Closed` or `Unavailable` when there will be no more; `Corrupt` names a damaged file.
    pub async fn next(&mut self) -> Result<Delivery> {
        loop {
            match self.try_next()? {
                Step::Delivery(delivery) => return Ok(*delivery),
                Step::Wait(None) => self.session.signal().wait().await,
                Step::Wait(Some(at)) => {
                    let signal = std::pin::pin!(self.session.signal().wait());
                    let until = self.keeper.shared().clock.sleep_until(at);
                    match select(signal, until).await {
                        Either::Left(_) | Either::Right(_) => {}
                    }
                }
            }
        }
    }

    /// Up to `max` messages: waits for the first, then takes what is there.
    ///
    /// # Errors
    /// As [`next`](Consumer::next).
    pub async fn next_batch(&mut self, max: usize) -> Result<Vec<Delivery>> {
        let mut batch = Vec::new();
        if max == 0 {
            return Ok(batch);
        }
        batch.push(self.next().await?);
        while batch.len() < max {
            match self.try_next()? {
                Step::Delivery(delivery) => batch.push(*delivery),
                Step::Wait(_) => break,
            }
        }
        Ok(batch)
    }

    /// A message if one is there.
    fn try_next(&mut self) -> Result<Step> {
        loop {
            let shared = self.keeper.shared();
            // The broker's own end says more than the session's.
            let next = self.session.next(shared).map_err(|e| shared.check_running().err().unwrap_or(e));
            match next? {
                Next::Record(given) => {
                    let (keeper, group, session) = (&self.keeper, &self.group, &self.session);
                    return Ok(Step::Delivery(Box::new(Delivery::new(keeper, group, session, *given))));
                }
                Next::Skipped { key, lease, ranges } => {
                    let member = self.session.member.clone();
                    self.group.post(GroupRequest::Acknowledge { member, queue: key, lease, ranges, reply: None });
                }
                Next::Wait(at) => return Ok(Step::Wait(at)),
            }
        }
    }
}

enum Step {
    Delivery(Box<Delivery>),
    Wait(Option<cuemq_storage_api::Timestamp>),
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.session.close("it was dropped");
        self.group.post(GroupRequest::Leave { session: Arc::clone(&self.session) });
    }
}

/// Tells the group that a revoked queue is free, if it is.
fn release_if_free(group: &GroupHandle, settled: Option<Settled>, given: &session::Given) {
    if settled == Some(Settled::Release) {
        group.post(GroupRequest::Released { queue: given.key.clone(), lease: given.lease });
    }
}
