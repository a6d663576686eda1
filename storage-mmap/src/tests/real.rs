//! Files of the operating system.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

fn store() -> (tempfile::TempDir, RealFiles) {
    let home = tempfile::tempdir().unwrap();
    let files = RealFiles::open(home.path().join("a/store")).unwrap();
    (home, files)
}

#[test]
fn bytes_come_back_from_many_pieces() {
    let (_home, files) = store();
    files.create_directory("log/deep").unwrap();
    let file = files.open("log/deep/one", OpenMode::Create).unwrap();
    let pieces: Vec<Vec<u8>> = (0..3000u32).map(|i| i.to_le_bytes()[..(i % 5).min(4) as usize].to_vec()).collect();
    let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    file.write_at(7, &slices).unwrap();
    file.write_at(0, &[]).unwrap();
    file.write_at(0, &[b"", b""]).unwrap();
    let expected = pieces.concat();
    let mut found = vec![0; expected.len()];
    file.read_at(7, &mut found).unwrap();
    assert_eq!(found, expected);
    assert_eq!(file.len().unwrap(), 7 + expected.len() as u64);
    assert_eq!(file.read_at(8, &mut found).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(files.list("log").unwrap(), ["deep"]);
    assert_eq!(files.list("nowhere").unwrap(), Vec::<String>::new());
}

#[test]
fn allocated_room_is_zero_and_counts_as_length() {
    let (_home, files) = store();
    let file = files.open("room", OpenMode::Create).unwrap();
    file.write_at(0, &[b"kept"]).unwrap();
    file.allocate(0, 1 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20);
    let map = file.map(4 << 20).unwrap();
    assert_eq!(&map.slice(0, 6)[..], b"kept\0\0");
    assert!(map.slice(4096, 65_536).iter().all(|byte| *byte == 0));
    let full = file.allocate(0, 1 << 60).unwrap_err();
    assert!(matches!(full.kind(), io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge), "{full}");
    assert_eq!(file.len().unwrap(), 1 << 20, "a refused allocation changes nothing");
}

#[test]
fn links_and_foreign_names_are_refused() {
    let (home, files) = store();
    refuses_links_and_foreign_names(&home, &files);
}

#[cfg(target_os = "linux")]
#[test]
fn links_and_foreign_names_are_refused_part_by_part() {
    let (home, files) = store();
    files.walks.store(true, Ordering::Relaxed);
    refuses_links_and_foreign_names(&home, &files);
    files.create_directory("log/deep").unwrap();
    files.open("log/deep/file", OpenMode::Create).unwrap().write_at(0, &[b"x"]).unwrap();
    assert_eq!(files.open("log/deep/file", OpenMode::Existing).unwrap().len().unwrap(), 1);
    assert_eq!(files.open("log/none/file", OpenMode::Create).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(files.list("log/deep").unwrap(), ["file"]);
}

fn refuses_links_and_foreign_names(home: &tempfile::TempDir, files: &RealFiles) {
    std::fs::write(home.path().join("victim"), b"x").unwrap();
    symlink(home.path().join("victim"), home.path().join("a/store/file")).unwrap();
    symlink(home.path(), home.path().join("a/store/way")).unwrap();
    for way in ["file", "way/victim", "way/a/store/lock"] {
        for mode in [OpenMode::Create, OpenMode::Existing] {
            let refused = files.open(way, mode).unwrap_err();
            assert!(!matches!(refused.kind(), io::ErrorKind::NotFound), "{way}: {refused}");
        }
    }
    for way in ["way", "way/new", "way/a/new"] {
        assert!(files.create_directory(way).is_err(), "{way}");
        assert!(files.list(way).is_err(), "{way}");
    }
    assert!(!home.path().join("new").exists() && !home.path().join("a/new").exists());
    for bad in ["../victim", "/etc/passwd", "/file", "", "a//b", "./file", "file/"] {
        assert_eq!(files.open(bad, OpenMode::Create).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
    }
    assert_eq!(std::fs::read(home.path().join("victim")).unwrap(), b"x");
}

#[test]
fn nobody_else_may_read() {
    let (home, files) = store();
    files.create_directory("log").unwrap();
    files.open("log/file", OpenMode::Create).unwrap();
    let mode = |path: &str| std::fs::metadata(home.path().join("a").join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("store"), mode("store/log"), mode("store/log/file")), (0o700, 0o700, 0o600));
}

#[test]
fn a_second_lock_is_refused_and_names_the_holder() {
    let (home, files) = store();
    let guard = files.lock("lock").unwrap();
    let other = RealFiles::open(home.path().join("a/store")).unwrap();
    for layer in [&files, &other] {
        let refused = layer.lock("lock").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(refused.to_string().ends_with(&format!("process {}", std::process::id())), "{refused}");
    }
    drop(guard);
    drop(other.lock("lock").unwrap());
}

#[test]
fn names_move_and_go() {
    let (_home, files) = store();
    files.create_directory("log").unwrap();
    files.open("log/new", OpenMode::Create).unwrap().write_at(0, &[b"new"]).unwrap();
    files.open("log/old", OpenMode::Create).unwrap().write_at(0, &[b"older"]).unwrap();
    files.rename("log/new", "log/old").unwrap();
    files.sync_directory("log").unwrap();
    assert_eq!(files.list("log").unwrap(), ["old"]);
    assert_eq!(files.open("log/old", OpenMode::Existing).unwrap().len().unwrap(), 3);
    assert!(files.remove_directory("log").is_err(), "it is not empty");
    files.remove("log/old").unwrap();
    files.remove("log/old").unwrap();
    files.remove_directory("log").unwrap();
    files.remove_directory("log").unwrap();
    assert_eq!(files.open("log/old", OpenMode::Existing).unwrap_err().kind(), io::ErrorKind::NotFound);
    let space = files.disk_space().unwrap();
    assert!(space.free_bytes <= space.total_bytes && space.total_bytes > 0);
}

#[test]
fn room_that_was_only_taken_holds_no_data() {
    let (_home, files) = store();
    let file = files.open("room", OpenMode::Create).unwrap();
    assert_eq!(file.data_from(0).unwrap(), None);
    file.allocate(0, 8 << 20).unwrap();
    file.write_at(5 << 20, &[b"x"]).unwrap();
    let start_from = |offset| file.data_from(offset).unwrap().map(|data| data.start);
    let data = file.data_from(0).unwrap().expect("there is some");
    assert!(data.start <= 5 << 20 && data.end > 5 << 20, "{data:?}");
    assert_eq!(start_from(5 << 20), Some(5 << 20));
    file.sync_data().unwrap();
    assert_eq!(start_from(5 << 20), Some(5 << 20));
    let behind = start_from(6 << 20);
    assert!(behind.is_none_or(|behind| behind >= 6 << 20), "{behind:?}");
    assert_eq!(file.data_from(8 << 20).unwrap(), None);
    assert_eq!(file.data_from(9 << 20).unwrap(), None);
}
