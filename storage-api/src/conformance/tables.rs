//! Ordered tables.

use bytes::Bytes;

use super::Fixture;
use super::sample::{OTHER_ROWS, ROWS, append_numbers, at, fresh, orders};
use crate::batch::WriteBatch;
use crate::engine::{Engine, Row};
use crate::limits::{MAX_BATCH_OPERATIONS, MAX_SCAN_ROWS, MAX_TABLE_KEY_BYTES, MAX_TABLE_NAME_BYTES};
use crate::types::Table;

const ALL: usize = 100_000;

fn put(engine: &impl Engine, table: &Table, rows: &[(&[u8], &[u8])]) {
    let mut batch = WriteBatch::new(at(0));
    for (key, value) in rows {
        batch.put(table, key.to_vec(), value.to_vec());
    }
    engine.apply(batch).unwrap();
}

fn keys(rows: Vec<Row>) -> Vec<Bytes> {
    rows.into_iter().map(|(key, _)| key).collect()
}

/// A row that was put is there, one that was not is not, and an empty value is a value.
pub fn rows_that_were_put_are_there<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    assert_eq!(engine.get(&ROWS, b"a").unwrap(), None);
    put(&engine, &ROWS, &[(b"a", b"1"), (b"b", b"")]);
    assert_eq!(engine.get(&ROWS, b"a").unwrap().as_deref(), Some(&b"1"[..]));
    assert_eq!(engine.get(&ROWS, b"b").unwrap().as_deref(), Some(&b""[..]));
    for absent in [&b"c"[..], b"aa", b"", b"A"] {
        assert_eq!(engine.get(&ROWS, absent).unwrap(), None);
    }
}

/// The last value put counts, longer or shorter than the one before.
pub fn the_last_value_counts<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    for value in [&b"one"[..], b"a longer one", b"", b"2"] {
        put(&engine, &ROWS, &[(b"k", value)]);
        assert_eq!(engine.get(&ROWS, b"k").unwrap().as_deref(), Some(value));
        assert_eq!(engine.scan(&ROWS, b"", None, ALL).unwrap(), [("k".into(), Bytes::copy_from_slice(value))]);
    }
}

/// A deleted row is gone until it is put again; deleting what is not there is no error.
pub fn deleted_rows_are_gone<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    put(&engine, &ROWS, &[(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]);
    let mut delete = WriteBatch::new(at(1));
    delete.delete(&ROWS, "b").delete(&ROWS, "never").delete(&OTHER_ROWS, "a");
    engine.apply(delete).unwrap();
    assert_eq!(engine.get(&ROWS, b"b").unwrap(), None);
    assert_eq!(keys(engine.scan(&ROWS, b"", None, ALL).unwrap()), ["a", "c"]);
    put(&engine, &ROWS, &[(b"b", b"again")]);
    assert_eq!(engine.get(&ROWS, b"b").unwrap().as_deref(), Some(&b"again"[..]));
}

/// Within a batch the last word on a row counts.
pub fn within_a_batch_the_last_word_counts<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    put(&engine, &ROWS, &[(b"old", b"0")]);
    let mut batch = WriteBatch::new(at(1));
    batch.put(&ROWS, "a", "1").put(&ROWS, "a", "2");
    batch.put(&ROWS, "b", "1").delete(&ROWS, "b");
    batch.delete(&ROWS, "c").put(&ROWS, "c", "1");
    batch.delete(&ROWS, "old").put(&ROWS, "old", "1").delete(&ROWS, "old");
    engine.apply(batch).unwrap();
    let rows = engine.scan(&ROWS, b"", None, ALL).unwrap();
    assert_eq!(rows, [("a".into(), "2".into()), ("c".into(), "1".into())]);
}

/// Rows come in the order of their keys' bytes, compared as unsigned numbers, a beginning before the whole.
pub fn rows_come_in_byte_order<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let mut expected: Vec<&[u8]> =
        vec![b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"aa", b"b", b"\x7f", b"\x80", b"\xff", b"\xff\xff"];
    for key in expected.iter().rev().step_by(2).chain(expected.iter().rev().skip(1).step_by(2)) {
        put(&engine, &ROWS, &[(key, key)]);
    }
    expected.sort_unstable();
    let rows = engine.scan(&ROWS, b"", None, ALL).unwrap();
    assert_eq!(keys(rows.clone()), expected);
    assert!(rows.iter().all(|(key, value)| key == value));
    for key in expected {
        assert_eq!(engine.get(&ROWS, key).unwrap().as_deref(), Some(key));
    }
}

/// A scan has the row at `from` and not the one at `to`.
pub fn a_scan_is_half_open<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    put(&engine, &ROWS, &[(b"a", b""), (b"b", b""), (b"bb", b""), (b"c", b""), (b"d", b"")]);
    let between = |from: &[u8], to: &[u8]| keys(engine.scan(&ROWS, from, Some(to), ALL).unwrap());
    assert_eq!(between(b"a", b"c"), ["a", "b", "bb"]);
    assert_eq!(between(b"b", b"b\0"), ["b"]);
    assert_eq!(between(b"aa", b"bc"), ["b", "bb"]);
    assert_eq!(between(b"", b"zz"), ["a", "b", "bb", "c", "d"]);
    assert_eq!(keys(engine.scan(&ROWS, b"bb", None, ALL).unwrap()), ["bb", "c", "d"]);
}

