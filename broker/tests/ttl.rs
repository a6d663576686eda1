//! A message that a group does not consume within its time to live becomes one dead letter, or is dropped, at its instant
//! and is never delivered.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::store::Store;
use common::{assert_nothing, bodies, manual_clock, next, read_all, soon, take, text, until};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    Broker, Consumer, DeadReason, Decision, HalfMessage, ManualClock, Message, OnExpiry, Producer, Received, ResetTo,
    TopicSpec,
};

on_every_engine!(
    at_its_instant_behind_those_that_live_longer,
    at_its_instant_behind_a_backlog,
    the_shorter_time_to_live_counts,
    a_delayed_message_lives_from_its_due_time,
    a_half_message_lives_from_its_commit,
    a_batch_over_queues_expires,
    what_somebody_has_expires_when_it_fails,
    what_was_fetched_and_not_given_out_is_never_delivered,
    a_group_that_comes_later_gets_none,
    each_group_for_itself,
    dropped_and_counted,
    while_the_broker_is_down,
    a_retry_ends_while_it_waits,
    an_ordered_queue_goes_on,
    at_its_instant_behind_any_number_of_gaps,
    passed_by_a_jump_of_the_group,
    broadcasting_members_drop,
    a_full_disk_puts_it_off,
);

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Proves that everything that has ended by now was dealt with: the scheduler goes by time, batch by batch, and a
/// message that ends now comes after all others, the second one in a batch of its own.
struct Settler(Producer);

impl Settler {
    async fn new(broker: &Broker) -> Self {
        broker.create_topic(TopicSpec::new("settled").queues(1)).await.unwrap();
        drop(broker.consumer("settler").subscribe("settled").build().await.unwrap());
        Self(broker.producer("settled").await.unwrap())
    }

    async fn settle(&self, broker: &Broker) {
        for _ in 0..2 {
            let before = letters_of(broker, "settler");
            self.0.send(Message::new("settled").ttl(Duration::ZERO)).await.unwrap();
            until("a message that ends now", || letters_of(broker, "settler") > before).await;
        }
    }
}

async fn one_queue(broker: &Broker) -> Producer {
    broker.create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
    broker.producer("orders").await.unwrap()
}

async fn consumer(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

/// Makes the group know the topic and leaves it without a member.
async fn known(broker: &Broker) {
    drop(consumer(broker).await);
}

/// Dead letters of a group, by their number alone.
fn letters_of(broker: &Broker, group: &str) -> u64 {
    broker.describe_topic(&format!("%DLQ%{group}")).unwrap().queues[0].end.get()
}

async fn letters(broker: &Broker, count: u64) -> Vec<Received> {
    until("the dead letters", || letters_of(broker, "group") >= count).await;
    let all = read_all(broker, "%DLQ%group").await;
    assert_eq!(all.len() as u64, count, "{:?}", bodies(&all));
    all
}

fn advance_to(clock: &ManualClock, start: cuemq::Timestamp, after: Duration) {
    clock.advance(start.plus(after).since(clock.now()));
}

async fn at_its_instant_behind_those_that_live_longer(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    let (start, settler) = (clock.now(), Settler::new(&broker).await);
    for (name, seconds) in [("long", 30), ("short", 10), ("middle", 20), ("short too", 10)] {
        producer.send(Message::new(name).tag("t").property("p", "v").ttl(SECOND * seconds)).await.unwrap();
    }
    producer.send("for ever").await.unwrap();
    for (seconds, count) in [(10, 2), (20, 3), (30, 4)] {
        let before = letters_of(&broker, "group");
        advance_to(&clock, start, SECOND * seconds - MILLISECOND);
        settler.settle(&broker).await;
        assert_eq!(letters_of(&broker, "group"), before, "not a millisecond early");
        clock.advance(MILLISECOND);
        let all = letters(&broker, count).await;
        let last = all.last().unwrap();
        assert_eq!(last.died_at(), Some(start.plus(SECOND * seconds)), "at its instant");
        assert_eq!((last.dead_reason(), last.attempts()), (Some(DeadReason::Expired), 0));
        assert_eq!((last.topic(), last.tag(), last.property("p")), ("orders", Some("t"), Some("v")));
    }
    let all = letters(&broker, 4).await;
    assert_eq!(bodies(&all), ["short", "short too", "middle", "long"]);
    clock.advance(SECOND * 100_000);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 4, "each once, and none of them ends again");
    let mut consumer = consumer(&broker).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "for ever");
    assert_nothing(&mut consumer, "the others are gone");
    broker.shutdown().await.unwrap();
}

