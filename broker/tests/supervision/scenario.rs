//! One walk through everything a broker does, which allows for a panic at any one point of it.

mod popped;
mod transacted;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    Broker, BrokerState, Consumer, Decision, Delivery, ErrorKind, HalfMessage, ManualClock, MaxLength, ProbePoint,
    Publish, PublishBatch, QueueKey, QueueOffset, Recalled, Received, Recurrence, ResetTo, Result, RetryPolicy,
    TopicSpec,
};

use crate::common::checker::{number_of, numbered};
use crate::common::store::Store;
use crate::common::{manual_clock, next, read_all, soon, until};

/// Where panics shall be, each once, one after the other; and what was met on the way.
pub(crate) struct Poison {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    points: Vec<(&'static str, &'static str)>,
    seen: BTreeSet<(String, String)>,
    armed: bool,
}

impl Poison {
    pub(crate) fn first(points: &[(&'static str, &'static str)]) -> Self {
        let shared = Shared { points: points.to_vec(), seen: BTreeSet::new(), armed: false };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Panics that have not happened.
    pub(crate) fn left(&self) -> usize {
        self.shared.lock().unwrap().points.len()
    }

    pub(crate) fn seen(&self) -> BTreeSet<(String, String)> {
        self.shared.lock().unwrap().seen.clone()
    }

    fn arm(&self) {
        self.shared.lock().unwrap().armed = true;
    }

    fn probe(&self) -> impl Fn(ProbePoint<'_>) + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move |point| {
            let mut shared = shared.lock().unwrap();
            shared.seen.insert((point.actor.to_owned(), point.message.to_owned()));
            let poisoned = shared.points.first() == Some(&(point.actor, point.message));
            if shared.armed && poisoned {
                shared.points.remove(0);
                drop(shared);
                panic!("{} {} at {}, on purpose", point.actor, point.name, point.message);
            }
        }
    }
}

/// What the walk has sent and seen so far.
struct Walk {
    broker: Broker,
    clock: ManualClock,
    /// Answers that were lost; at most one for each panic.
    mishaps: Cell<usize>,
    panics: usize,
    sent: BTreeSet<u64>,
    done: BTreeSet<u64>,
    seen: BTreeSet<u64>,
    last: BTreeMap<QueueKey, QueueOffset>,
}

impl Walk {
    /// Calls again if this was the request that was lost.
    async fn again<T>(&self, mut call: impl AsyncFnMut() -> Result<T>) -> T {
        loop {
            match soon("an answer", call()).await {
                Ok(answer) => return answer,
                Err(error) => self.mishap(&error),
            }
        }
    }

    fn mishap(&self, error: &cuemq::Error) {
        assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
        self.mishaps.set(self.mishaps.get() + 1);
        assert!(self.mishaps.get() <= self.panics, "a second request was lost: {error}");
    }

    async fn join(&self, member: &str) -> Consumer {
        let build =
            async || self.broker.consumer("group").subscribe("orders").subscribe("doomed").member(member).build().await;
        self.again(build).await
    }

    async fn next(&mut self, consumer: &mut Consumer) -> Delivery {
        let delivery = next(consumer).await;
        self.seen(&delivery);
        delivery
    }

    /// A message that comes for the first time is not behind one that came before.
    fn seen(&mut self, received: &Received) {
        let n = number_of(received);
        assert!(self.sent.contains(&n), "a phantom: {n}");
        if received.queue().topic.as_str() == "orders" && self.seen.insert(n) {
            let last = self.last.entry(received.queue().clone()).or_insert(received.offset());
            assert!(received.offset() >= *last, "{n} was overtaken");
            *last = received.offset();
        }
    }

    /// Acknowledges. When the answer is lost the message may be done or come again; that all is settled shows in the
    /// group's lag at the end.
    async fn ack(&mut self, delivery: Delivery) {
        self.done.insert(number_of(&delivery));
        if let Err(error) = soon("an answer", delivery.ack()).await {
            self.mishap(&error);
        }
    }

    /// Takes what comes until everything that was sent is done and settled.
    async fn drain(&mut self, consumer: &mut Consumer) {
        loop {
            if let Some(delivery) = futures_util::FutureExt::now_or_never(consumer.next()) {
                let delivery = delivery.unwrap();
                self.seen(&delivery);
                self.ack(delivery).await;
                continue;
            }
            let lag = self.again(async || self.broker.describe_group("group").await).await.lag();
            if lag == 0 && self.sent.is_subset(&self.done) {
                return;
            }
            // Whatever waits for its time comes now.
            self.clock.advance(Duration::from_secs(1));
        }
    }
}

