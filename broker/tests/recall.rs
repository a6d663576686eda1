//! A delayed message can be taken back or moved until the instant it fires; of that and its delivery exactly one happens.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{Settler, bodies, manual_clock, read_all, soon};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{Broker, ErrorKind, Flush, Message, Recalled, Rescheduled, ScheduledId, TopicSpec};
use futures_util::future::{Either, join_all, ready};

on_every_engine!(
    a_recalled_message_never_comes,
    a_message_is_moved_to_and_fro,
    a_recall_races_the_due_instant,
    a_recall_that_was_answered_holds_over_a_kill,
    a_refused_change_leaves_it_waiting,
    ids_name_one_message_of_one_store,
);

const SECOND: Duration = Duration::from_secs(1);

async fn send(broker: &Broker, n: u64, delay: Duration) -> ScheduledId {
    let receipt = broker.producer("orders").await.unwrap().send(numbered(n).delay(delay)).await.unwrap();
    receipt.scheduled.unwrap()
}

fn moved(outcome: Rescheduled) -> ScheduledId {
    match outcome {
        Rescheduled::Rescheduled(id) => id,
        Rescheduled::NotWaiting => panic!("it waited"),
    }
}

async fn a_recalled_message_never_comes(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let id = send(&broker, 1, SECOND).await;
    assert_eq!(id.due(), clock.now().plus(SECOND));
    let kept = send(&broker, 2, SECOND).await;
    assert_eq!(broker.recall(&id).await.unwrap(), Recalled::Recalled);
    assert_eq!(broker.recall(&id).await.unwrap(), Recalled::NotWaiting, "once");
    let late = clock.now().plus(SECOND);
    assert_eq!(broker.reschedule(&id, late).await.unwrap(), Rescheduled::NotWaiting);
    clock.advance(SECOND);
    Settler::new(&broker, &clock).await.settle().await;
    assert_eq!(read_all(&broker, "orders").await.iter().map(number_of).collect::<Vec<_>>(), [2]);
    assert_eq!(broker.recall(&kept).await.unwrap(), Recalled::NotWaiting, "it was delivered");
    assert_eq!(broker.reschedule(&kept, late).await.unwrap(), Rescheduled::NotWaiting);
    let broker = store.reopen_at(broker, &clock).await;
    Settler::new(&broker, &clock).await.settle().await;
    assert_eq!(read_all(&broker, "orders").await.len(), 1);
    broker.shutdown().await.unwrap();
}

async fn a_message_is_moved_to_and_fro(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    let ten_years = Duration::from_secs(10 * 366 * 24 * 3600);
    let start = clock.now();
    let first = send(&broker, 1, ten_years).await;
    let earlier = moved(broker.reschedule(&first, start.plus(SECOND)).await.unwrap());
    assert_eq!(broker.recall(&first).await.unwrap(), Recalled::NotWaiting, "the earlier id names nothing");
    let later = moved(broker.reschedule(&earlier, start.plus(3 * SECOND)).await.unwrap());
    let second = send(&broker, 2, 3 * SECOND).await;
    broker = store.reopen_at(broker, &clock).await;
    // An id is text that outlives the process.
    let again: ScheduledId = second.to_string().parse().unwrap();
    let second = moved(broker.reschedule(&again, start.plus(2 * SECOND)).await.unwrap());
    let mut settler = Settler::new(&broker, &clock).await;
    clock.advance(2 * SECOND - Duration::from_millis(1));
    settler.settle().await;
    assert!(read_all(&broker, "orders").await.is_empty(), "not at an earlier time, and not early");
    clock.advance(Duration::from_millis(1));
    settler.settle().await;
    assert_eq!(broker.recall(&second).await.unwrap(), Recalled::NotWaiting);
    let now = moved(broker.reschedule(&later, start).await.unwrap());
    settler.settle().await;
    assert_eq!(broker.recall(&now).await.unwrap(), Recalled::NotWaiting, "a past time is now");
    let all = read_all(&broker, "orders").await;
    assert_eq!(all.iter().map(number_of).collect::<Vec<_>>(), [2, 1]);
    broker.shutdown().await.unwrap();
}

