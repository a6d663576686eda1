//! The number of a topic's queues changes while it is in use: nothing is lost, and each key keeps its order.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::checker::{Checker, number_of, numbered};
use common::store::Store;
use common::{Settler, assert_nothing, manual_clock, next, read_all, soon, take, text};
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::storage_api::{TopicName, WriteBatch};
use cuemq::{
    Broker, Decision, ErrorKind, Flush, HalfMessage, MaxLength, Message, Order, Overflow, QueueId, QueueKey,
    QueueOffset, Received, ResetTo, Timestamp, TopicSpec, WorkerHandle,
};
use tokio::sync::watch;

on_every_engine!(
    keys_keep_their_order_while_queues_come_and_go,
    keys_keep_their_order_when_they_are_consumed_in_parallel,
    keys_keep_their_order_in_queues_of_limited_length,
    a_kill_in_the_middle,
    a_group_that_begins_later_keeps_the_order,
    nothing_behind_a_change_comes_before_everything_in_front_of_it,
    a_move_back_in_front_of_a_change_holds_up_what_was_read_behind_it,
    a_group_without_order_misses_nothing,
    what_was_delayed_or_half_sent_finds_the_new_queues,
    a_change_that_is_not_stored_leaves_the_topic_as_it_was,
    changes_are_bounded,
    queues_that_have_nothing_left_are_read_no_more,
);

const KEYS: u64 = 24;
const PER_KEY: u64 = 30;

/// What the handlers of all members saw.
struct Witness {
    seen: Mutex<Seen>,
    completed: watch::Sender<u64>,
}

#[derive(Default)]
struct Seen {
    /// The last number of each key whose handler completed.
    last: BTreeMap<String, u64>,
    repetitions: u64,
    /// A handler that panics is only called again, so it notes here what is wrong.
    wrong: Vec<String>,
}

impl Witness {
    fn new() -> (Arc<Self>, watch::Receiver<u64>) {
        let (completed, count) = watch::channel(0);
        (Arc::new(Self { seen: Mutex::default(), completed }), count)
    }

    fn completes(&self, received: &Received) {
        let mut seen = self.seen.lock().unwrap();
        let key = received.sharding_key().unwrap().to_owned();
        let number: u64 = received.property("number").unwrap().parse().unwrap();
        let expected = seen.last.get(&key).map_or(0, |last| last + 1);
        if number < expected {
            seen.repetitions += 1;
            return;
        }
        if number > expected {
            seen.wrong.push(format!("key {key} is at {number} before {expected}"));
        }
        seen.last.insert(key, number);
        drop(seen);
        self.completed.send_modify(|count| *count += 1);
    }

    /// Everything came, in order; returns how many came again.
    fn finished(&self) -> u64 {
        let seen = self.seen.lock().unwrap();
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        assert_eq!(seen.last.len() as u64, KEYS);
        assert!(seen.last.values().all(|last| *last == PER_KEY - 1), "{:?}", seen.last);
        seen.repetitions
    }
}

fn message(key: u64, number: u64) -> Message {
    Message::new(format!("{key}/{number}")).sharding_key(format!("key{key}")).property("number", number.to_string())
}

fn orders(queues: u32) -> TopicSpec {
    TopicSpec::new("orders").queues(queues).flush(Flush::Buffered)
}

async fn open(store: &Store, queues: u32) -> Broker {
    let broker = store.open().await;
    broker.create_topic(orders(queues)).await.unwrap();
    broker
}

