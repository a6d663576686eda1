//! A limit on a queue's length holds whoever adds to it: commits of half messages, transactions, recurring messages,
//! re-driven letters, diverted backlogs, and what consumers give back.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, read_all, soon, take, text, until};
use cuemq::{
    Broker, Consumer, DeadReason, Decision, DivertOptions, ErrorKind, HalfMessage, LetterFilter, MaxLength, Message,
    Overflow, Producer, Received, Recurrence, RedriveOptions, RedriveTo, TopicSpec,
};

const SECOND: Duration = Duration::from_secs(1);

on_every_engine!(
    a_commit_is_refused_and_can_be_repeated,
    a_commit_has_the_oldest_make_way,
    a_commit_is_kept_as_a_dead_letter,
    a_transaction_finds_room_for_all_of_it_or_is_refused,
    transactions_at_once_never_exceed_the_limit,
    a_recurring_message_waits_for_room,
    a_recurring_message_has_the_oldest_make_way_or_is_kept,
    a_letter_stays_one_until_there_is_room,
    letters_have_the_oldest_make_way,
    a_diversion_ends_where_there_is_no_room,
    what_is_given_back_has_the_oldest_make_way,
    what_a_member_leaves_behind_has_the_oldest_make_way,
    what_is_given_back_finds_its_place,
    what_is_popped_keeps_its_place,
    it_holds_while_queues_come_and_go,
);

async fn limited(broker: &Broker, name: &str, limit: MaxLength) -> Producer {
    broker.create_topic(TopicSpec::new(name).queues(1).max_length(limit)).await.unwrap();
    broker.producer(name).await.unwrap()
}

async fn join(broker: &Broker, topic: &str) -> Consumer {
    broker.consumer("group").subscribe(topic).build().await.unwrap()
}

/// Makes the group know a topic and leaves it without a member.
async fn known(broker: &Broker, topic: &str) {
    drop(join(broker, topic).await);
    until_nobody_is_there(broker).await;
}

async fn until_nobody_is_there(broker: &Broker) {
    let gone = async || broker.describe_group("group").await.unwrap().members.is_empty();
    while !gone().await {
        tokio::task::yield_now().await;
    }
}

async fn send_all(producer: &Producer, numbers: std::ops::Range<u64>) {
    for n in numbers {
        producer.send(n.to_string()).await.unwrap();
    }
}

async fn letters(broker: &Broker) -> Vec<Received> {
    read_all(broker, "%DLQ%group").await
}

fn end(broker: &Broker, topic: &str) -> u64 {
    broker.describe_topic(topic).unwrap().queues[0].end.get()
}

fn names(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

fn undecided(_: HalfMessage) -> Option<Decision> {
    None
}

async fn a_commit_is_refused_and_can_be_repeated(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, "orders", MaxLength::of_messages(2).policy(Overflow::RejectNew)).await;
    known(&broker, "orders").await;
    send_all(&producer, 0..2).await;
    let transactions = broker.transaction_producer("producers", "orders", undecided).await.unwrap();
    let transaction = transactions.begin("half").await.unwrap().id();
    for _ in 0..2 {
        let refused = transactions.end(transaction, Decision::Commit).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
        assert!(refused.is_certainly_not_applied());
    }
    drop((producer, transactions));
    let broker = store.reopen(broker).await;
    assert_eq!(bodies(&read_all(&broker, "orders").await), names(0..2));
    let transactions = broker.transaction_producer("producers", "orders", undecided).await.unwrap();
    assert_eq!(transactions.end(transaction, Decision::Commit).await.unwrap_err().kind(), ErrorKind::Full);
    let mut consumer = join(&broker, "orders").await;
    take(&mut consumer, 1).await;
    assert!(transactions.end(transaction, Decision::Commit).await.unwrap().is_some(), "it was undecided all the time");
    assert!(transactions.end(transaction, Decision::Commit).await.unwrap().is_none(), "decided once");
    assert_eq!(bodies(&take(&mut consumer, 2).await), ["1", "half"]);
    assert!(letters(&broker).await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn a_commit_has_the_oldest_make_way(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, "orders", MaxLength::of_messages(2)).await;
    known(&broker, "orders").await;
    send_all(&producer, 0..2).await;
    let transactions = broker.transaction_producer("producers", "orders", undecided).await.unwrap();
    let receipt = transactions.begin("half").await.unwrap().commit().await.unwrap().unwrap();
    assert_eq!(receipt.offset.unwrap().get(), 2);
    assert_eq!(bodies(&letters(&broker).await), ["0"]);
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 2);
    broker.shutdown().await.unwrap();
}

