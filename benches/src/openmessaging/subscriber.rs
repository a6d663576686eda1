//! A thread that receives for some consumers, and checks everything.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, TryStreamExt};
use tokio::task::unconstrained;

use super::control::Control;
use super::driver::{DriverConsumer, Incoming};
use super::statistics::SharedTally;
use super::verifier::Verifier;
use crate::Result;

/// What consumers shall do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consuming {
    /// Receive.
    GoOn,
    /// Receive nothing for a while.
    Pause,
    /// End.
    Stop,
}

/// A consumer and where it shows what it receives.
pub struct Member {
    consumer: Box<dyn DriverConsumer>,
    verifier: Arc<Mutex<Verifier>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}

impl Member {
    /// A consumer of a subscription, whose members share a verifier.
    #[must_use]
    pub fn new(consumer: Box<dyn DriverConsumer>, verifier: Arc<Mutex<Verifier>>) -> Self {
        Self { consumer, verifier }
    }
}

/// Receives for some consumers until it is told to stop. Needs a thread of its own.
///
/// # Errors
/// The first message that is not as it should be, or why no more can be received.
pub fn run(members: Vec<Member>, control: &Control, tally: &SharedTally) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let loops: FuturesUnordered<_> = members.into_iter().map(|member| consume(member, control, tally)).collect();
    runtime.block_on(unconstrained(loops.try_collect::<()>()))
}

async fn consume(mut member: Member, control: &Control, tally: &SharedTally) -> Result<()> {
    let mut orders = control.consuming.subscribe();
    let mut batch = Vec::new();
    loop {
        // A change after this look ends the wait for messages.
        let order = *orders.borrow_and_update();
        match order {
            Consuming::Stop => return Ok(()),
            Consuming::Pause => orders.changed().await?,
            Consuming::GoOn => {
                let receive = member.consumer.receive(&mut batch);
                let changed = std::pin::pin!(orders.changed());
                let received = match select(receive, changed).await {
                    Either::Left((received, _)) => Some(received),
                    Either::Right(_) => None,
                };
                if let Some(received) = received {
                    received?;
                    check(&batch, &member.verifier, control, tally)?;
                    member.consumer.acknowledge();
                    batch.clear();
                }
                // A consumer that always has something would keep its neighbours from theirs.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Checks a batch and records how long its messages were under way.
fn check(batch: &[Incoming], verifier: &Mutex<Verifier>, control: &Control, tally: &SharedTally) -> Result<()> {
    let now = control.now();
    let mut verifier = verifier.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tally = tally.lock();
    // Messages that were sent together are recorded together.
    let (mut sent, mut count) = (0, 0);
    for incoming in batch {
        let Some(stamp) = verifier.accept(incoming.queue, &incoming.body)? else { continue };
        if stamp.sent != sent {
            tally.end_to_end.record(now.saturating_sub(sent), count);
            (sent, count) = (stamp.sent, 0);
        }
        count += 1;
    }
    tally.end_to_end.record(now.saturating_sub(sent), count);
    tally.received += batch.len() as u64;
    control.counters.received.fetch_add(batch.len() as u64, Ordering::AcqRel);
    Ok(())
}
