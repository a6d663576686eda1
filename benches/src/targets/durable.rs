//! Target 5: durable sends that share their syncs, against one sync after the other.

use std::sync::Arc;
use std::time::Duration;

use cuemq::Flush;

use super::row::{Goal, Row, Subject, side_by_side};
use super::{Context, per_second};
use crate::Result;
use crate::limits::{FreshLog, RoomAhead, SyncFile};
use crate::paths::group_commit::Writers;
use crate::paths::house::House;
use crate::rest::wait_for_rest;
use crate::store::EngineKind;
use crate::table::bytes;
use crate::workload::{Bodies, frame_bytes};

/// Writers, messages that each sends at once, and how many times one message per sync they have to reach.
const CASES: [(u64, u64, f64); 6] =
    [(1, 1, 0.7), (16, 1, 5.0), (64, 1, 16.0), (256, 1, 45.0), (1024, 1, 80.0), (16, 64, 220.0)];
/// Writers of a load that uses up whatever the log has ready.
const SUSTAINED_WRITERS: u64 = 1024;
/// How many times more rounds than others they make.
const SUSTAINED_ROUNDS: u64 = 8;
/// Messages per sync of the one whose room was not prepared.
const SUSTAINED_MESSAGES: usize = 1024;
/// How many times more rounds a lone writer makes, and one with some company: a pass has to last.
const LONE_ROUNDS: u64 = 8;
const FEW_ROUNDS: u64 = 4;

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &body_bytes in &context.scale.body_bytes {
        let bodies = Arc::new(Bodies::new(body_bytes));
        for (count, batch, times) in CASES {
            rows.push(measure(context, &bodies, Writers { count, batch }, Load::Burst(times))?);
        }
        if context.scale.sustained {
            rows.push(measure(context, &bodies, Writers { count: SUSTAINED_WRITERS, batch: 1 }, Load::Sustained)?);
            rows.push(bare(context, body_bytes, SUSTAINED_MESSAGES, Asker::None, RoomAhead::Promised)?);
        }
        for &messages in &context.scale.bare_messages {
            for asker in [Asker::None, Asker::Thread] {
                rows.push(bare(context, body_bytes, messages, asker, RoomAhead::Zeros)?);
            }
        }
    }
    Ok(rows)
}

/// How long writers go on.
#[derive(Clone, Copy, Debug)]
enum Load {
    /// Some rounds, in which they have to reach so many times one message per sync.
    Burst(f64),
    /// So many rounds that what the engine prepares before them does not last.
    Sustained,
}

fn measure(context: &Context, bodies: &Arc<Bodies>, writers: Writers, load: Load) -> Result<Row> {
    let mut file = SyncFile::new(context.place.directory())?;
    let mut house = House::new(EngineKind::Mmap, Arc::clone(bodies), Flush::Durable, &context.profile, &context.place)?;
    let more = match (load, writers.count * writers.batch) {
        (Load::Sustained, _) => SUSTAINED_ROUNDS,
        (Load::Burst(_), 1) => LONE_ROUNDS,
        (Load::Burst(_), 2..=64) => FEW_ROUNDS,
        (Load::Burst(_), _) => 1,
    };
    let rounds = context.scale.durable_rounds * more;
    let limit = || {
        // What the engine prepares between two passes is part of neither.
        wait_for_rest();
        Ok(1e6 / file.time(context.scale.limit_rounds)?.p50_us)
    };
    let messages = writers.count * writers.batch * rounds;
    let path = || Ok(per_second(messages, writers.write(&mut house, rounds)?));
    let pairs = side_by_side(context.scale.pairs, limit, path)?;
    let sending = match writers {
        Writers { count: 1, .. } => "one writer".to_owned(),
        Writers { count, batch: 1 } => format!("{count} writers"),
        Writers { count, batch } => format!("{count} writers of batches of {batch}"),
    };
    let (lasting, goal) = match load {
        Load::Burst(times) => ("", Goal::AtLeast(times)),
        Load::Sustained => (", sustained", Goal::None),
    };
    let subject = Subject {
        number: 5,
        name: format!("group commit, {}, {sending}{lasting}", bytes(bodies.body_bytes())),
        unit: "msg/s",
        flush: "durable",
        limit: "1/SYNC",
        goal,
        note: "each writer waits for its receipt before it sends again; one queue; before each pass the engine rests until \
               it prepares nothing any more"
            .into(),
    };
    Ok(subject.row(pairs, house.move_out()?))
}

/// Who wants the appends of a bare log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asker {
    /// The thread itself that appends.
    None,
    /// Another one, which waits for each, as a sender does whose log is an actor's.
    Thread,
}

/// What the disk alone allows a log: the same bytes, appended by one thread that does nothing else.
fn bare(context: &Context, body_bytes: usize, messages: usize, asker: Asker, ahead: RoomAhead) -> Result<Row> {
    let mut file = SyncFile::new(context.place.directory())?;
    let mut log = FreshLog::new(context.place.directory(), frame_bytes(messages, body_bytes), ahead)?;
    let limit = || Ok(1e6 / file.time(context.scale.limit_rounds)?.p50_us);
    let path = || {
        let rounds = context.scale.durable_rounds;
        let time = match asker {
            Asker::Thread => log.append_when_asked(rounds)?,
            Asker::None => (0..rounds).map(|_| log.append()).sum::<Result<Duration>>()?,
        };
        Ok(per_second(rounds * messages as u64, time))
    };
    let pairs = side_by_side(context.scale.pairs, limit, path)?;
    let (who, whom) = match asker {
        Asker::None => ("", ""),
        Asker::Thread => (" of another thread", ", whenever another thread asks and waits for it"),
    };
    let (place, room) = match ahead {
        RoomAhead::Zeros => ("", "room that holds zeros which were synced before"),
        RoomAhead::Promised => (" in new room", "room that the disk has promised"),
    };
    let subject = Subject {
        number: 5,
        name: format!("bare log{who}{place}, {}, {messages} to a sync", bytes(body_bytes)),
        unit: "msg/s",
        flush: "durable",
        limit: "1/SYNC",
        goal: Goal::None,
        note: format!("one thread appends as many bytes to {room}, and syncs{whom}; no broker, no checksum"),
    };
    Ok(subject.row(pairs, log.check()? * messages as u64))
}
