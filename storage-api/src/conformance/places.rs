//! Rows that name a record of their own batch by its queue offset.

use bytes::Bytes;

use super::Fixture;
use super::sample::{ROWS, append_numbers, assert_refused, at, fresh, offset, orders, queue_of, read_all, record};
use crate::batch::WriteBatch;
use crate::engine::Engine;
use crate::error::ErrorKind;
use crate::limits::{MAX_TABLE_KEY_BYTES, MAX_TABLE_VALUE_BYTES};

const SEEDS: std::ops::Range<u64> = 0..8;

/// A row's value is its prefix and the offset of the record that it was put for.
pub fn a_row_names_its_record<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut first = WriteBatch::new(at(0));
    first.append_all(&orders(0), vec![record("a"), record("b"), record("c")]);
    first.put_placed(&ROWS, "b", "prefix", 0, 1).put_placed(&ROWS, "a", "", 0, 0).put(&ROWS, "plain", "v");
    let applied = engine.apply(first).unwrap();
    assert_eq!(applied.appends[0].first, offset(0));
    assert_eq!(row(&engine, "b"), placed("prefix", 1));
    assert_eq!(row(&engine, "a"), placed("", 0));
    assert_eq!(row(&engine, "plain"), "v");
    let mut second = WriteBatch::new(at(1));
    second.append(&orders(0), record("d")).put_placed(&ROWS, "d", "p", 0, 0);
    engine.apply(second).unwrap();
    assert_eq!(row(&engine, "d"), placed("p", 3));
    assert_eq!(read_all(&engine, &orders(0))[3].record.body, "d");
}

/// A second append to the same queue counts on behind the first, whatever stands between them.
pub fn later_appends_count_on<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 5);
    let mut batch = WriteBatch::new(at(1));
    batch.append_all(&orders(0), vec![record("5"), record("6")]);
    batch.append_all(&orders(1), vec![record("0")]);
    batch.append_all(&orders(0), vec![record("7"), record("8")]);
    assert_eq!(batch.append_operations(), 3);
    for (key, append, number) in [("5", 0, 0), ("6", 0, 1), ("0", 1, 0), ("7", 2, 0), ("8", 2, 1)] {
        batch.put_placed(&ROWS, key, "", append, number);
    }
    engine.apply(batch).unwrap();
    for (key, expected) in [("5", 5), ("6", 6), ("0", 0), ("7", 7), ("8", 8)] {
        assert_eq!(row(&engine, key), placed("", expected), "{key}");
    }
}

/// Every queue has its own count, those that begin with this batch among them.
pub fn queues_are_counted_apart<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut expected = Vec::new();
    for round in 0..4u64 {
        let mut batch = WriteBatch::new(at(0));
        for id in (0..4u32).filter(|id| u64::from(*id) <= round) {
            let name = if id % 2 == 0 { "orders" } else { "payments" };
            let number = batch.append_operations();
            batch.append_all(&queue_of(name, id), vec![record("x"); usize::try_from(id).unwrap() + 1]);
            let key = format!("{round}/{id}");
            batch.put_placed(&ROWS, key.clone(), "", number, usize::try_from(id).unwrap());
            expected.push((key, (round - u64::from(id)) * u64::from(id + 1) + u64::from(id)));
        }
        engine.apply(batch).unwrap();
    }
    for (key, expected) in expected {
        assert_eq!(row(&engine, &key), placed("", expected), "{key}");
    }
}

/// Joined with another batch, a row still names the record that it was put for.
pub fn joined_batches_keep_their_places<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let part = |name: &str, before: usize| {
        let mut part = WriteBatch::new(at(0));
        part.append_all(&orders(0), vec![record("x"); before]);
        part.append(&orders(1), record("y")).append(&orders(0), record(name.to_owned()));
        let last = part.append_operations() - 1;
        part.put_placed(&ROWS, name.to_owned(), name.to_owned(), last, 0);
        part
    };
    let mut joined = part("a", 2);
    joined.extend(WriteBatch::new(at(0))).extend(part("b", 0));
    let mut tail = part("c", 1);
    tail.extend(part("d", 3));
    joined.extend(tail);
    engine.apply(joined).unwrap();
    let stored = read_all(&engine, &orders(0));
    for (name, expected) in [("a", 2), ("b", 3), ("c", 5), ("d", 9)] {
        assert_eq!(row(&engine, name), placed(name, expected));
        assert_eq!(stored[usize::try_from(expected).unwrap()].record.body, name);
    }
}

