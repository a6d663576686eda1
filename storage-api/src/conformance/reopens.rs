//! Closing and opening again: everything is as it was, and goes on where it was.

use super::Fixture;
use super::rounds;
use super::sample::{OTHER_ROWS, ROWS, append_numbers, at, batch, fetch, fresh, keyed, numbers, offset, orders};
use super::sample::{read_all, record, tagged, topic};
use crate::batch::WriteBatch;
use crate::engine::{Engine, FetchLimit, FetchRequest, KeyQuery, TagHashes};
use crate::record::tag_hash;
use crate::types::{LogPosition, Timestamp};

/// A store in which nothing was ever stored opens again as such.
pub fn an_empty_store_reopens_empty<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    let engine = fixture.reopen(engine).unwrap();
    assert!(engine.queues().unwrap().is_empty());
    assert_eq!(rounds::whole(&engine), 0);
    rounds::write(&engine, 0, 1);
    assert_eq!(rounds::whole(&engine), 1);
}

/// Records, times, positions and rows are the same after reopening, twice.
pub fn everything_is_the_same<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    rounds::write(&engine, 0, 30);
    let before = (read_all(&engine, &rounds::single()), read_all(&engine, &rounds::double()));
    for _ in 0..2 {
        engine = fixture.reopen(engine).unwrap();
        assert_eq!(rounds::whole(&engine), 30);
        assert_eq!((read_all(&engine, &rounds::single()), read_all(&engine, &rounds::double())), before);
    }
}

/// Offsets, positions and times go on where they were, each time.
pub fn offsets_and_positions_go_on<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    let mut last = None::<LogPosition>;
    for session in 0..4 {
        for applied in rounds::write(&engine, session * 5, session * 5 + 5) {
            for position in applied.positions {
                assert!(last < Some(position), "positions rise over sessions: {last:?}, {position}");
                last = Some(position);
            }
        }
        engine = fixture.reopen(engine).unwrap();
    }
    assert_eq!(rounds::whole(&engine), 20);
    assert_eq!(engine.apply(batch(0, &orders(8), vec![record("late")])).unwrap().stored_at, at(19));
}

/// Trims stay; a queue that was trimmed to its end goes on counting.
pub fn trims_stay<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    append_numbers(&engine, &orders(0), 0, 10);
    append_numbers(&engine, &orders(1), 0, 10);
    let mut trim = WriteBatch::new(at(1));
    trim.trim(&orders(0), offset(4)).trim(&orders(1), offset(10));
    engine.apply(trim).unwrap();
    for _ in 0..2 {
        engine = fixture.reopen(engine).unwrap();
        assert_eq!(engine.bounds(&orders(0)).unwrap(), offset(4)..offset(10));
        assert_eq!(engine.bounds(&orders(1)).unwrap(), offset(10)..offset(10));
        assert_eq!(numbers(&read_all(&engine, &orders(0))), [4, 5, 6, 7, 8, 9]);
    }
    assert_eq!(append_numbers(&engine, &orders(1), 10, 1).appends[0].first, offset(10));
}

/// Rows that were overwritten or deleted stay so.
pub fn rows_stay_as_the_last_word_said<F: Fixture>() {
    let (mut fixture, mut engine) = fresh::<F>();
    let mut first = WriteBatch::new(at(0));
    first.put(&ROWS, "a", "1").put(&ROWS, "b", "1").put(&ROWS, "c", "1").put(&OTHER_ROWS, "a", "other");
    engine.apply(first).unwrap();
    engine = fixture.reopen(engine).unwrap();
    let mut second = WriteBatch::new(at(1));
    second.put(&ROWS, "a", "2").delete(&ROWS, "b");
    engine.apply(second).unwrap();
    for _ in 0..2 {
        engine = fixture.reopen(engine).unwrap();
        let rows = engine.scan(&ROWS, b"", None, 10).unwrap();
        assert_eq!(rows, [("a".into(), "2".into()), ("c".into(), "1".into())]);
        assert_eq!(engine.get(&OTHER_ROWS, b"a").unwrap().as_deref(), Some(&b"other"[..]));
    }
}

/// Look-ups by key, tag, time and position answer as before.
pub fn lookups_answer_as_before<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    let mut positions = Vec::new();
    for n in 0..20 {
        let records = vec![keyed(format!("{n}"), "k"), tagged("t", if n % 2 == 0 { "even" } else { "odd" })];
        positions.extend(engine.apply(batch(n * 10, &orders(0), records)).unwrap().positions);
    }
    let ask = |engine: &F::Engine| {
        let query = KeyQuery { topic: &topic("orders"), key: "k", from: at(50), to: Timestamp::MAX, limit: 7 };
        let tags = TagHashes::AnyOf(vec![tag_hash("odd")]);
        let queue = orders(0);
        let odd = FetchRequest { tags: &tags, ..FetchRequest::all(&queue, offset(0), FetchLimit::messages(100)) };
        let times: Vec<_> = (0..20).map(|n| engine.offset_at(&orders(0), at(n * 10 - 3)).unwrap()).collect();
        let placed: Vec<_> = positions.iter().map(|position| engine.record_at(*position).unwrap()).collect();
        (engine.find(query).unwrap(), engine.fetch(odd).unwrap(), times, placed)
    };
    let before = ask(&engine);
    assert_eq!((before.0.len(), before.1.records.len()), (7, 10));
    assert!(before.3.iter().all(Option::is_some));
    let engine = fixture.reopen(engine).unwrap();
    assert!(ask(&engine) == before, "an answer differs after reopening");
}

/// Large records at the end, where files are cut to size, are whole after reopening.
pub fn a_large_last_record_is_whole<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    let body: Vec<u8> = (0..(2u32 << 20)).map(|n| u8::try_from(n % 253).unwrap()).collect();
    engine.apply(batch(0, &orders(0), vec![record("small"), record(body.clone())])).unwrap();
    let engine = fixture.reopen(engine).unwrap();
    let stored = read_all(&engine, &orders(0));
    assert!(stored.len() == 2 && stored[1].record.body == body, "the large record differs");
}

/// Dropping an engine without closing it frees the store, and what was synced is there.
pub fn an_engine_that_was_only_dropped_can_be_reopened<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 5);
    engine.sync().unwrap();
    drop(engine);
    let engine = fixture.open().unwrap();
    assert_eq!(rounds::whole(&engine), 5);
    assert_eq!(fetch(&engine, &rounds::single(), 4, 1).records.len(), 1);
}
