//! Target 10: what many queues, groups and a backlog cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cuemq::{Flush, PullConsumer, SeekTo};
use cuemq_storage_api::{Engine, FetchLimit, FetchRequest, QueueId, QueueKey, QueueOffset, Record, WriteBatch};
use cuemq_storage_mmap::{MmapEngine, MmapSettings};
use tempfile::TempDir;
use tokio::runtime::Builder;

use super::append::room_bytes;
use super::child::Child;
use super::row::{Goal, Pair, Row, Subject, against, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::paths::house::House;
use crate::paths::send::{Load, send, send_timed};
use crate::place::Place;
use crate::stopwatch::{Stopwatch, idle};
use crate::store::EngineKind;
use crate::table::short;
use crate::workload::{Bodies, TOPIC, queue, stored_at};

const BODY_BYTES: usize = 256;
const BATCH: usize = 64;
/// Queues that one batch brings into being.
const NEW_QUEUES_PER_BATCH: usize = 4096;
/// The number of queues of which the target speaks.
const JUDGED_QUEUES: u32 = 10_000;
/// Bytes of memory that an idle topic may take; others are shown beside it.
const TOPIC_BYTES: f64 = 2048.0;
/// Messages that one poll of a backlog takes.
const POLL_MESSAGES: usize = 256;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let bodies = Arc::new(Bodies::new(BODY_BYTES));
    let mut rows = Vec::new();
    for &queues in context.scale.queues.iter().filter(|queues| **queues > 1) {
        rows.push(by_queues(context, &bodies, queues)?);
    }
    for &groups in context.scale.groups.iter().filter(|groups| **groups > 1) {
        rows.push(by_groups(context, &bodies, groups)?);
    }
    for &backlog in &context.scale.backlogs {
        let judged = context.scale.backlogs.last() == Some(&backlog);
        rows.push(by_backlog(context, &bodies, backlog, judged)?);
    }
    if context.program.is_some() {
        for footprint in footprints(context) {
            rows.push(footprint.row(context)?);
        }
    }
    Ok(rows)
}

fn subject(
    name: String,
    unit: &'static str,
    flush: &'static str,
    limit: &'static str,
    goal: Goal,
    note: &str,
) -> Subject {
    Subject { number: 10, name, unit, flush, limit, goal, note: note.into() }
}

#[expect(clippy::cast_precision_loss, reason = "counts up to some millions")]
fn many(count: u64) -> String {
    short(count as f64)
}

/// A raw engine with queues that take turns.
struct Queues<'a> {
    place: &'a Place,
    bodies: &'a Bodies,
    engine: MmapEngine,
    // Removed after the engine is gone.
    folder: TempDir,
    /// Each with its end.
    queues: Vec<(QueueKey, u64)>,
    turn: usize,
}

impl<'a> Queues<'a> {
    fn new(context: &'a Context, bodies: &'a Bodies, count: u32) -> Result<Self> {
        let folder = context.place.folder()?;
        let engine = MmapEngine::open(folder.path(), MmapSettings::default())?;
        let topic = queue().topic;
        let key = |number| Ok((QueueKey::new(topic.clone(), QueueId::new(number)?), 1));
        let queues = (0..count).map(key).collect::<Result<Vec<_>>>()?;
        for some in queues.chunks(NEW_QUEUES_PER_BATCH) {
            let mut batch = WriteBatch::new(stored_at());
            for (key, _) in some {
                batch.append(key, Record::new(bodies.body(u64::from(key.queue.get())), stored_at()));
            }
            engine.apply(batch)?;
        }
        Ok(Self { place: &context.place, bodies, engine, folder, queues, turn: 0 })
    }

    /// Appends batches, each to the next queue; returns messages per second.
    fn append(&mut self, count: u64) -> Result<f64> {
        self.place.touch_pages(room_bytes(count, BODY_BYTES))?;
        let mut time = Duration::ZERO;
        for _ in 0..count / BATCH as u64 {
            let turn = self.turn % self.queues.len();
            let (key, end) = &mut self.queues[turn];
            // Messages are numbered from the queue's own number on, so that no two queues have the same.
            let batch = self.bodies.batch(key, u64::from(key.queue.get()) + *end, BATCH);
            let watch = Stopwatch::start();
            let applied = self.engine.apply(batch)?;
            time += watch.elapsed();
            if applied.appends.first().map(|appended| appended.first.get()) != Some(*end) {
                return Err(format!("a batch for {key} landed elsewhere: {:?}", applied.appends).into());
            }
            *end += BATCH as u64;
            self.turn += 1;
        }
        Ok(per_second(count, time))
    }