/// Four producers at a time, six keys each: two that await each message, one that does not, one that sends batches
/// across queues.
async fn produce(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    let keys = |first: u64| (first..KEYS).step_by(4);
    let one_by_one = async |first: u64| {
        for number in numbers.clone() {
            for key in keys(first) {
                producer.send(message(key, number)).await.unwrap();
            }
        }
    };
    let at_once = async |first: u64| {
        for number in numbers.clone() {
            let pending: Vec<_> = keys(first).map(|key| producer.enqueue(message(key, number)).unwrap()).collect();
            for receipt in pending {
                receipt.await.unwrap();
            }
        }
    };
    let in_batches = async |first: u64| {
        for number in numbers.clone() {
            let batch = || keys(first).map(|key| message(key, number)).collect();
            while let Err(refused) = producer.send_batch(batch()).await {
                // One that waited for one queue, and would go to several of now.
                assert!(
                    refused.kind() == ErrorKind::NotStored && refused.to_string().contains("send it again"),
                    "{refused}"
                );
            }
        }
    };
    tokio::join!(one_by_one(0), one_by_one(1), at_once(2), in_batches(3));
}

async fn join(broker: &Broker, witness: &Arc<Witness>, order: Order) -> WorkerHandle {
    let consumer = broker.consumer("group").subscribe("orders").order(order).build().await.unwrap();
    consumer.spawn(8, handler(witness))
}

type Handled = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

fn handler(witness: &Arc<Witness>) -> impl Fn(Received) -> Handled + Send + Sync + 'static {
    let witness = Arc::clone(witness);
    move |received| {
        let witness = Arc::clone(&witness);
        Box::pin(async move {
            for _ in 0..received.offset().get() % 4 {
                tokio::task::yield_now().await;
            }
            witness.completes(&received);
            Ok(())
        })
    }
}

async fn leave(members: Vec<WorkerHandle>) {
    for member in members {
        member.stop();
        member.join().await.unwrap();
    }
}

/// How many queues are written to, and how many are read.
fn counts(broker: &Broker) -> (u32, usize) {
    let topic = broker.describe_topic("orders").unwrap();
    (topic.written_queues, topic.queues.len())
}

async fn keys_keep_their_order_while_queues_come_and_go(store: Store) {
    keys_keep_their_order(store, Order::Queue, orders(4)).await;
}

async fn keys_keep_their_order_when_they_are_consumed_in_parallel(store: Store) {
    keys_keep_their_order(store, Order::Key, orders(4)).await;
}

async fn keys_keep_their_order_in_queues_of_limited_length(store: Store) {
    let limit = MaxLength::of_messages(KEYS * PER_KEY).policy(Overflow::RejectNew);
    keys_keep_their_order(store, Order::Key, orders(4).max_length(limit)).await;
}

async fn keys_keep_their_order(store: Store, order: Order, spec: TopicSpec) {
    let broker = store.open().await;
    broker.create_topic(spec).await.unwrap();
    let (witness, mut completed) = Witness::new();
    let change = async {
        let mut members = vec![join(&broker, &witness, order).await, join(&broker, &witness, order).await];
        let steps = [(4, 16), (16, 4), (4, 1), (1, 8)];
        for (round, (from, to)) in (1..).zip(steps) {
            let enough = round * KEYS * PER_KEY / 6;
            soon("more completions", completed.wait_for(|count| *count >= enough)).await.unwrap();
            assert_eq!(counts(&broker).0, from);
            let topic = soon("the change", broker.set_queues("orders", to)).await.unwrap();
            assert_eq!(topic.written_queues, to);
            let readable = topic.queues.len();
            assert!((usize::try_from(to).unwrap()..=16).contains(&readable), "{readable}");
            members.push(join(&broker, &witness, order).await);
        }
        soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
        members
    };
    let ((), members) = tokio::join!(produce(&broker, 0..PER_KEY), change);
    leave(members).await;
    assert_eq!(witness.finished(), 0, "members that leave in peace and changes cost no repetition");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    assert_eq!(read_all(&broker, "orders").await.len() as u64, KEYS * PER_KEY);
    broker.shutdown().await.unwrap();
}

