//! A group is moved by an operator: first shown, then confirmed, with members at work, and written down with the move.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, next, soon, take};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    AuditAction, Broker, Consumer, ErrorKind, ManualClock, Message, OffsetPlan, QueueOffset, ResetTo, Skip, Timestamp,
    TopicSpec,
};

on_every_engine!(
    a_plan_shows_and_does_nothing,
    a_reset_goes_where_it_says,
    the_first_message_after_a_reset_to_a_time_is_not_older,
    forwards_under_a_member_at_work,
    back_under_a_member_at_work,
    back_in_an_ordered_consumer,
    skips_only_go_forwards,
    a_group_that_never_read_a_queue,
    progress_does_not_spoil_a_plan_and_a_move_back_does,
    a_move_and_its_record_survive_a_kill,
    a_refused_write_moves_nothing,
    the_audit_log_is_read_from_a_time_on,
    pauses_are_written_down,
    bad_plans,
);

async fn send(broker: &Broker, numbers: std::ops::Range<u64>) {
    let producer = broker.producer("orders").await.unwrap();
    for n in numbers {
        producer.send(numbered(n)).await.unwrap();
    }
}

async fn one_queue(store: &Store, clock: &ManualClock, messages: u64) -> Broker {
    let broker = store.open_at(clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, 0..messages).await;
    broker
}

async fn join(broker: &Broker, group: &str) -> Consumer {
    broker.consumer(group).subscribe("orders").build().await.unwrap()
}

fn offset(n: u64) -> QueueOffset {
    QueueOffset::new(n)
}

/// From and to of each queue.
fn moves(plan: &OffsetPlan) -> Vec<(u64, u64)> {
    plan.moves().iter().map(|m| (m.from.get(), m.to.get())).collect()
}

async fn committed(broker: &Broker, group: &str) -> Vec<u64> {
    let queues = broker.describe_group(group).await.unwrap().queues;
    queues.iter().filter(|q| q.queue.topic.as_str() == "orders").map(|q| q.committed.get()).collect()
}

async fn reset(broker: &Broker, to: ResetTo) {
    broker.reset_group("group", "orders", to).await.unwrap().confirm().await.unwrap();
}

fn audited(broker: &Broker) -> Vec<(AuditAction, Vec<(u64, u64)>)> {
    let log = broker.audit_log(Timestamp::MIN, 1000).unwrap();
    let moves = |queues: Vec<cuemq::AuditedMove>| queues.iter().map(|m| (m.from.get(), m.to.get())).collect();
    log.into_iter().map(|record| (record.action, moves(record.queues))).collect()
}

async fn a_plan_shows_and_does_nothing(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 20).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 5).await;
    let plan = broker.reset_group("group", "orders", ResetTo::Begin).await.unwrap();
    assert_eq!(moves(&plan), [(5, 0)]);
    assert_eq!((plan.passed_over(), plan.delivered_again()), (0, 5));
    let text = plan.to_string();
    for part in ["group group in topic orders: reset to begin", "orders/0", "5 again", "0 passed over, 5 delivered"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    drop(plan);
    let plan = broker.skip("group", "orders", Skip::KeepLast(3)).await.unwrap();
    assert_eq!((moves(&plan), plan.passed_over()), (vec![(5, 17)], 12));
    assert!(plan.to_string().contains("12 passed over"), "{plan}");
    drop(plan);
    assert_eq!(committed(&broker, "group").await, [5]);
    assert!(audited(&broker).is_empty());
    assert_eq!(number_of(&*next(&mut member).await), 5);
    broker.shutdown().await.unwrap();
}

