//! When the engine fails, the broker says what is certain and what is not, goes on if that is safe, and ends cleanly
//! if it is not.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{assert_nothing, manual_clock, next, read_all, run, soon, take};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    AckLevel, Broker, BrokerState, ErrorKind, Flush, HalfMessage, Message, Producer, SeekTo, Timestamp, TopicSpec,
};
use futures_util::FutureExt;

on_every_engine!(
    a_refused_write_is_told_and_can_be_repeated,
    an_uncertain_write_ends_the_broker,
    a_full_disk_is_survived,
    a_refused_retry_loses_no_message,
    a_retry_that_nobody_waits_for_loses_no_message,
    a_failed_read_is_told_and_passes,
    a_failed_opening_leaves_the_store_free,
    a_failed_close_is_told_once,
    a_slow_engine_slows_nobody_else,
);

on_durable_engines!(a_failed_sync_ends_the_broker, nothing_is_seen_before_it_is_durable, dropped_senders_still_send,);

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_stalled_lane_holds_up_only_who_waits_for_a_write() {
    run(a_stalled_write_leaves_readers_and_groups_alone(Store::new(Kind::Lsm)));
}

/// The cause of a failure, once it is there.
async fn failure(broker: &Broker) -> String {
    let mut state = broker.watch_state();
    let failed = soon("the failure", state.wait_for(|state| matches!(state, BrokerState::Failed(_)))).await.unwrap();
    failed.to_string()
}

async fn all_numbers(broker: &Broker) -> Vec<u64> {
    let mut numbers: Vec<u64> = read_all(broker, "orders").await.iter().map(number_of).collect();
    numbers.sort_unstable();
    numbers
}

async fn a_refused_write_is_told_and_can_be_repeated(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    for (n, kind) in (0..).zip([StorageKind::Unavailable, StorageKind::Io, StorageKind::Full]) {
        store.faults.fail(Operation::Apply, 1, Fault::Refuse(kind));
        let error = producer.send(numbered(n)).await.unwrap_err();
        let expected = if kind == StorageKind::Full { ErrorKind::Full } else { ErrorKind::NotStored };
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.is_certainly_not_applied() && error.is_retryable());
        producer.send(numbered(n)).await.unwrap();
    }
    assert_eq!(broker.state(), BrokerState::Running);
    assert_eq!(all_numbers(&broker).await, [0, 1, 2], "each once");
    broker.shutdown().await.unwrap();
}

/// Nothing is taken any more, and everybody is told.
async fn refuses_everything(broker: &Broker, producer: &Producer) {
    let kinds = [
        producer.send(numbered(90)).await.unwrap_err().kind(),
        producer.send_batch(vec![numbered(91)]).await.unwrap_err().kind(),
        producer.send(numbered(92).delay_level(1)).await.unwrap_err().kind(),
        producer.enqueue(numbered(93)).unwrap_err().error.kind(),
        producer.send_one_way(numbered(94)).unwrap_err().error.kind(),
        broker.create_topic(TopicSpec::new("new")).await.unwrap_err().kind(),
        broker.producer("new").await.unwrap_err().kind(),
        broker.delete_topic("orders").await.unwrap_err().kind(),
        soon("a refusal", broker.consumer("group").subscribe("orders").build()).await.unwrap_err().kind(),
        soon("a refusal", broker.consumer("new").subscribe("orders").build()).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Unavailable; 10]);
}

