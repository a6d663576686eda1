//! Crashes: some first part of the batches is there, at least what was durable, each batch whole.
//!
//! Fixtures over real files lose nothing when a process ends, and pass these cases with everything in place.

use super::Fixture;
use super::rounds;
use super::sample::{ROWS, append_numbers, at, fresh, numbers, offset, orders, read_all, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;

/// Each case is tried with these seeds, the first of which loses as much as it can.
const SEEDS: [u64; 4] = [0, 1, 5, 11];

/// Everything synced is there after a crash, and nothing half.
pub fn what_was_synced_stays<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 6);
        let mark = engine.sync().unwrap();
        assert!(engine.durable() >= mark);
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        assert_eq!(rounds::whole(&engine), 6, "seed {seed}");
    }
}

/// Of what was not synced the last batches may go, but never one from between, and never half of one.
pub fn a_suffix_may_go_but_never_half_a_batch<F: Fixture>() {
    for seed in 0..14 {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 3);
        engine.sync().unwrap();
        rounds::write(&engine, 3, 15);
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let survived = rounds::whole(&engine);
        assert!((3..=15).contains(&survived), "{survived} rounds are there after seed {seed}");
    }
}

/// A crash before the first sync leaves an empty store or the first batches.
pub fn a_crash_before_the_first_sync_leaves_a_store<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 4);
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        assert!(rounds::whole(&engine) <= 4);
    }
}

/// After a crash, offsets go on without a hole, and what is written then is synced and kept as ever.
pub fn writing_goes_on_after_a_crash<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 2);
        engine.sync().unwrap();
        rounds::write(&engine, 2, 9);
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let survived = rounds::whole(&engine);
        let applied = rounds::write(&engine, survived, survived + 5);
        assert_eq!(applied[0].appends[0].first, offset(survived));
        engine.sync().unwrap();
        fixture.crash(engine, 0);
        let engine = fixture.open().unwrap();
        assert_eq!(rounds::whole(&engine), survived + 5);
    }
}

/// Crash after crash, each with a little written before it, never loses what was synced and never leaves a hole.
pub fn crashes_may_follow_each_other<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    let mut durable = 0;
    for seed in 0..8 {
        let found = rounds::whole(&engine);
        assert!(found >= durable, "{found} rounds of at least {durable}");
        rounds::write(&engine, found, found + seed % 3);
        if seed % 2 == 0 {
            engine.sync().unwrap();
            durable = found + seed % 3;
        }
        rounds::write(&engine, found + seed % 3, found + seed % 3 + 2);
        fixture.crash(engine, seed);
        engine = fixture.open().unwrap();
    }
    assert!(rounds::whole(&engine) >= durable);
}

/// What a reopened engine found is as safe as what it wrote: a crash right after opening loses nothing durable.
pub fn a_crash_after_reopening_keeps_what_was_there<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 5);
    let engine = fixture.reopen(engine).unwrap();
    assert_eq!(rounds::whole(&engine), 5);
    fixture.crash(engine, 0);
    let engine = fixture.open().unwrap();
    assert_eq!(rounds::whole(&engine), 5);
    rounds::write(&engine, 5, 8);
    fixture.crash(engine, 0);
    let engine = fixture.open().unwrap();
    assert!((5..=8).contains(&rounds::whole(&engine)));
}

/// What survived a crash and was read after it survives the next crash, once a sync has covered it.
pub fn what_survived_is_synced_by_the_next_sync<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 7);
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let survived = rounds::whole(&engine);
        engine.sync().unwrap();
        fixture.crash(engine, 0);
        let engine = fixture.open().unwrap();
        assert_eq!(rounds::whole(&engine), survived);
    }
}

/// A trim and a deletion that were synced stay done; a trim that was not is done whole or not at all.
pub fn synced_trims_and_deletions_stay<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        append_numbers(&engine, &orders(0), 0, 10);
        let change = |trim: u64, delete: &'static str, put: &'static str| {
            let mut batch = WriteBatch::new(at(1));
            batch.trim(&orders(0), offset(trim)).delete(&ROWS, delete).put(&ROWS, put, "v");
            engine.apply(batch).unwrap();
        };
        change(3, "none", "a");
        change(5, "a", "b");
        engine.sync().unwrap();
        change(8, "b", "c");
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let min = engine.bounds(&orders(0)).unwrap().start.get();
        let expected = match min {
            5 => "b",
            8 => "c",
            other => panic!("the minimum is {other}, and only 5 and 8 ever were"),
        };
        let rows = engine.scan(&ROWS, b"", None, 10).unwrap();
        assert_eq!(rows, [(expected.into(), "v".into())]);
        assert_eq!(numbers(&read_all(&engine, &orders(0))), (min..10).collect::<Vec<_>>());
    }
}

/// A large batch is there whole or not at all, and so are the small ones before it.
pub fn a_large_batch_is_whole_or_gone<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        rounds::write(&engine, 0, 2);
        engine.sync().unwrap();
        rounds::write(&engine, 2, 3);
        let mut large = WriteBatch::new(at(9));
        for _ in 0..40 {
            large.append(&orders(6), record(vec![1; 10_000])).append(&orders(7), record(vec![2; 5_000]));
        }
        engine.apply(large).unwrap();
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let (left, right) = (read_all(&engine, &orders(6)).len(), read_all(&engine, &orders(7)).len());
        assert!((left, right) == (0, 0) || (left, right) == (40, 40), "{left} and {right} records");
        let small = rounds::counted(&engine);
        assert!(small == 3 || (small == 2 && left == 0), "no hole before the large batch");
    }
}

/// Stored times do not fall over a crash: a record after it is no older than any that survived.
pub fn times_do_not_fall_over_a_crash<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 50);
    engine.sync().unwrap();
    fixture.crash(engine, 0);
    let engine = fixture.open().unwrap();
    let mut early = WriteBatch::new(at(-1_000));
    early.append(&orders(3), record("x"));
    assert_eq!(engine.apply(early).unwrap().stored_at, at(49));
}
