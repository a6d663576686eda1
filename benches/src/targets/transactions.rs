//! What a transaction of one row and one message costs, beside a plain send.

use std::sync::Arc;

use cuemq::Flush;

use super::row::{Goal, Row, Subject, side_by_side};
use super::{Context, per_second};
use crate::Result;
use crate::paths::house::House;
use crate::paths::send::{Load, send};
use crate::paths::transact::{check_rows, transact};
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::Bodies;

const BODY_BYTES: usize = 256;
/// One at a time, and many.
const IN_FLIGHT: [usize; 2] = [1, 64];
/// One at a time waits for every answer: a pass has so many times fewer of them.
const LONE_SHARE: u64 = 8;
/// A pass of buffered sends has so many times fewer messages than one of the rows about sends alone.
const SHARE: u64 = 8;
/// How many times the rounds of the durable targets a pass has.
const DURABLE_ROUNDS: u64 = 2;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let bodies = Arc::new(Bodies::new(BODY_BYTES));
    let mut rows = Vec::new();
    for engine in [EngineKind::Mmap, EngineKind::Lsm] {
        for flush in [Flush::Buffered, Flush::Durable] {
            for in_flight in IN_FLIGHT {
                rows.push(measure(context, &bodies, engine, flush, in_flight)?);
            }
        }
    }
    Ok(rows)
}

fn measure(context: &Context, bodies: &Arc<Bodies>, engine: EngineKind, flush: Flush, in_flight: usize) -> Result<Row> {
    let house = || House::new(engine, Arc::clone(bodies), flush, &context.profile, &context.place);
    let (mut plain, mut transacted) = (house()?, house()?);
    let count = match (flush, in_flight) {
        (Flush::Durable, _) => context.scale.durable_rounds * DURABLE_ROUNDS * in_flight as u64,
        (Flush::Buffered, 1) => context.scale.send_bytes / BODY_BYTES as u64 / SHARE / LONE_SHARE,
        (Flush::Buffered, _) => context.scale.send_bytes / BODY_BYTES as u64 / SHARE,
    };
    let count = count.max(1);
    let limit = || Ok(per_second(count, send(&mut plain, Load::Singles { in_flight, count })?));
    let path = || Ok(per_second(count, transact(&mut transacted, in_flight, count)?));
    let pairs = side_by_side(context.scale.pairs, limit, path)?;
    plain.move_out()?;
    check_rows(&transacted)?;
    let subject = Subject {
        number: 14,
        name: format!("transaction, {}, {}, {in_flight} in flight", engine.name(), bytes(BODY_BYTES)),
        unit: "tx/s",
        flush: if flush == Flush::Durable { "durable" } else { "buffered" },
        limit: "a plain send",
        goal: Goal::None,
        note: "one row put and one message sent; rows and messages are read back".into(),
    };
    Ok(subject.row(pairs, transacted.move_out()?))
}