async fn a_reset_goes_where_it_says(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(3)).await.unwrap();
    send(&broker, 0..30).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 30).await;
    for (to, after) in [
        (ResetTo::Begin, [0, 0, 0]),
        (ResetTo::Offset(1, offset(7)), [10, 7, 10]),
        (ResetTo::Offset(2, offset(10)), [10, 10, 10]),
        (ResetTo::Time(Timestamp::MIN), [0, 0, 0]),
        (ResetTo::End, [10, 10, 10]),
        (ResetTo::Time(Timestamp::MAX), [10, 10, 10]),
    ] {
        drop(member);
        reset(&broker, to).await;
        assert_eq!(committed(&broker, "group").await, after, "{to:?}");
        member = join(&broker, "group").await;
        let left = usize::try_from(30 - after.iter().sum::<u64>()).unwrap();
        let mut first = BTreeMap::new();
        for received in take(&mut member, left).await {
            first.entry(received.queue().queue.get()).or_insert(received.offset().get());
        }
        for (queue, after) in (0..).zip(after) {
            assert!(first.get(&queue).is_none_or(|first| *first == after), "{to:?}: queue {queue} began at {first:?}");
        }
        assert_nothing(&mut member, "everything came");
    }
    broker.shutdown().await.unwrap();
}

async fn the_first_message_after_a_reset_to_a_time_is_not_older(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let start = clock.now();
    for n in 0..40 {
        send(&broker, n..n + 1).await;
        clock.advance(Duration::from_millis(7));
    }
    let mut member = join(&broker, "group").await;
    take(&mut member, 40).await;
    for (millis, expected) in [(0, 40), (7 * 13, 27), (7 * 13 + 1, 26), (7 * 39, 1), (7 * 39 + 1, 0)] {
        let at = start.plus(Duration::from_millis(millis));
        reset(&broker, ResetTo::Time(at)).await;
        let got = take(&mut member, expected).await;
        assert!(got.iter().all(|received| received.stored_at() >= at), "older than {at}");
        assert_nothing(&mut member, "the others are older");
    }
    broker.shutdown().await.unwrap();
}

async fn forwards_under_a_member_at_work(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 2000).await;
    let mut member = join(&broker, "group").await;
    let held = [next(&mut member).await, next(&mut member).await, next(&mut member).await];
    take(&mut member, 2).await;
    let plan = broker.skip("group", "orders", Skip::KeepLast(4)).await.unwrap();
    assert_eq!(moves(&plan), [(0, 1996)], "nothing is committed past the first");
    let moved = plan.confirm().await.unwrap();
    assert_eq!((moved.len(), moved[0].from, moved[0].to), (1, offset(0), offset(1996)));
    let after: Vec<u64> = take(&mut member, 2).await.iter().map(number_of).collect();
    assert_eq!(after, [1996, 1997], "the member jumps");
    let [first, second, third] = held;
    first.ack().await.unwrap();
    let passed_over = second.retry_later(Some(Duration::from_secs(3600))).await.unwrap_err();
    assert_eq!(passed_over.kind(), ErrorKind::Stale, "it does not come again: {passed_over}");
    drop(third);
    let after: Vec<u64> = take(&mut member, 2).await.iter().map(number_of).collect();
    assert_eq!(after, [1998, 1999], "nor does one that was dropped");
    assert_eq!(committed(&broker, "group").await, [2000]);
    assert_eq!(audited(&broker), [(AuditAction::Skip, vec![(0, 1996)])]);
    broker.shutdown().await.unwrap();
}

async fn back_under_a_member_at_work(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 50).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 30).await;
    let held = [next(&mut member).await, next(&mut member).await];
    reset(&broker, ResetTo::Offset(0, offset(10))).await;
    for delivery in held {
        let stale = delivery.ack().await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    }
    let again: Vec<u64> = take(&mut member, 40).await.iter().map(number_of).collect();
    assert_eq!(again, (10..50).collect::<Vec<_>>());
    assert_nothing(&mut member, "everything came");
    assert_eq!(committed(&broker, "group").await, [50]);
    assert_eq!(audited(&broker), [(AuditAction::Reset, vec![(30, 10)])]);
    let broker = store.reopen(broker).await;
    assert_eq!(committed(&broker, "group").await, [50]);
    broker.shutdown().await.unwrap();
}

async fn back_in_an_ordered_consumer(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 12).await;
    let mut member = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    take(&mut member, 6).await;
    let held = next(&mut member).await;
    reset(&broker, ResetTo::Begin).await;
    let first = next(&mut member).await;
    assert_eq!(number_of(&first), 0, "the one in hand does not hold up the queue under its new lease");
    assert_eq!(held.ack().await.unwrap_err().kind(), ErrorKind::Stale);
    first.ack().await.unwrap();
    broker.skip("group", "orders", Skip::KeepLast(2)).await.unwrap().confirm().await.unwrap();
    let rest: Vec<u64> = take(&mut member, 2).await.iter().map(number_of).collect();
    assert_eq!(rest, [10, 11]);
    broker.shutdown().await.unwrap();
}