async fn at_its_instant_behind_a_backlog(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    let backlog = 5_000;
    producer.send_batch((0..backlog).map(|n| Message::new(n.to_string())).collect()).await.unwrap();
    producer.send(Message::new("urgent").ttl(SECOND)).await.unwrap();
    producer.send("behind").await.unwrap();
    clock.advance(SECOND);
    let all = letters(&broker, 1).await;
    assert_eq!((text(&all[0]), all[0].died_at()), ("urgent".to_owned(), Some(clock.now())));
    let broker = store.reopen_at(broker, &clock).await;
    let mut consumer = consumer(&broker).await;
    for n in 0..backlog {
        let delivery = next(&mut consumer).await;
        assert_eq!(text(&delivery), n.to_string());
        delivery.ack_soon();
    }
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "behind");
    assert_eq!(letters_of(&broker, "group"), 1);
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn the_shorter_time_to_live_counts(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1).ttl(SECOND * 10)).await.unwrap();
    let broker = store.reopen_at(broker, &clock).await;
    let (producer, start) = (broker.producer("orders").await.unwrap(), clock.now());
    known(&broker).await;
    producer.send("the topic's").await.unwrap();
    producer.send(Message::new("shorter").ttl(SECOND * 5)).await.unwrap();
    producer.send(Message::new("longer").ttl(SECOND * 50)).await.unwrap();
    advance_to(&clock, start, SECOND * 5);
    assert_eq!(bodies(&letters(&broker, 1).await), ["shorter"]);
    advance_to(&clock, start, SECOND * 10);
    assert_eq!(bodies(&letters(&broker, 3).await), ["shorter", "the topic's", "longer"]);
    broker.shutdown().await.unwrap();
}

async fn a_delayed_message_lives_from_its_due_time(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    let (start, settler) = (clock.now(), Settler::new(&broker).await);
    producer.send(Message::new("late").delay(SECOND * 10).ttl(SECOND * 5)).await.unwrap();
    advance_to(&clock, start, SECOND * 10);
    until("the delayed message", || broker.describe_topic("orders").unwrap().queues[0].end.get() == 1).await;
    advance_to(&clock, start, SECOND * 15 - MILLISECOND);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 0);
    clock.advance(MILLISECOND);
    assert_eq!(letters(&broker, 1).await[0].died_at(), Some(start.plus(SECOND * 15)));
    broker.shutdown().await.unwrap();
}

async fn a_half_message_lives_from_its_commit(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    known(&broker).await;
    let undecided = |_: HalfMessage| None::<Decision>;
    let producer = broker.transaction_producer("payments", "orders", undecided).await.unwrap();
    let (start, settler) = (clock.now(), Settler::new(&broker).await);
    let transaction = producer.begin(Message::new("paid").ttl(SECOND * 5)).await.unwrap();
    advance_to(&clock, start, SECOND * 5);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 0, "nobody could see it yet");
    transaction.commit().await.unwrap();
    advance_to(&clock, start, SECOND * 10 - MILLISECOND);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 0);
    clock.advance(MILLISECOND);
    assert_eq!(letters(&broker, 1).await[0].died_at(), Some(start.plus(SECOND * 10)));
    broker.shutdown().await.unwrap();
}

async fn a_batch_over_queues_expires(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    known(&broker).await;
    let producer =
        broker.producer("orders").await.unwrap().with_selector(|message, _| u32::from(message.body()[0] % 4));
    let batch = (0..40u8).map(|n| Message::new(vec![n]).ttl(SECOND * u32::from(n % 2 + 1))).collect();
    producer.send_batch(batch).await.unwrap();
    clock.advance(SECOND);
    assert!(letters(&broker, 20).await.iter().all(|letter| letter.body()[0] % 2 == 0));
    let mut consumer = consumer(&broker).await;
    for received in take(&mut consumer, 20).await {
        assert_eq!(received.body()[0] % 2, 1);
    }
    clock.advance(SECOND);
    Settler::new(&broker).await.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 20, "what is done does not end");
    broker.shutdown().await.unwrap();
}

async fn what_somebody_has_expires_when_it_fails(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    let (mut consumer, settler) = (consumer(&broker).await, Settler::new(&broker).await);
    for name in ["done", "fails", "rejected"] {
        producer.send(Message::new(name).ttl(SECOND)).await.unwrap();
    }
    let (done, fails, rejected) = (next(&mut consumer).await, next(&mut consumer).await, next(&mut consumer).await);
    clock.advance(SECOND * 60);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 0, "somebody has them");
    done.ack().await.unwrap();
    fails.retry_later(None).await.unwrap();
    let all = letters(&broker, 1).await;
    assert_eq!((text(&all[0]), all[0].dead_reason()), ("fails".to_owned(), Some(DeadReason::Expired)));
    assert_eq!(all[0].attempts(), 1);
    rejected.reject("no").await.unwrap();
    assert_eq!(letters(&broker, 2).await[1].dead_reason(), Some(DeadReason::Rejected));
    clock.advance(SECOND * 60);
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 2);
    assert_nothing(&mut consumer, "all are done");
    broker.shutdown().await.unwrap();
}

