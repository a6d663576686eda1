//! A queue of limited length never holds more that waits than its limit: the oldest make way, or the newest are refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, read_all, take, text, until};
use cuemq::{Broker, Consumer, DeadReason, ErrorKind, MaxLength, Message, Overflow, Producer, Received, TopicSpec};

const SECOND: Duration = Duration::from_secs(1);

on_every_engine!(
    the_oldest_make_way,
    what_somebody_has_does_not_count_and_does_not_go,
    the_newest_are_refused,
    refused_ones_are_kept,
    bytes_count_too,
    without_a_group_the_queue_itself_is_short,
    each_group_for_itself,
    a_batch_is_taken_or_refused_whole,
    many_senders_at_once,
    delayed_messages_find_room_or_wait,
    limits_are_checked,
);

async fn limited(broker: &Broker, limit: MaxLength) -> Producer {
    broker.create_topic(TopicSpec::new("orders").queues(1).max_length(limit)).await.unwrap();
    broker.producer("orders").await.unwrap()
}

async fn consumer(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

/// Makes the group know the topic and leaves it without a member.
async fn known(broker: &Broker) {
    drop(consumer(broker).await);
    let gone = async || broker.describe_group("group").await.unwrap().members.is_empty();
    while !gone().await {
        tokio::task::yield_now().await;
    }
}

async fn send_all(producer: &Producer, numbers: std::ops::Range<u64>) {
    // At once, in this order.
    let sends: Vec<_> = numbers.map(|n| producer.enqueue(n.to_string()).unwrap()).collect();
    for send in sends {
        send.await.unwrap();
    }
}

async fn letters(broker: &Broker, group: &str) -> Vec<Received> {
    read_all(broker, &format!("%DLQ%{group}")).await
}

fn names(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

async fn the_oldest_make_way(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    drop(limited(&broker, MaxLength::of_messages(100)).await);
    known(&broker).await;
    let broker = store.reopen_at(broker, &clock).await;
    let producer = broker.producer("orders").await.unwrap();
    send_all(&producer, 0..150).await;
    let dead = letters(&broker, "group").await;
    assert_eq!(bodies(&dead), names(0..50), "the fifty oldest");
    assert!(dead.iter().all(|letter| letter.dead_reason() == Some(DeadReason::MaxLength) && letter.attempts() == 0));
    assert_eq!(dead[7].origin_offset().get(), 7);
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 100);
    let mut consumer = consumer(&broker).await;
    assert_eq!(bodies(&take(&mut consumer, 100).await), names(50..150));
    assert_nothing(&mut consumer, "the others made way");
    broker.shutdown().await.unwrap();
}

async fn what_somebody_has_does_not_count_and_does_not_go(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(3)).await;
    let mut consumer = consumer(&broker).await;
    send_all(&producer, 0..3).await;
    let (zero, one) = (next(&mut consumer).await, next(&mut consumer).await);
    send_all(&producer, 3..5).await;
    assert!(letters(&broker, "group").await.is_empty(), "two are out, three wait");
    send_all(&producer, 5..7).await;
    assert_eq!(bodies(&letters(&broker, "group").await), ["2", "3"]);
    one.ack().await.unwrap();
    zero.ack().await.unwrap();
    assert_eq!(bodies(&take(&mut consumer, 3).await), names(4..7));
    assert_nothing(&mut consumer, "all are done");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn the_newest_are_refused(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(10).policy(Overflow::RejectNew)).await;
    known(&broker).await;
    let sends: Vec<_> = (0..15).map(|n| producer.enqueue(n.to_string()).unwrap()).collect();
    let mut taken = 0;
    for send in sends {
        match send.await {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full);
                let text = error.to_string();
                assert!(
                    text.contains("orders/0") && text.contains("10 messages") && text.contains("DropHead"),
                    "{text}"
                );
                assert!(error.is_certainly_not_applied());
            }
        }
    }
    assert_eq!(taken, 10);
    assert_eq!(bodies(&read_all(&broker, "orders").await), names(0..10), "the others are not there");
    let mut consumer = consumer(&broker).await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    take(&mut consumer, 3).await;
    send_all(&producer, 20..23).await;
    assert_eq!(producer.send("too many").await.unwrap_err().kind(), ErrorKind::Full);
    drop(held);
    assert!(letters(&broker, "group").await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn refused_ones_are_kept(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(2).policy(Overflow::RejectNewDeadLetter)).await;
    known(&broker).await;
    send_all(&producer, 0..2).await;
    let refused = producer.send(Message::new("third").tag("t").key("k")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full);
    assert!(refused.to_string().contains("kept as a dead letter"), "{refused}");
    let dead = letters(&broker, "group").await;
    assert_eq!((bodies(&dead), dead[0].dead_reason()), (vec!["third".to_owned()], Some(DeadReason::MaxLength)));
    assert_eq!((dead[0].topic(), dead[0].tag(), dead[0].keys().next()), ("orders", Some("t"), Some("k")));
    assert_eq!(bodies(&read_all(&broker, "orders").await), names(0..2));
    broker.shutdown().await.unwrap();
}