async fn a_kill_in_the_middle(store: Store) {
    let mut broker = open(&store, 4).await;
    let (witness, mut completed) = Witness::new();
    let mut sent = 0;
    for (round, queues) in (1..).zip([16, 3, 7]) {
        let members = vec![join(&broker, &witness, Order::Queue).await, join(&broker, &witness, Order::Key).await];
        produce(&broker, sent..sent + 5).await;
        broker.set_queues("orders", queues).await.unwrap();
        produce(&broker, sent + 5..sent + 10).await;
        sent += 10;
        soon("some completions", completed.wait_for(|count| *count >= (round * 10 - 8) * KEYS)).await.unwrap();
        store.kill(broker).await;
        drop(members);
        broker = store.open().await;
        assert_eq!(counts(&broker).0, queues);
    }
    let members = vec![join(&broker, &witness, Order::Queue).await, join(&broker, &witness, Order::Key).await];
    soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
    // What was acknowledged and lost with the process may still be coming again.
    soon("the last acknowledgement", async {
        while broker.describe_group("group").await.unwrap().lag() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    leave(members).await;
    witness.finished();
    broker.shutdown().await.unwrap();
}

async fn a_group_that_begins_later_keeps_the_order(store: Store) {
    let broker = open(&store, 4).await;
    for (round, queues) in (0..).zip([16, 4, 5]) {
        produce(&broker, round * 10..round * 10 + 10).await;
        broker.set_queues("orders", queues).await.unwrap();
    }
    let broker = store.reopen(broker).await;
    let (witness, mut completed) = Witness::new();
    let members = vec![join(&broker, &witness, Order::Queue).await, join(&broker, &witness, Order::Key).await];
    soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
    leave(members).await;
    assert_eq!(witness.finished(), 0);
    broker.shutdown().await.unwrap();
}

async fn nothing_behind_a_change_comes_before_everything_in_front_of_it(store: Store) {
    let broker = open(&store, 2).await;
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, queues| queues - 1);
    producer.send(numbered(0)).await.unwrap();
    let mut ordered = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    let mut free = broker.consumer("free").subscribe("orders").build().await.unwrap();
    let first = next(&mut ordered).await;
    broker.set_queues("orders", 5).await.unwrap();
    for n in 1..5 {
        let receipt = producer.send(numbered(n)).await.unwrap();
        assert_eq!(receipt.queue.get(), 4);
    }
    assert_eq!(take(&mut free, 5).await.len(), 5, "who asks for no order waits for nothing");
    assert_nothing(&mut ordered, "the first is not done");
    let mut late = broker.consumer("late").subscribe("orders").ordered(true).build().await.unwrap();
    let late_first = next(&mut late).await;
    assert_eq!(number_of(&late_first), 0);
    assert_nothing(&mut late, "nor is it in a group that begins now");
    first.ack().await.unwrap();
    let rest: Vec<u64> = take(&mut ordered, 4).await.iter().map(number_of).collect();
    assert_eq!(rest, [1, 2, 3, 4]);
    broker.shutdown().await.unwrap();
}

async fn a_move_back_in_front_of_a_change_holds_up_what_was_read_behind_it(store: Store) {
    for in_hand in [false, true] {
        let clock = manual_clock();
        let broker = store.open_at(&clock).await;
        let topic = format!("orders-{in_hand}");
        broker.create_topic(TopicSpec::new(&topic).queues(2)).await.unwrap();
        let producer = broker.producer(&topic).await.unwrap().with_selector(|_, queues| queues - 1);
        producer.send(numbered(0)).await.unwrap();
        let mut member = broker.consumer("group").subscribe(&topic).ordered(true).build().await.unwrap();
        take(&mut member, 1).await;
        broker.set_queues(&topic, 5).await.unwrap();
        producer.send(numbered(1)).await.unwrap();
        producer.send(numbered(2)).await.unwrap();
        let mut hand = Some(next(&mut member).await);
        if !in_hand {
            hand.take().unwrap().again_after(Duration::from_secs(1));
        }
        // Nothing of its own queue is done yet: that one is not moved.
        let plan = broker.reset_group("group", &topic, ResetTo::Begin).await.unwrap();
        let moved = plan.confirm().await.unwrap();
        assert_eq!(moved.iter().map(|made| made.queue.queue.get()).collect::<Vec<_>>(), [1]);
        clock.advance(Duration::from_secs(1));
        let first = next(&mut member).await;
        assert_eq!(number_of(&first), 0);
        assert_nothing(&mut member, "the first is not done once more");
        if let Some(hand) = hand {
            assert_eq!(hand.ack().await.unwrap_err().kind(), ErrorKind::Stale, "it comes again in its turn");
        }
        first.ack().await.unwrap();
        assert_eq!(take(&mut member, 2).await.iter().map(number_of).collect::<Vec<_>>(), [1, 2]);
        drop(member);
        broker.delete_topic(&topic).await.unwrap();
        broker.shutdown().await.unwrap();
    }
}

async fn a_group_without_order_misses_nothing(store: Store) {
    let broker = open(&store, 4).await;
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut checker = Checker::default();
    for (round, queues) in (0..).zip([16, 4, 9, 1]) {
        for n in round * 40..round * 40 + 40 {
            producer.send(numbered(n)).await.unwrap();
            if n % 40 == 20 {
                broker.set_queues("orders", queues).await.unwrap();
            }
        }
        for received in take(&mut consumer, 30).await {
            checker.delivered(&received);
        }
    }
    for received in take(&mut consumer, 40).await {
        checker.delivered(&received);
    }
    checker.complete(0..160);
    assert_eq!(checker.duplicates(), 0);
    assert_nothing(&mut consumer, "everything came once");
    broker.shutdown().await.unwrap();
}

async fn what_was_delayed_or_half_sent_finds_the_new_queues(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let keyed = |body: &str| Message::new(body.to_owned()).sharding_key("customer 5");
    let before = producer.send(keyed("before")).await.unwrap();
    producer.send(keyed("delayed").delay(Duration::from_secs(1))).await.unwrap();
    let last = producer.clone().with_selector(|_, queues| queues - 1);
    last.send(Message::new("last of 4").delay(Duration::from_secs(1))).await.unwrap();
    let halves = broker.transaction_producer("halves", "orders", |_: HalfMessage| None::<Decision>).await.unwrap();
    let half = halves.begin(keyed("half")).await.unwrap();
    broker.set_queues("orders", 3).await.unwrap();
    let after = half.commit().await.unwrap().unwrap();
    assert_ne!(before.queue, after.queue, "the key of this test has another queue afterwards");
    clock.advance(Duration::from_secs(1));
    Settler::new(&broker, &clock).await.settle().await;
    let now = producer.send(keyed("now")).await.unwrap();
    assert_eq!(now.queue, after.queue);
    let all = read_all(&broker, "orders").await;
    let bodies = |queue| all.iter().filter(|m| m.queue().queue == queue).map(text).collect::<Vec<_>>();
    let behind: Vec<String> = bodies(now.queue).into_iter().filter(|body| body != "last of 4").collect();
    assert_eq!(behind, ["half", "delayed", "now"]);
    let old: BTreeSet<u32> = all.iter().map(|m| m.queue().queue.get()).filter(|queue| *queue >= 3).collect();
    assert!(old.is_empty() || before.queue.get() == 3, "nothing new is in a queue that is not written to: {old:?}");
    assert_eq!(all.len(), 5);
    broker.shutdown().await.unwrap();
}

async fn a_change_that_is_not_stored_leaves_the_topic_as_it_was(store: Store) {
    let broker = open(&store, 4).await;
    produce(&broker, 0..10).await;
    let (witness, mut completed) = Witness::new();
    let members = vec![join(&broker, &witness, Order::Queue).await, join(&broker, &witness, Order::Key).await];
    soon("ten of each key", completed.wait_for(|count| *count == 10 * KEYS)).await.unwrap();
    store.faults.fail_always(Operation::Apply, Fault::Refuse(cuemq::storage_api::ErrorKind::Full));
    let refused = broker.set_queues("orders", 16).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    store.faults.clear(Operation::Apply);
    assert_eq!(counts(&broker), (4, 4));
    produce(&broker, 10..20).await;
    soon("twenty of each key", completed.wait_for(|count| *count == 20 * KEYS)).await.unwrap();
    broker.set_queues("orders", 16).await.unwrap();
    produce(&broker, 20..PER_KEY).await;
    soon("all", completed.wait_for(|count| *count == PER_KEY * KEYS)).await.unwrap();
    leave(members).await;
    witness.finished();
    broker.shutdown().await.unwrap();
}

async fn changes_are_bounded(store: Store) {
    let broker = open(&store, 4).await;
    for (queues, says) in [(0, "use 1 to 1024"), (1025, "1025 queues")] {
        let refused = broker.set_queues("orders", queues).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains(says), "{refused}");
    }
    assert_eq!(broker.set_queues("none", 4).await.unwrap_err().kind(), ErrorKind::UnknownTopic);
    assert_eq!(broker.set_queues("orders", 4).await.unwrap().written_queues, 4, "nothing to do");
    broker.producer("orders").await.unwrap().send(numbered(0)).await.unwrap();
    let mut consumer = broker.consumer("slow").subscribe("orders").ordered(true).build().await.unwrap();
    let held = next(&mut consumer).await;
    for n in 0..16 {
        broker.set_queues("orders", if n % 2 == 0 { 5 } else { 4 }).await.unwrap();
    }
    let refused = broker.set_queues("orders", 5).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full);
    assert!(
        refused.to_string().contains("changed 16 times") && refused.to_string().contains("group slow"),
        "{refused}"
    );
    held.ack().await.unwrap();
    for n in 0..4 {
        broker.set_queues("orders", if n % 2 == 0 { 5 } else { 4 }).await.unwrap();
    }
    broker.delete_topic("orders").await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    assert_eq!(counts(&broker), (2, 2));
    let broker = store.reopen(broker).await;
    assert_eq!(counts(&broker), (2, 2));
    broker.shutdown().await.unwrap();
}

