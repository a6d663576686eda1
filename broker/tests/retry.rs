//! A message that was not consumed comes again on the group's schedule, and becomes one dead letter at its end.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{Settler, assert_nothing, manual_clock, next, pass, read_all, soon, take, text};
use cuemq::storage_api::fault::Operation;
use cuemq::{Broker, Consumer, ErrorKind, Message, Received, RetryPolicy, TopicSpec};
use futures_util::stream::{FuturesUnordered, StreamExt};

on_every_engine!(
    sixteen_redeliveries_and_a_dead_letter,
    the_schedule_survives_restarts,
    a_pause_may_be_chosen,
    a_group_has_its_own_policy,
    a_handler_that_fails_is_retried,
    a_failure_in_order_blocks_its_queue_alone,
    without_redeliveries_the_first_failure_is_the_last,
    an_acknowledgement_takes_no_retry_back,
);

/// RocketMQ's pauses, in seconds.
const SCHEDULE_S: [u64; 16] = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

async fn join(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

/// What is the same for every delivery of one message.
fn check_origin(received: &Received, first: &Received) {
    assert_eq!(received.origin_id(), first.id());
    assert_eq!((received.topic(), received.body()), ("orders", first.body()));
    assert_eq!(number_of(received), number_of(first));
    assert_eq!(received.sharding_key(), first.sharding_key());
    assert_eq!(received.born_at(), first.born_at());
}

async fn dead_letters(broker: &Broker) -> Vec<Received> {
    read_all(broker, "%DLQ%group").await
}

async fn walk(store: &Store, restart_after: &[u32]) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    broker.producer("orders").await.unwrap().send(numbered(7).sharding_key("s")).await.unwrap();
    let (mut settler, mut consumer) = (Settler::new(&broker, &clock).await, join(&broker).await);
    let start = clock.now();
    let mut first = None;
    for (failures, seconds) in (1..).zip(SCHEDULE_S) {
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempts(), failures - 1, "attempts are exact");
        check_origin(&delivery, first.get_or_insert((*delivery).clone()));
        delivery.retry_later(None).await.unwrap();
        if restart_after.contains(&failures) {
            drop((consumer, settler));
            if failures % 2 == 0 {
                broker.shutdown().await.unwrap();
            } else {
                store.kill(broker).await;
            }
            broker = store.open_at(&clock).await;
            (settler, consumer) = (Settler::new(&broker, &clock).await, join(&broker).await);
        }
        pass(&mut settler, &clock, &mut consumer, Duration::from_secs(seconds)).await;
    }
    let last = next(&mut consumer).await;
    assert_eq!(last.attempts(), 16);
    assert_eq!(clock.now().since(start), Duration::from_secs(4 * 3600 + 45 * 60 + 40));
    assert!(dead_letters(&broker).await.is_empty(), "no dead letter before its time");
    last.retry_later(None).await.unwrap();
    clock.advance(Duration::from_secs(24 * 3600));
    settler.settle().await;
    assert_nothing(&mut consumer, "a dead letter does not come again");
    let dead = dead_letters(&broker).await;
    assert_eq!(dead.len(), 1, "exactly one dead letter");
    check_origin(&dead[0], &first.unwrap());
    assert_eq!(dead[0].attempts(), 17, "seventeen deliveries failed");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn sixteen_redeliveries_and_a_dead_letter(store: Store) {
    walk(&store, &[]).await;
}

async fn the_schedule_survives_restarts(store: Store) {
    walk(&store, &[1, 6, 7, 16]).await;
}

async fn a_pause_may_be_chosen(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let (mut settler, mut consumer) = (Settler::new(&broker, &clock).await, join(&broker).await);
    for wait in [3, 1, 100_000] {
        let wait = Duration::from_secs(wait);
        next(&mut consumer).await.retry_later(Some(wait)).await.unwrap();
        pass(&mut settler, &clock, &mut consumer, wait).await;
    }
    let delivery = next(&mut consumer).await;
    assert_eq!(delivery.attempts(), 3);
    delivery.retry_later(Some(Duration::ZERO)).await.unwrap();
    let at_once = next(&mut consumer).await;
    assert_eq!(at_once.attempts(), 4);
    at_once.ack().await.unwrap();
    clock.advance(Duration::from_secs(1_000_000));
    settler.settle().await;
    assert_nothing(&mut consumer, "it is done");
    broker.shutdown().await.unwrap();
}

