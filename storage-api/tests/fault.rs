//! The engine that fails on request fails as it was told, and keeps the contract while it does.

use cuemq_storage_api::fault::{Fault, FaultEngine, Faults, Operation};
use cuemq_storage_api::{
    Engine, ErrorKind, FetchLimit, FetchRequest, Mark, MemoryEngine, MemoryStore, Outcome, QueueId, QueueKey,
    QueueOffset, Record, Result, Table, Timestamp, TopicName, WriteBatch,
};

const ROWS: Table = Table::named("rows");
const NOW: Timestamp = Timestamp::from_millis(1_000);

fn queue() -> QueueKey {
    QueueKey::new(TopicName::new("orders").expect("a legal name"), QueueId::FIRST)
}

fn one() -> WriteBatch {
    let mut batch = WriteBatch::new(NOW);
    batch.append(&queue(), Record::new("x", NOW));
    batch
}

fn stored(engine: &impl Engine) -> u64 {
    engine.bounds(&queue()).expect("no fault is scripted for bounds").end.get()
}

fn failure<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, Outcome) {
    let error = result.expect_err("the call fails on request");
    (error.kind(), error.outcome())
}

#[test]
fn without_faults_it_is_the_engine_inside() {
    let engine = FaultEngine::new(MemoryEngine::new());
    let mark = engine.apply(one()).unwrap().mark;
    assert_eq!(engine.sync().unwrap(), mark);
    assert_eq!(engine.durable(), mark);
    assert_eq!(stored(engine.inner()), 1);
    assert_eq!(engine.capabilities(), engine.inner().capabilities());
    engine.close().unwrap();
    assert_eq!(failure(engine.sync()), (ErrorKind::Closed, Outcome::NotStored));
}

#[test]
fn a_refused_write_changes_nothing_and_poisons_nothing() {
    let engine = FaultEngine::new(MemoryEngine::new());
    engine.faults().fail(Operation::Apply, 2, Fault::Refuse(ErrorKind::Full));
    engine.apply(one()).unwrap();
    assert_eq!(failure(engine.apply(one())), (ErrorKind::Full, Outcome::NotStored));
    assert_eq!(stored(&engine), 1);
    engine.apply(one()).unwrap();
    assert_eq!(stored(&engine), 2);
}

#[test]
fn a_torn_write_poisons_whether_it_landed_or_not() {
    for (fault, landed) in [(Fault::LandThenFail(ErrorKind::Io), 2), (Fault::LoseThenFail(ErrorKind::Io), 1)] {
        let engine = FaultEngine::new(MemoryEngine::new());
        engine.apply(one()).unwrap();
        engine.faults().fail(Operation::Apply, 1, fault);
        assert_eq!(failure(engine.apply(one())), (ErrorKind::Io, Outcome::Unknown));
        assert_eq!(failure(engine.apply(one())), (ErrorKind::Poisoned, Outcome::NotStored));
        assert_eq!(failure(engine.sync()), (ErrorKind::Poisoned, Outcome::NotStored));
        assert_eq!(failure(engine.maintain(NOW)), (ErrorKind::Poisoned, Outcome::NotStored));
        assert_eq!(stored(&engine), landed, "reads go on");
        assert_eq!(engine.durable(), Mark(0));
    }
}

#[test]
fn a_failed_sync_poisons_until_the_engine_is_reopened() {
    let store = MemoryStore::new();
    let engine = FaultEngine::new(MemoryEngine::open(&store).unwrap());
    let faults = engine.faults();
    engine.apply(one()).unwrap();
    faults.fail(Operation::Sync, 1, Fault::Refuse(ErrorKind::Io));
    assert_eq!(failure(engine.sync()).0, ErrorKind::Io);
    assert_eq!(failure(engine.sync()).0, ErrorKind::Poisoned);
    store.crash(0);
    drop(engine);
    let reopened = FaultEngine::with_faults(MemoryEngine::open(&store).unwrap(), faults.clone());
    assert_eq!(stored(&reopened), 0);
    reopened.apply(one()).unwrap();
    reopened.sync().unwrap();
    assert_eq!(faults.calls(Operation::Sync), 3);
}

#[test]
fn reads_fail_without_poisoning() {
    let engine = FaultEngine::new(MemoryEngine::new());
    let faults = engine.faults();
    engine.apply(one()).unwrap();
    for operation in [Operation::Fetch, Operation::Get, Operation::Scan] {
        faults.fail(operation, 1, Fault::Refuse(ErrorKind::Corrupt));
    }
    let queue = queue();
    let fetch = || engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, FetchLimit::messages(1)));
    assert_eq!(failure(fetch()).0, ErrorKind::Corrupt);
    assert_eq!(failure(engine.get(&ROWS, b"k")).0, ErrorKind::Corrupt);
    assert_eq!(failure(engine.scan(&ROWS, b"", None, 1)).0, ErrorKind::Corrupt);
    assert_eq!(fetch().unwrap().records.len(), 1);
    engine.apply(one()).unwrap();
}

#[test]
fn a_disk_stays_full_until_it_is_not() {
    let engine = FaultEngine::new(MemoryEngine::new());
    let faults = engine.faults();
    faults.fail_always(Operation::Apply, Fault::Refuse(ErrorKind::Full));
    for _ in 0..3 {
        assert_eq!(failure(engine.apply(one())).0, ErrorKind::Full);
    }
    faults.clear(Operation::Apply);
    engine.apply(one()).unwrap();
    assert_eq!((stored(&engine), faults.calls(Operation::Apply)), (1, 4));
}

#[test]
fn calls_wait_at_a_gate() {
    let engine = FaultEngine::with_faults(MemoryEngine::new(), Faults::new());
    let faults = engine.faults();
    let gate = faults.hold(Operation::Apply);
    std::thread::scope(|scope| {
        let calls = [(); 3].map(|()| scope.spawn(|| engine.apply(one()).map(|applied| applied.mark)));
        gate.wait_for(3);
        assert_eq!((stored(&engine), faults.calls(Operation::Apply)), (0, 3));
        gate.let_pass(1);
        drop(gate);
        let mut marks: Vec<_> = calls.into_iter().map(|call| call.join().unwrap().unwrap()).collect();
        marks.sort();
        assert_eq!(marks, [Mark(1), Mark(2), Mark(3)]);
    });
    engine.apply(one()).unwrap();
    assert_eq!(stored(&engine), 4);
}

#[test]
fn a_gate_lets_as_many_pass_as_it_is_told() {
    let engine = FaultEngine::new(MemoryEngine::new());
    let gate = engine.faults().hold(Operation::Sync);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| engine.sync());
        gate.wait_for(1);
        gate.let_pass(1);
        first.join().unwrap().unwrap();
        let second = scope.spawn(|| engine.sync());
        gate.wait_for(1);
        assert!(!second.is_finished());
        drop(gate);
        second.join().unwrap().unwrap();
    });
}
