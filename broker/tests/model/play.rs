//! Plays a random run on a broker and on the reference, and compares what each step shows.

use std::time::Duration;

use cuemq::{Broker, Consumer, ManualClock, Message, Order, PopConsumer, Producer, RetryPolicy, Timestamp, TopicSpec};

use super::entry::Entry;
use super::hands::{Held, Spent};
use super::puller::Puller;
use super::reference::{PAUSES_S, Reference};
use super::step::{Run, Settling, Step};
use crate::common::checker::numbered;
use crate::common::store::Store;
use crate::common::{Settler, manual_clock, soon};

pub(crate) const GROUP: &str = "group";
pub(crate) const TOPIC: &str = "orders";
const QUEUES: u32 = 3;
const MOST_MEMBERS: usize = 4;
pub(crate) const INVISIBLE_S: u64 = 20;
/// No step of the clock is longer: what is due by then is over before the next.
const LONGEST_STEP_S: u64 = 9;
/// How long a revoked queue may be kept.
const REVOKE_PATIENCE_S: u64 = 30;

pub(crate) struct Member {
    pub(crate) number: u64,
    pub(crate) consumer: Consumer,
}

pub(crate) struct Play {
    store: Store,
    pub(crate) clock: ManualClock,
    pub(crate) broker: Option<Broker>,
    producer: Option<Producer>,
    settler: Option<Settler>,
    pub(crate) members: Vec<Member>,
    pub(crate) popper: Option<PopConsumer>,
    pub(crate) held: Vec<Held>,
    /// Receipts that are over.
    pub(crate) spent: Vec<Spent>,
    pub(crate) puller: Puller,
    pub(crate) reference: Reference,
    /// How long a message of the topic lives.
    ttl: Option<Duration>,
    next_message: u64,
    next_member: u64,
    /// Seconds since queues were shared out last.
    since_change: u64,
}

impl Play {
    pub(crate) async fn begin(store: Store, run: &Run) -> Self {
        let mut play = Self {
            store,
            clock: manual_clock(),
            broker: None,
            producer: None,
            settler: None,
            members: Vec::new(),
            popper: None,
            held: Vec::new(),
            spent: Vec::new(),
            puller: Puller::new(TOPIC),
            reference: Reference::new(run.order),
            ttl: run.ttl.map(Duration::from_secs),
            next_message: 0,
            next_member: 0,
            since_change: 0,
        };
        play.open().await;
        let spec = TopicSpec::new(TOPIC).queues(QUEUES);
        let spec = if let Some(ttl) = play.ttl { spec.ttl(ttl) } else { spec };
        play.broker().create_topic(spec).await.unwrap();
        play.take_part().await;
        play
    }

    pub(crate) fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    async fn open(&mut self) {
        let broker = self.store.open_at(&self.clock).await;
        self.settler = Some(Settler::new(&broker, &self.clock).await);
        self.broker = Some(broker);
    }

    /// What every opening begins with.
    async fn take_part(&mut self) {
        let broker = self.broker.as_ref().unwrap();
        self.producer = Some(broker.producer(TOPIC).await.unwrap());
        self.puller.open(broker, &self.reference, self.clock.now()).await;
        self.join().await;
    }

    pub(crate) async fn step(&mut self, step: &Step) {
        match step {
            Step::Send { count, key, ttl } => self.send(*count, *key, ttl.map(Duration::from_secs)).await,
            Step::SendLater { seconds, ttl } => self.send_later(*seconds, ttl.map(Duration::from_secs)).await,
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
            Step::Renew { which, seconds } => self.renew(*which, *seconds).await,
            Step::Spent { which, how } => self.use_spent(*which, *how).await,
            Step::Join if self.members.len() < MOST_MEMBERS => self.join().await,
            Step::Leave { which } if !self.members.is_empty() => self.leave(which % self.members.len()).await,
            Step::Settle { .. } | Step::Join | Step::Leave { .. } => {}
            Step::Pop => self.pop().await,
            Step::Advance { seconds } => self.advance(*seconds).await,
            Step::Pause => self.pause(true).await,
            Step::Resume => self.pause(false).await,
            Step::Redrive(redriving) => self.redrive(*redriving).await,
            Step::Queues { count } => self.set_queues(*count).await,
            Step::Move(moving) => self.move_group(*moving).await,
            Step::Commit => self.puller.commit().await,
            Step::Seek { which, back } => {
                self.puller.seek(*which, *back);
                self.locate().await;
            }
            Step::Restart => self.reopen(false).await,
            Step::Kill => self.reopen(true).await,
        }
    }

    /// When a message ends that becomes visible then.
    pub(crate) fn end_of_life(&self, visible: Timestamp, own: Option<Duration>) -> Option<Timestamp> {
        own.into_iter().chain(self.ttl).min().map(|ttl| visible.plus(ttl))
    }

    /// Finds what was stored since.
    pub(crate) async fn locate(&mut self) {
        self.puller.read(&mut self.reference).await;
        let now = self.clock.now();
        self.reference.assert_located(now);
        self.reference.expire(now);
    }

