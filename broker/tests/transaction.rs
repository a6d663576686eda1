//! A half message is seen by nobody until its producer commits, and is asked about when it does not decide. What the
//! matrix of outcomes, survivors and restarts (`half_message_matrix`) does not reach.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, read_all, soon, take, text};
use cuemq::{
    Broker, Consumer, Decision, ErrorKind, HalfMessage, Message, Timestamp, TransactionId, TransactionProducer,
};
use tokio::sync::watch;

on_every_engine!(
    a_half_message_is_hidden_until_it_is_committed,
    every_outcome_of_a_local_transaction,
    decisions_at_the_same_time,
    any_member_of_the_group_may_answer,
    a_decision_is_remembered_for_a_day,
    a_listener_that_panics_is_asked_again,
    a_deleted_topic_loses_no_committed_message,
);

/// What a listener was asked: the body and the number of the check.
type Asked = watch::Receiver<Vec<(String, u32)>>;

/// A producer whose listener answers so and notes every question.
async fn producer(
    broker: &Broker,
    group: &str,
    answer: impl Fn(&HalfMessage) -> Option<Decision> + Send + Sync + 'static,
) -> (TransactionProducer, Asked) {
    let (sender, asked) = watch::channel(Vec::new());
    let listener = move |half: HalfMessage| {
        let body = String::from_utf8(half.body().to_vec()).unwrap();
        sender.send_modify(|all| all.push((body, half.checks())));
        answer(&half)
    };
    (broker.transaction_producer(group, "orders", listener).await.unwrap(), asked)
}

async fn join(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

/// Returns when the checker has done what was due at this moment of the clock and its questions have been asked.
async fn settle(broker: &Broker, producer: &TransactionProducer) {
    for _ in 0..2 {
        let unknown = producer.end(TransactionId(u64::MAX), Decision::Commit).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Invalid, "{unknown}");
    }
    // Listeners run on the thread of callbacks, one after the other.
    let (called, done) = tokio::sync::oneshot::channel();
    let markers = broker.producer("markers").await.unwrap();
    markers.send_with("marker", move |_| called.send(()).unwrap()).unwrap();
    soon("a callback", done).await.unwrap();
}

async fn a_half_message_is_hidden_until_it_is_committed(store: Store) {
    let broker = store.open().await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    let mut consumer = join(&broker).await;
    let transaction = transactions.begin(numbered(4)).await.unwrap();
    let find = || broker.find_by_key("orders", "key4", Timestamp::MIN, Timestamp::MAX, 10).unwrap().len();
    assert_nothing(&mut consumer, "nobody decided");
    assert_eq!((read_all(&broker, "orders").await.len(), find()), (0, 0));
    let receipt = transaction.commit().await.unwrap().unwrap();
    assert_eq!(receipt.level, store.durable_level());
    let got = take(&mut consumer, 1).await;
    assert_eq!((number_of(&got[0]), Some(got[0].id())), (4, receipt.id));
    assert_eq!((number_of(&broker.message(receipt.id.unwrap()).unwrap().unwrap()), find()), (4, 1));
    let rolled_back = transactions.begin(numbered(5)).await.unwrap();
    rolled_back.rollback().await.unwrap();
    assert_nothing(&mut consumer, "it was rolled back");
    assert_eq!(read_all(&broker, "orders").await.len(), 1);
    let delayed = transactions.begin(Message::new("x").delay_level(1)).await.unwrap_err();
    assert_eq!(delayed.kind(), ErrorKind::Invalid);
    broker.shutdown().await.unwrap();
}

async fn every_outcome_of_a_local_transaction(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (transactions, mut asked) = producer(&broker, "producers", |_| Some(Decision::Commit)).await;
    let mut consumer = join(&broker).await;
    let send = async |body: &'static str, outcome: Result<Option<Decision>, &'static str>| {
        transactions.send(body, async |_| outcome).await
    };
    assert!(send("commit", Ok(Some(Decision::Commit))).await.unwrap().is_some());
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "commit");
    assert!(send("rollback", Ok(Some(Decision::Rollback))).await.unwrap().is_none());
    let failed = send("fails", Err("no money")).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::NotStored);
    assert!(failed.to_string().contains("no money"), "{failed}");
    assert!(send("unknown", Ok(None)).await.unwrap().is_none());
    clock.advance(Duration::from_secs(5));
    settle(&broker, &transactions).await;
    assert_nothing(&mut consumer, "only the committed one so far");
    clock.advance(Duration::from_secs(1));
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "unknown");
    soon("one question", asked.wait_for(|asked| asked.len() == 1)).await.unwrap();
    clock.advance(Duration::from_secs(1000));
    settle(&broker, &transactions).await;
    assert_eq!(*asked.borrow(), [("unknown".to_owned(), 1)], "nothing decided is asked about");
    assert_eq!(read_all(&broker, "orders").await.len(), 2);
    broker.shutdown().await.unwrap();
}

