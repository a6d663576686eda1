//! Messages that come again and again.
//!
//! Such a message waits as any delayed one, and a row says when it comes next. Each time one batch appends it, and
//! replaces its timer and that row by the next: whatever happens, it has exactly one next time. What fell due while
//! the broker was down comes once, for all the times that were missed.

use std::sync::Arc;

use cuemq_storage_api::WriteBatch;

use super::{DelayActor, RecurRequest};
use crate::domain::delay::TimerKey;
use crate::domain::expiry::shift_end;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_RECURRENCES;
use crate::shared::Shared;
use crate::storage::scan_rows;
use crate::tables::delay::{self as table, DelayOrigin, DelayRow};
use crate::tables::recurrence::{self, RecurrenceRow};

impl DelayActor {
    /// Stores a message that recurs, and its first time.
    pub(super) fn recur(&mut self, request: RecurRequest) {
        let number = self.shared.take_number();
        let (batch, timer) = match self.recur_batch(&request, number) {
            Ok(made) => made,
            Err(error) => return request.answer(Err(error)),
        };
        let (me, shared) = (self.me.clone(), Arc::clone(&self.shared));
        self.shared.storage.write(batch, request.flush, move |result| {
            if let (Ok(_), Some(delay)) = (&result, &me) {
                delay.stored(vec![timer]);
            } else {
                shared.delayed.subtract(1);
            }
            request.answer(result.map(|_| number).map_err(|error| error.get()));
        });
    }

    fn recur_batch(&self, request: &RecurRequest, number: u64) -> Result<(WriteBatch, TimerKey)> {
        let engine = self.shared.storage.engine();
        let count = scan_rows::<Error>(&**engine, &recurrence::TABLE, &[], None, MAX_RECURRENCES, |_, _| Ok(()))?;
        if count >= MAX_RECURRENCES {
            let text = format!("{MAX_RECURRENCES} messages recur: cancel one of them first");
            return Err(Error::new(ErrorKind::Full, text));
        }
        self.count_one()?;
        let (timer, topic) = (TimerKey::new(request.due, number), request.topic.clone());
        let waiting = DelayRow {
            topic: topic.clone(),
            queue: request.queue,
            origin: DelayOrigin::Recurrence(number),
            record: request.record.clone(),
        };
        let row = RecurrenceRow { topic, recurrence: request.recurrence.clone(), timer, fired: 0 };
        let mut batch = WriteBatch::new(self.shared.clock.now());
        batch.put(&table::TABLE, table::key(timer), waiting.encode());
        batch.put(&recurrence::TABLE, recurrence::key(number), row.encode());
        Ok((batch, timer))
    }
}

/// Adds the next time of a message that comes now to the batch that appends it. Without a next one, or when its topic
/// was deleted, it has come for the last time.
pub(super) fn comes_again(
    shared: &Shared,
    number: u64,
    waited: &DelayRow,
    batch: &mut WriteBatch,
) -> Result<Option<TimerKey>> {
    let key = recurrence::key(number);
    let Some(mut row) = recurrence(shared, number)? else { return Ok(None) };
    // Never one that has passed: all times that were missed are this one.
    let next = row.recurrence.next_after(shared.clock.now().max(row.timer.due));
    let Some(due) = next.filter(|_| shared.topics.get(&row.topic).is_some()) else {
        tracing::warn!(topic = %row.topic, "a message has recurred for the last time");
        batch.delete(&recurrence::TABLE, key);
        return Ok(None);
    };
    let mut waiting = waited.clone();
    waiting.record.attributes = shift_end(&waiting.record.attributes, row.timer.due, due);
    row.timer = TimerKey::new(due, shared.take_number());
    row.fired += 1;
    batch.put(&table::TABLE, table::key(row.timer), waiting.encode());
    batch.put(&recurrence::TABLE, key, row.encode());
    Ok(Some(row.timer))
}

/// The row of a recurrence, if there is such.
pub(super) fn recurrence(shared: &Shared, number: u64) -> Result<Option<RecurrenceRow>> {
    let row = shared.storage.engine().get(&recurrence::TABLE, &recurrence::key(number))?;
    Ok(row.map(|row| RecurrenceRow::decode(&row)).transpose()?)
}