    fn new_message(&mut self, ttl: Option<Duration>) -> (u64, Message) {
        let number = self.next_message;
        self.next_message += 1;
        let message = numbered(number);
        (number, if let Some(ttl) = ttl { message.ttl(ttl) } else { message })
    }

    async fn send(&mut self, count: u8, key: u8, ttl: Option<Duration>) {
        let now = self.clock.now();
        let expires_at = self.end_of_life(now, ttl);
        let mut messages = Vec::new();
        for _ in 0..count {
            let (number, message) = self.new_message(ttl);
            messages.push(message.sharding_key(format!("k{key}")));
            self.reference.add(Entry::new(number, Some(key), now, expires_at));
        }
        self.producer.as_ref().unwrap().send_batch(messages).await.unwrap();
        self.locate().await;
    }

    async fn send_later(&mut self, seconds: u64, ttl: Option<Duration>) {
        let delay = Duration::from_secs(seconds);
        let (number, message) = self.new_message(ttl);
        self.producer.as_ref().unwrap().send(message.delay(delay)).await.unwrap();
        let due = self.clock.now().plus(delay);
        self.reference.add(Entry::new(number, None, due, self.end_of_life(due, ttl)));
    }

    async fn pause(&mut self, pause: bool) {
        let broker = self.broker();
        let told = if pause { broker.pause_group(GROUP).await } else { broker.resume_group(GROUP).await };
        told.unwrap();
        self.reference.paused = pause;
    }

    /// Whatever was due or asked for by now has been carried out after this.
    pub(crate) async fn settle_down(&mut self) {
        self.settler.as_mut().unwrap().settle().await;
        for _ in 0..2 {
            soon("the description", self.broker().describe_group(GROUP)).await.unwrap();
        }
    }

    /// Queues are shared out anew.
    pub(crate) fn shared_out(&mut self) {
        if !self.members.is_empty() || self.popper.is_some() {
            self.reference.known.extend(self.puller.queues());
        }
        self.reference.changed(self.clock.now());
        self.since_change = 0;
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
        self.shared_out();
    }

    async fn join(&mut self) {
        let number = self.next_member;
        self.next_member += 1;
        let pauses = PAUSES_S.map(Duration::from_secs).to_vec();
        let consumer = self.broker().consumer(GROUP).subscribe(TOPIC).member(format!("m{number}"));
        let consumer = consumer.retry_policy(RetryPolicy::Schedule(pauses)).order(self.reference.order);
        let consumer = consumer.build().await.unwrap();
        self.members.push(Member { number, consumer });
        self.shared_out();
    }

    /// Lets a member go, as its death does; what it held comes to others.
    async fn leave(&mut self, at: usize) {
        let member = self.members.remove(at);
        let number = member.number;
        drop(member);
        let reference = &self.reference;
        let has = |held: &Held| {
            reference.is_out_by(held.entry, held.delivery) || reference.was_passed_over(held.entry, held.delivery)
        };
        self.held.retain(|held| held.member != number || !has(held));
        self.settle_down().await;
        self.reference.abandoned(Some(number), self.clock.now());
        self.reference.expire(self.clock.now());
        self.shared_out();
    }

    async fn advance(&mut self, seconds: u64) {
        let mut left = seconds;
        while left > 0 {
            let step = left.min(LONGEST_STEP_S);
            left -= step;
            self.clock.advance(Duration::from_secs(step));
            self.settle_down().await;
            self.invisible_times_end().await;
            self.since_change += step;
            self.reference.passed(self.clock.now(), self.since_change >= REVOKE_PATIENCE_S);
            self.locate().await;
        }
    }

    /// What was popped and is over by now has failed, and that is stored: a kill does not undo it any more.
    async fn invisible_times_end(&self) {
        let left = self.reference.most_invisible(self.clock.now());
        let stored = async {
            while self.broker().describe_group(GROUP).await.unwrap().in_flight > left {
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        };
        soon("the end of the invisible times", stored).await;
    }

    async fn reopen(&mut self, kill: bool) {
        let broker = self.broker.take().unwrap();
        (self.producer, self.settler, self.popper) = (None, None, None);
        self.puller.close();
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
        self.reference.expire(self.clock.now());
        self.spent.iter_mut().for_each(Spent::outlive_the_broker);
        self.open().await;
        self.take_part().await;
        self.locate().await;
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
            let loose = self.reference.entries.values().find(|entry| entry.loose);
            assert!(loose.is_none(), "nobody has it any more: {loose:?}");
            while self.reference.must_come(self.clock.now()) {
                self.next().await;
                for held in std::mem::take(&mut self.held) {
                    self.settle(held, Settling::Ack).await;
                }
            }
        }
        self.await_all_letters().await;
        let lag = self.broker().describe_group(GROUP).await.unwrap().lag();
        assert_eq!(lag, 0, "everything is settled");
        self.members.clear();
        self.broker.take().unwrap().shutdown().await.unwrap();
    }
}