async fn queues_that_have_nothing_left_are_read_no_more(store: Store) {
    let broker = open(&store, 4).await;
    let mut consumer = broker.consumer("group").subscribe("orders").order(Order::Key).build().await.unwrap();
    broker.set_queues("orders", 16).await.unwrap();
    for queue in 0..10u32 {
        let producer = broker.producer("orders").await.unwrap().with_selector(move |_, _| queue);
        producer.send(queue.to_string()).await.unwrap();
    }
    broker.set_queues("orders", 4).await.unwrap();
    assert_eq!(counts(&broker), (4, 10), "the others never had anything");
    take(&mut consumer, 10).await;
    assert_eq!(counts(&broker), (4, 10), "a group that comes later may want it");
    drop(consumer);
    broker.shutdown().await.unwrap();
    // What retention does with the last two.
    let engine = store.engine();
    let mut batch = WriteBatch::new(Timestamp::MAX);
    for queue in [8, 9] {
        batch
            .trim(&QueueKey::new(TopicName::new("orders").unwrap(), QueueId::new(queue).unwrap()), QueueOffset::new(1));
    }
    engine.apply(batch).unwrap();
    drop(engine);
    let broker = store.open().await;
    assert_eq!(counts(&broker), (4, 8));
    let mut late = broker.consumer("late").subscribe("orders").build().await.unwrap();
    assert_eq!(take(&mut late, 8).await.len(), 8);
    broker.set_queues("orders", 12).await.unwrap();
    assert_eq!(counts(&broker), (12, 12));
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 9);
    assert_eq!(producer.send("again").await.unwrap().offset.unwrap().get(), 1, "offsets go on");
    let mut consumer = broker.consumer("group").subscribe("orders").order(Order::Key).build().await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "again");
    assert_eq!(text(&take(&mut late, 1).await[0]), "again");
    broker.shutdown().await.unwrap();
}