/// Walks through everything, with panics where the poison says.
pub(crate) async fn play(store: &Store, poison: &Poison) {
    let clock = manual_clock();
    let broker = store.builder().clock(clock.clock()).probe(poison.probe()).open().await.unwrap();
    let mut walk = Walk {
        broker: broker.clone(),
        clock: clock.clone(),
        mishaps: Cell::new(0),
        panics: poison.left(),
        sent: BTreeSet::new(),
        done: BTreeSet::new(),
        seen: BTreeSet::new(),
        last: BTreeMap::new(),
    };
    poison.arm();
    let panics = walk.panics as u64;
    walk.again(async || broker.create_topic(TopicSpec::new("orders").queues(2)).await).await;
    walk.again(async || broker.create_topic(TopicSpec::new("doomed").queues(1)).await).await;
    let mut first = walk.join("n first").await;
    send_everything(&mut walk).await;
    consume(&mut walk, &mut first).await;
    popped::pop(&mut walk).await;
    transacted::book(&walk).await;
    pull_and_describe(&walk).await;
    delay(&mut walk).await;
    reject_and_purge(&walk).await;
    expire(&walk).await;
    overflow(&walk).await;
    transact(store, &mut walk).await;
    walk.again(async || broker.set_queues("doomed", 9).await).await;
    walk.again(async || broker.delete_topic("doomed").await).await;
    drop(first);
    let mut last = walk.join("z last").await;
    soon("the settling of everything", walk.drain(&mut last)).await;
    assert_eq!(broker.state(), BrokerState::Running);
    let (ended, stopped) =
        soon("the shutdown", async { tokio::join!(soon("the end of the consumer", last.next()), broker.shutdown()) })
            .await;
    assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::Closed);
    stopped.unwrap();
    assert_eq!(broker.actor_restarts(), panics);
    drop(last);
    let broker = store.open().await;
    let stored: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    let mut sorted = stored.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, walk.sent.iter().copied().collect::<Vec<_>>(), "each message was stored once");
    broker.shutdown().await.unwrap();
}

/// By every way there is: one by one, in a batch over queues, through the gateway.
async fn send_everything(walk: &mut Walk) {
    let broker = walk.broker.clone();
    let producer = broker.producer("orders").await.unwrap().with_selector(|message, queues| {
        let body = std::str::from_utf8(message.body()).unwrap();
        let number: u32 = body.split(' ').nth(1).unwrap().parse().unwrap();
        number % queues
    });
    for n in (0..6).chain(100..103) {
        walk.sent.insert(n);
        walk.again(async || producer.send(numbered(n)).await).await;
    }
    walk.sent.extend([7, 70, 700]);
    walk.again(async || producer.send_batch([7, 70, 700].map(numbered).to_vec()).await).await;
    walk.sent.extend([8, 9, 10]);
    let publish = async || {
        let message = Publish { topic: "orders".into(), message: numbered(8) };
        broker.gateway().send(message).await.map_err(lost)?
    };
    walk.again(publish).await;
    let publish = async || {
        let messages = [9, 10].map(numbered).to_vec();
        let message = PublishBatch { topic: "orders".into(), messages };
        broker.gateway().send(message).await.map_err(lost)?
    };
    walk.again(publish).await;
}

/// A mailbox that loses a message says nothing of what became of it.
fn lost(_: actix::MailboxError) -> cuemq::Error {
    cuemq::storage_api::StorageError::unknown(StorageKind::Io, "publish", "the mailbox lost it").into()
}

/// Shares, releases, takes away, retries and acknowledges.
async fn consume(walk: &mut Walk, first: &mut Consumer) {
    let broker = walk.broker.clone();
    for _ in 0..3 {
        let delivery = walk.next(first).await;
        walk.ack(delivery).await;
    }
    // The second member wants a queue of which the first holds a message: it is released with the acknowledgement.
    // It comes again at once.
    walk.next(first).await.again_after(Duration::ZERO);
    let (one, two) = (walk.next(first).await, walk.next(first).await);
    let policy = RetryPolicy::Fixed { pause: Duration::from_secs(7), redeliveries: 9 };
    let build = async || {
        let second = broker.consumer("group").subscribe("orders").subscribe("doomed").member("p second");
        second.retry_policy(policy.clone()).build().await
    };
    let second = walk.again(build).await;
    walk.ack(one).await;
    walk.ack(two).await;
    let held = walk.next(first).await;
    // The retry's pause follows the policy that the second member brought.
    let retried = walk.next(first).await;
    let n = number_of(&retried);
    match soon("an answer", retried.retry_later(None)).await {
        Ok(()) => comes_again_after_seven_seconds(walk, first, n).await,
        Err(error) => walk.mishap(&error),
    }
    // The third member wants a queue too, and this time its holder keeps it until it is taken away.
    let third = walk.join("a third").await;
    walk.clock.advance(Duration::from_secs(30));
    let kept = held.queue().clone();
    until("the queue to be taken away", || !first.queues().contains(&kept)).await;
    let stale = soon("an answer", held.ack()).await;
    if let Err(error) = stale
        && error.kind() != ErrorKind::Stale
    {
        walk.mishap(&error);
    }
    drop((second, third));
}

