//! In key order a sharding key's messages follow each other, whoever works on them; a key that is stuck or fails holds
//! back itself alone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, read_all, soon, text};
use cuemq::{Batch, Broker, Consumer, Flush, Message, Order, Received, RetryPolicy, TopicSpec};
use tokio::sync::watch;

on_every_engine!(
    a_key_waits_for_itself_alone,
    a_batch_has_one_message_of_a_key,
    a_dropped_message_comes_again_before_its_key_goes_on,
    a_failing_handler_holds_back_its_key_until_the_dead_letter,
    one_hanging_key_among_many_delays_nobody,
    keys_keep_their_order_while_members_come_and_go,
    messages_of_one_queue_one_at_a_time,
);

async fn open(store: &Store, queues: u32) -> Broker {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(queues).flush(Flush::Buffered)).await.unwrap();
    broker
}

/// Sends messages named by key and number; those that begin with `-` have no key.
async fn send(broker: &Broker, names: &[&str]) {
    let producer = broker.producer("orders").await.unwrap();
    for name in names {
        let message = Message::new((*name).to_owned());
        let keyed = if name.starts_with('-') { message } else { message.sharding_key(&name[..1]) };
        producer.send(keyed).await.unwrap();
    }
}

async fn join(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").order(Order::Key).build().await.unwrap()
}

async fn a_key_waits_for_itself_alone(store: Store) {
    let broker = open(&store, 1).await;
    send(&broker, &["a1", "a2", "b1", "-1", "a3", "b2", "-2"]).await;
    let mut consumer = join(&broker).await;
    let mut out = BTreeMap::new();
    for expected in ["a1", "b1", "-1", "-2"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        out.insert(expected, delivery);
    }
    assert_nothing(&mut consumer, "both keys have one out");
    out.remove("-1").unwrap().ack().await.unwrap();
    assert_nothing(&mut consumer, "one without a key frees nothing");
    out.remove("b1").unwrap().ack().await.unwrap();
    let b2 = next(&mut consumer).await;
    assert_eq!(text(&b2), "b2");
    send(&broker, &["a4", "c1"]).await;
    let c1 = next(&mut consumer).await;
    assert_eq!(text(&c1), "c1", "what comes later is not held back by a");
    out.remove("a1").unwrap().ack().await.unwrap();
    for expected in ["a2", "a3", "a4"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected);
        assert_nothing(&mut consumer, "one of a key at a time");
        delivery.ack().await.unwrap();
    }
    for delivery in out.into_values().chain([b2, c1]) {
        delivery.ack().await.unwrap();
    }
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn batch(consumer: &mut Consumer, most: usize) -> Batch {
    soon("the next messages", consumer.next_messages(most)).await.unwrap()
}

