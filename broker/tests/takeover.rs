//! A member that dies leaves its queues, and the messages it had not settled, to another: within a second.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, next, take, until};
use cuemq::{AssignmentStrategy, Broker, Consumer, Delivery, ErrorKind, Flush, TopicSpec};

on_every_engine!(
    a_member_that_is_dropped,
    a_member_whose_thread_panics,
    a_member_whose_task_is_aborted,
    queues_go_to_the_members_that_are_named,
    rooms_read_their_own_queues_while_somebody_is_there,
);

const MESSAGES: u64 = 40;
const QUEUES: usize = 8;

async fn open(store: &Store) -> Broker {
    let broker = store.open().await;
    let queues = u32::try_from(QUEUES).unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(queues).flush(Flush::Buffered)).await.unwrap();
    broker
}

async fn join(broker: &Broker, member: &str) -> Consumer {
    broker.consumer("group").subscribe("orders").member(member).build().await.unwrap()
}

/// The numbers of the topic's queues that a member reads now.
fn queues(consumer: &Consumer) -> Vec<u32> {
    let of_topic = |queue: &cuemq::QueueKey| queue.topic.as_str() == "orders";
    consumer.queues().into_iter().filter(of_topic).map(|queue| queue.queue.get()).collect()
}

/// Has a member die in its own way, while it holds queues, acknowledged messages and unsettled ones.
async fn is_followed(store: Store, die: impl AsyncFnOnce(Consumer, Vec<Delivery>)) {
    let broker = open(&store).await;
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..MESSAGES {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut mortal = join(&broker, "mortal").await;
    let mut heir = join(&broker, "heir").await;
    until("the queues to be shared", || queues(&mortal).len() == QUEUES / 2 && queues(&heir).len() == QUEUES / 2).await;
    let mut held = Vec::new();
    let mut done = BTreeSet::new();
    for n in 0..12 {
        let delivery = next(&mut mortal).await;
        if n % 3 == 0 {
            done.insert(number_of(&delivery));
            delivery.ack().await.unwrap();
        } else {
            held.push(delivery);
        }
    }
    let unsettled: BTreeSet<u64> = held.iter().map(|delivery| number_of(delivery)).collect();
    let died = broker.clock().now();
    die(mortal, held).await;
    until("the heir to have all queues", || queues(&heir).len() == QUEUES).await;
    let rest = usize::try_from(MESSAGES).unwrap() - done.len();
    let came: BTreeSet<u64> = take(&mut heir, rest).await.iter().map(number_of).collect();
    let elapsed = broker.clock().now().as_millis() - died.as_millis();
    assert!(elapsed < 1000, "{elapsed} ms, more than a second");
    assert!(came.is_superset(&unsettled), "what was not settled comes to the heir");
    assert_eq!(came.union(&done).count(), usize::try_from(MESSAGES).unwrap());
    assert!(came.is_disjoint(&done), "what was acknowledged stays done");
    assert_nothing(&mut heir, "everything came");
    broker.shutdown().await.unwrap();
}

async fn a_member_that_is_dropped(store: Store) {
    is_followed(store, async |mortal, held| drop((mortal, held))).await;
}

async fn a_member_whose_thread_panics(store: Store) {
    #[expect(clippy::disallowed_methods, reason = "joined at once")]
    let die = async |mortal: Consumer, held: Vec<Delivery>| {
        let thread = std::thread::Builder::new().name("mortal".into()).spawn(move || {
            let _with_it = (mortal, held);
            panic!("on purpose");
        });
        assert!(thread.unwrap().join().is_err());
    };
    is_followed(store, die).await;
}

async fn a_member_whose_task_is_aborted(store: Store) {
    is_followed(store, async |mortal, held| {
        let task = tokio::spawn(async move {
            let _with_it = (mortal, held);
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    })
    .await;
}

async fn queues_go_to_the_members_that_are_named(store: Store) {
    let broker = open(&store).await;
    let named = [("orders", 0, "b"), ("orders", 1, "b"), ("orders", 7, "a"), ("orders", 6, "nobody")];
    let strategy = AssignmentStrategy::configured(named).unwrap();
    let a = broker.consumer("group").subscribe("orders").member("a").assignment(strategy).build().await.unwrap();
    assert_eq!(queues(&a), [0, 1, 2, 3, 4, 5, 6, 7], "none is left unread");
    let b = join(&broker, "b").await;
    until("the queues to be shared", || queues(&a) == [2, 3, 4, 7] && queues(&b) == [0, 1, 5, 6]).await;
    drop((a, b));
    let broker = store.reopen(broker).await;
    let (b, a) = (join(&broker, "b").await, join(&broker, "a").await);
    until("the same shares after a restart", || queues(&a) == [2, 3, 4, 7] && queues(&b) == [0, 1, 5, 6]).await;
    drop(b);
    until("all queues", || queues(&a).len() == QUEUES).await;
    let many = AssignmentStrategy::configured((0..3073).map(|queue| ("orders", queue, "a"))).unwrap();
    let refused = broker.consumer("group").subscribe("orders").assignment(many).build().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains("3073 queues: use at most 3072"), "{refused}");
    broker.shutdown().await.unwrap();
}

async fn rooms_read_their_own_queues_while_somebody_is_there(store: Store) {
    let broker = open(&store).await;
    let rooms = (0..8).map(|queue| ("orders", queue, if queue < 4 { "eu-1" } else { "us-1" }));
    let strategy = AssignmentStrategy::machine_room(rooms).unwrap();
    let there = |member: &str, room: &str| {
        broker.consumer("group").subscribe("orders").member(member).room(room).assignment(strategy.clone()).build()
    };
    let first = there("first", "eu-1").await.unwrap();
    assert_eq!(queues(&first).len(), QUEUES, "nobody is in us-1");
    let second = there("second", "us-1").await.unwrap();
    until("each room its own", || queues(&first) == [0, 1, 2, 3] && queues(&second) == [4, 5, 6, 7]).await;
    let third = there("third", "eu-1").await.unwrap();
    until("a room's members share", || queues(&first) == [0, 1] && queues(&third) == [2, 3]).await;
    assert_eq!(queues(&second), [4, 5, 6, 7]);
    drop(second);
    until("a dead room's are everybody's", || queues(&first) == [0, 1, 4, 5] && queues(&third) == [2, 3, 6, 7]).await;
    let nameless = there("fourth", "").await.unwrap_err();
    assert_eq!(nameless.kind(), ErrorKind::Invalid);
    assert!(nameless.to_string().contains("room name has 0 bytes"), "{nameless}");
    broker.shutdown().await.unwrap();
}
