use proptest::prelude::*;

use super::*;
use crate::files::{FileLayer, MemoryFiles, OpenMode};
use crate::reading::Reading;
use crate::replace::replace_file;

const FILE: &str = "checkpoint";

fn write(files: &dyn FileLayer, snapshot: &Snapshot) -> Base {
    let mut base = None;
    replace_file(files, FILE, |out| {
        // Something stands before the tables.
        out.write(b"head")?;
        base = Some(snapshot.write(out)?);
        Ok(())
    })
    .unwrap();
    base.unwrap()
}

fn read(files: &dyn FileLayer) -> Base {
    let file = files.open(FILE, OpenMode::Existing).unwrap();
    let mut reading = Reading::new(&*file, file.len().unwrap());
    reading.skip(4).unwrap();
    let base = Base::read(&file, &mut reading).unwrap();
    assert!(reading.is_empty());
    base
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Put {
        table: usize,
        key: u8,
        len: usize,
    },
    Delete {
        table: usize,
        key: u8,
    },
    /// A checkpoint is begun.
    Freeze,
    /// It is on disk.
    Rebase,
    /// The store is opened again: what is not in the checkpoint comes from the log.
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0usize..50, 1 => 3000usize..9000];
    prop_oneof![
        10 => (0usize..3, any::<u8>(), length).prop_map(|(table, key, len)| Step::Put { table, key, len }),
        4 => (0usize..3, any::<u8>()).prop_map(|(table, key)| Step::Delete { table, key }),
        1 => Just(Step::Freeze),
        2 => Just(Step::Rebase),
        1 => Just(Step::Reopen),
    ]
}

/// A key of one to three bytes, so that one may be the beginning of another.
fn key_of(key: u8) -> Vec<u8> {
    vec![key / 3; usize::from(key % 3) + 1]
}

proptest! {
    #[test]
    fn they_are_what_a_map_is(
        steps in prop::collection::vec(any_step(), 1..120),
        from in any::<u8>(),
        to in prop::option::of(any::<u8>()),
        limit in 0usize..40,
    ) {
        let names = ["a", "b", "c"].map(|name| Table::new(name).unwrap());
        let (files, mut tables) = (MemoryFiles::new(), Tables::default());
        let mut model: [BTreeMap<Vec<u8>, Vec<u8>>; 3] = Default::default();
        let (mut snapshot, mut log, mut in_log) = (None, Vec::new(), 0);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { table, key, len } => {
                    let (key, value) = (key_of(key), vec![u8::try_from(n % 251).unwrap(); len]);
                    tables.change(RowRoom::default().put(&names[table], &key, &value));
                    log.push((table, key.clone(), Some(value.clone())));
                    model[table].insert(key, value);
                }
                Step::Delete { table, key } => {
                    let key = key_of(key);
                    tables.change(RowRoom::default().delete(&names[table], &key));
                    log.push((table, key.clone(), None));
                    model[table].remove(&key);
                }
                // One that is begun while another one is under way: that one has failed.
                Step::Freeze => snapshot = Some((tables.freeze(), log.len())),
                Step::Rebase => if let Some((snapshot, at)) = snapshot.take() {
                    tables.rebase(write(&files, &snapshot));
                    in_log = at;
                },
                Step::Reopen => {
                    snapshot = None;
                    tables = if in_log == 0 { Tables::default() } else { Tables::new(read(&files)) };
                    for (table, key, value) in &log[in_log..] {
                        tables.change(match value {
                            Some(value) => RowRoom::default().put(&names[*table], key, value),
                            None => RowRoom::default().delete(&names[*table], key),
                        });
                    }
                }
            }
        }
        let (from, to) = (key_of(from), to.map(key_of));
        for (name, rows) in names.iter().zip(&model) {
            for key in (0..=255).map(key_of) {
                prop_assert_eq!(tables.get(name, &key).unwrap().map(|value| value.to_vec()), rows.get(&key).cloned());
            }
            let found = tables.scan(name, &from, to.as_deref(), limit).unwrap();
            let found: Vec<_> = found.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            let expected = rows.iter().filter(|(key, _)| **key >= from && to.as_ref().is_none_or(|to| *key < to));
            let expected: Vec<_> = expected.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn a_checkpoint_takes_the_memory_back() {
    let (files, mut tables, table) = (MemoryFiles::new(), Tables::default(), Table::named("t"));
    for n in 0..10_000u32 {
        tables.change(RowRoom::default().put(&table, &n.to_be_bytes(), &[7; 50]));
    }
    assert!(tables.young_bytes() > 1_600_000);
    let snapshot = tables.freeze();
    tables.change(RowRoom::default().delete(&table, &5u32.to_be_bytes()));
    tables.rebase(write(&files, &snapshot));
    assert!(tables.young_bytes() < 1000 && tables.frozen.is_none());
    assert_eq!(tables.get(&table, &4u32.to_be_bytes()).unwrap().unwrap(), &[7; 50][..]);
    assert_eq!(tables.get(&table, &5u32.to_be_bytes()).unwrap(), None);
    assert_eq!(tables.scan(&table, &[], None, 20_000).unwrap().len(), 9_999.min(MAX_SCAN_ROWS));
}

#[test]
fn a_row_that_cannot_be_read_is_an_error() {
    let (files, mut tables, table) = (MemoryFiles::new(), Tables::default(), Table::named("t"));
    tables.change(RowRoom::default().put(&table, b"key", b"value"));
    let snapshot = tables.freeze();
    tables.rebase(write(&files, &snapshot));
    let file = files.open(FILE, OpenMode::Existing).unwrap();
    let row = file.len().unwrap() - 4 - 16;
    file.write_at(row, &[&[0xff; 4]]).unwrap();
    assert_eq!(tables.get(&table, b"key").unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(tables.scan(&table, &[], None, 10).is_err());
}
