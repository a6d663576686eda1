//! Dead letters can be found, sent again or thrown away: each exactly once, at a rate, over kills.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::{Kind, Store};
use common::{assert_nothing, manual_clock, next, read_all, soon, take, text, until};
use cuemq::{
    Broker, Consumer, DeadLetters, DeadReason, ErrorKind, LetterFilter, ManualClock, Message, QueueOffset, Received,
    RedriveOptions, RedriveProgress, RedriveTo, RetryPolicy, TopicSpec,
};
use futures_util::stream::{FuturesUnordered, StreamExt};

on_every_engine!(
    letters_are_found,
    a_letter_goes_to_everybody_or_to_its_group,
    a_letter_may_be_edited,
    a_letter_is_dealt_with_once,
    many_letters_go_at_a_rate,
    what_cannot_be_sent_is_passed_over,
    purged_letters_take_no_room,
    arrivals_are_told,
    a_killed_redrive_leaves_each_letter_in_one_place,
);

const FROM_THE_BEGIN: QueueOffset = QueueOffset::ZERO;

async fn join(broker: &Broker) -> Consumer {
    broker.consumer("group").subscribe("orders").build().await.unwrap()
}

/// Sends messages and has the group give them up: even ones fail, odd ones are rejected. A second passes before each.
async fn make_letters(broker: &Broker, clock: &ManualClock, numbers: std::ops::Range<u64>) -> DeadLetters {
    let producer = broker.producer("orders").await.unwrap();
    let consumer = broker.consumer("group").subscribe("orders").retry_policy(RetryPolicy::Schedule(Vec::new()));
    let mut consumer = consumer.build().await.unwrap();
    for n in numbers {
        clock.advance(Duration::from_secs(1));
        producer.send(numbered(n)).await.unwrap();
        let delivery = next(&mut consumer).await;
        let outcome = if n % 2 == 0 { delivery.fail(format!("failed {n}")).await } else { delivery.reject("no").await };
        outcome.unwrap();
    }
    broker.dead_letters("group").unwrap()
}

fn numbers(letters: &DeadLetters, filter: &LetterFilter) -> Vec<u64> {
    letters.browse(FROM_THE_BEGIN, usize::MAX, filter).unwrap().letters.iter().map(|letter| number_of(letter)).collect()
}

fn all_numbers(letters: &DeadLetters) -> Vec<u64> {
    numbers(letters, &LetterFilter::all())
}