async fn a_group_has_its_own_policy(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let fixed = RetryPolicy::Fixed { pause: Duration::from_secs(5), redeliveries: 2 };
    let with_policy = broker.consumer("group").subscribe("orders").retry_policy(fixed).build().await.unwrap();
    drop(with_policy);
    let broker = store.reopen_at(broker, &clock).await;
    let (mut settler, mut consumer) = (Settler::new(&broker, &clock).await, join(&broker).await);
    for _ in 0..2 {
        next(&mut consumer).await.retry_later(None).await.unwrap();
        pass(&mut settler, &clock, &mut consumer, Duration::from_secs(5)).await;
    }
    next(&mut consumer).await.retry_later(None).await.unwrap();
    assert_eq!(dead_letters(&broker).await.len(), 1, "the policy is kept with the group");
    broker.shutdown().await.unwrap();
}

/// Resolves when the group has nothing open.
async fn all_settled(broker: &Broker) {
    soon("the settling of every message", async { while broker.describe_group("group").await.unwrap().lag() > 0 {} })
        .await;
}

async fn a_handler_that_fails_is_retried(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = broker.producer("orders").await.unwrap();
    producer.send(Message::new("fails")).await.unwrap();
    producer.send(Message::new("panics")).await.unwrap();
    let (calls, mut called) = tokio::sync::watch::channel((0, 0));
    let worker = join(&broker).await.spawn(8, move |received| {
        let panics = text(&received) == "panics";
        calls.send_modify(|(fails, panicked)| *(if panics { panicked } else { fails }) += 1);
        async move {
            assert!(!panics, "a handler that panics, on purpose");
            Err::<(), _>("not today")
        }
    });
    for (failures, seconds) in (1..).zip(SCHEDULE_S) {
        soon("both calls", called.wait_for(|calls| *calls == (failures, failures))).await.unwrap();
        all_settled(&broker).await;
        assert!(dead_letters(&broker).await.is_empty());
        clock.advance(Duration::from_secs(seconds));
    }
    soon("both calls", called.wait_for(|calls| *calls == (17, 17))).await.unwrap();
    all_settled(&broker).await;
    let mut dead: Vec<String> = dead_letters(&broker).await.iter().map(text).collect();
    dead.sort();
    assert_eq!(dead, ["fails", "panics"]);
    worker.stop();
    worker.join().await.unwrap();
    assert_eq!(*called.borrow(), (17, 17));
    broker.shutdown().await.unwrap();
}

