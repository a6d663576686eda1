//! Whatever clients do, what is in flight is bounded, nobody starves another, and what cannot be is refused with the
//! value, the limit and the way out.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, next, read_all, soon, until};
use cuemq::limits::{MAX_BATCH_MESSAGES, MAX_DRAIN_REQUESTS, MAX_UNACKED_BYTES, MAX_UNACKED_MESSAGES};
use cuemq::storage_api::fault::Operation;
use cuemq::{BrokerSettings, ErrorKind, Flush, Message, TopicSpec};
use futures_util::FutureExt;

on_every_engine!(
    messages_in_flight_are_bounded,
    bytes_in_flight_are_bounded,
    a_flood_starves_nobody_on_its_thread,
    bad_requests_name_value_limit_and_way_out,
    bad_settings_are_named,
    a_consumer_holds_so_many_messages,
    a_consumer_holds_so_many_bytes,
);

async fn messages_in_flight_are_bounded(store: Store) {
    let broker = store.builder().configure(|s| s.max_in_flight_messages = 4).open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Apply);
    let mut sends: Vec<_> = (0..10).map(|n| Box::pin(producer.send(numbered(n)))).collect();
    for send in &mut sends {
        assert!(send.now_or_never().is_none());
    }
    assert_eq!(producer.enqueue("one more").unwrap_err().error.kind(), ErrorKind::Full);
    assert_eq!(producer.send_one_way("one more").unwrap_err().error.kind(), ErrorKind::Full);
    let waiting = || broker.describe_topic("orders").unwrap().queues[0].waiting;
    assert!(waiting() <= 4, "only what was admitted waits for the queue");
    drop(sends.remove(9));
    drop(sends.remove(4));
    drop(gate);
    for receipt in soon("the receipts", futures_util::future::join_all(sends)).await {
        receipt.unwrap();
    }
    let numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 5, 6, 7, 8], "in turn; who gave up waiting sent nothing");
    producer.enqueue("there is room again").unwrap().await.unwrap();
    let large = producer.send_batch((0..5).map(numbered).collect()).await.unwrap_err();
    assert_eq!(large.kind(), ErrorKind::Invalid, "it could never be admitted");
    broker.shutdown().await.unwrap();
}

async fn bytes_in_flight_are_bounded(store: Store) {
    let limit = 100_000;
    let settings = |s: &mut BrokerSettings| (s.max_body_bytes, s.max_in_flight_bytes) = (10_000, limit);
    let broker = store.builder().configure(settings).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Apply);
    let mut pending = Vec::new();
    let full = loop {
        match producer.enqueue(vec![1; 9_000]) {
            Ok(receipt) => pending.push(receipt),
            Err(full) => break full,
        }
    };
    assert_eq!((full.error.kind(), pending.len()), (ErrorKind::Full, 11), "11 x 9,000 bytes fit into 100,000");
    assert!(full.error.to_string().contains("100000 bytes"), "{full}");
    assert_eq!(full.message.body().len(), 9_000);
    let small = producer.enqueue(vec![1; 1_000]).unwrap();
    drop(gate);
    for receipt in pending.into_iter().chain([small]) {
        soon("the receipt", receipt).await.unwrap();
    }
    let large = producer.send_batch(vec![Message::new(vec![1; 9_000]); 12]).await.unwrap_err();
    assert_eq!(large.kind(), ErrorKind::Invalid);
    assert!(large.to_string().contains("108000 bytes") && large.to_string().contains("split"), "{large}");
    soon("the receipt", producer.send(*full.message)).await.unwrap();
    assert_eq!(read_all(&broker, "orders").await.len(), 13);
    broker.shutdown().await.unwrap();
}