fn offset(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

async fn letters_are_found(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let start = clock.now();
    let letters = make_letters(&broker, &clock, 0..10).await;
    let at = |seconds| start.plus(Duration::from_secs(seconds));
    let all = LetterFilter::all();
    assert_eq!((all_numbers(&letters), letters.count().unwrap()), ((0..10).collect(), 10));
    for (filter, expected) in [
        (all.clone().reason(DeadReason::Rejected), vec![1, 3, 5, 7, 9]),
        (all.clone().reason(DeadReason::RetriesExceeded), vec![0, 2, 4, 6, 8]),
        (all.clone().reason(DeadReason::Expired), vec![]),
        (all.clone().topic("orders").key("group3"), vec![3, 8]),
        (all.clone().topic("order"), vec![]),
        (all.clone().died_within(at(3)..at(6)), vec![2, 3, 4]),
        (all.clone().text("failed 6"), vec![6]),
        (all.clone().text("message 7"), vec![7]),
        (all.clone().text("message").reason(DeadReason::Rejected).died_within(at(3)..at(7)), vec![3, 5]),
    ] {
        assert_eq!(numbers(&letters, &filter), expected, "{filter:?}");
    }
    // Page by page.
    let (mut from, mut seen, mut pages) = (Some(FROM_THE_BEGIN), Vec::new(), 0);
    while let Some(at) = from {
        let page = letters.browse(at, 3, &all.clone().reason(DeadReason::Rejected)).unwrap();
        assert!(page.letters.len() <= 3);
        seen.extend(page.letters.iter().map(|letter| number_of(letter)));
        (from, pages) = (page.next, pages + 1);
    }
    assert_eq!((seen, pages), (vec![1, 3, 5, 7, 9], 2));
    assert!(letters.browse(offset(99), 3, &all).unwrap().letters.is_empty());
    assert!(letters.browse(FROM_THE_BEGIN, 0, &all).unwrap().letters.is_empty());
    // By every name it has.
    let letter = letters.get(offset(4)).unwrap().unwrap();
    assert_eq!(number_of(&letter), 4);
    assert_eq!(letters.get(letter.id()).unwrap().unwrap().offset(), offset(4));
    assert_eq!(letters.get(letter.origin_id()).unwrap().unwrap().offset(), offset(4));
    assert_eq!(letters.get(&letter).unwrap().unwrap().offset(), offset(4));
    assert!(letters.get(offset(10)).unwrap().is_none());
    broker.shutdown().await.unwrap();
}

async fn a_letter_goes_to_everybody_or_to_its_group(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    broker.create_topic(TopicSpec::new("orders").queues(8)).await.unwrap();
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..6 {
        let message = numbered(n);
        producer.send(if n < 3 { message.sharding_key(format!("s{n}")) } else { message }).await.unwrap();
    }
    let mut others = broker.consumer("others").subscribe("orders").build().await.unwrap();
    let originals: BTreeMap<u64, Received> =
        take(&mut others, 6).await.iter().map(|r| (number_of(r), r.clone())).collect();
    let mut consumer = join(&broker).await;
    for _ in 0..6 {
        next(&mut consumer).await.reject("no").await.unwrap();
    }
    let letters = broker.dead_letters("group").unwrap();
    for letter in letters.browse(FROM_THE_BEGIN, 9, &LetterFilter::all()).unwrap().letters {
        let n = number_of(&letter);
        let to = if n.is_multiple_of(2) { RedriveTo::Origin } else { RedriveTo::Group };
        let receipt = letters.redrive(&letter, to).await.unwrap();
        let again = next(&mut consumer).await;
        assert_eq!((number_of(&again), again.attempts(), again.id()), (n, 0, receipt.id.unwrap()));
        assert_eq!((again.last_error(), again.dead_reason(), again.first_failed_at()), (None, None, None));
        assert_eq!((again.topic(), again.born_at()), ("orders", originals[&n].born_at()));
        assert_eq!(again.sharding_key(), originals[&n].sharding_key());
        if to == RedriveTo::Origin {
            assert_eq!(again.queue(), originals[&n].queue(), "to the queue where it was");
            assert_eq!((again.origin_id(), again.redriven_from()), (again.id(), Some(originals[&n].id())));
            let seen = next(&mut others).await;
            assert_eq!(seen.id(), again.id(), "everybody gets it");
            seen.ack().await.unwrap();
            again.ack().await.unwrap();
        } else {
            assert_eq!((receipt.topic.as_str(), again.origin_id()), ("%RETRY%group", originals[&n].id()));
            assert_nothing(&mut others, "nobody else gets it");
            again.fail("again").await.unwrap();
        }
    }
    assert_eq!(letters.count().unwrap(), 0, "what failed again has all of its redeliveries before it");
    clock.advance(Duration::from_secs(10));
    let again = take(&mut consumer, 3).await;
    assert!(again.iter().all(|received| received.attempts() == 1));
    broker.shutdown().await.unwrap();
}

async fn a_letter_may_be_edited(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..3).await;
    let mut consumer = join(&broker).await;
    let letter = letters.get(offset(1)).unwrap().unwrap();
    let edited = letter.to_message().replace_body("mended").property("mended by", "me");
    letters.redrive_edited(&letter, edited, RedriveTo::Origin).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((text(&again).as_str(), again.tag(), again.keys().count()), ("mended", letter.tag(), 2));
    assert_eq!((again.property("number"), again.property("mended by")), (Some("1"), Some("me")));
    assert_eq!((again.redriven_from(), again.last_error()), (Some(letter.origin_id()), None));
    again.ack().await.unwrap();
    letters.redrive_edited(letter.offset().plus(1), Message::new("other"), RedriveTo::Group).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((text(&again).as_str(), again.topic(), again.tag()), ("other", "orders", None));
    again.ack().await.unwrap();
    // What is refused changes nothing.
    let too_large = Message::new(vec![0; broker.settings().max_body_bytes + 1]);
    for bad in [Message::new("later").delay_level(1), Message::new("x").property("__attempts", "1"), too_large] {
        let refused = letters.redrive_edited(offset(0), bad, RedriveTo::Origin).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
    }
    assert_eq!(all_numbers(&letters), [0]);
    broker.shutdown().await.unwrap();
}

