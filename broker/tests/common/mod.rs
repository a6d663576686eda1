//! What all promise tests share: stores that outlive their brokers, waiting without sleeping, messages that can be
//! checked by themselves.

#![allow(dead_code, unused_macros, reason = "each test file takes its own part")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

pub(crate) mod checker;
pub(crate) mod counting;
pub(crate) mod effects;
pub(crate) mod popping;
pub(crate) mod power;
pub(crate) mod store;

use std::future::Future;
use std::time::Duration;

use cuemq::{Broker, Consumer, Delivery, ManualClock, Received, Timestamp};

/// The longest a whole test may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest that one thing may be waited for.
const SOON: Duration = Duration::from_secs(40);

/// Makes one visible test per engine of each async function, which gets a [`store::Store`].
macro_rules! on_every_engine {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::common::run;
            use crate::common::store::{Kind, Store};

            #[test]
            fn memory() {
                run(super::$name(Store::new(Kind::Memory)));
            }

            #[test]
            fn mmap() {
                run(super::$name(Store::new(Kind::Mmap)));
            }

            #[test]
            fn lsm() {
                run(super::$name(Store::new(Kind::Lsm)));
            }
        }
    )+};
}

/// As [`on_every_engine`], over those that can tell durable from applied.
macro_rules! on_durable_engines {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::common::run;
            use crate::common::store::{Kind, Store};

            #[test]
            fn power() {
                run(super::$name(Store::new(Kind::Power)));
            }

            #[test]
            fn mmap() {
                run(super::$name(Store::new(Kind::Mmap)));
            }

            #[test]
            fn lsm() {
                run(super::$name(Store::new(Kind::Lsm)));
            }
        }
    )+};
}

/// Runs a test on one thread, with an end to its patience.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test is stuck") });
}

/// Waits for what has to come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Waits for a condition that nothing announces. Looks again whenever the others on this thread had their turn.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The next message of a consumer.
pub(crate) async fn next(consumer: &mut Consumer) -> Delivery {
    soon("the next message", consumer.next()).await.unwrap()
}

/// The next `count` messages, acknowledged one by one.
pub(crate) async fn take(consumer: &mut Consumer, count: usize) -> Vec<Received> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let delivery = next(consumer).await;
        all.push((*delivery).clone());
        soon("the acknowledgement", delivery.ack()).await.unwrap();
    }
    all
}

/// Every message of a topic that can be seen now, queue by queue.
pub(crate) async fn read_all(broker: &Broker, topic: &str) -> Vec<Received> {
    let mut pull = broker.pull_consumer("reader").await.unwrap();
    let mut all = Vec::new();
    for queue in broker.describe_topic(topic).unwrap().queues {
        let id = queue.queue.queue.get();
        pull.assign(topic, id).await.unwrap();
        pull.seek(topic, id, cuemq::SeekTo::Begin).unwrap();
    }
    loop {
        let some = pull.poll(1000, Duration::ZERO).await.unwrap();
        if some.is_empty() {
            all.sort_by(|a: &Received, b| (a.queue(), a.offset()).cmp(&(b.queue(), b.offset())));
            return all;
        }
        all.extend(some);
    }
}

/// Bodies as text, in order.
pub(crate) fn bodies(messages: &[Received]) -> Vec<String> {
    messages.iter().map(text).collect()
}

/// A body as text.
pub(crate) fn text(message: &Received) -> String {
    String::from_utf8(message.body().to_vec()).unwrap()
}

/// A clock that stands at a time like today's.
pub(crate) fn manual_clock() -> ManualClock {
    ManualClock::new(Timestamp::from_millis(1_700_000_000_000))
}

/// Proves that a consumer finds nothing at this moment.
pub(crate) fn assert_nothing(consumer: &mut Consumer, why: &str) {
    let found = futures_util::FutureExt::now_or_never(consumer.next());
    assert!(found.is_none(), "{why}: {:?}", found.map(|found| found.map(|delivery| delivery.id())));
}

/// Lets a pause pass: a millisecond before its end nothing has come, at its end the message does.
pub(crate) async fn pass(settler: &mut Settler, clock: &ManualClock, consumer: &mut Consumer, pause: Duration) {
    let almost = pause.saturating_sub(Duration::from_millis(1));
    clock.advance(almost);
    settler.settle().await;
    assert_nothing(consumer, "not a millisecond early");
    clock.advance(pause - almost);
}

/// Watches the delay scheduler: what was due at this moment of the clock has been moved once [`Settler::settle`] is
/// through, because a message that is due now comes behind it.
pub(crate) struct Settler {
    producer: cuemq::Producer,
    pull: cuemq::PullConsumer,
    clock: ManualClock,
}

impl Settler {
    const TOPIC: &str = "settled";

    pub(crate) async fn new(broker: &Broker, clock: &ManualClock) -> Self {
        let producer = broker.producer(Self::TOPIC).await.unwrap().with_selector(|_, _| 0);
        let mut pull = broker.pull_consumer("settler").await.unwrap();
        pull.assign(Self::TOPIC, 0).await.unwrap();
        pull.seek(Self::TOPIC, 0, cuemq::SeekTo::End).unwrap();
        Self { producer, pull, clock: clock.clone() }
    }

    pub(crate) async fn settle(&mut self) {
        self.producer.send(cuemq::Message::new("settled").deliver_at(self.clock.now())).await.unwrap();
        let hour = Duration::from_secs(3600);
        let settled = soon("a message that is due now", self.pull.poll(1, hour)).await.unwrap();
        assert_eq!(settled.len(), 1);
    }
}
