//! Measures the engine on a real directory: `cargo run --release -p cuemq-storage-mmap --example measure -- DIRECTORY`.
//! The directory must not exist; it is left behind.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement reads the clock and prints")]

use std::error::Error;
use std::time::{Duration, Instant};

use cuemq_storage_api::{
    Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, Timestamp, TopicName, WriteBatch,
};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

const BODY_BYTES: usize = 256;
const BATCH_RECORDS: usize = 64;
const BATCHES: usize = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("give a directory that does not exist")?;
    let queues: Vec<QueueKey> = (0..8)
        .map(|id| Ok::<_, Box<dyn Error>>(QueueKey::new(TopicName::new("measure")?, QueueId::new(id)?)))
        .collect::<Result<_, _>>()?;
    let engine = MmapEngine::open(&directory, MmapSettings::default())?;
    let records = (BATCHES * BATCH_RECORDS) as f64;

    let mut times = Vec::with_capacity(BATCHES);
    for number in 0..BATCHES {
        let batch = batch(&queues[number % queues.len()]);
        let start = Instant::now();
        engine.apply(batch)?;
        times.push(start.elapsed());
    }
    let all: Duration = times.iter().sum();
    times.sort();
    println!(
        "apply, {BATCH_RECORDS} records of {BODY_BYTES} B: median {:?}, p99 {:?}, {:.2} M records/s",
        times[BATCHES / 2],
        times[BATCHES * 99 / 100],
        records / all.as_secs_f64() / 1e6
    );

    let mut times = Vec::new();
    for _ in 0..500 {
        engine.apply(batch(&queues[0]))?;
        let start = Instant::now();
        engine.sync()?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("sync of one such batch: median {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);

    read(&engine, &queues, "fetch, 256 records each, records this process wrote")?;
    timed("maintain", || engine.maintain(Timestamp::from_millis(0)))?;
    timed("close", || engine.close())?;
    drop(engine);
    let engine = timed("open after a clean close", || MmapEngine::open(&directory, MmapSettings::default()))?;
    read(&engine, &queues, "fetch, 256 records each, sums checked")?;
    engine.close()?;
    drop(engine);
    std::fs::remove_file(format!("{directory}/checkpoint"))?;
    let engine = timed("open without a checkpoint", || MmapEngine::open(&directory, MmapSettings::default()))?;
    read(&engine, &queues, "fetch after that")?;
    Ok(())
}

fn batch(queue: &QueueKey) -> WriteBatch {
    let mut batch = WriteBatch::new(Timestamp::from_millis(0));
    batch.append_all(queue, vec![Record::new(vec![7; BODY_BYTES], Timestamp::from_millis(0)); BATCH_RECORDS]);
    batch
}

fn read(engine: &MmapEngine, queues: &[QueueKey], what: &str) -> Result<(), Box<dyn Error>> {
    let (mut count, start) = (0, Instant::now());
    for queue in queues {
        let mut next = QueueOffset::ZERO;
        loop {
            let fetch = engine.fetch(FetchRequest::all(queue, next, FetchLimit::messages(256)))?;
            if fetch.records.is_empty() {
                break;
            }
            (count, next) = (count + fetch.records.len(), fetch.next);
        }
    }
    println!("{what}: {:.2} M records/s", count as f64 / start.elapsed().as_secs_f64() / 1e6);
    Ok(())
}

fn timed<T, E>(what: &str, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let done = act()?;
    println!("{what}: {:?}", start.elapsed());
    Ok(done)
}
