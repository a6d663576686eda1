//! Target 6: reads of the raw commit-log engine.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{
    AttributesBuilder, Engine, FetchLimit, FetchRequest, KeyQuery, QueueOffset, Record, StoredRecord, Timestamp,
    WriteBatch,
};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use tempfile::TempDir;

use super::row::{Goal, Pair, Row, Subject, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::paths::fetch::{drop_pages, load};
use crate::place::files_below;
use crate::stopwatch::Stopwatch;
use crate::table::bytes;
use crate::workload::{Bodies, check_queue, queue, stored_at};

const FETCH_MESSAGES: usize = 256;
/// Passes of one measurement whose median counts: one is over in some milliseconds.
const PASSES: usize = 5;
/// As large as the commit log's own record header.
const HEADER_BYTES: usize = 64;
/// Reads at random places, and by key.
const LOOK_UPS: u64 = 20_000;
/// A prime, so that steps of this size meet every offset.
const STRIDE: u64 = 1_000_003;
/// Bytes of one read of a file.
const READ_BYTES: usize = 1 << 20;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let bodies = Bodies::new(body_bytes);
        let store = Store::new(context, &bodies)?;
        rows.extend(store.tail(context)?);
        rows.push(store.random(context)?);
        rows.extend(store.cold(context)?);
        rows.push(by_key(context, &bodies)?);
    }
    Ok(rows)
}

fn subject(name: String, unit: &'static str, limit: &'static str, goal: Goal, note: &str) -> Subject {
    Subject { number: 6, name, unit, flush: "read only", limit, goal, note: note.to_owned() }
}

/// The median rate of a few passes over so many messages.
fn median_rate(messages: u64, mut pass: impl FnMut() -> Result<Duration>) -> Result<f64> {
    let mut times = std::iter::repeat_with(&mut pass).take(PASSES).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(per_second(messages, times[PASSES / 2]))
}

/// What handing out slices costs at the least: memory as long as a log of these records, and where each one lies.
struct BareLog {
    log: Bytes,
    entries: Vec<(usize, usize)>,
}

impl BareLog {
    fn new(count: u64, body_bytes: usize) -> Result<Self> {
        let record_bytes = (HEADER_BYTES + body_bytes).next_multiple_of(8);
        let count = usize::try_from(count)?;
        let entries = (0..count).map(|number| (number * record_bytes + HEADER_BYTES, body_bytes)).collect();
        Ok(Self { log: vec![1; count * record_bytes].into(), entries })
    }

    /// As many at a time as a fetch hands out; with a look at each record before, as whoever has to know when it was
    /// stored and where its body begins must take one.
    fn hand_out(&self, looks: bool) -> Duration {
        let watch = Stopwatch::start();
        let mut total = 0;
        for entries in self.entries.chunks(FETCH_MESSAGES) {
            if looks {
                total += entries.iter().map(|&(start, _)| usize::from(self.log[start - HEADER_BYTES])).sum::<usize>();
            }
            let slices = entries.iter().map(|&(start, length)| self.log.slice(start..start + length));
            let slices = black_box(slices.collect::<Vec<Bytes>>());
            total += slices.iter().map(Bytes::len).sum::<usize>();
        }
        black_box(total);
        watch.elapsed()
    }
}

/// A store with a queue in it, open.
struct Store<'a> {
    bodies: &'a Bodies,
    folder: TempDir,
    engine: MmapEngine,
    count: u64,
}

impl<'a> Store<'a> {
    fn new(context: &Context, bodies: &'a Bodies) -> Result<Self> {
        let folder = context.place.folder()?;
        let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
        let count = Scale::messages(context.scale.read_bytes, bodies.body_bytes(), FETCH_MESSAGES);
        load(&engine, bodies, count)?;
        Ok(Self { bodies, folder, engine, count })
    }

    fn name(&self, what: &str) -> String {
        format!("{what}, {}", bytes(self.bodies.body_bytes()))
    }

    fn tail(&self, context: &Context) -> Result<[Row; 3]> {
        let bare = BareLog::new(self.count, self.bodies.body_bytes())?;
        let limit = || median_rate(self.count, || Ok(bare.hand_out(false)));
        let looking = side_by_side(context.scale.pairs, limit, || median_rate(self.count, || Ok(bare.hand_out(true))))?;
        let path = || median_rate(self.count, || read_in_order(&self.engine, self.count));
        let pairs = side_by_side(context.scale.pairs, limit, path)?;
        let verified = check_queue(&self.engine, self.bodies, self.count, Ok)?;
        let note =
            "fetches of 256, one thread, just written; the limit hands out 256 Bytes slices at a time, found in a list";
        let goal = Goal::AtLeast(0.7);
        let tail = subject(self.name("fetch from the tail in order"), "msg/s", "bare slices", goal, note);
        let copies = self.copies()?;
        let note = "bodies whose place is not the same in two fetches, or not where the log has them";
        let copied = subject(self.name("payload copies per fetched message"), "copies", "one copy", Goal::Zero, note);
        let copied = copied.row(vec![Pair { value: copies, limit: 1.0 }], self.count);
        let note = "the limit with a look at one byte of each record's header before its slice is made";
        let looked = subject(self.name("bare slices of records looked at"), "msg/s", "bare slices", Goal::None, note);
        Ok([tail.row(pairs, verified), looked.row(looking, self.count), copied])
    }