async fn a_batch_has_one_message_of_a_key(store: Store) {
    let broker = open(&store, 1).await;
    send(&broker, &["a1", "a2", "b1", "-1", "a3", "b2", "-2", "c1"]).await;
    let mut consumer = join(&broker).await;
    let first = batch(&mut consumer, 3).await;
    assert_eq!(bodies(&first), ["a1", "b1", "-1"]);
    let rest = batch(&mut consumer, 10).await;
    assert_eq!(bodies(&rest), ["-2", "c1"]);
    assert_nothing(&mut consumer, "the others wait for their keys");
    first.ack().await.unwrap();
    let second = batch(&mut consumer, 10).await;
    assert_eq!(bodies(&second), ["a2", "b2"]);
    let mut parts = second.into_deliveries();
    parts.remove(0).ack().await.unwrap();
    let a3 = batch(&mut consumer, 10).await;
    assert_eq!(bodies(&a3), ["a3"]);
    a3.ack().await.unwrap();
    rest.ack().await.unwrap();
    parts.remove(0).ack().await.unwrap();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn a_dropped_message_comes_again_before_its_key_goes_on(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, &["a1", "a2", "b1", "b2"]).await;
    let mut consumer = join(&broker).await;
    drop(next(&mut consumer).await);
    for expected in ["b1", "b2"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), expected, "b goes on");
        delivery.ack().await.unwrap();
    }
    assert_nothing(&mut consumer, "a waits for a1");
    clock.advance(Duration::from_secs(1));
    let a1 = next(&mut consumer).await;
    assert_eq!((text(&a1).as_str(), a1.attempts()), ("a1", 1));
    a1.again_after(Duration::from_secs(7));
    clock.advance(Duration::from_millis(6_999));
    assert_nothing(&mut consumer, "a waits for a1");
    clock.advance(Duration::from_millis(1));
    let a1 = next(&mut consumer).await;
    assert_eq!((text(&a1).as_str(), a1.attempts()), ("a1", 2));
    a1.retry_in(Duration::from_secs(60)).await.unwrap();
    let a2 = next(&mut consumer).await;
    assert_eq!(text(&a2), "a2", "a retry gives up its place");
    a2.ack().await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn a_failing_handler_holds_back_its_key_until_the_dead_letter(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, &["a1", "a2", "a3", "b1", "-1", "b2"]).await;
    let policy = RetryPolicy::Fixed { pause: Duration::from_secs(600), redeliveries: 20 };
    let consumer = broker.consumer("group").subscribe("orders").order(Order::Key).retry_policy(policy);
    let (seen, mut calls) = (Arc::new(Mutex::new(Vec::new())), watch::channel(0));
    let record = Arc::clone(&seen);
    let worker = consumer.build().await.unwrap().spawn(8, move |received| {
        record.lock().unwrap().push((text(&received), received.attempts()));
        calls.0.send_modify(|count| *count += 1);
        let fails = text(&received) == "a2";
        async move { if fails { Err("a2 fails") } else { Ok(()) } }
    });
    // a1, a2, b1, -1, b2 and twenty redeliveries, more than the default; after the dead letter a3.
    for redelivery in 0..20 {
        soon("the next call", calls.1.wait_for(|count| *count >= 5 + redelivery)).await.unwrap();
        soon("the pause of the failed message", async {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        clock.advance(Duration::from_secs(1));
    }
    soon("a3", calls.1.wait_for(|count| *count == 26)).await.unwrap();
    worker.stop();
    worker.join().await.unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let of_a: Vec<_> = seen.iter().filter(|(name, _)| name.starts_with('a')).cloned().collect();
    let mut expected = vec![("a1".to_owned(), 0)];
    expected.extend((0..=20).map(|attempts| ("a2".to_owned(), attempts)));
    expected.push(("a3".to_owned(), 0));
    assert_eq!(of_a, expected);
    let dead = read_all(&broker, "%DLQ%group").await;
    assert_eq!(bodies(&dead), ["a2"]);
    assert_eq!((dead[0].attempts(), dead[0].sharding_key()), (21, Some("a")));
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

type Handled = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

async fn one_hanging_key_among_many_delays_nobody(store: Store) {
    const KEYS: usize = 10_000;
    let broker = open(&store, 4).await;
    let producer = broker.producer("orders").await.unwrap();
    for round in 0..2 {
        for first in (0..KEYS).step_by(1000) {
            let key = |n: usize| Message::new(format!("{n}/{round}")).sharding_key(format!("key{n}"));
            producer.send_batch((first..first + 1000).map(key).collect()).await.unwrap();
        }
    }
    let (go_on, (done, mut completed)) = (Arc::new(tokio::sync::Notify::new()), watch::channel(0));
    let (seen, released) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::clone(&go_on));
    let (record, done) = (Arc::clone(&seen), Arc::new(done));
    let worker = join(&broker).await.spawn(64, move |received: Received| -> Handled {
        let (record, done, go_on) = (Arc::clone(&record), Arc::clone(&done), Arc::clone(&released));
        Box::pin(async move {
            if text(&received) == "4711/0" {
                go_on.notified().await;
            }
            record.lock().unwrap().insert(text(&received));
            done.send_modify(|count| *count += 1);
            Ok(())
        })
    });
    soon("everything but one key", completed.wait_for(|count| *count == 2 * KEYS - 2)).await.unwrap();
    assert!(!seen.lock().unwrap().iter().any(|name| name.starts_with("4711/")), "that key waits for itself");
    go_on.notify_one();
    soon("the last key", completed.wait_for(|count| *count == 2 * KEYS)).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 2 * KEYS);
    worker.stop();
    worker.join().await.unwrap();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

const KEYS: u64 = 24;
const PER_KEY: u64 = 20;

/// The last number of each key, and what was wrong: a handler that panics is only called again.
#[derive(Default)]
struct Witness {
    last: BTreeMap<String, u64>,
    at_work: BTreeSet<String>,
    most_at_work: usize,
    wrong: Vec<String>,
}

async fn keys_keep_their_order_while_members_come_and_go(store: Store) {
    let broker = open(&store, 4).await;
    let (witness, (done, mut completed)) = (Arc::<Mutex<Witness>>::default(), watch::channel(0u64));
    let done = Arc::new(done);
    let join = async || {
        let (witness, done) = (Arc::clone(&witness), Arc::clone(&done));
        join(&broker).await.spawn(8, move |received: Received| -> Handled {
            let (witness, done) = (Arc::clone(&witness), Arc::clone(&done));
            Box::pin(async move {
                let key = received.sharding_key().unwrap().to_owned();
                {
                    let mut seen = witness.lock().unwrap();
                    if !seen.at_work.insert(key.clone()) {
                        seen.wrong.push(format!("key {key} is at work twice"));
                    }
                    seen.most_at_work = seen.most_at_work.max(seen.at_work.len());
                }
                for _ in 0..received.offset().get() % 5 {
                    tokio::task::yield_now().await;
                }
                let mut seen = witness.lock().unwrap();
                seen.at_work.remove(&key);
                let number: u64 = text(&received).parse().unwrap();
                let expected = seen.last.get(&key).map_or(0, |last| last + 1);
                if number != expected {
                    seen.wrong.push(format!("key {key} is at {number} instead of {expected}"));
                }
                seen.last.insert(key, number);
                done.send_modify(|count| *count += 1);
                Ok(())
            })
        })
    };
    let producer = broker.producer("orders").await.unwrap();
    let produce = async {
        for number in 0..PER_KEY {
            for key in 0..KEYS {
                producer.send(Message::new(number.to_string()).sharding_key(format!("key{key}"))).await.unwrap();
            }
        }
    };
    let consume = async {
        let mut members = vec![join().await];
        for round in 1..=8u64 {
            soon("more", completed.wait_for(|count| *count >= round * KEYS * PER_KEY / 10)).await.unwrap();
            members.push(join().await);
            let leaving = members.remove(usize::try_from(round).unwrap() % members.len());
            leaving.stop();
            leaving.join().await.unwrap();
        }
        soon("the last one", completed.wait_for(|count| *count == KEYS * PER_KEY)).await.unwrap();
        members
    };
    let ((), members) = tokio::join!(produce, consume);
    for member in members {
        member.stop();
        member.join().await.unwrap();
    }
    {
        let seen = witness.lock().unwrap();
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
        let complete = seen.last.len() as u64 == KEYS && seen.last.values().all(|last| *last == PER_KEY - 1);
        assert!(complete, "{:?}", seen.last);
        assert!(seen.most_at_work > 1, "keys are worked on at the same time");
    }
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn messages_of_one_queue_one_at_a_time(store: Store) {
    let broker = open(&store, 1).await;
    send(&broker, &["a1", "b1"]).await;
    let consumer = broker.consumer("group").subscribe("orders").order(Order::Queue);
    let mut consumer = consumer.build().await.unwrap();
    let first = batch(&mut consumer, 10).await;
    assert_eq!(bodies(&first), ["a1"]);
    assert_nothing(&mut consumer, "the next one waits");
    first.ack().await.unwrap();
    assert_eq!(bodies(&batch(&mut consumer, 10).await), ["b1"]);
    broker.shutdown().await.unwrap();
}
