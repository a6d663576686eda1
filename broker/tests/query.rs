//! Messages are found by offset, time, key and tag, page by page, each once, and never one that nobody asked for.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{Settler, bodies, manual_clock, next, take, text};
use cuemq::limits::{MAX_QUERY_MESSAGES, MAX_QUERY_SCANNED};
use cuemq::storage_api::fault::Operation;
use cuemq::{
    Broker, Cursor, ErrorKind, ManualClock, Message, Page, Query, QueueOffset, Received, RetryPolicy, Timestamp,
    TopicSpec,
};

on_every_engine!(
    by_offset,
    by_time_over_all_queues,
    messages_of_one_moment_are_told_apart,
    by_key,
    keys_that_share_a_hash_are_told_apart,
    tags_that_share_a_hash_are_told_apart_and_others_are_not_read,
    a_page_of_a_rare_tag_ends_and_goes_on,
    retries_and_dead_letters_can_be_read,
    bad_questions,
);

on_durable_engines!(nothing_is_shown_before_it_is_durable);

/// All pages of a query, each cursor put down as text in between.
fn pages(broker: &Broker, query: &Query, limit: usize) -> Vec<Received> {
    let (mut all, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = broker.query(query, after, limit).unwrap();
        assert!(page.messages.len() <= limit && (page.messages.len() == limit || page.next.is_none()));
        all.extend(page.messages);
        match page.next {
            Some(next) => after = Some(next.to_string().parse().unwrap()),
            None => return all,
        }
    }
}

fn numbers(messages: &[Received]) -> Vec<u64> {
    messages.iter().map(number_of).collect()
}

/// Sends numbered messages ten milliseconds apart, by turns over the queues; gives the time of the first.
async fn send_apart(broker: &Broker, clock: &ManualClock, topic: &str, count: u64) -> Timestamp {
    let (start, producer) = (clock.now(), broker.producer(topic).await.unwrap());
    for n in 0..count {
        producer.send(numbered(n)).await.unwrap();
        clock.advance(Duration::from_millis(10));
    }
    start
}

async fn by_offset(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 1);
    for n in 0..25 {
        producer.send(numbered(n)).await.unwrap();
    }
    let page = |from: u64| broker.messages("orders", 1, QueueOffset::new(from), 10).unwrap();
    let Page { messages, next: after, .. } = page(0);
    assert_eq!(numbers(&messages), (0..10).collect::<Vec<_>>());
    let rest = broker.query(&Query::topic("orders").queue(1), after, 1000).unwrap();
    assert_eq!(numbers(&rest.messages), (10..25).collect::<Vec<_>>(), "the cursor goes on behind the page");
    assert_eq!(rest.next, None);
    assert_eq!(numbers(&page(15).messages), (15..25).collect::<Vec<_>>());
    assert_eq!(page(15).next, None, "that was the last message");
    assert!(page(25).messages.is_empty(), "the end can be asked for");
    assert!(broker.messages("orders", 0, QueueOffset::ZERO, 10).unwrap().messages.is_empty());
    let beyond = broker.messages("orders", 1, QueueOffset::new(26), 10).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
    assert!(beyond.to_string().contains("26") && beyond.to_string().contains("0 to 25"), "{beyond}");
    broker.shutdown().await.unwrap();
}

async fn by_time_over_all_queues(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let start = send_apart(&broker, &clock, "orders", 40).await;
    send_apart(&broker, &clock, "other", 3).await;
    let broker = store.reopen_at(broker, &clock).await;
    let at = |n: u64| start.plus(Duration::from_millis(n * 10));
    for (from, before, expected) in [
        (Timestamp::MIN, Timestamp::MAX, 0..40),
        (at(7), at(29), 7..29),
        (at(7).plus(Duration::from_millis(1)), at(29).plus(Duration::from_millis(1)), 8..30),
        (at(39), at(1000), 39..40),
        (at(40), Timestamp::MAX, 0..0),
        (at(9), at(9), 0..0),
        (at(9), at(3), 0..0),
    ] {
        let expected: Vec<u64> = expected.collect();
        for limit in [1, 7, 100] {
            let got = numbers(&pages(&broker, &Query::topic("orders").stored(from, before), limit));
            assert_eq!(got, expected, "from {from} before {before}, {limit} at a time");
        }
    }
    let query = Query::topic("orders").queue(2).stored(at(5), Timestamp::MAX).tags("tag1 || tag2");
    let expected: Vec<u64> = (5..40).filter(|n| n % 4 == 2 && n % 3 != 0).collect();
    assert_eq!(numbers(&pages(&broker, &query, 2)), expected, "all conditions hold together");
    broker.shutdown().await.unwrap();
}

