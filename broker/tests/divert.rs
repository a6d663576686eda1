//! A backlog is moved to a topic that many drain: nothing lost, nothing doubled, each key in its order, and the members
//! of the group have their queues back by themselves.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, manual_clock, next, read_all, soon, take, text, until};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    AuditAction, Broker, Consumer, DeadReason, DivertOptions, ErrorKind, Message, MessageId, Received, Timestamp,
    TopicSpec,
};
use futures_util::FutureExt;

on_every_engine!(
    everything_moves_as_it_was,
    copies_end_when_the_originals_would_have,
    what_has_ended_already_is_not_moved,
    many_drain_it_and_keys_keep_their_order,
    members_finish_what_they_have_and_get_the_queues_back,
    what_was_done_out_of_order_is_not_moved,
    some_are_left_and_more_arrive,
    it_ends_when_told_or_dropped,
    a_failed_write_ends_it_with_nothing_lost_or_doubled,
    a_kill_at_any_point_loses_and_doubles_nothing,
    a_group_without_members_or_progress,
    bad_diversions,
);

const KEYS: u64 = 7;

fn message(n: u64) -> Message {
    let key = n % KEYS;
    Message::new(n.to_string())
        .tag("t")
        .key(format!("number{n}"))
        .sharding_key(format!("key{key}"))
        .property("p", n.to_string())
}

fn number(received: &Received) -> u64 {
    text(received).parse().unwrap()
}

async fn backlog(broker: &Broker, messages: std::ops::Range<u64>) -> Vec<MessageId> {
    if broker.topics().is_empty() {
        broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    }
    let producer = broker.producer("orders").await.unwrap();
    let receipts = producer.send_batch(messages.map(message).collect()).await.unwrap();
    receipts.into_iter().map(|receipt| receipt.id.unwrap()).collect()
}

async fn join(broker: &Broker, group: &str, topic: &str) -> Consumer {
    broker.consumer(group).subscribe(topic).build().await.unwrap()
}

/// Makes the group, which reads from the beginning.
async fn know_group(broker: &Broker) {
    drop(join(broker, "group", "orders").await);
}

fn numbers(messages: &[Received]) -> BTreeSet<u64> {
    let numbers: BTreeSet<u64> = messages.iter().map(number).collect();
    assert_eq!(numbers.len(), messages.len(), "a message is there twice");
    numbers
}

/// What lies in the other topic and what the group still gets, which has to be everything, once.
async fn all_that_is_there(broker: &Broker, expected: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let diverted = match broker.describe_topic("spare") {
        Ok(_) => numbers(&read_all(broker, "spare").await),
        Err(_) => BTreeSet::new(),
    };
    let mut member = join(broker, "group", "orders").await;
    let left = usize::try_from(expected).unwrap() - diverted.len();
    let rest = numbers(&take(&mut member, left).await);
    assert_nothing(&mut member, "nothing else is there");
    assert!(diverted.is_disjoint(&rest), "doubled: {:?}", diverted.intersection(&rest).collect::<Vec<_>>());
    assert_eq!(diverted.union(&rest).copied().collect::<BTreeSet<_>>(), (0..expected).collect());
    (diverted, rest)
}

async fn everything_moves_as_it_was(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let (ids, born) = (backlog(&broker, 0..100).await, clock.now());
    know_group(&broker).await;
    clock.advance(Duration::from_secs(60));
    let options = DivertOptions::new().slice(30).note("the customer asked");
    let report = broker.divert("group", "orders", "spare", options).await.unwrap();
    assert_eq!((report.moved, report.slices, report.lag, report.stopped), (100, 4, 0, false));
    assert_eq!(broker.describe_topic("spare").unwrap().queues.len(), 8, "four times as many");
    let moved = read_all(&broker, "spare").await;
    assert_eq!(numbers(&moved).len(), 100);
    for received in &moved {
        let n = number(received);
        assert_eq!((received.topic(), received.queue().topic.as_str()), ("orders", "spare"));
        assert_eq!(received.origin_id(), ids[usize::try_from(n).unwrap()]);
        assert_eq!((received.tag(), received.born_at(), received.attempts()), (Some("t"), born, 0));
        assert_eq!(received.keys().collect::<Vec<_>>(), [format!("number{n}")]);
        assert_eq!(received.sharding_key(), Some(format!("key{}", n % KEYS).as_str()));
        assert_eq!(received.property("p"), Some(n.to_string().as_str()));
    }
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    let log = broker.audit_log(Timestamp::MIN, 100).unwrap();
    assert_eq!(log.iter().map(|r| r.action).collect::<Vec<_>>(), [AuditAction::DivertBegan, AuditAction::DivertEnded]);
    assert_eq!(log[0].note, "to spare, until 0 are left. the customer asked");
    assert_eq!(log[1].note, "100 messages to spare");
    assert_eq!(log[1].queues.iter().map(|m| m.to.get() - m.from.get()).sum::<u64>(), 100);
    broker.shutdown().await.unwrap();
}

