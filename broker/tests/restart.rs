//! What was acknowledged survives what its level says it survives; what was not is lost as a suffix, never as a hole.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::checker::{Checker, number_of, numbered};
use common::store::{Kind, Store};
use common::{assert_nothing, read_all, run, soon, take};
use cuemq::storage_api::fault::Operation;
use cuemq::{Broker, Flush, QueueKey, TopicSpec};

on_every_engine!(
    acknowledged_messages_survive_kill_after_kill,
    buffered_messages_survive_the_process,
    everything_is_as_it_was_after_many_openings,
);

async fn acknowledged_messages_survive_kill_after_kill(store: Store) {
    let (mut checker, mut acknowledged) = (Checker::default(), BTreeSet::new());
    let mut ends: BTreeMap<QueueKey, u64> = BTreeMap::new();
    let mut broker = store.open().await;
    for cycle in 0..5u64 {
        let producer = broker.producer("orders").await.unwrap();
        let (first, last) = (cycle * 40, cycle * 40 + 40);
        let mut pending: Vec<_> = (first..last).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
        let late = pending.split_off(30);
        for (n, receipt) in (first..).zip(pending) {
            soon("the receipt", receipt).await.unwrap();
            acknowledged.insert(n);
        }
        store.kill(broker).await;
        drop((late, producer));
        broker = store.open().await;
        for queue in broker.describe_topic("orders").unwrap().queues {
            let before = ends.insert(queue.queue.clone(), queue.end.get()).unwrap_or_default();
            assert!(queue.end.get() >= before, "the end of {} fell", queue.queue);
        }
        for received in read_all(&broker, "orders").await {
            let n = checker.delivered(&received);
            assert!(n < last, "message {n} was not sent yet");
        }
        let lost: Vec<_> = acknowledged.iter().filter(|n| !checker.has(**n)).collect();
        assert!(lost.is_empty(), "lost in cycle {cycle}: {lost:?}");
    }
    assert_eq!(checker.count(), read_all(&broker, "orders").await.len(), "what was once seen is still there");
    broker.shutdown().await.unwrap();
}

async fn buffered_messages_survive_the_process(store: Store) {
    let broker = store.builder().flush(Flush::Buffered).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..50 {
        assert_eq!(producer.send(numbered(n)).await.unwrap().level, store.buffered_level());
    }
    store.kill(broker).await;
    drop(producer);
    let broker = store.open().await;
    let numbers: BTreeSet<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    assert_eq!(numbers, (0..50).collect());
    broker.shutdown().await.unwrap();
}

async fn everything_is_as_it_was_after_many_openings(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    broker.create_topic(TopicSpec::new("quick").queues(1).flush(Flush::Buffered)).await.unwrap();
    let first = broker.producer("orders").await.unwrap().send(numbered(0)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    take(&mut consumer, 1).await;
    drop(consumer);
    let describe = async |broker: &Broker| {
        let topics: Vec<_> = broker.topics().iter().map(|topic| broker.describe_topic(topic).unwrap()).collect();
        (topics, broker.groups(), broker.describe_group("group").await.unwrap().queues)
    };
    let mut expected = describe(&broker).await;
    expected.2.retain(|queue| queue.committed.get() > 0);
    let mut broker = broker;
    for _ in 0..6 {
        broker = store.reopen(broker).await;
        let mut found = describe(&broker).await;
        found.2.retain(|queue| queue.committed.get() > 0);
        assert_eq!(found, expected);
        assert_eq!(number_of(&broker.message(first.id.unwrap()).unwrap().unwrap()), 0, "ids keep their meaning");
    }
    broker.shutdown().await.unwrap();
}

/// One queue, one batch per message, nothing synced while the gate is closed.
async fn cut(flush: Flush, keep: usize, messages: u64) -> (Store, Broker) {
    let store = Store::new(Kind::Power);
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1).flush(flush)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let sync = broker.create_topic(TopicSpec::new("synced")).await.unwrap();
    drop(sync);
    let gate = store.faults.hold(Operation::Sync);
    let pending: Vec<_> = (0..messages)
        .map(|n| {
            let before = store.faults.calls(Operation::Apply);
            let receipt = producer.enqueue(numbered(n)).unwrap();
            // One batch each: the next is sent when this one has reached the engine.
            while store.faults.calls(Operation::Apply) == before {
                std::thread::yield_now();
            }
            receipt
        })
        .collect();
    let _settled = broker.describe_topic("orders").unwrap();
    if flush == Flush::Buffered {
        for receipt in pending {
            soon("the receipt", receipt).await.unwrap();
        }
    } else {
        gate.wait_for(1);
        // The last apply may be under way: its end is the end of the actor's turn.
        common::until("the last apply", || broker.describe_topic("orders").unwrap().queues[0].waiting == 0).await;
        drop(pending);
    }
    store.crash(keep);
    drop(gate);
    let _ = broker.shutdown().await;
    drop(producer);
    let broker = store.open().await;
    (store, broker)
}

