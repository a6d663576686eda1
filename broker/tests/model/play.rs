//! Plays a random run on a broker and on the reference, and compares what each step shows.

use std::time::Duration;

use cuemq::{
    Broker, Consumer, Delivery, ErrorKind, ManualClock, Message, Order, PopConsumer, Popped, Producer, Received,
    RetryPolicy, TopicSpec,
};
use futures_util::FutureExt;

use super::reference::{PAUSES_S, Reference, Status};
use super::step::{Settling, Step};
use crate::common::checker::{number_of, numbered};
use crate::common::store::Store;
use crate::common::{Settler, manual_clock, read_all, soon};

const GROUP: &str = "group";
const TOPIC: &str = "orders";
const MOST_MEMBERS: usize = 4;
const INVISIBLE_S: u64 = 20;
/// No step of the clock is longer: what is due by then is over before the next.
const LONGEST_STEP_S: u64 = 9;
/// The pause before a delivery that was dropped comes again, and how long a revoked queue may be kept.
const REDELIVERY_PAUSE_S: u64 = 1;
const REVOKE_PATIENCE_S: u64 = 30;

struct Member {
    number: u64,
    consumer: Consumer,
}

struct Held {
    message: u64,
    /// Which of the message's deliveries this is.
    number: u64,
    taken: Taken,
}

/// A message in somebody's hands.
enum Taken {
    Delivered(Delivery),
    Popped(Box<Popped>),
}

pub(crate) struct Play {
    store: Store,
    clock: ManualClock,
    broker: Option<Broker>,
    producer: Option<Producer>,
    settler: Option<Settler>,
    members: Vec<Member>,
    popper: Option<PopConsumer>,
    held: Vec<Held>,
    reference: Reference,
    next_message: u64,
    next_member: u64,
    /// Seconds since the membership changed last.
    since_change: u64,
}

