//! Messages in somebody's hands: taken, settled, renewed, and settled again by receipts that are over.

use std::time::Duration;

use cuemq::{Delivery, Error, ErrorKind, Order, PopConsumer, PopReceipt, Popped, Received};
use futures_util::FutureExt;

use super::entry::Status;
use super::play::{INVISIBLE_S, Member, Play};
use super::step::Settling;
use crate::common::checker::number_of;
use crate::common::soon;

/// The pause before a delivery that was dropped comes again.
const REDELIVERY_PAUSE_S: u64 = 1;
/// How long something that must come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Receipts that are kept after their end.
const MOST_SPENT: usize = 8;

pub(crate) struct Held {
    pub(crate) entry: u64,
    /// Which of the deliveries this is.
    pub(crate) delivery: u64,
    pub(crate) member: u64,
    taken: Taken,
}

/// A message in somebody's hands.
pub(crate) enum Taken {
    Delivered(Delivery),
    Popped(Box<Popped>),
}

/// A receipt that is over, and why.
pub(crate) struct Spent {
    receipt: PopReceipt,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Acked,
    Nacked,
    Rejected,
    /// It was renewed, or is older than the broker's opening.
    Stale,
}

impl Spent {
    pub(crate) fn outlive_the_broker(&mut self) {
        self.end = End::Stale;
    }
}

impl Taken {
    fn received(&self) -> &Received {
        match self {
            Self::Delivered(delivery) => delivery,
            Self::Popped(popped) => popped,
        }
    }
}

/// The first message that somebody finds, with whom.
pub(crate) async fn poll_all(
    members: &mut [Member],
    popper: Option<&PopConsumer>,
    pool: Option<u64>,
) -> Option<(u64, Taken)> {
    if let (Some(popper), Some(pool)) = (popper, pool)
        && let Some(popped) = soon("the answer to a pop", popper.pop(1, Duration::ZERO)).await.unwrap().pop()
    {
        return Some((pool, Taken::Popped(Box::new(popped))));
    }
    members.iter_mut().find_map(|member| {
        let found = member.consumer.next().now_or_never()?;
        Some((member.number, Taken::Delivered(found.unwrap())))
    })
}

impl Play {
    /// Takes one message, from whichever member has one, and checks that it may come; that one comes if it must.
    pub(crate) async fn next(&mut self) {
        if self.members.is_empty() && self.popper.is_none() {
            return;
        }
        self.settle_down().await;
        // Whoever has something that the group was moved over keeps its queue for that long.
        let is_kept = self.held.iter().any(|held| self.reference.was_passed_over(held.entry, held.delivery));
        let found = if !is_kept && self.reference.must_come(self.clock.now()) {
            Some(self.search().await)
        } else {
            poll_all(&mut self.members, self.popper.as_ref(), self.reference.pool).await
        };
        if let Some((member, taken)) = found {
            let (received, now) = (taken.received(), self.clock.now());
            let home = (received.queue().clone(), received.offset().get());
            let (message, attempts) = (number_of(received), received.attempts());
            let (entry, delivery) = self.reference.delivered(message, &home, member, attempts, now);
            if let Taken::Popped(_) = &taken {
                self.reference.popped(entry, now.plus(Duration::from_secs(INVISIBLE_S)));
            }
            self.held.push(Held { entry, delivery, member, taken });
        }
    }