async fn skips_only_go_forwards(store: Store) {
    let clock = manual_clock();
    let broker = one_queue(&store, &clock, 10).await;
    clock.advance(Duration::from_secs(60));
    let minute = clock.now();
    send(&broker, 10..15).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 3).await;
    for (skip, to) in [
        (Skip::OlderThan(Timestamp::MIN), 3),
        (Skip::KeepLast(1000), 3),
        (Skip::OlderThan(minute), 10),
        (Skip::KeepLast(14), 10),
        (Skip::KeepLast(2), 13),
        (Skip::KeepLast(0), 15),
    ] {
        let plan = broker.skip("group", "orders", skip).await.unwrap();
        assert_eq!(plan.moves()[0].to.get(), to, "{skip:?}");
        assert_eq!(plan.delivered_again(), 0);
        plan.note("agreed with sales").confirm().await.unwrap();
        assert_eq!(committed(&broker, "group").await, [to], "{skip:?}");
    }
    assert_nothing(&mut member, "all was passed over");
    let log = broker.audit_log(Timestamp::MIN, 100).unwrap();
    assert_eq!(log.len(), 6, "also those that found nothing to do");
    assert_eq!(log[5].note, "skip all but the last 0 of each queue: agreed with sales");
    assert_eq!((log[5].group.as_deref(), log[5].topic.as_deref()), (Some("group"), Some("orders")));
    assert_eq!(log[5].at, clock.now());
    broker.shutdown().await.unwrap();
}

async fn a_group_that_never_read_a_queue(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 10).await;
    broker.create_topic(TopicSpec::new("other").queues(1)).await.unwrap();
    let member = broker.consumer("group").subscribe("other").build().await.unwrap();
    let plan = broker.reset_group("group", "orders", ResetTo::Offset(0, offset(7))).await.unwrap();
    assert_eq!(moves(&plan), [(0, 7)]);
    plan.confirm().await.unwrap();
    drop(member);
    let mut member = join(&broker, "group").await;
    assert_eq!(take(&mut member, 3).await.iter().map(number_of).collect::<Vec<_>>(), [7, 8, 9]);
    broker.shutdown().await.unwrap();
}

async fn progress_does_not_spoil_a_plan_and_a_move_back_does(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 100).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 50).await;
    let plan = async |to| broker.reset_group("group", "orders", to).await.unwrap();
    let (back, forwards, near) = (
        plan(ResetTo::Offset(0, offset(20))).await,
        plan(ResetTo::Offset(0, offset(80))).await,
        plan(ResetTo::Offset(0, offset(55))).await,
    );
    take(&mut member, 10).await;
    assert!(near.confirm().await.unwrap().is_empty(), "the group is further by itself");
    assert_eq!(committed(&broker, "group").await, [60]);
    let moved = forwards.confirm().await.unwrap();
    assert_eq!((moved[0].from.get(), moved[0].to.get()), (60, 80), "what was left to pass over");
    let again = plan(ResetTo::Offset(0, offset(70))).await;
    back.confirm().await.unwrap();
    assert_eq!(committed(&broker, "group").await, [20]);
    let conflict = again.confirm().await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert!(conflict.to_string().contains("moved back to 20"), "{conflict}");
    assert_eq!(committed(&broker, "group").await, [20]);
    assert_eq!(audited(&broker).len(), 3, "what was refused is not in the log");
    broker.shutdown().await.unwrap();
}

async fn a_move_and_its_record_survive_a_kill(store: Store) {
    let mut broker = one_queue(&store, &manual_clock(), 100).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 40).await;
    for (n, to) in (1..).zip([90, 10, 70]) {
        reset(&broker, ResetTo::Offset(0, offset(to))).await;
        store.kill(broker).await;
        drop(member);
        broker = store.open().await;
        assert_eq!(committed(&broker, "group").await, [to]);
        assert_eq!(audited(&broker).len(), n, "each move with its record");
        member = join(&broker, "group").await;
        assert_eq!(number_of(&*next(&mut member).await), to);
    }
    broker.shutdown().await.unwrap();
}

