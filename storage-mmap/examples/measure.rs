//! Measures the engine beside its limits, in one process:
//! `cargo run --release -p cuemq-storage-mmap --example measure -- DIRECTORY [MIB] [append|durable|fetch|open ...]`.
//! Stores are made in temporary directories below DIRECTORY and removed again; each takes about MIB, 256 by default.
//! Every ratio is the median of several rounds, with the least and the greatest; every store is read back and counted.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement reads the clock and prints")]
#![allow(clippy::cast_precision_loss, reason = "rates are approximate")]

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, Timestamp, TopicName, WriteBatch,
};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROUNDS: usize = 5;
const BATCH_RECORDS: u64 = 64;
const BODIES: u64 = 1021;
const SYNCS: usize = 1000;
/// Header and topic of a record, as this program makes them.
const HEAD_BYTES: u64 = 64 + 5;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("give a directory")?;
    let mib: u64 = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let wanted: Vec<String> = arguments.collect();
    let is_wanted = |what: &str| wanted.is_empty() || wanted.iter().any(|word| word == what);
    for body_bytes in [256, 1024] {
        let run = Run::new(Path::new(&directory), mib << 20, body_bytes)?;
        if is_wanted("append") {
            run.append(false)?;
            run.append(true)?;
        }
        if is_wanted("durable") {
            [1, 16, 64, 256].into_iter().try_for_each(|batch| run.durable(batch))?;
        }
        if is_wanted("fetch") {
            run.fetch()?;
        }
        if is_wanted("open") {
            run.open()?;
        }
    }
    Ok(())
}

struct Run<'a> {
    directory: &'a Path,
    bodies: Vec<Bytes>,
    queue: QueueKey,
    /// Records of a store, a multiple of the batch.
    count: u64,
    bytes: u64,
}

impl<'a> Run<'a> {
    fn new(directory: &'a Path, bytes: u64, body_bytes: u64) -> Outcome<Self> {
        let mut state = 1u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let bodies = (0..BODIES).map(|_| (0..body_bytes).map(|_| noise()).collect()).collect();
        let queue = QueueKey::new(TopicName::new("topic")?, QueueId::FIRST);
        let count = bytes / (HEAD_BYTES + body_bytes + 1) / BATCH_RECORDS * BATCH_RECORDS;
        Ok(Self { directory, bodies, queue, count, bytes })
    }

    fn body(&self, number: u64) -> &Bytes {
        &self.bodies[usize::try_from(number % BODIES).expect("small")]
    }

    fn batch(&self, first: u64, count: u64) -> WriteBatch {
        let at = Timestamp::from_millis(0);
        let mut batch = WriteBatch::new(at);
        let records = (first..first + count).map(|number| Record::new(self.body(number).clone(), at)).collect();
        batch.append_all(&self.queue, records);
        batch
    }

    fn store(&self) -> Outcome<(tempfile::TempDir, MmapEngine)> {
        let home = tempfile::tempdir_in(self.directory)?;
        let engine = MmapEngine::open(home.path(), MmapSettings::default())?;
        Ok((home, engine))
    }

    fn print(&self, what: &str, mut values: Vec<f64>) {
        values.sort_by(f64::total_cmp);
        let (least, median, most) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        println!("{:>5} B  {what}: {median:.2} ({least:.2} to {most:.2})", self.bodies[0].len());
    }

    /// LIMIT: records per second that one thread encodes into warm memory, with a sum and an entry for each.
    fn limit(&self) -> Limit {
        let step = (64 + self.bodies[0].len()).next_multiple_of(8);
        let mut log = vec![1u8; (64 << 20) / step * step];
        let mut entries = vec![1u8; log.len() / step * 20];
        let records = (log.len() / step) as f64;
        let (mut by_wall, mut by_processor) = (Vec::new(), Vec::new());
        for _ in 0..6 {
            let (start, before) = (Instant::now(), processor_seconds());
            self.encode(step, &mut log, &mut entries);
            black_box((&mut log, &mut entries));
            by_wall.push(records / start.elapsed().as_secs_f64());
            by_processor.push(records / (processor_seconds() - before));
        }
        Limit { by_wall: middle(by_wall.split_off(1)), by_processor: middle(by_processor.split_off(1)) }
    }

