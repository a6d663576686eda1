//! Messages that come again and again, in their sender's hands.

use std::fmt;
use std::str::FromStr;

use cuemq_storage_api::Timestamp;

use crate::actors::delay::{Change, Changed};
use crate::broker::Broker;
use crate::domain::recurrence::Recurrence;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_RECURRENCES;
use crate::scheduled;
use crate::storage::scan_rows;
use crate::tables::recurrence::{self as table, RecurrenceRow};

/// Names one recurring message for ever: its store and a number; 32 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecurrenceId {
    store: u64,
    number: u64,
}

/// A recurring message as administration shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RecurringMessage {
    /// Its id.
    pub id: RecurrenceId,
    /// Where it comes.
    pub topic: String,
    /// When it comes.
    pub recurrence: Recurrence,
    /// When it comes next.
    pub next: Timestamp,
    /// How often it came.
    pub fired: u64,
}

impl RecurrenceId {
    pub(crate) fn new(store: u64, number: u64) -> Self {
        Self { store, number }
    }
}

impl fmt::Display for RecurrenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}{:016X}", self.store, self.number)
    }
}

impl fmt::Debug for RecurrenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RecurrenceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let text = format!("id {text:?} of a recurring message is not 32 hexadecimal digits");
            Error::new(ErrorKind::Invalid, text)
        };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let part = |at: usize| u64::from_str_radix(&text[at..at + 16], 16).map_err(|_| bad());
        Ok(Self { store: part(0)?, number: part(16)? })
    }
}

impl Broker {
    /// All messages that recur, in the order of their making.
    ///
    /// # Errors
    /// What the engine meets.
    pub fn recurring(&self) -> Result<Vec<RecurringMessage>> {
        let (shared, mut all) = (self.shared(), Vec::new());
        let engine = shared.storage.engine();
        scan_rows::<Error>(&**engine, &table::TABLE, &[], None, MAX_RECURRENCES, |key, value| {
            let (number, row) = (table::decode_key(key)?, RecurrenceRow::decode(value)?);
            all.push(RecurringMessage {
                id: RecurrenceId::new(shared.store_id, number),
                topic: row.topic.to_string(),
                recurrence: row.recurrence,
                next: row.timer.due,
                fired: row.fired,
            });
            Ok(())
        })?;
        Ok(all)
    }

    /// Ends a recurring message: it never comes again. Whether it was there; `false` when it was ended before.
    ///
    /// # Errors
    /// As [`recall`](Self::recall).
    pub async fn cancel_recurring(&self, id: &RecurrenceId) -> Result<bool> {
        let ended = scheduled::ask(self.shared(), id.store, Change::End(id.number)).await?;
        Ok(ended == Changed::Recalled)
    }

    /// Delayed messages that wait. Right after an opening those of earlier ones are still being counted.
    #[must_use]
    pub fn delayed_messages(&self) -> usize {
        self.shared().delayed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text() {
        let id = RecurrenceId::new(7, u64::MAX);
        assert_eq!(id.to_string().parse::<RecurrenceId>().unwrap(), id);
        for bad in ["", "xyz", &"0".repeat(31), &"é".repeat(16)] {
            assert!(bad.parse::<RecurrenceId>().is_err(), "{bad}");
        }
    }
}