async fn a_failure_in_order_blocks_its_queue_alone(store: Store) {
    let clock = manual_clock();
    let broker = store.builder().clock(clock.clock()).configure(|s| s.max_redeliveries = 3).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap().with_selector(|m, _| u32::from(m.body()[0] == b'b'));
    for body in ["a1", "a2", "a3", "b1", "b2"] {
        producer.send(body).await.unwrap();
    }
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (record, (count, mut counted)) = (Arc::clone(&seen), tokio::sync::watch::channel(0));
    let failed = Arc::new(AtomicU32::new(0));
    let fails = Arc::clone(&failed);
    let consumer = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    let worker = consumer.spawn(4, move |received| {
        record.lock().unwrap().push((text(&received), received.attempts()));
        count.send_modify(|count| *count += 1);
        let fail = text(&received) == "a2";
        fails.fetch_add(u32::from(fail), Ordering::SeqCst);
        async move { if fail { Err("a2 fails") } else { Ok(()) } }
    });
    // a1, a2, b1, b2; then a2 three times more; then, after its dead letter, a3.
    for expected in [4, 5, 6, 7] {
        soon("the next call", counted.wait_for(|count| *count >= expected)).await.unwrap();
        soon("the pause of the failed message", async {
            // The pause is a sleeper of the clock once the failure is settled; the last failure has none.
            while clock.sleepers() == 0 && failed.load(Ordering::SeqCst) < 4 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        clock.advance(Duration::from_secs(1));
    }
    soon("a3", counted.wait_for(|count| *count == 8)).await.unwrap();
    all_settled(&broker).await;
    worker.stop();
    worker.join().await.unwrap();
    let of = |queue: char| -> Vec<_> {
        seen.lock().unwrap().iter().filter(|(body, _)| body.starts_with(queue)).cloned().collect()
    };
    let expected = [("a1", 0), ("a2", 0), ("a2", 1), ("a2", 2), ("a2", 3), ("a3", 0)];
    assert_eq!(of('a'), expected.map(|(body, attempts)| (body.to_owned(), attempts)), "nothing overtakes");
    assert_eq!(of('b').len(), 2, "the other queue goes on");
    let dead = dead_letters(&broker).await;
    assert_eq!(dead.iter().map(text).collect::<Vec<_>>(), ["a2"]);
    broker.shutdown().await.unwrap();
}

async fn without_redeliveries_the_first_failure_is_the_last(store: Store) {
    let broker = store.builder().configure(|s| s.max_redeliveries = 0).open().await.unwrap();
    broker.producer("orders").await.unwrap().send(numbered(3)).await.unwrap();
    let mut consumer = join(&broker).await;
    let delivery = next(&mut consumer).await;
    let original = (*delivery).clone();
    delivery.retry_later(Some(Duration::from_secs(1))).await.unwrap();
    let dead = dead_letters(&broker).await;
    assert_eq!(dead.len(), 1);
    check_origin(&dead[0], &original);
    let letters = broker.find_by_key("%DLQ%group", "key3", cuemq::Timestamp::MIN, cuemq::Timestamp::MAX, 9).unwrap();
    assert_eq!(letters.len(), 1, "a dead letter is found by its key");
    broker.producer("orders").await.unwrap().send(numbered(4)).await.unwrap();
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 4, "the group goes on");
    let broadcast = broker.consumer("other").subscribe("orders").member("m").broadcasting(true).build().await.unwrap();
    let mut broadcast = broadcast;
    assert_eq!(next(&mut broadcast).await.retry_later(None).await.unwrap_err().kind(), ErrorKind::Invalid);
    broker.shutdown().await.unwrap();
}

/// Of one queue some messages are retried and others acknowledged, all at once, and the process ends after each write.
async fn an_acknowledgement_takes_no_retry_back(store: Store) {
    for writes in 1..=6 {
        let store = Store::new(store.kind);
        let broker = store.open().await;
        broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
        let producer = broker.producer("orders").await.unwrap();
        for n in 0..7 {
            producer.send(numbered(n)).await.unwrap();
        }
        let mut consumer = join(&broker).await;
        // What joining wrote has landed with it.
        take(&mut consumer, 1).await;
        let mut deliveries = Vec::new();
        for _ in 0..6 {
            deliveries.push(next(&mut consumer).await);
        }
        let gate = store.faults.hold(Operation::Apply);
        let mut waiting = FuturesUnordered::new();
        for (n, delivery) in (1u64..).zip(deliveries) {
            let settle: Pin<Box<dyn Future<Output = u64>>> = match n % 2 {
                0 => Box::pin(async move {
                    let retried = delivery.retry_later(Some(Duration::ZERO)).await;
                    if retried.is_ok() { n } else { 100 }
                }),
                _ => Box::pin(async move { if delivery.ack().await.is_ok() { n } else { 100 } }),
            };
            waiting.push(settle);
            // Each is asked for before the next one, and none is answered yet.
            let _ = futures_util::FutureExt::now_or_never(waiting.next());
        }
        let mut settled = BTreeSet::new();
        for _ in 0..writes {
            gate.let_pass(1);
            settled.extend(soon("an answer", waiting.next()).await);
            while let Some(Some(more)) = futures_util::FutureExt::now_or_never(waiting.next()) {
                settled.insert(more);
            }
            if waiting.is_empty() {
                break;
            }
        }
        store.kill_behind(broker, gate).await;
        drop(waiting);
        drop(consumer);
        let broker = store.open().await;
        let mut consumer = join(&broker).await;
        let mut came = BTreeMap::new();
        while let Some(again) = futures_util::FutureExt::now_or_never(consumer.next()) {
            let again = again.unwrap();
            *came.entry(number_of(&again)).or_insert(0) += 1;
            again.ack().await.unwrap();
        }
        assert!(came.values().all(|times| *times == 1), "after {writes} writes: {came:?} came again");
        for n in settled {
            assert_eq!(came.contains_key(&n), n % 2 == 0, "after {writes} writes, message {n}: {came:?}");
        }
        broker.shutdown().await.unwrap();
    }
}
