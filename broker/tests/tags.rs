//! Members of one group that subscribe to different tags each get exactly their own, whoever holds the queues.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, soon, take, text};
use cuemq::{Broker, Consumer, Message, Order, TopicSpec};

on_every_engine!(
    each_member_gets_its_own,
    tags_that_collide_are_told_apart,
    what_several_want_comes_once,
    what_nobody_wants_is_counted,
    an_idle_holder_starves_nobody,
    a_member_that_leaves_or_dies_loses_nothing,
    a_redelivery_goes_to_who_wants_it,
    order_holds_for_each_member,
    members_come_and_go,
    members_with_different_topics,
);

async fn open(store: &Store, queues: u32) -> Broker {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(queues)).await.unwrap();
    broker
}

async fn send(broker: &Broker, names: impl IntoIterator<Item = (&str, u64)>) {
    let producer = broker.producer("orders").await.unwrap();
    for (tag, number) in names {
        producer.send(Message::new(format!("{tag}{number}")).tag(tag)).await.unwrap();
    }
}

async fn join(broker: &Broker, name: &str, tags: &str) -> Consumer {
    broker.consumer("group").subscribe_tags("orders", tags).member(name).build().await.unwrap()
}

async fn lag(broker: &Broker) -> (u64, u64) {
    let group = broker.describe_group("group").await.unwrap();
    (group.lag(), group.unwanted())
}

