//! Targets 2 and 3: through the actors. A producer's handle to its receipts against one thread that encodes records in
//! place; and the whole way, delivered to a member of a group and acknowledged, against the former: by offset, a batch
//! at a time, and by pop, each message under a receipt of its own.

use std::sync::Arc;

use cuemq::Flush;
use cuemq_storage_mmap::MmapSettings;

use super::append::room_bytes;
use super::row::{Goal, Pair, Row, Subject, side_by_side};
use super::scale::Scale;
use super::{Context, per_second};
use crate::Result;
use crate::limits::{Encoder, Pipeline};
use crate::paths::end_to_end::{GROUP, check_all_acknowledged, transfer, transfer_by_pop};
use crate::paths::house::House;
use crate::paths::send::{Load, send};
use crate::stopwatch::processor_time;
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::Bodies;

/// Batches that a sender has in flight (numbers.md: from 16 on more in flight gain nothing).
const BATCHES_IN_FLIGHT: usize = 16;
const SINGLES_IN_FLIGHT: usize = 256;

/// A way of sending, and the share of LIMIT that it has to reach.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    /// Messages sent at once.
    batch: usize,
    share: f64,
}

const WAYS: [Way; 3] = [
    Way { name: "batches of 256", batch: 256, share: 0.6 },
    Way { name: "batches of 64", batch: 64, share: 0.5 },
    Way { name: "singles, 256 in flight", batch: 1, share: 0.2 },
];

impl Way {
    fn load(self, messages: u64) -> Load {
        match self.batch {
            1 => Load::Singles { in_flight: SINGLES_IN_FLIGHT, count: messages },
            batch => Load::Batches { batch, in_flight: BATCHES_IN_FLIGHT, count: messages / batch as u64 },
        }
    }

    fn rows(self, body_bytes: usize, measured: Measured) -> [Row; 4] {
        let name = format!("{}, {}", bytes(body_bytes), self.name);
        let in_flight = if self.batch == 1 { "" } else { ", 16 batches in flight" };
        let sending = Subject {
            number: 2,
            name: format!("handle to receipt, {name}"),
            unit: "msg/s",
            flush: "buffered",
            limit: "LIMIT",
            goal: Goal::AtLeast(self.share),
            note: format!(
                "one queue, one sender{in_flight}; making the messages is timed too; the system has pages at hand that were just in use"
            ),
        };
        let transferring = Subject {
            number: 3,
            name: format!("produce, deliver, ack, {name}"),
            limit: "target 2's value",
            goal: Goal::AtLeast(0.5),
            note: format!(
                "one queue, one sender{in_flight}, one member of one group; every body is checked on the way"
            ),
            ..sending.clone()
        };
        let popping = Subject {
            name: format!("produce, pop, ack, {name}"),
            note: format!(
                "one queue, one sender{in_flight}, one pop consumer; pops of 256, sixteen under way, each acknowledged as one"
            ),
            ..transferring.clone()
        };
        let costing = Subject {
            name: format!("processor time, handle to receipt, {name}"),
            unit: "ns/msg",
            limit: "all cores at LIMIT",
            goal: Goal::None,
            note: "of all threads, as the system counts it; at 3, no more than a third of LIMIT can be reached".into(),
            ..sending.clone()
        };
        [
            costing.row(measured.cost, measured.checked),
            sending.row(measured.sent, measured.checked),
            transferring.row(measured.whole, measured.checked_whole),
            popping.row(measured.popped, measured.checked_popped),
        ]
    }
}

/// Both targets: one is the other's limit, so they are measured in turns.
pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let (bodies, mut encoder) = (Arc::new(Bodies::new(body_bytes)), Encoder::new(body_bytes));
        for way in WAYS {
            rows.extend(way.rows(body_bytes, measure(context, &bodies, &mut encoder, way)?));
            rows.push(bare(context, &bodies, &mut encoder, way)?);
        }
    }
    rows.sort_by_key(|row| row.number);
    Ok(rows)
}

