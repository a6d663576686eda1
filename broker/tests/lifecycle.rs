//! A broker lives as long as somebody holds it or until it is shut down, beside others, on any runtime and on none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{next, read_all, soon, take};
use cuemq::storage_api::fault::Operation;
use cuemq::{
    Broker, BrokerState, Decision, ErrorKind, HalfMessage, Message, Publish, SeekTo, TopicSpec, TransactionId,
};
use futures_util::FutureExt;

on_every_engine!(
    brokers_live_side_by_side,
    shutdown_finishes_what_is_under_way,
    shutdown_may_be_called_by_many,
    after_a_shutdown_everything_is_closed,
    the_last_handle_keeps_the_broker,
    a_store_has_one_broker,
    a_future_that_was_never_polled_sends_nothing,
    a_worker_that_is_stopped_finishes_its_work,
);

async fn brokers_live_side_by_side(store: Store) {
    let others = [Store::new(store.kind), Store::new(Kind::Memory)];
    let mut brokers = vec![store.open().await];
    for other in &others {
        brokers.push(other.open().await);
    }
    let mut ids = Vec::new();
    for (n, broker) in (0..).zip(&brokers) {
        let producer = broker.producer("orders").await.unwrap();
        ids.push(producer.send(numbered(n)).await.unwrap().id.unwrap());
    }
    for (n, broker) in (0..).zip(&brokers) {
        let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
        assert_eq!(number_of(&take(&mut consumer, 1).await[0]), n);
        let known = ids.iter().filter(|id| broker.message(**id).unwrap().is_some()).count();
        assert_eq!(known, 1, "ids of one broker name nothing in another");
    }
    brokers.remove(1).shutdown().await.unwrap();
    for broker in &brokers {
        assert_eq!(broker.state(), BrokerState::Running);
        broker.producer("orders").await.unwrap().send("still here").await.unwrap();
        broker.shutdown().await.unwrap();
    }
}

async fn shutdown_finishes_what_is_under_way(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    producer.send(numbered(200)).await.unwrap();
    let delivery = next(&mut consumer).await;
    let pending: Vec<_> = (0..200).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
    delivery.ack_soon();
    broker.shutdown().await.unwrap();
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    drop((producer, consumer));
    let broker = store.open().await;
    assert_eq!(read_all(&broker, "orders").await.len(), 201);
    let group = broker.describe_group("group").await.unwrap();
    assert_eq!(group.lag(), 200, "the acknowledgement was written");
    broker.shutdown().await.unwrap();
}

async fn shutdown_may_be_called_by_many(store: Store) {
    let broker = store.open().await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let clone = broker.clone();
    let (one, two, three) =
        soon("all three", async { tokio::join!(broker.shutdown(), clone.shutdown(), broker.shutdown()) }).await;
    for result in [one, two, three] {
        result.unwrap();
    }
    assert_eq!(broker.state(), BrokerState::Stopped);
    soon("another one", broker.shutdown()).await.unwrap();
    // One that nobody waits for goes on by itself.
    let broker = store.open().await;
    let mut state = broker.watch_state();
    assert!(broker.shutdown().now_or_never().is_none());
    soon("the end", state.wait_for(|state| *state == BrokerState::Stopped)).await.unwrap();
    let broker = store.open().await;
    assert_eq!(read_all(&broker, "orders").await.len(), 1);
    broker.shutdown().await.unwrap();
}

async fn after_a_shutdown_everything_is_closed(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let id = producer.send(numbered(1)).await.unwrap().id.unwrap();
    producer.send(numbered(2)).await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let (one, two) = (next(&mut consumer).await, next(&mut consumer).await);
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    let transactions = broker.transaction_producer("producers", "orders", |_: HalfMessage| None).await.unwrap();
    let transaction = transactions.begin(numbered(3)).await.unwrap();
    let gateway = broker.gateway();
    broker.shutdown().await.unwrap();
    let all = async {
        vec![
            ("send", producer.send("x").await.map(drop)),
            ("send_batch", producer.send_batch(vec![Message::new("x")]).await.map(drop)),
            ("delayed", producer.send(Message::new("x").delay_level(1)).await.map(drop)),
            ("enqueue", producer.enqueue("x").map(drop).map_err(|rejected| rejected.error)),
            ("one way", producer.send_one_way("x").map_err(|rejected| rejected.error)),
            ("callback", producer.send_with("x", |_| unreachable!()).map_err(|rejected| rejected.error)),
            ("next", consumer.next().await.map(drop)),
            ("next_batch", consumer.next_batch(2).await.map(drop)),
            ("ack", one.ack().await),
            ("retry", two.retry_later(None).await),
            ("poll", pull.poll(1, Duration::from_secs(60)).await.map(drop)),
            ("commit", pull.commit().await),
            ("committed", pull.committed("orders", 0).await.map(drop)),
            ("assign", pull.assign("orders", 0).await),
            ("seek", pull.seek("orders", 0, SeekTo::Begin).map(drop)),
            ("begin", transactions.begin("x").await.map(drop)),
            ("end", transactions.end(TransactionId(1), Decision::Commit).await.map(drop)),
            ("commit", transaction.commit().await.map(drop)),
            ("rollback", transaction.rollback().await),
            ("create_topic", broker.create_topic(TopicSpec::new("new")).await.map(drop)),
            ("delete_topic", broker.delete_topic("orders").await),
            ("producer", broker.producer("new").await.map(drop)),
            ("consumer", broker.consumer("group").subscribe("orders").build().await.map(drop)),
            ("pull_consumer", broker.pull_consumer("new").await.map(drop)),
            ("describe_topic", broker.describe_topic("orders").map(drop)),
            ("describe_group", broker.describe_group("group").await.map(drop)),
            ("message", broker.message(id).map(drop)),
        ]
    };
    for (what, result) in soon("all answers", all).await {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Closed, "{what}: {error}");
    }
    let publish = Publish { topic: "orders".into(), message: Message::new("x") };
    assert!(soon("the mailbox", gateway.send(publish)).await.is_err(), "its actor is gone");
    let late = broker.transaction_producer("late", "orders", |_: HalfMessage| None);
    assert_eq!(soon("an answer", late).await.map(drop).unwrap_err().kind(), ErrorKind::Closed);
}

