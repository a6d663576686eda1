//! Target 1: batches to the raw commit-log engine, against one thread that encodes records in place.

use cuemq_storage_api::{Engine, WriteBatch};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};

use super::row::{Goal, Row, Subject, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::limits::Encoder;
use crate::stopwatch::Stopwatch;
use crate::table::bytes;
use crate::workload::{Bodies, check_queue, queue};

/// Messages per batch; the target speaks of the one in the middle.
const BATCHES: [usize; 3] = [1, 64, 256];
const JUDGED_BATCH: usize = 64;
/// Body bytes of batches that are made ahead, so that making them is not timed.
const AHEAD_BYTES: usize = 4 << 20;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let (bodies, mut encoder) = (Bodies::new(body_bytes), Encoder::new(body_bytes));
        for batch in BATCHES {
            let mut verified = 0;
            let pass = || {
                let (rate, checked) = append(context, &bodies, batch)?;
                verified += checked;
                Ok(rate)
            };
            let pairs = side_by_side(context.scale.pairs, || Ok(encoder.rate()), pass)?;
            let share = if body_bytes < 1024 { 0.7 } else { 0.8 };
            let subject = Subject {
                number: 1,
                name: format!("raw apply, {}, batches of {batch}", bytes(body_bytes)),
                unit: "msg/s",
                flush: "buffered",
                limit: "LIMIT",
                goal: if batch == JUDGED_BATCH { Goal::AtLeast(share) } else { Goal::None },
                note: format!("a fresh store, {} MiB of log, only apply is timed", context.scale.append_bytes >> 20),
            };
            rows.push(subject.row(pairs, verified));
        }
    }
    Ok(rows)
}

/// Fills a fresh store; returns messages per second and how many were read back.
fn append(context: &Context, bodies: &Bodies, batch: usize) -> Result<(f64, u64)> {
    let count = Scale::messages(context.scale.append_bytes, bodies.body_bytes(), batch);
    let folder = context.place.folder()?;
    let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
    let ahead = (AHEAD_BYTES / bodies.body_bytes() / batch).max(1) * batch;
    let (queue, mut time, mut next) = (queue(), std::time::Duration::ZERO, 0);
    while next < count {
        let end = (next + ahead as u64).min(count);
        let batches: Vec<WriteBatch> =
            (next..end).step_by(batch).map(|first| bodies.batch(&queue, first, batch)).collect();
        let watch = Stopwatch::start();
        for made in batches {
            let applied = engine.apply(made)?;
            if applied.appends.first().map(|appended| appended.first.get()) != Some(next) {
                return Err(format!("message {next} landed elsewhere: {:?}", applied.appends).into());
            }
            next += batch as u64;
        }
        time += watch.elapsed();
    }
    let checked = check_queue(&engine, bodies, count, Ok)?;
    engine.close()?;
    Ok((per_second(count, time), checked))
}