async fn a_letter_is_dealt_with_once(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..6).await;
    // Ten at once ask for the same letter, and ten more for another.
    let ask = |at| {
        let letters = letters.clone();
        async move { letters.redrive(offset(at), RedriveTo::Origin).await.map(drop) }
    };
    let mut asked: FuturesUnordered<_> = (0..20).map(|n| ask(3 + n % 2)).collect();
    let mut outcomes = Vec::new();
    while let Some(outcome) = soon("an answer", asked.next()).await {
        outcomes.push(outcome);
    }
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 18);
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::Conflict));
    assert!(refused[0].to_string().contains("was sent to its topic again at"), "{}", refused[0]);
    letters.redrive(offset(1), RedriveTo::Group).await.unwrap();
    letters.purge_one(offset(2)).await.unwrap();
    for (at, what) in [(1, "was given to its group again"), (2, "was purged")] {
        let error = letters.purge_one(offset(at)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(what), "{error}");
    }
    let read = read_all(&broker, "orders").await;
    let mut sent: Vec<u64> = read.iter().map(number_of).collect();
    sent.sort_unstable();
    assert_eq!(sent, [0, 1, 2, 3, 3, 4, 4, 5], "each once more, however many asked");
    // The first letter keeps the others in their places; without it there is no need for any of them.
    assert_eq!(broker.describe_topic("%DLQ%group").unwrap().queues[0].min, offset(0));
    letters.purge_one(offset(0)).await.unwrap();
    assert_eq!(broker.describe_topic("%DLQ%group").unwrap().queues[0].min, offset(5));
    let error = letters.redrive(offset(0), RedriveTo::Origin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let error = letters.redrive(offset(6), RedriveTo::Origin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.to_string().contains("has no dead letter 6"), "{error}");
    let error = letters.redrive(read[0].id(), RedriveTo::Origin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "it is not open any more");
    assert_eq!(all_numbers(&letters), [5]);
    let broker = store.reopen_at(broker, &clock).await;
    let letters = broker.dead_letters("group").unwrap();
    assert_eq!(all_numbers(&letters), [5]);
    assert_eq!(letters.redrive(offset(4), RedriveTo::Origin).await.unwrap_err().kind(), ErrorKind::Conflict);
    broker.shutdown().await.unwrap();
}

