//! Closing and the lock.

use super::Fixture;
use super::rounds;
use super::sample::{ROWS, assert_refused, at, fresh, offset, orders, topic};
use crate::batch::WriteBatch;
use crate::engine::{Engine, FetchLimit, FetchRequest, KeyQuery};
use crate::error::ErrorKind;
use crate::types::{LogPosition, Timestamp};

/// Closing twice is closing once.
pub fn a_second_close_does_nothing<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 2);
    engine.close().unwrap();
    engine.close().unwrap();
    drop(engine);
    assert_eq!(rounds::whole(&fixture.open().unwrap()), 2);
}

/// After closing, every operation is refused as closed.
pub fn a_closed_engine_refuses_everything<F: Fixture>() {
    let (_fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 2);
    engine.close().unwrap();
    let closed = ErrorKind::Closed;
    assert_refused(engine.apply(rounds::round(2)), closed);
    assert_refused(engine.sync(), closed);
    assert_refused(engine.maintain(at(0)), closed);
    assert_refused(engine.fetch(FetchRequest::all(&orders(0), offset(0), FetchLimit::messages(1))), closed);
    assert_refused(engine.bounds(&orders(0)), closed);
    assert_refused(engine.queues(), closed);
    assert_refused(engine.offset_at(&orders(0), at(0)), closed);
    assert_refused(engine.record_at(LogPosition::new(0)), closed);
    let (topic, from, to) = (topic("orders"), Timestamp::MIN, Timestamp::MAX);
    assert_refused(engine.find(KeyQuery { topic: &topic, key: "k", from, to, limit: 1 }), closed);
    assert_refused(engine.get(&ROWS, b"k"), closed);
    assert_refused(engine.scan(&ROWS, b"", None, 1), closed);
    assert_refused(engine.apply(WriteBatch::new(at(0))), closed);
}

/// Closing syncs: a crash afterwards loses nothing.
pub fn closing_makes_durable<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 5);
    engine.close().unwrap();
    fixture.crash(engine, 0);
    assert_eq!(rounds::whole(&fixture.open().unwrap()), 5);
}

/// What a read has handed out stays readable after closing, trimming and dropping.
pub fn records_outlive_their_engine<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 5);
    let before = super::sample::read_all(&engine, &rounds::double());
    let bodies: Vec<_> = before.iter().map(|stored| stored.record.body.to_vec()).collect();
    let mut trim = WriteBatch::new(at(9));
    trim.trim(&rounds::double(), offset(10));
    engine.apply(trim).unwrap();
    let engine = fixture.reopen(engine).unwrap();
    engine.close().unwrap();
    drop((engine, fixture));
    assert!(before.iter().zip(bodies).all(|(stored, body)| stored.record.body == body));
}

/// While an engine is open, a second one is refused as locked, and the first goes on.
pub fn a_second_engine_is_locked_out<F: Fixture>() {
    let (mut fixture, engine) = fresh::<F>();
    rounds::write(&engine, 0, 1);
    assert_refused(fixture.open(), ErrorKind::Locked);
    rounds::write(&engine, 1, 2);
    assert_eq!(rounds::whole(&engine), 2);
    engine.close().unwrap();
    let second = fixture.open().unwrap();
    assert_eq!(rounds::whole(&second), 2);
    drop(engine);
    assert_refused(fixture.open(), ErrorKind::Locked);
    assert_eq!(rounds::whole(&second), 2);
}
