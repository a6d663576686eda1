//! Messages that a consumer takes together: they come in order, are settled as one, and lose nothing when they are not.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::{Mutex, mpsc};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, soon, take};
use cuemq::{Batch, Broker, Consumer, ErrorKind, TopicSpec};

on_every_engine!(
    a_batch_is_settled_as_one,
    a_batch_that_is_dropped_comes_again,
    a_batch_can_be_parted,
    a_filter_leaves_gaps_that_are_settled_too,
    in_order_messages_come_one_at_a_time,
    acknowledgements_one_by_one_arrive_together,
    a_long_stream_of_acknowledgements_is_kept,
    a_stale_batch_is_refused,
);

async fn send(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    producer.send_batch(numbers.map(numbered).collect()).await.unwrap();
}

async fn open(store: &Store) -> (Broker, Consumer) {
    let broker = store.builder().clock(manual_clock().clock()).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    (broker, consumer)
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.iter().map(number_of).collect()
}

async fn next(consumer: &mut Consumer, most: usize) -> Batch {
    soon("the next messages", consumer.next_messages(most)).await.unwrap()
}

async fn lag(broker: &Broker) -> u64 {
    broker.describe_group("group").await.unwrap().lag()
}

async fn a_batch_is_settled_as_one(store: Store) {
    let (broker, mut consumer) = open(&store).await;
    send(&broker, 0..600).await;
    let mut seen = Vec::new();
    while seen.len() < 600 {
        let batch = next(&mut consumer, 100).await;
        assert!((1..=100).contains(&batch.len()));
        seen.extend(numbers(&batch));
        soon("the acknowledgement", batch.ack()).await.unwrap();
        assert_eq!(lag(&broker).await, 600 - seen.len() as u64);
    }
    assert_eq!(seen, (0..600).collect::<Vec<_>>());
    assert_nothing(&mut consumer, "everything is done");
    drop(consumer);
    let broker = store.reopen(broker).await;
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_nothing(&mut consumer, "and stays so");
    broker.shutdown().await.unwrap();
}

async fn a_batch_that_is_dropped_comes_again(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    send(&broker, 0..5).await;
    let batch = next(&mut consumer, 3).await;
    assert_eq!(numbers(&batch), [0, 1, 2]);
    drop(batch);
    let rest = next(&mut consumer, 9).await;
    assert_eq!(numbers(&rest), [3, 4], "the others go on");
    rest.ack_soon();
    assert_nothing(&mut consumer, "the first come after a pause");
    clock.advance(Duration::from_secs(1));
    let again = take(&mut consumer, 3).await;
    assert_eq!(again.iter().map(|m| (number_of(m), m.attempts())).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 1)]);
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_batch_can_be_parted(store: Store) {
    let (broker, mut consumer) = open(&store).await;
    send(&broker, 0..4).await;
    let mut deliveries = next(&mut consumer, 4).await.into_deliveries();
    deliveries.remove(2).ack().await.unwrap();
    assert_eq!(lag(&broker).await, 4, "the lag counts from the first that is open");
    for delivery in deliveries {
        delivery.ack().await.unwrap();
    }
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_filter_leaves_gaps_that_are_settled_too(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    producer.send_batch((0..9).map(numbered).collect()).await.unwrap();
    // The tags are the numbers modulo 3.
    let mut consumer = broker.consumer("group").subscribe_tags("orders", "tag0 || tag2").build().await.unwrap();
    let batch = next(&mut consumer, 9).await;
    assert_eq!(numbers(&batch), [0, 2, 3, 5, 6, 8]);
    batch.ack().await.unwrap();
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn in_order_messages_come_one_at_a_time(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    send(&broker, 0..3).await;
    for n in 0..3 {
        let batch = next(&mut consumer, 9).await;
        assert_eq!(numbers(&batch), [n]);
        assert_nothing(&mut consumer, "the next one waits for this one");
        batch.ack_soon();
    }
    broker.shutdown().await.unwrap();
}

async fn acknowledgements_one_by_one_arrive_together(store: Store) {
    let (broker, mut consumer) = open(&store).await;
    send(&broker, 0..200).await;
    let mut deliveries = soon("the messages", consumer.next_batch(200)).await.unwrap();
    assert_eq!(deliveries.len(), 200);
    // Two holes, so that not everything joins.
    let held = [deliveries.remove(150), deliveries.remove(20)];
    deliveries.into_iter().for_each(|delivery| delivery.ack_soon());
    assert_eq!(lag(&broker).await, 180, "up to the first hole");
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

/// More than the window of what may be acknowledged at once joins while the group's actor is held up.
async fn a_long_stream_of_acknowledgements_is_kept(store: Store) {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(Some(held));
    let probe = move |point: cuemq::ProbePoint<'_>| {
        if point.message == "Acknowledge"
            && let Some(held) = held.lock().unwrap().take()
        {
            // The sender goes away when it is time.
            held.recv().unwrap_err();
        }
    };
    let broker = store.builder().clock(manual_clock().clock()).probe(probe).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    send(&broker, 0..12_000).await;
    let (mut seen, mut release) = (0, Some(release));
    while seen < 12_000 {
        let batch = next(&mut consumer, 1000).await;
        assert_eq!(number_of(&batch[0]), seen);
        seen += batch.len() as u64;
        if seen == 12_000 {
            drop(release.take());
            soon("the last acknowledgement", batch.ack()).await.unwrap();
        } else {
            batch.ack_soon();
        }
    }
    assert_eq!(lag(&broker).await, 0, "all of them were kept");
    broker.shutdown().await.unwrap();
}

async fn a_stale_batch_is_refused(store: Store) {
    let (broker, mut consumer) = open(&store).await;
    send(&broker, 0..3).await;
    let batch = next(&mut consumer, 3).await;
    drop(consumer);
    broker.describe_group("group").await.unwrap();
    let stale = soon("the refusal", batch.ack()).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    let mut other = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_eq!(take(&mut other, 3).await.iter().map(number_of).collect::<Vec<_>>(), [0, 1, 2]);
    broker.shutdown().await.unwrap();
}
