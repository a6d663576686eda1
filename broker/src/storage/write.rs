//! One write on its way: from the job that somebody handed over to the answer that it gets.

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::{
    Appended, Applied, Engine, LogPosition, Mark, QueueKey, QueueOffset, Result, StorageError, Timestamp, WriteBatch,
    WriteOperation,
};

use super::span::Span;
use super::tail::{QueueTail, Tails};
use crate::error::SharedError;
use crate::message::AckLevel;
use crate::settings::Flush;

/// What a write became.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// One entry per append operation of the job's batch.
    pub(crate) appends: Vec<Appended>,
    /// One position per appended record.
    pub(crate) positions: Vec<LogPosition>,
    pub(crate) level: AckLevel,
}

pub(crate) type WriteResult = std::result::Result<Stored, SharedError>;
pub(crate) type Done = Box<dyn FnOnce(WriteResult) + Send>;
pub(super) type OnApplied = Box<dyn FnOnce() + Send>;

/// A batch with whoever waits for its outcome.
pub(crate) struct WriteJob {
    pub(crate) batch: WriteBatch,
    pub(crate) flush: Flush,
    /// Hears as soon as the batch is applied, which may be before it is acknowledged; dropped if it never is.
    pub(crate) applied: Option<OnApplied>,
    pub(crate) done: Done,
}

impl fmt::Debug for WriteJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteJob").field("operations", &self.batch.len()).finish_non_exhaustive()
    }
}

impl WriteJob {
    pub(super) fn refuse(self, error: &SharedError) {
        drop(self.applied);
        (self.done)(Err(error.clone()));
    }
}

/// One job's share of a merged batch.
pub(super) struct Part {
    flush: Flush,
    applied: Option<OnApplied>,
    done: Done,
    operations: std::ops::Range<usize>,
    records: usize,
    tails: Vec<Arc<QueueTail>>,
    /// Of a part that reaches several queues.
    span: Option<Span>,
}

impl Part {
    /// Notes whose end each append moves; done before the apply, so that a new tail starts at the end of before.
    pub(super) fn find_tails(&mut self, tails: &Tails, engine: &dyn Engine, batch: &WriteBatch) -> Result<()> {
        let mut last: Option<&QueueKey> = None;
        for operation in &batch.operations()[self.operations.clone()] {
            let WriteOperation::Append { queue, records } = operation else { continue };
            self.records += records.len();
            // Most writes append to one queue, often several bursts: one look-up serves them.
            let tail = match self.tails.last() {
                Some(tail) if last == Some(queue) => Arc::clone(tail),
                _ => tails.get(queue, engine)?,
            };
            self.tails.push(tail);
            last = Some(queue);
        }
        self.span = tails.span(&self.tails);
        Ok(())
    }

    /// Tells the span where it begins in each queue.
    fn placed(&mut self, appends: &[Appended]) {
        if let Some(span) = &mut self.span {
            let first_in = |tail: &Arc<QueueTail>| {
                let mut appended = self.tails.iter().zip(appends);
                let found = appended.find(|(own, _)| Arc::ptr_eq(own, tail));
                found.map_or(0, |(_, append)| append.first.get())
            };
            let firsts = span.tails().iter().map(first_in).collect();
            span.placed(firsts);
        }
    }

    /// Tells that the batch is applied.
    pub(super) fn applied(&mut self) {
        if let Some(applied) = self.applied.take() {
            applied();
        }
    }

    pub(super) fn refuse(self, error: &SharedError) {
        drop(self.applied);
        (self.done)(Err(error.clone()));
    }
}

/// Makes one batch of many jobs. The batch is atomic as a whole, which is more than each job asked for.
pub(super) fn merge(jobs: Vec<WriteJob>) -> (WriteBatch, Vec<Part>) {
    let mut merged: Option<WriteBatch> = None;
    let mut parts = Vec::with_capacity(jobs.len());
    for job in jobs {
        let first = merged.as_ref().map_or(0, |batch| batch.operations().len());
        let operations = first..first + job.batch.operations().len();
        let (flush, applied, done) = (job.flush, job.applied, job.done);
        parts.push(Part { flush, applied, done, operations, records: 0, tails: Vec::new(), span: None });
        match &mut merged {
            Some(batch) => {
                batch.extend(job.batch);
            }
            None => merged = Some(job.batch),
        }
    }
    (merged.unwrap_or_else(|| WriteBatch::new(Timestamp::MIN)), parts)
}

/// Gives each job its share of what the merged batch became.
pub(super) fn split(mut applied: Applied, parts: Vec<Part>) -> impl Iterator<Item = Landed> {
    // From the last part to the first, so that the shares are cut off the end; the first one's is what is left.
    let mut landed: Vec<Landed> = Vec::with_capacity(parts.len());
    for mut part in parts.into_iter().rev() {
        let appends = split_off_end(&mut applied.appends, part.tails.len());
        let positions = split_off_end(&mut applied.positions, part.records);
        part.placed(&appends);
        landed.push(Landed { part, appends, positions, mark: applied.mark });
    }
    landed.into_iter().rev()
}

/// The last `count` items; all of them without a copy.
fn split_off_end<T>(items: &mut Vec<T>, count: usize) -> Vec<T> {
    if count == items.len() { std::mem::take(items) } else { items.split_off(items.len() - count) }
}

/// A write that is applied and not yet acknowledged.
pub(super) struct Landed {
    part: Part,
    appends: Vec<Appended>,
    positions: Vec<LogPosition>,
    mark: Mark,
}

impl Landed {
    pub(super) fn flush(&self) -> Flush {
        self.part.flush
    }

    /// How many records it has; one of rows alone counts as one.
    pub(super) fn records(&self) -> usize {
        self.part.records.max(1)
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Shows the records to consumers, then answers.
    pub(super) fn acknowledge(mut self, level: AckLevel) {
        if let Some(span) = self.part.span.take() {
            let end_in = |tail: &Arc<QueueTail>| {
                let appended = self.part.tails.iter().zip(&self.appends).rev();
                let last = { appended }.find(|(own, _)| Arc::ptr_eq(own, tail));
                last.map_or(0, |(_, append)| append.first.get() + u64::from(append.count))
            };
            let ends = span.tails().iter().map(end_in).collect();
            // All at once.
            span.acknowledged(ends);
        } else {
            self.show();
        }
        let stored = Stored { appends: self.appends, positions: self.positions, level };
        (self.part.done)(Ok(stored));
    }

    fn show(&self) {
        let mut appended = self.part.tails.iter().zip(&self.appends).peekable();
        while let Some((tail, append)) = appended.next() {
            // Of appends to one queue the last one tells how far it reaches: one wake-up for all of them.
            if appended.peek().is_none_or(|(next, _)| !Arc::ptr_eq(next, tail)) {
                tail.advance(QueueOffset::new(append.first.get() + u64::from(append.count)));
            }
        }
    }

    /// The sync failed: the bytes may or may not be there.
    pub(super) fn unknown(self, error: &StorageError) {
        let text = format!("the write was applied, but making it durable failed: {error}");
        let error = crate::error::Error::new(crate::error::ErrorKind::Unknown, text);
        (self.part.done)(Err(SharedError::new(error)));
    }
}
