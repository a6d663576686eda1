//! Several queues read as one, in the order in which their messages were stored.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use cuemq_storage_api::{
    Engine, ErrorKind, FetchLimit, FetchRequest, LocatedRecord, LogPosition, QueueKey, QueueOffset, Result,
    StoredRecord, TagHashes,
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
}

struct Source {
    queue: QueueKey,
    next: QueueOffset,
    until: QueueOffset,
    ready: VecDeque<StoredRecord>,
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
        let limit = FetchLimit { max_messages: FETCH_RECORDS, max_bytes: FETCH_BYTES / ranges.len().max(1) };
        let source = |(queue, range): (QueueKey, Range<QueueOffset>)| Source {
            queue,
            next: range.start,
            until: range.end,
            ready: VecDeque::new(),
        };
        let sources: Vec<Source> = ranges.into_iter().map(source).collect();
        let mut merged = Self { engine, tags, limit, heads: BinaryHeap::with_capacity(sources.len()), sources };
        for at in 0..merged.sources.len() {
            merged.look(at)?;
        }
        Ok(merged)
    }

    /// The record that was stored next.
    ///
    /// # Errors
    /// A failed read.
    pub(crate) fn next(&mut self) -> Result<Option<LocatedRecord>> {
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
            let (queue, from, until) = (&source.queue, source.next, Some(source.until));
            let request = FetchRequest { queue, from, until, limit: self.limit, tags: self.tags };
            match self.engine.fetch(request) {
                Ok(fetch) => {
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
}
