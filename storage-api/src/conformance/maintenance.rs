//! Maintenance: what it may change, and what it may not.

use std::time::Duration;

use super::Fixture;
use super::rounds;
use super::sample::{at, batch, keyed, offset, orders, queue_of, read_all, topic};
use crate::engine::{Engine, KeyQuery, Retention};
use crate::types::{QueueKey, Timestamp};

const AGE: Duration = Duration::from_millis(10_000);
const BODY_BYTES: usize = 16 << 10;

fn by_age() -> Retention {
    Retention { age: AGE, max_bytes: None, disk_watermark_percent: 100 }
}

/// Fills a queue with records of one time, more than twice as much as may stay behind, and says how many they are.
fn fill<F: Fixture>(engine: &F::Engine, queue: &QueueKey, millis: i64) -> u64 {
    let batches = F::EXPIRY_GRAIN_BYTES * 2 / (BODY_BYTES * 4) + 2;
    for _ in 0..batches {
        engine.apply(batch(millis, queue, vec![keyed(vec![3; BODY_BYTES], "old"); 4])).unwrap();
    }
    batches as u64 * 4
}

/// Without anything to expire, maintenance changes no answer, now and after reopening.
pub fn nothing_visible_changes<F: Fixture>() {
    let mut fixture = F::fresh();
    let engine = fixture.open().unwrap();
    for first in [0, 10, 20] {
        rounds::write(&engine, first, first + 10);
        let done = engine.maintain(at(100)).unwrap();
        assert_eq!(done.expired_records, 0);
        assert_eq!(rounds::whole(&engine), first + 10);
    }
    let engine = fixture.reopen(engine).unwrap();
    assert_eq!(rounds::whole(&engine), 30);
    engine.maintain(at(100)).unwrap();
    assert_eq!(rounds::whole(&engine), 30);
}

/// Records older than the retention's age expire, the younger ones stay, and look-ups know only those.
pub fn old_records_expire<F: Fixture>() {
    let mut fixture = F::fresh();
    let engine = fixture.open_with(by_age()).unwrap();
    let (queue, other) = (orders(0), queue_of("quiet", 0));
    let old = fill::<F>(&engine, &queue, 0);
    engine.apply(batch(1, &other, vec![keyed("other", "old")])).unwrap();
    let young = fill::<F>(&engine, &queue, 20_000);
    let first_position = read_all(&engine, &queue)[0].position;
    assert_eq!(engine.maintain(at(10_000)).unwrap().expired_records, 0, "at the age itself nothing is older than it");
    let done = engine.maintain(at(21_000)).unwrap();
    let bounds = engine.bounds(&queue).unwrap();
    assert_eq!(bounds.end, offset(old + young));
    assert!(bounds.start > offset(0) && bounds.start <= offset(old), "{bounds:?} of {old} old records");
    let others_gone = engine.bounds(&other).unwrap().start.get();
    assert_eq!(done.expired_records, bounds.start.get() + others_gone);
    assert!(done.freed_bytes > 0);
    let left = read_all(&engine, &queue);
    assert_eq!(left.len() as u64, bounds.end.get() - bounds.start.get());
    assert_eq!(engine.record_at(first_position).unwrap(), None);
    assert_eq!(engine.offset_at(&queue, Timestamp::MIN).unwrap(), bounds.start);
    let query =
        KeyQuery { topic: &topic("orders"), key: "old", from: Timestamp::MIN, to: Timestamp::MAX, limit: 10_000 };
    assert_eq!(engine.find(query).unwrap().len(), left.len());
}

/// What expired stays so after reopening, and offsets go on where they were.
pub fn expired_records_stay_away<F: Fixture>() {
    let mut fixture = F::fresh();
    let engine = fixture.open_with(by_age()).unwrap();
    let old = fill::<F>(&engine, &orders(0), 0);
    let young = fill::<F>(&engine, &orders(0), 20_000);
    engine.maintain(at(21_000)).unwrap();
    let bounds = engine.bounds(&orders(0)).unwrap();
    assert!(bounds.start > offset(0));
    let engine = fixture.reopen(engine).unwrap();
    assert_eq!(engine.bounds(&orders(0)).unwrap(), bounds);
    assert_eq!(read_all(&engine, &orders(0)).len() as u64, bounds.end.get() - bounds.start.get());
    let applied = engine.apply(batch(20_000, &orders(0), vec![keyed("x", "k")])).unwrap();
    assert_eq!(applied.appends[0].first, offset(old + young));
}

/// Rows do not expire, and neither do younger records of other queues.
pub fn rows_do_not_expire<F: Fixture>() {
    let mut fixture = F::fresh();
    let engine = fixture.open_with(by_age()).unwrap();
    let mut rows = crate::batch::WriteBatch::new(at(0));
    rows.put(&super::sample::ROWS, "k", "v");
    engine.apply(rows).unwrap();
    fill::<F>(&engine, &orders(0), 0);
    fill::<F>(&engine, &orders(0), 20_000);
    engine.apply(batch(20_000, &orders(1), vec![keyed("young", "k")])).unwrap();
    assert!(engine.maintain(at(21_000)).unwrap().expired_records > 0);
    for _ in 0..2 {
        assert_eq!(engine.get(&super::sample::ROWS, b"k").unwrap().as_deref(), Some(&b"v"[..]));
        assert_eq!(read_all(&engine, &orders(1)).len(), 1);
        engine.maintain(at(21_000)).unwrap();
    }
    engine.close().unwrap();
    let engine = fixture.open_with(by_age()).unwrap();
    assert_eq!(engine.get(&super::sample::ROWS, b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

/// When the log is larger than the retention allows, the oldest records go, whatever queue they are in.
pub fn the_oldest_go_when_there_are_too_many_bytes<F: Fixture>() {
    let mut fixture = F::fresh();
    let max_bytes = (F::EXPIRY_GRAIN_BYTES * 2 + BODY_BYTES * 4) as u64;
    let retention = Retention { max_bytes: Some(max_bytes), ..by_age() };
    let engine = fixture.open_with(retention).unwrap();
    let first = fill::<F>(&engine, &orders(0), 0);
    let second = fill::<F>(&engine, &orders(1), 0);
    let third = fill::<F>(&engine, &orders(0), 0);
    let done = engine.maintain(at(1)).unwrap();
    let (a, b) = (engine.bounds(&orders(0)).unwrap(), engine.bounds(&orders(1)).unwrap());
    assert!(done.expired_records > 0 && a.start > offset(0), "{a:?}, {b:?}");
    assert_eq!((a.end, b.end), (offset(first + third), offset(second)));
    assert!(a.start < a.end, "the newest records stay");
    assert!(b.start == offset(0) || a.start >= offset(first), "{a:?}, {b:?}: an older record outlived a younger one");
    assert_eq!(read_all(&engine, &orders(0)).len() as u64, a.end.get() - a.start.get());
}