    /// Reads all queues back and closes the store.
    fn check(self) -> Result<u64> {
        let mut checked = 0;
        for (key, end) in &self.queues {
            let mut next = QueueOffset::ZERO;
            while next.get() < *end {
                let fetch = self.engine.fetch(FetchRequest::all(key, next, FetchLimit::messages(1024)))?;
                if fetch.records.first().map(|stored| stored.offset) != Some(next) || fetch.bounds.end.get() != *end {
                    return Err(format!("{key} has {:?} where {next} of {end} belongs", fetch.bounds).into());
                }
                for stored in &fetch.records {
                    let message = u64::from(key.queue.get()) + stored.offset.get();
                    self.bodies.check(message, &stored.record.body)?;
                    checked += 1;
                }
                next = fetch.next;
            }
        }
        EngineKind::Mmap.discard(&self.engine, self.folder.path())?;
        Ok(checked)
    }
}

fn by_queues(context: &Context, bodies: &Bodies, count: u32) -> Result<Row> {
    let (mut one, mut all) = (Queues::new(context, bodies, 1)?, Queues::new(context, bodies, count)?);
    let messages = context.scale.queue_messages;
    for pass in 0..=context.scale.queue_warm_passes {
        one.append(messages)?;
        all.append(messages)?;
        if pass == 0 {
            // Each queue has its file from here on, as in a broker that has run for a second.
            all.engine.maintain(stored_at())?;
        }
    }
    let pairs = side_by_side(context.scale.pairs, || one.append(messages), || all.append(messages))?;
    let verified = one.check()? + all.check()?;
    let name = format!("raw apply round robin over {} queues", many(u64::from(count)));
    let goal = if count == JUDGED_QUEUES { Goal::AtLeast(0.7) } else { Goal::None };
    let note = "batches of 64 messages of 256 B, each to the next queue, in a store that has run on until entries leave \
                memory as fast as they come; only apply is timed";
    Ok(subject(name, "msg/s", "buffered", "one queue", goal, note).row(pairs, verified))
}

fn house(context: &Context, bodies: &Arc<Bodies>) -> Result<House> {
    House::new(EngineKind::Mmap, Arc::clone(bodies), Flush::Buffered, &context.profile, &context.place)
}

fn by_groups(context: &Context, bodies: &Arc<Bodies>, count: usize) -> Result<Row> {
    let (mut one, mut all) = (house(context, bodies)?, house(context, bodies)?);
    let members = |house: &House, count: usize| {
        let names = (0..count).map(|number| format!("group-{number}"));
        let members = names.map(|name| Ok((house.consumer(&name)?, name))).collect::<Result<Vec<_>>>()?;
        // Each group hears of every topic, and each group has one for its retries: this waits until all have.
        members.iter().try_for_each(|(_, name)| house.lag(name).map(drop))?;
        Result::Ok(members)
    };
    let joined = (members(&one, 1)?, members(&all, count)?);
    let messages = Scale::messages(context.scale.send_bytes / 4, BODY_BYTES, BATCH);
    let rate = |house: &mut House| {
        let load = Load::Batches { batch: BATCH, in_flight: 16, count: messages / BATCH as u64 };
        Ok(per_second(messages, send(house, load)?))
    };
    let pairs = side_by_side(context.scale.pairs, || rate(&mut one), || rate(&mut all))?;
    drop(joined);
    let verified = one.move_out()? + all.move_out()?;
    let name = format!("handle to receipt, {count} groups of one member each subscribed");
    let note = "batches of 64 messages of 256 B, 16 in flight; the members read nothing meanwhile";
    Ok(subject(name, "msg/s", "buffered", "one group", Goal::None, note).row(pairs, verified))
}

