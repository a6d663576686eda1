//! Target 1: batches to the raw commit-log engine, against one thread that encodes records in place.

use std::time::Duration;

use cuemq_storage_api::{Engine, WriteBatch};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use tempfile::TempDir;

use super::row::{Goal, Row, Subject, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::limits::Encoder;
use crate::stopwatch::Stopwatch;
use crate::table::bytes;
use crate::workload::{Bodies, check_queue, queue};

/// Messages per batch; the target speaks of the one in the middle, the others show the curve.
const BATCHES: [usize; 3] = [1, 64, 256];
const JUDGED_BATCH: usize = 64;
/// How many times less is written in a pass that is not judged.
const CURVE_SHARE: u64 = 8;
/// Body bytes of batches that are made ahead, so that making them is not timed; few, so that they are still in the
/// cache when they are applied, as a batch is that comes from a sender.
const AHEAD_BYTES: usize = 256 << 10;
/// More than the log adds to a body: header, topic, its share of the frame's header.
const RECORD_OVERHEAD_BYTES: u64 = 128;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let (bodies, mut encoder) = (Bodies::new(body_bytes), Encoder::new(body_bytes));
        for batch in BATCHES {
            rows.push(measure(context, &bodies, &mut encoder, batch, Room::Fresh)?);
        }
        rows.push(measure(context, &bodies, &mut encoder, JUDGED_BATCH, Room::PreWritten)?);
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
}

fn measure(context: &Context, bodies: &Bodies, encoder: &mut Encoder, batch: usize, room: Room) -> Result<Row> {
    let judged = batch == JUDGED_BATCH;
    let share = if bodies.body_bytes() < 1024 { 0.7 } else { 0.8 };
    let log_bytes = context.scale.append_bytes / if judged { 1 } else { CURVE_SHARE };
    let count = Scale::messages(log_bytes, bodies.body_bytes(), batch);
    let mut store = Store::new(context, bodies)?;
    let path = || {
        if room == Room::PreWritten {
            store.pre_write(count)?;
        }
        Ok(per_second(count, store.append(batch, count)?))
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(encoder.rate()), path)?;
    let subject = Subject {
        number: 1,
        name: format!("raw apply, {}, batches of {batch}, {}", bytes(bodies.body_bytes()), room.name()),
        unit: "msg/s",
        flush: "buffered",
        limit: "LIMIT",
        goal: if judged { Goal::AtLeast(share) } else { Goal::None },
        note: format!(
            "one thread, one queue; {} MiB of bodies per pass, pass behind pass in one new store; only apply is timed",
            log_bytes >> 20
        ),
    };
    Ok(subject.row(pairs, store.check()?))
}

/// A new store, to which passes append.
struct Store<'a> {
    bodies: &'a Bodies,
    engine: MmapEngine,
    // Removed after the engine is gone.
    _folder: TempDir,
    next: u64,
}

impl<'a> Store<'a> {
    fn new(context: &Context, bodies: &'a Bodies) -> Result<Self> {
        let folder = context.place.folder()?;
        let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
        Ok(Self { bodies, engine, _folder: folder, next: 0 })
    }

    /// Has the log filled with zeros as far as so many messages will reach.
    fn pre_write(&self, count: u64) -> Result<()> {
        let record_bytes = self.bodies.body_bytes() as u64 + RECORD_OVERHEAD_BYTES;
        Ok(self.engine.prepare_room(count * record_bytes)?)
    }

    /// Appends so many messages, and returns the time that `apply` took.
    fn append(&mut self, batch: usize, count: u64) -> Result<Duration> {
        let (queue, ahead) = (queue(), (AHEAD_BYTES / self.bodies.body_bytes() / batch).max(1) * batch);
        let (mut time, end) = (Duration::ZERO, self.next + count);
        while self.next < end {
            let until = (self.next + ahead as u64).min(end);
            let firsts = (self.next..until).step_by(batch);
            let batches: Vec<WriteBatch> = firsts.map(|first| self.bodies.batch(&queue, first, batch)).collect();
            let watch = Stopwatch::start();
            for made in batches {
                let applied = self.engine.apply(made)?;
                if applied.appends.first().map(|appended| appended.first.get()) != Some(self.next) {
                    return Err(format!("message {} landed elsewhere: {:?}", self.next, applied.appends).into());
                }
                self.next += batch as u64;
            }
            time += watch.elapsed();
        }
        Ok(time)
    }

    fn check(self) -> Result<u64> {
        let checked = check_queue(&self.engine, self.bodies, self.next, Ok)?;
        self.engine.close()?;
        Ok(checked)
    }
}
