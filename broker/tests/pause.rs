//! A paused group gets nothing new, also after a restart, and goes on where it was.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, next, soon, take};
use cuemq::{Broker, Consumer, ErrorKind};

on_every_engine!(
    a_paused_group_gets_nothing_new,
    a_pause_survives_the_process,
    what_failed_waits_for_the_end_of_the_pause,
    a_wait_ends_with_the_pause,
    an_unknown_group_is_named,
);

async fn send(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    for n in numbers {
        producer.send(numbered(n)).await.unwrap();
    }
}

async fn join(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

async fn a_paused_group_gets_nothing_new(store: Store) {
    let broker = store.open().await;
    send(&broker, 0..6).await;
    let (mut first, mut second) = (join(&broker).await, join(&broker).await);
    let out = next(&mut first).await;
    broker.pause_group("group").await.unwrap();
    assert!(broker.describe_group("group").await.unwrap().paused);
    let mut third = join(&broker).await;
    send(&broker, 6..8).await;
    for member in [&mut first, &mut second, &mut third] {
        assert_nothing(member, "the group is paused");
    }
    let before = broker.describe_group("group").await.unwrap().lag();
    out.ack().await.unwrap();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), before - 1, "what is out can be settled");
    let mut other = broker.consumer("other").subscribe("orders").build().await.unwrap();
    take(&mut other, 8).await;
    broker.pause_group("group").await.unwrap();
    broker.resume_group("group").await.unwrap();
    assert!(!broker.describe_group("group").await.unwrap().paused);
    drop((second, third));
    take(&mut first, 7).await;
    assert_nothing(&mut first, "everything came once");
    broker.shutdown().await.unwrap();
}

async fn a_pause_survives_the_process(store: Store) {
    let broker = store.open().await;
    send(&broker, 0..2).await;
    drop(join(&broker).await);
    broker.pause_group("group").await.unwrap();
    store.kill(broker).await;
    let broker = store.open().await;
    let mut consumer = join(&broker).await;
    assert_nothing(&mut consumer, "the group is still paused");
    let policy = cuemq::RetryPolicy::default();
    let configured = broker.consumer("group").subscribe("orders").retry_policy(policy).build().await.unwrap();
    drop(configured);
    assert!(broker.describe_group("group").await.unwrap().paused, "other settings leave it as it is");
    broker.resume_group("group").await.unwrap();
    take(&mut consumer, 2).await;
    let broker = store.reopen(broker).await;
    assert!(!broker.describe_group("group").await.unwrap().paused);
    broker.shutdown().await.unwrap();
}

async fn what_failed_waits_for_the_end_of_the_pause(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, 0..2).await;
    let mut consumer = join(&broker).await;
    let (dropped, retried) = (next(&mut consumer).await, next(&mut consumer).await);
    broker.pause_group("group").await.unwrap();
    drop(dropped);
    retried.retry_later(Some(Duration::ZERO)).await.unwrap();
    clock.advance(Duration::from_secs(60));
    assert_nothing(&mut consumer, "not even what comes again");
    broker.resume_group("group").await.unwrap();
    let mut again: Vec<u64> = take(&mut consumer, 2).await.iter().map(number_of).collect();
    again.sort_unstable();
    assert_eq!(again, [0, 1]);
    broker.shutdown().await.unwrap();
}

async fn a_wait_ends_with_the_pause(store: Store) {
    let broker = store.open().await;
    let mut consumer = join(&broker).await;
    broker.pause_group("group").await.unwrap();
    send(&broker, 0..1).await;
    let resume = async { broker.resume_group("group").await.unwrap() };
    let (delivery, ()) = soon("the message", async { tokio::join!(consumer.next(), resume) }).await;
    delivery.unwrap().ack().await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn an_unknown_group_is_named(store: Store) {
    let broker = store.open().await;
    for refused in [broker.pause_group("nobody").await, broker.resume_group("nobody").await] {
        let error = refused.unwrap_err();
        assert!(error.kind() == ErrorKind::UnknownGroup && error.to_string().contains("nobody"), "{error}");
    }
    assert!(broker.groups().is_empty(), "asking made no group");
    broker.shutdown().await.unwrap();
}