async fn bytes_count_too(store: Store) {
    let broker = store.open().await;
    let producer =
        limited(&broker, MaxLength { messages: Some(8), bytes: Some(1000), policy: Overflow::DropHead }).await;
    known(&broker).await;
    let body = |name: &str, bytes: usize| format!("{name}{}", ".".repeat(bytes - name.len()));
    for (name, bytes) in [("a", 300), ("b", 300), ("c", 300), ("d", 100), ("e", 350)] {
        producer.send(body(name, bytes)).await.unwrap();
    }
    let first_letters = |all: &[Received]| -> String { all.iter().map(|m| text(m).chars().next().unwrap()).collect() };
    assert_eq!(first_letters(&letters(&broker, "group").await), "ab", "1350 bytes are 350 too many");
    for n in 0..6 {
        producer.send(n.to_string()).await.unwrap();
    }
    assert_eq!(first_letters(&letters(&broker, "group").await), "abc", "nine messages are one too many");
    let refused = producer.send(vec![0; 1001]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full);
    assert!(refused.to_string().contains("1001 bytes"), "{refused}");
    let mut consumer = consumer(&broker).await;
    assert_eq!(first_letters(&take(&mut consumer, 8).await), "de012345");
    producer.send(vec![b'x'; 1000]).await.unwrap();
    assert_eq!(first_letters(&take(&mut consumer, 1).await), "x");
    broker.shutdown().await.unwrap();
}

async fn without_a_group_the_queue_itself_is_short(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(10)).await;
    send_all(&producer, 0..25).await;
    let described = broker.describe_topic("orders").unwrap();
    assert_eq!((described.queues[0].min.get(), described.queues[0].end.get()), (15, 25));
    let spec = TopicSpec::new("strict").queues(1);
    broker
        .create_topic(spec.max_length(MaxLength::of_messages(1).policy(Overflow::RejectNewDeadLetter)))
        .await
        .unwrap();
    let strict = broker.producer("strict").await.unwrap();
    strict.send("one").await.unwrap();
    let refused = strict.send("two").await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Full && refused.to_string().contains("not stored"), "{refused}");
    broker.shutdown().await.unwrap();
}