async fn a_flood_starves_nobody_on_its_thread(store: Store) {
    // All actors of both topics are on one thread, which is held at the first message of the flood.
    let order = Arc::new(Mutex::new(Vec::new()));
    let (release, held) = mpsc::channel::<()>();
    let (seen, held) = (Arc::clone(&order), Mutex::new(held));
    let armed = Arc::new(AtomicBool::new(false));
    let looks = Arc::clone(&armed);
    let probe = move |point: cuemq::ProbePoint<'_>| {
        if point.message == "Append" && looks.load(Ordering::SeqCst) {
            let mut order = seen.lock().unwrap();
            let first = order.is_empty();
            order.push(point.name.to_owned());
            drop(order);
            if first {
                held.lock().unwrap().recv().unwrap();
            }
        }
    };
    let settings = |s: &mut BrokerSettings| (s.actor_threads, s.flush) = (1, Flush::Buffered);
    let broker = store.builder().configure(settings).probe(probe).open().await.unwrap();
    broker.create_topic(TopicSpec::new("flood").queues(1)).await.unwrap();
    broker.create_topic(TopicSpec::new("calm").queues(1)).await.unwrap();
    let (flood, calm) = (broker.producer("flood").await.unwrap(), broker.producer("calm").await.unwrap());
    // A queue's actor starts with its first message; what is tested is one that runs.
    calm.send("first").await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let total = 4 * MAX_DRAIN_REQUESTS;
    for _ in 0..total {
        flood.send_one_way("x").unwrap();
    }
    until("the first message", || !order.lock().unwrap().is_empty()).await;
    let receipt = calm.enqueue("calm").unwrap();
    release.send(()).unwrap();
    soon("the calm topic's receipt", receipt).await.unwrap();
    let at = order.lock().unwrap().iter().position(|name| name == "calm/0").unwrap();
    assert!(at <= MAX_DRAIN_REQUESTS, "{at} of {total} messages of the flood came first");
    let end = || broker.describe_topic("flood").unwrap().queues[0].end.get();
    until("the whole flood", || end() == total as u64).await;
    broker.shutdown().await.unwrap();
}

