//! Target 1: batches to the raw commit-log engine, against one thread that encodes records in place.

use std::fs::File;
use std::time::Duration;

use cuemq_storage_api::{Engine, WriteBatch};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use tempfile::TempDir;

use super::row::{Goal, Pair, Row, Subject, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::limits::{Encoder, Pipeline};
use crate::place::fill;
use crate::stopwatch::{Stopwatch, processor_time};
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::{Bodies, check_queue, frame_bytes, queue};

/// Messages per batch of which the target speaks.
const JUDGED_BATCH: usize = 64;
/// How many times less is written in a pass that is not judged, and in one to room that is filled before it, which no
/// window has to be passed for.
const CURVE_SHARE: u64 = 8;
const PRE_WRITTEN_SHARE: u64 = 2;
/// Body bytes of batches that are made ahead, so that making them is not timed; few, so that they are still in the
/// cache when they are applied, as a batch is that comes from a sender.
const AHEAD_BYTES: usize = 256 << 10;
/// More than the log adds to a body: header, topic, its share of the frame's header.
const RECORD_OVERHEAD_BYTES: u64 = 128;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let (bodies, mut encoder) = (Bodies::new(body_bytes), Encoder::new(body_bytes));
        for &batch in &context.scale.append_batches {
            rows.extend(measure(context, &bodies, &mut encoder, batch, Room::Fresh)?);
        }
        rows.extend(measure(context, &bodies, &mut encoder, JUDGED_BATCH, Room::PreWritten)?);
        rows.push(filling(context, &bodies, &mut encoder)?);
        rows.push(piping(context, &bodies, &mut encoder)?);
    }
    Ok(rows)
}

/// What the log's file is like where a pass begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// Never written: the file grows, and its pages are made while it is measured.
    Fresh,
    /// Filled before the pass, as LIMIT's memory is.
    PreWritten,
}

impl Room {
    fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh file",
            Self::PreWritten => "pre-written file",
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Fresh => "the system has pages at hand that were just in use",
            Self::PreWritten => "filled as far as the pass reaches and the engine fills ahead of it",
        }
    }
}

/// The rate, and for the batch that is judged what a message costs all threads together.
fn measure(context: &Context, bodies: &Bodies, encoder: &mut Encoder, batch: usize, room: Room) -> Result<Vec<Row>> {
    let judged = batch == JUDGED_BATCH;
    let share = if bodies.body_bytes() < 1024 { 0.7 } else { 0.8 };
    let log_bytes = context.scale.append_bytes
        / match room {
            Room::PreWritten => PRE_WRITTEN_SHARE,
            Room::Fresh if judged => 1,
            Room::Fresh => CURVE_SHARE,
        };
    let count = Scale::messages(log_bytes, bodies.body_bytes(), batch);
    let mut store = Store::new(context, bodies)?;
    let mut costs = Vec::new();
    let mut pairs = Vec::new();
    for _ in 0..context.scale.pairs {
        match room {
            Room::Fresh => context.place.touch_pages(room_bytes(count, bodies.body_bytes()))?,
            Room::PreWritten => store.pre_write(count)?,
        }
        // Between the two, so that the disk is done with the filled room when it is written to.
        let before = encoder.rate();
        let (time, used) = store.append(batch, count)?;
        costs.push(1e9 / per_second(count, used));
        pairs.push(Pair { value: per_second(count, time), limit: f64::midpoint(before, encoder.rate()) });
    }
    let costs = costs.iter().zip(&pairs).map(|(&value, pair)| Pair { value, limit: 1e9 / pair.limit }).collect();
    let subject = Subject {
        number: 1,
        name: format!("raw apply, {}, batches of {batch}, {}", bytes(bodies.body_bytes()), room.name()),
        unit: "msg/s",
        flush: "buffered",
        limit: "LIMIT",
        goal: if judged { Goal::AtLeast(share) } else { Goal::None },
        note: format!(
            "one thread, one queue; {} MiB of bodies per pass, pass behind pass in one new store; {}; only apply is timed",
            log_bytes >> 20,
            room.note()
        ),
    };
    let costing = Subject {
        name: format!("processor time, {}", subject.name),
        unit: "ns/msg",
        limit: "LIMIT's",
        goal: Goal::None,
        note: "of the writer and of the thread that fills room for it, as the system counts it".into(),
        ..subject.clone()
    };
    let verified = store.check()?;
    let costing = judged.then(|| costing.row(costs, verified));
    Ok(std::iter::once(subject.row(pairs, verified)).chain(costing).collect())
}

