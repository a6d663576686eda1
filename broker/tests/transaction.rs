//! A half message is seen by nobody until its producer commits, is asked about when it does not decide, and is decided
//! once whatever happens in between.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, read_all, soon, take, text};
use cuemq::{
    Broker, Consumer, Decision, ErrorKind, HalfMessage, ManualClock, Message, Timestamp, TransactionId,
    TransactionProducer,
};
use tokio::sync::watch;

on_every_engine!(
    a_half_message_is_hidden_until_it_is_committed,
    every_outcome_of_a_local_transaction,
    the_first_decision_stands,
    fifteen_checks_and_then_the_inspectable_topic,
    any_member_of_the_group_may_answer,
    a_restart_between_every_two_steps,
    a_rollback_survives_the_process,
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

async fn the_first_decision_stands(store: Store) {
    let broker = store.open().await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    let committed = transactions.begin("committed").await.unwrap();
    let (first, second) = tokio::join!(committed.commit(), committed.commit());
    assert!(first.unwrap().is_some(), "the one that decided has the receipt");
    second.unwrap();
    assert_eq!(committed.commit().await.unwrap(), None, "again is no error");
    assert_eq!(committed.rollback().await.unwrap_err().kind(), ErrorKind::Conflict);
    let rolled_back = transactions.begin("rolled back").await.unwrap();
    rolled_back.rollback().await.unwrap();
    rolled_back.rollback().await.unwrap();
    assert_eq!(rolled_back.commit().await.unwrap_err().kind(), ErrorKind::Conflict);
    let raced = transactions.begin("raced").await.unwrap();
    let (commit, rollback) = tokio::join!(raced.commit(), raced.rollback());
    assert!(commit.unwrap().is_some());
    assert_eq!(rollback.unwrap_err().kind(), ErrorKind::Conflict);
    let ids = [committed.id(), rolled_back.id()];
    drop((committed, rolled_back, raced, transactions));
    let broker = store.reopen(broker).await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    assert_eq!(transactions.end(ids[0], Decision::Commit).await.unwrap(), None);
    assert_eq!(transactions.end(ids[0], Decision::Rollback).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(transactions.end(ids[1], Decision::Rollback).await.unwrap(), None);
    assert_eq!(transactions.end(ids[1], Decision::Commit).await.unwrap_err().kind(), ErrorKind::Conflict);
    let mut all: Vec<String> = read_all(&broker, "orders").await.iter().map(text).collect();
    all.sort();
    assert_eq!(all, ["committed", "raced"]);
    broker.shutdown().await.unwrap();
}

async fn fifteen_checks_and_then_the_inspectable_topic(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (transactions, mut asked) = producer(&broker, "producers", |_| None).await;
    let transaction = transactions.begin(numbered(9)).await.unwrap();
    for check in 1..=15 {
        let pause = Duration::from_secs(if check == 1 { 6 } else { 30 });
        clock.advance(pause - Duration::from_millis(1));
        settle(&broker, &transactions).await;
        assert_eq!(asked.borrow().len(), check - 1, "not a millisecond early");
        clock.advance(Duration::from_millis(1));
        soon("the check", asked.wait_for(|asked| asked.len() == check)).await.unwrap();
    }
    let numbers: Vec<u32> = asked.borrow().iter().map(|(_, check)| *check).collect();
    assert_eq!(numbers, (1..=15).collect::<Vec<_>>());
    const GIVEN_UP: &str = "rmq_sys_TRANS_CHECK_MAX_TIME";
    clock.advance(Duration::from_secs(30) - Duration::from_millis(1));
    settle(&broker, &transactions).await;
    assert!(read_all(&broker, GIVEN_UP).await.is_empty());
    clock.advance(Duration::from_millis(1));
    let mut pull = broker.pull_consumer("operator").await.unwrap();
    pull.assign_topic(GIVEN_UP).await.unwrap();
    let given_up = soon("the message", pull.poll(9, Duration::from_secs(3600))).await.unwrap();
    assert_eq!(given_up.iter().map(number_of).collect::<Vec<_>>(), [9]);
    assert_eq!(transaction.commit().await.unwrap_err().kind(), ErrorKind::Conflict);
    transaction.rollback().await.unwrap();
    clock.advance(Duration::from_secs(3600));
    settle(&broker, &transactions).await;
    assert_eq!(asked.borrow().len(), 15);
    assert_eq!((read_all(&broker, "orders").await.len(), read_all(&broker, GIVEN_UP).await.len()), (0, 1));
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

/// Ends the broker one way or the other and opens the next.
async fn restart(store: &Store, broker: Broker, clock: &ManualClock, kill: bool) -> Broker {
    if kill {
        store.kill(broker).await
    } else {
        broker.shutdown().await.unwrap()
    }
    store.open_at(clock).await
}

async fn a_restart_between_every_two_steps(store: Store) {
    for kill in [true, false] {
        let clock = manual_clock();
        let broker = store.open_at(&clock).await;
        let before = read_all(&broker, "rmq_sys_TRANS_CHECK_MAX_TIME").await.len();
        assert_eq!(before, 0);
        let (transactions, _) = producer(&broker, "producers", |_| None).await;
        let id = transactions.begin(numbered(u64::from(kill))).await.unwrap().id();
        drop(transactions);
        let mut broker = restart(&store, broker, &clock, kill).await;
        for check in 1..=3u32 {
            let (transactions, mut asked) = producer(&broker, "producers", |_| None).await;
            clock.advance(Duration::from_secs(if check == 1 { 6 } else { 30 }) - Duration::from_millis(1));
            settle(&broker, &transactions).await;
            assert!(asked.borrow().is_empty(), "a restart brings no check forward");
            clock.advance(Duration::from_millis(1));
            soon("the check", asked.wait_for(|asked| asked.len() == 1)).await.unwrap();
            assert_eq!(asked.borrow()[0].1, check, "checks are counted over restarts");
            settle(&broker, &transactions).await;
            drop(transactions);
            broker = restart(&store, broker, &clock, kill).await;
        }
        let (transactions, _) = producer(&broker, "producers", |_| None).await;
        let receipt = transactions.end(id, Decision::Commit).await.unwrap().unwrap();
        drop(transactions);
        let broker = restart(&store, broker, &clock, kill).await;
        let (transactions, asked) = producer(&broker, "producers", |_| None).await;
        assert_eq!(transactions.end(id, Decision::Commit).await.unwrap(), None);
        assert_eq!(transactions.end(id, Decision::Rollback).await.unwrap_err().kind(), ErrorKind::Conflict);
        clock.advance(Duration::from_secs(600));
        settle(&broker, &transactions).await;
        assert!(asked.borrow().is_empty(), "it is decided");
        assert_eq!(number_of(&broker.message(receipt.id.unwrap()).unwrap().unwrap()), u64::from(kill));
        drop(transactions);
        broker.shutdown().await.unwrap();
    }
    let broker = store.open().await;
    assert_eq!(read_all(&broker, "orders").await.len(), 2, "each was delivered once");
    broker.shutdown().await.unwrap();
}

async fn a_rollback_survives_the_process(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (transactions, _) = producer(&broker, "producers", |_| None).await;
    let id = transactions.begin("x").await.unwrap().id();
    assert_eq!(transactions.end(id, Decision::Rollback).await.unwrap(), None);
    drop(transactions);
    let broker = restart(&store, broker, &clock, true).await;
    let (transactions, asked) = producer(&broker, "producers", |_| Some(Decision::Commit)).await;
    clock.advance(Duration::from_secs(3600));
    settle(&broker, &transactions).await;
    assert!(asked.borrow().is_empty());
    assert_eq!(transactions.end(id, Decision::Commit).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(read_all(&broker, "orders").await.is_empty());
    clock.advance(Duration::from_secs(24 * 3600));
    settle(&broker, &transactions).await;
    let forgotten = transactions.end(id, Decision::Commit).await.unwrap_err();
    assert_eq!(forgotten.kind(), ErrorKind::Invalid, "a decision is remembered for a day");
    assert!(read_all(&broker, "orders").await.is_empty());
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
