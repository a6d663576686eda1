//! Both ways of consuming in one group: members read queues by offset, consumers pop, queues move between them with
//! messages in flight, and nothing comes twice without a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::checker::number_of;
use common::popping::{HOUR, NOW, SECOND, assert_nothing, consumer, done, in_flight, lag, numbers, pop, pop_one, send};
use common::store::Store;
use common::{manual_clock, next, soon, take};
use cuemq::{Broker, Consumer, ErrorKind, ManualClock, Message, ResetTo, TopicSpec};

on_every_engine!(
    a_queue_moves_on_with_messages_in_flight,
    a_queue_comes_back_from_a_member,
    what_was_in_flight_comes_to_whoever_is_left,
    a_panic_brings_everything_in_flight_again,
    a_reset_makes_receipts_stale,
    a_paused_group_pops_nothing,
);

async fn opened(store: &Store, queues: u32) -> (Broker, ManualClock) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(queues)).await.unwrap();
    (broker, clock)
}

async fn member(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").member("member").build().await.unwrap()
}

/// Waits until a member has this many queues of the topic.
async fn holds(broker: &Broker, consumer: &Consumer, count: usize) {
    soon("the hand-over", async {
        let held = || consumer.queues().iter().filter(|queue| queue.topic.as_str() == "orders").count();
        while held() != count {
            broker.describe_group("group").await.unwrap();
        }
    })
    .await;
}

/// Everything that a member can have now, acknowledged.
async fn drain(member: &mut Consumer) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    while let Some(delivery) = futures_util::FutureExt::now_or_never(member.next()) {
        let delivery = delivery.unwrap();
        assert!(all.insert(number_of(&delivery)), "it comes once");
        soon("the acknowledgement", delivery.ack()).await.unwrap();
    }
    all
}

async fn a_queue_moves_on_with_messages_in_flight(store: Store) {
    let (broker, clock) = opened(&store, 4).await;
    send(&broker, 0..40).await;
    let pops = consumer(&broker).await;
    let popped = pop(&pops, 20).await;
    let mut member = member(&broker).await;
    // At once: nobody waits for what is in flight.
    holds(&broker, &member, 2).await;
    let read = drain(&mut member).await;
    assert!(!read.is_empty() && read.is_disjoint(&numbers(&popped)), "what is in flight is passed over");
    assert_eq!(in_flight(&broker).await, 20);
    // Receipts are good whoever holds the queue; one message is given back, and comes again to anybody.
    done(&pops, &popped[1..]).await;
    popped[0].nack(Some(NOW)).await.unwrap();
    let rest = pop(&pops, 40 - 20 - read.len() + 1).await;
    let again: Vec<_> = rest.iter().filter(|popped| popped.attempts() == 1).map(|p| number_of(p)).collect();
    assert_eq!(again, [number_of(&popped[0])]);
    done(&pops, &rest).await;
    let mut all = read;
    all.extend(numbers(&popped));
    all.extend(numbers(&rest));
    assert_eq!(all, (0..40).collect());
    assert_eq!((lag(&broker).await, in_flight(&broker).await), (0, 0));
    // The member goes on behind what was in flight elsewhere.
    send(&broker, 40..80).await;
    let mut more = drain(&mut member).await;
    more.extend(numbers(&pop(&pops, 40 - more.len()).await));
    assert_eq!(more, (40..80).collect());
    clock.advance(HOUR);
    drop(member);
    broker.shutdown().await.unwrap();
}