async fn an_uncertain_write_ends_the_broker(store: Store) {
    let mut expected = Vec::new();
    for (first, lands) in [(0, true), (10, false)] {
        let broker = store.open().await;
        let producer = broker.producer("orders").await.unwrap();
        let id = producer.send(numbered(first)).await.unwrap().id.unwrap();
        let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
        // In the second round also what the first one left.
        take(&mut consumer, if lands { 1 } else { 3 }).await;
        let mut pull = broker.pull_consumer("puller").await.unwrap();
        pull.assign_topic("orders").await.unwrap();
        for queue in 0..4 {
            pull.seek("orders", queue, SeekTo::End).unwrap();
        }
        let (io, apply) = (StorageKind::Io, Operation::Apply);
        store.faults.fail(apply, 1, if lands { Fault::LandThenFail(io) } else { Fault::LoseThenFail(io) });
        let all = async { tokio::join!(producer.send(numbered(first + 1)), consumer.next(), pull.poll(1, HOUR)) };
        let (sent, ended, polled) = soon("three answers", all).await;
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unknown, "{error}");
        assert!(!error.is_certainly_not_applied());
        for ended in [ended.map(drop).unwrap_err(), polled.map(drop).unwrap_err()] {
            assert_eq!(ended.kind(), ErrorKind::Unavailable, "{ended}");
            assert!(ended.to_string().contains("failed on request"), "{ended}");
        }
        let cause = failure(&broker).await;
        assert!(cause.contains("apply") && cause.contains("failed on request"), "{cause}");
        refuses_everything(&broker, &producer).await;
        assert_eq!(number_of(&broker.message(id).unwrap().unwrap()), first, "reads go on");
        soon("the shutdown", broker.shutdown()).await.unwrap();
        assert_eq!(broker.state(), BrokerState::Stopped);
        drop((consumer, pull, producer));

        let broker = store.open().await;
        expected.push(first);
        expected.extend(lands.then_some(first + 1));
        assert_eq!(all_numbers(&broker).await, expected, "it landed: {lands}");
        broker.producer("orders").await.unwrap().send(numbered(first + 2)).await.unwrap();
        expected.push(first + 2);
        broker.shutdown().await.unwrap();
    }
}

async fn a_failed_sync_ends_the_broker(store: Store) {
    let faults = [Fault::Refuse, Fault::LandThenFail, Fault::LoseThenFail];
    for (n, fault) in (1..).zip(faults) {
        let broker = store.open().await;
        let producer = broker.producer("orders").await.unwrap();
        let name = format!("group{n}");
        let mut consumer = broker.consumer(name).subscribe("orders").start_at(cuemq::StartAt::Latest);
        let mut consumer = {
            consumer = consumer.member("one");
            consumer.build().await.unwrap()
        };
        producer.send(numbered(100)).await.unwrap();
        take(&mut consumer, 1).await;
        // A durable send leaves nothing for the next timed sync.
        producer.send(numbered(100)).await.unwrap();
        let held = next(&mut consumer).await;
        store.faults.fail(Operation::Sync, 1, fault(StorageKind::Io));
        let (sent, ended) =
            soon("both answers", async { tokio::join!(producer.send(numbered(n)), consumer.next()) }).await;
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unknown);
        assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::Unavailable, "nothing is shown that is not durable");
        let cause = failure(&broker).await;
        assert!(cause.contains("sync"), "{cause}");
        refuses_everything(&broker, &producer).await;
        soon("an answer", held.ack()).await.unwrap_err();
        let _ = soon("the shutdown", broker.shutdown()).await;
        drop((consumer, producer));
    }
    let broker = store.open().await;
    assert_eq!(all_numbers(&broker).await.iter().filter(|n| **n == 100).count(), 6, "durable messages are there");
    broker.producer("orders").await.unwrap().send(numbered(9)).await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn a_full_disk_is_survived(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = broker.producer("orders").await.unwrap();
    let transactions = broker.transaction_producer("producers", "orders", |_: HalfMessage| None).await.unwrap();
    for n in 0..4 {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    take(&mut consumer, 1).await;
    let half = transactions.begin(numbered(20)).await.unwrap();
    broker.create_topic(TopicSpec::new("spare")).await.unwrap();
    assert_eq!(all_numbers(&broker).await, [0, 1, 2, 3]);
    store.faults.fail_always(Operation::Apply, Fault::Refuse(StorageKind::Full));
    let kinds = [
        producer.send(numbered(10)).await.unwrap_err().kind(),
        producer.send_batch(vec![numbered(11), numbered(12)]).await.unwrap_err().kind(),
        producer.send(numbered(13).delay_level(1)).await.unwrap_err().kind(),
        transactions.begin(numbered(14)).await.unwrap_err().kind(),
        half.commit().await.unwrap_err().kind(),
        broker.create_topic(TopicSpec::new("new")).await.unwrap_err().kind(),
        broker.delete_topic("spare").await.unwrap_err().kind(),
        next(&mut consumer).await.ack().await.unwrap_err().kind(),
        next(&mut consumer).await.retry_later(None).await.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Full; 9]);
    assert_eq!(broker.state(), BrokerState::Running);
    let last = next(&mut consumer).await;
    assert_eq!(all_numbers(&broker).await, [0, 1, 2, 3], "reads go on");
    store.faults.clear(Operation::Apply);
    producer.send(numbered(4)).await.unwrap();
    assert!(half.commit().await.unwrap().is_some(), "the decision was not made, so it can be made again");
    broker.create_topic(TopicSpec::new("new")).await.unwrap();
    assert_eq!(broker.topics(), ["new", "orders", "spare"], "a topic whose deletion was refused is still there");
    broker.producer("spare").await.unwrap().send("x").await.unwrap();
    broker.delete_topic("spare").await.unwrap();
    last.ack().await.unwrap();
    assert_eq!(take(&mut consumer, 2).await.len(), 2);
    clock.advance(Duration::from_secs(1));
    let again = next(&mut consumer).await;
    assert_eq!(again.attempts(), 1, "the message whose retry was refused");
    again.ack().await.unwrap();
    assert_nothing(&mut consumer, "everything came");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    assert_eq!(all_numbers(&broker).await, [0, 1, 2, 3, 4, 20]);
    broker.shutdown().await.unwrap();
}