impl Play {
    pub(crate) async fn begin(store: Store, order: Order) -> Self {
        let mut play = Self {
            store,
            clock: manual_clock(),
            broker: None,
            producer: None,
            settler: None,
            members: Vec::new(),
            popper: None,
            held: Vec::new(),
            reference: Reference::new(order),
            next_message: 0,
            next_member: 0,
            since_change: 0,
        };
        play.open().await;
        let spec = TopicSpec::new(TOPIC).queues(3);
        play.broker().create_topic(spec).await.unwrap();
        play.producer = Some(play.broker().producer(TOPIC).await.unwrap());
        play.join().await;
        play
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    async fn open(&mut self) {
        let broker = self.store.open_at(&self.clock).await;
        self.settler = Some(Settler::new(&broker, &self.clock).await);
        self.broker = Some(broker);
    }

    pub(crate) async fn step(&mut self, step: &Step) {
        match step {
            Step::Send { count, key } => self.send(*count, *key).await,
            Step::SendLater { seconds } => self.send_later(*seconds).await,
            Step::Next { times } => {
                for _ in 0..*times {
                    self.next().await;
                }
            }
            Step::Settle { which, how } if !self.held.is_empty() => {
                let at = which % self.held.len();
                let held = self.held.swap_remove(at);
                self.settle(held, *how).await;
            }
            Step::Join if self.members.len() < MOST_MEMBERS => self.join().await,
            Step::Leave { which } if !self.members.is_empty() => self.leave(which % self.members.len()).await,
            Step::Settle { .. } | Step::Join | Step::Leave { .. } => {}
            Step::Pop => self.pop().await,
            Step::Advance { seconds } => self.advance(*seconds).await,
            Step::Pause => self.pause(true).await,
            Step::Resume => self.pause(false).await,
            Step::Restart => self.reopen(false).await,
            Step::Kill => self.reopen(true).await,
        }
    }

    async fn send(&mut self, count: u8, key: u8) {
        let now = self.clock.now();
        let first = self.next_message;
        self.next_message += u64::from(count);
        let messages: Vec<Message> =
            (first..self.next_message).map(|number| numbered(number).sharding_key(format!("k{key}"))).collect();
        self.producer.as_ref().unwrap().send_batch(messages).await.unwrap();
        (first..self.next_message).for_each(|number| self.reference.sent(number, Some(key), now, None));
    }

    async fn send_later(&mut self, seconds: u64) {
        let (number, delay) = (self.next_message, Duration::from_secs(seconds));
        self.next_message += 1;
        self.producer.as_ref().unwrap().send(numbered(number).delay(delay)).await.unwrap();
        self.reference.sent(number, None, self.clock.now().plus(delay), None);
    }

    async fn pause(&mut self, pause: bool) {
        let broker = self.broker();
        let told = if pause { broker.pause_group(GROUP).await } else { broker.resume_group(GROUP).await };
        told.unwrap();
        self.reference.paused = pause;
    }

    /// Whatever was due or asked for by now has been carried out after this.
    async fn settle_down(&mut self) {
        self.settler.as_mut().unwrap().settle().await;
        for _ in 0..2 {
            soon("the description", self.broker().describe_group(GROUP)).await.unwrap();
        }
    }

    /// Takes one message, from whichever member has one, and checks that it may come; that one comes if it must.
    async fn next(&mut self) {
        if self.members.is_empty() && self.popper.is_none() {
            return;
        }
        self.settle_down().await;
        let must = self.reference.must_come(self.clock.now());
        let found = if must {
            let reference = format!("{:?}", self.reference);
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
            let patience = Duration::from_secs(5);
            let found = tokio::time::timeout(patience, searching).await;
            Some(found.unwrap_or_else(|_| panic!("nothing comes, but something must: {reference}")))
        } else {
            poll_all(&mut self.members, self.popper.as_ref(), self.reference.pool).await
        };
        if let Some((member, taken)) = found {
            let (received, now) = (taken.received(), self.clock.now());
            let message = number_of(received);
            let number = self.reference.delivered(message, member, received.queue(), received.attempts(), now);
            if let Taken::Popped(_) = &taken {
                self.reference.popped(message, now.plus(Duration::from_secs(INVISIBLE_S)));
            }
            self.held.push(Held { message, number, taken });
        }
    }

    async fn settle(&mut self, held: Held, how: Settling) {
        let Held { message, number, taken } = held;
        let (now, valid) = (self.clock.now(), self.reference.is_out_by(message, number));
        // A retry goes another way, on which it loses its place: where order counts, a failure waits in its place.
        let how = match how {
            Settling::Fail | Settling::RetryIn { .. } if self.reference.order != Order::Concurrent => Settling::Drop,
            how => how,
        };
        let delivery = match taken {
            Taken::Delivered(delivery) => delivery,
            Taken::Popped(popped) => return self.settle_popped(message, number, *popped, how).await,
        };
        let outcome = match how {
            Settling::Ack => delivery.ack().await.map(|()| self.reference.done(message)),
            Settling::Fail => delivery.retry_later(None).await.map(|()| self.reference.failed(message, None, now)),
            Settling::RetryIn { seconds } => {
                let pause = Duration::from_secs(seconds);
                let failed = delivery.retry_later(Some(pause)).await;
                failed.map(|()| self.reference.failed(message, Some(seconds), now))
            }
            Settling::Reject => delivery.reject("no use").await.map(|()| self.reference.rejected(message)),
            Settling::Drop => {
                drop(delivery);
                self.give_back(message, number, REDELIVERY_PAUSE_S);
                Ok(())
            }
            Settling::Again { seconds } => {
                delivery.again_after(Duration::from_secs(seconds));
                self.give_back(message, number, seconds);
                Ok(())
            }
        };
        assert!(valid || outcome.is_err() || how.is_silent(), "message {message} was settled by an earlier holder");
        if let Err(error) = outcome {
            // Only whoever kept a revoked queue too long is refused; then the message comes to another.
            assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
            self.reference.refused(message, number, now);
        }
    }

    /// Settles a popped message; one that is dropped comes again when its invisible time is over.
    async fn settle_popped(&mut self, message: u64, number: u64, popped: Popped, how: Settling) {
        let (now, valid) = (self.clock.now(), self.reference.is_out_by(message, number));
        let outcome = match how {
            Settling::Ack => popped.ack().await.map(|()| self.reference.done(message)),
            Settling::Fail => popped.nack(None).await.map(|()| self.reference.failed(message, None, now)),
            Settling::RetryIn { seconds } => {
                let pause = Duration::from_secs(seconds);
                popped.nack(Some(pause)).await.map(|()| self.reference.failed(message, Some(seconds), now))
            }
            Settling::Reject => popped.reject("no use").await.map(|()| self.reference.rejected(message)),
            Settling::Drop | Settling::Again { .. } => return,
        };
        match outcome {
            Ok(()) => assert!(valid, "message {message} was settled by a receipt that is over"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Stale, "{error}");
                self.reference.refused(message, number, now);
            }
        }
    }

    /// Has a pop consumer come, or go if there is one. What it has popped can still be settled.
    async fn pop(&mut self) {
        if self.reference.order != Order::Concurrent {
            return;
        }
        if self.popper.take().is_none() {
            let pauses = PAUSES_S.map(Duration::from_secs).to_vec();
            let consumer =
                self.broker().pop_consumer(GROUP).subscribe(TOPIC).invisible(Duration::from_secs(INVISIBLE_S));
            self.popper = Some(consumer.retry_policy(RetryPolicy::Schedule(pauses)).build().await.unwrap());
            if self.reference.pool.is_none() {
                self.reference.pool = Some(self.next_member);
                self.next_member += 1;
            }
        }
        self.settle_down().await;
        self.reference.pool_is_served = self.popper.is_some();
        self.reference.changed(self.clock.now());
        self.since_change = 0;
    }