/// A range that is empty or runs backwards has no rows.
pub fn an_empty_range_has_no_rows<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    put(&engine, &ROWS, &[(b"a", b""), (b"b", b""), (b"c", b"")]);
    for (from, to) in [("b", "b"), ("c", "a"), ("d", "z"), ("", "")] {
        let rows = engine.scan(&ROWS, from.as_bytes(), Some(to.as_bytes()), ALL).unwrap();
        assert!(rows.is_empty(), "from {from:?} to {to:?}");
    }
    assert!(engine.scan(&ROWS, b"d", None, ALL).unwrap().is_empty());
    assert!(engine.scan(&OTHER_ROWS, b"", None, ALL).unwrap().is_empty());
}

/// A limited scan goes on behind its last key and covers the table once.
pub fn a_limited_scan_goes_on_behind_its_last_key<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let written: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n / 10, 0, n % 10]).collect();
    for key in &written {
        put(&engine, &ROWS, &[(key, b"v"), (&key[..2], b"w")]);
    }
    assert!(engine.scan(&ROWS, b"", None, 0).unwrap().is_empty());
    let (mut from, mut found) = (Vec::new(), Vec::new());
    loop {
        let page = keys(engine.scan(&ROWS, &from, None, 7).unwrap());
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        from = [last, &b"\0"[..]].concat();
        found.extend(page);
    }
    assert_eq!(found.len(), 110);
    assert!(found.is_sorted_by(|a, b| a < b));
}

/// Tables whose names begin alike share no rows, up to the longest name.
pub fn tables_are_kept_apart<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let longest = "t".repeat(MAX_TABLE_NAME_BYTES);
    let tables = ["t", "t.", "tt", "t.a", "t_a", &longest].map(|name| Table::new(name).unwrap());
    for table in &tables {
        put(&engine, table, &[(b"k", table.as_str().as_bytes()), (b".k", b"")]);
    }
    for table in &tables {
        assert_eq!(engine.get(table, b"k").unwrap().as_deref(), Some(table.as_str().as_bytes()));
        assert_eq!(keys(engine.scan(table, b"", None, ALL).unwrap()), [".k", "k"]);
    }
}

/// The longest key and a value of 1 MiB are kept.
pub fn long_keys_and_large_values_are_kept<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let (longest, large) = (vec![0xfe; MAX_TABLE_KEY_BYTES], vec![0xa5; 1 << 20]);
    put(&engine, &ROWS, &[(&longest, &large), (&longest[1..], b"short")]);
    assert!(engine.get(&ROWS, &longest).unwrap().is_some_and(|value| value == large));
    assert_eq!(engine.get(&ROWS, &longest[1..]).unwrap().as_deref(), Some(&b"short"[..]));
    assert_eq!(keys(engine.scan(&ROWS, &longest, None, ALL).unwrap()), [longest]);
}

/// Rows written, overwritten and deleted over many batches, with appends between them, end as the last word says.
pub fn many_rows_over_many_batches<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let key = |n: u32| n.wrapping_mul(0x9e37_79b9).to_be_bytes().to_vec();
    for round in 0..4u32 {
        for chunk in 0..10u32 {
            let mut batch = WriteBatch::new(at(0));
            for n in chunk * 300..(chunk + 1) * 300 {
                if round == 3 && n % 2 == 0 {
                    batch.delete(&ROWS, key(n));
                } else if n % 4 <= round {
                    batch.put(&ROWS, key(n), format!("{round}:{n}"));
                }
            }
            engine.apply(batch).unwrap();
        }
        append_numbers(&engine, &orders(0), 0, 1);
    }
    let rows = engine.scan(&ROWS, b"", None, ALL).unwrap();
    assert_eq!(rows.len(), 1_500);
    for n in 0..3_000 {
        let expected = (n % 2 == 1).then(|| Bytes::from(format!("3:{n}")));
        assert_eq!(engine.get(&ROWS, &key(n)).unwrap(), expected);
    }
}

/// No scan returns more than [`MAX_SCAN_ROWS`] rows.
pub fn no_scan_returns_more_than_the_cap<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    let rows = u32::try_from(MAX_SCAN_ROWS).unwrap() + 10;
    for first in (0..rows).step_by(MAX_BATCH_OPERATIONS) {
        let mut batch = WriteBatch::new(at(0));
        for n in (first..rows).take(MAX_BATCH_OPERATIONS) {
            batch.put(&ROWS, n.to_be_bytes().to_vec(), Bytes::new());
        }
        engine.apply(batch).unwrap();
    }
    let scanned = engine.scan(&ROWS, b"", None, usize::MAX).unwrap();
    assert_eq!(scanned.len(), MAX_SCAN_ROWS);
    let rest = engine.scan(&ROWS, &(rows - 10).to_be_bytes(), None, usize::MAX).unwrap();
    assert_eq!(rest.len(), 10);
}