async fn a_commit_is_kept_as_a_dead_letter(store: Store) {
    let broker = store.open().await;
    let limit = MaxLength::of_messages(1).policy(Overflow::RejectNewDeadLetter);
    let producer = limited(&broker, "orders", limit).await;
    known(&broker, "orders").await;
    send_all(&producer, 0..1).await;
    let transactions = broker.transaction_producer("producers", "orders", undecided).await.unwrap();
    let transaction = transactions.begin("half").await.unwrap().id();
    let refused = transactions.end(transaction, Decision::Commit).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Full && refused.to_string().contains("kept as a dead letter"), "{refused}");
    drop((producer, transactions));
    let broker = store.reopen(broker).await;
    let dead = letters(&broker).await;
    assert_eq!((bodies(&dead), dead[0].dead_reason()), (vec!["half".to_owned()], Some(DeadReason::MaxLength)));
    let transactions = broker.transaction_producer("producers", "orders", undecided).await.unwrap();
    assert!(transactions.end(transaction, Decision::Commit).await.unwrap().is_none(), "it is decided");
    let conflict = transactions.end(transaction, Decision::Rollback).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    assert_eq!((end(&broker, "orders"), letters(&broker).await.len()), (1, 1));
    broker.shutdown().await.unwrap();
}

async fn a_transaction_finds_room_for_all_of_it_or_is_refused(store: Store) {
    let broker = store.open().await;
    drop(limited(&broker, "strict", MaxLength::of_messages(3).policy(Overflow::RejectNew)).await);
    drop(limited(&broker, "loose", MaxLength::of_messages(2)).await);
    drop(broker.consumer("group").subscribe("strict").subscribe("loose").build().await.unwrap());
    until_nobody_is_there(&broker).await;
    let send = async |topic: &'static str, count: u64| {
        broker
            .transaction(move |t| {
                t.put("rows", format!("{topic}{count}"), "row")?;
                (0..count).try_for_each(|n| t.send(topic, n.to_string()))
            })
            .await
    };
    send("strict", 2).await.unwrap();
    let refused = send("strict", 2).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    send("strict", 1).await.unwrap();
    assert_eq!(send("strict", 1).await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(send("strict", 4).await.unwrap_err().kind(), ErrorKind::Full, "more than the empty queue takes");
    assert_eq!(end(&broker, "strict"), 3);
    assert!(broker.transaction(|t| t.get("rows", "strict4")).await.unwrap().value.is_none(), "nothing of it happened");
    send("loose", 2).await.unwrap();
    send("loose", 1).await.unwrap();
    assert_eq!(bodies(&letters(&broker).await), ["0"]);
    // An acknowledgement in the same transaction does not make its room, but the next one finds it.
    let mut consumer = join(&broker, "strict").await;
    let delivery = next(&mut consumer).await;
    let answer = |t: &mut cuemq::ApplicationTransaction| {
        t.ack(&delivery)?;
        t.send("strict", "answer")
    };
    assert_eq!(broker.transaction(answer).await.unwrap_err().kind(), ErrorKind::Full);
    delivery.ack().await.unwrap();
    send("strict", 1).await.unwrap();
    broker.shutdown().await.unwrap();
}

async fn transactions_at_once_never_exceed_the_limit(store: Store) {
    let broker = store.open().await;
    drop(limited(&broker, "orders", MaxLength::of_messages(5)).await);
    known(&broker, "orders").await;
    let many = (0..40u64).map(|n| broker.transaction(move |t| t.send("orders", n.to_string())));
    for done in futures_util::future::join_all(many).await {
        done.unwrap();
    }
    assert_eq!((end(&broker, "orders"), letters(&broker).await.len()), (40, 35));
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 5);
    broker.shutdown().await.unwrap();
}

