//! Trims and bounds: what is forgotten, and what stays.

use super::Fixture;
use super::sample::{append_numbers, at, fetch, fresh, numbers, offset, orders, queue_of, read_all, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::types::QueueKey;

fn trim(engine: &impl Engine, queue: &QueueKey, before: u64) {
    let mut batch = WriteBatch::new(at(0));
    batch.trim(queue, offset(before));
    let applied = engine.apply(batch).unwrap();
    assert!(applied.appends.is_empty() && applied.positions.is_empty());
}

/// A trim forgets the records below an offset and leaves the rest as it is.
pub fn a_trim_raises_the_minimum<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    for before in [1, 4, 9] {
        trim(&engine, &orders(0), before);
        assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(before)..offset(10));
        assert_eq!(numbers(&read_all(&engine, &orders(0))), (before..10).collect::<Vec<_>>());
    }
}

/// A trim beyond the end forgets everything and moves the end nowhere.
pub fn a_trim_stops_at_the_end<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 3);
    trim(&engine, &orders(0), 1_000);
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(3)..offset(3));
    assert_eq!(fetch(&engine, &orders(0), 3, 1).next, offset(3));
}

/// A trim below the minimum does nothing.
pub fn a_trim_never_goes_back<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    trim(&engine, &orders(0), 6);
    for before in [6, 2, 0] {
        trim(&engine, &orders(0), before);
        assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(6)..offset(10));
    }
}

/// After everything was trimmed, offsets go on where they were.
pub fn an_empty_queue_goes_on_counting<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 5);
    trim(&engine, &orders(0), 5);
    let applied = append_numbers(&engine, &orders(0), 5, 2);
    assert_eq!(applied.appends[0].first, offset(5));
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(5)..offset(7));
    assert_eq!(numbers(&read_all(&engine, &orders(0))), [5, 6]);
}

/// A trim of a queue that never had a record changes nothing and brings no queue into being.
pub fn a_trim_of_an_unknown_queue_makes_none<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    trim(&engine, &orders(0), 7);
    assert!(engine.queues().unwrap().is_empty());
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(0)..offset(0));
    assert_eq!(append_numbers(&engine, &orders(0), 0, 1).appends[0].first, offset(0));
}

/// Within a batch, a trim behind an append sees what that appended.
pub fn a_trim_sees_the_appends_before_it<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut batch = WriteBatch::new(at(0));
    batch.append_all(&orders(0), vec![record("a"), record("b"), record("c")]).trim(&orders(0), offset(2));
    assert_eq!(engine.apply(batch).unwrap().positions.len(), 3);
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(2)..offset(3));
    assert_eq!(read_all(&engine, &orders(0))[0].record.body, "c");
}

/// Within a batch, a trim before an append stops at the end as it was then.
pub fn a_trim_spares_the_appends_behind_it<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 2);
    let mut batch = WriteBatch::new(at(0));
    batch.trim(&orders(0), offset(4)).append_all(&orders(0), vec![record("c"), record("d"), record("e")]);
    engine.apply(batch).unwrap();
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(2)..offset(5));
    assert_eq!(read_all(&engine, &orders(0)).len(), 3);
}

/// Trimming one queue leaves every other queue alone.
pub fn a_trim_spares_other_queues<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let others = [orders(1), queue_of("orders2", 0), queue_of("order", 0)];
    for queue in [&orders(0)].into_iter().chain(&others) {
        append_numbers(&engine, queue, 0, 4);
    }
    trim(&engine, &orders(0), 4);
    for queue in &others {
        assert_eq!(numbers(&read_all(&engine, queue)), [0, 1, 2, 3]);
    }
}

/// A queue without records is still one that had some.
pub fn trimmed_queues_stay_listed<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 3);
    trim(&engine, &orders(0), 3);
    assert_eq!(engine.queues().unwrap(), [(orders(0), offset(3)..offset(3))]);
}

/// All queues are listed in the order of topic and number, with their bounds.
pub fn queues_are_listed_in_key_order<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let names = [("b", 2), ("a", 10), ("B", 0), ("a", 9), ("ab", 0), ("a-", 1), ("a", 0), ("b", 1), ("a", 256)];
    for (name, id) in names {
        append_numbers(&engine, &queue_of(name, id), 0, u64::from(id % 3 + 1));
    }
    trim(&engine, &queue_of("b", 2), 1);
    let mut expected: Vec<_> = names.map(|(name, id)| (queue_of(name, id), u64::from(id % 3 + 1))).into();
    expected.sort();
    let listed = engine.queues().unwrap();
    let of = |(key, end): (QueueKey, u64)| {
        let min = u64::from(key == queue_of("b", 2));
        (key, offset(min)..offset(end))
    };
    assert_eq!(listed, expected.into_iter().map(of).collect::<Vec<_>>());
}
