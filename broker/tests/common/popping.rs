//! What the tests of pop share.

use std::collections::BTreeSet;
use std::time::Duration;

use cuemq::{Broker, PopConsumer, PopReceipt, Popped};

use super::checker::{number_of, numbered};
use super::soon;

pub(crate) const NOW: Duration = Duration::ZERO;
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);

pub(crate) async fn send(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    for n in numbers {
        producer.send(numbered(n)).await.unwrap();
    }
}

pub(crate) async fn consumer(broker: &Broker) -> PopConsumer {
    broker.pop_consumer("group").subscribe("orders").invisible(10 * SECOND).build().await.unwrap()
}

/// Messages that are there or will soon be.
pub(crate) async fn pop(consumer: &PopConsumer, count: usize) -> Vec<Popped> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(soon("messages", consumer.pop(count - all.len(), HOUR)).await.unwrap());
    }
    all
}

pub(crate) async fn pop_one(consumer: &PopConsumer) -> Popped {
    pop(consumer, 1).await.pop().unwrap()
}

pub(crate) async fn assert_nothing(consumer: &PopConsumer, why: &str) {
    let found = consumer.pop(100, NOW).await.unwrap();
    assert!(found.is_empty(), "{why}: {:?}", found.iter().map(|popped| number_of(popped)).collect::<Vec<_>>());
}

pub(crate) async fn lag(broker: &Broker) -> u64 {
    broker.describe_group("group").await.unwrap().lag()
}

pub(crate) async fn in_flight(broker: &Broker) -> usize {
    broker.describe_group("group").await.unwrap().in_flight
}

pub(crate) fn numbers(popped: &[Popped]) -> BTreeSet<u64> {
    popped.iter().map(|popped| number_of(popped)).collect()
}

pub(crate) fn receipts(popped: &[Popped]) -> Vec<PopReceipt> {
    popped.iter().map(|popped| popped.receipt()).collect()
}

/// Acknowledges all of them.
pub(crate) async fn done(consumer: &PopConsumer, popped: &[Popped]) {
    for result in consumer.ack_all(&receipts(popped)).await {
        result.unwrap();
    }
}