async fn a_recurring_message_waits_for_room(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = limited(&broker, "reports", MaxLength::of_messages(1).policy(Overflow::RejectNew)).await;
    let mut consumer = join(&broker, "reports").await;
    producer.send("first").await.unwrap();
    let recurrence = Recurrence::cron("* * * * *", "UTC").unwrap();
    producer.send_recurring(Message::new("report"), &recurrence).await.unwrap();
    clock.advance(SECOND * 60 * 10);
    // What is due now comes behind it; it finds no room either.
    let mut settler = common::Settler::new(&broker, &clock).await;
    settler.settle().await;
    assert_eq!((end(&broker, "reports"), broker.recurring().unwrap()[0].fired), (1, 0), "there is no room");
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "first");
    let report = async {
        loop {
            if let Some(report) = futures_util::FutureExt::now_or_never(consumer.next()) {
                return report.unwrap();
            }
            clock.advance(SECOND);
            tokio::task::yield_now().await;
        }
    };
    let report = soon("the report", report).await;
    assert_eq!(text(&report), "report");
    assert_eq!(broker.recurring().unwrap()[0].fired, 1, "all times that were missed are one");
    settler.settle().await;
    assert_eq!(end(&broker, "reports"), 2, "it is in somebody's hands and keeps its place");
    broker.shutdown().await.unwrap();
}

async fn a_recurring_message_has_the_oldest_make_way_or_is_kept(store: Store) {
    let clock = manual_clock();
    for (policy, dead) in [(Overflow::DropHead, "first"), (Overflow::RejectNewDeadLetter, "report")] {
        let broker = store.open_at(&clock).await;
        let name = format!("reports{dead}");
        let producer = limited(&broker, &name, MaxLength::of_messages(1).policy(policy)).await;
        known(&broker, &name).await;
        producer.send("first").await.unwrap();
        let recurrence = Recurrence::cron("* * * * *", "UTC").unwrap();
        let id = producer.send_recurring(Message::new("report"), &recurrence).await.unwrap();
        let before = letters(&broker).await.len();
        clock.advance(SECOND * 60);
        until("it comes", || broker.recurring().unwrap()[0].fired == 1).await;
        until("the dead letter", || end(&broker, "%DLQ%group") > before as u64).await;
        let letters = letters(&broker).await;
        assert_eq!((letters.len(), text(letters.last().unwrap())), (before + 1, dead.to_owned()));
        assert!(broker.recurring().unwrap()[0].next > clock.now());
        assert!(broker.cancel_recurring(&id).await.unwrap());
        until("nothing waits", || broker.delayed_messages() == 0).await;
        broker.shutdown().await.unwrap();
    }
}

/// Three dead letters of a topic whose queues hold so many messages, one of which is there.
async fn three_letters(broker: &Broker, limit: MaxLength) -> (Producer, Consumer) {
    let producer = limited(broker, "orders", limit).await;
    let mut consumer = join(broker, "orders").await;
    for n in 0..3 {
        producer.send(n.to_string()).await.unwrap();
        next(&mut consumer).await.reject("no").await.unwrap();
    }
    drop(consumer);
    until_nobody_is_there(broker).await;
    producer.send("there").await.unwrap();
    (producer, join(broker, "other").await)
}

async fn a_letter_stays_one_until_there_is_room(store: Store) {
    let broker = store.open().await;
    drop(three_letters(&broker, MaxLength::of_messages(2).policy(Overflow::RejectNewDeadLetter)).await);
    let letters = broker.dead_letters("group").unwrap();
    let redrive = letters.redrive_all(&LetterFilter::all(), RedriveOptions::new()).await.unwrap();
    assert_eq!((redrive.redriven, redrive.passed_over), (1, 2), "one finds room");
    let open = letters.browse(cuemq::QueueOffset::ZERO, 10, &LetterFilter::all()).unwrap().letters;
    assert_eq!((end(&broker, "orders"), open.len()), (5, 2));
    let refused = letters.redrive(open[0].offset(), RedriveTo::Origin).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Full, "{refused}");
    assert_eq!(letters.count().unwrap(), 2, "it is a dead letter already, and stays one");
    let mut consumer = join(&broker, "orders").await;
    assert_eq!(bodies(&take(&mut consumer, 1).await), ["there"]);
    letters.redrive(open[0].offset(), RedriveTo::Origin).await.unwrap();
    assert_eq!((end(&broker, "orders"), letters.count().unwrap()), (6, 1));
    letters.redrive(open[1].offset(), RedriveTo::Group).await.unwrap();
    assert_eq!(letters.count().unwrap(), 0, "the group's own topic has no limit");
    broker.shutdown().await.unwrap();
}