/// A trim changes no end, neither an earlier one nor one in the same batch.
pub fn trimmed_queues_count_on<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 6);
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&orders(0), offset(6));
    engine.apply(trim).unwrap();
    let mut batch = WriteBatch::new(at(1));
    batch.append(&orders(0), record("6")).put_placed(&ROWS, "6", "", 0, 0).trim(&orders(0), offset(7));
    batch.append(&orders(0), record("7")).put_placed(&ROWS, "7", "", 1, 0);
    engine.apply(batch).unwrap();
    assert_eq!((row(&engine, "6"), row(&engine, "7")), (placed("", 6), placed("", 7)));
    assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(7)..offset(8));
}

/// After a reopening offsets go on in rows as in queues, and the rows of before are the same.
pub fn a_reopened_store_counts_on<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    for round in 0..4u64 {
        let mut batch = WriteBatch::new(at(0));
        batch.append_all(&orders(0), vec![record("x"), record("y")]);
        batch.put_placed(&ROWS, round.to_be_bytes().to_vec(), "p", 0, 1);
        engine.apply(batch).unwrap();
        engine = fixture.reopen(engine).unwrap();
    }
    let rows = engine.scan(&ROWS, b"", None, 10).unwrap();
    let values: Vec<_> = rows.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, [1, 3, 5, 7].map(|expected| placed("p", expected)));
}

/// A later change of the same row wins, and a placed row wins over an earlier one.
pub fn the_last_word_on_a_row_counts<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut batch = WriteBatch::new(at(0));
    batch.append(&orders(0), record("x"));
    batch.put(&ROWS, "a", "plain").put_placed(&ROWS, "a", "", 0, 0);
    batch.put_placed(&ROWS, "b", "", 0, 0).put(&ROWS, "b", "plain");
    batch.put_placed(&ROWS, "c", "", 0, 0).delete(&ROWS, "c");
    engine.apply(batch).unwrap();
    assert_eq!((row(&engine, "a"), row(&engine, "b")), (placed("", 0), Bytes::from("plain")));
    assert_eq!(engine.get(&ROWS, b"c").unwrap(), None);
}

/// A row for a record that is not before it in the batch, and one beyond the caps, are refused with all of the batch.
pub fn a_place_without_a_record_is_refused<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let refused = |fill: &dyn Fn(&mut WriteBatch)| {
        let mut batch = WriteBatch::new(at(0));
        fill(&mut batch);
        assert_refused(engine.apply(batch), ErrorKind::Invalid);
    };
    refused(&|batch| {
        batch.put_placed(&ROWS, "k", "", 0, 0);
    });
    refused(&|batch| {
        batch.append(&orders(0), record("x")).put_placed(&ROWS, "k", "", 0, 1);
    });
    refused(&|batch| {
        batch.append(&orders(0), record("x")).put_placed(&ROWS, "k", "", 1, 0);
    });
    refused(&|batch| {
        batch.put_placed(&ROWS, "k", "", 0, 0).append(&orders(0), record("x"));
    });
    refused(&|batch| {
        let key = vec![1; MAX_TABLE_KEY_BYTES + 1];
        batch.append(&orders(0), record("x")).put_placed(&ROWS, key, "", 0, 0);
    });
    refused(&|batch| {
        let prefix = vec![1; MAX_TABLE_VALUE_BYTES - 7];
        batch.append(&orders(0), record("x")).put_placed(&ROWS, "k", prefix, 0, 0);
    });
    assert!(engine.queues().unwrap().is_empty());
    assert!(engine.scan(&ROWS, b"", None, 1).unwrap().is_empty());
}

/// After a crash a row is there exactly when its record is, and names it.
pub fn rows_and_records_crash_together<F: Fixture>() {
    for seed in SEEDS {
        let (mut fixture, engine) = fresh::<F>();
        for round in 0..9u64 {
            let mut batch = WriteBatch::new(at(0));
            batch.append(&orders(1), record("other")).append(&orders(0), record(round.to_be_bytes().to_vec()));
            batch.put_placed(&ROWS, round.to_be_bytes().to_vec(), "", 1, 0);
            engine.apply(batch).unwrap();
            if round == 4 {
                engine.sync().unwrap();
            }
        }
        fixture.crash(engine, seed);
        let engine = fixture.open().unwrap();
        let records = read_all(&engine, &orders(0));
        let rows = engine.scan(&ROWS, b"", None, 100).unwrap();
        assert!(records.len() >= 5 && rows.len() == records.len(), "{} rows, {} records", rows.len(), records.len());
        for (stored, (key, value)) in records.iter().zip(&rows) {
            assert_eq!((&stored.record.body, &placed("", stored.offset.get())), (key, value));
        }
    }
}

fn row(engine: &impl Engine, key: &str) -> Bytes {
    engine.get(&ROWS, key.as_bytes()).unwrap().unwrap_or_else(|| panic!("row {key} is there"))
}

/// The value of a row that names an offset.
fn placed(prefix: &str, offset: u64) -> Bytes {
    [prefix.as_bytes(), &offset.to_be_bytes()].concat().into()
}