async fn a_queue_comes_back_from_a_member(store: Store) {
    let (broker, _clock) = opened(&store, 2).await;
    send(&broker, 0..20).await;
    let mut member = member(&broker).await;
    let mut seen: BTreeSet<u64> = take(&mut member, 5).await.iter().map(number_of).collect();
    let held = next(&mut member).await;
    let pops = consumer(&broker).await;
    // The queue with the delivery moves when that is settled, and not before.
    broker.describe_group("group").await.unwrap();
    seen.insert(number_of(&held));
    held.ack().await.unwrap();
    holds(&broker, &member, 1).await;
    let popped = pop_one(&pops).await;
    assert!(seen.insert(number_of(&popped)), "it comes once");
    let unsettled = next(&mut member).await;
    let again = number_of(&unsettled);
    drop(unsettled);
    drop(member);
    // The pool has everything that the member has not acknowledged; its own receipt is good as before.
    while seen.len() < 20 {
        for popped in pop(&pops, 1).await {
            assert!(seen.insert(number_of(&popped)), "it comes once");
            popped.ack().await.unwrap();
        }
    }
    assert!(seen.contains(&again));
    popped.ack().await.unwrap();
    assert_nothing(&pops, "everything came").await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn what_was_in_flight_comes_to_whoever_is_left(store: Store) {
    let (broker, clock) = opened(&store, 1).await;
    send(&broker, 0..10).await;
    let pops = consumer(&broker).await;
    let popped = pop(&pops, 4).await;
    drop(pops);
    let mut member = member(&broker).await;
    holds(&broker, &member, 1).await;
    assert_eq!(drain(&mut member).await, (4..10).collect(), "not what is in flight");
    // The consumer is gone, the receipts are not.
    popped[1].ack().await.unwrap();
    clock.advance(10 * SECOND);
    let mut again = BTreeSet::new();
    for _ in 0..3 {
        let delivery = next(&mut member).await;
        assert_eq!(delivery.attempts(), 1);
        again.insert(number_of(&delivery));
        delivery.ack().await.unwrap();
    }
    assert_eq!(again, BTreeSet::from([0, 2, 3]));
    assert_eq!(popped[0].ack().await.unwrap_err().kind(), ErrorKind::Stale);
    soon("the end of what expired", async { while in_flight(&broker).await > 0 {} }).await;
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_panic_brings_everything_in_flight_again(store: Store) {
    let clock = manual_clock();
    let armed = Arc::new(AtomicBool::new(false));
    let poison = Arc::clone(&armed);
    let builder = store.builder().clock(clock.clock()).probe(move |point| {
        let here = point.actor == "group" && point.message == "Committed" && poison.swap(false, Ordering::SeqCst);
        assert!(!here, "on purpose");
    });
    let broker = builder.open().await.unwrap();
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    send(&broker, 0..20).await;
    let pops = consumer(&broker).await;
    let popped = pop(&pops, 12).await;
    done(&pops, &popped[..3]).await;
    // One queue moves to a member, with messages in flight.
    let mut member = member(&broker).await;
    holds(&broker, &member, 1).await;
    let mut settled = drain(&mut member).await;
    settled.extend(numbers(&popped[..3]));
    let waiting = pops.clone();
    let pull = broker.pull_consumer("group").await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let mut pull = pull;
    assert_eq!(pull.assign("orders", 0).await.unwrap_err().kind(), ErrorKind::Unknown, "it panicked");
    soon("the restart", async {
        while broker.actor_restarts() < 1 || broker.describe_group("group").await.is_err() {}
    })
    .await;
    // Each comes again, to whoever holds its queue now, and the old receipts say so.
    let mut again = BTreeSet::new();
    while settled.len() + again.len() < 20 {
        for popped in waiting.pop(100, NOW).await.unwrap() {
            assert!(again.insert(number_of(&popped)), "it comes once");
            popped.ack().await.unwrap();
        }
        again.extend(drain(&mut member).await);
    }
    assert!(again.is_disjoint(&settled), "what was settled stays so");
    for popped in &popped[3..] {
        let stale = popped.ack().await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Stale);
        assert!(stale.to_string().contains("interrupted"), "{stale}");
    }
    popped[0].ack().await.unwrap();
    assert_eq!((lag(&broker).await, in_flight(&broker).await), (0, 0));
    broker.shutdown().await.unwrap();
}

async fn a_reset_makes_receipts_stale(store: Store) {
    let (broker, clock) = opened(&store, 1).await;
    send(&broker, 0..6).await;
    let pops = consumer(&broker).await;
    let popped = pop(&pops, 4).await;
    done(&pops, &popped[..2]).await;
    broker.reset_group("group", "orders", ResetTo::Begin).await.unwrap().confirm().await.unwrap();
    let stale = popped[2].ack().await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    let again = pop(&pops, 6).await;
    assert_eq!(numbers(&again), (0..6).collect(), "everything comes once more");
    // Forwards, what is in flight may be settled or not: it is behind the group.
    broker.reset_group("group", "orders", ResetTo::End).await.unwrap().confirm().await.unwrap();
    again[0].ack().await.unwrap();
    for refused in [again[1].nack(None).await, again[2].reject("no use").await, again[1].reject("no use").await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stale, "nothing would come of it: {refused}");
    }
    clock.advance(10 * SECOND);
    soon("the end of what was skipped", async { while in_flight(&broker).await > 0 {} }).await;
    assert_nothing(&pops, "it was skipped").await;
    assert_eq!(broker.dead_letters("group").unwrap().count().unwrap(), 0);
    assert_eq!(lag(&broker).await, 0);
    broker.shutdown().await.unwrap();
}

async fn a_paused_group_pops_nothing(store: Store) {
    let (broker, _clock) = opened(&store, 1).await;
    send(&broker, 0..4).await;
    let pops = consumer(&broker).await;
    let popped = pop(&pops, 2).await;
    broker.pause_group("group").await.unwrap();
    soon("the pause", async { while !broker.describe_group("group").await.unwrap().paused {} }).await;
    assert_nothing(&pops, "it is paused").await;
    done(&pops, &popped).await;
    let waiting = pops.pop(1, HOUR);
    let resumed = async {
        tokio::task::yield_now().await;
        broker.resume_group("group").await.unwrap();
    };
    let (popped, ()) = soon("the message", async { tokio::join!(waiting, resumed) }).await;
    assert_eq!(popped.unwrap().len(), 1);
    broker.producer("orders").await.unwrap().send(Message::new("one more")).await.unwrap();
    broker.shutdown().await.unwrap();
}
