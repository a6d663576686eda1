//! What is sent is stored once, as it was sent, in order, as safely as the receipt says, and can be found again.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::checker::{Checker, number_of, numbered};
use common::store::Store;
use common::{bodies, manual_clock, next, read_all, soon, take, text};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{AckLevel, Broker, ErrorKind, Flush, Message, MessageId, QueueId, Timestamp, TopicSpec};
use serde::{Deserialize, Serialize};

on_every_engine!(
    receipts_name_the_level,
    offsets_are_dense_and_messages_come_back_as_sent,
    messages_are_found_by_id,
    messages_are_found_by_key,
    sharding_keys_and_turns_choose_queues,
    a_batch_lands_whole_and_in_order,
    a_batch_that_fails_leaves_nothing,
    a_selector_chooses,
    one_way_arrives,
    a_callback_comes_once,
    enqueue_gives_the_message_back_when_full,
    json_bodies,
);

async fn receipts_name_the_level(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("buffered").flush(Flush::Buffered)).await.unwrap();
    let durable = broker.producer("durable").await.unwrap().send("a").await.unwrap();
    let buffered = broker.producer("buffered").await.unwrap().send("b").await.unwrap();
    assert_eq!((durable.level, buffered.level), (store.durable_level(), store.buffered_level()));
    assert_eq!(durable.topic.as_str(), "durable");
    let broker = store.reopen(broker).await;
    assert_eq!(broker.describe_topic("buffered").unwrap().flush, Flush::Buffered, "the topic's own setting is kept");
    let buffered = broker.producer("buffered").await.unwrap().send("c").await.unwrap();
    assert_eq!(buffered.level, store.buffered_level());
    broker.shutdown().await.unwrap();

    let broker = store.builder().flush(Flush::Buffered).open().await.unwrap();
    let receipt = broker.producer("durable").await.unwrap().send("d").await.unwrap();
    assert_eq!(receipt.level, store.buffered_level(), "a topic that says nothing follows the broker");
    assert!(AckLevel::Memory < AckLevel::Buffered && AckLevel::Buffered < AckLevel::Durable);
    broker.shutdown().await.unwrap();
}

