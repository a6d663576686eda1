//! Look-up by time.

use super::Fixture;
use super::sample::{append_numbers, at, batch, fresh, offset, orders, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::types::Timestamp;

/// A queue `orders/0` with one record per time, and another queue with records in between.
fn at_times<F: Fixture>(times: &[i64]) -> (F, F::Engine) {
    let (fixture, engine) = fresh::<F>();
    for millis in times {
        engine.apply(batch(*millis, &orders(0), vec![record("x")])).unwrap();
        engine.apply(batch(*millis, &orders(1), vec![record("y")])).unwrap();
    }
    (fixture, engine)
}

/// The first record stored at a time or, if there is none, after it.
pub fn the_first_at_or_after_a_time<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[10, 20, 30, 40, 50]);
    for (millis, expected) in [(9, 0), (10, 0), (11, 1), (20, 1), (35, 3), (50, 4)] {
        assert_eq!(engine.offset_at(&orders(0), at(millis)).unwrap(), offset(expected), "at {millis}");
    }
}

/// Of records stored at one time the first is meant, whether one batch or several wrote them.
pub fn equal_times_lead_to_the_first<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[10, 20, 20, 20, 30]);
    engine.apply(batch(30, &orders(0), vec![record("x"), record("x")])).unwrap();
    for (millis, expected) in [(20, 1), (21, 4), (30, 4)] {
        assert_eq!(engine.offset_at(&orders(0), at(millis)).unwrap(), offset(expected), "at {millis}");
    }
}

/// Before all records it is the minimum, after all of them the end.
pub fn beyond_the_records_are_the_bounds<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[10, 20]);
    for (time, expected) in [(Timestamp::MIN, 0), (at(-5), 0), (at(21), 2), (Timestamp::MAX, 2)] {
        assert_eq!(engine.offset_at(&orders(0), time).unwrap(), offset(expected));
    }
}

/// A queue that never had a record answers with its end, 0.
pub fn an_unknown_queue_answers_zero<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[10]);
    assert_eq!(engine.offset_at(&orders(9), at(0)).unwrap(), offset(0));
    assert_eq!(engine.offset_at(&orders(9), at(99)).unwrap(), offset(0));
}

/// Trimmed records are no answer; a queue without records answers with its end.
pub fn trimmed_times_lead_to_the_minimum<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[10, 20, 30, 40]);
    let trim = |before| {
        let mut trim = WriteBatch::new(at(40));
        trim.trim(&orders(0), offset(before));
        engine.apply(trim).unwrap();
    };
    trim(2);
    for (millis, expected) in [(10, 2), (30, 2), (31, 3)] {
        assert_eq!(engine.offset_at(&orders(0), at(millis)).unwrap(), offset(expected), "at {millis}");
    }
    trim(4);
    assert_eq!(engine.offset_at(&orders(0), at(10)).unwrap(), offset(4));
    assert_eq!(engine.offset_at(&orders(1), at(10)).unwrap(), offset(0));
}

/// A search sees the time a record got, not the one its batch asked for.
pub fn times_that_were_raised_are_found_raised<F: Fixture>() {
    let (_fixture, engine) = at_times::<F>(&[100]);
    engine.apply(batch(50, &orders(0), vec![record("late")])).unwrap();
    engine.apply(batch(101, &orders(0), vec![record("x")])).unwrap();
    for (millis, expected) in [(50, 0), (100, 0), (101, 2)] {
        assert_eq!(engine.offset_at(&orders(0), at(millis)).unwrap(), offset(expected), "at {millis}");
    }
}

/// Every time of a long queue is found, whatever steps an engine searches in.
pub fn every_time_of_a_long_queue_is_found<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for n in 0..300 {
        engine.apply(batch(n * 10, &orders(0), vec![record("x"), record("y"), record("z")])).unwrap();
    }
    append_numbers(&engine, &orders(1), 0, 5);
    for n in 0..300u64 {
        let millis = i64::try_from(n * 10).unwrap();
        assert_eq!(engine.offset_at(&orders(0), at(millis)).unwrap(), offset(n * 3));
        assert_eq!(engine.offset_at(&orders(0), at(millis + 1)).unwrap(), offset(n * 3 + 3));
    }
}