async fn each_group_for_itself(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(5)).await;
    known(&broker).await;
    let mut quick = broker.consumer("quick").subscribe("orders").build().await.unwrap();
    for n in 0..12 {
        producer.send(n.to_string()).await.unwrap();
        assert_eq!(text(&take(&mut quick, 1).await[0]), n.to_string());
    }
    assert_eq!(bodies(&letters(&broker, "group").await), names(0..7));
    assert!(letters(&broker, "quick").await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn a_batch_is_taken_or_refused_whole(store: Store) {
    let broker = store.open().await;
    let limit = MaxLength::of_messages(10).policy(Overflow::RejectNew);
    broker.create_topic(TopicSpec::new("orders").queues(2).max_length(limit)).await.unwrap();
    known(&broker).await;
    let producer = broker.producer("orders").await.unwrap();
    let spread = producer.clone().with_selector(|message, _| u32::from(message.body()[0] % 2));
    let batch = |count: u8| (0..count).map(|n| Message::new(vec![n])).collect::<Vec<_>>();
    spread.send_batch(batch(12)).await.unwrap();
    assert_eq!(spread.send_batch(batch(9)).await.unwrap_err().kind(), ErrorKind::Full, "five fit into neither");
    spread.send_batch(batch(8)).await.unwrap();
    assert_eq!(read_all(&broker, "orders").await.len(), 20);
    let too_large = producer.send_batch(batch(11)).await.unwrap_err();
    assert!(too_large.to_string().contains("11 messages"), "{too_large}");
    broker.shutdown().await.unwrap();
}

async fn many_senders_at_once(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, MaxLength::of_messages(20)).await;
    known(&broker).await;
    let senders = (0..4u64).map(|sender| {
        let producer = producer.clone();
        async move { send_all(&producer, sender * 100..sender * 100 + 60).await }
    });
    let watched = async {
        for _ in 0..50 {
            let lag = broker.describe_group("group").await.unwrap().lag();
            assert!(lag <= 20, "{lag} wait");
            tokio::task::yield_now().await;
        }
    };
    futures_util::future::join(futures_util::future::join_all(senders), watched).await;
    let dead = letters(&broker, "group").await.len();
    assert_eq!((dead, broker.describe_group("group").await.unwrap().lag()), (220, 20), "none is lost, none doubled");
    let mut consumer = consumer(&broker).await;
    take(&mut consumer, 20).await;
    assert_nothing(&mut consumer, "the others made way");
    broker.shutdown().await.unwrap();
}

async fn delayed_messages_find_room_or_wait(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = limited(&broker, MaxLength::of_messages(2)).await;
    known(&broker).await;
    send_all(&producer, 0..2).await;
    for n in 2..5 {
        producer.send(Message::new(n.to_string()).delay(SECOND * n)).await.unwrap();
    }
    let dead = |group: &str| broker.describe_topic(&format!("%DLQ%{group}")).unwrap().queues[0].end.get();
    for n in 2..5 {
        clock.advance(if n == 2 { SECOND * 2 } else { SECOND });
        until("the oldest to make way", || dead("group") == n - 1).await;
    }
    until("the last", || broker.describe_topic("orders").unwrap().queues[0].end.get() == 5).await;
    assert_eq!(bodies(&letters(&broker, "group").await), names(0..3));
    let strict = MaxLength::of_messages(1).policy(Overflow::RejectNew);
    broker.create_topic(TopicSpec::new("strict").queues(1).max_length(strict)).await.unwrap();
    let mut consumer = broker.consumer("strict").subscribe("strict").build().await.unwrap();
    let producer = broker.producer("strict").await.unwrap();
    producer.send("first").await.unwrap();
    producer.send(Message::new("late").delay(SECOND)).await.unwrap();
    clock.advance(SECOND);
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "first");
    // Tried again each second until there is room.
    let late = async {
        loop {
            if let Some(late) = futures_util::FutureExt::now_or_never(consumer.next()) {
                return late.unwrap();
            }
            clock.advance(SECOND);
            tokio::task::yield_now().await;
        }
    };
    let late = common::soon("the late message", late).await;
    assert_eq!(text(&late), "late");
    broker.shutdown().await.unwrap();
}

async fn limits_are_checked(store: Store) {
    let broker = store.open().await;
    let bad = TopicSpec::new("bad").max_length(MaxLength::of_messages(0));
    let error = broker.create_topic(bad).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("at least 1"), "{error}");
    until("nothing was made", || broker.describe_topic("bad").is_err()).await;
    broker.shutdown().await.unwrap();
}
