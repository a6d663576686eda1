//! Readers beside a writer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Fixture;
use super::rounds;
use super::sample::{ROWS, at, fresh, keyed, numbers, offset, orders, topic};
use crate::batch::WriteBatch;
use crate::engine::{Engine, FetchLimit, FetchRequest, KeyQuery};
use crate::error::ErrorKind;
use crate::types::{QueueOffset, Timestamp};

const ROUNDS: u64 = 300;

/// Runs `write` on one thread and `read` on two others, again and again until the writer is through, and once more.
fn beside<E: Engine>(engine: &E, write: impl FnOnce(&E), read: impl Fn(&E) + Sync) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let last = done.load(Ordering::Acquire);
                    read(engine);
                    if last {
                        break;
                    }
                }
            });
        }
        // Readers must end even when the writer panics, or the case would hang instead of failing.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(engine)));
        done.store(true, Ordering::Release);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Whatever of a batch a reader sees first, the rest of it is there when the reader looks.
pub fn a_reader_never_sees_half_a_batch<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let end = |engine: &F::Engine, queue| engine.bounds(&queue).unwrap().end.get();
    beside(
        &engine,
        |engine| drop(rounds::write(engine, 0, ROUNDS)),
        |engine| {
            let single = end(engine, rounds::single());
            assert!(end(engine, rounds::double()) >= single * 2, "the second queue lags behind the first");
            let double = end(engine, rounds::double());
            assert_eq!(double % 2, 0, "half an append is visible");
            assert!(end(engine, rounds::single()) >= double / 2, "the first queue lags behind the second");
            let rows = rounds::counted(engine);
            assert!(end(engine, rounds::single()) >= rows, "a queue lags behind a row");
            let single = end(engine, rounds::single());
            assert!(rounds::counted(engine) >= single, "a row lags behind a queue");
        },
    );
    assert_eq!(rounds::whole(&engine), ROUNDS);
}

/// Every record below the end can be fetched, and is the one that was written.
pub fn what_is_within_bounds_can_be_fetched<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    beside(
        &engine,
        |engine| drop(rounds::write(engine, 0, ROUNDS)),
        |engine| {
            let queue = rounds::double();
            let end = engine.bounds(&queue).unwrap().end.get();
            let from = end.saturating_sub(50);
            let fetched = engine.fetch(FetchRequest::all(&queue, offset(from), FetchLimit::messages(1_000))).unwrap();
            let next = fetched.next.get();
            assert!(next >= end, "a record below the end was not fetched");
            assert_eq!(numbers(&fetched.records), (from..next).collect::<Vec<_>>());
            if let Some(last) = fetched.records.last() {
                let located = engine.record_at(last.position).unwrap().expect("a record that was just read");
                assert_eq!(&located.stored, last);
                assert!(engine.offset_at(&queue, last.stored_at).unwrap() <= last.offset);
            }
        },
    );
}

/// A record that can be fetched is found by its key, and its row is in the table.
pub fn what_can_be_fetched_is_found<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    beside(
        &engine,
        |engine| drop(rounds::write(engine, 0, ROUNDS)),
        |engine| {
            let Some(newest) = engine.bounds(&rounds::single()).unwrap().end.get().checked_sub(1) else { return };
            let key = rounds::key_of(newest);
            let (topic, from, to) = (rounds::single().topic, Timestamp::MIN, Timestamp::MAX);
            let found = engine.find(KeyQuery { topic: &topic, key: &key, from, to, limit: 5 }).unwrap();
            assert_eq!(found.len(), 1, "{key} is not found");
            assert_eq!(found[0].stored.offset, offset(newest));
            assert!(engine.get(&ROWS, &newest.to_be_bytes()).unwrap().is_some());
        },
    );
}

/// Beside trims a reader gets a run of records without a gap, or is told that it is out of range.
pub fn trims_do_not_disturb_readers<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let queue = orders(0);
    let write = |engine: &F::Engine| {
        for n in 0..ROUNDS {
            let mut batch = WriteBatch::new(at(0));
            batch.append(&queue, keyed(n.to_be_bytes().to_vec(), "k"));
            batch.trim(&queue, offset(n.saturating_sub(5)));
            engine.apply(batch).unwrap();
        }
    };
    beside(&engine, write, |engine| {
        let min = engine.bounds(&queue).unwrap().start;
        match engine.fetch(FetchRequest::all(&queue, min, FetchLimit::messages(100))) {
            Ok(fetched) => {
                let expected = fetched.bounds.start.max(min).get()..fetched.bounds.end.get();
                assert_eq!(numbers(&fetched.records), expected.collect::<Vec<_>>());
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}"),
        }
        let (topic, from, to) = (topic("orders"), Timestamp::MIN, Timestamp::MAX);
        let found = engine.find(KeyQuery { topic: &topic, key: "k", from, to, limit: 100 }).unwrap();
        assert!(found.len() <= 7, "{} records found of at most 7", found.len());
    });
    let end = QueueOffset::new(ROUNDS);
    assert_eq!(engine.bounds(&queue).unwrap(), offset(ROUNDS - 6)..end);
}

/// Several writers and a syncing thread beside each other lose nothing and give every record its own place.
pub fn writers_take_turns<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let each = 60u64;
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let engine = &engine;
            scope.spawn(move || {
                for n in 0..each {
                    let mut batch = WriteBatch::new(at(0));
                    batch.append(&orders(0), keyed((writer * each + n).to_be_bytes().to_vec(), "k"));
                    engine.apply(batch).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..5 {
                engine.sync().unwrap();
            }
        });
    });
    let stored = super::sample::read_all(&engine, &orders(0));
    let mut found = numbers(&stored);
    for writer in 0..3 {
        let of_writer = found.iter().filter(|n| **n / each == writer);
        assert!(of_writer.is_sorted(), "one writer's records keep their order");
    }
    found.sort_unstable();
    assert_eq!(found, (0..each * 3).collect::<Vec<_>>());
    assert!(stored.is_sorted_by(|a, b| a.position < b.position));
}