async fn bad_requests_name_value_limit_and_way_out(store: Store) {
    let broker = store.builder().configure(|s| s.max_body_bytes = 1_000).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let long = "x".repeat(1_025);
    for (message, parts) in [
        (Message::new(vec![0; 1_001]), ["1001 bytes", "max_body_bytes = 1000", "raise the setting"]),
        (Message::new("x").tag("a || b"), ["\"a || b\"", "filter expression", "\"||\""]),
        (Message::new("x").tag(""), ["tag", "0 bytes", "1 to 1024"]),
        (Message::new("x").key(&long), ["key", "1025 bytes", "1 to 1024"]),
        (Message::new("x").sharding_key(&long), ["sharding key", "1025 bytes", "1 to 1024"]),
        (Message::new("x").property("__x", "1"), ["\"__x\"", "keeps for itself", "rename"]),
        (Message::new("x").property("p", "x".repeat(40_000)), ["bytes", "more than", "move data into the body"]),
    ] {
        let error = producer.send(message.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(parts.iter().all(|part| error.to_string().contains(part)), "{error}");
        assert!(!error.is_retryable() && error.is_certainly_not_applied());
        assert_eq!(producer.enqueue(message.clone()).unwrap_err().error.kind(), ErrorKind::Invalid);
        assert_eq!(producer.send_batch(vec![message]).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    let batch = producer.send_batch(vec![Message::new(""); MAX_BATCH_MESSAGES + 1]).await.unwrap_err();
    assert!(batch.to_string().contains("16385") && batch.to_string().contains("16384: split it"), "{batch}");
    for (name, part) in [
        ("", "empty"),
        ("a b", "' '"),
        ("../up", "'.'"),
        ("%RETRY%g", "reserved"),
        ("rmq_sys_x", "reserved"),
        (&"n".repeat(128), "128 bytes, more than 127: shorten it"),
    ] {
        let errors = [
            broker.create_topic(TopicSpec::new(name)).await.unwrap_err(),
            broker.producer(name).await.unwrap_err(),
            broker.consumer("group").subscribe(name).build().await.unwrap_err(),
            broker.consumer(name).subscribe("orders").build().await.unwrap_err(),
            broker.pull_consumer(name).await.unwrap_err(),
            broker.delete_topic(name).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
    for queues in [0, 1025] {
        let error = broker.create_topic(TopicSpec::new("new").queues(queues)).await.unwrap_err();
        assert!(error.to_string().contains("use 1 to 1024"), "{error}");
    }
    let twice = broker.create_topic(TopicSpec::new("orders")).await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Exists, "{twice}");
    let empty = broker.consumer("group").build().await.unwrap_err();
    assert!(empty.to_string().contains("call subscribe"), "{empty}");
    assert!(read_all(&broker, "orders").await.is_empty(), "nothing was written");
    assert_eq!((broker.topics(), broker.groups()), (vec!["orders".to_owned()], vec!["reader".to_owned()]));
    broker.shutdown().await.unwrap();

    let strict = store.builder().auto_create_topics(false).open().await.unwrap();
    let unknown = strict.producer("new").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::UnknownTopic);
    assert!(unknown.to_string().contains("create_topic") && unknown.to_string().contains("auto_create_topics"));
    assert_eq!(strict.describe_group("nobody").await.unwrap_err().kind(), ErrorKind::UnknownGroup);
    strict.shutdown().await.unwrap();
}

async fn bad_settings_are_named(store: Store) {
    type Change = fn(&mut BrokerSettings);
    let changes: [(&str, Change); 9] = [
        ("default_queues is 0: it needs 1 to 1024", |s| s.default_queues = 0),
        ("max_body_bytes is 0", |s| s.max_body_bytes = 0),
        ("max_body_bytes is 67108865", |s| s.max_body_bytes = (64 << 20) + 1),
        ("max_in_flight_messages is 0", |s| s.max_in_flight_messages = 0),
        ("max_in_flight_bytes is 1000", |s| s.max_in_flight_bytes = 1000),
        ("actor_threads is 65: it needs 1 to 64", |s| s.actor_threads = 65),
        ("delay_levels_ms (count) is 0", |s| s.delay_levels_ms.clear()),
        ("transaction_max_checks is 0", |s| s.transaction_max_checks = 0),
        ("max_redeliveries is 1001: it needs 0 to 1000", |s| s.max_redeliveries = 1001),
    ];
    for (text, change) in changes {
        let error = store.builder().configure(change).open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(text), "{error}");
    }
    let broker = store.open().await;
    broker.shutdown().await.unwrap();
}

async fn a_consumer_holds_so_many_messages(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let most = MAX_UNACKED_MESSAGES;
    producer.send_batch(vec![Message::new("x"); most + 5]).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut held = soon("the first ones", consumer.next_batch(most + 5)).await.unwrap();
    assert_eq!(held.len(), most);
    assert_nothing(&mut consumer, "it holds as many as it may");
    held.pop().unwrap().ack().await.unwrap();
    held.push(next(&mut consumer).await);
    assert_nothing(&mut consumer, "one for one");
    for delivery in held {
        delivery.ack_soon();
    }
    for _ in 0..4 {
        next(&mut consumer).await.ack().await.unwrap();
    }
    assert_nothing(&mut consumer, "everything came");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn a_consumer_holds_so_many_bytes(store: Store) {
    let broker = store.builder().flush(Flush::Buffered).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    // Six of them reach the limit.
    let size = MAX_UNACKED_BYTES / 6 + 1;
    for _ in 0..8 {
        producer.send(vec![7; size]).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let mut held = Vec::new();
    while let Some(delivery) = consumer.next().now_or_never() {
        held.push(delivery.unwrap());
    }
    assert_eq!(held.len(), 6, "no more once the limit is reached");
    held.pop().unwrap().ack().await.unwrap();
    held.push(next(&mut consumer).await);
    assert_nothing(&mut consumer, "one for one");
    held.pop().unwrap().ack().await.unwrap();
    let last = soon("the last one", consumer.next()).await.unwrap();
    assert_eq!(last.body().len(), size);
    last.ack().await.unwrap();
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    assert_eq!(soon("the lag", broker.describe_group("group")).await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}