async fn the_last_handle_keeps_the_broker(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    let mut state = broker.watch_state();
    drop(broker);
    producer.send(numbered(1)).await.unwrap();
    let pending: Vec<_> = (2..50).map(|n| producer.enqueue(numbered(n)).unwrap()).collect();
    drop(producer);
    soon("the end", state.wait_for(|state| *state == BrokerState::Stopped)).await.unwrap();
    for receipt in pending {
        soon("the receipt", receipt).await.unwrap();
    }
    let broker = store.open().await;
    assert_eq!(read_all(&broker, "orders").await.len(), 49, "what was sent before is there");
    broker.shutdown().await.unwrap();
}

async fn a_store_has_one_broker(store: Store) {
    let broker = store.open().await;
    broker.producer("orders").await.unwrap().send(numbered(1)).await.unwrap();
    let error = store.try_engine().unwrap_err();
    assert_eq!(error.kind(), cuemq::storage_api::ErrorKind::Locked, "{error}");
    broker.producer("orders").await.unwrap().send(numbered(2)).await.unwrap();
    let broker = store.reopen(broker).await;
    assert_eq!(read_all(&broker, "orders").await.len(), 2);
    broker.shutdown().await.unwrap();
}

#[test]
fn a_directory_has_one_broker() {
    common::run(async {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::open(directory.path()).await.unwrap();
        let error = Broker::open(directory.path()).await.unwrap_err();
        assert!(error.is_certainly_not_applied());
        let name = directory.path().display().to_string();
        assert!(error.to_string().contains(&name) && error.to_string().contains("in use"), "{error}");
        broker.shutdown().await.unwrap();
        Broker::open(directory.path()).await.unwrap().shutdown().await.unwrap();
    });
}

async fn a_future_that_was_never_polled_sends_nothing(store: Store) {
    let broker = store.builder().configure(|s| s.max_in_flight_messages = 1).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    drop(producer.send(numbered(0)));
    drop(producer.send_batch(vec![numbered(1)]));
    let gate = store.faults.hold(Operation::Apply);
    let mut under_way = Box::pin(producer.send(numbered(2)));
    assert!(under_way.as_mut().now_or_never().is_none());
    let mut waits = Box::pin(producer.send(numbered(3)));
    assert!(waits.as_mut().now_or_never().is_none());
    drop(waits);
    drop(under_way);
    drop(gate);
    soon("the receipt", producer.send(numbered(4))).await.unwrap();
    let mut numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 4], "handed over is sent; never polled, or waiting for room, is not");
    broker.shutdown().await.unwrap();
}

async fn a_worker_that_is_stopped_finishes_its_work(store: Store) {
    let broker = store.open().await;
    for n in 0..3 {
        broker.producer("orders").await.unwrap().send(numbered(n)).await.unwrap();
    }
    let (began, mut begun) = tokio::sync::watch::channel(0);
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let wait = Arc::clone(&go_on);
    let consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    let worker = consumer.spawn(2, move |_| {
        began.send_modify(|count| *count += 1);
        let wait = Arc::clone(&wait);
        async move {
            wait.acquire().await.map_err(|closed| closed.to_string())?.forget();
            Ok::<(), String>(())
        }
    });
    soon("two handlers", begun.wait_for(|count| *count == 2)).await.unwrap();
    worker.stop();
    go_on.add_permits(9);
    soon("the end", worker.join()).await.unwrap();
    assert_eq!(*begun.borrow(), 2, "a stopped worker takes nothing more");
    let broker = store.reopen(broker).await;
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 1, "what was at work is done");
    broker.shutdown().await.unwrap();
}

/// Sends, consumes, waits for a delayed message, and ends, all on whatever polls this.
async fn a_day_in_the_life() {
    let broker = Broker::in_memory().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    producer.send(numbered(1)).await.unwrap();
    producer.enqueue(numbered(2)).unwrap().await.unwrap();
    producer.send(numbered(3).delay(Duration::from_millis(5))).await.unwrap();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let delivery = consumer.next().await.unwrap();
        numbers.push(number_of(&delivery));
        delivery.ack().await.unwrap();
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
    let transactions = broker.transaction_producer("p", "orders", |_: HalfMessage| None).await.unwrap();
    transactions.begin(numbered(4)).await.unwrap().commit().await.unwrap();
    assert_eq!(number_of(&consumer.next().await.unwrap()), 4);
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    assert_eq!(pull.poll(10, Duration::from_secs(1)).await.unwrap().len(), 4);
    broker.shutdown().await.unwrap();
}

#[test]
fn works_on_a_runtime_of_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let days: Vec<_> = (0..3).map(|_| tokio::spawn(a_day_in_the_life())).collect();
        for day in days {
            day.await.unwrap();
        }
    });
}

#[test]
fn works_on_a_runtime_of_one_thread() {
    // Without its timers and its input and output: the broker has its own.
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(a_day_in_the_life());
}

#[test]
fn works_inside_an_actor_system() {
    actix::System::new().block_on(a_day_in_the_life());
}

#[test]
fn works_without_a_runtime() {
    block_on(a_day_in_the_life());
}

/// The smallest runtime there is: polls, and sleeps until it is woken.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
