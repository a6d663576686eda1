//! A consumer group shares its queues, goes on where it was, and brings again what nobody acknowledged.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::checker::{Checker, number_of, numbered};
use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, soon, take, text};
use cuemq::{
    AssignmentStrategy, Broker, Consumer, ErrorKind, Message, QueueKey, QueueOffset, Received, SeekTo, StartAt,
    Timestamp, TopicSpec,
};

on_every_engine!(
    queues_are_shared_evenly,
    another_takes_over_when_a_member_leaves,
    a_name_that_is_taken_disturbs_nobody,
    a_dropped_delivery_comes_again_after_a_second,
    broadcasting_gives_everyone_everything,
    a_group_goes_on_where_it_was,
    acknowledgements_out_of_order_survive_the_process,
    tags_are_filtered,
    a_group_starts_where_it_is_told,
    pulling_by_offset,
    pulling_with_auto_commit,
    a_deleted_topic_leaves_its_members,
    a_group_shares_as_it_is_told,
);

async fn send(broker: &Broker, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = broker.producer(topic).await.unwrap();
    for n in numbers {
        producer.send(numbered(n)).await.unwrap();
    }
}

async fn join(broker: &Broker, group: &str, member: &str) -> Consumer {
    broker.consumer(group).subscribe("orders").member(member).build().await.unwrap()
}

/// The shares of the topic's queues, after everything that was asked of the group before.
async fn shares(broker: &Broker) -> Vec<(String, BTreeSet<QueueKey>)> {
    // What was asked may have had members release queues, which comes behind the first description.
    broker.describe_group("group").await.unwrap();
    let group = broker.describe_group("group").await.unwrap();
    let of_topic = |queues: Vec<QueueKey>| queues.into_iter().filter(|q| q.topic.as_str() == "orders").collect();
    group.members.into_iter().map(|member| (member.member, of_topic(member.queues))).collect()
}

async fn queues_are_shared_evenly(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(8)).await.unwrap();
    let mut members = Vec::new();
    let check = |shares: Vec<(String, BTreeSet<QueueKey>)>, count: usize| {
        assert_eq!(shares.len(), count);
        let sizes: Vec<usize> = shares.iter().map(|(_, share)| share.len()).collect();
        assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 8, "each queue has one holder: {shares:?}");
        let all: BTreeSet<_> = shares.into_iter().flat_map(|(_, share)| share).collect();
        assert_eq!(all.len(), 8, "no queue has two");
    };
    for count in 1..=9 {
        members.push(join(&broker, "group", &format!("m{count}")).await);
        check(shares(&broker).await, count);
    }
    while members.len() > 1 {
        drop(members.remove(members.len() / 2));
        check(shares(&broker).await, members.len());
    }
    broker.shutdown().await.unwrap();
}

async fn another_takes_over_when_a_member_leaves(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    send(&broker, "orders", 0..10).await;
    let mut first = join(&broker, "group", "first").await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(next(&mut first).await);
    }
    let acked = held.split_off(4);
    let mut done = BTreeSet::new();
    for delivery in acked {
        done.insert(number_of(&delivery));
        delivery.ack().await.unwrap();
    }
    let mut second = join(&broker, "group", "second").await;
    drop(first);
    let stale = held.pop().unwrap().ack().await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    let stale = held.pop().unwrap().retry_later(None).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale, "{stale}");
    drop(held);
    let taken: BTreeSet<u64> = take(&mut second, 8).await.iter().map(number_of).collect();
    assert!(taken.is_disjoint(&done), "what was acknowledged stays done");
    assert_eq!(taken.union(&done).count(), 10);
    assert_nothing(&mut second, "everything came");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn a_name_that_is_taken_disturbs_nobody(store: Store) {
    let broker = store.open().await;
    send(&broker, "orders", 0..4).await;
    let mut member = join(&broker, "group", "same").await;
    let held = next(&mut member).await;
    let refused = broker.consumer("group").subscribe("orders").member("same").build().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Exists);
    assert_eq!(shares(&broker).await.len(), 1, "the one that was there is still a member");
    held.ack().await.unwrap();
    take(&mut member, 3).await;
    send(&broker, "orders", 4..8).await;
    take(&mut member, 4).await;
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn a_dropped_delivery_comes_again_after_a_second(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    send(&broker, "orders", 0..1).await;
    let mut consumer = join(&broker, "group", "one").await;
    for attempts in 0..4 {
        let delivery = next(&mut consumer).await;
        assert_eq!((number_of(&delivery), delivery.attempts()), (0, attempts));
        drop(delivery);
        assert_nothing(&mut consumer, "not at once");
        clock.advance(Duration::from_millis(999));
        assert_nothing(&mut consumer, "not a millisecond early");
        clock.advance(Duration::from_millis(1));
    }
    next(&mut consumer).await.ack().await.unwrap();
    clock.advance(Duration::from_secs(10));
    assert_nothing(&mut consumer, "it is done");
    broker.shutdown().await.unwrap();
}