fn by_backlog(context: &Context, bodies: &Arc<Bodies>, backlog: u64, judged: bool) -> Result<Row> {
    let mut house = house(context, bodies)?;
    send(
        &mut house,
        Load::Batches { batch: POLL_MESSAGES, in_flight: 16, count: backlog.div_ceil(POLL_MESSAGES as u64) },
    )?;
    let reader = house.reader("backlog")?;
    let reading = Reading::default();
    let pairs = std::thread::scope(|scope| {
        let reader = scope.spawn(|| reading.read_over_and_over(reader));
        let pairs = beside_and_alone(context, &mut house, &reading);
        reading.stop.store(true, Ordering::SeqCst);
        reader.join().map_err(|_| "the reader panicked")??;
        pairs
    })?;
    let verified = house.move_out()? + reading.read.into_inner();
    let name = format!("send p99 beside a reader of a backlog of {}", many(backlog));
    let goal = if judged { Goal::AtMost(2.0) } else { Goal::None };
    let note =
        "one message at a time; the reader polls 256 at a time from the beginning, over and over, on its own thread";
    Ok(subject(name, "us", "buffered", "p99 without reader", goal, note).row(pairs, verified))
}

/// The tail of sends beside the reader, between the tails without it.
fn beside_and_alone(context: &Context, house: &mut House, reading: &Reading) -> Result<Vec<Pair>> {
    let mut tail = |on: bool| {
        reading.on.store(on, Ordering::SeqCst);
        Result::Ok(send_timed(house, context.scale.latency_messages / 2)?.p99_us)
    };
    let mut pairs = Vec::with_capacity(context.scale.pairs);
    let mut before: f64 = tail(false)?;
    for _ in 0..context.scale.pairs {
        let value = tail(true)?;
        let after = tail(false)?;
        pairs.push(Pair { value, limit: f64::midpoint(before, after) });
        before = after;
    }
    Ok(pairs)
}

/// A reader that others switch on and off.
#[derive(Default)]
struct Reading {
    on: AtomicBool,
    stop: AtomicBool,
    read: AtomicU64,
}

impl Reading {
    /// Reads a queue from its beginning while it shall, and counts what came in order.
    fn read_over_and_over(&self, mut reader: PullConsumer) -> Result<()> {
        let runtime = Builder::new_current_thread().build()?;
        let mut next = 0;
        while !self.stop.load(Ordering::SeqCst) {
            if !self.on.load(Ordering::SeqCst) {
                idle(Duration::from_millis(1));
                continue;
            }
            let messages = runtime.block_on(reader.poll(POLL_MESSAGES, Duration::ZERO))?;
            if messages.is_empty() {
                reader.seek(TOPIC, 0, SeekTo::Begin)?;
                next = 0;
            }
            for message in &messages {
                if message.offset().get() != next {
                    return Err(format!("offset {} was polled where {next} belongs", message.offset()).into());
                }
                next += 1;
            }
            self.read.fetch_add(messages.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What each of many things costs in memory, seen in a process of its own.
struct Footprint {
    task: &'static str,
    name: &'static str,
    /// How many there are.
    count: u64,
    goal: Goal,
    note: &'static str,
}

fn footprints(context: &Context) -> [Footprint; 3] {
    let topics = u64::from(context.scale.topics);
    [
        Footprint {
            task: "topics",
            name: "resident memory of an idle topic of one queue",
            count: topics,
            goal: Goal::AtMost(1.0),
            note: "growth of VmRSS of a process of its own while the topics are made, divided by their number",
        },
        Footprint {
            task: "groups",
            name: "resident memory of an idle group with its retry and dead-letter topic",
            count: topics / 2,
            goal: Goal::None,
            note: "as for topics",
        },
        Footprint {
            task: "popped",
            name: "resident memory of a message in flight by pop",
            count: context.scale.popped,
            goal: Goal::None,
            note: "growth of VmRSS while messages of one byte are popped and not settled, divided by their number",
        },
    ]
}

impl Footprint {
    fn row(&self, context: &Context) -> Result<Row> {
        let pairs = against(context.scale.pairs, TOPIC_BYTES, || {
            let folder = context.place.folder()?;
            let mut child = Child::start(context, self.task, folder.path(), self.count)?;
            let bytes = child.number()?;
            child.end()?;
            #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
            Ok(bytes as f64 / self.count as f64)
        })?;
        let verified = self.count * pairs.len() as u64;
        let name = format!("{}, {} of them", self.name, many(self.count));
        Ok(subject(name, "B", "durable", "2 KB", self.goal, self.note).row(pairs, verified))
    }
}