/// What three threads reach that do nothing but make the messages, encode them and have them written, over bare channels. A
/// comparison and no bound, as in target 1.
fn bare(context: &Context, bodies: &Bodies, encoder: &mut Encoder, way: Way) -> Result<Row> {
    let count = Scale::messages(context.scale.send_bytes, bodies.body_bytes(), way.batch);
    let pipeline = Pipeline::new(bodies, &context.place)?;
    let path = || {
        context.place.touch_pages(room_bytes(count, bodies.body_bytes()))?;
        let time = match way.load(count) {
            Load::Singles { in_flight, count } => pipeline.send_singles(in_flight, count)?,
            Load::Batches { batch, in_flight, count } => pipeline.send_batches(batch as u64, in_flight, count)?,
        };
        Ok(per_second(count, time))
    };
    let pairs = side_by_side(context.scale.pairs, || Ok(encoder.rate()), path)?;
    let subject = Subject {
        number: 2,
        name: format!("bare pipeline of three threads, {}, {}", bytes(bodies.body_bytes()), way.name),
        unit: "msg/s",
        flush: "buffered",
        limit: "LIMIT",
        goal: Goal::None,
        note: "one makes the messages, one encodes them as LIMIT does, one writes; bare channels, receipts that promise nothing"
            .into(),
    };
    Ok(subject.row(pairs, pipeline.check(count)?))
}

/// Pairs of both targets, the second in two ways, and how many messages of each were read back.
struct Measured {
    sent: Vec<Pair>,
    cost: Vec<Pair>,
    whole: Vec<Pair>,
    popped: Vec<Pair>,
    checked: u64,
    checked_whole: u64,
    checked_popped: u64,
}

/// One broker takes what is only sent, another one what is delivered too, a third one what is popped.
fn measure(context: &Context, bodies: &Arc<Bodies>, encoder: &mut Encoder, way: Way) -> Result<Measured> {
    let open = || House::new(EngineKind::Mmap, Arc::clone(bodies), Flush::Buffered, &context.profile, &context.place);
    let count = Scale::messages(context.scale.send_bytes, bodies.body_bytes(), way.batch);
    // What the engines of three stores fill before the first pass.
    context.place.touch_pages(3 * MmapSettings::default().prepare_bytes)?;
    let (mut sender, mut whole, mut popping) = (open()?, open()?, open()?);
    let (mut consumer, popper) = (whole.consumer(GROUP)?, popping.pop_consumer(GROUP)?);
    let (mut sent, mut cost, mut transferred, mut popped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    #[expect(clippy::cast_precision_loss, reason = "few cores")]
    let cores = std::thread::available_parallelism()?.get() as f64;
    // More than a pass writes: the engine fills as much behind what it has filled already.
    let memory_bytes = 2 * context.scale.send_bytes;
    for _ in 0..context.scale.pairs {
        context.place.touch_pages(memory_bytes)?;
        let before = encoder.rate();
        let used = processor_time();
        let sending = per_second(count, send(&mut sender, way.load(count))?);
        let used = processor_time().saturating_sub(used);
        let limit = f64::midpoint(before, encoder.rate());
        sent.push(Pair { value: sending, limit });
        cost.push(Pair { value: 1e9 / per_second(count, used), limit: cores * 1e9 / limit });
        context.place.touch_pages(memory_bytes)?;
        let value = per_second(count, transfer(&mut whole, &mut consumer, way.load(count))?);
        transferred.push(Pair { value, limit: sending });
        context.place.touch_pages(memory_bytes)?;
        let value = per_second(count, transfer_by_pop(&mut popping, &popper, way.load(count))?);
        popped.push(Pair { value, limit: sending });
    }
    drop((consumer, popper));
    check_all_acknowledged(&whole)?;
    check_all_acknowledged(&popping)?;
    let (checked, checked_whole, checked_popped) = (sender.move_out()?, whole.move_out()?, popping.move_out()?);
    Ok(Measured { sent, cost, whole: transferred, popped, checked, checked_whole, checked_popped })
}
