//! Damage: every byte of a small store is changed, every sector lost, one after the other. The answer must be right,
//! or an error that names the damage.
#![expect(clippy::unwrap_used, reason = "all of it is test code, in functions that several tests share")]

use std::collections::BTreeMap;

use cuemq_storage_api::{Engine, ErrorKind, KeyQuery, LocatedRecord, StorageError, Timestamp, TopicName};
use cuemq_storage_mmap::files::memory::{EverythingWritten, SeededChoices};
use cuemq_storage_mmap::files::{FileLayer, MemoryFiles, OpenMode};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

use crate::check::{self, Expected};
use crate::kill;
use crate::ledger::Ledger;
use crate::workload::{self, KEYS, Life, TOPICS, open, sound};

const SECTOR_BYTES: usize = 512;
const BATCHES: usize = 14;

/// A store of a few batches, each synced by itself.
struct Store {
    files: MemoryFiles,
    settings: MmapSettings,
    ledger: Ledger,
    /// Where the log ends; the files are longer.
    end: u64,
    /// Something outside the log vouches for it up to here.
    vouched: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Killed,
    KilledAfterUpkeep,
    Closed,
}

fn store(ending: Ending) -> Store {
    let mut choices = SeededChoices::new(11);
    let settings = MmapSettings { segment_bytes: 8 << 10, ..workload::settings(&mut choices) };
    let files = MemoryFiles::new();
    let mut numbers = 0;
    let engine = open(&files, &settings, sound).unwrap();
    let mut vouched = 0;
    let mut life = Life::begin(engine, files.clone(), Ledger::default(), &mut numbers).unwrap();
    for number in 0..BATCHES {
        if number == BATCHES / 2 && ending == Ending::KilledAfterUpkeep {
            life.maintain().unwrap();
            vouched = life.engine.durable().0;
        }
        life.apply(&mut choices).unwrap();
        life.sync().unwrap();
    }
    let end = life.engine.durable().0;
    if ending == Ending::Closed {
        life.close().unwrap();
        vouched = end;
    }
    let left = files.crash(&mut EverythingWritten);
    kill(&files);
    Store { files: left, settings, ledger: life.ledger.clone(), end, vouched }
}

/// What became of a damaged store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verdict {
    Right,
    Refused,
    /// The end of the log is gone, and nothing that is left bears witness that it was durable.
    EndLost,
}

impl Store {
    /// The fewest batches that an answer without an error may show after damage to `[from, to)` of a file. Damage to
    /// other files than the log's loses none; where the log is damaged, a later frame or the watermark tells.
    fn least(&self, path: &str, from: usize, to: Option<usize>) -> usize {
        let all = self.ledger.len();
        let Some(start) = path.strip_prefix("commitlog/").and_then(|name| name.parse::<u64>().ok()) else { return all };
        let from = start + from as u64;
        let whole_before = self.ledger.ended_by(from);
        let damaged_up_to = to.map_or(all, |to| (self.ledger.ended_by(start + to as u64 - 1) + 1).min(all));
        if from < self.vouched || damaged_up_to < all { all } else { whole_before }
    }

