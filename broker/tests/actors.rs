//! A program's own actix actors send through the gateway and get messages delivered.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use actix::{Actor, ActorContext, Addr, Context, Handler, Recipient, System};
use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{Settler, assert_nothing, manual_clock, next, read_all, soon, text};
use cuemq::{Deliver, ErrorKind, Message, Publish, PublishBatch};
use tokio::sync::watch;

/// Makes one visible test per engine, inside the program's own actor system.
macro_rules! in_an_actor_system {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn memory() {
                super::System::new().block_on(super::$name(super::Store::new(super::Kind::Memory)));
            }

            #[test]
            fn mmap() {
                super::System::new().block_on(super::$name(super::Store::new(super::Kind::Mmap)));
            }

            #[test]
            fn lsm() {
                super::System::new().block_on(super::$name(super::Store::new(super::Kind::Lsm)));
            }
        }
    )+};
}

in_an_actor_system!(
    actors_publish_through_recipients,
    an_actor_gets_messages_delivered,
    a_refusal_brings_the_message_again,
    the_death_of_an_actor_counts_as_a_failure,
);

async fn actors_publish_through_recipients(store: Store) {
    let broker = store.open().await;
    let one: Recipient<Publish> = broker.gateway().recipient();
    let many: Recipient<PublishBatch> = broker.gateway().recipient();
    for n in 0..5 {
        let publish = Publish { topic: "orders".into(), message: numbered(n) };
        let receipt = soon("the receipt", one.send(publish)).await.unwrap().unwrap();
        assert_eq!((receipt.topic.as_str(), receipt.level), ("orders", store.durable_level()));
    }
    let batch = PublishBatch { topic: "orders".into(), messages: (5..9).map(numbered).collect() };
    assert_eq!(soon("the receipts", many.send(batch)).await.unwrap().unwrap().len(), 4);
    let bad = Publish { topic: "not a name".into(), message: Message::new("x") };
    assert_eq!(soon("an answer", one.send(bad)).await.unwrap().unwrap_err().kind(), ErrorKind::Invalid);
    let bad = vec![numbered(9), Message::new("x").delay_level(1)];
    let bad = PublishBatch { topic: "orders".into(), messages: bad };
    assert_eq!(soon("an answer", many.send(bad)).await.unwrap().unwrap_err().kind(), ErrorKind::Invalid);
    let mut numbers: Vec<u64> = read_all(&broker, "orders").await.iter().map(number_of).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..9).collect::<Vec<_>>());
    broker.shutdown().await.unwrap();
}

/// Collects what it is given; refuses what says so, dies of what says so.
struct Collector {
    got: watch::Sender<Vec<(String, u32)>>,
}

impl Actor for Collector {
    type Context = Context<Self>;
}

impl Handler<Deliver> for Collector {
    type Result = Result<(), String>;

    fn handle(&mut self, m: Deliver, ctx: &mut Context<Self>) -> Self::Result {
        let (body, attempts) = (text(&m.message), m.message.attempts());
        self.got.send_modify(|got| got.push((body.clone(), attempts)));
        match body.as_str() {
            "refuse once" if attempts == 0 => Err("not yet".into()),
            "stop" => {
                ctx.terminate();
                Err("the last words".into())
            }
            _ => Ok(()),
        }
    }
}

fn collector() -> (Addr<Collector>, watch::Receiver<Vec<(String, u32)>>) {
    let (got, seen) = watch::channel(Vec::new());
    (Collector { got }.start(), seen)
}

async fn an_actor_gets_messages_delivered(store: Store) {
    let broker = store.open().await;
    let (address, mut seen) = collector();
    let worker = broker.consumer("group").subscribe("orders").deliver_to(address.recipient(), 3).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..20 {
        producer.send(format!("{n:02}")).await.unwrap();
    }
    soon("all messages", seen.wait_for(|got| got.len() == 20)).await.unwrap();
    worker.stop();
    worker.join().await.unwrap();
    let mut bodies: Vec<String> = seen.borrow().iter().map(|(body, _)| body.clone()).collect();
    bodies.sort();
    assert_eq!(bodies, (0..20).map(|n| format!("{n:02}")).collect::<Vec<_>>());
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0, "its answers acknowledged them");
    broker.shutdown().await.unwrap();
}

async fn a_refusal_brings_the_message_again(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (address, mut seen) = collector();
    let worker = broker.consumer("group").subscribe("orders").deliver_to(address.recipient(), 1).await.unwrap();
    broker.producer("orders").await.unwrap().send("refuse once").await.unwrap();
    soon("the first delivery", seen.wait_for(|got| got.len() == 1)).await.unwrap();
    soon("its settling", async { while broker.describe_group("group").await.unwrap().lag() > 0 {} }).await;
    clock.advance(Duration::from_secs(10));
    soon("the second delivery", seen.wait_for(|got| got.len() == 2)).await.unwrap();
    assert_eq!(*seen.borrow(), [("refuse once".to_owned(), 0), ("refuse once".to_owned(), 1)]);
    worker.stop();
    worker.join().await.unwrap();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn the_death_of_an_actor_counts_as_a_failure(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (address, mut seen) = collector();
    let recipient = address.recipient();
    let worker = broker.consumer("group").subscribe("orders").deliver_to(recipient, 1).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    producer.send("stop").await.unwrap();
    soon("the last delivery", seen.wait_for(|got| got.len() == 1)).await.unwrap();
    producer.send("after its death").await.unwrap();
    soon("its settling", async { while broker.describe_group("group").await.unwrap().lag() > 0 {} }).await;
    worker.stop();
    worker.join().await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    Settler::new(&broker, &clock).await.settle().await;
    assert_nothing(&mut consumer, "both wait for their retry");
    clock.advance(Duration::from_secs(10));
    let mut again = Vec::new();
    for _ in 0..2 {
        let delivery = next(&mut consumer).await;
        again.push((text(&delivery), delivery.attempts()));
        delivery.ack().await.unwrap();
    }
    again.sort();
    assert_eq!(again, [("after its death".to_owned(), 1), ("stop".to_owned(), 1)]);
    assert_eq!(seen.borrow().len(), 1);
    broker.shutdown().await.unwrap();
}
