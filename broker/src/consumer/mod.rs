//! Receives messages: as a member of a consumer group ([`Consumer`]), or by offsets that the program keeps in hand
//! ([`PullConsumer`]).

mod acknowledgeable;
mod batch;
mod builder;
mod delivery;
mod pledge;
mod pop;
mod popped;
mod pull;
mod received;
pub(crate) mod session;
mod settlement;
mod worker;

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::QueueKey;
use futures_util::future::{Either, select};

pub use acknowledgeable::Acknowledgeable;
pub use batch::Batch;
pub use builder::{ConsumerBuilder, StartAt};
pub use delivery::Delivery;
pub(crate) use pledge::{Acknowledged, Pledged};
pub use pop::{PopConsumer, PopConsumerBuilder};
pub use popped::Popped;
pub use pull::{PullConsumer, SeekTo};
pub use received::Received;
pub use settlement::Settlement;
pub use worker::WorkerHandle;

use crate::actors::group::{GroupHandle, GroupRequest};
use crate::broker::Keeper;
use crate::error::Result;
use session::{Claim, Given, Next, Records, Session, Settled};

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
        let given = self.given(1).await?;
        Ok(self.delivery(given))
    }

    /// The next messages of one queue, at least one and at most `most`, in its order; waits until there is one. The
    /// way to take part in a fast stream: the batch is settled as one.
    ///
    /// # Errors
    /// As [`next`](Consumer::next).
    pub async fn next_messages(&mut self, most: usize) -> Result<Batch> {
        let given = self.given(most.max(1)).await?;
        Ok(Batch::new(&self.keeper, &self.group, &self.session, given))
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
        let mut given = self.given(max).await?;
        loop {
            let part = Batch::new(&self.keeper, &self.group, &self.session, given);
            batch.extend(part.into_deliveries());
            if batch.len() == max {
                return Ok(batch);
            }
            given = match self.try_next(max - batch.len())? {
                Step::Given(given) => given,
                Step::Wait(_) => return Ok(batch),
            };
        }
    }

    fn delivery(&self, given: Given) -> Delivery {
        let Given { key, lease, records, redeliveries, holder } = given;
        let stored = match records {
            Records::One(stored) => stored,
            Records::Many(_) => unreachable!("one was asked for"),
        };
        tracing::trace!(queue = %key, offset = %stored.offset, member = %self.session.member, "deliver");
        let received = Received::new(key, stored, self.keeper.shared().store_id, redeliveries);
        Delivery::new(&self.keeper, &self.group, &self.session, received, holder, lease, redeliveries)
    }

    /// Waits for up to `most` records of one queue.
    async fn given(&mut self, most: usize) -> Result<Given> {
        loop {
            match self.try_next(most)? {
                Step::Given(given) => return Ok(given),
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

    /// Records if there are some.
    fn try_next(&mut self, most: usize) -> Result<Step> {
        loop {
            let shared = self.keeper.shared();
            // The broker's own end says more than the session's.
            let next = self.session.next(shared, most).map_err(|e| shared.check_running().err().unwrap_or(e));
            match next? {
                Next::Given(given) => return Ok(Step::Given(given)),
                Next::Skipped { key, lease, ranges, unwanted: true } => {
                    self.group.pass_over(&self.session.member, key, lease, ranges);
                }
                Next::Skipped { key, lease, ranges, unwanted: false } => {
                    self.group.acknowledge(&self.session.member, &key, lease, &ranges, None);
                }
                Next::Ended { key, offsets } => self.group.withdraw_ended(&key, offsets),
                Next::Wait(at) => return Ok(Step::Wait(at)),
            }
        }
    }
}

enum Step {
    Given(Given),
    Wait(Option<cuemq_storage_api::Timestamp>),
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.session.close("it was dropped");
        self.group.post(GroupRequest::Leave { session: Arc::clone(&self.session) });
    }
}

/// Tells the group that a revoked queue is free, if it is.
fn release_if_free(group: &GroupHandle, settled: Option<Settled>, claim: Claim<'_>) {
    if settled == Some(Settled::Release) {
        group.post(GroupRequest::Released { queue: claim.key.clone(), lease: claim.lease });
    }
}
