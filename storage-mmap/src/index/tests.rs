use super::*;
use crate::files::MemoryFiles;
use crate::files::memory::{
    Choices, EverythingWritten, FaultEffect, FaultTarget, FileCall, NothingUnsynced, SeededChoices,
};

const SETTINGS: IndexSettings = IndexSettings { slots: 7, entries: 20 };
const ALL: Range<Timestamp> = Timestamp::MIN..Timestamp::MAX;

fn open(files: &MemoryFiles, log_end: u64) -> KeyIndex {
    open_with(files, SETTINGS, log_end)
}

fn open_with(files: &MemoryFiles, settings: IndexSettings, log_end: u64) -> KeyIndex {
    KeyIndex::open(Arc::new(files.clone()), settings, LogPosition::new(log_end), false).unwrap()
}

fn found(index: &KeyIndex, key: &str, times: Range<Timestamp>) -> Vec<u64> {
    let mut positions = Vec::new();
    let mut visit = |position: LogPosition| {
        positions.push(position.get());
        ControlFlow::Continue(())
    };
    index.candidates("topic", key, times, &mut visit).unwrap();
    positions
}

/// The log as the engine knows it: one record per entry, its key and its time.
#[derive(Clone, Debug, Default)]
struct Log(Vec<(u64, String, Timestamp)>);

impl Log {
    fn end(&self) -> u64 {
        self.0.last().map_or(0, |(position, ..)| position + 10)
    }

    fn append(&mut self, index: &KeyIndex, choices: &mut SeededChoices) {
        let key = format!("key{}", choices.pick(9));
        let before = self.0.last().map_or(0, |(.., at)| at.as_millis());
        let record = (self.end(), key, Timestamp::from_millis(before + choices.pick(4) as i64 * 400));
        index.add("topic", &record.1, LogPosition::new(record.0), record.2);
        self.0.push(record);
    }

    fn replay(&self, index: &KeyIndex, from: u64) {
        for (position, key, at) in self.0.iter().filter(|(position, ..)| *position >= from) {
            index.add("topic", key, LogPosition::new(*position), *at);
        }
    }

    /// Every key is found, newest first; what else is shown shares the hash.
    fn check(&self, index: &KeyIndex, context: &str) {
        for number in 0..9 {
            let key = format!("key{number}");
            let expected: Vec<u64> = self.0.iter().rev().filter(|(_, k, _)| *k == key).map(|(p, ..)| *p).collect();
            assert_eq!(found(index, &key, ALL), expected, "{key} {context}");
        }
    }
}

#[test]
fn found_in_memory_and_in_files_newest_first() {
    let files = MemoryFiles::new();
    let index = open(&files, 0);
    let (mut log, mut choices) = (Log::default(), SeededChoices::new(1));
    for round in 0..100 {
        log.append(&index, &mut choices);
        if round % 13 == 0 {
            index.flush(LogPosition::new(log.end() - 5)).unwrap();
        }
        log.check(&index, "while open");
    }
    assert_eq!(files.list(INDEX_DIRECTORY).unwrap().len(), 1 + 93usize.div_ceil(19));
    let covered = index.covered_to().get();
    assert!(covered >= log.end() - 200);
    drop(index);
    let again = open(&files, log.end());
    assert_eq!(again.covered_to().get(), covered);
    log.replay(&again, 0);
    log.check(&again, "after a replay that began too early");
}

#[test]
fn times_narrow_the_answer_to_the_second() {
    let files = MemoryFiles::new();
    let index = open(&files, 0);
    let at = |second: i64| Timestamp::from_millis(second * 1000);
    for number in 0..60u64 {
        let second = i64::try_from(number).unwrap();
        index.add("topic", "k", LogPosition::new(number), at(second));
    }
    let expected: Vec<u64> = (20..40).rev().collect();
    assert_eq!(found(&index, "k", at(20)..at(40)), expected);
    index.flush(LogPosition::new(60)).unwrap();
    assert_eq!(found(&index, "k", at(20)..at(40)), expected);
    assert_eq!(found(&index, "k", at(70)..at(90)), Vec::<u64>::new());
    assert_eq!(found(&index, "other", ALL), Vec::<u64>::new());
}

