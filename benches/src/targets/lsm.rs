//! Target 7: the LSM engine against bare fjall, and what a broker over it does to another one in the same process.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cuemq::Flush;
use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueOffset};
use cuemq_storage_lsm::{LsmEngine, LsmSettings};

use super::bare_fjall::{BareFjall, Given, Rows};
use super::row::{Goal, Pair, Row, Subject};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::paths::house::House;
use crate::paths::send::{Load, send, send_timed};
use crate::stopwatch::{Stopwatch, idle, processor_time};
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::{Bodies, check_queue, queue};

/// Messages that one side handles before it is the other's turn, within one measurement: so whatever else the machine
/// does meets both.
const TURN_MESSAGES: usize = 2048;
const FETCH_MESSAGES: usize = 256;
/// What a broker is saturated with, and how much of it before the sender looks whether it shall go on.
const LOAD_BATCH: usize = 256;
const BATCHES_PER_LOOK: u64 = 16;
/// Messages beside that load are this many times those of other latency rows: in fewer one pause of the machine decides
/// what 99 of 100 stay below.
const BESIDE_FACTOR: u64 = 2;
/// A thread that keeps a core busy looks this often whether it shall go on, and rests in between if it shall not use
/// all of the core.
const SLICE: Duration = Duration::from_micros(500);
/// How long a load goes on before anything is measured beside it.
const WARM_UP: Duration = Duration::from_millis(50);

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let bodies = Bodies::new(body_bytes);
        let count = usize::try_from(Scale::messages(context.scale.lsm_bytes, body_bytes, TURN_MESSAGES))?;
        let material = Rows::of(&bodies, count, &context.place)?;
        for &batch in &context.scale.lsm_batches {
            rows.extend(against_fjall(context, &bodies, &material, count, batch)?);
        }
    }
    rows.push(beside(context)?);
    Ok(rows)
}

fn against_fjall(context: &Context, bodies: &Bodies, rows: &Rows, count: usize, batch: usize) -> Result<[Row; 3]> {
    let (mut written, mut copied, mut scanned, mut verified) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..context.scale.pairs {
        let (folder, bare_folder) = (context.place.folder()?, context.place.folder()?);
        let engine = LsmEngine::open(folder.path(), &LsmSettings::default())?;
        let bare_at = bare_folder.path().join("bare");
        let bare = BareFjall::open(&bare_at)?;
        let write = |range| write(&engine, bodies, batch, range);
        written.push(in_turns(count, write, |range| bare.write(rows, Given::Ready, batch, range))?);
        scanned.push(in_turns(count, |range| scan(&engine, range), bare.scan())?);
        verified += check_queue(&engine, bodies, count as u64, Ok)?;
        bare.discard(&bare_at)?;
        engine.close()?;
        copied.push(copied_rows(context, rows, count, batch)?);
    }
    let name = format!("{}, batches of {batch}", bytes(bodies.body_bytes()));
    let subject = |what: &str, note: &str| Subject {
        number: 7,
        name: format!("LSM {what}, {name}"),
        unit: "msg/s",
        flush: "buffered",
        limit: "bare fjall",
        goal: Goal::AtLeast(0.8),
        note: note.into(),
    };
    let write = "the same rows in the same key spaces with the same settings; bare fjall's rows are ready, the engine encodes its own";
    let scan =
        "what was just written, in order; the engine by fetches of 256, bare fjall by one iteration over both spaces";
    let bare = Subject {
        name: format!("bare fjall that is given rows as bytes, {name}"),
        goal: Goal::None,
        note: "fjall copies each key and value into memory that it takes for it, as the engine does by encoding; nothing is encoded"
            .into(),
        ..subject("", "")
    };
    let copies = (context.scale.pairs * count) as u64;
    Ok([
        subject("write", write).row(written, verified),
        bare.row(copied, copies),
        subject("scan", scan).row(scanned, verified),
    ])
}

/// Bare fjall against itself: what it costs that the rows' memory is taken while they are written.
fn copied_rows(context: &Context, rows: &Rows, count: usize, batch: usize) -> Result<Pair> {
    let folder = context.place.folder()?;
    let (copied_at, ready_at) = (folder.path().join("copied"), folder.path().join("ready"));
    let (copied, ready) = (BareFjall::open(&copied_at)?, BareFjall::open(&ready_at)?);
    let pair = in_turns(
        count,
        |range| copied.write(rows, Given::Copied, batch, range),
        |range| ready.write(rows, Given::Ready, batch, range),
    )?;
    for (bare, at) in [(copied, &copied_at), (ready, &ready_at)] {
        let found = bare.count()?;
        if found != count {
            return Err(format!("bare fjall has {found} records, {count} were written").into());
        }
        bare.discard(at)?;
    }
    Ok(pair)
}

