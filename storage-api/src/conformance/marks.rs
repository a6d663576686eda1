//! Marks: how far batches are applied and durable.

use super::Fixture;
use super::rounds;
use super::sample::{at, fresh};
use crate::batch::WriteBatch;
use crate::engine::Engine;

/// Every batch that is not empty has a mark above those before it.
pub fn marks_rise_with_every_batch<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let marks: Vec<_> = rounds::write(&engine, 0, 20).into_iter().map(|applied| applied.mark).collect();
    assert!(marks.is_sorted_by(|a, b| a < b), "marks rise: {marks:?}");
}

/// A sync covers every batch applied before it, and `durable` says so.
pub fn a_sync_covers_what_was_applied<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for n in 0..3 {
        let last = rounds::write(&engine, n * 4, n * 4 + 4)[3].mark;
        let synced = engine.sync().unwrap();
        assert!(synced >= last, "{synced:?} covers {last:?}");
        assert!(engine.durable() >= synced);
    }
}

/// A sync with nothing to do succeeds and takes nothing back.
pub fn a_sync_without_writes_succeeds<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let first = engine.sync().unwrap();
    let written = rounds::write(&engine, 0, 1)[0].mark;
    assert!(written > first);
    let synced = engine.sync().unwrap();
    assert!(engine.sync().unwrap() >= synced);
}

/// The durable mark never falls, whatever is done in between.
pub fn the_durable_mark_never_falls<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut last = engine.durable();
    for n in 0..24 {
        match n % 6 {
            0 => assert!(engine.sync().unwrap() >= last),
            3 => assert_eq!(engine.maintain(at(100)).unwrap().expired_records, 0),
            5 => drop(engine.apply(WriteBatch::new(at(0))).unwrap()),
            _ => drop(rounds::write(&engine, n, n + 1)),
        }
        let now = engine.durable();
        assert!(now >= last, "{now:?} after {last:?}");
        last = now;
    }
}

/// After reopening, what is there counts as durable: new marks are above what `durable` says.
pub fn a_reopened_store_is_durable<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 3);
    let engine = fixture.reopen(engine).unwrap();
    let before = engine.durable();
    let nothing = engine.apply(WriteBatch::new(at(9))).unwrap();
    assert!(before >= nothing.mark, "everything that was found is durable: {before:?}, {:?}", nothing.mark);
    let written = rounds::write(&engine, 3, 4)[0].mark;
    assert!(written > before);
    assert!(engine.sync().unwrap() >= written);
}
