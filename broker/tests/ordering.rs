//! Messages of one sharding key are consumed in the order of their sends, by one member at a time, whoever comes and
//! goes; and none is lost on the way.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use common::store::{Kind, Store};
use common::{next, soon};
use cuemq::{Broker, ErrorKind, Flush, Message, QueueKey, Received, TopicSpec, WorkerHandle};
use tokio::sync::watch;

on_every_engine!(
    keys_keep_their_order_while_members_come_and_go,
    a_member_that_is_dropped_costs_repetitions_only,
    enqueued_messages_keep_the_order_of_their_calls,
);

/// As the others, but the handlers run on the program's own threads.
#[test]
fn keys_keep_their_order_on_the_programs_own_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
    let test = async {
        let broker = open(&Store::new(Kind::Memory)).await;
        let (witness, mut completed) = Witness::new();
        let mut running = Vec::new();
        for _ in 0..3 {
            let consumer = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
            running.push(tokio::spawn(consumer.run(4, handler(&witness))));
        }
        produce(&broker).await;
        soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
        broker.shutdown().await.unwrap();
        for run in running {
            let ended = soon("the end of the consumer", run).await.unwrap().unwrap_err();
            assert_eq!(ended.kind(), ErrorKind::Closed, "{ended}");
        }
        witness.finished();
        assert_eq!(witness.seen.lock().unwrap().repetitions, 0);
    };
    runtime.block_on(test);
}

const KEYS: u64 = 24;
const PER_KEY: u64 = 20;

/// What the handlers of all members saw.
struct Witness {
    seen: Mutex<Seen>,
    completed: watch::Sender<u64>,
}

#[derive(Default)]
struct Seen {
    /// Queues with a handler at work.
    at_work: BTreeSet<QueueKey>,
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

    fn begins(&self, received: &Received) {
        let mut seen = self.seen.lock().unwrap();
        if !seen.at_work.insert(received.queue().clone()) {
            seen.wrong.push(format!("queue {} has two holders", received.queue()));
        }
    }

    fn completes(&self, received: &Received) {
        let mut seen = self.seen.lock().unwrap();
        seen.at_work.remove(received.queue());
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

    fn finished(&self) {
        let seen = self.seen.lock().unwrap();
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        assert_eq!(seen.last.len() as u64, KEYS);
        assert!(seen.last.values().all(|last| *last == PER_KEY - 1), "{:?}", seen.last);
    }
}

fn message(key: u64, number: u64) -> Message {
    Message::new(format!("{key}/{number}")).sharding_key(format!("key{key}")).property("number", number.to_string())
}

/// Four producers at a time, six keys each.
async fn produce(broker: &Broker) {
    let producer = broker.producer("orders").await.unwrap();
    let one = async |first: u64| {
        for number in 0..PER_KEY {
            for key in (first..KEYS).step_by(4) {
                producer.send(message(key, number)).await.unwrap();
            }
        }
    };
    tokio::join!(one(0), one(1), one(2), one(3));
}

async fn join(broker: &Broker, witness: &Arc<Witness>) -> WorkerHandle {
    let consumer = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    consumer.spawn(4, handler(witness))
}

type Handled = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

fn handler(witness: &Arc<Witness>) -> impl Fn(Received) -> Handled + Send + Sync + 'static {
    let witness = Arc::clone(witness);
    move |received| {
        let witness = Arc::clone(&witness);
        Box::pin(async move {
            witness.begins(&received);
            for _ in 0..received.offset().get() % 4 {
                tokio::task::yield_now().await;
            }
            witness.completes(&received);
            Ok(())
        })
    }
}

async fn open(store: &Store) -> Broker {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(8).flush(Flush::Buffered)).await.unwrap();
    broker
}

async fn keys_keep_their_order_while_members_come_and_go(store: Store) {
    let broker = open(&store).await;
    let (witness, mut completed) = Witness::new();
    let consume = async {
        let mut members = vec![join(&broker, &witness).await];
        for round in 1..=10u64 {
            let enough = round * KEYS * PER_KEY / 12;
            soon("more completions", completed.wait_for(|count| *count >= enough)).await.unwrap();
            members.push(join(&broker, &witness).await);
            if round % 3 == 0 {
                members.push(join(&broker, &witness).await);
            }
            let leaving = members.remove(usize::try_from(round).unwrap() % members.len());
            leaving.stop();
            leaving.join().await.unwrap();
        }
        soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
        members
    };
    let ((), members) = tokio::join!(produce(&broker), consume);
    for member in members {
        member.stop();
        member.join().await.unwrap();
    }
    witness.finished();
    assert_eq!(witness.seen.lock().unwrap().repetitions, 0, "members that leave in peace cost no repetition");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn a_member_that_is_dropped_costs_repetitions_only(store: Store) {
    let broker = open(&store).await;
    produce(&broker).await;
    let (witness, mut completed) = Witness::new();
    for round in 0..4 {
        let mut rude = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
        for taken in 0..10 {
            let delivery = next(&mut rude).await;
            witness.begins(&delivery);
            witness.completes(&delivery);
            if taken < 8 {
                delivery.ack().await.unwrap();
            } else {
                // Done, and never acknowledged: the member is gone before.
                std::mem::forget(delivery);
            }
        }
        drop(rude);
        assert_eq!(witness.seen.lock().unwrap().repetitions, round * 2, "only what was not acknowledged");
        let mut polite = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
        for _ in 0..16 {
            let delivery = next(&mut polite).await;
            witness.begins(&delivery);
            witness.completes(&delivery);
            delivery.ack().await.unwrap();
        }
    }
    let last = join(&broker, &witness).await;
    soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
    last.stop();
    last.join().await.unwrap();
    witness.finished();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn enqueued_messages_keep_the_order_of_their_calls(store: Store) {
    let broker = open(&store).await;
    let producer = broker.producer("orders").await.unwrap();
    let mut pending = Vec::new();
    for number in 0..PER_KEY {
        for key in 0..KEYS {
            pending.push(producer.enqueue(message(key, number)).unwrap());
        }
    }
    let (witness, mut completed) = Witness::new();
    let member = join(&broker, &witness).await;
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    soon("the last completion", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
    member.stop();
    member.join().await.unwrap();
    witness.finished();
    broker.shutdown().await.unwrap();
}