async fn comes_again_after_seven_seconds(walk: &mut Walk, first: &mut Consumer, n: u64) {
    let again = |delivery: &Delivery| delivery.queue().topic.as_str() == "%RETRY%group";
    walk.clock.advance(Duration::from_secs(7));
    let all: Vec<QueueKey> = first.queues();
    if !all.iter().any(|queue| queue.topic.as_str() == "%RETRY%group") {
        // The other member reads the retries: they come at the end.
        return;
    }
    loop {
        let delivery = walk.next(first).await;
        let found = again(&delivery);
        if found {
            assert_eq!((number_of(&delivery), delivery.attempts()), (n, 1));
        }
        walk.ack(delivery).await;
        if found {
            return;
        }
    }
}

async fn pull_and_describe(walk: &Walk) {
    let broker = &walk.broker;
    let mut pull = walk.again(async || broker.pull_consumer("puller").await).await;
    while let Err(error) = soon("an answer", pull.assign_topic("orders")).await {
        walk.mishap(&error);
    }
    let polled = soon("messages", pull.poll(5, Duration::ZERO)).await.unwrap();
    assert_eq!(polled.len(), 5);
    while let Err(error) = soon("an answer", pull.commit()).await {
        walk.mishap(&error);
    }
    let group = walk.again(async || broker.describe_group("puller").await).await;
    assert_eq!(group.queues.iter().map(|queue| queue.committed.get()).sum::<u64>(), 5);
    let begin = async || broker.reset_group("puller", "orders", ResetTo::Begin).await?.confirm().await;
    walk.again(begin).await;
    let group = walk.again(async || broker.describe_group("puller").await).await;
    assert!(group.queues.iter().all(|queue| queue.committed == QueueOffset::ZERO));
}

async fn delay(walk: &mut Walk) {
    let broker = walk.broker.clone();
    let producer = broker.producer("orders").await.unwrap();
    let count = || -> u64 { broker.describe_topic("orders").unwrap().queues.iter().map(|q| q.end.get()).sum() };
    let before = count();
    let taken_back = walk.again(async || producer.send(numbered(36).delay(Duration::from_secs(1))).await).await;
    let id = taken_back.scheduled.unwrap();
    assert_eq!(walk.again(async || broker.recall(&id).await).await, Recalled::Recalled);
    // Far away, and taken back.
    let new_year = Recurrence::cron("0 0 1 1 *", "UTC").unwrap();
    walk.again(async || producer.send_recurring("happy new year", &new_year).await).await;
    for recurring in broker.recurring().unwrap() {
        walk.again(async || broker.cancel_recurring(&recurring.id).await).await;
    }
    // So many that the alarm rings for some, although others may be found due without it.
    for n in 20..35 {
        walk.sent.insert(n);
        walk.again(async || producer.send(numbered(n).delay(Duration::from_secs(n - 19))).await).await;
    }
    for step in 1..=15 {
        walk.clock.advance(Duration::from_secs(1));
        until("the next delayed message", || count() == before + step).await;
    }
}

/// In a group of its own: what it refuses is thrown away.
async fn reject_and_purge(walk: &Walk) {
    let broker = walk.broker.clone();
    let producer = walk.again(async || broker.producer("refused").await).await;
    walk.again(async || producer.send_batch(vec![numbered(1), numbered(2)]).await).await;
    let mut consumer = walk.again(async || broker.consumer("refusers").subscribe("refused").build().await).await;
    let letters = broker.dead_letters("refusers").unwrap();
    while letters.count().unwrap() < 2 {
        if let Err(error) = soon("an answer", next(&mut consumer).await.reject("no")).await {
            walk.mishap(&error);
            walk.clock.advance(Duration::from_secs(1));
        }
    }
    for offset in [0, 1] {
        walk.again(async || letters.purge_one(QueueOffset::new(offset)).await).await;
    }
    assert_eq!(letters.count().unwrap(), 0);
}