#[test]
fn looking_stops_when_told() {
    let index = open(&MemoryFiles::new(), 0);
    (0..30).for_each(|number| index.add("topic", "k", LogPosition::new(number), Timestamp::from_millis(0)));
    index.flush(LogPosition::new(15)).unwrap();
    for wanted in [1, 20] {
        let mut seen = 0;
        let mut visit = |_| {
            seen += 1;
            if seen == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        index.candidates("topic", "k", ALL, &mut visit).unwrap();
        assert_eq!(seen, wanted);
    }
}

#[test]
fn one_record_with_two_keys_is_shown_once_under_each() {
    let index = open(&MemoryFiles::new(), 0);
    for number in 0..3 {
        for key in ["a", "a", "b"] {
            index.add("topic", key, LogPosition::new(number), Timestamp::from_millis(0));
        }
    }
    for flushed in [0, 2, 3] {
        index.flush(LogPosition::new(flushed)).unwrap();
        assert_eq!((found(&index, "a", ALL), found(&index, "b", ALL)), (vec![2, 1, 0], vec![2, 1, 0]));
    }
}

#[test]
fn whole_files_expire() {
    let files = MemoryFiles::new();
    let index = open(&files, 0);
    let (mut log, mut choices) = (Log::default(), SeededChoices::new(2));
    (0..60).for_each(|_| log.append(&index, &mut choices));
    index.flush(LogPosition::new(log.end())).unwrap();
    assert_eq!(files.list(INDEX_DIRECTORY).unwrap().len(), 5);
    index.expire_below(LogPosition::new(400)).unwrap();
    assert_eq!(files.list(INDEX_DIRECTORY).unwrap().len(), 3);
    log.0.drain(..38);
    log.check(&index, "after expiry");
    index.expire_below(LogPosition::new(u64::from(u32::MAX))).unwrap();
    log.append(&index, &mut choices);
    drop(index);
    let again = open(&files, log.end());
    log.replay(&again, again.covered_to().get());
    log.0.drain(..19);
    log.check(&again, "after reopening");
}

#[test]
fn deleted_files_are_made_again_with_the_same_bytes() {
    let files = MemoryFiles::new();
    let index = open(&files, 0);
    let (mut log, mut choices) = (Log::default(), SeededChoices::new(3));
    (0..50).for_each(|_| log.append(&index, &mut choices));
    index.flush(LogPosition::new(log.end())).unwrap();
    let contents = |files: &MemoryFiles| {
        let read = |name: &String| {
            let file = files.open(&format!("index/{name}"), crate::files::OpenMode::Existing).unwrap();
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_at(0, &mut bytes).unwrap();
            bytes
        };
        let names = files.list(INDEX_DIRECTORY).unwrap();
        let bytes: Vec<Vec<u8>> = names.iter().map(read).collect();
        (names, bytes)
    };
    let before = contents(&files);
    for name in &before.0 {
        files.remove(&format!("index/{name}")).unwrap();
        let again = open(&files, log.end());
        assert_eq!(again.covered_to().get(), 0, "without {name}");
        log.replay(&again, 0);
        again.flush(LogPosition::new(log.end())).unwrap();
        log.check(&again, name);
        assert_eq!(contents(&files), before, "without {name}");
    }
}

#[test]
fn a_contradiction_is_found_and_the_index_is_made_again() {
    // Heads that lead beyond the end, in the newest file and in a full one, which opening does not read through.
    for (count, open_finds_it) in [(19, true), (30, false)] {
        let files = MemoryFiles::new();
        let index = open(&files, 0);
        let (mut log, mut choices) = (Log::default(), SeededChoices::new(4));
        (0..count).for_each(|_| log.append(&index, &mut choices));
        index.flush(LogPosition::new(log.end())).unwrap();
        drop(index);
        let name = files.list(INDEX_DIRECTORY).unwrap().into_iter().find(|name| name != "STATE").unwrap();
        let file = files.open(&format!("index/{name}"), crate::files::OpenMode::Existing).unwrap();
        file.write_at(40, &[&[0, 0, 0, 99].repeat(7)]).unwrap();
        let mut index = open(&files, log.end());
        if !open_finds_it {
            let looked = index.candidates("topic", "key1", ALL, &mut |_| ControlFlow::Continue(()));
            assert_eq!(looked.unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(index.candidates("topic", "key2", ALL, &mut |_| ControlFlow::Continue(())).is_err());
            assert!(index.flush(LogPosition::new(log.end() + 1)).is_err());
            index = open(&files, log.end());
        }
        assert_eq!(index.covered_to().get(), 0);
        log.replay(&index, 0);
        log.check(&index, "made again");
    }
}

#[test]
fn a_new_file_of_the_known_size_takes_little_room() {
    use std::os::unix::fs::MetadataExt;
    let home = tempfile::tempdir().unwrap();
    let settings = IndexSettings { slots: 5_000_000, entries: 20_000_000 };
    let files = Arc::new(crate::files::RealFiles::open(home.path()).unwrap());
    let index = KeyIndex::open(Arc::clone(&files) as Arc<dyn FileLayer>, settings, LogPosition::new(0), false).unwrap();
    for number in 0..10 {
        index.add("topic", &number.to_string(), LogPosition::new(number), Timestamp::from_millis(0));
    }
    index.flush(LogPosition::new(10)).unwrap();
    let file = std::fs::metadata(home.path().join("index/19700101000000000")).unwrap();
    assert_eq!(file.len(), 420_000_040);
    assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
    assert_eq!(found(&index, "7", ALL), [7]);
    drop(index);
    let again = KeyIndex::open(files, settings, LogPosition::new(10), false).unwrap();
    assert_eq!((again.covered_to().get(), found(&again, "7", ALL)), (10, vec![7]));
}

#[test]
fn after_a_failed_write_nothing_is_answered_until_reopened() {
    for call in [FileCall::Write, FileCall::SyncData, FileCall::Rename, FileCall::SyncDirectory, FileCall::SetLen] {
        let files = MemoryFiles::new();
        let index = open(&files, 0);
        let (mut log, mut choices) = (Log::default(), SeededChoices::new(5));
        (0..30).for_each(|_| log.append(&index, &mut choices));
        files.fail(FaultTarget::Nth(call, 1), FaultEffect::Fail(io::ErrorKind::StorageFull));
        assert_eq!(index.flush(LogPosition::new(log.end())).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(index.flush(LogPosition::new(log.end())).is_err());
        assert!(index.candidates("topic", "key1", ALL, &mut |_| ControlFlow::Continue(())).is_err());
        log.append(&index, &mut choices);
        drop(index);
        let again = open(&files, log.end());
        log.replay(&again, again.covered_to().get());
        log.check(&again, "after reopening");
    }
}

#[test]
fn a_full_memory_is_flushed_on_the_way() {
    let files = MemoryFiles::new();
    let settings = IndexSettings { slots: 1000, entries: 1_000_000 };
    let index = KeyIndex::open(Arc::new(files), settings, LogPosition::new(0), false).unwrap();
    for number in 0..recent::MAX_RECENT_ENTRIES as u64 + 5 {
        index.add("topic", &(number / 2).to_string(), LogPosition::new(number / 2), Timestamp::from_millis(0));
    }
    let half = recent::MAX_RECENT_ENTRIES as u64 / 2;
    assert_eq!(index.covered_to().get(), half - 1, "the last record stays: another key of it may come");
    assert_eq!(found(&index, &(half - 1).to_string(), ALL), [half - 1]);
    assert_eq!(found(&index, "77", ALL), [77]);
}

/// Crashes the index at any moment and the log with it, replays, and compares with a plain search of the log.
#[test]
fn any_crash_and_any_log_end_is_recovered_from() {
    for seed in 0..3000 {
        let mut choices = SeededChoices::new(seed);
        let files = MemoryFiles::new();
        // Many slots put them into other sectors than the entries, so that either may come without the other.
        let settings = if seed % 2 == 0 { SETTINGS } else { IndexSettings { slots: 150, entries: 60 } };
        let mut index = open_with(&files, settings, 0);
        let mut log = Log::default();
        let mut image = files;
        for _ in 0..3 {
            image.start_recording();
            let mut covers = vec![(image.moment(), 0)];
            for _ in 0..choices.pick(40) {
                log.append(&index, &mut choices);
                if choices.pick(6) == 0 {
                    index.flush(LogPosition::new(log.end())).unwrap();
                    covers.push((image.moment(), log.end()));
                }
            }
            drop(index);
            let mut history = image.history();
            history.advance_to(choices.pick(usize::try_from(history.end()).unwrap() + 1) as u64);
            image = match choices.pick(4) {
                0 => history.crash(&mut NothingUnsynced),
                1 => history.crash(&mut EverythingWritten),
                _ => history.crash(&mut choices),
            };
            // What the index covered durably may be ahead of a log that was not synced.
            log.0.truncate(log.0.len() - choices.pick(log.0.len().min(10) + 1));
            image.start_recording();
            let nested = open_with(&image, settings, log.end());
            drop(nested);
            if choices.pick(3) == 0 {
                let mut history = image.history();
                history.advance_to(choices.pick(usize::try_from(history.end()).unwrap() + 1) as u64);
                image = history.crash(&mut choices);
            }
            index = open_with(&image, settings, log.end());
            assert!(index.covered_to().get() <= log.end(), "seed {seed}");
            log.replay(&index, index.covered_to().get());
            log.check(&index, &format!("seed {seed}"));
        }
    }
}