    fn encode(&self, step: usize, log: &mut [u8], entries: &mut [u8]) {
        let (head, len) = (64, 64 + self.bodies[0].len());
        for ((record, entry), number) in log.chunks_exact_mut(step).zip(entries.chunks_exact_mut(20)).zip(0u64..) {
            let position = number * step as u64;
            record[4..12].copy_from_slice(&(len as u64).to_le_bytes());
            record[12..20].copy_from_slice(&position.to_le_bytes());
            record[20..28].copy_from_slice(&number.to_le_bytes());
            record[28..head].fill(0);
            record[head..len].copy_from_slice(self.body(number));
            let crc = crc32c::crc32c(&record[4..len]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            entry[..8].copy_from_slice(&position.to_be_bytes());
            entry[8..12].copy_from_slice(&crc.to_be_bytes());
            entry[12..].fill(0);
        }
    }

    fn append(&self, is_prepared: bool) -> Outcome<()> {
        let (mut ratios, mut limits, mut worst, mut busy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (_home, engine) = self.store()?;
            if is_prepared {
                engine.prepare_room(self.bytes)?;
            }
            let limit = self.limit();
            let (start, mut longest, before) = (Instant::now(), 0f64, processor_seconds());
            for first in (0..self.count).step_by(64) {
                let batch = self.batch(first, BATCH_RECORDS);
                let began = Instant::now();
                black_box(engine.apply(batch)?);
                longest = longest.max(began.elapsed().as_secs_f64());
            }
            let rate = self.count as f64 / start.elapsed().as_secs_f64();
            ratios.push(rate / limit.by_wall);
            busy.push(self.count as f64 / (processor_seconds() - before) / limit.by_processor);
            limits.push(limit.by_wall / 1e6);
            worst.push(longest * 1e3);
            assert_eq!(self.read(&engine, 1024)?, self.count, "all of it is there");
        }
        let room = if is_prepared { "prepared room" } else { "no room prepared" };
        self.print("LIMIT, million records/s", limits);
        self.print(&format!("append, batches of {BATCH_RECORDS} made and applied, {room}, by LIMIT"), ratios);
        self.print(&format!("the same by the writer's own processor time, {room}"), busy);
        self.print(&format!("longest apply, {room}, ms"), worst);
        Ok(())
    }

    /// Median seconds of a positioned write of 4 KiB and a sync in a file that was written before.
    fn sync_time(&self) -> Outcome<f64> {
        let home = tempfile::tempdir_in(self.directory)?;
        let file = File::create_new(home.path().join("file"))?;
        file.write_all_at(&vec![0; 4096 * SYNCS], 0)?;
        file.sync_all()?;
        let mut times = Vec::new();
        for number in 0..SYNCS as u64 {
            let start = Instant::now();
            file.write_all_at(&[7; 4096], number * 4096)?;
            file.sync_data()?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[SYNCS / 2])
    }

    fn durable(&self, batch_records: u64) -> Outcome<()> {
        let (mut ratios, mut medians) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let sync = self.sync_time()?;
            let (_home, engine) = self.store()?;
            let mut times = Vec::new();
            for number in 0..SYNCS as u64 {
                let mut batch = self.batch(number * batch_records, batch_records);
                batch.expect_sync();
                let start = Instant::now();
                engine.apply(batch)?;
                engine.sync()?;
                times.push(start.elapsed().as_secs_f64());
            }
            ratios.push(sync * SYNCS as f64 / times.iter().sum::<f64>());
            times.sort_by(f64::total_cmp);
            medians.push(sync / times[SYNCS / 2]);
            assert_eq!(self.read(&engine, 1024)?, SYNCS as u64 * batch_records, "all of it is there");
        }
        self.print(&format!("durable batches of {batch_records}, rate times SYNC, by the mean"), ratios);
        self.print(&format!("durable batches of {batch_records}, rate times SYNC, by the median"), medians);
        Ok(())
    }

    fn read(&self, engine: &MmapEngine, fetch: usize) -> Outcome<u64> {
        let mut next = QueueOffset::ZERO;
        loop {
            let request = FetchRequest::all(&self.queue, next, FetchLimit::messages(fetch));
            let fetched = black_box(engine.fetch(request)?);
            if fetched.records.is_empty() {
                return Ok(next.get());
            }
            next = fetched.next;
        }
    }

    /// Records per second that a bare loop hands out as slices of memory, found through a list of entries.
    fn bare(&self, fetch: usize) -> f64 {
        let len = 64 + self.bodies[0].len();
        let count = usize::try_from(self.count).expect("small");
        let memory = Bytes::from_owner(vec![1u8; count * len]);
        let entries: Vec<(usize, usize)> = (0..count).map(|number| (number * len, len)).collect();
        let before = processor_seconds();
        for entries in entries.chunks(fetch) {
            let slices: Vec<Bytes> = entries.iter().map(|(at, len)| memory.slice(*at..at + len)).collect();
            black_box(slices);
        }
        self.count as f64 / (processor_seconds() - before)
    }