async fn offsets_are_dense_and_messages_come_back_as_sent(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let mut next_offset: BTreeMap<QueueId, u64> = BTreeMap::new();
    let mut last_position = None;
    for n in 0..40 {
        let receipt = producer.send(numbered(n)).await.unwrap();
        let expected = next_offset.entry(receipt.queue).or_default();
        assert_eq!(receipt.offset.unwrap().get(), *expected, "offsets are dense from 0");
        *expected += 1;
        let position = receipt.id.map(MessageId::position);
        assert!(position > last_position, "positions rise");
        last_position = position;
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut checker = Checker::default();
    for received in take(&mut consumer, 40).await {
        checker.delivered(&received);
        assert_eq!((received.attempts(), received.topic()), (0, "orders"));
        assert_eq!(received.origin_id(), received.id());
    }
    checker.complete(0..40);
    assert_eq!(checker.duplicates(), 0);
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn messages_are_found_by_id(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(producer.send(numbered(n)).await.unwrap().id.unwrap());
    }
    let broker = store.reopen(broker).await;
    for (n, id) in (0..).zip(&ids) {
        let id: MessageId = id.to_string().parse().unwrap();
        let found = broker.message(id).unwrap().unwrap();
        assert_eq!((number_of(&found), found.id()), (n, id));
    }
    let other = Broker::in_memory().await.unwrap();
    let foreign = other.producer("orders").await.unwrap().send("x").await.unwrap().id.unwrap();
    assert!(broker.message(foreign).unwrap().is_none(), "an id of another store names nothing here");
    assert!(other.message(ids[0]).unwrap().is_none());
    other.shutdown().await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn messages_are_found_by_key(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = broker.producer("orders").await.unwrap();
    let start = clock.now();
    for n in 0..20 {
        producer.send(numbered(n)).await.unwrap();
        clock.advance(std::time::Duration::from_millis(10));
    }
    broker.producer("other").await.unwrap().send(numbered(3)).await.unwrap();
    let find = |key: &str, from: Timestamp, to: Timestamp, limit| {
        let found = broker.find_by_key("orders", key, from, to, limit).unwrap();
        found.iter().map(number_of).collect::<Vec<_>>()
    };
    let (min, max) = (Timestamp::MIN, Timestamp::MAX);
    assert_eq!(find("key7", min, max, 10), [7]);
    assert_eq!(find("group2", min, max, 10), [17, 12, 7, 2], "newest first");
    assert_eq!(find("group2", min, max, 2), [17, 12]);
    let at = |n: u64| start.plus(std::time::Duration::from_millis(n * 10));
    assert_eq!(find("group2", at(7), at(17), 10), [12, 7], "from is within, to is not");
    assert!(find("key", min, max, 10).is_empty(), "whole keys only");
    assert!(find("key99", min, max, 10).is_empty());
    broker.shutdown().await.unwrap();
}

async fn sharding_keys_and_turns_choose_queues(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(3)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let mut turns: BTreeMap<QueueId, u32> = BTreeMap::new();
    for n in 0..9 {
        *turns.entry(producer.send(numbered(n)).await.unwrap().queue).or_default() += 1;
    }
    assert_eq!(turns.into_values().collect::<Vec<_>>(), [3, 3, 3], "queues take turns");
    let mut chosen: BTreeMap<String, QueueId> = BTreeMap::new();
    for n in 0..60 {
        let key = format!("customer{}", n % 12);
        let receipt = producer.send(Message::new("x").sharding_key(&key)).await.unwrap();
        assert_eq!(*chosen.entry(key).or_insert(receipt.queue), receipt.queue, "one key, one queue");
    }
    let used: std::collections::BTreeSet<_> = chosen.values().collect();
    assert_eq!(used.len(), 3, "twelve keys reach all three queues: {chosen:?}");
    broker.shutdown().await.unwrap();
}

async fn a_batch_lands_whole_and_in_order(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    assert_eq!(producer.send_batch(Vec::new()).await.unwrap(), []);
    let one_queue = producer.send_batch((0..10).map(numbered).collect()).await.unwrap();
    assert!(one_queue.iter().all(|receipt| receipt.queue == one_queue[0].queue), "without keys: one queue");
    let across = producer.with_selector(|message, queues| u32::from(message.body()[8] % 4).min(queues - 1));
    let receipts = across.send_batch((10..30).map(numbered).collect()).await.unwrap();
    assert_eq!(receipts.len(), 20);
    let queues: std::collections::BTreeSet<_> = receipts.iter().map(|receipt| receipt.queue).collect();
    assert!(queues.len() > 1, "the batch spans queues");
    for (n, receipt) in (10..).zip(&receipts) {
        let found = broker.message(receipt.id.unwrap()).unwrap().unwrap();
        assert_eq!(number_of(&found), n, "receipts come in the order of the messages");
        assert_eq!((found.queue().queue, found.offset()), (receipt.queue, receipt.offset.unwrap()));
        assert_eq!(receipt.level, store.durable_level());
    }
    let mut checker = Checker::default();
    for received in read_all(&broker, "orders").await {
        checker.delivered(&received);
    }
    checker.complete(0..30);
    broker.shutdown().await.unwrap();
}

async fn a_batch_that_fails_leaves_nothing(store: Store) {
    let broker = store.builder().configure(|s| s.max_body_bytes = 1000).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let plain = broker.producer("orders").await.unwrap();
    let across = plain.clone().with_selector(|message, queues| u32::from(message.body()[0]) % queues);
    let good = || [0u8, 1, 2, 3].map(|queue| Message::new(vec![queue; 10])).to_vec();
    let mut oversize = good();
    oversize.push(Message::new(vec![1; 1001]));
    let mut delayed = good();
    delayed.push(Message::new("x").delay_level(1));
    let mut reserved = good();
    reserved.push(Message::new("x").property("__mine", "1"));
    for bad in [oversize, delayed, reserved] {
        for producer in [&plain, &across] {
            assert_eq!(producer.send_batch(bad.clone()).await.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    let full = across.send_batch(good()).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    assert!(full.is_certainly_not_applied() && full.is_retryable());
    assert!(read_all(&broker, "orders").await.is_empty(), "all or none");
    let receipts = across.send_batch(good()).await.unwrap();
    assert!(receipts.iter().all(|receipt| receipt.offset.unwrap().get() == 0), "no offset was used up");
    broker.shutdown().await.unwrap();
}

async fn a_selector_chooses(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap().with_selector(|message, _| u32::from(message.body()[0]));
    for queue in [3, 0, 2, 2, 1u8] {
        let receipt = producer.send(vec![queue]).await.unwrap();
        assert_eq!(receipt.queue.get(), u32::from(queue));
    }
    let error = producer.send(vec![4]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("queue 4 of 4: return 0 to 3"), "{error}");
    let refused = producer.enqueue(vec![9, 9]).unwrap_err();
    assert_eq!(refused.message.body()[..], [9, 9]);
    assert_eq!(read_all(&broker, "orders").await.len(), 5);
    broker.shutdown().await.unwrap();
}

async fn one_way_arrives(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..20 {
        producer.send_one_way(numbered(n)).unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut checker = Checker::default();
    for received in take(&mut consumer, 20).await {
        checker.delivered(&received);
    }
    checker.complete(0..20);
    broker.shutdown().await.unwrap();
}

async fn a_callback_comes_once(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let call = |message: Message| {
        let (calls, (sender, answer)) = (Arc::clone(&calls), tokio::sync::oneshot::channel());
        let called = move |result| {
            calls.fetch_add(1, Ordering::SeqCst);
            sender.send(result).unwrap();
        };
        producer.send_with(message, called).map(|()| answer)
    };
    let receipt = soon("the callback", call(numbered(1)).unwrap()).await.unwrap().unwrap();
    assert_eq!((receipt.offset.unwrap().get(), receipt.level), (0, store.durable_level()));
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Unavailable));
    let refused = soon("the callback", call(numbered(2)).unwrap()).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotStored);
    let rejected = call(Message::new("x").property("__own", "x")).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::Invalid);
    broker.shutdown().await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2, "once each, and never for a message that was given back");
    assert_eq!(call(numbered(3)).unwrap_err().error.kind(), ErrorKind::Closed);
}

async fn enqueue_gives_the_message_back_when_full(store: Store) {
    let broker = store.builder().configure(|s| s.max_in_flight_messages = 3).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Apply);
    let pending: Vec<_> = (0..3).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
    let full = producer.enqueue(Message::new("later").key("k")).unwrap_err();
    assert_eq!(full.error.kind(), ErrorKind::Full);
    assert!(full.error.is_retryable() && full.error.is_certainly_not_applied());
    assert!(full.error.to_string().starts_with("3 messages or "), "{full}");
    assert_eq!(&full.message.body()[..], b"later");
    drop(gate);
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    soon("the receipt", producer.enqueue(*full.message).unwrap()).await.unwrap();
    let all = read_all(&broker, "orders").await;
    assert_eq!(all.len(), 4);
    assert_eq!(all.iter().filter(|m| text(m) == "later" && m.keys().eq(["k"])).count(), 1, "{:?}", bodies(&all));
    broker.shutdown().await.unwrap();
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Order {
    number: u64,
    items: Vec<String>,
}

async fn json_bodies(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let order = Order { number: 7, items: vec!["bolt".into(), "nut".into()] };
    producer.send(Message::json(&order).unwrap()).await.unwrap();
    producer.send("not json").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        results.push(delivery.json::<Order>().map_err(|error| error.kind()));
        delivery.ack().await.unwrap();
    }
    assert!(results.contains(&Ok(order)) && results.contains(&Err(ErrorKind::Invalid)), "{results:?}");
    broker.shutdown().await.unwrap();
}