async fn letters_have_the_oldest_make_way(store: Store) {
    let broker = store.open().await;
    drop(three_letters(&broker, MaxLength::of_messages(2)).await);
    let letters = broker.dead_letters("group").unwrap();
    let redrive = letters.redrive_all(&LetterFilter::all(), RedriveOptions::new()).await.unwrap();
    assert_eq!(redrive.redriven, 3);
    let open = letters.browse(cuemq::QueueOffset::ZERO, 10, &LetterFilter::all()).unwrap().letters;
    assert_eq!(open.iter().map(|letter| text(letter)).collect::<Vec<_>>(), ["there", "0"]);
    let mut consumer = join(&broker, "orders").await;
    assert_eq!(bodies(&take(&mut consumer, 2).await), ["1", "2"]);
    assert_nothing(&mut consumer, "the limit is two");
    broker.shutdown().await.unwrap();
}

async fn a_diversion_ends_where_there_is_no_room(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    known(&broker, "orders").await;
    send_all(&producer, 0..10).await;
    drop(limited(&broker, "strict", MaxLength::of_messages(3).policy(Overflow::RejectNew)).await);
    let full = broker.divert("group", "orders", "strict", DivertOptions::new()).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full, "{full}");
    assert_eq!(bodies(&read_all(&broker, "strict").await), names(0..3), "these were moved");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 7, "the others are the group's");
    drop(limited(&broker, "loose", MaxLength::of_messages(2)).await);
    let mut reader = broker.consumer("other").subscribe("loose").build().await.unwrap();
    let held = async {
        let first = next(&mut reader).await;
        let second = next(&mut reader).await;
        (text(&first), text(&second))
    };
    let (report, held) =
        futures_util::future::join(broker.divert("group", "orders", "loose", DivertOptions::new()), held).await;
    // Who reads and who makes room are not in step: which two of the seven it holds, in order, is not promised.
    let (first, second) = held;
    let moved = names(3..10);
    let place = |body: &String| moved.iter().position(|name| name == body).unwrap();
    assert!(place(&first) < place(&second), "{first} and {second}");
    assert_eq!(report.unwrap().moved, 7);
    assert_eq!(end(&broker, "loose"), 7);
    drop(reader);
    let is_two = async || broker.describe_topic("%DLQ%other").is_ok_and(|topic| topic.queues[0].end.get() == 5);
    while !is_two().await {
        tokio::task::yield_now().await;
    }
    let letters = broker.dead_letters("other").unwrap();
    let open = letters.browse(cuemq::QueueOffset::ZERO, 10, &LetterFilter::all()).unwrap().letters;
    let mut gone: Vec<_> = open.iter().map(|letter| text(letter).to_owned()).collect();
    gone.sort();
    assert_eq!(gone, names(3..8), "in the end the oldest five made way, whichever two were held");
    broker.shutdown().await.unwrap();
}

async fn what_is_given_back_has_the_oldest_make_way(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = limited(&broker, "orders", MaxLength::of_messages(3)).await;
    let mut consumer = join(&broker, "orders").await;
    send_all(&producer, 0..3).await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    send_all(&producer, 3..5).await;
    assert!(letters(&broker).await.is_empty(), "two are out, three wait");
    drop(held);
    until("the oldest to make way", || end(&broker, "%DLQ%group") == 2).await;
    let dead = letters(&broker).await;
    assert_eq!((bodies(&dead), dead[1].dead_reason()), (names(0..2), Some(DeadReason::MaxLength)));
    clock.advance(SECOND * 10);
    assert_eq!(bodies(&take(&mut consumer, 3).await), names(2..5));
    assert_nothing(&mut consumer, "each is in one place");
    broker.shutdown().await.unwrap();
}

