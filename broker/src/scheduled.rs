//! A delayed message in its sender's hands: until the instant it fires it can be taken back or moved.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cuemq_storage_api::Timestamp;
use tokio::sync::oneshot;

use crate::actors::delay::{Change, ChangeRequest, Changed};
use crate::broker::Broker;
use crate::domain::delay::TimerKey;
use crate::error::{Error, ErrorKind, Result};
use crate::shared::Shared;

/// Names one delayed message for ever: its store, when it is due, and a number; 24 bytes, 48 hexadecimal digits as
/// text. A message that is given another time gets another id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScheduledId {
    store: u64,
    timer: TimerKey,
}

/// What became of a message that was to be taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recalled {
    /// It is never delivered: of all calls for one id, and of its delivery, this one came first.
    Recalled,
    /// It does not wait any more: it was delivered, or was recalled or given another time before. It cannot have been
    /// delivered if its time has not come.
    NotWaiting,
}

/// What became of a message that was to have another time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rescheduled {
    /// It waits for its new time, under this id; the earlier one names nothing any more.
    Rescheduled(ScheduledId),
    /// As [`Recalled::NotWaiting`].
    NotWaiting,
}

const SIGN: u64 = 1 << 63;

impl ScheduledId {
    pub(crate) fn new(store: u64, timer: TimerKey) -> Self {
        Self { store, timer }
    }

    /// When the message is due.
    #[must_use]
    pub fn due(self) -> Timestamp {
        self.timer.due
    }
}

impl fmt::Display for ScheduledId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ids of one store sort as text as their messages are due.
        let due = self.timer.due.as_millis().cast_unsigned() ^ SIGN;
        write!(f, "{:016X}{due:016X}{:016X}", self.store, self.timer.sequence)
    }
}

impl fmt::Debug for ScheduledId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ScheduledId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let text = format!("id {text:?} of a delayed message is not 48 hexadecimal digits");
            Error::new(ErrorKind::Invalid, text)
        };
        if text.len() != 48 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let part = |at: usize| u64::from_str_radix(&text[at..at + 16], 16).map_err(|_| bad());
        let due = Timestamp::from_millis((part(16)? ^ SIGN).cast_signed());
        Ok(Self { store: part(0)?, timer: TimerKey::new(due, part(32)?) })
    }
}

impl Broker {
    /// Takes a delayed message back that is not due yet. The answer is stored as safely as the message's topic asks
    /// before it is given; a message is never both taken back and delivered, also over a crash.
    ///
    /// # Errors
    /// `Invalid` for an id of another store; `NotStored`, `Full`, `Closed` and `Unavailable` mean that the message
    /// waits as before; `Unknown` that it may have been taken back.
    pub async fn recall(&self, id: &ScheduledId) -> Result<Recalled> {
        recall(self.shared(), *id).await
    }

    /// Gives a delayed message that is not due yet another time; a past one is now. Among those due at one instant it
    /// comes as one that was sent just now.
    ///
    /// # Errors
    /// As [`recall`](Self::recall).
    pub async fn reschedule(&self, id: &ScheduledId, at: Timestamp) -> Result<Rescheduled> {
        reschedule(self.shared(), *id, at).await
    }
}

pub(crate) async fn recall(shared: &Arc<Shared>, id: ScheduledId) -> Result<Recalled> {
    Ok(match ask(shared, id.store, Change::Recall(id.timer)).await? {
        Changed::Recalled | Changed::Rescheduled(_) => Recalled::Recalled,
        Changed::NotWaiting => Recalled::NotWaiting,
    })
}

pub(crate) async fn reschedule(shared: &Arc<Shared>, id: ScheduledId, at: Timestamp) -> Result<Rescheduled> {
    Ok(match ask(shared, id.store, Change::Reschedule(id.timer, at)).await? {
        Changed::Rescheduled(timer) => Rescheduled::Rescheduled(ScheduledId::new(id.store, timer)),
        Changed::Recalled | Changed::NotWaiting => Rescheduled::NotWaiting,
    })
}

pub(crate) async fn ask(shared: &Arc<Shared>, store: u64, change: Change) -> Result<Changed> {
    if store != shared.store_id {
        let text = "the id is of another store: ask the broker that gave it";
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let permit = shared.admit(1, 0).await?.keep();
    let (reply, answer) = oneshot::channel();
    shared.delay_handle().change(ChangeRequest { change, reply, _permit: permit });
    answer.await.unwrap_or_else(|_| Err(Error::lost("the change of a delayed message")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_sort_by_due_time() {
        let id = |due, sequence| ScheduledId::new(7, TimerKey::new(Timestamp::from_millis(due), sequence));
        let ids = [id(i64::MIN, 9), id(-1, 3), id(0, 0), id(1_700_000_000_000, 1), id(i64::MAX, u64::MAX)];
        for id in ids {
            assert_eq!(id.to_string().parse::<ScheduledId>().unwrap(), id);
        }
        let texts = ids.map(|id| id.to_string());
        assert!(texts.is_sorted());
        for bad in ["", "xyz", &"0".repeat(47), &"0".repeat(49), &"é".repeat(24), &"+1".repeat(24)] {
            assert!(bad.parse::<ScheduledId>().is_err(), "{bad}");
        }
    }
}