    /// Changes a copy and looks at what the engine makes of it.
    fn judge(&self, path: &str, least: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<Verdict, String> {
        let image = self.files.crash(&mut EverythingWritten);
        let mut bytes = check::bytes(&image, path)?;
        change(&mut bytes);
        let file = image.open(path, OpenMode::Existing).map_err(|error| error.to_string())?;
        file.set_len(0).map_err(|error| error.to_string())?;
        file.write_at(0, &[&bytes]).map_err(|error| error.to_string())?;
        drop(file);
        let verdict = self.verdict(&image, least);
        kill(&image);
        verdict
    }

    fn verdict(&self, image: &MemoryFiles, least: usize) -> Result<Verdict, String> {
        let engine = match open(image, &self.settings, sound) {
            Ok(engine) => engine,
            Err(error) => return named(&error),
        };
        let all = self.ledger.len();
        let expired = BTreeMap::new();
        let expected = Expected { ledger: &self.ledger, least, most: all, expired: &expired };
        let count = match check::stored(&engine, expected) {
            Ok(count) => count,
            Err(violation) if violation.starts_with("Corrupt: ") => return Ok(Verdict::Refused),
            Err(violation) => return Err(violation),
        };
        nothing_false_is_found(&engine)?;
        Ok(if count == all { Verdict::Right } else { Verdict::EndLost })
    }

    fn judge_file(&self, path: &str, verdicts: &mut BTreeMap<Verdict, usize>) {
        let bytes = check::bytes(&self.files, path).unwrap();
        // Beyond the log's end there are only zeros: a little of them stands for all.
        let start = path.strip_prefix("commitlog/").map(|name| name.parse::<u64>().unwrap());
        let used = start.map_or(usize::MAX, |start| usize::try_from(self.end.saturating_sub(start)).unwrap() + 100);
        let looked_at = bytes.len().min(used);
        let mut count = |what: &str, at: usize, verdict: Result<Verdict, String>| match verdict {
            Ok(verdict) => *verdicts.entry(verdict).or_insert(0) += 1,
            Err(violation) => panic!("{path} {what} at {at}: {violation}"),
        };
        for at in 0..looked_at {
            let least = self.least(path, at, Some(at + 1));
            count("flipped", at, self.judge(path, least, |bytes| bytes[at] ^= 1 << (at % 8)));
        }
        for at in (0..looked_at).step_by(SECTOR_BYTES) {
            let end = bytes.len().min(at + SECTOR_BYTES);
            count("blanked", at, self.judge(path, self.least(path, at, Some(end)), |bytes| bytes[at..end].fill(0)));
            count("cut", at, self.judge(path, self.least(path, at, None), |bytes| bytes.truncate(at)));
        }
    }
}

/// The index may lose a key to damage, but must not show a record that does not have it.
fn nothing_false_is_found(engine: &MmapEngine) -> Result<(), String> {
    for (topic, key) in TOPICS.into_iter().flat_map(|topic| KEYS.map(|key| (topic, key))) {
        let topic = TopicName::new(topic).map_err(|error| error.to_string())?;
        let query = KeyQuery { topic: &topic, key, from: Timestamp::MIN, to: Timestamp::MAX, limit: 100 };
        let found = match engine.find(query) {
            Ok(found) => found,
            Err(error) => named(&error).map(|_| Vec::new())?,
        };
        let has_key = |found: &LocatedRecord| found.stored.record.attributes.keys().any(|other| other == key);
        if let Some(other) = found.iter().find(|found| found.queue.topic != topic || !has_key(found)) {
            return Err(format!("{key} of {topic} is found on {other:?}"));
        }
    }
    Ok(())
}

fn named(error: &StorageError) -> Result<Verdict, String> {
    // A changed magic or version number looks like another program's file.
    let is_named = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Version | ErrorKind::Invalid);
    if is_named && !error.context().is_empty() { Ok(Verdict::Refused) } else { Err(check::failed_ref(error)) }
}

fn all_paths(files: &MemoryFiles, directory: &str, paths: &mut Vec<String>) {
    for name in files.list(directory).unwrap() {
        let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
        match files.open(&path, OpenMode::Existing) {
            Ok(_) => paths.push(path),
            Err(_) => all_paths(files, &path, paths),
        }
    }
}

fn damage_everything(ending: Ending) -> BTreeMap<Verdict, usize> {
    let store = store(ending);
    let mut paths = Vec::new();
    all_paths(&store.files, "", &mut paths);
    let mut verdicts = BTreeMap::new();
    paths.iter().for_each(|path| store.judge_file(path, &mut verdicts));
    verdicts
}

#[test]
fn damage_to_a_killed_store_is_named_or_harmless() {
    let verdicts = damage_everything(Ending::Killed);
    println!("{verdicts:?}");
    assert!(verdicts[&Verdict::Refused] > verdicts[&Verdict::EndLost]);
}

#[test]
fn damage_to_a_killed_store_with_a_watermark_is_named_or_harmless() {
    let verdicts = damage_everything(Ending::KilledAfterUpkeep);
    println!("{verdicts:?}");
    assert!(verdicts[&Verdict::Refused] > verdicts[&Verdict::EndLost]);
}

#[test]
fn damage_to_a_closed_store_loses_nothing_in_silence() {
    let verdicts = damage_everything(Ending::Closed);
    println!("{verdicts:?}");
    assert!(verdicts[&Verdict::Refused] > 0);
    assert_eq!(verdicts.get(&Verdict::EndLost), None, "a closed store bears witness to its end");
}
