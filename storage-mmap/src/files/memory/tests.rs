use super::*;
use std::io::ErrorKind;

fn write(files: &MemoryFiles, path: &str, offset: u64, bytes: &[u8]) -> Arc<dyn LayerFile> {
    let file = files.open(path, OpenMode::Create).unwrap();
    file.write_at(offset, &[bytes]).unwrap();
    file
}

fn read(files: &MemoryFiles, path: &str) -> Option<Vec<u8>> {
    let file = files.open(path, OpenMode::Existing).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    Some(bytes)
}

/// All contents of one file that seeded crashes leave.
fn outcomes(files: &MemoryFiles, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..400).map(|seed| read(&files.crash(&mut SeededChoices::new(seed)), path)).collect()
}

#[test]
fn what_was_synced_survives_every_crash() {
    let files = MemoryFiles::new();
    write(&files, "a", 0, &[1; 2000]).sync_data().unwrap();
    assert_eq!(read(&files.crash(&mut NothingUnsynced), "a"), None, "the name was not synced");
    files.sync_directory("").unwrap();
    assert_eq!(outcomes(&files, "a"), BTreeSet::from([Some(vec![1; 2000])]));
}

#[test]
fn unsynced_sectors_come_in_every_mixture() {
    let files = MemoryFiles::new();
    write(&files, "a", 0, &[1; 1024]).sync_data().unwrap();
    files.sync_directory("").unwrap();
    write(&files, "a", 0, &[2; 1024]);
    write(&files, "a", 512, &[3; 512]);
    let found = outcomes(&files, "a");
    for first in [1, 2] {
        for second in [1, 2, 3] {
            let mixture = [[first; 512], [second; 512]].concat();
            assert!(found.contains(&Some(mixture)), "sectors {first} and {second}");
        }
    }
    assert_eq!(found.len(), 6);
    assert_eq!(read(&files.crash(&mut EverythingWritten), "a"), read(&files, "a"));
}

#[test]
fn lengths_may_arrive_without_bytes_and_bytes_without_lengths() {
    let files = MemoryFiles::new();
    write(&files, "a", 0, &[1; 512]).sync_data().unwrap();
    files.sync_directory("").unwrap();
    let file = write(&files, "a", 512, &[2; 512]);
    file.allocate(0, 2048).unwrap();
    let found: BTreeSet<(usize, bool)> =
        outcomes(&files, "a").into_iter().flatten().map(|bytes| (bytes.len(), bytes.contains(&2))).collect();
    let expected = [(512, false), (1024, false), (1024, true), (2048, false), (2048, true)];
    assert_eq!(found, BTreeSet::from(expected));
}

#[test]
fn a_cut_that_arrived_shows_no_old_byte() {
    let files = MemoryFiles::new();
    let file = write(&files, "a", 0, &[1; 1024]);
    file.sync_data().unwrap();
    files.sync_directory("").unwrap();
    file.set_len(100).unwrap();
    file.set_len(600).unwrap();
    for bytes in outcomes(&files, "a").into_iter().flatten() {
        assert!(bytes.len() != 600 || bytes[100..].iter().all(|byte| *byte == 0));
    }
    assert_eq!(&read(&files, "a").unwrap()[99..102], [1, 0, 0]);
}

#[test]
fn a_rename_is_lost_or_kept_as_a_whole() {
    let files = MemoryFiles::new();
    files.create_directory("d").unwrap();
    write(&files, "d/a", 0, b"old").sync_data().unwrap();
    files.sync_directory("").unwrap();
    files.sync_directory("d").unwrap();
    write(&files, "d/a.new", 0, b"new").sync_data().unwrap();
    files.rename("d/a.new", "d/a").unwrap();
    let mut found = BTreeSet::new();
    for seed in 0..100 {
        let left = files.crash(&mut SeededChoices::new(seed));
        found.insert((read(&left, "d/a"), read(&left, "d/a.new")));
    }
    let (old, new) = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    assert_eq!(found, BTreeSet::from([(old.clone(), None), (old, new.clone()), (new, None)]));
    files.sync_directory("d").unwrap();
    assert_eq!(outcomes(&files, "d/a"), BTreeSet::from([Some(b"new".to_vec())]));
}

#[test]
fn a_file_in_a_lost_directory_is_lost() {
    let files = MemoryFiles::new();
    files.create_directory("d/e").unwrap();
    write(&files, "d/e/a", 0, b"x").sync_data().unwrap();
    files.sync_directory("d/e").unwrap();
    files.sync_directory("d").unwrap();
    assert_eq!(outcomes(&files, "d/e/a").len(), 2);
    files.sync_directory("").unwrap();
    assert_eq!(outcomes(&files, "d/e/a").len(), 1);
}

