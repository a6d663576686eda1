//! One message that is not settled stops no other of its queue, and comes again alone.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, next, soon, take};
use cuemq::{Broker, Flush, Order, TopicSpec};

on_every_engine!(twenty_thousand_pass_one_that_is_stuck, only_so_many_are_open);

async fn open(store: &Store, messages: u64) -> Broker {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1).flush(Flush::Buffered)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for first in (0..messages).step_by(1000) {
        producer.send_batch((first..messages.min(first + 1000)).map(numbered).collect()).await.unwrap();
    }
    broker
}

async fn twenty_thousand_pass_one_that_is_stuck(store: Store) {
    let broker = open(&store, 20_001).await;
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let stuck = next(&mut consumer).await;
    assert_eq!(number_of(&stuck), 0);
    let mut got = BTreeSet::new();
    while got.len() < 20_000 {
        let batch = soon("the next messages", consumer.next_messages(256)).await.unwrap();
        got.extend(batch.iter().map(number_of));
        batch.ack().await.unwrap();
    }
    assert_eq!(got, (1..=20_000).collect());
    assert_nothing(&mut consumer, "everything else is done");
    store.kill(broker).await;
    drop((stuck, consumer));
    let broker = store.open().await;
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 0);
    assert_nothing(&mut consumer, "only the one that was stuck comes again");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

/// A key that is stuck has at most as many messages held back behind it as a queue may have open.
async fn only_so_many_are_open(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1).flush(Flush::Buffered)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for key in ["a", "a", "a", "b"] {
        producer.send_batch((0..1000).map(|n| numbered(n).sharding_key(key)).collect()).await.unwrap();
    }
    let consumer = broker.consumer("group").subscribe("orders").order(Order::Key);
    let mut consumer = consumer.build().await.unwrap();
    let stuck = next(&mut consumer).await;
    assert_nothing(&mut consumer, "3,000 of one key are more than may be open");
    stuck.ack().await.unwrap();
    let mut of_b = 0;
    while of_b < 1000 {
        let delivery = next(&mut consumer).await;
        of_b += usize::from(delivery.sharding_key() == Some("b"));
        delivery.ack_soon();
    }
    while broker.describe_group("group").await.unwrap().lag() > 0 {
        let batch = soon("the rest", consumer.next_messages(256)).await.unwrap();
        batch.ack().await.unwrap();
    }
    assert_nothing(&mut consumer, "everything came");
    broker.shutdown().await.unwrap();
}
