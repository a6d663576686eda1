//! What a reopened engine knows.

use cuemq_storage_api::{Engine, ErrorKind, LogPosition, Table};

use super::*;

const TABLE: Table = Table::named("t");

#[test]
fn offsets_positions_times_and_rows_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (queue("orders", 0), queue("orders", 1));
    for round in 0..3u64 {
        let engine = open(directory.path());
        let mut batch = batch(&one, round * 10, round * 10 + 10);
        batch.append(&two, Record::new("two", at(0))).put(&TABLE, "row", format!("{round}"));
        let applied = engine.apply(batch).unwrap();
        assert_eq!(applied.appends[0].first, offset(round * 10));
        assert_eq!(applied.positions[0], LogPosition::new(round * 12));
        let late = engine.apply(super::batch(&two, 0, 1)).unwrap();
        assert_eq!(late.stored_at, at(i64::try_from(round * 10).unwrap()), "stored times never fall");
        engine
            .apply({
                let mut batch = WriteBatch::new(at(0));
                batch.trim(&two, offset(round * 2 + 1));
                batch
            })
            .unwrap();
        assert_eq!(engine.bounds(&two).unwrap(), offset(round * 2 + 1)..offset(round * 2 + 2));
        match round {
            0 => engine.close().unwrap(),
            1 => drop(engine),
            _ => {
                assert_eq!(bodies(&engine, &one), (0..30).map(|body| body.to_string()).collect::<Vec<_>>());
                assert_eq!(engine.get(&TABLE, b"row").unwrap().as_deref(), Some(&b"2"[..]));
                let queues = engine.queues().unwrap();
                assert_eq!(queues, [(one.clone(), offset(0)..offset(30)), (two.clone(), offset(5)..offset(6))]);
            }
        }
    }
}

#[test]
fn a_queue_emptied_by_trim_never_reuses_an_offset() {
    let directory = tempfile::tempdir().unwrap();
    let queue = queue("t", 0);
    let engine = open(directory.path());
    engine.apply(batch(&queue, 0, 5)).unwrap();
    let mut trim = WriteBatch::new(at(0));
    trim.trim(&queue, offset(99));
    engine.apply(trim).unwrap();
    assert_eq!(engine.maintain(at(10)).unwrap().freed_bytes, 5);
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(engine.bounds(&queue).unwrap(), offset(5)..offset(5));
    let applied = engine.apply(batch(&queue, 5, 6)).unwrap();
    assert_eq!((applied.appends[0].first, applied.positions[0]), (offset(5), LogPosition::new(5)));
    assert_eq!(bodies(&engine, &queue), ["5"]);
}

#[test]
fn closing_releases_the_directory_and_ends_everything() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    let error = LsmEngine::open(directory.path(), &small()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
    let queue = queue("t", 0);
    engine.apply(batch(&queue, 0, 1)).unwrap();
    engine.close().unwrap();
    engine.close().unwrap();
    assert_eq!(engine.apply(batch(&queue, 1, 2)).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(engine.sync().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(engine.bounds(&queue).unwrap_err().kind(), ErrorKind::Closed);
    let next = open(directory.path());
    assert_eq!(bodies(&next, &queue), ["0"]);
}

#[test]
fn a_closed_store_has_nothing_to_replay_and_later_batches_win() {
    let directory = tempfile::tempdir().unwrap();
    let queue = queue("t", 0);
    for session in 0..3u64 {
        let engine = open(directory.path());
        assert_eq!(engine.durable().0, session * 4);
        let row = engine.get(&TABLE, b"row").unwrap();
        assert_eq!(row.map(|row| row[0]), session.checked_sub(1).map(|session| u8::try_from(session).unwrap()));
        for _ in 0..3 {
            let mut batch = WriteBatch::new(at(0));
            batch.append(&queue, Record::new(vec![7; 1 << 20], at(0)));
            engine.apply(batch).unwrap();
        }
        let mut batch = WriteBatch::new(at(0));
        batch.put(&TABLE, "row", vec![u8::try_from(session).unwrap()]);
        engine.apply(batch).unwrap();
        engine.close().unwrap();
        let journals = std::fs::read_dir(directory.path().join("store")).unwrap().map(Result::unwrap);
        let journals: Vec<_> = journals.filter(|entry| entry.path().extension().is_some()).collect();
        assert_eq!(journals.len(), 1, "{journals:?}");
        assert_eq!(journals[0].metadata().unwrap().len(), 0);
    }
    let engine = open(directory.path());
    assert_eq!(all(&engine, &queue).len(), 9);
    assert_eq!(engine.maintain(at(0)).unwrap(), Maintenance::default());
}

#[test]
fn a_new_store_is_small() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    engine.apply(batch(&queue("t", 0), 0, 10)).unwrap();
    engine.sync().unwrap();
    let mut blocks = 0;
    let mut folders = vec![directory.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => blocks += std::os::unix::fs::MetadataExt::blocks(&entry.metadata().unwrap()),
            }
        }
    }
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks of 512 bytes");
}
