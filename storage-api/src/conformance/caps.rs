//! Hard caps: what is too large is refused, and the engine goes on as if it had not been asked.

use bytes::Bytes;

use super::Fixture;
use super::rounds;
use super::sample::{ROWS, append_numbers, assert_refused, at, batch, fresh, orders, read_all, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::limits::{MAX_ATTRIBUTES_BYTES, MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_BODY_BYTES};
use crate::limits::{MAX_TABLE_KEY_BYTES, MAX_TABLE_VALUE_BYTES};
use crate::record::Attributes;

/// Asserts that each batch is refused as invalid and that nothing but that has happened.
fn refuses<F: Fixture>(batches: impl IntoIterator<Item = WriteBatch>) {
    let (mut fixture, engine) = fresh::<F>();
    let mark = rounds::write(&engine, 0, 2)[1].mark;
    for batch in batches {
        assert_refused(engine.apply(batch), ErrorKind::Invalid);
        assert_eq!(engine.apply(WriteBatch::new(at(0))).unwrap().mark, mark);
        assert_eq!(rounds::whole(&engine), 2);
    }
    rounds::write(&engine, 2, 3);
    engine.sync().unwrap();
    assert_eq!(rounds::whole(&engine), 3);
    let engine = fixture.reopen(engine).unwrap();
    assert_eq!(rounds::whole(&engine), 3);
}

fn rows(fill: impl FnOnce(&mut WriteBatch) -> &mut WriteBatch) -> WriteBatch {
    let mut batch = WriteBatch::new(at(9));
    fill(&mut batch);
    batch
}

fn zeros(bytes: usize) -> Bytes {
    Bytes::from(vec![0; bytes])
}

/// A body beyond [`MAX_BODY_BYTES`] is refused.
pub fn a_body_beyond_the_cap_is_refused<F: Fixture>() {
    refuses::<F>([batch(9, &orders(0), vec![record("x"), record(zeros(MAX_BODY_BYTES + 1))])]);
}

/// Attributes beyond [`MAX_ATTRIBUTES_BYTES`] are refused, however they were made.
pub fn attributes_beyond_the_cap_are_refused<F: Fixture>() {
    let block = Attributes::from_stored(zeros(MAX_ATTRIBUTES_BYTES + 1));
    refuses::<F>([batch(9, &orders(0), vec![record("x").with_attributes(block)])]);
}

/// Keys of rows must have 1 to [`MAX_TABLE_KEY_BYTES`] bytes, those of deletions too.
pub fn row_keys_beyond_the_caps_are_refused<F: Fixture>() {
    let (none, long) = (Bytes::new(), zeros(MAX_TABLE_KEY_BYTES + 1));
    refuses::<F>([
        rows(|batch| batch.put(&ROWS, none.clone(), "v")),
        rows(|batch| batch.put(&ROWS, long.clone(), "v")),
        rows(|batch| batch.delete(&ROWS, none.clone())),
        rows(|batch| batch.delete(&ROWS, long.clone())),
    ]);
}

/// A value beyond [`MAX_TABLE_VALUE_BYTES`] is refused.
pub fn a_value_beyond_the_cap_is_refused<F: Fixture>() {
    refuses::<F>([rows(|batch| batch.put(&ROWS, "k", zeros(MAX_TABLE_VALUE_BYTES + 1)))]);
}

/// A batch of more than [`MAX_BATCH_OPERATIONS`] changes is refused, of whatever kinds they are.
pub fn too_many_changes_are_refused<F: Fixture>() {
    let records = vec![record(""); MAX_BATCH_OPERATIONS];
    let mut mixed = batch(9, &orders(0), records.clone());
    mixed.put(&ROWS, "k", "v");
    let mut more = batch(9, &orders(0), records);
    more.append(&orders(1), record(""));
    refuses::<F>([mixed, more]);
}

/// A batch of more than [`MAX_BATCH_BYTES`] is refused, though each of its records is small enough.
pub fn too_many_bytes_are_refused<F: Fixture>() {
    let body = zeros(MAX_BATCH_BYTES / 4);
    refuses::<F>([batch(9, &orders(0), vec![record(body); 5])]);
}

/// What is exactly at a cap is accepted.
pub fn at_the_caps_all_is_well<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut full = batch(0, &orders(0), vec![record("x"); MAX_BATCH_OPERATIONS - 1]);
    full.put(&ROWS, zeros(MAX_TABLE_KEY_BYTES), "v");
    assert_eq!(engine.apply(full).unwrap().positions.len(), MAX_BATCH_OPERATIONS - 1);
    assert!(engine.get(&ROWS, &zeros(MAX_TABLE_KEY_BYTES)).unwrap().is_some());
    assert_eq!(read_all(&engine, &orders(0)).len(), MAX_BATCH_OPERATIONS - 1);
    append_numbers(&engine, &orders(1), 0, 1);
}
