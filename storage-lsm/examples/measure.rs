//! Measures the engine against bare fjall: `cargo run --release -p cuemq-storage-lsm --example measure -- DIRECTORY
//! [PAIRS] [BODY_BYTES BATCH_RECORDS]`. The directory must not exist; it is removed at the end.
//!
//! Both sides do the same to the same rows. The rows are read out of a store that the engine wrote, so bare fjall
//! writes exactly what the engine writes, the state that goes with each batch included, to the same key spaces with the
//! same settings, and each batch reaches the operating system before the next (`PersistMode::Buffer`). Only fjall's own
//! calls are timed: encoded rows lie ready and fjall copies them into its batch, while the engine encodes its own. A
//! scan takes every record of a queue in order: the engine by fetches as a consumer does, bare fjall by one iteration
//! over `cq` beside one over `log`. "Live" scans read what was just written; "table" scans read the engine's store
//! after it was closed, and bare fjall a copy of it. Both sides take turns slice by slice within a run; a ratio is the
//! engine's rate in one run as a share of fjall's.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement reads the clock and prints")]

use std::error::Error;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, Timestamp, TopicName, WriteBatch,
};
use cuemq_storage_lsm::{LsmEngine, LsmSettings};
use fjall::config::FilterPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Row = (Bytes, Bytes);

const BODY_BYTES: [usize; 2] = [256, 1024];
const BATCH_RECORDS: [usize; 4] = [1, 64, 256, 1024];
const PAIRS: usize = 5;
/// Bodies written in one run: enough for memtables to be flushed beside the writes.
const RUN_BYTES: usize = 96 << 20;
/// Records that one side handles before it is the other's turn, if a batch is not larger.
const SLICE_RECORDS: usize = 2048;
/// As many as a consumer asks for at once.
const FETCH_RECORDS: usize = 256;
/// What of the engine's store bare fjall opens.
const STORE: &str = "store";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let directory = Path::new(arguments.first().ok_or("give a directory that does not exist")?);
    let number = |at: usize| arguments.get(at).map(|text| text.parse::<usize>()).transpose();
    let pairs = number(1)?.unwrap_or(PAIRS);
    std::fs::create_dir(directory)?;
    println!("{pairs} pairs each; engine / bare fjall: min median max of the ratios (records/s of the medians)");
    for body in BODY_BYTES.into_iter().filter(|body| number(2).is_ok_and(|only| only.is_none_or(|only| only == *body)))
    {
        let rows = Rows::written_by_the_engine(&directory.join("rows"), body)?;
        for batch in BATCH_RECORDS {
            if number(3)?.is_none_or(|only| only == batch) {
                compare(directory, &rows, batch, pairs)?;
            }
        }
    }
    Ok(std::fs::remove_dir_all(directory)?)
}

/// What each side took for the same work.
#[derive(Default)]
struct Times {
    what: &'static str,
    engine: Vec<Duration>,
    bare: Vec<Duration>,
}

impl Times {
    fn of(what: &'static str) -> Self {
        Self { what, ..Self::default() }
    }

    fn report(&mut self, rows: &Rows, batch: usize) {
        let ratio = |(engine, bare): (&Duration, &Duration)| bare.as_secs_f64() / engine.as_secs_f64();
        let mut ratios: Vec<f64> = self.engine.iter().zip(&self.bare).map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let rate = |times: &mut Vec<Duration>| {
            times.sort();
            rows.log.len() as f64 / times[times.len() / 2].as_secs_f64() / 1e3
        };
        let (engine, bare) = (rate(&mut self.engine), rate(&mut self.bare));
        let (least, median, most) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        println!(
            "{:>5} B  batch {batch:>4}  {:<11} {least:.2} {median:.2} {most:.2}  ({engine:.0} k/s against {bare:.0} k/s)",
            rows.body, self.what
        );
    }
}