async fn messages_of_one_moment_are_told_apart(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..12 {
        producer.send(Message::new(n.to_string()).key("same")).await.unwrap();
    }
    for limit in 1..14 {
        let in_order: Vec<String> = (0..12).map(|n| n.to_string()).collect();
        assert_eq!(bodies(&pages(&broker, &Query::topic("orders"), limit)), in_order, "{limit} at a time");
        let newest_first: Vec<String> = in_order.into_iter().rev().collect();
        assert_eq!(bodies(&pages(&broker, &Query::topic("orders").key("same"), limit)), newest_first);
    }
    broker.shutdown().await.unwrap();
}

async fn by_key(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let start = send_apart(&broker, &clock, "orders", 40).await;
    send_apart(&broker, &clock, "other", 40).await;
    let broker = store.reopen_at(broker, &clock).await;
    let query = Query::topic("orders").key("group2");
    for limit in [1, 3, 8, 9] {
        assert_eq!(numbers(&pages(&broker, &query, limit)), [37, 32, 27, 22, 17, 12, 7, 2], "{limit} at a time");
        let tagged = query.clone().tags("tag1");
        assert_eq!(numbers(&pages(&broker, &tagged, limit)), [37, 22, 7], "{limit} at a time");
    }
    let at = |n: u64| start.plus(Duration::from_millis(n * 10));
    assert_eq!(numbers(&pages(&broker, &query.clone().stored(at(12), at(32)), 2)), [27, 22, 17, 12]);
    let queue = query.clone().queue(2);
    assert_eq!(numbers(&pages(&broker, &queue, 1)), [22, 2], "of one queue");
    assert!(pages(&broker, &Query::topic("orders").key("nobody"), 10).is_empty());
    broker.shutdown().await.unwrap();
}

async fn keys_that_share_a_hash_are_told_apart(store: Store) {
    // Each pair of letters has the same Java hash, so all eight keys have.
    let keys = ["AaAaAa", "AaAaBB", "AaBBAa", "AaBBBB", "BBAaAa", "BBAaBB", "BBBBAa", "BBBBBB"];
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap();
    for round in 0..3 {
        for key in keys {
            producer.send(Message::new(format!("{key} {round}")).key(key)).await.unwrap();
        }
    }
    let broker = store.reopen(broker).await;
    for key in keys {
        let expected = [2, 1, 0].map(|round| format!("{key} {round}"));
        assert_eq!(bodies(&pages(&broker, &Query::topic("orders").key(key), 2)), expected);
        let found = broker.find_by_key("orders", key, Timestamp::MIN, Timestamp::MAX, 100).unwrap();
        assert_eq!(bodies(&found), expected);
    }
    assert!(pages(&broker, &Query::topic("orders").key("AaAa"), 10).is_empty(), "a beginning is no key");
    broker.shutdown().await.unwrap();
}

async fn tags_that_share_a_hash_are_told_apart_and_others_are_not_read(store: Store) {
    let fetched = Arc::new(AtomicUsize::new(0));
    let broker = store.counting_builder(&fetched).open().await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..400 {
        let tag = match n % 100 {
            7 => "Aa",
            8 => "BB",
            _ => "bulk",
        };
        producer.send(Message::new(format!("{tag}{n}")).tag(tag)).await.unwrap();
    }
    for (tags, expected) in [
        ("Aa", vec!["Aa7", "Aa107", "Aa207", "Aa307"]),
        ("BB || nobody", vec!["BB8", "BB108", "BB208", "BB308"]),
        ("nobody", vec![]),
    ] {
        fetched.store(0, Ordering::SeqCst);
        let page = broker.query(&Query::topic("orders").tags(tags), None, 1000).unwrap();
        assert_eq!(bodies(&page.messages), expected, "{tags}");
        let touched = fetched.load(Ordering::SeqCst);
        assert!(touched <= 8, "{touched} messages were read for {} with tag {tags}", expected.len());
        assert_eq!(bodies(&pages(&broker, &Query::topic("orders").tags(tags), 1)), expected);

        fetched.store(0, Ordering::SeqCst);
        let group = format!("group-{}", expected.first().copied().unwrap_or("none"));
        let mut consumer = broker.consumer(&*group).subscribe_tags("orders", tags).build().await.unwrap();
        let mut got = bodies(&take(&mut consumer, expected.len()).await);
        got.sort_by_key(|text| text[2..].parse::<u32>().unwrap());
        assert_eq!(got, expected);
        common::assert_nothing(&mut consumer, "others are not delivered");
        let touched = fetched.load(Ordering::SeqCst);
        assert!(touched <= 8, "{touched} messages were read for a consumer of tag {tags}");
    }
    fetched.store(0, Ordering::SeqCst);
    assert_eq!(broker.query(&Query::topic("orders"), None, 1000).unwrap().messages.len(), 400);
    assert_eq!(fetched.load(Ordering::SeqCst), 400, "without a filter all are read: the count is one");
    broker.shutdown().await.unwrap();
}

