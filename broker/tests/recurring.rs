//! A recurring message comes at each of its times once, also over kills; what was missed while down comes as one.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::time::Duration;

use common::store::Store;
use common::{Settler, manual_clock, read_all, soon};
use cuemq::{Broker, ErrorKind, ManualClock, Message, Recurrence, RecurrenceId, Timestamp, TopicSpec};
use futures_util::future::join;

on_every_engine!(
    it_comes_at_nine_on_weekdays,
    missed_times_come_as_one,
    each_time_comes_once_over_kills,
    a_cancelled_one_never_comes_again,
    cancelling_races_the_due_moment,
    each_one_lives_from_its_own_time,
    what_cannot_recur_is_refused,
);

const MINUTE: Duration = Duration::from_secs(60);
/// 2023-11-15, a Wednesday, 09:00 in Berlin; the tests' clock starts the evening before.
const WEDNESDAY_NINE: Timestamp = Timestamp::from_millis(1_700_035_200_000);

async fn recur(broker: &Broker, pattern: &str, zone: &str) -> RecurrenceId {
    let producer = broker.producer("reports").await.unwrap();
    let recurrence = Recurrence::cron(pattern, zone).unwrap();
    producer.send_recurring(Message::new("report").tag("t"), &recurrence).await.unwrap()
}

async fn settle(broker: &Broker, clock: &ManualClock) {
    Settler::new(broker, clock).await.settle().await;
}

/// When the messages were due that have come.
async fn came(broker: &Broker) -> Vec<Timestamp> {
    read_all(broker, "reports").await.iter().map(|message| message.born_at()).collect()
}

async fn one_queue(broker: &Broker) {
    broker.create_topic(TopicSpec::new("reports").queues(1)).await.unwrap();
}

async fn it_comes_at_nine_on_weekdays(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    let id = recur(&broker, "0 9 * * MON-FRI", "Europe/Berlin").await;
    let mut settler = Settler::new(&broker, &clock).await;
    // Wednesday, Thursday, Friday, and Monday.
    let days = [0, 1, 2, 5].map(|days| WEDNESDAY_NINE.plus(Duration::from_secs(days * 24 * 3600)));
    for (n, at) in days.into_iter().enumerate() {
        let listed = broker.recurring().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].id, listed[0].next, listed[0].fired), (id, at, u64::try_from(n).unwrap()));
        assert_eq!((listed[0].topic.as_str(), listed[0].recurrence.zone()), ("reports", "Europe/Berlin"));
        clock.advance(at.since(clock.now()) - Duration::from_millis(1));
        settler.settle().await;
        assert_eq!(came(&broker).await, days[..n], "not early");
        clock.advance(Duration::from_millis(1));
        settler.settle().await;
        assert_eq!(came(&broker).await, days[..=n]);
        if n == 1 {
            broker = store.reopen_at(broker, &clock).await;
            settler = Settler::new(&broker, &clock).await;
        }
    }
    let all = read_all(&broker, "reports").await;
    assert!(all.iter().all(|message| message.tag() == Some("t") && &message.body()[..] == b"report"));
    broker.shutdown().await.unwrap();
}

async fn missed_times_come_as_one(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    recur(&broker, "* * * * *", "UTC").await;
    let first = broker.recurring().unwrap()[0].next;
    broker.shutdown().await.unwrap();
    clock.advance(10 * MINUTE);
    broker = store.open_at(&clock).await;
    settle(&broker, &clock).await;
    assert_eq!(came(&broker).await, [first], "one for all that were missed");
    let next = broker.recurring().unwrap()[0].next;
    assert!(next > clock.now() && next.since(clock.now()) <= MINUTE, "the next one is not skipped");
    clock.advance(MINUTE);
    settle(&broker, &clock).await;
    assert_eq!(came(&broker).await, [first, next]);
    common::until("only its next time waits", || broker.delayed_messages() == 1).await;
    broker.shutdown().await.unwrap();
}

async fn each_time_comes_once_over_kills(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    recur(&broker, "*/20 * * * * *", "UTC").await;
    let first = broker.recurring().unwrap()[0].next;
    clock.advance(first.since(clock.now()));
    for round in 0..8u64 {
        if round % 2 == 0 {
            settle(&broker, &clock).await;
        }
        // Or while it is being moved.
        store.kill(broker).await;
        broker = store.open_at(&clock).await;
        settle(&broker, &clock).await;
        let expected: Vec<_> = (0..=round).map(|n| first.plus(Duration::from_secs(20 * n))).collect();
        assert_eq!(came(&broker).await, expected);
        clock.advance(Duration::from_secs(20));
    }
    broker.shutdown().await.unwrap();
}

