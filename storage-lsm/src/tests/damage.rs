//! Damage is reported, never passed off as data, and never panics.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cuemq_storage_api::{AttributesBuilder, Engine, ErrorKind, KeyQuery, LogPosition, Retention, Table};

use super::conformance::open_memory;
use super::*;
use crate::keys::log;
use crate::kv::Space;
use crate::memory_kv::MemoryDisk;

const TABLE: Table = Table::named("t");
/// Batches in the store whose journal is damaged.
const BATCHES: u64 = 6;

fn journal(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("store")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max().unwrap()
}

/// A closed store with a few synced batches, and how many bytes of its journal are in use.
fn synced_store(directory: &Path) -> u64 {
    let engine = open(directory);
    for batch in 0..BATCHES {
        engine.apply(super::batch(&queue("t", 0), batch, batch + 1)).unwrap();
    }
    engine.close().unwrap();
    drop(engine);
    let content = fs::read(journal(directory)).unwrap();
    content.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else if entry.path().extension().is_some_and(|extension| extension == "jnl") {
            // A new journal is 64 MiB of zeros behind what was written.
            let mut content = fs::read(entry.path()).unwrap();
            content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            fs::write(target, content).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_cut_journal_is_noticed() {
    let original = tempfile::tempdir().unwrap();
    let used = synced_store(original.path());
    for cut in [1, used / 3, used / 2] {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(original.path(), copy.path());
        OpenOptions::new().write(true).open(journal(copy.path())).unwrap().set_len(used - cut).unwrap();
        let before = fs::read(journal(copy.path())).unwrap();
        for _ in 0..2 {
            let error = LsmEngine::open(copy.path(), &small()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.context().contains("watermark"), "{error}");
            assert_eq!(fs::read(copy.path().join("journals.kept/0.jnl")).unwrap(), before);
        }
        // The advice in the error works.
        fs::remove_file(copy.path().join("watermark")).unwrap();
        let left = bodies(&open(copy.path()), &queue("t", 0));
        assert!(!copy.path().join("journals.kept").exists());
        assert!(left.len() < 6, "something was cut off");
        assert_eq!(left, (0..left.len()).map(|body| body.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn a_flipped_byte_in_a_journal_never_loses_in_silence() {
    let original = tempfile::tempdir().unwrap();
    let used = synced_store(original.path());
    let expected: Vec<_> = (0..BATCHES).map(|body| body.to_string()).collect();
    let copy = tempfile::tempdir().unwrap();
    let (mut refused, mut whole) = (0, 0);
    for at in (0..used).step_by(31) {
        fs::remove_dir_all(copy.path()).unwrap();
        copy_tree(original.path(), copy.path());
        let file = OpenOptions::new().read(true).write(true).open(journal(copy.path())).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        drop(file);
        match LsmEngine::open(copy.path(), &small()) {
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Io), "byte {at}: {error}");
                refused += 1;
            }
            Ok(engine) => {
                assert_eq!(bodies(&engine, &queue("t", 0)), expected, "byte {at}");
                whole += 1;
            }
        }
    }
    assert!(refused > 10 * whole, "{refused} refused, {whole} without an effect");
}

#[test]
fn a_damaged_record_is_an_error_and_not_other_data() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    let queue = queue("t", 0);
    let mut attributes = AttributesBuilder::default();
    attributes.key("k");
    let mut batch = batch(&queue, 0, 3);
    batch.append(&queue, Record::new("keyed", at(0)).with_attributes(attributes.build().unwrap()));
    batch.put(&TABLE, "row", "value");
    engine.apply(batch).unwrap();
    let damage_each = |space: Space, check: &dyn Fn()| {
        for (key, value) in disk.rows(space) {
            for at in [0, 4, value.len() - 1] {
                let mut damaged = value.to_vec();
                damaged[at] ^= 0x20;
                disk.damage(space, &key, Some(Bytes::from(damaged)));
                check();
            }
            disk.damage(space, &key, Some(value));
        }
    };
    let fetch = |limit| engine.fetch(FetchRequest::all(&queue, offset(0), FetchLimit::messages(limit)));
    let query = KeyQuery { topic: &queue.topic, key: "k", from: at(0), to: at(99), limit: 9 };
    damage_each(Space::Log, &|| {
        assert_eq!(fetch(9).unwrap_err().kind(), ErrorKind::Corrupt);
    });
    damage_each(Space::ConsumeQueue, &|| {
        assert_eq!(fetch(9).unwrap_err().kind(), ErrorKind::Corrupt);
    });
    damage_each(Space::KeyIndex, &|| {
        assert_eq!(engine.find(query).unwrap_err().kind(), ErrorKind::Corrupt);
    });
    damage_each(Space::Meta, &|| {
        let row = engine.get(&TABLE, b"row");
        assert!(
            row.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) || row.unwrap().unwrap() == "value"
        );
    });
    let key = log::key(3);
    let value = disk.rows(Space::Log)[3].1.clone();
    disk.damage(Space::Log, &key, Some(disk.rows(Space::Log)[2].1.clone()));
    assert_eq!(fetch(9).unwrap_err().kind(), ErrorKind::Corrupt, "another record's bytes");
    assert_eq!(engine.record_at(LogPosition::new(3)).unwrap(), None);
    assert_eq!(engine.find(query).unwrap_err().kind(), ErrorKind::Corrupt);
    disk.damage(Space::Log, &key, None);
    assert_eq!(fetch(9).unwrap_err().kind(), ErrorKind::Corrupt, "a record that is not there");
    disk.damage(Space::Log, &key, Some(value));
    assert_eq!(fetch(9).unwrap().records.len(), 4);
}

#[test]
fn spaces_that_disagree_are_refused() {
    let disk = MemoryDisk::default();
    let engine = open_memory(&disk, Retention::default()).unwrap();
    engine.apply(batch(&queue("t", 0), 0, 3)).unwrap();
    engine.close().unwrap();
    for space in [Space::Log, Space::ConsumeQueue, Space::Meta] {
        let last = disk.rows(space).pop().unwrap().0;
        for (key, value) in disk.rows(space) {
            disk.damage(space, &key, None);
            let reopened = open_memory(&disk, Retention::default());
            match space {
                // Only reading finds a hole in the middle.
                Space::Log | Space::ConsumeQueue if key != last => drop(reopened.unwrap()),
                // A queue without its row would be overwritten by the next one.
                _ => assert_eq!(reopened.unwrap_err().kind(), ErrorKind::Corrupt, "{space:?} {key:02x?}"),
            }
            disk.damage(space, &key, Some(value));
        }
    }
}

#[test]
fn a_damaged_or_lost_tree_is_an_error_and_never_ends_the_process() {
    let original = tempfile::tempdir().unwrap();
    let engine = open(original.path());
    let mut batch = WriteBatch::new(at(0));
    batch.append_all(&queue("t", 0), vec![Record::new(vec![7; 10_000], at(0)); 400]);
    engine.apply(batch).unwrap();
    let expected = all(&engine, &queue("t", 0));
    engine.close().unwrap();
    drop(engine);
    let mut refused = 0;
    for tree in 0..5 {
        let folder = Path::new("store/keyspaces").join(tree.to_string());
        let version = fs::read_dir(original.path().join(&folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let newest = version.filter(|name| name.as_encoded_bytes().starts_with(b"v")).max().unwrap();
        // Where the manifest says how many levels there are and how filters hash, a wrong byte panics in fjall.
        for flipped in (0..300).step_by(23) {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(original.path(), copy.path());
            let path = copy.path().join(&folder).join(&newest);
            let mut content = fs::read(&path).unwrap();
            content[flipped] ^= 0x10;
            fs::write(&path, content).unwrap();
            match LsmEngine::open(copy.path(), &small()) {
                Ok(engine) => assert_eq!(all(&engine, &queue("t", 0)), expected, "tree {tree}, byte {flipped}"),
                Err(_) => refused += 1,
            }
        }
        let copy = tempfile::tempdir().unwrap();
        copy_tree(original.path(), copy.path());
        fs::remove_file(copy.path().join(&folder).join("current")).unwrap();
        assert_eq!(LsmEngine::open(copy.path(), &small()).unwrap_err().kind(), ErrorKind::Corrupt, "tree {tree}");
    }
    assert!(refused > 20, "{refused} refused");
}
