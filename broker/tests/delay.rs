//! A delayed message is stored at once, seen by nobody before its time, and delivered once at it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::checker::{Checker, number_of, numbered};
use common::store::Store;
use common::{Settler, assert_nothing, bodies, manual_clock, next, read_all, take, text};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{Broker, Consumer, Message, Timestamp, TopicSpec};

on_every_engine!(
    eighteen_levels_come_at_their_times,
    any_instant_in_order_of_due_times,
    a_past_time_is_now,
    a_pending_message_is_hidden,
    pending_messages_survive_restarts,
    a_deleted_topic_loses_no_delayed_message,
    a_full_disk_puts_due_messages_off,
    due_messages_find_their_queues,
    a_bound_holds_over_restarts,
);

/// RocketMQ's levels, in seconds.
const LEVELS_S: [u64; 18] = [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

async fn one_queue(broker: &Broker) -> Consumer {
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

async fn eighteen_levels_come_at_their_times(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = one_queue(&broker).await;
    let mut settler = Settler::new(&broker, &clock).await;
    let producer = broker.producer("orders").await.unwrap();
    let start = clock.now();
    for level in (1..=18).rev() {
        let receipt = producer.send(Message::new(format!("level {level}")).delay_level(level)).await.unwrap();
        assert_eq!((receipt.offset, receipt.id, receipt.level), (None, None, store.durable_level()));
    }
    let mut passed = 0;
    for (level, seconds) in (1..).zip(LEVELS_S) {
        clock.advance(Duration::from_secs(seconds - passed) - Duration::from_millis(1));
        settler.settle().await;
        assert_nothing(&mut consumer, "not a millisecond early");
        clock.advance(Duration::from_millis(1));
        passed = seconds;
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), format!("level {level}"));
        assert_eq!(delivery.stored_at(), start.plus(Duration::from_secs(seconds)), "at its time");
        assert_eq!(delivery.born_at(), start);
        delivery.ack().await.unwrap();
    }
    clock.advance(Duration::from_secs(10_000));
    settler.settle().await;
    assert_nothing(&mut consumer, "each comes once");
    broker.shutdown().await.unwrap();
}

async fn any_instant_in_order_of_due_times(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = one_queue(&broker).await;
    let producer = broker.producer("orders").await.unwrap();
    let (start, mut expected) = (clock.now(), Vec::new());
    for n in 0..60u64 {
        // A permutation of odd instants, some of them shared by two messages.
        let due_ms = 1 + (n * 37) % 53 * 997;
        expected.push((due_ms, n));
        let message = if n % 2 == 0 {
            numbered(n).deliver_at(start.plus(Duration::from_millis(due_ms)))
        } else {
            numbered(n).delay(Duration::from_millis(due_ms))
        };
        producer.send(message).await.unwrap();
    }
    expected.sort_unstable();
    // The scheduler has heard of all of them.
    Settler::new(&broker, &clock).await.settle().await;
    clock.advance(Duration::from_secs(3600));
    let got: Vec<u64> = take(&mut consumer, 60).await.iter().map(number_of).collect();
    assert_eq!(got, expected.iter().map(|(_, n)| *n).collect::<Vec<_>>(), "by due time, then as sent");
    broker.shutdown().await.unwrap();
}

async fn a_past_time_is_now(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = one_queue(&broker).await;
    let producer = broker.producer("orders").await.unwrap();
    producer.send(Message::new("past").deliver_at(Timestamp::from_millis(1))).await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "past");
    producer.send(Message::new("now").delay(Duration::ZERO)).await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "now");
    let receipt = producer.send(Message::new("level 0").delay_level(0)).await.unwrap();
    assert!(receipt.offset.is_some(), "level 0 is no delay");
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "level 0");
    producer.send(Message::new("beyond the last level").delay_level(200)).await.unwrap();
    clock.advance(Duration::from_secs(7200) - Duration::from_millis(1));
    Settler::new(&broker, &clock).await.settle().await;
    assert_nothing(&mut consumer, "beyond the last means the last");
    clock.advance(Duration::from_millis(1));
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "beyond the last level");
    broker.shutdown().await.unwrap();
}

async fn a_pending_message_is_hidden(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = one_queue(&broker).await;
    broker.producer("orders").await.unwrap().send(numbered(5).delay_level(3)).await.unwrap();
    Settler::new(&broker, &clock).await.settle().await;
    let find = || broker.find_by_key("orders", "key5", Timestamp::MIN, Timestamp::MAX, 10).unwrap().len();
    assert_eq!((read_all(&broker, "orders").await.len(), find()), (0, 0));
    assert_nothing(&mut consumer, "it waits");
    clock.advance(Duration::from_secs(10));
    let delivery = next(&mut consumer).await;
    assert_eq!((number_of(&delivery), find()), (5, 1));
    assert!(broker.message(delivery.id()).unwrap().is_some());
    broker.shutdown().await.unwrap();
}

