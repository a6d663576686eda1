//! Changes the number of a topic's queues while it is in use.
//!
//! Groups stop their ordered members at what can be seen; the queues are exchanged; the change is stored with the exact
//! end of each queue; the groups go on, with those ends as fences. See [`crate::actors::topic`] for the moment of the
//! exchange and [`crate::domain::fence`] for what a fence means. A failure or a kill at any moment leaves the topic as
//! it was or as it shall be.

use std::sync::Arc;

use actix::{AtomicResponse, Context, Handler, Message, WrapFuture};
use cuemq_storage_api::{Engine, TopicName, WriteBatch};

use super::group::hold_groups;
use super::root::{KIND, RootActor};
use super::topic::{TopicHandle, readable};
use crate::audit::audit_row;
use crate::broker::unknown_topic;
use crate::domain::audit::AuditAction;
use crate::domain::fence::QueueChange;
use crate::domain::routing::QueueCount;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_QUEUE_CHANGES, MAX_QUEUES_PER_TOPIC};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::audit::AuditRow;
use crate::tables::queue_change;
use crate::tables::topic::{self, TopicRow};

/// Changes how many queues of a topic are written to.
#[derive(Debug, Message)]
#[rtype(result = "Result<Arc<TopicHandle>>")]
pub(crate) struct SetQueues {
    pub(crate) name: TopicName,
    pub(crate) queues: u32,
}

impl Handler<SetQueues> for RootActor {
    type Result = AtomicResponse<Self, Result<Arc<TopicHandle>>>;

    fn handle(&mut self, m: SetQueues, _: &mut Context<Self>) -> Self::Result {
        let shared = Arc::clone(self.shared());
        shared.probe(KIND, "root", "SetQueues");
        let change = async move {
            let written = check_queues(&m)?;
            let topic = shared.topics.get(&m.name).ok_or_else(|| unknown_topic(&m.name))?;
            let (engine, all) = (shared.storage.engine(), topic.queue_count());
            // Also when queues that were written to before have nothing more to be read.
            if topic.written() != written || readable(&**engine, &m.name, written, all)? != all {
                change(&shared, &topic, written).await?;
            }
            Ok(topic)
        };
        AtomicResponse::new(Box::pin(change.into_actor(self)))
    }
}

fn check_queues(m: &SetQueues) -> Result<QueueCount> {
    if m.queues == 0 || m.queues > MAX_QUEUES_PER_TOPIC {
        let text = format!("topic {} with {} queues: use 1 to {MAX_QUEUES_PER_TOPIC}", m.name, m.queues);
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(QueueCount::new(m.queues)?)
}

/// While it lives the groups hold the topic; afterwards they look at what it is then.
struct Changing<'a> {
    shared: &'a Shared,
    topic: &'a TopicHandle,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.topic.set_changing(false);
        self.shared.topic_changed(self.topic.name());
    }
}

async fn change(shared: &Arc<Shared>, topic: &Arc<TopicHandle>, written: QueueCount) -> Result<()> {
    topic.set_changing(true);
    let changing = Changing { shared, topic };
    let slowest = hold_groups(shared, topic.name()).await?;
    let mut stored = read_changes(&**shared.storage.engine(), topic.name())?;
    let gone = forgettable(shared, topic, &stored, slowest)?;
    let forgotten: Vec<u64> = stored.drain(..gone).map(|(number, _)| number).collect();
    let next = stored.last().map_or(0, |(number, _)| number + 1).max(forgotten.last().map_or(0, |number| number + 1));

    let before = topic.written().get();
    let still = topic.still().await;
    let parked = topic.park(shared, written)?;
    drop(still);
    shared.storage.landed().await;
    let made = parked.ends()?;
    let mut batch = WriteBatch::new(shared.clock.now());
    let key = topic::key(topic.name());
    let row = shared.storage.engine().get(&topic::TABLE, &key)?.ok_or_else(|| unknown_topic(topic.name()))?;
    let readable = parked.readable()?;
    let row = TopicRow { queues: written, read_queues: readable, ..TopicRow::decode(&row)? };
    batch.put(&topic::TABLE, key, row.encode());
    batch.put(&queue_change::TABLE, queue_change::key(topic.name(), next), queue_change::encode_row(&made));
    let row = AuditRow {
        action: AuditAction::QueueChange,
        group: None,
        topic: Some(topic.name().clone()),
        queues: Vec::new(),
        note: format!("from {before} to {written} queues", written = written.get()),
    };
    audit_row(shared, &mut batch, &row)?;
    for number in forgotten {
        batch.delete(&queue_change::TABLE, queue_change::key(topic.name(), number));
    }
    shared.storage.write_and_wait(batch, Flush::Durable).await?;
    parked.keep(readable, stored.into_iter().map(|(_, change)| change).chain([made]).collect());
    drop(changing);
    tracing::info!(topic = %topic.name(), queues = written.get(), "the number of queues was changed");
    Ok(())
}

/// A topic's stored changes, oldest first.
///
/// # Errors
/// A failed read or a damaged row.
pub(super) fn read_changes(engine: &dyn Engine, topic: &TopicName) -> Result<Vec<(u64, QueueChange)>> {
    let (keys, mut changes) = (queue_change::keys_of_topic(topic), Vec::new());
    scan_rows::<Error>(engine, &queue_change::TABLE, &keys.start, Some(&keys.end), usize::MAX, |key, row| {
        changes.push((queue_change::decode_key(key)?, queue_change::decode_row(row)?));
        Ok(())
    })?;
    Ok(changes)
}

/// How many of the oldest changes need not be remembered: those in front of which nothing is stored any more; and when
/// there is no room for another one, the oldest, if every group has passed it. A group that begins later may find the
/// order of keys broken there.
fn forgettable(
    shared: &Shared,
    topic: &TopicHandle,
    changes: &[(u64, QueueChange)],
    slowest: Option<(usize, String)>,
) -> Result<usize> {
    let mut gone = 0;
    while let Some((_, change)) = changes.get(gone)
        && is_expired(shared, topic, change)?
    {
        gone += 1;
    }
    let kept = changes.len() - gone;
    match slowest {
        _ if kept < MAX_QUEUE_CHANGES => Ok(gone),
        Some((passed, group)) if passed <= gone => {
            let text = format!(
                "the queues of topic {} were changed {kept} times, the limit, and group {group} has not consumed what \
                 was sent before the first of them: let it catch up, then retry",
                topic.name()
            );
            Err(Error::new(ErrorKind::Full, text))
        }
        _ => Ok(gone + 1),
    }
}

/// Whether nothing is stored any more of what was in front of a change.
fn is_expired(shared: &Shared, topic: &TopicHandle, change: &QueueChange) -> Result<bool> {
    for (queue, end) in topic.layout().queues.iter().zip(change.ends()) {
        if shared.storage.engine().bounds(queue.key())?.start < *end {
            return Ok(false);
        }
    }
    Ok(true)
}