async fn a_cancelled_one_never_comes_again(store: Store) {
    let clock = manual_clock();
    let mut broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    let id = recur(&broker, "* * * * *", "UTC").await;
    let other = recur(&broker, "@yearly", "Asia/Tokyo").await;
    assert_eq!(broker.recurring().unwrap().iter().map(|message| message.id).collect::<Vec<_>>(), [id, other]);
    clock.advance(MINUTE);
    settle(&broker, &clock).await;
    assert!(broker.cancel_recurring(&id.to_string().parse().unwrap()).await.unwrap());
    assert!(!broker.cancel_recurring(&id).await.unwrap(), "once");
    broker = store.reopen_at(broker, &clock).await;
    clock.advance(10 * MINUTE);
    settle(&broker, &clock).await;
    assert_eq!(came(&broker).await.len(), 1);
    assert_eq!(broker.recurring().unwrap().len(), 1);
    broker.delete_topic("reports").await.unwrap();
    clock.advance(Duration::from_secs(366 * 24 * 3600));
    settle(&broker, &clock).await;
    assert_eq!(read_all(&broker, "rmq_sys_UNDELIVERABLE").await.len(), 1);
    assert!(broker.recurring().unwrap().is_empty(), "with its topic it ends");
    common::until("nothing waits", || broker.delayed_messages() == 0).await;
    broker.shutdown().await.unwrap();
}

async fn cancelling_races_the_due_moment(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    let mut settler = Settler::new(&broker, &clock).await;
    let mut before = 0;
    for round in 0..40u32 {
        let id = recur(&broker, "* * * * * *", "UTC").await;
        let time = async { clock.advance(Duration::from_secs(1)) };
        let cancel = broker.cancel_recurring(&id);
        let ended = if round % 2 == 0 { join(time, cancel).await.1 } else { join(cancel, time).await.0 };
        assert!(ended.unwrap(), "it recurs, so it is there before and after");
        settler.settle().await;
        let now = came(&broker).await.len();
        assert!(now - before <= 1);
        clock.advance(Duration::from_secs(10));
        settler.settle().await;
        assert_eq!(came(&broker).await.len(), now, "never after the answer");
        before = now;
    }
    broker.shutdown().await.unwrap();
}

async fn what_cannot_recur_is_refused(store: Store) {
    let broker = store.open().await;
    let producer = broker.producer("reports").await.unwrap();
    let daily = Recurrence::cron("@daily", "UTC").unwrap();
    let delayed = Message::new("x").delay(MINUTE);
    assert_eq!(producer.send_recurring(delayed, &daily).await.unwrap_err().kind(), ErrorKind::Invalid);
    let never = Recurrence::cron("0 0 30 2 *", "UTC").unwrap();
    let error = soon("an answer", producer.send_recurring("x", &never)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("never comes true"), "{error}");
    let stranger = Broker::in_memory().await.unwrap();
    let id = recur(&broker, "@daily", "UTC").await;
    assert_eq!(stranger.cancel_recurring(&id).await.unwrap_err().kind(), ErrorKind::Invalid);
    stranger.shutdown().await.unwrap();
    broker.shutdown().await.unwrap();
}

/// A message of each minute that lives for ten seconds, and one that is moved by a minute.
async fn each_one_lives_from_its_own_time(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    one_queue(&broker).await;
    let producer = broker.producer("reports").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("reports").build().await.unwrap();
    let recurrence = Recurrence::cron("* * * * *", "UTC").unwrap();
    let ttl = Duration::from_secs(10);
    producer.send_recurring(Message::new("every minute").ttl(ttl), &recurrence).await.unwrap();
    let moved = producer.send(Message::new("moved").ttl(ttl).delay(MINUTE)).await.unwrap().scheduled.unwrap();
    producer.reschedule(&moved, clock.now().plus(3 * MINUTE)).await.unwrap();
    let mut texts = Vec::new();
    // To the minutes exactly: a message that was due longer ago than it lives does not come any more.
    for seconds in [40, 60, 60] {
        clock.advance(Duration::from_secs(seconds));
        texts.push(common::text(&common::take(&mut consumer, 1).await[0]));
    }
    clock.advance(Duration::from_secs(20));
    texts.push(common::text(&common::take(&mut consumer, 1).await[0]));
    assert_eq!(texts, ["every minute", "every minute", "every minute", "moved"]);
    broker.shutdown().await.unwrap();
}