async fn what_was_fetched_and_not_given_out_is_never_delivered(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    let mut consumer = consumer(&broker).await;
    for n in 0..10 {
        let message = Message::new(n.to_string());
        producer.send(if n % 3 == 0 { message } else { message.ttl(SECOND) }).await.unwrap();
    }
    let first = next(&mut consumer).await;
    assert_eq!(text(&first), "0");
    clock.advance(SECOND);
    // Whoever comes first, the scheduler or the consumer: they are given to nobody.
    let rest = take(&mut consumer, 3).await;
    assert_eq!(bodies(&rest), ["3", "6", "9"]);
    let mut dead = bodies(&letters(&broker, 6).await);
    dead.sort();
    assert_eq!(dead, ["1", "2", "4", "5", "7", "8"]);
    first.ack().await.unwrap();
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    drop(consumer);
    let mut consumer = self::consumer(&broker).await;
    producer.send("next").await.unwrap();
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "next");
    assert_eq!(letters_of(&broker, "group"), 6);
    broker.shutdown().await.unwrap();
}

async fn a_group_that_comes_later_gets_none(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    for n in 0..600 {
        drop(producer.enqueue(Message::new(n.to_string()).ttl(SECOND)).unwrap());
    }
    producer.send("fresh").await.unwrap();
    clock.advance(SECOND);
    Settler::new(&broker).await.settle(&broker).await;
    let mut consumer = consumer(&broker).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "fresh");
    let all = letters(&broker, 600).await;
    assert_eq!(bodies(&all), (0..600).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

async fn each_group_for_itself(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    let mut quick = broker.consumer("quick").subscribe("orders").build().await.unwrap();
    drop(broker.consumer("slow").subscribe("orders").build().await.unwrap());
    producer.send(Message::new("x").ttl(SECOND)).await.unwrap();
    take(&mut quick, 1).await;
    clock.advance(SECOND);
    letters(&broker, 1).await;
    until("the other group's letter", || letters_of(&broker, "slow") == 1).await;
    Settler::new(&broker).await.settle(&broker).await;
    assert_eq!(letters_of(&broker, "quick"), 0);
    broker.shutdown().await.unwrap();
}

async fn dropped_and_counted(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(1).ttl(SECOND).on_expiry(OnExpiry::Drop)).await.unwrap();
    let broker = store.reopen_at(broker, &clock).await;
    let producer = broker.producer("orders").await.unwrap();
    let (mut consumer, settler) = (consumer(&broker).await, Settler::new(&broker).await);
    for n in 0..5 {
        producer.send(n.to_string()).await.unwrap();
    }
    let failing = next(&mut consumer).await;
    clock.advance(SECOND);
    settler.settle(&broker).await;
    failing.retry_later(None).await.unwrap();
    assert_nothing(&mut consumer, "all have ended");
    let described = broker.describe_group("group").await.unwrap();
    assert_eq!((described.expired, described.lag(), letters_of(&broker, "group")), (5, 0, 0));
    broker.shutdown().await.unwrap();
}

async fn while_the_broker_is_down(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    for n in 1..=8 {
        producer.send(Message::new(n.to_string()).ttl(SECOND * n)).await.unwrap();
    }
    drop(producer);
    for round in 1..=4u64 {
        if round % 2 == 0 {
            store.kill(broker).await;
        } else {
            broker.shutdown().await.unwrap();
        }
        clock.advance(SECOND);
        broker = store.open_at(&clock).await;
        letters(&broker, round * 2 - 1).await;
        clock.advance(SECOND);
        letters(&broker, round * 2).await;
    }
    let all = letters(&broker, 8).await;
    assert_eq!(bodies(&all), (1..=8).map(|n| n.to_string()).collect::<Vec<_>>(), "each once");
    let mut consumer = consumer(&broker).await;
    assert_nothing(&mut consumer, "all are dead letters");
    broker.shutdown().await.unwrap();
}

async fn a_retry_ends_while_it_waits(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    let (mut consumer, start) = (consumer(&broker).await, clock.now());
    producer.send(Message::new("x").ttl(SECOND * 10)).await.unwrap();
    next(&mut consumer).await.retry_in(SECOND * 3).await.unwrap();
    clock.advance(SECOND * 3);
    let again = next(&mut consumer).await;
    assert_eq!(again.attempts(), 1);
    again.retry_in(SECOND * 3600).await.unwrap();
    advance_to(&clock, start, SECOND * 10);
    let all = letters(&broker, 1).await;
    assert_eq!((all[0].dead_reason(), all[0].died_at()), (Some(DeadReason::Expired), Some(clock.now())));
    assert_eq!((all[0].attempts(), all[0].topic()), (2, "orders"));
    clock.advance(SECOND * 7200);
    Settler::new(&broker).await.settle(&broker).await;
    assert_nothing(&mut consumer, "it is a dead letter");
    assert_eq!(letters_of(&broker, "group"), 1);
    broker.shutdown().await.unwrap();
}

