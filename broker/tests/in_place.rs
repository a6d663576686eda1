//! Deliveries that fail while their message keeps its place are counted exactly, over kills and moves of the queue, up to
//! the dead letter (promise P8).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, read_all, soon, take, text};
use cuemq::{Broker, Consumer, DeadReason, ManualClock, Order, RetryPolicy, TopicSpec};
use tokio::sync::watch;

const SECOND: Duration = Duration::from_secs(1);

on_every_engine!(
    failures_in_order_are_counted_over_kills_up_to_the_dead_letter,
    a_message_given_back_by_hand_keeps_its_count_over_a_kill,
    the_count_moves_with_the_queue,
    what_is_done_leaves_nothing_behind,
    one_that_is_failed_away_takes_its_count_along,
);

async fn one_queue(broker: &Broker) {
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
}

async fn send(broker: &Broker, bodies: &[&'static str]) {
    let producer = broker.producer("orders").await.unwrap();
    for body in bodies {
        producer.send(*body).await.unwrap();
    }
}

async fn join(broker: &Broker, order: Order) -> Consumer {
    let policy = RetryPolicy::Fixed { pause: SECOND * 60, redeliveries: 5 };
    broker.consumer("group").subscribe("orders").order(order).retry_policy(policy).build().await.unwrap()
}

/// Has a failing handler be called once more in this process; what it saw.
async fn fail_once(broker: &Broker, clock: &ManualClock, order: Order, word: &str) -> (String, u32, Option<String>) {
    let (seen, calls) = (Arc::new(Mutex::new(Vec::new())), watch::channel(0));
    let (record, told, word) = (Arc::clone(&seen), calls.0, word.to_owned());
    let worker = join(broker, order).await.spawn(1, move |received| {
        let saw = (text(&received), received.attempts(), received.last_error().map(str::to_owned));
        record.lock().unwrap().push(saw);
        told.send_modify(|count| *count += 1);
        let word = word.clone();
        async move { Err::<(), _>(word) }
    });
    let mut calls = calls.1;
    soon("a call", calls.wait_for(|count| *count == 1)).await.unwrap();
    // Its pause begins when the failure is stored.
    soon("the pause", async {
        while clock.sleepers() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    worker.stop();
    soon("the end", worker.join()).await.unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(seen.len(), 1);
    seen.into_iter().next().unwrap()
}

async fn failures_in_order_are_counted_over_kills_up_to_the_dead_letter(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    send(&broker, &["bad", "good"]).await;
    let first = clock.now();
    for attempts in 0..5u32 {
        let saw = fail_once(&broker, &clock, Order::Queue, &format!("no {attempts}")).await;
        let error = attempts.checked_sub(1).map(|before| format!("no {before}"));
        assert_eq!(saw, ("bad".to_owned(), attempts, error));
        store.kill(broker).await;
        clock.advance(SECOND * 10);
        broker = store.open_at(&clock).await;
    }
    let mut consumer = join(&broker, Order::Queue).await;
    let last = next(&mut consumer).await;
    assert_eq!((last.attempts(), last.first_failed_at(), last.last_error()), (5, Some(first), Some("no 4")));
    last.fail("no more").await.unwrap();
    assert_eq!(bodies(&take(&mut consumer, 1).await), ["good"]);
    let dead = read_all(&broker, "%DLQ%group").await;
    assert_eq!(bodies(&dead), ["bad"]);
    assert_eq!((dead[0].attempts(), dead[0].dead_reason()), (6, Some(DeadReason::RetriesExceeded)));
    assert_eq!((dead[0].first_failed_at(), dead[0].last_error()), (Some(first), Some("no more")));
    broker.shutdown().await.unwrap();
}

async fn a_message_given_back_by_hand_keeps_its_count_over_a_kill(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    send(&broker, &["bad"]).await;
    for attempts in 0..4 {
        let mut consumer = join(&broker, Order::Key).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempts(), attempts);
        delivery.again_after(SECOND);
        assert_nothing(&mut consumer, "it pauses");
        // Whatever is stored behind it is answered behind it.
        broker.describe_group("group").await.unwrap();
        broker.producer("others").await.unwrap().send("behind").await.unwrap();
        store.kill(broker).await;
        broker = store.open_at(&clock).await;
    }
    broker.shutdown().await.unwrap();
}

async fn the_count_moves_with_the_queue(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    send(&broker, &["bad"]).await;
    for attempts in 0..4 {
        let mut consumer = join(&broker, Order::Queue).await;
        let delivery = next(&mut consumer).await;
        assert_eq!(delivery.attempts(), attempts);
        delivery.again_after(SECOND);
    }
    let pop = broker.pop_consumer("group").subscribe("orders").build().await.unwrap();
    let popped = soon("the message", pop.pop(1, SECOND * 60)).await.unwrap();
    assert_eq!(popped[0].attempts(), 4);
    popped[0].reject("no").await.unwrap();
    assert_eq!(read_all(&broker, "%DLQ%group").await[0].attempts(), 5);
    broker.shutdown().await.unwrap();
}

async fn what_is_done_leaves_nothing_behind(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    send(&broker, &["first", "second"]).await;
    let mut consumer = join(&broker, Order::Queue).await;
    for name in ["first", "second"] {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), name);
        delivery.again_after(SECOND);
        clock.advance(SECOND);
        let delivery = next(&mut consumer).await;
        assert_eq!((text(&delivery).as_str(), delivery.attempts()), (name, 1));
        delivery.ack().await.unwrap();
    }
    drop(consumer);
    let rows = cuemq::storage_api::Table::named("in_place");
    broker.shutdown().await.unwrap();
    assert!(store.engine().scan(&rows, &[], None, 10).unwrap().is_empty());
}

async fn one_that_is_failed_away_takes_its_count_along(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    send(&broker, &["bad"]).await;
    let first = clock.now();
    assert_eq!(fail_once(&broker, &clock, Order::Key, "in place").await.1, 0);
    store.kill(broker).await;
    clock.advance(SECOND);
    broker = store.open_at(&clock).await;
    let mut consumer = join(&broker, Order::Key).await;
    next(&mut consumer).await.retry_in(Duration::ZERO).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((again.attempts(), again.first_failed_at(), again.last_error()), (2, Some(first), Some("in place")));
    again.reject("no").await.unwrap();
    assert_eq!(read_all(&broker, "%DLQ%group").await[0].attempts(), 3);
    broker.shutdown().await.unwrap();
}