/// Both sides do the same work, part by part in turns.
fn in_turns(
    count: usize,
    mut engine: impl FnMut(Range<usize>) -> Result<Duration>,
    mut bare: impl FnMut(Range<usize>) -> Result<Duration>,
) -> Result<Pair> {
    let (mut engine_time, mut bare_time) = (Duration::ZERO, Duration::ZERO);
    for (turn, first) in (0..count).step_by(TURN_MESSAGES).enumerate() {
        let range = first..count.min(first + TURN_MESSAGES);
        if turn % 2 == 0 {
            engine_time += engine(range.clone())?;
            bare_time += bare(range)?;
        } else {
            bare_time += bare(range.clone())?;
            engine_time += engine(range)?;
        }
    }
    Ok(Pair { value: per_second(count as u64, engine_time), limit: per_second(count as u64, bare_time) })
}

fn write(engine: &LsmEngine, bodies: &Bodies, count: usize, range: Range<usize>) -> Result<Duration> {
    let (queue, mut time) = (queue(), Duration::ZERO);
    for first in range.clone().step_by(count) {
        let batch = bodies.batch(&queue, first as u64, count.min(range.end - first));
        let watch = Stopwatch::start();
        black_box(engine.apply(batch)?);
        time += watch.elapsed();
    }
    Ok(time)
}

fn scan(engine: &LsmEngine, range: Range<usize>) -> Result<Duration> {
    let (queue, mut next) = (queue(), range.start);
    let watch = Stopwatch::start();
    while next < range.end {
        let limit = FetchLimit::messages(FETCH_MESSAGES.min(range.end - next));
        let fetch = engine.fetch(FetchRequest::all(&queue, QueueOffset::new(next as u64), limit))?;
        if fetch.records.is_empty() {
            return Err(format!("nothing came at offset {next}").into());
        }
        next += fetch.records.len();
        for stored in fetch.records {
            black_box(&stored.record.body);
        }
    }
    Ok(watch.elapsed())
}

/// The tail of sends to a broker in memory beside a saturated one over the LSM engine, against the same beside threads
/// that only compute and use as much of the cores.
fn beside(context: &Context) -> Result<Row> {
    let bodies = Arc::new(Bodies::new(256));
    let house = |engine| House::new(engine, Arc::clone(&bodies), Flush::Buffered, &context.profile, &context.place);
    let (mut quiet, mut lsm) = (house(EngineKind::Memory)?, house(EngineKind::Lsm)?);
    let messages = context.scale.latency_messages * BESIDE_FACTOR;
    let mut pairs = Vec::with_capacity(context.scale.pairs);
    for _ in 0..context.scale.pairs {
        let alone = cores_used(|| send_timed(&mut quiet, messages))?.1;
        let busy = Busy::default();
        let (beside, together) =
            busy.beside(|| busy.saturate(&mut lsm), || cores_used(|| send_timed(&mut quiet, messages)))?;
        let busy = Busy::default();
        let computing = busy.beside(|| busy.compute(together - alone), || send_timed(&mut quiet, messages))?;
        pairs.push(Pair { value: beside.p99_us, limit: computing.p99_us });
    }
    let verified = quiet.move_out()? + lsm.move_out()?;
    let subject = Subject {
        number: 7,
        name: "send p99 of a memory broker beside a saturated LSM broker".into(),
        unit: "us",
        flush: "buffered",
        limit: "p99 beside as much plain load",
        goal: Goal::AtMost(2.0),
        note: "one message of 256 B at a time; the plain load are threads that compute for as much processor time"
            .into(),
    };
    Ok(subject.row(pairs, verified))
}

/// Does something, and tells how many cores this process used meanwhile.
fn cores_used<T>(mut act: impl FnMut() -> Result<T>) -> Result<(T, f64)> {
    let (watch, before) = (Stopwatch::start(), processor_time());
    let done = act()?;
    Ok((done, (processor_time() - before).as_secs_f64() / watch.elapsed().as_secs_f64()))
}

/// A load that goes on while something is measured.
#[derive(Default)]
struct Busy {
    stop: AtomicBool,
}

impl Busy {
    fn beside<T>(&self, load: impl FnOnce() -> Result<()> + Send, measure: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            let load = scope.spawn(load);
            idle(WARM_UP);
            let measured = measure();
            self.stop.store(true, Ordering::Relaxed);
            load.join().map_err(|_| "the load panicked")??;
            measured
        })
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sends to a broker as fast as it takes it.
    fn saturate(&self, house: &mut House) -> Result<()> {
        while self.goes_on() {
            send(house, Load::Batches { batch: LOAD_BATCH, in_flight: 16, count: BATCHES_PER_LOOK })?;
        }
        Ok(())
    }

    /// Keeps so many cores busy with nothing.
    fn compute(&self, cores: f64) -> Result<()> {
        let threads = cores.ceil().max(1.0);
        let busy = SLICE.mul_f64((cores / threads).clamp(0.0, 1.0));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few threads")]
        let threads = threads as usize;
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while self.goes_on() {
                        let watch = Stopwatch::start();
                        while watch.elapsed() < busy {
                            std::hint::spin_loop();
                        }
                        if busy < SLICE {
                            idle(SLICE - busy);
                        }
                    }
                });
            }
        });
        Ok(())
    }
}