async fn decisions_at_the_same_time(store: Store) {
    let broker = store.open().await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    let committed = transactions.begin("committed").await.unwrap();
    let (first, second) = tokio::join!(committed.commit(), committed.commit());
    assert!(first.unwrap().is_some(), "the one that decided has the receipt");
    second.unwrap();
    let raced = transactions.begin("raced").await.unwrap();
    let (commit, rollback) = tokio::join!(raced.commit(), raced.rollback());
    assert!(commit.unwrap().is_some());
    assert_eq!(rollback.unwrap_err().kind(), ErrorKind::Conflict);
    let mut all: Vec<String> = read_all(&broker, "orders").await.iter().map(text).collect();
    all.sort();
    assert_eq!(all, ["committed", "raced"]);
    broker.shutdown().await.unwrap();
}

async fn any_member_of_the_group_may_answer(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = join(&broker).await;
    let (gone, asked_gone) = producer(&broker, "producers", |_| Some(Decision::Rollback)).await;
    let (strangers, asked_strangers) = producer(&broker, "strangers", |_| Some(Decision::Rollback)).await;
    gone.begin("first").await.unwrap();
    drop(gone);
    clock.advance(Duration::from_secs(6));
    settle(&broker, &strangers).await;
    assert!(asked_strangers.borrow().is_empty() && asked_gone.borrow().is_empty(), "nobody of the group is there");
    let (alive, mut asked) = producer(&broker, "producers", |_| Some(Decision::Commit)).await;
    clock.advance(Duration::from_secs(30));
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "first");
    soon("the question", asked.wait_for(|asked| asked.len() == 1)).await.unwrap();
    assert!(asked_strangers.borrow().is_empty());
    drop(alive);
    broker.shutdown().await.unwrap();
}

async fn a_decision_is_remembered_for_a_day(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (transactions, asked) = producer(&broker, "producers", |_| Some(Decision::Commit)).await;
    let id = transactions.begin("x").await.unwrap().id();
    assert_eq!(transactions.end(id, Decision::Rollback).await.unwrap(), None);
    clock.advance(Duration::from_secs(24 * 3600 - 1));
    settle(&broker, &transactions).await;
    assert_eq!(transactions.end(id, Decision::Commit).await.unwrap_err().kind(), ErrorKind::Conflict);
    clock.advance(Duration::from_secs(1));
    // The clock wakes the checker on a thread of its own.
    soon("a decision is remembered for a day", async {
        while transactions.end(id, Decision::Commit).await.unwrap_err().kind() != ErrorKind::Invalid {
            tokio::task::yield_now().await;
        }
    })
    .await;
    settle(&broker, &transactions).await;
    assert!(asked.borrow().is_empty() && read_all(&broker, "orders").await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn a_listener_that_panics_is_asked_again(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut consumer = join(&broker).await;
    let first = Arc::new(Mutex::new(true));
    let answer = move |_: &HalfMessage| {
        let first = std::mem::replace(&mut *first.lock().unwrap(), false);
        assert!(!first, "a listener that panics, on purpose");
        Some(Decision::Commit)
    };
    let (transactions, mut asked) = producer(&broker, "producers", answer).await;
    transactions.begin("x").await.unwrap();
    clock.advance(Duration::from_secs(6));
    soon("the question", asked.wait_for(|asked| asked.len() == 1)).await.unwrap();
    settle(&broker, &transactions).await;
    assert_nothing(&mut consumer, "a panic is no answer");
    clock.advance(Duration::from_secs(30));
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "x");
    assert_eq!(asked.borrow().len(), 2);
    broker.shutdown().await.unwrap();
}

async fn a_deleted_topic_loses_no_committed_message(store: Store) {
    let broker = store.open().await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    let transaction = transactions.begin(numbered(2)).await.unwrap();
    broker.delete_topic("orders").await.unwrap();
    let receipt = transaction.commit().await.unwrap().unwrap();
    assert_eq!(receipt.topic.as_str(), "rmq_sys_UNDELIVERABLE");
    let kept = read_all(&broker, "rmq_sys_UNDELIVERABLE").await;
    assert_eq!(kept.iter().map(number_of).collect::<Vec<_>>(), [2]);
    broker.shutdown().await.unwrap();
}
