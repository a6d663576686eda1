//! Several queues read as one, in the order in which their messages were stored.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use cuemq_storage_api::{
    Engine, ErrorKind, FetchLimit, FetchRequest, LocatedRecord, LogPosition, QueueKey, QueueOffset, Result,
    StoredRecord, TagHashes, Timestamp,
};

use crate::limits::FETCH_BYTES;

/// Records that one fetch from one queue asks for.
const FETCH_RECORDS: usize = 64;

/// Merges queues by the position of their records. Keeps up to 64 records of each queue, and of all of them together
/// about as many bytes as one fetch of a consumer asks for (but one record of each, however large).
pub(crate) struct StoredOrder<'a> {
    engine: &'a dyn Engine,
    tags: &'a TagHashes,
    limit: FetchLimit,
    sources: Vec<Source>,
    /// The next record of each source that has one.
    heads: BinaryHeap<Reverse<(LogPosition, usize)>>,
    /// The first record that was not looked at because enough was passed over: nothing is read beyond it.
    stopped: Option<Stop>,
}

/// Where reading stopped: a record that was not looked at. All before it were, in all queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Stop {
    pub(crate) position: LogPosition,
    pub(crate) stored_at: Timestamp,
}

struct Source {
    queue: QueueKey,
    next: QueueOffset,
    until: QueueOffset,
    ready: VecDeque<StoredRecord>,
    /// How many more entries may be passed over.
    allowance: u64,
}

impl<'a> StoredOrder<'a> {
    /// Reads these ranges of these queues; the engine leaves out records whose tag's hash is not among `tags`.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn new(
        engine: &'a dyn Engine,
        tags: &'a TagHashes,
        ranges: Vec<(QueueKey, Range<QueueOffset>)>,
    ) -> Result<Self> {
        Self::within(engine, tags, ranges, u64::MAX)
    }

    /// As [`new`](Self::new), and stops when so many entries were looked at in a queue: [`stopped`](Self::stopped)
    /// tells where.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn within(
        engine: &'a dyn Engine,
        tags: &'a TagHashes,
        ranges: Vec<(QueueKey, Range<QueueOffset>)>,
        allowance: u64,
    ) -> Result<Self> {
        let limit = FetchLimit { max_messages: FETCH_RECORDS, max_bytes: FETCH_BYTES / ranges.len().max(1) };
        let source = |(queue, range): (QueueKey, Range<QueueOffset>)| Source {
            queue,
            next: range.start,
            until: range.end,
            ready: VecDeque::new(),
            allowance,
        };
        let sources: Vec<Source> = ranges.into_iter().map(source).collect();
        let heads = BinaryHeap::with_capacity(sources.len());
        let mut merged = Self { engine, tags, limit, heads, sources, stopped: None };
        for at in 0..merged.sources.len() {
            merged.look(at)?;
        }
        Ok(merged)
    }

    /// Where it stopped, once [`next`](Self::next) has nothing more.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.stopped
    }

    /// The record that was stored next.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn next(&mut self) -> Result<Option<LocatedRecord>> {
        if let (Some(stop), Some(Reverse((position, _)))) = (self.stopped, self.heads.peek())
            && *position > stop.position
        {
            return Ok(None);
        }
        let Some(Reverse((_, at))) = self.heads.pop() else { return Ok(None) };
        let source = &mut self.sources[at];
        let stored = source.ready.pop_front().expect("a source with a head has a record");
        let queue = source.queue.clone();
        self.look(at)?;
        Ok(Some(LocatedRecord { queue, stored }))
    }

    /// Notes the next record of a source, after a fetch if there is none at hand.
    fn look(&mut self, at: usize) -> Result<()> {
        let source = &mut self.sources[at];
        while source.ready.is_empty() && source.next < source.until {
            if source.allowance == 0 {
                return self.stop(at);
            }
            let left = source.until.get() - source.next.get();
            let until = Some(source.next.plus(left.min(source.allowance)));
            let (queue, from) = (&source.queue, source.next);
            let request = FetchRequest { queue, from, until, limit: self.limit, tags: self.tags };
            match self.engine.fetch(request) {
                Ok(fetch) => {
                    let looked_at = fetch.next.get().saturating_sub(from.get());
                    source.allowance = source.allowance.saturating_sub(looked_at);
                    source.next = fetch.next;
                    source.ready.extend(fetch.records);
                }
                Err(error) if error.kind() == ErrorKind::OutOfRange => {
                    // Retention may have moved the minimum since the range was chosen; anything else is an error.
                    let min = self.engine.bounds(&source.queue)?.start;
                    if min <= from {
                        return Err(error);
                    }
                    source.next = min;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(stored) = source.ready.front() {
            self.heads.push(Reverse((stored.position, at)));
        }
        Ok(())
    }

    /// Notes where a source goes on that may not go on now.
    fn stop(&mut self, at: usize) -> Result<()> {
        let source = &self.sources[at];
        let range = source.next..source.until;
        if let Some(next) = first_of(self.engine, &source.queue, range)? {
            let here = Stop { position: next.position, stored_at: next.stored_at };
            self.stopped = Some(self.stopped.map_or(here, |stop| stop.min(here)));
        }
        Ok(())
    }
}

/// The first record there is of a range.
fn first_of(engine: &dyn Engine, queue: &QueueKey, range: Range<QueueOffset>) -> Result<Option<StoredRecord>> {
    let from = range.start.max(engine.bounds(queue)?.start);
    if from >= range.end {
        return Ok(None);
    }
    let (until, limit) = (Some(range.end), FetchLimit { max_messages: 1, max_bytes: 1 });
    let fetched = engine.fetch(FetchRequest { queue, from, until, limit, tags: &TagHashes::All });
    Ok(fetched?.records.into_iter().next())
}

/// Where what was stored behind a position begins in a range of a queue: near its start more often than not.
///
/// # Errors
/// A failed read.
pub(crate) fn first_behind(
    engine: &dyn Engine,
    queue: &QueueKey,
    range: Range<QueueOffset>,
    position: LogPosition,
) -> Result<QueueOffset> {
    let is_behind = |offset: u64| {
        let first = first_of(engine, queue, QueueOffset::new(offset)..range.end)?;
        Ok::<bool, cuemq_storage_api::StorageError>(first.is_none_or(|stored| stored.position > position))
    };
    // Nothing below `low` is behind; `high` is, or is the end.
    let (mut low, mut high, mut step) = (range.start.get(), range.end.get(), 1);
    while low < high {
        let probe = (low + step - 1).min(high - 1);
        if is_behind(probe)? {
            high = probe;
            break;
        }
        (low, step) = (probe + 1, step * 2);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if is_behind(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(QueueOffset::new(low))
}
