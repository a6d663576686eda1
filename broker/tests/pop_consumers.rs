//! Who pops: more consumers than queues, consumers that wait, that go away, that ask for what cannot be, and beside them
//! members that read queues by offset.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::checker::number_of;
use common::popping::{
    HOUR, MILLISECOND, NOW, SECOND, assert_nothing, consumer, done, in_flight, lag, numbers, pop, pop_one, send,
};
use common::store::Store;
use common::{manual_clock, soon};
use cuemq::{ErrorKind, TopicSpec};

on_every_engine!(
    more_consumers_than_queues,
    a_long_poll_wakes_at_once_and_ends_in_time,
    whoever_goes_away_leaves_nothing_behind,
    tags_are_filtered,
    bad_requests_are_refused,
);

async fn more_consumers_than_queues(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut consumers = Vec::new();
    for _ in 0..8 {
        consumers.push(consumer(&broker).await);
    }
    send(&broker, 0..80).await;
    let mut seen = BTreeMap::new();
    for round in 0..10 {
        for (who, consumer) in consumers.iter().enumerate() {
            let popped = pop_one(consumer).await;
            assert_eq!(seen.insert(number_of(&popped), who), None, "nothing comes twice");
            // The latest first, and some much later.
            if round % 2 == 0 {
                popped.ack().await.unwrap();
            } else {
                consumers[(who + 3) % 8].ack(&popped.receipt()).await.unwrap();
            }
        }
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), (0..80).collect::<Vec<_>>());
    assert!((0..8).all(|who| seen.values().filter(|got| **got == who).count() == 10), "each got its share");
    assert_eq!(broker.describe_group("group").await.unwrap().members.len(), 1, "they are one member of the group");
    assert_eq!(lag(&broker).await, 0);
    drop(consumers);
    soon("the end of the pool", async { while !broker.describe_group("group").await.unwrap().members.is_empty() {} })
        .await;
    broker.shutdown().await.unwrap();
}

async fn a_long_poll_wakes_at_once_and_ends_in_time(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let consumer = consumer(&broker).await;
    let waiting = |most| {
        let consumer = consumer.clone();
        tokio::spawn(async move { consumer.pop(most, HOUR).await.unwrap() })
    };
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let (first, second) = (waiting(5), waiting(5));
            tokio::task::yield_now().await;
            send(&broker, 0..1).await;
            let woken = soon("the first message", first).await.unwrap();
            assert_eq!(numbers(&woken), BTreeSet::from([0]), "the clock stands: it woke at once");
            send(&broker, 1..2).await;
            assert_eq!(numbers(&soon("the second message", second).await.unwrap()), BTreeSet::from([1]));
            let late = waiting(5);
            tokio::task::yield_now().await;
            // Behind its request.
            in_flight(&broker).await;
            clock.advance(HOUR - MILLISECOND);
            // What expired meanwhile comes again, and goes to the one that waits.
            let again = soon("what expired", late).await.unwrap();
            assert!(!again.is_empty());
            done(&consumer, &again).await;
            if again.len() == 1 {
                done(&consumer, &pop(&consumer, 1).await).await;
            }
            let empty = waiting(5);
            tokio::task::yield_now().await;
            in_flight(&broker).await;
            clock.advance(HOUR - MILLISECOND);
            in_flight(&broker).await;
            assert!(!empty.is_finished());
            clock.advance(MILLISECOND);
            assert!(soon("the end of the wait", empty).await.unwrap().is_empty());
        })
        .await;
    broker.shutdown().await.unwrap();
}

async fn whoever_goes_away_leaves_nothing_behind(store: Store) {
    let broker = store.open().await;
    let consumer = consumer(&broker).await;
    // Waits, and gives up before anything comes.
    let gone = consumer.pop(5, HOUR);
    assert!(futures_util::FutureExt::now_or_never(gone).is_none());
    send(&broker, 0..2).await;
    assert_eq!(pop(&consumer, 2).await.iter().map(|popped| popped.attempts()).sum::<u32>(), 0);
    // Is answered, and does not look: the next one has the message at once.
    for n in 2..10 {
        let mut unread = Box::pin(consumer.pop(5, HOUR));
        assert!(futures_util::FutureExt::now_or_never(unread.as_mut()).is_none());
        send(&broker, n..n + 1).await;
        soon("the answer", async { while in_flight(&broker).await < usize::try_from(n).unwrap() + 1 {} }).await;
        drop(unread);
        let popped = pop_one(&consumer).await;
        assert_eq!((number_of(&popped), popped.attempts()), (n, 0));
    }
    broker.shutdown().await.unwrap();
}

async fn tags_are_filtered(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    send(&broker, 0..30).await;
    let consumer = broker.pop_consumer("group").subscribe_tags("orders", "tag0 || tag2").build().await.unwrap();
    let popped = pop(&consumer, 20).await;
    assert_eq!(numbers(&popped), (0..30).filter(|n| n % 3 != 1).collect());
    done(&consumer, &popped).await;
    assert_nothing(&consumer, "nobody wants the others").await;
    assert_eq!(lag(&broker).await, 0, "what nobody wants is done");
    broker.shutdown().await.unwrap();
}

async fn bad_requests_are_refused(store: Store) {
    let broker = store.open().await;
    send(&broker, 0..1).await;
    let build = |invisible| broker.pop_consumer("group").subscribe("orders").invisible(invisible).build();
    for invisible in [NOW, SECOND - MILLISECOND, 12 * HOUR + MILLISECOND] {
        let refused = build(invisible).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains("1s to 43200s"), "{refused}");
    }
    let nothing = broker.pop_consumer("group").build().await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Invalid);
    let consumer = build(12 * HOUR).await.unwrap();
    for most in [0, 1025] {
        let refused = consumer.pop(most, NOW).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.to_string().contains("1 to 1024"), "{refused}");
    }
    let popped = pop_one(&consumer).await;
    let long = consumer.nack(&popped.receipt(), Some(400 * 24 * HOUR)).await.unwrap_err();
    let longer = consumer.renew(&popped.receipt(), 13 * HOUR).await.unwrap_err();
    assert_eq!((long.kind(), longer.kind()), (ErrorKind::Invalid, ErrorKind::Invalid));
    popped.ack().await.unwrap();
    let broadcast = broker.consumer("loud").subscribe("orders").member("m").broadcasting(true).build().await.unwrap();
    let mixed = broker.pop_consumer("loud").subscribe("orders").build().await.unwrap_err();
    assert_eq!(mixed.kind(), ErrorKind::Invalid, "{mixed}");
    drop(broadcast);
    let waiting = consumer.pop(1, HOUR);
    let (ended, stopped) = soon("the end", async { tokio::join!(waiting, broker.shutdown()) }).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Closed);
    stopped.unwrap();
    assert_eq!(consumer.pop(1, HOUR).await.unwrap_err().kind(), ErrorKind::Closed);
}