async fn many_letters_go_at_a_rate(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..40).await;
    let told = Arc::new(Mutex::new(Vec::<RedriveProgress>::new()));
    let tell = Arc::clone(&told);
    let options = RedriveOptions::new().per_second(4).on_progress(move |progress| tell.lock().unwrap().push(progress));
    let rejected = LetterFilter::all().reason(DeadReason::Rejected);
    let redrive = {
        let letters = letters.clone();
        let rejected = rejected.clone();
        tokio::spawn(async move { letters.redrive_all(&rejected, options).await })
    };
    let sent = || told.lock().unwrap().last().map_or(0, |progress| progress.redriven);
    let sleeps = clock.sleepers();
    until("the first one", || sent() == 1).await;
    for (step, expected) in [(249, 1), (1, 2), (250, 3), (500, 5), (1000, 9), (60_000, 13), (250, 14)] {
        // The re-drive has seen that nothing more is due, and sleeps.
        until("the pause", || clock.sleepers() > sleeps).await;
        assert!(sent() <= expected, "too fast");
        clock.advance(Duration::from_millis(step));
        until("what is due", || sent() >= expected).await;
        assert_eq!(sent(), expected, "{step} ms later");
    }
    while !redrive.is_finished() {
        clock.advance(Duration::from_millis(250));
        tokio::task::yield_now().await;
    }
    let done = redrive.await.unwrap().unwrap();
    assert_eq!((done.redriven, done.passed_over), (20, 0));
    let told = told.lock().unwrap().clone();
    assert!(told.is_sorted_by_key(|progress| (progress.redriven, progress.examined)));
    assert_eq!(told.last().map(|last| (last.redriven, last.examined, last.total)), Some((20, 40, 40)));
    assert_eq!(letters.count().unwrap(), 20);
    assert!(numbers(&letters, &rejected).is_empty());
    // What is sent while letters arrive: only those that were there at the begin.
    let all = letters.redrive_all(&LetterFilter::all(), RedriveOptions::new().to(RedriveTo::Group)).await.unwrap();
    assert_eq!(all.redriven, 20);
    let mut consumer = join(&broker).await;
    let mut again: Vec<u64> = take(&mut consumer, 40).await.iter().map(number_of).collect();
    again.sort_unstable();
    assert_eq!(again, (0..40).collect::<Vec<_>>(), "each came again once");
    assert_nothing(&mut consumer, "and not more often");
    broker.shutdown().await.unwrap();
}

async fn what_cannot_be_sent_is_passed_over(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..3).await;
    let mut both = broker.consumer("group").subscribe("orders").subscribe("doomed").build().await.unwrap();
    broker.producer("doomed").await.unwrap().send(numbered(9)).await.unwrap();
    next(&mut both).await.reject("no").await.unwrap();
    drop(both);
    broker.delete_topic("doomed").await.unwrap();
    let error = letters.redrive(offset(3), RedriveTo::Origin).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTopic);
    assert!(error.to_string().contains("re-drive to the group"), "{error}");
    let done = letters.redrive_all(&LetterFilter::all(), RedriveOptions::new()).await.unwrap();
    assert_eq!((done.redriven, done.passed_over), (3, 1));
    assert_eq!(all_numbers(&letters), [9], "it is still there");
    letters.redrive(offset(3), RedriveTo::Group).await.unwrap();
    assert_eq!(letters.count().unwrap(), 0);
    broker.shutdown().await.unwrap();
}

async fn purged_letters_take_no_room(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..20).await;
    let bounds = || {
        let queue = broker.describe_topic("%DLQ%group").unwrap().queues.remove(0);
        (queue.min.get(), queue.end.get())
    };
    assert_eq!(letters.purge(&LetterFilter::all().reason(DeadReason::Rejected)).await.unwrap(), 10);
    assert_eq!((letters.count().unwrap(), bounds()), (10, (0, 20)), "the first one is open");
    assert_eq!(read_all(&broker, "%DLQ%group").await.len(), 20, "by offset all can be read");
    assert_eq!(letters.purge(&LetterFilter::all().key("key0")).await.unwrap(), 1);
    assert_eq!((letters.count().unwrap(), bounds()), (9, (2, 20)));
    assert_eq!(letters.purge(&LetterFilter::all()).await.unwrap(), 9);
    assert_eq!((letters.count().unwrap(), bounds()), (0, (20, 20)));
    assert_eq!(letters.purge(&LetterFilter::all()).await.unwrap(), 0);
    let letters = make_letters(&broker, &clock, 20..22).await;
    assert_eq!((all_numbers(&letters), bounds()), (vec![20, 21], (20, 22)));
    broker.shutdown().await.unwrap();
}