async fn a_page_of_a_rare_tag_ends_and_goes_on(store: Store) {
    // All of one millisecond: a page goes on by place, not by time.
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(2).flush(cuemq::Flush::Buffered)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    let of_each = MAX_QUERY_SCANNED / 2;
    let common = usize::try_from(of_each).unwrap() + 700;
    let rare = async |body: &str| drop(producer.send(Message::new(body.to_owned()).tag("rare")).await.unwrap());
    rare("first").await;
    for _ in 0..2 * common / 100 {
        producer.send_batch((0..100).map(|_| Message::new("x").tag("common")).collect()).await.unwrap();
    }
    rare("middle").await;
    for _ in 0..2 * common / 100 {
        producer.send_batch((0..100).map(|_| Message::new("x").tag("common")).collect()).await.unwrap();
    }
    rare("last").await;
    let (mut found, mut after, mut read) = (Vec::new(), None, 0u64);
    loop {
        let page = broker.query(&Query::topic("orders").tags("rare"), after, 10).unwrap();
        read += 1;
        assert!(after.is_none() || page.next.is_none() || page.next > after, "it gets on");
        found.extend(bodies(&page.messages));
        match page.next {
            Some(next) => after = Some(next.to_string().parse().unwrap()),
            None => break,
        }
    }
    assert_eq!(found, ["first", "middle", "last"]);
    assert_eq!(read, 3, "each looks at its share and no more");
    let none = broker.query(&Query::topic("orders").tags("none"), None, 10).unwrap();
    assert!(none.messages.is_empty() && none.next.is_some(), "there may be more");
    broker.shutdown().await.unwrap();
}

async fn retries_and_dead_letters_can_be_read(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let mut settler = Settler::new(&broker, &clock).await;
    broker.producer("orders").await.unwrap().send(Message::new("stubborn").key("k").tag("t")).await.unwrap();
    let policy = RetryPolicy::Fixed { pause: Duration::from_secs(1), redeliveries: 1 };
    let mut consumer = broker.consumer("group").subscribe("orders").retry_policy(policy).build().await.unwrap();
    next(&mut consumer).await.retry_later(None).await.unwrap();
    clock.advance(Duration::from_secs(1));
    settler.settle().await;
    let found = |query: &Query| bodies(&pages(&broker, query, 1));
    assert_eq!(found(&Query::topic("%RETRY%group")), ["stubborn"]);
    assert!(found(&Query::topic("%DLQ%group")).is_empty());
    next(&mut consumer).await.retry_later(None).await.unwrap();
    for query in [Query::topic("%DLQ%group"), Query::topic("%DLQ%group").key("k"), Query::topic("%DLQ%group").tags("t")]
    {
        assert_eq!(found(&query), ["stubborn"], "{query:?}");
    }
    assert_eq!(text(&broker.messages("%DLQ%group", 0, QueueOffset::ZERO, 1).unwrap().messages[0]), "stubborn");
    broker.shutdown().await.unwrap();
}

async fn bad_questions(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    let refused = |query: Query, limit: usize, kind: ErrorKind, hints: &[&str]| {
        let error = broker.query(&query, None, limit).unwrap_err();
        assert_eq!(error.kind(), kind, "{query:?}");
        assert!(hints.iter().all(|hint| error.to_string().contains(hint)), "{error}");
    };
    refused(Query::topic("nowhere"), 10, ErrorKind::UnknownTopic, &["nowhere", "create_topic"]);
    refused(Query::topic("or ders"), 10, ErrorKind::Invalid, &["' '", "[A-Za-z0-9_%-]"]);
    refused(Query::topic("orders").queue(2), 10, ErrorKind::Invalid, &["0 to 1", "not 2"]);
    refused(Query::topic("orders").queue(1_000_000), 10, ErrorKind::Invalid, &["1000000", "999999"]);
    refused(Query::topic("orders").tags("a ||"), 10, ErrorKind::Invalid, &["empty tag"]);
    refused(Query::topic("orders"), 0, ErrorKind::Invalid, &["0 messages", "1 to 1000"]);
    let more = MAX_QUERY_MESSAGES + 1;
    refused(Query::topic("orders").key("k"), more, ErrorKind::Invalid, &["1001 messages", "1 to 1000"]);
    broker.shutdown().await.unwrap();
}

async fn nothing_is_shown_before_it_is_durable(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("orders").await.unwrap().with_selector(|_, _| 0);
    producer.send(Message::new("durable").key("k")).await.unwrap();
    let gate = store.faults.hold(Operation::Sync);
    let pending = producer.enqueue(Message::new("applied").key("k")).unwrap();
    gate.wait_for(1);
    for query in [Query::topic("orders"), Query::topic("orders").key("k")] {
        assert_eq!(bodies(&pages(&broker, &query, 10)), ["durable"], "{query:?}");
    }
    let beyond = broker.messages("orders", 0, QueueOffset::new(2), 10).unwrap_err();
    assert!(beyond.to_string().contains("0 to 1"), "{beyond}");
    drop(gate);
    common::soon("the receipt", pending).await.unwrap();
    assert_eq!(bodies(&pages(&broker, &Query::topic("orders"), 10)), ["durable", "applied"]);
    broker.shutdown().await.unwrap();
}