const SECOND: Duration = Duration::from_secs(1);

/// Dead letters of a group, by their number alone.
fn letters_of(broker: &Broker, group: &str) -> u64 {
    broker.describe_topic(&format!("%DLQ%{group}")).unwrap().queues[0].end.get()
}

async fn copies_end_when_the_originals_would_have(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    broker.create_topic(TopicSpec::new("spare").queues(2)).await.unwrap();
    know_group(&broker).await;
    drop(join(&broker, "helpers", "spare").await);
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..8 {
        let message = message(n);
        producer.send(if n % 2 == 0 { message.ttl(SECOND * 10) } else { message }).await.unwrap();
    }
    clock.advance(SECOND * 4);
    let report = broker.divert("group", "orders", "spare", DivertOptions::new()).await.unwrap();
    assert_eq!(report.moved, 8);
    clock.advance(SECOND * 6 - Duration::from_millis(1));
    let mut early = join(&broker, "early", "spare").await;
    assert_eq!(numbers(&take(&mut early, 8).await), (0..8).collect(), "not a millisecond early");
    clock.advance(Duration::from_millis(1));
    until("the ends of the copies", || letters_of(&broker, "helpers") == 4).await;
    let dead = read_all(&broker, "%DLQ%helpers").await;
    assert_eq!(numbers(&dead), BTreeSet::from([0, 2, 4, 6]));
    for letter in &dead {
        assert_eq!((letter.dead_reason(), letter.died_at()), (Some(DeadReason::Expired), Some(clock.now())));
        assert_eq!(letter.topic(), "orders");
    }
    let mut helper = join(&broker, "helpers", "spare").await;
    assert_eq!(numbers(&take(&mut helper, 4).await), BTreeSet::from([1, 3, 5, 7]));
    assert_eq!((letters_of(&broker, "group"), letters_of(&broker, "early")), (0, 0), "they had none of them any more");
    broker.shutdown().await.unwrap();
}

/// However far behind the group's place and behind however many gaps.
async fn what_has_ended_already_is_not_moved(store: Store) {
    const GAPPED: u64 = 8000;
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    know_group(&broker).await;
    let producer = broker.producer("orders").await.unwrap();
    let ends = |n: u64| if n.is_multiple_of(2) { message(n) } else { message(n).ttl(SECOND) };
    producer.send_batch((0..GAPPED).map(ends).collect()).await.unwrap();
    clock.advance(SECOND);
    until("the ends", || letters_of(&broker, "group") == GAPPED / 2).await;
    broker.divert("group", "orders", "spare", DivertOptions::new()).await.unwrap();
    let moved = numbers(&read_all(&broker, "spare").await);
    assert_eq!(moved, (0..GAPPED).filter(|n| n.is_multiple_of(2)).collect());
    assert_eq!(letters_of(&broker, "group"), GAPPED / 2);
    broker.shutdown().await.unwrap();
}