async fn broadcasting_gives_everyone_everything(store: Store) {
    let broadcast = async |broker: &Broker, member: &str| {
        broker.consumer("group").subscribe("orders").member(member).broadcasting(true).build().await.unwrap()
    };
    let broker = store.open().await;
    send(&broker, "orders", 0..10).await;
    let (mut x, mut y) = (broadcast(&broker, "x").await, broadcast(&broker, "y").await);
    let mut checker = Checker::default();
    for received in take(&mut x, 10).await {
        checker.delivered(&received);
    }
    checker.complete(0..10);
    assert_eq!(take(&mut y, 4).await.len(), 4);
    let kept = next(&mut y).await.retry_later(None).await.unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::Invalid);
    let nameless = broker.consumer("group").subscribe("orders").broadcasting(true).build().await.unwrap_err();
    assert_eq!(nameless.kind(), ErrorKind::Invalid);
    let mixed = broker.consumer("group").subscribe("orders").build().await.unwrap_err();
    assert_eq!(mixed.kind(), ErrorKind::Invalid);
    drop((x, y));
    let broker = store.reopen(broker).await;
    send(&broker, "orders", 10..12).await;
    let (mut x, mut y) = (broadcast(&broker, "x").await, broadcast(&broker, "y").await);
    let numbers = |all: Vec<Received>| all.iter().map(number_of).collect::<BTreeSet<_>>();
    assert_eq!(numbers(take(&mut x, 2).await), BTreeSet::from([10, 11]), "x goes on where it ended");
    assert_eq!(numbers(take(&mut y, 8).await).len(), 8, "y too");
    let mut z = broadcast(&broker, "z").await;
    assert_eq!(numbers(take(&mut z, 12).await), (0..12).collect(), "a new member begins at the beginning");
    for member in [&mut x, &mut y, &mut z] {
        assert_nothing(member, "everything came");
    }
    broker.shutdown().await.unwrap();
}

async fn a_group_goes_on_where_it_was(store: Store) {
    let mut broker = store.open().await;
    send(&broker, "orders", 0..30).await;
    let mut checker = Checker::default();
    for round in 0..6 {
        let mut consumer = join(&broker, "group", &format!("in round {round}")).await;
        for received in take(&mut consumer, 5).await {
            checker.delivered(&received);
        }
        let unsettled = next(&mut consumer).await;
        drop(consumer);
        drop(unsettled);
        if round % 2 == 0 {
            store.kill(broker).await;
            broker = store.open().await;
        } else {
            broker = store.reopen(broker).await;
        }
        if round == 4 {
            send(&broker, "orders", 30..31).await;
        }
    }
    let mut last = join(&broker, "group", "last").await;
    checker.delivered(&take(&mut last, 1).await[0]);
    checker.complete(0..31);
    assert_eq!(checker.duplicates(), 0, "what was acknowledged never comes again");
    broker.shutdown().await.unwrap();
}

async fn acknowledgements_out_of_order_survive_the_process(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, "orders", 0..10).await;
    let mut consumer = join(&broker, "group", "one").await;
    let mut open = Vec::new();
    for n in 0..10 {
        let delivery = next(&mut consumer).await;
        if n % 2 == 1 {
            delivery.ack().await.unwrap();
        } else {
            open.push(delivery);
        }
    }
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 10, "nothing is committed past the first");
    store.kill(broker).await;
    drop((consumer, open));
    let broker = store.open().await;
    let mut consumer = join(&broker, "group", "two").await;
    let again: Vec<u64> = take(&mut consumer, 5).await.iter().map(number_of).collect();
    assert_eq!(again, [0, 2, 4, 6, 8]);
    assert_nothing(&mut consumer, "the others were acknowledged");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn tags_are_filtered(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for round in 0..3 {
        for tag in ["Aa", "BB", "pay", ""] {
            let message = Message::new(format!("{tag}{round}"));
            producer.send(if tag.is_empty() { message } else { message.tag(tag) }).await.unwrap();
        }
    }
    for (group, tags, expected) in [
        ("first", "Aa", vec!["Aa0", "Aa1", "Aa2"]),
        ("second", "BB || pay", vec!["BB0", "pay0", "BB1", "pay1", "BB2", "pay2"]),
        ("third", "*", vec!["Aa0", "BB0", "pay0", "0", "Aa1", "BB1", "pay1", "1", "Aa2", "BB2", "pay2", "2"]),
        ("fourth", "nobody", vec![]),
    ] {
        let mut consumer = broker.consumer(group).subscribe_tags("orders", tags).build().await.unwrap();
        let got = bodies(&take(&mut consumer, expected.len()).await);
        assert_eq!(got, expected, "group {group}");
        assert_nothing(&mut consumer, "everything came");
        assert_eq!(broker.describe_group(group).await.unwrap().lag(), 0, "what nobody wants is done");
    }
    for bad in ["", "a ||", "|| a"] {
        let error = broker.consumer("bad").subscribe_tags("orders", bad).build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
    }
    let twice = broker.consumer("bad").subscribe("orders").subscribe_tags("orders", "a").build().await.unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Invalid);
    broker.shutdown().await.unwrap();
}