#[test]
fn a_failed_sync_loses_the_data_and_the_next_one_lies() {
    let files = MemoryFiles::new();
    let file = write(&files, "a", 0, &[1; 600]);
    file.sync_data().unwrap();
    files.sync_directory("").unwrap();
    file.write_at(0, &[&[2; 600]]).unwrap();
    files.fail(FaultTarget::Nth(FileCall::SyncData, 1), FaultEffect::Fail(ErrorKind::Other));
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(read(&files, "a"), Some(vec![2; 600]), "the cache still shows it");
    assert_eq!(outcomes(&files, "a"), BTreeSet::from([Some(vec![1; 600])]));
    file.drop_cache(0);
    assert_eq!(read(&files, "a"), Some(vec![1; 600]));
    file.write_at(0, &[&[3; 600]]).unwrap();
    file.sync_data().unwrap();
    assert_eq!(outcomes(&files, "a"), BTreeSet::from([Some(vec![3; 600])]));
}

#[test]
fn a_recording_shows_every_moment() {
    let files = MemoryFiles::new();
    write(&files, "a", 0, b"0").sync_data().unwrap();
    files.sync_directory("").unwrap();
    files.start_recording();
    for byte in 1..=5u8 {
        assert_eq!(files.moment(), u64::from(byte) - 1);
        write(&files, "a", 0, &[byte]);
    }
    files.remove("a").unwrap();
    files.sync_directory("").unwrap();
    let mut history = files.history();
    for byte in 1..=5u8 {
        history.advance_to(u64::from(byte));
        assert_eq!(read(&history.crash(&mut EverythingWritten), "a"), Some(vec![byte]));
        assert_eq!(read(&history.crash(&mut NothingUnsynced), "a"), Some(b"0".to_vec()));
    }
    history.advance_to(u64::MAX);
    assert_eq!(history.at(), history.end());
    assert_eq!(read(&history.crash(&mut EverythingWritten), "a"), None);
}

#[test]
fn faults_hit_the_call_they_are_meant_for() {
    let files = MemoryFiles::new();
    let file = write(&files, "a", 0, b"....");
    files.fail(FaultTarget::Nth(FileCall::Write, 2), FaultEffect::ShortWrite(2, ErrorKind::StorageFull));
    file.write_at(0, &[b"one"]).unwrap();
    let short = file.write_at(0, &[b"T", b"WO"]).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::StorageFull);
    assert_eq!(read(&files, "a").unwrap(), b"TWe.");
    files.fail(FaultTarget::Every(FileCall::Allocate), FaultEffect::Fail(ErrorKind::StorageFull));
    assert!(file.allocate(0, 1).is_err() && file.allocate(0, 1).is_err());
    files.clear_faults();
    file.allocate(0, 1).unwrap();
    files.fail(FaultTarget::NthCall(2), FaultEffect::Fail(ErrorKind::Other));
    assert_eq!(file.len().unwrap(), 4);
    assert!(file.len().is_err());
    assert_eq!(file.len().unwrap(), 4);
    files.fail(FaultTarget::Every(FileCall::SyncData), FaultEffect::Pretend);
    files.sync_directory("").unwrap();
    file.sync_data().unwrap();
    assert_eq!(read(&files.crash(&mut NothingUnsynced), "a"), Some(vec![]));
}

#[test]
fn room_runs_out_and_comes_back() {
    let files = MemoryFiles::new();
    files.limit_room(10_000);
    let file = write(&files, "a", 0, &[1; 4000]);
    file.allocate(0, 8000).unwrap();
    assert_eq!(files.disk_space().unwrap(), DiskSpace { total_bytes: 10_000, free_bytes: 2000 });
    assert_eq!(file.allocate(0, 10_001).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.write_at(9999, &[b"ab"]).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 8000);
    file.set_len(1 << 30).unwrap();
    files.remove("a").unwrap();
    drop(file);
    files.sync_directory("").unwrap();
    assert_eq!(files.disk_space().unwrap().free_bytes, 10_000);
}

#[test]
fn a_lock_is_held_once_and_not_by_the_image() {
    let files = MemoryFiles::new();
    let guard = files.lock("lock").unwrap();
    assert_eq!(files.clone().lock("lock").unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(files.crash(&mut EverythingWritten).lock("lock").unwrap());
    drop(guard);
    drop(files.lock("lock").unwrap());
}

#[test]
fn an_open_file_and_a_view_outlive_the_name() {
    let files = MemoryFiles::new();
    let file = write(&files, "a", 0, b"abc");
    let view = file.map(100).unwrap();
    files.remove("a").unwrap();
    files.sync_directory("").unwrap();
    drop(file);
    files.sync_directory("").unwrap();
    assert_eq!(&view.slice(1, 2)[..], b"bc");
    assert!(files.list("").unwrap().is_empty());
}