async fn many_drain_it_and_keys_keep_their_order(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..200).await;
    know_group(&broker).await;
    let options = DivertOptions::new().slice(17).queues(5);
    broker.divert("group", "orders", "spare", options).await.unwrap();
    let mut drain = Vec::new();
    for _ in 0..5 {
        drain.push(join(&broker, "drain", "spare").await);
    }
    let (mut last, mut seen) = (BTreeMap::<u64, u64>::new(), 0);
    while seen < 200 {
        for consumer in &mut drain {
            while let Some(delivery) = consumer.next().now_or_never() {
                let delivery = delivery.unwrap();
                let n = number(&delivery);
                let before = last.insert(n % KEYS, n);
                assert!(before.is_none_or(|before| before < n), "{n} came behind {before:?}");
                delivery.ack().await.unwrap();
                seen += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(broker.describe_group("drain").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn members_finish_what_they_have_and_get_the_queues_back(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..50).await;
    let (mut one, mut two) = (join(&broker, "group", "orders").await, join(&broker, "group", "orders").await);
    let mut held = vec![next(&mut one).await, next(&mut one).await, next(&mut two).await];
    let (for_divert, moved) = (broker.clone(), Arc::new(AtomicU64::new(0)));
    let told = Arc::clone(&moved);
    let options = DivertOptions::new().slice(10).on_progress(move |progress| {
        told.store(progress.moved, Ordering::SeqCst);
        ControlFlow::Continue(())
    });
    let divert = tokio::spawn(async move { for_divert.divert("group", "orders", "spare", options).await });
    until("the diversion", || !broker.audit_log(Timestamp::MIN, 1).unwrap().is_empty()).await;
    // Answered behind the beginning of the diversion.
    broker.describe_group("group").await.unwrap();
    assert_nothing(&mut one, "the topic is the diversion's");
    assert_nothing(&mut two, "the topic is the diversion's");
    let mut done = BTreeSet::new();
    while let Some(delivery) = held.pop() {
        assert_eq!(moved.load(Ordering::SeqCst), 0, "nothing moves before members are through");
        done.insert(number(&delivery));
        delivery.ack().await.unwrap();
    }
    let report = soon("the end of the diversion", divert).await.unwrap().unwrap();
    assert_eq!(report.moved, 47);
    let diverted = numbers(&read_all(&broker, "spare").await);
    assert!(diverted.is_disjoint(&done));
    assert_eq!(diverted.union(&done).count(), 50);
    backlog(&broker, 50..60).await;
    let (mut after, mut turns) = (BTreeSet::new(), [&mut one, &mut two]);
    while after.len() < 10 {
        for consumer in &mut turns {
            if let Some(delivery) = consumer.next().now_or_never() {
                let delivery = delivery.unwrap();
                after.insert(number(&delivery));
                delivery.ack().await.unwrap();
            }
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(after, (50..60).collect(), "both have queues again");
    broker.shutdown().await.unwrap();
}

async fn what_was_done_out_of_order_is_not_moved(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..40).await;
    let mut member = join(&broker, "group", "orders").await;
    let (mut done, mut open) = (BTreeSet::new(), Vec::new());
    for n in 0..20 {
        let delivery = next(&mut member).await;
        if n % 3 == 0 {
            open.push(delivery);
        } else {
            done.insert(number(&delivery));
            delivery.ack().await.unwrap();
        }
    }
    drop(member);
    let report = broker.divert("group", "orders", "spare", DivertOptions::new().slice(4)).await.unwrap();
    assert_eq!(report.moved, 40 - done.len() as u64);
    assert!(numbers(&read_all(&broker, "spare").await).is_disjoint(&done));
    for delivery in open {
        assert_eq!(delivery.ack().await.unwrap_err().kind(), ErrorKind::Stale, "it was left behind and moved");
    }
    broker.shutdown().await.unwrap();
}

async fn some_are_left_and_more_arrive(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..100).await;
    know_group(&broker).await;
    let (for_sender, mut more) = (broker.producer("orders").await.unwrap(), 100..110);
    let mut sent = Vec::new();
    let (sender, pending) = std::sync::mpsc::channel();
    let options = DivertOptions::new().slice(20).until_lag(15).on_progress(move |_| {
        sender.send(more.next().map(|n| for_sender.enqueue(message(n)).unwrap())).unwrap();
        ControlFlow::Continue(())
    });
    let report = broker.divert("group", "orders", "spare", options).await.unwrap();
    for receipt in pending.try_iter().flatten() {
        sent.push(soon("the receipt", receipt).await.unwrap());
    }
    assert!(report.lag <= 15 && !sent.is_empty(), "{report:?}");
    let all = 100 + sent.len() as u64;
    let (diverted, rest) = all_that_is_there(&broker, all).await;
    assert_eq!(diverted.len() as u64, report.moved);
    assert!(rest.len() >= 15, "the newest stay: {rest:?}");
    broker.shutdown().await.unwrap();
}

async fn it_ends_when_told_or_dropped(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..100).await;
    let mut member = join(&broker, "group", "orders").await;
    let options = DivertOptions::new().slice(10).on_progress(|progress| match progress.moved {
        20.. => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let report = broker.divert("group", "orders", "spare", options).await.unwrap();
    assert_eq!((report.moved, report.lag, report.stopped), (20, 80, true));
    let taken = number(&take(&mut member, 1).await[0]);
    assert!(!numbers(&read_all(&broker, "spare").await).contains(&taken), "the member has its queues back");
    let gate = Arc::new(Mutex::new(None));
    let (closed, faults) = (Arc::clone(&gate), store.faults.clone());
    let options = DivertOptions::new().slice(5).on_progress(move |progress| {
        if progress.moved == 10 {
            *closed.lock().unwrap() = Some(faults.hold(Operation::Apply));
        }
        ControlFlow::Continue(())
    });
    let mut divert = Box::pin(broker.divert("group", "orders", "spare", options));
    while gate.lock().unwrap().is_none() {
        assert!((&mut divert).now_or_never().is_none(), "it has more to do");
        tokio::task::yield_now().await;
    }
    // In the middle of a slice, which still lands.
    drop(divert);
    gate.lock().unwrap().take();
    let first = next(&mut member).await;
    let seen = number(&first);
    first.ack().await.unwrap();
    let diverted = numbers(&read_all(&broker, "spare").await);
    assert!(diverted.len() >= 30 && !diverted.contains(&seen), "{diverted:?}");
    let rest = take(&mut member, 100 - diverted.len() - 2).await;
    assert!(numbers(&rest).is_disjoint(&diverted));
    assert_nothing(&mut member, "everything came");
    broker.shutdown().await.unwrap();
}

async fn a_failed_write_ends_it_with_nothing_lost_or_doubled(store: Store) {
    let mut broker = store.open().await;
    backlog(&broker, 0..60).await;
    know_group(&broker).await;
    broker.create_topic(TopicSpec::new("spare").queues(3)).await.unwrap();
    // The beginning is the first write, slices follow.
    for nth in 1..4 {
        broker = store.reopen(broker).await;
        store.faults.fail(Operation::Apply, nth, Fault::Refuse(StorageKind::Unavailable));
        let failed = broker.divert("group", "orders", "spare", DivertOptions::new().slice(10)).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NotStored, "{failed}");
    }
    let (diverted, rest) = all_that_is_there(&broker, 60).await;
    assert_eq!((diverted.len(), rest.len()), (10, 50), "slices before the failure stay, nothing else");
    broker.shutdown().await.unwrap();
}

/// Diverts until `slices` slices of seven are told of, and kills the broker while the next one is before the engine.
async fn kill_in_a_slice(store: &Store, slices: u64) -> u64 {
    let broker = store.open().await;
    let moved = Arc::new(AtomicU64::new(0));
    let gate = Arc::new(Mutex::new((slices == 0).then(|| store.faults.hold(Operation::Apply))));
    let (told, faults, closed) = (Arc::clone(&moved), store.faults.clone(), Arc::clone(&gate));
    let options = DivertOptions::new().slice(7).on_progress(move |progress| {
        told.store(progress.moved, Ordering::SeqCst);
        if progress.moved == slices * 7 {
            *closed.lock().unwrap() = Some(faults.hold(Operation::Apply));
        }
        ControlFlow::Continue(())
    });
    let for_divert = broker.clone();
    let divert = tokio::spawn(async move { for_divert.divert("group", "orders", "spare", options).await });
    // Has it begun.
    tokio::task::yield_now().await;
    until("the slices before", || gate.lock().unwrap().is_some() && moved.load(Ordering::SeqCst) == slices * 7).await;
    gate.lock().unwrap().as_ref().unwrap().wait_for(1);
    let mut kill = Box::pin(store.kill(broker));
    assert!((&mut kill).now_or_never().is_none(), "the write is still held");
    let told = moved.load(Ordering::SeqCst);
    // What it does from now on it does to a store that nobody looks at any more.
    gate.lock().unwrap().take();
    kill.await;
    drop(soon("the end of the diversion", divert).await);
    told
}

/// Diverts until `slices` slices of seven are told of, has the next write fail, and kills the broker.
async fn fail_in_a_slice(store: &Store, slices: u64, fault: Fault) -> u64 {
    let broker = store.open().await;
    let moved = Arc::new(AtomicU64::new(0));
    let (told, faults) = (Arc::clone(&moved), store.faults.clone());
    let options = DivertOptions::new().slice(7).on_progress(move |progress| {
        told.store(progress.moved, Ordering::SeqCst);
        if progress.moved == slices * 7 {
            faults.fail(Operation::Apply, 1, fault);
        }
        ControlFlow::Continue(())
    });
    if slices == 0 {
        // The first write is the beginning.
        store.faults.fail(Operation::Apply, 2, fault);
    }
    let failed = broker.divert("group", "orders", "spare", options).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unknown, "{failed}");
    store.kill(broker).await;
    moved.load(Ordering::SeqCst)
}

async fn a_kill_at_any_point_loses_and_doubles_nothing(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..90).await;
    know_group(&broker).await;
    broker.shutdown().await.unwrap();
    let (landed, lost) = (Fault::LandThenFail(StorageKind::Io), Fault::LoseThenFail(StorageKind::Io));
    let mut at_least = 0;
    for slices in 0..3 {
        at_least += kill_in_a_slice(&store, slices).await;
        if slices < 2 {
            at_least += fail_in_a_slice(&store, slices, landed).await;
            at_least += fail_in_a_slice(&store, slices, lost).await;
        }
    }
    let broker = store.open().await;
    let (diverted, rest) = all_that_is_there(&broker, 90).await;
    assert!(diverted.len() as u64 >= at_least && !rest.is_empty(), "{at_least} were said to be moved");
    broker.shutdown().await.unwrap();
}

async fn a_group_without_members_or_progress(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..30).await;
    broker.create_topic(TopicSpec::new("other")).await.unwrap();
    drop(join(&broker, "group", "other").await);
    let report = broker.divert("group", "orders", "spare", DivertOptions::new()).await.unwrap();
    assert_eq!((report.moved, report.slices), (30, 1));
    let report = broker.divert("group", "orders", "spare", DivertOptions::new()).await.unwrap();
    assert_eq!((report.moved, report.slices), (0, 0), "nothing is left");
    let broker = store.reopen(broker).await;
    let (diverted, rest) = all_that_is_there(&broker, 30).await;
    assert_eq!((diverted.len(), rest.len()), (30, 0));
    broker.shutdown().await.unwrap();
}