    /// The share of bodies that are copies. One is none when it lies at the same address in two fetches that are held
    /// at the same time, and as far from a neighbour as the log says.
    fn copies(&self) -> Result<f64> {
        let address = |record: &StoredRecord| record.record.body.as_ptr().addr() as u64;
        let fetch = |from| {
            let limit = FetchLimit::messages(FETCH_MESSAGES);
            self.engine.fetch(FetchRequest::all(&queue(), QueueOffset::new(from), limit))
        };
        let as_in_log = |one: &StoredRecord, next: &StoredRecord| {
            address(next).wrapping_sub(address(one)) == next.position.get().wrapping_sub(one.position.get())
        };
        let mut copies = 0usize;
        for from in (0..self.count).step_by(FETCH_MESSAGES) {
            let (one, other) = (fetch(from)?.records, fetch(from)?.records);
            copies += one.iter().zip(&other).filter(|(one, other)| address(one) != address(other)).count();
            // Where two maps meet, one neighbour is far away.
            let alone = |three: &&[StoredRecord]| !as_in_log(&three[0], &three[1]) && !as_in_log(&three[1], &three[2]);
            copies += one.windows(3).filter(alone).count();
        }
        #[expect(clippy::cast_precision_loss, reason = "messages of one store")]
        Ok(copies as f64 / self.count as f64)
    }

    fn random(&self, context: &Context) -> Result<Row> {
        let look_ups = LOOK_UPS.min(self.count);
        let in_order = || median_rate(self.count, || read_in_order(&self.engine, self.count));
        let path = || {
            let watch = Stopwatch::start();
            for number in 0..look_ups {
                let offset = QueueOffset::new(number * STRIDE % self.count);
                let fetch = self.engine.fetch(FetchRequest::all(&queue(), offset, FetchLimit::messages(1)))?;
                let found = black_box(fetch.records.first()).map(|record| record.offset);
                if found != Some(offset) {
                    return Err(format!("{found:?} was fetched at {offset}").into());
                }
            }
            Ok(per_second(look_ups, watch.elapsed()))
        };
        let pairs = side_by_side(context.scale.pairs, in_order, path)?;
        let verified = look_ups * pairs.len() as u64;
        let name = self.name("fetch one at random offsets");
        Ok(subject(name, "msg/s", "in order", Goal::None, "fetches of 1, one thread").row(pairs, verified))
    }

    /// Closes the store, and reads it with none of its pages in memory.
    fn cold(self, context: &Context) -> Result<[Row; 2]> {
        let Self { bodies, folder, engine, count } = self;
        let last = QueueOffset::new(count - 1);
        let fetch = engine.fetch(FetchRequest::all(&queue(), last, FetchLimit::messages(1)))?;
        let end = fetch.records.first().ok_or("the last record is gone")?.position.get() + bodies.body_bytes() as u64;
        engine.close()?;
        drop(engine);
        let files = Files::below(folder.path(), end)?;
        #[expect(clippy::cast_precision_loss, reason = "bytes of one store")]
        let megabytes = |time: Duration| files.bytes as f64 / 1e6 / time.as_secs_f64();
        let limit = || {
            drop_pages(folder.path())?;
            Ok(megabytes(files.read(None)?))
        };
        let checked = side_by_side(context.scale.pairs, limit, || {
            drop_pages(folder.path())?;
            Ok(megabytes(files.read(Some(HEADER_BYTES + bodies.body_bytes()))?))
        })?;
        let path = || {
            drop_pages(folder.path())?;
            let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
            let time = read_in_order(&engine, count)?;
            engine.close()?;
            Ok(megabytes(time))
        };
        let pairs = side_by_side(context.scale.pairs, limit, path)?;
        let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
        let verified = check_queue(&engine, bodies, count, Ok)?;
        engine.close()?;
        let name = format!("cold fetch in order, {}", bytes(bodies.body_bytes()));
        let note = "files' pages dropped from the page cache before each; every checksum is checked; the device's own \
                    cache is not emptied; the limit reads the log and the consume queue in reads of 1 MiB";
        let fetch = subject(name, "MB/s", "sequential read", Goal::AtLeast(0.7), note).row(pairs, verified);
        let name = format!("bare reads with checksums, {}", bytes(bodies.body_bytes()));
        let note = "the limit with a CRC-32C over each piece of a record's size, by the same thread";
        Ok([fetch, subject(name, "MB/s", "sequential read", Goal::None, note).row(checked, count)])
    }
}