#[test]
fn a_power_cut_takes_a_suffix_of_what_was_buffered() {
    run(async {
        for keep in 0..8 {
            let (_store, broker) = cut(Flush::Buffered, keep, 6).await;
            let numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
            let expected = u64::try_from(keep.min(6)).unwrap();
            assert_eq!(numbers, (0..expected).collect::<Vec<_>>(), "{keep} batches kept");
            broker.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_power_cut_takes_nothing_that_was_durable() {
    run(async {
        for keep in 0..5 {
            let store = Store::new(Kind::Power);
            let broker = store.open().await;
            let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 0);
            for n in 0..5 {
                producer.send(numbered(n)).await.unwrap();
            }
            let gate = store.faults.hold(Operation::Sync);
            let late: Vec<_> = (5..9).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
            gate.wait_for(1);
            store.crash(keep);
            drop(gate);
            for receipt in late {
                let error = soon("the answer", receipt).await.unwrap_err();
                assert!(!error.is_retryable() || !error.is_certainly_not_applied() || keep < 5, "{error}");
            }
            let _ = broker.shutdown().await;
            drop(producer);
            let broker = store.open().await;
            let numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
            assert!(numbers.len() >= 5, "durable messages were lost: {numbers:?}");
            assert_eq!(numbers, (0..u64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>(), "no hole");
            broker.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_power_cut_leaves_no_offset_above_its_log() {
    run(async {
        for keep in 0..12 {
            offsets_after_cut(keep).await;
        }
    });
}

/// Four messages consumed one by one, none of it synced; then all but the first `keep` batches are lost.
async fn offsets_after_cut(keep: usize) {
    let store = Store::new(Kind::Power);
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1).flush(Flush::Buffered)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    producer.send(numbered(0)).await.unwrap();
    take(&mut consumer, 1).await;
    // A durable write syncs everything before it.
    broker.create_topic(TopicSpec::new("synced")).await.unwrap();
    let gate = store.faults.hold(Operation::Sync);
    for n in 1..5 {
        producer.send(numbered(n)).await.unwrap();
        take(&mut consumer, 1).await;
    }
    store.crash(keep);
    drop(gate);
    drop((consumer, producer));
    let _ = broker.shutdown().await;
    let broker = store.open().await;
    let queue = broker.describe_topic("orders").unwrap().queues[0].clone();
    let group = broker.describe_group("group").await.unwrap();
    let stand = group.queues.iter().find(|lag| lag.queue == queue.queue).unwrap();
    // The batches were: message, acknowledgement, message, acknowledgement ...
    let (messages, acknowledged) = (1 + keep.div_ceil(2).min(4), 1 + (keep / 2).min(4));
    assert_eq!((queue.end.get(), stand.committed.get()), (messages as u64, acknowledged as u64), "{keep} batches kept");
    let producer = broker.producer("orders").await.unwrap();
    for n in 10..12 {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let open: Vec<u64> = take(&mut consumer, 2 + messages - acknowledged).await.iter().map(number_of).collect();
    let expected: Vec<u64> = (acknowledged as u64..messages as u64).chain(10..12).collect();
    assert_eq!(open, expected, "new messages are not taken for old ones");
    assert_nothing(&mut consumer, "everything came");
    broker.shutdown().await.unwrap();
}