async fn a_group_starts_where_it_is_told(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let mut times = Vec::new();
    for n in 0..6 {
        times.push(clock.now());
        send(&broker, "orders", n..n + 1).await;
        clock.advance(Duration::from_millis(100));
    }
    let begin = async |broker: &Broker, group: &str, start| {
        broker.consumer(group).subscribe("orders").start_at(start).build().await.unwrap()
    };
    let between = times[3].plus(Duration::from_millis(1));
    for (group, start, first) in [
        ("earliest", StartAt::Earliest, 0),
        ("at", StartAt::Time(times[3]), 3),
        ("after", StartAt::Time(between), 4),
        ("old", StartAt::Time(Timestamp::MIN), 0),
    ] {
        let mut consumer = begin(&broker, group, start).await;
        let got: Vec<u64> = take(&mut consumer, 6 - first).await.iter().map(number_of).collect();
        assert_eq!(got, (u64::try_from(first).unwrap()..6).collect::<Vec<_>>(), "group {group}");
        assert_nothing(&mut consumer, group);
    }
    let (mut latest, mut future) = (
        begin(&broker, "latest", StartAt::Latest).await,
        begin(&broker, "future", StartAt::Time(Timestamp::MAX)).await,
    );
    assert_nothing(&mut latest, "only what comes");
    assert_nothing(&mut future, "only what comes");
    drop(latest);
    let broker = store.reopen_at(broker, &clock).await;
    send(&broker, "orders", 6..8).await;
    let mut later = begin(&broker, "latest", StartAt::Earliest).await;
    let got: Vec<u64> = take(&mut later, 2).await.iter().map(number_of).collect();
    assert_eq!(got, [6, 7], "a group's first choice stands");
    broker.shutdown().await.unwrap();
}

async fn pulling_by_offset(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 1);
    let start = clock.now();
    for n in 0..10 {
        producer.send(numbered(n)).await.unwrap();
        clock.advance(Duration::from_millis(10));
    }
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    assert_eq!(pull.assign("nothing", 0).await.unwrap_err().kind(), ErrorKind::UnknownTopic);
    assert_eq!(pull.assign("orders", 2).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(pull.seek("orders", 1, SeekTo::Begin).unwrap_err().kind(), ErrorKind::Invalid);
    pull.assign_topic("orders").await.unwrap();
    let offset = QueueOffset::new;
    let at = start.plus(Duration::from_millis(45));
    for (to, expected) in [
        (SeekTo::End, 10),
        (SeekTo::Time(at), 5),
        (SeekTo::Time(Timestamp::MAX), 10),
        (SeekTo::Offset(offset(10)), 10),
        (SeekTo::Offset(offset(7)), 7),
        (SeekTo::Begin, 0),
    ] {
        assert_eq!(pull.seek("orders", 1, to).unwrap(), offset(expected), "{to:?}");
    }
    let beyond = pull.seek("orders", 1, SeekTo::Offset(offset(11))).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
    assert!(beyond.to_string().contains("0 to 10"), "{beyond}");
    let poll = pull.poll(4, Duration::ZERO).await.unwrap();
    assert_eq!(poll.iter().map(number_of).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(pull.committed("orders", 1).await.unwrap(), None, "reading commits nothing");
    pull.commit().await.unwrap();
    assert_eq!(pull.committed("orders", 1).await.unwrap(), Some(offset(4)));
    pull.poll(3, Duration::ZERO).await.unwrap();
    store.kill(broker).await;
    drop((pull, producer));

    let broker = store.open_at(&clock).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign("orders", 1).await.unwrap();
    assert_eq!(number_of(&pull.poll(1, Duration::ZERO).await.unwrap()[0]), 4, "it goes on from the commit");
    pull.seek("orders", 1, SeekTo::Offset(offset(2))).unwrap();
    pull.commit().await.unwrap();
    assert_eq!(pull.committed("orders", 1).await.unwrap(), Some(offset(2)), "a commit may go back");
    let member = broker.consumer("puller").subscribe("orders").build().await.unwrap();
    pull.seek("orders", 1, SeekTo::End).unwrap();
    assert_eq!(pull.commit().await.unwrap_err().kind(), ErrorKind::Conflict, "a member reads the queue");
    drop(member);
    pull.commit().await.unwrap();
    waiting_polls(&broker, &mut pull, &clock).await;
    broker.shutdown().await.unwrap();
}

/// A poll that waits ends with the first message, or with its time.
async fn waiting_polls(broker: &Broker, pull: &mut cuemq::PullConsumer, clock: &cuemq::ManualClock) {
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 1);
    let hour = Duration::from_secs(3600);
    let (polled, sent) = tokio::join!(pull.poll(9, hour), producer.send(numbered(10)));
    sent.unwrap();
    assert_eq!(polled.unwrap().iter().map(number_of).collect::<Vec<_>>(), [10]);
    let (polled, ()) = tokio::join!(soon("the end of the wait", pull.poll(9, hour)), async {
        clock.advance(hour);
    });
    assert!(polled.unwrap().is_empty());
    assert!(pull.poll(0, hour).await.unwrap().is_empty());
}