    async fn search(&mut self) -> (u64, Taken) {
        let (members, popper, pool) = (&mut self.members, self.popper.as_ref(), self.reference.pool);
        let searching = async {
            loop {
                if let Some(found) = poll_all(members, popper, pool).await {
                    return found;
                }
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, searching).await;
        found.unwrap_or_else(|_| panic!("nothing comes, but something must: {:?}", self.reference))
    }

    pub(crate) async fn settle(&mut self, held: Held, how: Settling) {
        // A retry goes another way, on which it loses its place: where order counts, a failure waits in its place.
        let how = match how {
            Settling::Fail | Settling::RetryIn { .. } if self.reference.order != Order::Concurrent => Settling::Drop,
            how => how,
        };
        let Held { entry, delivery: by, taken, .. } = held;
        let result = match taken {
            Taken::Delivered(delivery) => self.settle_delivery(entry, by, delivery, how).await,
            Taken::Popped(popped) => {
                // One that is dropped comes again when its invisible time is over.
                let Some(result) = settle_by(&popped, how).await else { return };
                if result.is_ok() {
                    self.spend(popped.receipt(), how);
                }
                result
            }
        };
        self.settled(entry, by, how, result);
    }

    async fn settle_delivery(&mut self, entry: u64, by: u64, delivery: Delivery, how: Settling) -> Result<(), Error> {
        match how {
            Settling::Ack => delivery.ack().await,
            Settling::Fail => delivery.retry_later(None).await,
            Settling::RetryIn { seconds } => delivery.retry_later(Some(Duration::from_secs(seconds))).await,
            Settling::Reject => delivery.reject("no use").await,
            Settling::Drop => {
                drop(delivery);
                self.give_back(entry, by, REDELIVERY_PAUSE_S);
                Ok(())
            }
            Settling::Again { seconds } => {
                delivery.again_after(Duration::from_secs(seconds));
                self.give_back(entry, by, seconds);
                Ok(())
            }
        }
    }

    /// Compares what became of an answer with what had to, and takes it over.
    fn settled(&mut self, entry: u64, by: u64, how: Settling, result: Result<(), Error>) {
        let (now, valid) = (self.clock.now(), self.reference.is_out_by(entry, by));
        if let Err(error) = result {
            // Refused are: who kept a revoked queue, or the message, too long, and who has one that the group was moved
            // away from.
            assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
            return self.reference.refused(entry, by, now);
        }
        if how.is_silent() {
            return;
        }
        if self.reference.was_passed_over(entry, by) {
            assert_eq!(how, Settling::Ack, "what the group was moved over does not come again, whatever one answers");
            return;
        }
        assert!(valid, "message {entry} was settled by an earlier holder: {:?}", self.reference.entries[&entry]);
        match how {
            Settling::Ack => self.reference.done(entry),
            Settling::Fail => self.reference.failed(entry, None, now),
            Settling::RetryIn { seconds } => self.reference.failed(entry, Some(seconds), now),
            Settling::Reject => self.reference.rejected(entry),
            Settling::Drop | Settling::Again { .. } => {}
        }
    }

    /// A message that its holder gives back comes again; a holder that lost the queue changes nothing by that.
    fn give_back(&mut self, entry: u64, by: u64, seconds: u64) {
        if self.reference.is_out_by(entry, by) {
            let now = self.clock.now();
            self.reference.given_back(entry, now, now.plus(Duration::from_secs(seconds)));
            self.reference.expire(now);
        }
    }

    fn spend(&mut self, receipt: PopReceipt, how: Settling) {
        let end = match how {
            Settling::Ack => End::Acked,
            Settling::Reject => End::Rejected,
            _ => End::Nacked,
        };
        self.remember(Spent { receipt, end });
    }

    fn remember(&mut self, spent: Spent) {
        if self.spent.len() >= MOST_SPENT {
            self.spent.remove(0);
        }
        self.spent.push(spent);
    }

    /// Has a popped message stay invisible for so long from now; the receipt before is over with that.
    pub(crate) async fn renew(&mut self, which: usize, seconds: u64) {
        let popped = |held: &&mut Held| matches!(held.taken, Taken::Popped(_));
        let count = self.held.iter_mut().filter(|held| popped(held)).count();
        let Some(held) = self.held.iter_mut().filter(popped).nth(which % count.max(1)) else { return };
        let Taken::Popped(popped) = &mut held.taken else { return };
        let (entry, by, receipt) = (held.entry, held.delivery, popped.receipt());
        if matches!(self.reference.entries[&entry].status, Status::Out { epoch, .. } if epoch < self.reference.epoch) {
            // Whether it fails or the pool has lost it by the end of that time nobody can say.
            return;
        }
        let until = self.clock.now().plus(Duration::from_secs(seconds));
        match popped.renew(Duration::from_secs(seconds)).await {
            Ok(()) => {
                assert_eq!(popped.invisible_until(), until);
                let passed = self.reference.was_passed_over(entry, by);
                assert!(passed || self.reference.is_out_by(entry, by), "message {entry} came to another meanwhile");
                if !passed {
                    self.reference.popped(entry, until);
                }
                self.remember(Spent { receipt, end: End::Stale });
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
                self.reference.refused(entry, by, self.clock.now());
            }
        }
    }

    /// Answers once more by a receipt that is over: that changes nothing, and is refused unless it is the same answer.
    pub(crate) async fn use_spent(&mut self, which: usize, how: Settling) {
        let (Some(popper), false) = (&self.popper, self.spent.is_empty()) else { return };
        let Spent { receipt, end } = &self.spent[which % self.spent.len()];
        let (answer, same) = match how {
            Settling::Ack => (popper.ack(receipt).await, End::Acked),
            Settling::Reject => (popper.reject(receipt, "once more").await, End::Rejected),
            Settling::Fail | Settling::RetryIn { .. } => (popper.nack(receipt, None).await, End::Nacked),
            Settling::Drop | Settling::Again { .. } => {
                let renewed = popper.renew(receipt, Duration::from_secs(INVISIBLE_S)).await;
                (renewed.map(drop), End::Stale)
            }
        };
        let expected = match *end {
            End::Stale => Err(ErrorKind::Stale),
            end if end == same => Ok(()),
            _ => Err(ErrorKind::Conflict),
        };
        assert_eq!(answer.map_err(|error| error.kind()), expected, "{how:?} by a receipt that is {end:?}");
    }
}

/// `None` when nobody is told.
async fn settle_by(popped: &Popped, how: Settling) -> Option<Result<(), Error>> {
    Some(match how {
        Settling::Ack => popped.ack().await,
        Settling::Fail => popped.nack(None).await,
        Settling::RetryIn { seconds } => popped.nack(Some(Duration::from_secs(seconds))).await,
        Settling::Reject => popped.reject("no use").await,
        Settling::Drop | Settling::Again { .. } => return None,
    })
}