/// What the system alone allows a log on a fresh file: zeros written to room that was taken, in the steps in which the
/// engine fills it, by one thread that does nothing else. No page of a file is there to be stored into before that.
fn filling(context: &Context, bodies: &Bodies, encoder: &mut Encoder) -> Result<Row> {
    let count = Scale::messages(context.scale.append_bytes, bodies.body_bytes(), JUDGED_BATCH);
    let log_bytes = count / JUDGED_BATCH as u64 * frame_bytes(JUDGED_BATCH, bodies.body_bytes()) as u64;
    let folder = context.place.folder()?;
    let path = || {
        context.place.touch_pages(log_bytes)?;
        let file = File::create(folder.path().join("log"))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, log_bytes)?;
        let watch = Stopwatch::start();
        fill(&file, 0..log_bytes)?;
        Ok(per_second(count, watch.elapsed()))
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(encoder.rate()), path)?;
    let filled = std::fs::metadata(folder.path().join("log"))?.len();
    if filled < log_bytes {
        return Err(format!("{filled} bytes were filled of {log_bytes}").into());
    }
    let subject = Subject {
        number: 1,
        name: format!("bare filling of a fresh file, {}", bytes(bodies.body_bytes())),
        unit: "msg/s",
        flush: "buffered",
        limit: "LIMIT",
        goal: Goal::None,
        note: "one thread writes as many zeros as the messages take in the log; no message, no checksum".into(),
    };
    Ok(subject.row(pairs, count))
}

/// What two threads reach that do nothing but encode the messages and have them written. A comparison and no bound: a log
/// that stores into the map spares the copy, and large messages make it the faster one.
fn piping(context: &Context, bodies: &Bodies, encoder: &mut Encoder) -> Result<Row> {
    let count = Scale::messages(context.scale.append_bytes, bodies.body_bytes(), JUDGED_BATCH);
    let pipeline = Pipeline::new(bodies, &context.place)?;
    let path = || {
        context.place.touch_pages(room_bytes(count, bodies.body_bytes()))?;
        Ok(per_second(count, pipeline.append(count)?))
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(encoder.rate()), path)?;
    let subject = Subject {
        number: 1,
        name: format!("bare log of two threads, {}, fresh file", bytes(bodies.body_bytes())),
        unit: "msg/s",
        flush: "buffered",
        limit: "LIMIT",
        goal: Goal::None,
        note: "one encodes as LIMIT does, one writes; no batch to take apart, nobody can read what is under way".into(),
    };
    Ok(subject.row(pairs, pipeline.check(count)?))
}

/// Bytes of a file, at most, that a pass of so many messages has the engine fill.
pub(super) fn room_bytes(count: u64, body_bytes: usize) -> u64 {
    count * (body_bytes as u64 + RECORD_OVERHEAD_BYTES) + MmapSettings::default().prepare_bytes
}

/// A new store, to which passes append.
struct Store<'a> {
    bodies: &'a Bodies,
    engine: MmapEngine,
    // Removed after the engine is gone.
    folder: TempDir,
    next: u64,
}

impl<'a> Store<'a> {
    fn new(context: &Context, bodies: &'a Bodies) -> Result<Self> {
        let folder = context.place.folder()?;
        let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
        Ok(Self { bodies, engine, folder, next: 0 })
    }

    /// Has the log filled with zeros as far as so many messages will reach, and as much further as the engine fills
    /// ahead of them by itself, which would be more of what [`Room::Fresh`] measures.
    fn pre_write(&self, count: u64) -> Result<()> {
        Ok(self.engine.prepare_room(room_bytes(count, self.bodies.body_bytes()))?)
    }

    /// Appends so many messages, and returns the time that `apply` took, and the processor time of all threads in it.
    fn append(&mut self, batch: usize, count: u64) -> Result<(Duration, Duration)> {
        let (queue, ahead) = (queue(), (AHEAD_BYTES / self.bodies.body_bytes() / batch).max(1) * batch);
        let (mut time, mut used, end) = (Duration::ZERO, Duration::ZERO, self.next + count);
        while self.next < end {
            let until = (self.next + ahead as u64).min(end);
            let firsts = (self.next..until).step_by(batch);
            let batches: Vec<WriteBatch> = firsts.map(|first| self.bodies.batch(&queue, first, batch)).collect();
            let (watch, before) = (Stopwatch::start(), processor_time());
            for made in batches {
                let applied = self.engine.apply(made)?;
                if applied.appends.first().map(|appended| appended.first.get()) != Some(self.next) {
                    return Err(format!("message {} landed elsewhere: {:?}", self.next, applied.appends).into());
                }
                self.next += batch as u64;
            }
            time += watch.elapsed();
            used += processor_time().saturating_sub(before);
        }
        Ok((time, used))
    }

    fn check(self) -> Result<u64> {
        let checked = check_queue(&self.engine, self.bodies, self.next, Ok)?;
        EngineKind::Mmap.discard(&self.engine, self.folder.path())?;
        Ok(checked)
    }
}