async fn a_refused_retry_loses_no_message(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..3 {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    take(&mut consumer, 1).await;
    let (refused, other) = (next(&mut consumer).await, next(&mut consumer).await);
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    assert_eq!(refused.retry_later(None).await.unwrap_err().kind(), ErrorKind::Full);
    other.ack().await.unwrap();
    store.kill(broker).await;
    drop(consumer);
    let broker = store.open().await;
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 1, "neither a copy nor the original would be left");
    assert_nothing(&mut consumer, "the others are done");
    broker.shutdown().await.unwrap();
}

async fn a_retry_that_nobody_waits_for_loses_no_message(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let delivery = next(&mut consumer).await;
    let gate = store.faults.hold(Operation::Apply);
    let mut retry = Box::pin(delivery.retry_later(None));
    assert!(retry.as_mut().now_or_never().is_none());
    gate.wait_for(1);
    drop(retry);
    drop(gate);
    assert_nothing(&mut consumer, "it comes again after a pause");
    clock.advance(Duration::from_secs(1));
    assert_eq!(take(&mut consumer, 1).await[0].attempts(), 1, "nobody took it, so it comes again here");
    clock.advance(Duration::from_secs(10));
    let copy = take(&mut consumer, 1).await;
    assert_eq!((number_of(&copy[0]), copy[0].attempts()), (1, 1), "and its copy comes, because it was stored");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

/// An engine that panics is as uncertain as one that fails: the broker ends, and says so.
#[test]
fn an_engine_that_panics_ends_the_broker() {
    run(async {
        for operation in [Operation::Apply, Operation::Sync] {
            let store = Store::new(Kind::Power);
            let broker = store.open().await;
            let producer = broker.producer("orders").await.unwrap();
            let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
            producer.send(numbered(0)).await.unwrap();
            take(&mut consumer, 1).await;
            producer.send(numbered(1)).await.unwrap();
            let _held = next(&mut consumer).await;
            store.panic_at(Some(operation));
            let (sent, ended) =
                soon("both answers", async { tokio::join!(producer.send(numbered(2)), consumer.next()) }).await;
            assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unknown);
            assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::Unavailable);
            assert!(failure(&broker).await.contains("the engine panicked"));
            refuses_everything(&broker, &producer).await;
            store.panic_at(None);
            soon("the shutdown", broker.shutdown()).await.unwrap();
            drop((consumer, producer));
            let broker = store.open().await;
            let numbers = all_numbers(&broker).await;
            assert_eq!(&numbers[..2], [0, 1], "what was durable is there");
            broker.shutdown().await.unwrap();
        }
    });
}

