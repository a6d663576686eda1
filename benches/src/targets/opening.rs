//! Target 8: opening a store again, after a close and after the end of a process that could not close.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueOffset};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

use super::fetch::Files;
use super::row::{Goal, Row, Subject, against, side_by_side};
use super::{Context, child};
use crate::Result;
use crate::paths::fetch::load;
use crate::paths::reopen::copy;
use crate::stopwatch::Stopwatch;
use crate::table::short;
use crate::workload::{Bodies, check_queue, frame_bytes, queue, stored_at};

const BODY_BYTES: usize = 256;
/// Milliseconds that a clean opening may take.
const CLEAN_MS: f64 = 50.0;
/// How many times fewer messages the store has that shows whether the length of the log matters.
const SHORT_SHARE: u64 = 10;
/// Bytes that the scan goes over: more than caches hold.
const SCAN_BYTES: usize = 256 << 20;
/// Bytes of one frame of 256 messages.
const FRAME_BYTES: usize = frame_bytes(256, BODY_BYTES);
/// Bytes of one record in it, more or less.
const RECORD_BYTES: usize = FRAME_BYTES / 256;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let (bodies, all) = (Bodies::new(BODY_BYTES), context.scale.opened_messages);
    let mut rows = vec![clean(context, &bodies, all)?, clean(context, &bodies, all / SHORT_SHARE)?];
    rows.extend(dropped(context, &bodies, context.scale.dirty_messages)?);
    if context.scale.kills && context.program.is_some() {
        rows.push(killed(context, &bodies, context.scale.dirty_messages)?);
    }
    Ok(rows)
}

fn messages(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "some millions")]
    let count = count as f64;
    short(count)
}

fn open(folder: &Path, count: u64) -> Result<(MmapEngine, Duration)> {
    let watch = Stopwatch::start();
    let engine = MmapEngine::open(folder, MmapSettings::default())?;
    let time = watch.elapsed();
    let bounds = engine.bounds(&queue())?;
    if bounds.start.get() != 0 || bounds.end.get() != count {
        return Err(format!("the opened queue has {bounds:?}, {count} messages were written").into());
    }
    Ok((engine, time))
}

fn clean(context: &Context, bodies: &Bodies, count: u64) -> Result<Row> {
    let folder = context.place.folder()?;
    let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
    load(&engine, bodies, count)?;
    engine.close()?;
    drop(engine);
    let pairs = against(context.scale.pairs, CLEAN_MS, || {
        let (engine, time) = open(folder.path(), count)?;
        engine.close()?;
        Ok(time.as_secs_f64() * 1e3)
    })?;
    let (engine, _) = open(folder.path(), count)?;
    let verified = check_queue(&engine, bodies, count, Ok)?;
    engine.close()?;
    let subject = Subject {
        number: 8,
        name: format!("open after a close, {} messages of 256 B", messages(count)),
        unit: "ms",
        flush: "durable",
        limit: "50 ms",
        goal: Goal::AtMost(1.0),
        note: "files in the page cache; two sizes show whether the length of the log matters".into(),
    };
    Ok(subject.row(pairs, verified))
}

/// Megabytes per second that one thread checks in memory, frame by frame.
fn scan_rate(memory: &[u8]) -> f64 {
    let watch = Stopwatch::start();
    let sum = memory.chunks(FRAME_BYTES).fold(0u32, |sum, frame| sum.wrapping_add(crc32c::crc32c(frame)));
    black_box(sum);
    megabytes(memory.len() as u64, watch.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "bytes of one store")]
fn megabytes(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

/// Bytes of log up to the last message.
fn log_bytes(engine: &MmapEngine, count: u64) -> Result<u64> {
    let last = QueueOffset::new(count - 1);
    let fetch = engine.fetch(FetchRequest::all(&queue(), last, FetchLimit::messages(1)))?;
    Ok(fetch.records.first().ok_or("the last record is gone")?.position.get() + BODY_BYTES as u64)
}

fn dirty_subject(name: String, note: &str) -> Subject {
    let note = format!(
        "{note}; no checkpoint was written, so all of the log is checked; the limit is a CRC-32C over memory, frame by frame"
    );
    let goal = Goal::AtLeast(0.5);
    Subject { number: 8, name, unit: "MB/s", flush: "durable", limit: "CRC scan in memory", goal, note }
}

/// Opens copies of a synced store that is still open.
fn dropped(context: &Context, bodies: &Bodies, count: u64) -> Result<[Row; 2]> {
    let (folder, image) = (context.place.folder()?, context.place.folder()?);
    let engine = fill(folder.path(), count)?;
    copy(folder.path(), image.path())?;
    let log_bytes = log_bytes(&engine, count)?;
    engine.close()?;
    drop((engine, folder));
    let memory = vec![1u8; SCAN_BYTES.min(usize::try_from(log_bytes)?)];
    let mut verified = 0;
    let path = || {
        let folder = context.place.folder()?;
        copy(image.path(), folder.path())?;
        let (engine, time) = open(folder.path(), count)?;
        if verified == 0 {
            verified = check_queue(&engine, bodies, count, Ok)?;
        }
        engine.close()?;
        Ok(megabytes(log_bytes, time))
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(scan_rate(&memory)), path)?;
    let name = format!("open what was not closed, {} messages of 256 B", messages(count));
    let opened = dirty_subject(name, "copies of a synced store that was open, in the page cache").row(pairs, verified);
    let files = Files::below(image.path(), log_bytes)?;
    // Once, so that the cache has all of it.
    files.read(None)?;
    let path = || Ok(megabytes(files.bytes, files.read(Some(RECORD_BYTES))?));
    let pairs = side_by_side(context.scale.pairs, || Ok(scan_rate(&memory)), path)?;
    let subject = Subject {
        name: format!("bare reads of such a store, {} messages of 256 B", messages(count)),
        goal: Goal::None,
        note: "from the page cache, in pieces of 1 MiB, with a CRC-32C over each piece of a record's size; nothing is made of it"
            .into(),
        ..dirty_subject(String::new(), "")
    };
    Ok([opened, subject.row(pairs, count)])
}

/// Opens what a process left behind that was killed.
fn killed(context: &Context, bodies: &Bodies, count: u64) -> Result<Row> {
    let mut verified = 0;
    let memory = vec![1u8; SCAN_BYTES.min(usize::try_from(count)? * (BODY_BYTES + 64))];
    let path = || {
        let folder = context.place.folder()?;
        let mut child = child::Child::start(context, "fill", folder.path(), count)?;
        child.number()?;
        child.kill()?;
        let (engine, time) = open(folder.path(), count)?;
        let rate = megabytes(log_bytes(&engine, count)?, time);
        if verified == 0 {
            verified = check_queue(&engine, bodies, count, Ok)?;
        }
        engine.close()?;
        Ok(rate)
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(scan_rate(&memory)), path)?;
    let name = format!("open after kill -9, {} messages of 256 B", messages(count));
    Ok(dirty_subject(name, "a process that had written and synced everything").row(pairs, verified))
}

/// A store that was filled and synced, of which no checkpoint speaks.
pub(super) fn fill(folder: &Path, count: u64) -> Result<MmapEngine> {
    let settings = MmapSettings { checkpoint_after_bytes: u64::MAX, ..MmapSettings::default() };
    let engine = MmapEngine::open(folder, settings)?;
    load(&engine, &Bodies::new(BODY_BYTES), count)?;
    engine.sync()?;
    // As a broker does each second: it notes how far the log is durable.
    engine.maintain(stored_at())?;
    Ok(engine)
}