async fn an_ordered_queue_goes_on(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    let mut consumer = broker.consumer("group").subscribe("orders").ordered(true).build().await.unwrap();
    producer.send(Message::new("stuck").ttl(SECOND * 10)).await.unwrap();
    producer.send("behind").await.unwrap();
    next(&mut consumer).await.again_after(SECOND * 3600);
    assert_nothing(&mut consumer, "nothing overtakes it");
    clock.advance(SECOND * 10);
    letters(&broker, 1).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "behind");
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    broker.shutdown().await.unwrap();
}

/// Messages of which every other one ends: more gaps than the group's row has room for.
const GAPPED: u64 = 8000;

async fn send_gapped(producer: &Producer) {
    let message = |n: u64| {
        let message = Message::new(n.to_string());
        if n.is_multiple_of(2) { message } else { message.ttl(SECOND) }
    };
    producer.send_batch((0..GAPPED).map(message).collect()).await.unwrap();
}

async fn at_its_instant_behind_any_number_of_gaps(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    send_gapped(&producer).await;
    drop(producer);
    clock.advance(SECOND);
    let all = letters(&broker, GAPPED / 2).await;
    assert_eq!(bodies(&all), (0..GAPPED / 2).map(|n| (2 * n + 1).to_string()).collect::<Vec<_>>());
    assert!(all.iter().all(|letter| letter.died_at() == Some(clock.now())), "each at its instant");
    // Whether the rows are in storage or have to be found there again.
    store.kill(broker).await;
    let broker = store.open_at(&clock).await;
    let mut consumer = consumer(&broker).await;
    let living = take(&mut consumer, usize::try_from(GAPPED / 2).unwrap()).await;
    assert_eq!(bodies(&living), (0..GAPPED / 2).map(|n| (2 * n).to_string()).collect::<Vec<_>>());
    soon("the end of the queue", async {
        while broker.describe_group("group").await.unwrap().lag() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    Settler::new(&broker).await.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), GAPPED / 2, "each once");
    broker.shutdown().await.unwrap();
}

async fn passed_by_a_jump_of_the_group(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    send_gapped(&producer).await;
    clock.advance(SECOND);
    letters(&broker, GAPPED / 2).await;
    broker.reset_group("group", "orders", ResetTo::End).await.unwrap().confirm().await.unwrap();
    producer.send("behind").await.unwrap();
    let mut consumer = consumer(&broker).await;
    assert_eq!(text(&take(&mut consumer, 1).await[0]), "behind");
    drop(consumer);
    let broker = store.reopen_at(broker, &clock).await;
    assert_eq!(broker.describe_group("group").await.unwrap().lag(), 0);
    assert_eq!(letters_of(&broker, "group"), GAPPED / 2);
    broker.shutdown().await.unwrap();
}

async fn broadcasting_members_drop(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    let member = |name| broker.consumer("group").subscribe("orders").broadcasting(true).member(name).build();
    let (mut quick, mut slow) = (member("quick").await.unwrap(), member("slow").await.unwrap());
    producer.send(Message::new("x").ttl(SECOND)).await.unwrap();
    take(&mut quick, 1).await;
    clock.advance(SECOND);
    Settler::new(&broker).await.settle(&broker).await;
    assert_nothing(&mut slow, "it has ended");
    let described = broker.describe_group("group").await.unwrap();
    assert_eq!((described.expired, described.lag(), letters_of(&broker, "group")), (1, 0, 0));
    broker.shutdown().await.unwrap();
}

async fn a_full_disk_puts_it_off(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let producer = one_queue(&broker).await;
    known(&broker).await;
    producer.send(Message::new("x").ttl(SECOND)).await.unwrap();
    let calls = store.faults.calls(Operation::Apply);
    store.faults.fail_always(Operation::Apply, Fault::Refuse(StorageKind::Full));
    clock.advance(SECOND);
    until("the first try", || store.faults.calls(Operation::Apply) > calls).await;
    until("timers for the next try", || clock.sleepers() > 1).await;
    store.faults.clear(Operation::Apply);
    assert_eq!(letters_of(&broker, "group"), 0);
    clock.advance(SECOND);
    letters(&broker, 1).await;
    clock.advance(SECOND * 10);
    let settler = soon("the settler", Settler::new(&broker)).await;
    settler.settle(&broker).await;
    assert_eq!(letters_of(&broker, "group"), 1, "once");
    broker.shutdown().await.unwrap();
}