async fn what_a_member_leaves_behind_has_the_oldest_make_way(store: Store) {
    let broker = store.open().await;
    let producer = limited(&broker, "orders", MaxLength::of_messages(3)).await;
    let mut consumer = join(&broker, "orders").await;
    send_all(&producer, 0..3).await;
    let held = soon("a batch", consumer.next_messages(10)).await.unwrap();
    assert_eq!(held.len(), 3);
    send_all(&producer, 3..6).await;
    assert!(letters(&broker).await.is_empty(), "three are out, three wait");
    // It dies with them in its hands.
    let broker = store.reopen(broker).await;
    until("the oldest to make way", || end(&broker, "%DLQ%group") == 3).await;
    assert_eq!(bodies(&letters(&broker).await), names(0..3));
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 3);
    drop(held);
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = join(&broker, "orders").await;
    let held = soon("a batch", consumer.next_messages(2)).await.unwrap();
    assert_eq!(held.len(), 2);
    send_all(&producer, 6..8).await;
    drop(consumer);
    until("the oldest to make way", || end(&broker, "%DLQ%group") == 5).await;
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 3);
    drop(held);
    broker.shutdown().await.unwrap();
}

async fn what_is_given_back_finds_its_place(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = limited(&broker, "orders", MaxLength::of_messages(3).policy(Overflow::RejectNew)).await;
    let mut consumer = join(&broker, "orders").await;
    send_all(&producer, 0..3).await;
    let held = [next(&mut consumer).await, next(&mut consumer).await];
    assert_eq!(producer.send("no").await.unwrap_err().kind(), ErrorKind::Full, "what is out keeps its place");
    drop(held);
    clock.advance(SECOND * 10);
    assert_eq!(producer.send("no").await.unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(take(&mut consumer, 3).await.len(), 3);
    send_all(&producer, 3..6).await;
    assert!(letters(&broker).await.is_empty());
    broker.shutdown().await.unwrap();
}

async fn what_is_popped_keeps_its_place(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let strict = limited(&broker, "strict", MaxLength::of_messages(2).policy(Overflow::RejectNew)).await;
    let loose = limited(&broker, "loose", MaxLength::of_messages(2)).await;
    let pop = broker.pop_consumer("group").subscribe("strict").subscribe("loose").build().await.unwrap();
    send_all(&strict, 0..2).await;
    send_all(&loose, 0..2).await;
    let mut popped = Vec::new();
    while popped.len() < 4 {
        popped.extend(soon("messages", pop.pop(10, SECOND)).await.unwrap());
    }
    assert_eq!(strict.send("no").await.unwrap_err().kind(), ErrorKind::Full);
    send_all(&loose, 2..4).await;
    assert!(letters(&broker).await.is_empty(), "what is popped does not count");
    for message in popped {
        message.ack().await.unwrap();
    }
    send_all(&strict, 2..4).await;
    send_all(&loose, 4..5).await;
    assert_eq!(bodies(&letters(&broker).await), ["2"]);
    broker.shutdown().await.unwrap();
}

async fn it_holds_while_queues_come_and_go(store: Store) {
    const SENT: u64 = 400;
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(2).max_length(MaxLength::of_messages(5))).await.unwrap();
    known(&broker, "orders").await;
    let producer = broker.producer("orders").await.unwrap();
    let sent = async {
        let sends =
            (0..SENT).map(|n| producer.enqueue(Message::new(n.to_string()).sharding_key(format!("k{}", n % 20))));
        for send in sends.collect::<Vec<_>>() {
            send.unwrap().await.unwrap();
        }
    };
    let changed = async {
        for queues in [6, 1, 4] {
            soon("the change", broker.set_queues("orders", queues)).await.unwrap();
            let group = broker.describe_group("group").await.unwrap();
            assert!(group.queues.iter().all(|queue| queue.queue.topic.is_system() || queue.lag() <= 5), "{group:?}");
        }
    };
    futures_util::future::join(sent, changed).await;
    let broker = store.reopen(broker).await;
    let group = broker.describe_group("group").await.unwrap();
    let orders = group.queues.iter().filter(|queue| queue.queue.topic.as_str() == "orders");
    let left: Vec<u64> = orders.map(|queue| queue.lag()).collect();
    assert!(left.iter().all(|lag| *lag <= 5), "{left:?}");
    let left: u64 = left.iter().sum();
    assert_eq!(left + letters(&broker).await.len() as u64, SENT, "each waits or is a dead letter");
    let mut consumer = join(&broker, "orders").await;
    take(&mut consumer, usize::try_from(left).unwrap()).await;
    assert_nothing(&mut consumer, "that was all");
    broker.shutdown().await.unwrap();
}