fn names(tags: &[&'static str], numbers: std::ops::Range<u64>) -> Vec<(&'static str, u64)> {
    numbers.flat_map(|number| tags.iter().map(move |tag| (*tag, number))).collect()
}

fn of(tag: &str, numbers: std::ops::Range<u64>) -> BTreeSet<String> {
    numbers.map(|number| format!("{tag}{number}")).collect()
}

async fn got(consumer: &mut Consumer, count: usize) -> BTreeSet<String> {
    bodies(&take(consumer, count).await).into_iter().collect()
}

async fn each_member_gets_its_own(store: Store) {
    let broker = open(&store, 3).await;
    let (mut x, mut y, mut z) =
        (join(&broker, "x", "a").await, join(&broker, "y", "b || c").await, join(&broker, "z", "d").await);
    send(&broker, names(&["a", "b", "c", "d"], 0..20)).await;
    assert_eq!(got(&mut z, 20).await, of("d", 0..20));
    assert_eq!(got(&mut x, 20).await, of("a", 0..20));
    assert_eq!(got(&mut y, 40).await, &of("b", 0..20) | &of("c", 0..20));
    for member in [&mut x, &mut y, &mut z] {
        assert_nothing(member, "everything came once");
    }
    assert_eq!(lag(&broker).await, (0, 0));
    let broker = store.reopen(broker).await;
    let mut all = join(&broker, "all", "*").await;
    assert_nothing(&mut all, "everything is done");
    broker.shutdown().await.unwrap();
}

async fn tags_that_collide_are_told_apart(store: Store) {
    let broker = open(&store, 1).await;
    let (mut x, mut y) = (join(&broker, "x", "Aa").await, join(&broker, "y", "BB").await);
    send(&broker, names(&["Aa", "BB"], 0..10)).await;
    assert_eq!(got(&mut y, 10).await, of("BB", 0..10));
    assert_eq!(got(&mut x, 10).await, of("Aa", 0..10));
    assert_eq!(lag(&broker).await, (0, 0));
    broker.shutdown().await.unwrap();
}

async fn what_several_want_comes_once(store: Store) {
    let broker = open(&store, 2).await;
    let (mut x, mut y, mut z) =
        (join(&broker, "x", "a || b").await, join(&broker, "y", "b || c").await, join(&broker, "z", "*").await);
    send(&broker, names(&["a", "b", "c"], 0..20)).await;
    let (mut seen, mut count) = (BTreeSet::new(), 0);
    while count < 60 {
        for member in [&mut x, &mut y, &mut z] {
            while let Some(delivery) = futures_util::FutureExt::now_or_never(member.next()) {
                let delivery = delivery.unwrap();
                count += 1;
                assert!(seen.insert(text(&delivery)), "{} came twice", text(&delivery));
                delivery.ack().await.unwrap();
            }
        }
    }
    assert_eq!(seen.len(), 60);
    assert_eq!(lag(&broker).await, (0, 0));
    broker.shutdown().await.unwrap();
}

async fn what_nobody_wants_is_counted(store: Store) {
    let broker = open(&store, 1).await;
    let (mut x, mut y) = (join(&broker, "x", "a").await, join(&broker, "y", "b").await);
    send(&broker, names(&["a", "b", "nobody", "c"], 0..10)).await;
    assert_eq!(got(&mut y, 10).await, of("b", 0..10));
    assert_eq!(got(&mut x, 10).await, of("a", 0..10));
    assert_nothing(&mut x, "the rest is nobody's");
    assert_nothing(&mut y, "the rest is nobody's");
    assert_eq!(lag(&broker).await, (0, 20));
    store.kill(broker).await;
    drop((x, y));
    let broker = store.open().await;
    assert_eq!(lag(&broker).await, (0, 20), "the count is kept");
    let mut x = join(&broker, "x", "a").await;
    send(&broker, names(&["a", "b"], 10..12)).await;
    assert_eq!(got(&mut x, 2).await, of("a", 10..12));
    assert_nothing(&mut x, "the rest is nobody's");
    let queues = broker.describe_group("group").await.unwrap().queues;
    let orders: Vec<u64> = queues.iter().filter(|q| q.queue.topic.as_str() == "orders").map(|q| q.unwanted).collect();
    assert_eq!(orders, [22]);
    broker.shutdown().await.unwrap();
}

/// Whichever of two members the holder is.
async fn an_idle_holder_starves_nobody(store: Store) {
    for (holder, guest) in [("first", "second"), ("second", "first")] {
        idle_and_busy(&Store::new(store.kind), holder, guest).await;
    }
}

async fn idle_and_busy(store: &Store, idle: &str, busy: &str) {
    let broker = open(store, 1).await;
    let (mut idle, mut busy) = (join(&broker, idle, "a").await, join(&broker, busy, "b").await);
    let held = broker.describe_group("group").await.unwrap().members;
    assert_eq!(held.iter().filter(|m| m.queues.iter().any(|q| q.topic.as_str() == "orders")).count(), 1);
    send(&broker, names(&["a", "b"], 0..600)).await;
    // Not even with something in hand that it does not settle.
    let in_hand = next(&mut busy).await;
    assert_eq!(got(&mut busy, 599).await, of("b", 1..600));
    assert_nothing(&mut busy, "the rest is another's");
    assert_eq!(got(&mut idle, 600).await, of("a", 0..600));
    in_hand.ack().await.unwrap();
    send(&broker, names(&["a", "b"], 600..610)).await;
    assert_eq!(got(&mut idle, 10).await, of("a", 600..610));
    assert_eq!(got(&mut busy, 10).await, of("b", 600..610));
    // And a member that waits is woken by what comes into another's queue.
    for (member, tag) in [(&mut idle, "a"), (&mut busy, "b")] {
        let sent = send(&broker, [(tag, 700)]);
        let (delivery, ()) = soon("the message", async { tokio::join!(member.next(), sent) }).await;
        delivery.unwrap().ack().await.unwrap();
    }
    assert_eq!(lag(&broker).await, (0, 0));
    broker.shutdown().await.unwrap();
}

async fn a_member_that_leaves_or_dies_loses_nothing(store: Store) {
    for rude in [false, true] {
        let store = Store::new(store.kind);
        let broker = open(&store, 2).await;
        let (mut x, mut y, mut z) =
            (join(&broker, "x", "a").await, join(&broker, "y", "b").await, join(&broker, "z", "b || c").await);
        send(&broker, names(&["a", "b", "c"], 0..30)).await;
        let mut of_b = BTreeSet::new();
        let mut held = Vec::new();
        for n in 0..8 {
            let Some(delivery) = futures_util::FutureExt::now_or_never(y.next()) else { break };
            let delivery = delivery.unwrap();
            if n % 2 == 0 {
                assert!(of_b.insert(text(&delivery)));
                delivery.ack().await.unwrap();
            } else {
                held.push(delivery);
            }
        }
        assert!(!held.is_empty());
        if rude {
            held.drain(..).for_each(std::mem::forget);
        }
        drop(y);
        if let Some(stale) = held.pop() {
            let stale = stale.ack().await.unwrap_err();
            assert_eq!(stale.kind(), cuemq::ErrorKind::Stale, "{stale}");
        }
        drop(held);
        assert_eq!(got(&mut x, 30).await, of("a", 0..30));
        let rest = got(&mut z, 60 - of_b.len()).await;
        assert!(rest.is_disjoint(&of_b), "what was acknowledged stays done");
        assert_eq!(&rest | &of_b, &of("b", 0..30) | &of("c", 0..30));
        assert_nothing(&mut z, "everything came once");
        assert_eq!(lag(&broker).await, (0, 0));
        drop(z);
        send(&broker, names(&["a", "b"], 30..40)).await;
        assert_eq!(got(&mut x, 10).await, of("a", 30..40));
        assert_nothing(&mut x, "nobody wants the rest");
        assert_eq!(lag(&broker).await, (0, 10));
        broker.shutdown().await.unwrap();
    }
}

async fn a_redelivery_goes_to_who_wants_it(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let (mut x, mut y) = (join(&broker, "x", "a").await, join(&broker, "y", "b").await);
    send(&broker, names(&["a", "b"], 0..1)).await;
    for (member, body) in [(&mut x, "a0"), (&mut y, "b0")] {
        let delivery = next(member).await;
        assert_eq!(text(&delivery), body);
        drop(delivery);
        assert_nothing(member, "not at once");
    }
    clock.advance(Duration::from_secs(1));
    for (member, body) in [(&mut x, "a0"), (&mut y, "b0")] {
        let delivery = next(member).await;
        assert_eq!((text(&delivery).as_str(), delivery.attempts()), (body, 1), "a dropped one stays with its member");
        delivery.retry_in(Duration::ZERO).await.unwrap();
    }
    for (member, body) in [(&mut x, "a0"), (&mut y, "b0")] {
        let delivery = next(member).await;
        assert_eq!((text(&delivery).as_str(), delivery.attempts()), (body, 2));
        delivery.retry_in(Duration::ZERO).await.unwrap();
    }
    drop(y);
    let delivery = next(&mut x).await;
    assert_eq!(text(&delivery), "a0");
    delivery.ack().await.unwrap();
    assert_nothing(&mut x, "b0 waits for one that wants it");
    assert_eq!(lag(&broker).await, (1, 0), "and can be seen");
    let mut back = join(&broker, "back", "b").await;
    let delivery = next(&mut back).await;
    assert_eq!((text(&delivery).as_str(), delivery.attempts()), ("b0", 3));
    delivery.ack().await.unwrap();
    assert_eq!(lag(&broker).await, (0, 0));
    broker.shutdown().await.unwrap();
}

async fn order_holds_for_each_member(store: Store) {
    let broker = open(&store, 1).await;
    let ordered = async |name: &str, tags: &str, order| {
        let consumer = broker.consumer("group").subscribe_tags("orders", tags).member(name).order(order);
        consumer.build().await.unwrap()
    };
    let (mut x, mut y) = (ordered("x", "a", Order::Queue).await, ordered("y", "b", Order::Queue).await);
    let mut keyed = ordered("z", "c", Order::Key).await;
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..6 {
        for tag in ["a", "b", "c"] {
            let message = Message::new(format!("{tag}{n}")).tag(tag).sharding_key(format!("key{}", n % 2));
            producer.send(message).await.unwrap();
        }
    }
    for n in 0..6 {
        let (first, second) = (next(&mut x).await, next(&mut y).await);
        assert_eq!((text(&first), text(&second)), (format!("a{n}"), format!("b{n}")));
        assert_nothing(&mut x, "one at a time");
        assert_nothing(&mut y, "one at a time");
        first.ack().await.unwrap();
        second.ack().await.unwrap();
    }
    let (c0, c1) = (next(&mut keyed).await, next(&mut keyed).await);
    assert_eq!((text(&c0), text(&c1)), ("c0".to_owned(), "c1".to_owned()));
    assert_nothing(&mut keyed, "one of a key at a time");
    c1.ack().await.unwrap();
    let c3 = next(&mut keyed).await;
    assert_eq!(text(&c3), "c3");
    c0.ack().await.unwrap();
    let c2 = next(&mut keyed).await;
    assert_eq!(text(&c2), "c2");
    broker.shutdown().await.unwrap();
}

async fn members_come_and_go(store: Store) {
    let broker = open(&store, 4).await;
    let tags = ["a", "b", "c"];
    // One of each that stays, so that everything is wanted at any time.
    let mut staying = BTreeMap::new();
    for tag in tags {
        staying.insert(tag, join(&broker, &format!("stays-{tag}"), tag).await);
    }
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut guests: Vec<(&str, Consumer)> = Vec::new();
    for round in 0..12u64 {
        send(&broker, names(&tags, round * 10..round * 10 + 10)).await;
        let tag = tags[usize::try_from(round).unwrap() % 3];
        guests.push((tag, join(&broker, &format!("guest-{round}"), tag).await));
        if round % 2 == 1 {
            let (tag, mut leaving) = guests.remove(usize::try_from(round).unwrap() % guests.len());
            // It dies with something in hand.
            if let Some(delivery) = futures_util::FutureExt::now_or_never(leaving.next()) {
                let delivery = delivery.unwrap();
                assert!(text(&delivery).starts_with(tag));
                std::mem::forget(delivery);
            }
        }
        for (tag, member) in staying.iter_mut().map(|(tag, m)| (*tag, m)).chain(guests.iter_mut().map(|(t, m)| (*t, m)))
        {
            for _ in 0..5 {
                let Some(delivery) = futures_util::FutureExt::now_or_never(member.next()) else { break };
                let delivery = delivery.unwrap();
                assert!(text(&delivery).starts_with(tag), "{} came to a member that wants {tag}", text(&delivery));
                let name = text(&delivery);
                delivery.ack().await.unwrap();
                *seen.entry(name).or_default() += 1;
            }
        }
    }
    drop(guests);
    soon("everything", async {
        while lag(&broker).await.0 > 0 {
            for (tag, member) in &mut staying {
                while let Some(delivery) = futures_util::FutureExt::now_or_never(member.next()) {
                    let delivery = delivery.unwrap();
                    assert!(text(&delivery).starts_with(tag));
                    *seen.entry(text(&delivery)).or_default() += 1;
                    delivery.ack().await.unwrap();
                }
            }
        }
    })
    .await;
    let expected: BTreeSet<String> = tags.iter().flat_map(|tag| of(tag, 0..120)).collect();
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), expected, "nothing is lost");
    assert!(seen.values().all(|times| *times == 1), "what was acknowledged does not come again: {seen:?}");
    assert_eq!(lag(&broker).await, (0, 0), "somebody wanted all of it");
    broker.shutdown().await.unwrap();
}

async fn members_with_different_topics(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let join =
        async |name: &str, topic: &str| broker.consumer("group").subscribe(topic).member(name).build().await.unwrap();
    let (mut x, mut y) = (join("x", "orders").await, join("y", "bills").await);
    for topic in ["orders", "bills"] {
        broker.producer(topic).await.unwrap().send(topic).await.unwrap();
    }
    for (member, topic) in [(&mut x, "orders"), (&mut y, "bills")] {
        let delivery = next(member).await;
        assert_eq!(text(&delivery), topic);
        delivery.retry_in(Duration::ZERO).await.unwrap();
    }
    for (member, topic) in [(&mut y, "bills"), (&mut x, "orders")] {
        let delivery = next(member).await;
        assert_eq!((text(&delivery).as_str(), delivery.attempts()), (topic, 1), "a redelivery finds its member");
        delivery.ack().await.unwrap();
    }
    assert_eq!(lag(&broker).await, (0, 0));
    broker.shutdown().await.unwrap();
}