async fn bad_diversions(store: Store) {
    let broker = store.open().await;
    backlog(&broker, 0..10).await;
    know_group(&broker).await;
    let refused = async |group: &str, topic: &str, to: &str, options, kind, hint: &str| {
        let error = broker.divert(group, topic, to, options).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    };
    let options = DivertOptions::new;
    refused("nobody", "orders", "spare", options(), ErrorKind::UnknownGroup, "nobody").await;
    refused("group", "nowhere", "spare", options(), ErrorKind::UnknownTopic, "nowhere").await;
    refused("group", "orders", "orders", options(), ErrorKind::Invalid, "into itself").await;
    refused("group", "orders", "%DLQ%group", options(), ErrorKind::Invalid, "reserved").await;
    refused("group", "%RETRY%group", "spare", options(), ErrorKind::Invalid, "reserved").await;
    refused("group", "orders", "spare", options().slice(0), ErrorKind::Invalid, "use 1 to 1024").await;
    refused("group", "orders", "spare", options().slice(1025), ErrorKind::Invalid, "1025 messages").await;
    refused("group", "orders", "spare", options().queues(0), ErrorKind::Invalid, "0 queues").await;
    let all = broker.consumer("all").subscribe("orders").member("m").broadcasting(true).build().await.unwrap();
    refused("all", "orders", "spare", options(), ErrorKind::Invalid, "broadcasts").await;
    drop(all);
    assert!(broker.audit_log(Timestamp::MIN, 10).unwrap().is_empty());

    let mut member = join(&broker, "group", "orders").await;
    let held = next(&mut member).await;
    let for_divert = broker.clone();
    let first = tokio::spawn(async move { for_divert.divert("group", "orders", "spare", options()).await });
    until("the first diversion", || !broker.audit_log(Timestamp::MIN, 1).unwrap().is_empty()).await;
    broker.describe_group("group").await.unwrap();
    refused("group", "orders", "spare", options(), ErrorKind::Conflict, "diverted to spare already").await;
    held.ack().await.unwrap();
    assert_eq!(soon("the first", first).await.unwrap().unwrap().moved, 9);
    broker.shutdown().await.unwrap();
}