async fn pending_messages_survive_restarts(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    drop(one_queue(&broker).await);
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..20 {
        producer.send(numbered(n).delay(Duration::from_secs(10 * (n + 1)))).await.unwrap();
    }
    drop(producer);
    let mut checker = Checker::default();
    for round in 0..4u64 {
        if round % 2 == 0 {
            store.kill(broker).await;
        } else {
            broker.shutdown().await.unwrap();
        }
        // Down while three fall due; two more do while the broker is up.
        clock.advance(Duration::from_secs(30));
        broker = store.open_at(&clock).await;
        let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
        for received in take(&mut consumer, 3).await {
            assert_eq!(checker.delivered(&received) / 5, round);
        }
        Settler::new(&broker, &clock).await.settle().await;
        assert_nothing(&mut consumer, "nothing early, nothing twice");
        clock.advance(Duration::from_secs(20));
        for received in take(&mut consumer, 2).await {
            assert_eq!(checker.delivered(&received) / 5, round);
        }
    }
    checker.complete(0..20);
    assert_eq!(checker.duplicates(), 0);
    assert_eq!(read_all(&broker, "orders").await.len(), 20, "each was moved once");
    broker.shutdown().await.unwrap();
}

async fn a_deleted_topic_loses_no_delayed_message(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.producer("orders").await.unwrap().send(numbered(1).delay_level(1)).await.unwrap();
    broker.delete_topic("orders").await.unwrap();
    clock.advance(Duration::from_secs(1));
    Settler::new(&broker, &clock).await.settle().await;
    let kept = read_all(&broker, "rmq_sys_UNDELIVERABLE").await;
    assert_eq!(kept.iter().map(number_of).collect::<Vec<_>>(), [1]);
    assert_eq!(broker.topics(), ["settled"]);
    broker.shutdown().await.unwrap();
}

async fn a_full_disk_puts_due_messages_off(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = one_queue(&broker).await;
    let producer = broker.producer("orders").await.unwrap();
    producer.send(numbered(1).delay_level(1)).await.unwrap();
    let calls = store.faults.calls(Operation::Apply);
    store.faults.fail_always(Operation::Apply, Fault::Refuse(StorageKind::Full));
    clock.advance(Duration::from_secs(1));
    common::until("the first try", || store.faults.calls(Operation::Apply) > calls).await;
    common::until("a timer for the next try", || clock.sleepers() > 0).await;
    assert_nothing(&mut consumer, "it could not be moved");
    store.faults.clear(Operation::Apply);
    assert_nothing(&mut consumer, "the next try is a second later");
    clock.advance(Duration::from_secs(1));
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 1);
    clock.advance(Duration::from_secs(100));
    Settler::new(&broker, &clock).await.settle().await;
    assert_nothing(&mut consumer, "once");
    broker.shutdown().await.unwrap();
}

async fn due_messages_find_their_queues(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let plain = broker.producer("orders").await.unwrap();
    let at_once = plain.send(Message::new("key 0").sharding_key("customer")).await.unwrap();
    for n in 1..4 {
        let message = Message::new(format!("key {n}")).sharding_key("customer").delay_level(1);
        plain.send(message).await.unwrap();
        clock.advance(Duration::from_millis(1));
    }
    let chosen = plain.clone().with_selector(|_, _| 3);
    let receipt = chosen.send(Message::new("chosen").delay_level(1)).await.unwrap();
    assert_eq!(receipt.queue.get(), 3, "a selector chooses at once");
    clock.advance(Duration::from_secs(1));
    Settler::new(&broker, &clock).await.settle().await;
    let all = read_all(&broker, "orders").await;
    let keyed: Vec<_> = all.iter().filter(|message| message.sharding_key().is_some()).cloned().collect();
    assert!(keyed.iter().all(|message| message.queue().queue == at_once.queue), "one key, one queue");
    assert_eq!(bodies(&keyed), ["key 0", "key 1", "key 2", "key 3"]);
    assert!(all.iter().any(|message| text(message) == "chosen" && message.queue().queue.get() == 3));
    broker.shutdown().await.unwrap();
}

async fn a_bound_holds_over_restarts(store: Store) {
    let clock = manual_clock();
    let open = || async {
        let builder = store.builder().clock(clock.clock());
        builder.configure(|settings| settings.max_delayed_messages = 3).open().await.unwrap()
    };
    let mut broker = open().await;
    let (mut producer, mut first) = (broker.producer("orders").await.unwrap(), None);
    let send = |producer: &cuemq::Producer, n: u64| {
        let producer = producer.clone();
        async move { producer.send(numbered(n).delay(Duration::from_secs(n))).await }
    };
    for n in 1..=3 {
        let receipt = send(&producer, n).await.unwrap();
        first = first.or(receipt.scheduled);
    }
    for round in 0..3 {
        let error = send(&producer, 9).await.unwrap_err();
        assert!(
            error.kind() == cuemq::ErrorKind::Full && error.to_string().contains("max_delayed_messages"),
            "{error}"
        );
        if round < 2 {
            broker.shutdown().await.unwrap();
            broker = open().await;
            producer = broker.producer("orders").await.unwrap();
            common::until("the rows are counted", || broker.delayed_messages() == 3).await;
        }
    }
    assert_eq!(broker.recall(&first.unwrap()).await.unwrap(), cuemq::Recalled::Recalled);
    send(&producer, 9).await.unwrap();
    clock.advance(Duration::from_secs(3));
    common::until("two have come", || broker.delayed_messages() == 1).await;
    broker.shutdown().await.unwrap();
}