/// Some ask before the time comes, some after, and some while the due messages are being moved.
async fn a_recall_races_the_due_instant(store: Store) {
    const EACH: u64 = 100;
    let rounds = if store.kind == Kind::Memory { 100 } else { 6 };
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1).flush(Flush::Buffered)).await.unwrap();
    let mut settler = Settler::new(&broker, &clock).await;
    let (mut recalled, mut late) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..rounds {
        let numbers = round * EACH..(round + 1) * EACH;
        let ids = join_all(numbers.clone().map(|n| send(&broker, n, SECOND))).await;
        clock.advance(SECOND - Duration::from_millis(1));
        settler.settle().await;
        let at = usize::try_from(round * 37 % EACH).unwrap();
        let asked = ids.iter().enumerate().map(|(n, id)| {
            let (broker, clock) = (&broker, &clock);
            let time = if n == at {
                Either::Left(async { clock.advance(Duration::from_millis(1)) })
            } else {
                Either::Right(ready(()))
            };
            async move {
                time.await;
                broker.recall(id).await.unwrap()
            }
        });
        for (n, outcome) in numbers.zip(soon("all answers", join_all(asked)).await) {
            let set = if outcome == Recalled::Recalled { &mut recalled } else { &mut late };
            set.insert(n);
        }
        settler.settle().await;
    }
    let all = read_all(&broker, "orders").await;
    let delivered: BTreeSet<u64> = all.iter().map(number_of).collect();
    assert_eq!(delivered.len(), all.len(), "none twice");
    assert_eq!(delivered, late, "what was told to be too late was delivered, and nothing else");
    assert_eq!(recalled.len() + late.len(), usize::try_from(rounds * EACH).unwrap());
    assert!(!recalled.is_empty(), "no race was won");
    assert!(store.kind != Kind::Memory || !late.is_empty(), "no race was lost");
    broker.shutdown().await.unwrap();
}

async fn a_recall_that_was_answered_holds_over_a_kill(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut recalled = BTreeSet::new();
    for round in 0..4 {
        let ids = join_all((0..20).map(|n| send(&broker, round * 20 + n, SECOND))).await;
        clock.advance(SECOND);
        // All of them race their delivery and the kill; half of the answers come before it.
        let asked: Vec<_> = ids.iter().map(|id| broker.recall(id)).collect();
        for (n, outcome) in (round * 20..).zip(join_all(asked.into_iter().take(10)).await) {
            if outcome.unwrap() == Recalled::Recalled {
                recalled.insert(n);
            }
        }
        store.kill(broker).await;
        broker = store.open_at(&clock).await;
        Settler::new(&broker, &clock).await.settle().await;
        let all = read_all(&broker, "orders").await;
        let delivered: BTreeSet<u64> = all.iter().map(number_of).collect();
        assert_eq!(delivered.len(), all.len(), "none twice");
        let expected: BTreeSet<u64> = (0..(round + 1) * 20).filter(|n| !recalled.contains(n)).collect();
        assert_eq!(delivered, expected);
    }
    broker.shutdown().await.unwrap();
}

async fn a_refused_change_leaves_it_waiting(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut settler = Settler::new(&broker, &clock).await;
    let (id, other) = (send(&broker, 1, SECOND).await, send(&broker, 2, SECOND).await);
    store.faults.fail_always(Operation::Apply, Fault::Refuse(StorageKind::Full));
    assert!(broker.recall(&id).await.unwrap_err().is_certainly_not_applied());
    let at = clock.now().plus(5 * SECOND);
    assert!(broker.reschedule(&other, at).await.unwrap_err().is_certainly_not_applied());
    store.faults.clear(Operation::Apply);
    clock.advance(SECOND);
    settler.settle().await;
    let all = read_all(&broker, "orders").await;
    assert_eq!(all.iter().map(number_of).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]), "at its first time");
    broker.shutdown().await.unwrap();
}

async fn ids_name_one_message_of_one_store(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    assert_eq!(producer.send("at once").await.unwrap().scheduled, None);
    let id = send(&broker, 1, SECOND * 1000).await;
    let stranger = Broker::in_memory().await.unwrap();
    let error = stranger.recall(&id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("another store"), "{error}");
    stranger.shutdown().await.unwrap();
    // Asked by any producer of the broker.
    let other = broker.producer("invoices").await.unwrap();
    assert_eq!(other.recall(&id).await.unwrap(), Recalled::Recalled);
    // A topic that is gone: its messages can be taken back still.
    let id = producer.send(Message::new("x").delay(SECOND * 1000)).await.unwrap().scheduled.unwrap();
    broker.delete_topic("orders").await.unwrap();
    assert_eq!(broker.recall(&id).await.unwrap(), Recalled::Recalled);
    assert_eq!(bodies(&read_all(&broker, "invoices").await), Vec::<String>::new());
    broker.shutdown().await.unwrap();
}
