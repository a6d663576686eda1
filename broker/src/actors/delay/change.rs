//! Taking back a message that waits, or giving it another time.
//!
//! Whether a message is delivered, taken back or moved is decided here, by the only writer of the table: its row is
//! there and in nobody's hands, or the change is too late. While a write that has the row in its hands has no outcome
//! yet, the change waits for that outcome.

use cuemq_storage_api::WriteBatch;

use super::{Change, ChangeRequest, Changed, DelayActor, recur};
use crate::domain::delay::TimerKey;
use crate::domain::expiry::shift_end;
use crate::error::Result;
use crate::settings::Flush;
use crate::tables::delay::{self as table, DelayOrigin, DelayRow};
use crate::tables::recurrence;

/// A change that is being stored.
struct Made {
    request: ChangeRequest,
    timer: TimerKey,
    /// Whether its message is among those counted.
    counted: bool,
    changed: Changed,
}

impl DelayActor {
    /// Stores the changes that were admitted as one batch; each caller hears of its own once it is stored.
    pub(super) fn carry_out_changes(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let mut batch = WriteBatch::new(self.shared.clock.now());
        let (mut made, mut flush) = (Vec::with_capacity(self.changes.len()), Flush::Buffered);
        for request in std::mem::take(&mut self.changes) {
            let timer = match self.timer_of(request.change) {
                Ok(Some(timer)) => timer,
                Ok(None) => {
                    request.answer(Ok(Changed::NotWaiting));
                    continue;
                }
                Err(error) => {
                    request.answer(Err(error));
                    continue;
                }
            };
            if self.firing.contains(&timer) {
                self.parked.entry(timer).or_default().push(request);
                continue;
            }
            match self.make_change(timer, request.change, &mut batch) {
                Ok(Some((changed, wanted))) => {
                    if wanted == Flush::Durable {
                        flush = Flush::Durable;
                    }
                    // A refill may read the row until the write has landed.
                    self.firing.insert(timer);
                    self.schedule.cancel(timer, &mut self.effects);
                    made.push(Made { request, timer, counted: self.is_counted(timer), changed });
                }
                Ok(None) => request.answer(Ok(Changed::NotWaiting)),
                Err(error) => request.answer(Err(error)),
            }
        }
        if !made.is_empty() {
            self.write_changes(batch, flush, made);
        }
    }

    /// The timer that a change is about; `None` when it is of a recurrence that there is not.
    fn timer_of(&self, change: Change) -> Result<Option<TimerKey>> {
        match change {
            Change::Recall(timer) | Change::Reschedule(timer, _) => Ok(Some(timer)),
            Change::End(number) => Ok(recur::recurrence(&self.shared, number)?.map(|row| row.timer)),
        }
    }

    /// Adds one change to a batch; `None` when the message does not wait.
    fn make_change(&self, timer: TimerKey, change: Change, batch: &mut WriteBatch) -> Result<Option<(Changed, Flush)>> {
        let key = table::key(timer);
        let Some(value) = self.shared.storage.engine().get(&table::TABLE, &key)? else { return Ok(None) };
        let mut row = DelayRow::decode(&value)?;
        match (row.origin, change) {
            (DelayOrigin::Recurrence(of), Change::End(number)) if of == number => {
                batch.delete(&recurrence::TABLE, recurrence::key(number));
            }
            (DelayOrigin::Send, Change::Recall(_) | Change::Reschedule(..)) => {}
            // Nobody was given such an id.
            _ => return Ok(None),
        }
        let flush = self.shared.topics.get(&row.topic).map_or(Flush::Durable, |topic| topic.flush());
        batch.delete(&table::TABLE, key);
        Ok(Some(match change {
            Change::Recall(_) | Change::End(_) => (Changed::Recalled, flush),
            Change::Reschedule(_, due) => {
                let moved = TimerKey::new(due, self.shared.take_number());
                let visible = due.max(self.shared.clock.now());
                row.record.attributes = shift_end(&row.record.attributes, timer.due, visible);
                batch.put(&table::TABLE, table::key(moved), row.encode());
                (Changed::Rescheduled(moved), flush)
            }
        }))
    }

    fn write_changes(&self, batch: WriteBatch, flush: Flush, made: Vec<Made>) {
        let (me, shared) = (self.me.clone(), std::sync::Arc::clone(&self.shared));
        self.shared.storage.write(batch, flush, move |result| {
            let changed: Vec<TimerKey> = made.iter().map(|made| made.timer).collect();
            let mut waiting = Vec::new();
            match &result {
                Ok(_) => {
                    waiting.extend(made.iter().filter_map(|made| match made.changed {
                        Changed::Rescheduled(moved) => Some(moved),
                        Changed::Recalled | Changed::NotWaiting => None,
                    }));
                    shared.delayed.add(waiting.len());
                    shared.delayed.subtract(made.iter().filter(|made| made.counted).count());
                }
                // They wait as before.
                Err(error) if error.get().is_certainly_not_applied() => waiting.extend(&changed),
                Err(_) => {}
            }
            if let Some(delay) = me {
                // First, so that whoever was answered finds the scheduler knowing.
                delay.fired(changed);
                delay.stored(waiting);
            }
            for Made { request, changed, .. } in made {
                request.answer(result.as_ref().map(|_| changed).map_err(|error| error.get()));
            }
        });
    }
}