/// Fetches `0..count` in order and counts the bytes of the bodies.
fn read_in_order(engine: &MmapEngine, count: u64) -> Result<Duration> {
    let (queue, limit) = (queue(), FetchLimit::messages(FETCH_MESSAGES));
    let (mut next, mut total) = (QueueOffset::ZERO, 0);
    let watch = Stopwatch::start();
    while next.get() < count {
        let fetch = engine.fetch(FetchRequest::all(&queue, next, limit))?;
        if fetch.records.first().map(|record| record.offset) != Some(next) {
            return Err(format!("{} records came at {next} of {count}", fetch.records.len()).into());
        }
        for stored in &fetch.records {
            total += black_box(&stored.record.body).len();
        }
        next = fetch.next;
    }
    black_box(total);
    Ok(watch.elapsed())
}

/// The files of a store that a read of its queue needs, each with how much of it is in use.
pub(super) struct Files {
    files: Vec<(PathBuf, u64)>,
    pub(super) bytes: u64,
}

impl Files {
    /// `log_end` is where the last record ends in the log; what is prepared behind it is not read.
    pub(super) fn below(folder: &Path, log_end: u64) -> Result<Self> {
        let (mut files, mut left) = (Vec::new(), log_end);
        for path in files_below(&folder.join("commitlog"))? {
            let used = std::fs::metadata(&path)?.len().min(left);
            left -= used;
            files.push((path, used));
        }
        for path in files_below(&folder.join("consumequeue"))? {
            let length = std::fs::metadata(&path)?.len();
            files.push((path, length));
        }
        let bytes = files.iter().map(|(_, used)| used).sum();
        Ok(Self { files, bytes })
    }

    /// Reads all of it, and if asked to computes a checksum over each piece of so many bytes.
    pub(super) fn read(&self, checked: Option<usize>) -> Result<Duration> {
        let (mut buffer, mut sum) = (vec![0; READ_BYTES], 0u32);
        let watch = Stopwatch::start();
        for (path, used) in &self.files {
            let mut file = File::open(path)?.take(*used);
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                if let Some(piece) = checked {
                    sum = buffer[..read].chunks(piece).fold(sum, |sum, piece| sum ^ crc32c::crc32c(piece));
                }
            }
        }
        black_box(sum);
        Ok(watch.elapsed())
    }
}

/// Looks messages up by keys of which each has one.
fn by_key(context: &Context, bodies: &Bodies) -> Result<Row> {
    let folder = context.place.folder()?;
    let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
    let (queue, look_ups) = (queue(), LOOK_UPS.min(context.scale.read_bytes / bodies.body_bytes() as u64));
    for first in (0..look_ups).step_by(FETCH_MESSAGES) {
        let mut batch = WriteBatch::new(stored_at());
        for number in first..(first + FETCH_MESSAGES as u64).min(look_ups) {
            let mut attributes = AttributesBuilder::default();
            attributes.key(&number.to_string());
            let record = Record::new(bodies.body(number), stored_at());
            batch.append(&queue, record.with_attributes(attributes.build()?));
        }
        engine.apply(batch)?;
    }
    let in_order = || median_rate(look_ups, || read_in_order(&engine, look_ups));
    let path = || {
        let watch = Stopwatch::start();
        for number in 0..look_ups {
            let number = number * STRIDE % look_ups;
            let (key, to) = (number.to_string(), Timestamp::MAX);
            let query = KeyQuery { topic: &queue.topic, key: &key, from: Timestamp::MIN, to, limit: 1 };
            let found = engine.find(query)?;
            let offset = found.first().map(|located| located.stored.offset.get());
            if offset != Some(number) {
                return Err(format!("{offset:?} was found for key {number}").into());
            }
        }
        Ok(per_second(look_ups, watch.elapsed()))
    };
    let pairs = side_by_side(context.scale.pairs, in_order, path)?;
    let verified = check_queue(&engine, bodies, look_ups, Ok)?;
    engine.close()?;
    let name = format!("find one by key, {}", bytes(bodies.body_bytes()));
    Ok(subject(name, "msg/s", "in order", Goal::None, "one key per message, one thread").row(pairs, verified))
}