async fn pulling_with_auto_commit(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, "orders", 0..9).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap().auto_commit(true);
    pull.assign_topic("orders").await.unwrap();
    for first in [0, 3] {
        let polled: Vec<u64> = pull.poll(3, Duration::ZERO).await.unwrap().iter().map(number_of).collect();
        assert_eq!(polled, [first, first + 1, first + 2]);
    }
    drop(pull);
    let broker = store.reopen(broker).await;
    let mut pull = broker.pull_consumer("puller").await.unwrap();
    pull.assign_topic("orders").await.unwrap();
    let polled = pull.poll(9, Duration::ZERO).await.unwrap();
    assert_eq!(polled.iter().map(number_of).collect::<Vec<_>>(), (3..9).collect::<Vec<_>>(), "one poll behind");
    broker.shutdown().await.unwrap();
}

async fn a_deleted_topic_leaves_its_members(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    send(&broker, "orders", 0..5).await;
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").subscribe("others").build().await.unwrap();
    take(&mut consumer, 2).await;
    broker.delete_topic("orders").await.unwrap();
    assert_eq!(broker.delete_topic("orders").await.unwrap_err().kind(), ErrorKind::UnknownTopic);
    assert_eq!(producer.send("late").await.unwrap_err().kind(), ErrorKind::NotStored);
    assert_eq!(shares(&broker).await[0].1.len(), 0);
    assert_nothing(&mut consumer, "its messages are gone");
    send(&broker, "others", 5..6).await;
    assert_eq!(number_of(&take(&mut consumer, 1).await[0]), 5, "the other topic goes on");
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    let receipt = broker.producer("orders").await.unwrap().send("new").await.unwrap();
    assert_eq!(receipt.offset.unwrap().get(), 5, "offsets are never given twice");
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "new");
    let broker = store.reopen(broker).await;
    assert_eq!(broker.topics(), ["orders", "others"]);
    assert_eq!(broker.describe_topic("orders").unwrap().queues[0].min.get(), 5);
    broker.shutdown().await.unwrap();
}

async fn a_group_shares_as_it_is_told(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let ids = |shares: Vec<(String, BTreeSet<QueueKey>)>| -> Vec<Vec<u32>> {
        shares.into_iter().map(|(_, share)| share.iter().map(|key| key.queue.get()).collect()).collect()
    };
    let (a, b) = (join(&broker, "group", "a").await, join(&broker, "group", "b").await);
    assert_eq!(ids(shares(&broker).await), [[0, 1], [2, 3]], "neighbours stay together");
    let circle = broker.consumer("group").subscribe("orders").member("c").assignment(AssignmentStrategy::Circle);
    let c = circle.build().await.unwrap();
    assert_eq!(ids(shares(&broker).await), [vec![0, 3], vec![1], vec![2]], "dealt out one by one");
    drop((a, b, c));
    let broker = store.reopen(broker).await;
    let _members = (join(&broker, "group", "a").await, join(&broker, "group", "b").await);
    assert_eq!(ids(shares(&broker).await), [[0, 2], [1, 3]], "a group keeps how it shares");
    broker.shutdown().await.unwrap();
}