/// In a group of its own: the oldest messages make way for those that come.
async fn overflow(walk: &Walk) {
    let broker = walk.broker.clone();
    let spec = || TopicSpec::new("short").queues(1).max_length(MaxLength::of_messages(2));
    walk.again(async || broker.create_topic(spec()).await).await;
    let producer = walk.again(async || broker.producer("short").await).await;
    drop(walk.again(async || broker.consumer("short-readers").subscribe("short").build().await).await);
    for n in 0..5 {
        loop {
            match soon("an answer", producer.send(numbered(n))).await {
                Ok(_) => break,
                // Whoever was asked for room lost the question: nothing is stored.
                Err(error) if error.kind() == ErrorKind::NotStored => {}
                Err(error) => walk.mishap(&error),
            }
        }
    }
    assert_eq!(broker.dead_letters("short-readers").unwrap().count().unwrap(), 3);
}

/// In a group of its own: each message that ends becomes one dead letter.
async fn expire(walk: &Walk) {
    let broker = walk.broker.clone();
    let producer = walk.again(async || broker.producer("ending").await).await;
    drop(walk.again(async || broker.consumer("enders").subscribe("ending").build().await).await);
    let letters = broker.dead_letters("enders").unwrap();
    // Far away, and taken back.
    let new_year = Recurrence::cron("0 0 1 1 *", "UTC").unwrap();
    walk.again(async || producer.send_recurring("happy new year", &new_year).await).await;
    for recurring in broker.recurring().unwrap() {
        walk.again(async || broker.cancel_recurring(&recurring.id).await).await;
    }
    // So many that the alarm rings for some, although others may be found at their end without it.
    let count = 15;
    for n in 0..count {
        let message = || numbered(n).ttl(Duration::from_secs(n + 1));
        walk.again(async || producer.send(message()).await).await;
    }
    soon("the dead letters", async {
        for step in 1.. {
            walk.clock.advance(Duration::from_secs(1));
            // What a panic interrupts is told again a second later.
            for _ in 0..1000 {
                if letters.count().unwrap() >= count.min(step) {
                    break;
                }
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
            if letters.count().unwrap() >= count {
                break;
            }
        }
    })
    .await;
    assert_eq!(letters.count().unwrap(), count, "each once");
}

async fn transact(store: &Store, walk: &mut Walk) {
    let broker = walk.broker.clone();
    let (asked, mut questions) = tokio::sync::watch::channel(0);
    let listen = |decision: Decision| {
        let (broker, asked) = (broker.clone(), asked.clone());
        let listener = move |_: HalfMessage| {
            asked.send_modify(|count| *count += usize::from(decision == Decision::Commit));
            Some(decision)
        };
        async move || broker.transaction_producer("producers", "orders", listener.clone()).await
    };
    let transactions = walk.again(listen(Decision::Rollback)).await;
    walk.sent.insert(50);
    let committed = walk.again(async || transactions.begin(numbered(50)).await).await;
    walk.again(async || committed.commit().await).await;
    let rolled_back = walk.again(async || transactions.begin(numbered(51)).await).await;
    walk.again(async || rolled_back.rollback().await).await;
    store.faults.fail_always(Operation::Apply, Fault::Refuse(StorageKind::Full));
    loop {
        let refused = soon("an answer", transactions.begin(numbered(52))).await.unwrap_err();
        if refused.kind() == ErrorKind::Full {
            break;
        }
        walk.mishap(&refused);
    }
    store.faults.clear(Operation::Apply);
    walk.sent.insert(53);
    let checked = walk.again(async || transactions.begin(numbered(53)).await).await;
    drop(transactions);
    let alive = walk.again(listen(Decision::Commit)).await;
    let (id, end) = (checked.id(), walk.sent.len() as u64);
    walk.clock.advance(Duration::from_secs(6));
    soon("the check", questions.wait_for(|count| *count > 0)).await.unwrap();
    // The answer may have been the request that was lost; it must not have been the dead producer's.
    walk.again(async || alive.end(id, Decision::Commit).await).await;
    let count = || -> u64 { broker.describe_topic("orders").unwrap().queues.iter().map(|q| q.end.get()).sum() };
    until("the committed message", || count() == end).await;
}