    /// A message that its holder gives back comes again; a holder that lost the queue changes nothing by that.
    fn give_back(&mut self, message: u64, number: u64, seconds: u64) {
        if self.reference.is_out_by(message, number) {
            let now = self.clock.now();
            self.reference.given_back(message, now, now.plus(Duration::from_secs(seconds)));
        }
    }

    async fn join(&mut self) {
        let number = self.next_member;
        self.next_member += 1;
        let pauses = PAUSES_S.map(Duration::from_secs).to_vec();
        let consumer = self.broker().consumer(GROUP).subscribe(TOPIC).member(format!("m{number}"));
        let consumer = consumer.retry_policy(RetryPolicy::Schedule(pauses)).order(self.reference.order);
        let consumer = consumer.build().await.unwrap();
        self.members.push(Member { number, consumer });
        self.reference.changed(self.clock.now());
        self.since_change = 0;
    }

    /// Lets a member go, as its death does; what it held comes to others.
    async fn leave(&mut self, at: usize) {
        let member = self.members.remove(at);
        let number = member.number;
        drop(member);
        let reference = &self.reference;
        self.held.retain(|held| match reference.entries[&held.message].status {
            Status::Out { member, delivery, .. } => member != number || delivery != held.number,
            _ => true,
        });
        self.settle_down().await;
        self.reference.abandoned(Some(number), self.clock.now());
        self.reference.changed(self.clock.now());
        self.since_change = 0;
    }

    async fn advance(&mut self, seconds: u64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(LONGEST_STEP_S);
            left -= step;
            self.clock.advance(Duration::from_secs(step));
            self.settle_down().await;
            self.since_change += step;
            self.reference.passed(self.clock.now(), self.since_change >= REVOKE_PATIENCE_S);
        }
    }

    async fn reopen(&mut self, kill: bool) {
        let broker = self.broker.take().unwrap();
        (self.producer, self.settler) = (None, None);
        self.popper = None;
        self.reference.pool_is_served = false;
        if kill {
            // As the process ends: nobody lets go of anything in good order.
            self.store.kill(broker).await;
            self.held.clear();
            self.members.clear();
        } else {
            self.held.clear();
            self.members.clear();
            broker.shutdown().await.unwrap();
        }
        self.reference.abandoned(None, self.clock.now());
        self.reference.entries.values_mut().for_each(|entry| entry.loose = false);
        self.open().await;
        self.producer = Some(self.broker().producer(TOPIC).await.unwrap());
        self.join().await;
    }

    /// Consumes whatever is left, then compares the end with the reference.
    pub(crate) async fn end(mut self) {
        self.pause(false).await;
        for held in std::mem::take(&mut self.held) {
            self.settle(held, Settling::Ack).await;
        }
        if self.members.is_empty() {
            self.join().await;
        }
        while !self.reference.is_over() {
            self.advance(REVOKE_PATIENCE_S + 1).await;
            let loose: Vec<u64> =
                self.reference.entries.iter().filter(|(_, entry)| entry.loose).map(|(number, _)| *number).collect();
            assert!(loose.is_empty(), "nobody has these any more: {loose:?}");
            while self.reference.must_come(self.clock.now()) {
                self.next().await;
                for held in std::mem::take(&mut self.held) {
                    self.settle(held, Settling::Ack).await;
                }
            }
        }
        self.settle_down().await;
        let more = poll_all(&mut self.members, self.popper.as_ref(), self.reference.pool).await;
        assert!(more.is_none(), "something comes after everything is over");
        let letters = read_all(self.broker(), &format!("%DLQ%{GROUP}")).await;
        let mut letters: Vec<_> =
            letters.iter().map(|letter| (number_of(letter), letter.dead_reason().unwrap())).collect();
        letters.sort_unstable_by_key(|(number, _)| *number);
        assert_eq!(letters, self.reference.dead_letters(), "exactly one dead letter for each that has to be one");
        let lag = self.broker().describe_group(GROUP).await.unwrap().lag();
        assert_eq!(lag, 0, "everything is settled");
        self.members.clear();
        self.broker.take().unwrap().shutdown().await.unwrap();
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
async fn poll_all(members: &mut [Member], popper: Option<&PopConsumer>, pool: Option<u64>) -> Option<(u64, Taken)> {
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