async fn a_refused_write_moves_nothing(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 20).await;
    let mut member = join(&broker, "group").await;
    take(&mut member, 10).await;
    for to in [ResetTo::Begin, ResetTo::End] {
        let plan = broker.reset_group("group", "orders", to).await.unwrap();
        store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Unavailable));
        assert_eq!(plan.confirm().await.unwrap_err().kind(), ErrorKind::NotStored);
        assert_eq!(committed(&broker, "group").await, [10]);
        assert!(audited(&broker).is_empty());
    }
    let rest: Vec<u64> = take(&mut member, 10).await.iter().map(number_of).collect();
    assert_eq!(rest, (10..20).collect::<Vec<_>>(), "the member noticed nothing");
    reset(&broker, ResetTo::Begin).await;
    soon("the first again", member.next()).await.unwrap().ack().await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn the_audit_log_is_read_from_a_time_on(store: Store) {
    let clock = manual_clock();
    let broker = one_queue(&store, &clock, 10).await;
    drop(join(&broker, "group").await);
    let start = clock.now();
    for to in 0..10 {
        reset(&broker, ResetTo::Offset(0, offset(to))).await;
        clock.advance(Duration::from_secs(1));
    }
    let broker = store.reopen_at(broker, &clock).await;
    let from = |seconds: u64, limit: usize| {
        let log = broker.audit_log(start.plus(Duration::from_secs(seconds)), limit).unwrap();
        log.iter().map(|record| record.queues.first().map_or(0, |m| m.to.get())).collect::<Vec<_>>()
    };
    assert_eq!(from(0, 1000), (0..10).collect::<Vec<_>>());
    assert_eq!(from(3, 2), [3, 4]);
    assert_eq!(from(9, 2), [9]);
    assert!(from(10, 2).is_empty());
    broker.shutdown().await.unwrap();
}

async fn pauses_are_written_down(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 3).await;
    drop(join(&broker, "group").await);
    broker.pause_group("group").await.unwrap();
    broker.pause_group("group").await.unwrap();
    broker.resume_group("group").await.unwrap();
    let broker = store.reopen(broker).await;
    let actions: Vec<AuditAction> = audited(&broker).into_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, [AuditAction::Pause, AuditAction::Resume], "what changes nothing is no news");
    broker.shutdown().await.unwrap();
}

async fn bad_plans(store: Store) {
    let broker = one_queue(&store, &manual_clock(), 10).await;
    drop(join(&broker, "group").await);
    let refused = async |group: &str, topic: &str, to, kind, hints: &[&str]| {
        let error = broker.reset_group(group, topic, to).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(hints.iter().all(|hint| error.to_string().contains(hint)), "{error}");
    };
    let begin = ResetTo::Begin;
    refused("nobody", "orders", begin, ErrorKind::UnknownGroup, &["nobody", "makes it"]).await;
    refused("gro up", "orders", begin, ErrorKind::Invalid, &["gro up"]).await;
    refused("group", "nowhere", begin, ErrorKind::UnknownTopic, &["nowhere", "create_topic"]).await;
    let beyond = ResetTo::Offset(0, offset(11));
    refused("group", "orders", beyond, ErrorKind::OutOfRange, &["11", "0 to 10", "choose"]).await;
    let queue = ResetTo::Offset(1, offset(0));
    refused("group", "orders", queue, ErrorKind::Invalid, &["queues 0 to 0", "not 1"]).await;
    let plan = broker.reset_group("group", "orders", begin).await.unwrap().note("x".repeat(1025));
    assert!(plan.confirm().await.unwrap_err().to_string().contains("1025 bytes, more than 1024"));
    let all = broker.consumer("all").subscribe("orders").member("m").broadcasting(true).build().await.unwrap();
    refused("all", "orders", begin, ErrorKind::Invalid, &["broadcasts", "of their own"]).await;
    drop(all);
    assert!(audited(&broker).is_empty());
    broker.producer("orders").await.unwrap().send(Message::new("x")).await.unwrap();
    broker.shutdown().await.unwrap();
}