async fn nothing_is_seen_before_it_is_durable(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("quick").flush(Flush::Buffered)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let quick = broker.producer("quick").await.unwrap();
    producer.send(numbered(0)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").subscribe("quick").build().await.unwrap();
    take(&mut consumer, 1).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    pull.poll(9, Duration::ZERO).await.unwrap();
    producer.send(numbered(1)).await.unwrap();
    take(&mut consumer, 1).await;
    assert_eq!(all_numbers(&broker).await, [0, 1]);
    let gate = store.faults.hold(Operation::Sync);
    let mut pending = producer.enqueue(numbered(2)).unwrap();
    gate.wait_for(1);
    assert_eq!(quick.send(numbered(3)).await.unwrap().level, AckLevel::Buffered);
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 3, "a buffered topic does not wait");
    assert_nothing(&mut consumer, "applied is not durable");
    assert_eq!(pull.poll(9, Duration::ZERO).await.unwrap().iter().map(number_of).collect::<Vec<_>>(), [1]);
    assert_eq!(all_numbers(&broker).await, [0, 1]);
    let find = || broker.find_by_key("orders", "key2", Timestamp::MIN, Timestamp::MAX, 9).unwrap().len();
    assert_eq!(find(), 0);
    let ends: u64 = broker.describe_topic("orders").unwrap().queues.iter().map(|queue| queue.end.get()).sum();
    assert_eq!(ends, 2);
    assert!((&mut pending).now_or_never().is_none(), "no receipt either");
    drop(gate);
    assert_eq!(soon("the receipt", pending).await.unwrap().level, AckLevel::Durable);
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 2);
    assert_eq!((find(), all_numbers(&broker).await), (1, vec![0, 1, 2]));
    broker.shutdown().await.unwrap();
}

async fn dropped_senders_still_send(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Sync);
    drop(producer.send(numbered(0)));
    let mut polled = Box::pin(producer.send(numbered(1)));
    assert!(polled.as_mut().now_or_never().is_none());
    gate.wait_for(1);
    drop(polled);
    let mut batch = Box::pin(producer.send_batch(vec![numbered(2), numbered(3)]));
    assert!(batch.as_mut().now_or_never().is_none());
    drop(batch);
    drop(producer.enqueue(numbered(4)).unwrap());
    drop(gate);
    producer.send(numbered(5)).await.unwrap();
    broker.shutdown().await.unwrap();
    let broker = store.open().await;
    assert_eq!(all_numbers(&broker).await, [1, 2, 3, 4, 5], "what was never polled was never sent");
    broker.shutdown().await.unwrap();
}

async fn a_failed_read_is_told_and_passes(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    for kind in [StorageKind::Unavailable, StorageKind::Corrupt] {
        store.faults.fail(Operation::Fetch, 1, Fault::Refuse(kind));
        let error = soon("an answer", consumer.next()).await.map(drop).unwrap_err();
        let expected = if kind == StorageKind::Corrupt { ErrorKind::Corrupt } else { ErrorKind::NotStored };
        assert_eq!(error.kind(), expected, "{error}");
    }
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 1, "the message comes when it can be read");
    assert_eq!(broker.state(), BrokerState::Running);
    broker.shutdown().await.unwrap();
}

async fn a_failed_opening_leaves_the_store_free(store: Store) {
    let broker = store.open().await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    broker.consumer("group").subscribe("orders").build().await.unwrap();
    broker.shutdown().await.unwrap();
    drop(broker);
    let operations = [Operation::Get, Operation::Scan, Operation::Apply, Operation::Sync, Operation::Bounds];
    for operation in operations {
        for nth in 1..=3 {
            let before = store.faults.calls(operation);
            store.faults.fail(operation, nth, Fault::Refuse(StorageKind::Unavailable));
            let opened = soon("an answer", store.builder().open()).await;
            let reached = store.faults.calls(operation) >= before + nth;
            store.faults.clear(operation);
            match opened {
                Err(_) => assert!(reached, "{operation:?} {nth}: only what fails is an error"),
                // Late ones meet an actor, which is restarted, or a broker that says so.
                Ok(broker) => drop(soon("the shutdown", broker.shutdown()).await),
            }
        }
    }
    let broker = store.open().await;
    assert_eq!(all_numbers(&broker).await, [1]);
    broker.shutdown().await.unwrap();
}