async fn arrivals_are_told(store: Store) {
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..2).await;
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    let hook = letters.on_arrival(move |letter| {
        sender.send((number_of(&letter), letter.reason())).unwrap();
        assert_ne!(number_of(&letter), 3, "a callback that panics, on purpose");
    });
    let hook = hook.unwrap();
    let mut watch = letters.watch().unwrap();
    make_letters(&broker, &clock, 2..6).await;
    for n in 2..6 {
        let reason = if n % 2 == 0 { DeadReason::RetriesExceeded } else { DeadReason::Rejected };
        assert_eq!(soon("the call", told.recv()).await, Some((n, reason)));
        assert_eq!(number_of(&soon("the letter", watch.next()).await.unwrap()), n);
    }
    drop(hook);
    assert_eq!(soon("the end of the hook", told.recv()).await, None);
    make_letters(&broker, &clock, 6..7).await;
    assert_eq!(number_of(&soon("the letter", watch.next()).await.unwrap()), 6);
    let (ended, stopped) = tokio::join!(soon("the end", watch.next()), broker.shutdown());
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Closed);
    stopped.unwrap();
}

/// Kills the broker after some of many re-drives were answered, while the others are under way.
async fn kill_single_redrives(store: &Store, seed: u64) {
    const LETTERS: u64 = 24;
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..LETTERS).await;
    let answered_before_the_kill = seed * 7 % LETTERS;
    let redrive = |n: u64| {
        // Not in their order, so that some have to wait for an open one before them.
        let (letters, at) = (letters.clone(), n * 7 % LETTERS);
        async move { letters.redrive(offset(at), RedriveTo::Origin).await.map(|_| at) }
    };
    let mut running: FuturesUnordered<_> = (0..LETTERS).map(redrive).collect();
    let mut answered = Vec::new();
    for _ in 0..answered_before_the_kill {
        answered.push(soon("an answer", running.next()).await.unwrap().unwrap());
    }
    store.kill(broker).await;
    drop((running, letters));
    let broker = store.open_at(&clock).await;
    check_one_place(&broker, LETTERS, &answered).await;
    broker.shutdown().await.unwrap();
}

/// Kills the broker in the middle of a re-drive of all, once it has come so far.
async fn kill_redrive_of_all(store: &Store, seed: u64) {
    const LETTERS: u64 = 24;
    let clock = manual_clock();
    let broker = store.open_at(&clock).await;
    let letters = make_letters(&broker, &clock, 0..LETTERS).await;
    let (far_enough, reached) = (1 + seed * 5 % LETTERS, Arc::new(tokio::sync::Notify::new()));
    let (reach, moves) = (Arc::clone(&reached), clock.clone());
    let options = RedriveOptions::new().per_second(3).on_progress(move |progress| {
        moves.advance(Duration::from_millis(400));
        if progress.redriven >= far_enough {
            reach.notify_one();
        }
    });
    let filter = LetterFilter::all();
    let running = tokio::spawn(async move { letters.redrive_all(&filter, options).await });
    soon("the re-drive", reached.notified()).await;
    store.kill(broker).await;
    running.abort();
    let broker = store.open_at(&clock).await;
    let answered: Vec<u64> = (0..far_enough).collect();
    check_one_place(&broker, LETTERS, &answered).await;
    broker.shutdown().await.unwrap();
}

/// Each message is an open letter or was sent again, and not both. What was answered was sent.
async fn check_one_place(broker: &Broker, letters: u64, answered: &[u64]) {
    let open = all_numbers(&broker.dead_letters("group").unwrap());
    let sent: Vec<u64> =
        read_all(broker, "orders").await.iter().filter(|r| r.redriven_from().is_some()).map(number_of).collect();
    let mut both = [open.clone(), sent.clone()].concat();
    both.sort_unstable();
    assert_eq!(both, (0..letters).collect::<Vec<_>>(), "open {open:?}, sent {sent:?}");
    assert!(answered.iter().all(|n| sent.contains(n)), "{answered:?} were answered, sent were {sent:?}");
}

async fn a_killed_redrive_leaves_each_letter_in_one_place(store: Store) {
    let seeds = if store.kind == Kind::Memory { 24 } else { 5 };
    for seed in 0..seeds {
        kill_single_redrives(&Store::new(store.kind), seed).await;
        kill_redrive_of_all(&Store::new(store.kind), seed).await;
    }
}