/// Does a run of work slice by slice, both sides in turn, so that whatever else the machine does meets both.
fn in_turns(
    times: &mut Times,
    rows: &Rows,
    slice: usize,
    mut engine: impl FnMut(Range<usize>) -> Outcome<Duration>,
    mut bare: impl FnMut(Range<usize>) -> Outcome<Duration>,
) -> Outcome<()> {
    let (mut engine_took, mut bare_took) = (Duration::ZERO, Duration::ZERO);
    for (turn, first) in (0..rows.log.len()).step_by(slice).enumerate() {
        let range = first..rows.log.len().min(first + slice);
        if turn % 2 == 0 {
            engine_took += engine(range.clone())?;
            bare_took += bare(range)?;
        } else {
            bare_took += bare(range.clone())?;
            engine_took += engine(range)?;
        }
    }
    times.engine.push(engine_took);
    times.bare.push(bare_took);
    Ok(())
}

fn compare(directory: &Path, rows: &Rows, batch: usize, pairs: usize) -> Outcome<()> {
    let (engine_at, bare_at) = (directory.join("engine"), directory.join("bare"));
    let [mut written, mut live, mut tables] = [Times::of("write"), Times::of("live scan"), Times::of("table scan")];
    for _ in 0..pairs {
        let (engine, bare) = (LsmEngine::open(&engine_at, &LsmSettings::default())?, Bare::open(&bare_at)?);
        let write_engine = |range| write_engine(&engine, rows.body, batch, range);
        in_turns(&mut written, rows, SLICE_RECORDS.max(batch), write_engine, |range| bare.write(rows, batch, range))?;
        in_turns(&mut live, rows, SLICE_RECORDS, |range| scan_engine(&engine, range), bare.scan())?;
        drop(bare);
        engine.close()?;
        std::fs::remove_dir_all(&bare_at)?;
        copy_folder(&engine_at.join(STORE), &bare_at)?;
        let (engine, bare) = (LsmEngine::open(&engine_at, &LsmSettings::default())?, Bare::open(&bare_at)?);
        in_turns(&mut tables, rows, SLICE_RECORDS, |range| scan_engine(&engine, range), bare.scan())?;
        drop((engine, bare));
        std::fs::remove_dir_all(&engine_at)?;
        std::fs::remove_dir_all(&bare_at)?;
    }
    [written, live, tables].iter_mut().for_each(|times| times.report(rows, batch));
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            std::fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// The rows of one run as they lie in the store, and the bodies that they were made of.
struct Rows {
    body: usize,
    log: Vec<Row>,
    cq: Vec<Row>,
    state: Row,
}

impl Rows {
    fn written_by_the_engine(directory: &Path, body: usize) -> Outcome<Self> {
        let engine = LsmEngine::open(directory, &LsmSettings::default())?;
        let records = RUN_BYTES / body;
        for number in (0..records).step_by(BATCH_RECORDS[3]) {
            engine.apply(batch_of(body, number, BATCH_RECORDS[3].min(records - number))?)?;
        }
        engine.close()?;
        let bare = Bare::open(&directory.join(STORE))?;
        let all = |space: &Keyspace| -> Outcome<Vec<Row>> {
            let rows = bare.database.snapshot().iter(space).map(|row| Ok(row.into_inner()?));
            rows.map(|row| row.map(|(key, value)| (copy(&key), copy(&value)))).collect()
        };
        let state = all(&bare.meta)?.swap_remove(0);
        let rows = Self { body, log: all(&bare.log)?, cq: all(&bare.cq)?, state };
        drop(bare);
        std::fs::remove_dir_all(directory)?;
        Ok(rows)
    }
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn queue() -> Outcome<QueueKey> {
    Ok(QueueKey::new(TopicName::new("measure")?, QueueId::FIRST))
}

fn batch_of(body: usize, first: usize, records: usize) -> Outcome<WriteBatch> {
    let now = Timestamp::from_millis(0);
    let record = |number: usize| Record::new(vec![number.to_le_bytes()[0]; body], now);
    let mut batch = WriteBatch::new(now);
    batch.append_all(&queue()?, (first..first + records).map(record).collect());
    Ok(batch)
}

fn write_engine(engine: &LsmEngine, body: usize, records: usize, range: Range<usize>) -> Outcome<Duration> {
    let mut spent = Duration::ZERO;
    for first in range.clone().step_by(records) {
        let batch = batch_of(body, first, records.min(range.end - first))?;
        let start = Instant::now();
        black_box(engine.apply(batch)?);
        spent += start.elapsed();
    }
    Ok(spent)
}

fn scan_engine(engine: &LsmEngine, range: Range<usize>) -> Outcome<Duration> {
    let queue = queue()?;
    let (mut next, end) = (range.start, range.end);
    let start = Instant::now();
    while next < end {
        let limit = FetchLimit::messages(FETCH_RECORDS.min(end - next));
        let fetched = engine.fetch(FetchRequest::all(&queue, QueueOffset::new(next as u64), limit))?;
        if fetched.records.is_empty() {
            return Err("the scan missed records".into());
        }
        next += fetched.records.len();
        for stored in fetched.records {
            black_box(&stored.record.body);
        }
    }
    Ok(start.elapsed())
}

/// fjall with the engine's key spaces and settings and nothing else.
struct Bare {
    log: Keyspace,
    cq: Keyspace,
    meta: Keyspace,
    database: Database,
}

impl Bare {
    fn open(directory: &Path) -> Outcome<Self> {
        let settings = LsmSettings::default();
        let database = Database::builder(directory)
            .manual_journal_persist(true)
            .worker_threads(settings.worker_threads)
            .max_journaling_size(settings.journal_bytes)
            .cache_size(settings.cache_bytes)
            .open()?;
        let options =
            |memtable| KeyspaceCreateOptions::default().manual_journal_persist(true).max_memtable_size(memtable);
        let small = settings.memtable_bytes / 4;
        let log = database.keyspace("log", || options(settings.memtable_bytes).expect_point_read_hits(true))?;
        let cq = database.keyspace("cq", || options(small).filter_policy(FilterPolicy::disabled()))?;
        database.keyspace("key", || options(small).filter_policy(FilterPolicy::disabled()))?;
        let meta = database.keyspace("meta", || options(small))?;
        Ok(Self { log, cq, meta, database })
    }

    fn write(&self, rows: &Rows, records: usize, range: Range<usize>) -> Outcome<Duration> {
        let mut spent = Duration::ZERO;
        for (log, cq) in rows.log[range.clone()].chunks(records).zip(rows.cq[range].chunks(records)) {
            let start = Instant::now();
            let mut batch = OwnedWriteBatch::with_capacity(self.database.clone(), 2 * records + 1)
                .durability(Some(PersistMode::Buffer));
            for ((log_key, log_value), (cq_key, cq_value)) in log.iter().zip(cq) {
                batch.insert(&self.log, &log_key[..], &log_value[..]);
                batch.insert(&self.cq, &cq_key[..], &cq_value[..]);
            }
            batch.insert(&self.meta, &rows.state.0[..], &rows.state.1[..]);
            batch.commit()?;
            spent += start.elapsed();
        }
        Ok(spent)
    }

    /// One iteration, which goes on where it was from call to call.
    fn scan(&self) -> impl FnMut(Range<usize>) -> Outcome<Duration> {
        let snapshot = self.database.snapshot();
        let mut rows = snapshot.iter(&self.cq).zip(snapshot.iter(&self.log));
        move |range| {
            let start = Instant::now();
            for _ in range {
                let (cq, log) = rows.next().ok_or("the scan missed rows")?;
                black_box((cq.into_inner()?, log.into_inner()?));
            }
            Ok(start.elapsed())
        }
    }
}