async fn a_failed_close_is_told_once(store: Store) {
    let broker = store.open().await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    store.faults.fail(Operation::Close, 1, Fault::LandThenFail(StorageKind::Io));
    let error = soon("the shutdown", broker.shutdown()).await.unwrap_err();
    assert!(error.to_string().contains("failed on request"), "{error}");
    assert_eq!(broker.state(), BrokerState::Stopped);
    soon("the second shutdown", broker.shutdown()).await.unwrap();
    let broker = store.open().await;
    assert_eq!(all_numbers(&broker).await, [1]);
    broker.shutdown().await.unwrap();
}

async fn a_slow_engine_slows_nobody_else(store: Store) {
    let slow = store.open().await;
    let other = Store::new(store.kind);
    let quick = other.open().await;
    let stuck = slow.producer("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Apply);
    let pending: Vec<_> = (0..10).map(|n| stuck.enqueue(numbered(n)).unwrap()).collect();
    gate.wait_for(1);
    let producer = quick.producer("orders").await.unwrap();
    let mut consumer = quick.consumer("group").subscribe("orders").build().await.unwrap();
    for n in 0..10 {
        soon("a receipt", producer.send(numbered(n))).await.unwrap();
        assert_eq!(number_of(&take(&mut consumer, 1).await[0]), n);
    }
    producer.send(Message::new("late").delay(Duration::from_millis(1))).await.unwrap();
    let late = next(&mut consumer).await;
    late.ack().await.unwrap();
    quick.shutdown().await.unwrap();
    drop(gate);
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    slow.shutdown().await.unwrap();
}

async fn a_stalled_write_leaves_readers_and_groups_alone(store: Store) {
    let broker = store.open().await;
    let (stuck, other) = (broker.producer("stuck").await.unwrap(), broker.producer("orders").await.unwrap());
    let mut receipts = Vec::new();
    for n in 0..20 {
        receipts.push(other.send(numbered(n)).await.unwrap());
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let first = next(&mut consumer).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    let gate = store.faults.hold(Operation::Apply);
    let mut pending: Vec<_> = (0..10).map(|n| stuck.enqueue(numbered(n)).unwrap()).collect();
    gate.wait_for(1);
    // What has to be written waits with it, and holds up nobody either: not the group's actor, not the other queues.
    let acknowledged = tokio::spawn(async move { first.ack().await });
    pending.extend((20..30).map(|n| other.enqueue(numbered(n)).unwrap()));
    for _ in 1..20 {
        next(&mut consumer).await;
    }
    let described = soon("the group", broker.describe_group("group")).await.unwrap();
    assert_eq!(described.members.len(), 1);
    let mut pulled = 0;
    while pulled < 20 {
        pulled += soon("a poll", pull.poll(20, HOUR)).await.unwrap().len();
    }
    assert_eq!(soon("a position", pull.committed("orders", 0)).await.unwrap(), None);
    for (n, receipt) in (0..).zip(&receipts) {
        assert_eq!(number_of(&broker.message(receipt.id.unwrap()).unwrap().unwrap()), n);
    }
    assert_eq!(broker.describe_topic("orders").unwrap().queues.len(), 4);
    assert!(!acknowledged.is_finished() && broker.state() == BrokerState::Running);
    drop(gate);
    soon("the acknowledgement", acknowledged).await.unwrap().unwrap();
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    assert_eq!(all_numbers(&broker).await, (0..30).collect::<Vec<_>>());
    drop((consumer, pull));
    broker.shutdown().await.unwrap();
}