    fn fetch(&self) -> Outcome<()> {
        let (home, engine) = self.store()?;
        (0..self.count).step_by(64).try_for_each(|first| engine.apply(self.batch(first, BATCH_RECORDS)).map(|_| ()))?;
        for fetch in [64, 256, 1024] {
            let mut ratios = Vec::new();
            for _ in 0..ROUNDS {
                let bare = self.bare(fetch);
                let before = processor_seconds();
                let count = self.read(&engine, fetch)?;
                ratios.push(count as f64 / (processor_seconds() - before) / bare);
            }
            self.print(&format!("fetches of {fetch}, by a bare loop over slices, processor time"), ratios);
        }
        engine.close()?;
        drop(engine);
        self.cold(home.path())
    }

    /// Reads with nothing cached, beside reading the log's first file from front to back.
    fn cold(&self, store: &Path) -> Outcome<()> {
        let mut ratios = Vec::new();
        let log = File::open(store.join(format!("commitlog/{:020}", 0)))?;
        let used = usize::try_from(self.bytes.min(log.metadata()?.len()))?;
        for _ in 0..ROUNDS {
            forget(&log)?;
            let mut buffer = vec![0; 1 << 20];
            let start = Instant::now();
            for at in (0..used).step_by(buffer.len()) {
                let len = buffer.len().min(used - at);
                log.read_exact_at(&mut buffer[..len], at as u64)?;
                black_box(&buffer);
            }
            let bare = used as f64 / start.elapsed().as_secs_f64();
            let engine = MmapEngine::open(store, MmapSettings::default())?;
            forget(&log)?;
            let start = Instant::now();
            assert_eq!(self.read(&engine, 1024)?, self.count, "all of it is there");
            ratios.push(used as f64 / start.elapsed().as_secs_f64() / bare);
            engine.close()?;
        }
        self.print("fetches of 1024 with nothing cached, by reading the file", ratios);
        Ok(())
    }

    fn open(&self) -> Outcome<()> {
        let (mut empty, mut clean, mut dirty) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let home = tempfile::tempdir_in(self.directory)?;
            let store = home.path().join("store");
            let millis = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
            let start = Instant::now();
            let engine = MmapEngine::open(&store, MmapSettings::default())?;
            let mut first = self.batch(0, 1);
            first.expect_sync();
            engine.apply(first)?;
            engine.sync()?;
            empty.push(millis(start));
            (1..self.count).step_by(64).try_for_each(|first| engine.apply(self.batch(first, 64)).map(|_| ()))?;
            engine.close()?;
            drop(engine);
            let start = Instant::now();
            let engine = MmapEngine::open(&store, MmapSettings::default())?;
            clean.push(millis(start));
            engine.close()?;
            drop(engine);
            std::fs::remove_file(store.join("checkpoint"))?;
            let bytes = self.count as f64 * (HEAD_BYTES as f64 + self.bodies[0].len() as f64);
            let scan = self.scan_rate(&store)?;
            let start = Instant::now();
            let engine = MmapEngine::open(&store, MmapSettings::default())?;
            dirty.push(bytes / start.elapsed().as_secs_f64() / scan);
            engine.close()?;
        }
        self.print("opening an empty directory to the first durable record, ms", empty);
        self.print("opening after a close, ms", clean);
        self.print("opening without a checkpoint, by a scan of sums in the cache", dirty);
        Ok(())
    }

    /// Bytes per second whose sums one thread computes over the log, which is in the cache.
    fn scan_rate(&self, store: &Path) -> Outcome<f64> {
        let log = std::fs::read(store.join(format!("commitlog/{:020}", 0)))?;
        let start = Instant::now();
        black_box(log.chunks(usize::try_from(HEAD_BYTES)? + self.bodies[0].len()).map(crc32c::crc32c).max());
        Ok(log.len() as f64 / start.elapsed().as_secs_f64())
    }
}

/// Records per second of time on the wall and of time that the thread had a processor.
struct Limit {
    by_wall: f64,
    by_processor: f64,
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds that this thread had a processor. On a machine that others use too, this is steadier than the wall's time.
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Has the operating system forget a file's pages; only clean ones can go.
fn forget(file: &File) -> Outcome<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}
