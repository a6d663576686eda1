//! Batches: whole or not at all, in the order in which they were filled.

use super::Fixture;
use super::rounds;
use super::sample::{OTHER_ROWS, ROWS, assert_refused, at, fresh, offset, orders, read_all, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::limits::MAX_TABLE_KEY_BYTES;

/// Records and rows of one batch are all there once it was applied.
pub fn a_batch_lands_in_queues_and_tables<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 25);
    assert_eq!(rounds::whole(&engine), 25);
}

/// Of a batch whose last change is refused, none is kept: no record, no queue, no row, no trim, no time.
pub fn a_refused_batch_leaves_nothing<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 3);
    let mut bad = WriteBatch::new(at(1_000));
    bad.append(&orders(0), record("x")).append(&orders(5), record("y")).put(&ROWS, "k", "v");
    bad.delete(&OTHER_ROWS, "count").trim(&orders(0), offset(2));
    bad.put(&ROWS, vec![1; MAX_TABLE_KEY_BYTES + 1], "v");
    assert_refused(engine.apply(bad), ErrorKind::Invalid);
    assert_eq!(rounds::whole(&engine), 3);
    assert_eq!(engine.apply(rounds::round(3)).unwrap().stored_at, at(3));
    assert_eq!(rounds::whole(&engine), 4);
}

/// Moving a record from a table to a queue is one step: delete, append and trim together.
pub fn a_move_is_one_batch<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut held = WriteBatch::new(at(0));
    held.append(&orders(1), record("half")).put(&ROWS, "due", "message");
    engine.apply(held).unwrap();
    let mut moved = WriteBatch::new(at(1));
    moved.delete(&ROWS, "due").append(&orders(0), record("message")).trim(&orders(1), offset(1));
    engine.apply(moved).unwrap();
    assert_eq!(engine.get(&ROWS, b"due").unwrap(), None);
    assert_eq!(read_all(&engine, &orders(0))[0].record.body, "message");
    assert_eq!(engine.bounds(&orders(1)).unwrap(), offset(1)..offset(1));
}

/// Two batches joined are one: their changes in order, at the later of their times.
pub fn joined_batches_are_one<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut joined = rounds::round(0);
    joined.extend(rounds::round(1)).extend(WriteBatch::new(at(-7)));
    let applied = engine.apply(joined).unwrap();
    assert_eq!((applied.stored_at, applied.appends.len(), applied.positions.len()), (at(1), 4, 6));
    assert_eq!(rounds::counted(&engine), 2);
    assert_eq!(engine.bounds(&rounds::double()).unwrap(), offset(0)..offset(4));
}

/// A batch of rows alone, and one of trims alone, are batches with marks of their own.
pub fn batches_without_records_have_marks<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let first = rounds::write(&engine, 0, 1)[0].mark;
    let mut rows = WriteBatch::new(at(1));
    rows.put(&ROWS, "k", "v");
    let second = engine.apply(rows).unwrap().mark;
    let mut trim = WriteBatch::new(at(2));
    trim.trim(&rounds::single(), offset(1));
    let third = engine.apply(trim).unwrap().mark;
    assert!(first < second && second < third, "{first:?} < {second:?} < {third:?}");
    assert!(engine.sync().unwrap() >= third);
}
