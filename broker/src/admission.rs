//! Bounds what is sent and not yet acknowledged, in messages and in bytes. actix mailboxes do not bound `send`.

use std::sync::Arc;

use tokio::sync::{Semaphore, TryAcquireError};

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_BATCH_MESSAGES;
use crate::settings::BrokerSettings;

/// One per broker.
#[derive(Debug)]
pub(crate) struct Admission {
    messages: Semaphore,
    bytes: Semaphore,
    max_messages: u32,
    max_bytes: u32,
}

/// How much room something takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    messages: u32,
    bytes: u32,
}

/// Room that was taken, given back when dropped unless it joins a [`Permit`]. Costs no reference count.
#[derive(Debug)]
#[must_use]
pub(crate) struct Taken<'a> {
    admission: &'a Arc<Admission>,
    room: Room,
}

/// Room that is held from admission to acknowledgement. One permit may stand for many messages: then all of their
/// room is given back in one step.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    messages: usize,
    bytes: usize,
}

impl Admission {
    pub(crate) fn new(settings: &BrokerSettings) -> Arc<Self> {
        let (max_messages, max_bytes) = (settings.max_in_flight_messages, settings.max_in_flight_bytes);
        let (messages, bytes) = (Semaphore::new(max_messages as usize), Semaphore::new(max_bytes as usize));
        Arc::new(Self { messages, bytes, max_messages, max_bytes })
    }

    fn room(&self, messages: usize, bytes: usize) -> Result<Room> {
        let most = MAX_BATCH_MESSAGES.min(self.max_messages as usize);
        if messages > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a batch of {messages} messages is larger than {most}: split it"),
            ));
        }
        match (u32::try_from(messages), u32::try_from(bytes)) {
            (Ok(messages), Ok(bytes)) if bytes <= self.max_bytes => Ok(Room { messages, bytes }),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{bytes} bytes at once are more than max_in_flight_bytes = {}: split the batch",
                    self.max_bytes
                ),
            )),
        }
    }

    /// Waits for room.
    pub(crate) async fn take<'a>(self: &'a Arc<Self>, messages: usize, bytes: usize) -> Result<Taken<'a>> {
        let room = self.room(messages, bytes)?;
        match self.take_at_once(room) {
            Ok(taken) => Ok(taken),
            // In a box, so that a send that need not wait does not carry what one that waits needs.
            Err(_) => Box::pin(self.wait_for(room)).await,
        }
    }

    /// Takes room if there is some.
    pub(crate) fn try_take<'a>(self: &'a Arc<Self>, messages: usize, bytes: usize) -> Result<Taken<'a>> {
        let room = self.room(messages, bytes)?;
        self.take_at_once(room).map_err(|error| self.refusal(&error))
    }

    /// Overtakes nobody: what is given back goes to those who wait, as long as there are any.
    fn take_at_once(self: &Arc<Self>, room: Room) -> std::result::Result<Taken<'_>, TryAcquireError> {
        let messages = self.messages.try_acquire_many(room.messages)?;
        self.bytes.try_acquire_many(room.bytes)?.forget();
        messages.forget();
        Ok(Taken { admission: self, room })
    }

    async fn wait_for(self: &Arc<Self>, room: Room) -> Result<Taken<'_>> {
        let closed = |_| Error::closed("the broker");
        let messages = self.messages.acquire_many(room.messages).await.map_err(closed)?;
        self.bytes.acquire_many(room.bytes).await.map_err(closed)?.forget();
        messages.forget();
        Ok(Taken { admission: self, room })
    }

    fn refusal(&self, error: &TryAcquireError) -> Error {
        match error {
            TryAcquireError::Closed => Error::closed("the broker"),
            TryAcquireError::NoPermits => Error::new(
                ErrorKind::Full,
                format!(
                    "{} messages or {} bytes are in flight: wait for some receipts, then retry",
                    self.max_messages, self.max_bytes
                ),
            ),
        }
    }

    /// Resolves once nothing is in flight; then nothing is admitted any more.
    pub(crate) async fn drain(&self) {
        if let Ok(all) = self.messages.acquire_many(self.max_messages).await {
            all.forget();
        }
        self.close();
    }

    /// Refuses everybody who waits and whoever comes.
    pub(crate) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }

    fn give_back(&self, messages: usize, bytes: usize) {
        if messages > 0 {
            self.bytes.add_permits(bytes);
            // Last, because a shutdown waits for the messages: by then the bytes are back too.
            self.messages.add_permits(messages);
        }
    }
}

impl Taken<'_> {
    /// Makes it last beyond the borrow.
    pub(crate) fn keep(mut self) -> Permit {
        let room = std::mem::replace(&mut self.room, Room { messages: 0, bytes: 0 });
        Permit { admission: Arc::clone(self.admission), messages: room.messages as usize, bytes: room.bytes as usize }
    }

    /// Adds it to a permit of the same broker.
    pub(crate) fn join(mut self, permit: &mut Permit) {
        debug_assert!(Arc::ptr_eq(self.admission, &permit.admission));
        let room = std::mem::replace(&mut self.room, Room { messages: 0, bytes: 0 });
        permit.messages += room.messages as usize;
        permit.bytes += room.bytes as usize;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.admission.give_back(self.room.messages as usize, self.room.bytes as usize);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.give_back(self.messages, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn admission(messages: u32, bytes: u32) -> Arc<Admission> {
        let settings = BrokerSettings {
            max_in_flight_messages: messages,
            max_in_flight_bytes: bytes,
            ..BrokerSettings::default()
        };
        Admission::new(&settings)
    }

    fn left(admission: &Admission) -> (usize, usize) {
        (admission.messages.available_permits(), admission.bytes.available_permits())
    }

    #[test]
    fn room_comes_back_once_however_it_was_held() {
        let admission = admission(10, 1000);
        drop(admission.try_take(2, 200).unwrap());
        assert_eq!(left(&admission), (10, 1000));
        let mut permit = admission.try_take(1, 100).unwrap().keep();
        admission.try_take(3, 300).unwrap().join(&mut permit);
        assert_eq!(left(&admission), (6, 600));
        drop(permit);
        assert_eq!(left(&admission), (10, 1000));
    }

    #[test]
    fn both_bounds_hold_and_a_refusal_takes_nothing() {
        let admission = admission(2, 1000);
        let held = admission.try_take(1, 900).unwrap();
        assert_eq!(admission.try_take(1, 101).unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(left(&admission), (1, 100));
        let rest = admission.try_take(1, 0).unwrap();
        assert_eq!(admission.try_take(1, 0).unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(admission.try_take(3, 0).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(admission.try_take(1, 1001).unwrap_err().kind(), ErrorKind::Invalid);
        drop((held, rest));
        assert_eq!(left(&admission), (2, 1000));
    }

    #[tokio::test]
    async fn whoever_stops_waiting_holds_nothing() {
        let admission = admission(2, 1000);
        let held = admission.try_take(1, 600).unwrap();
        let mut waiting = Box::pin(admission.take(1, 500));
        assert!(waiting.as_mut().now_or_never().is_none(), "the bytes are taken");
        drop(waiting);
        assert_eq!(left(&admission), (1, 400));
        drop(held);
        drop(admission.take(2, 1000).await.unwrap());
        admission.drain().await;
        assert_eq!(admission.take(1, 1).await.unwrap_err().kind(), ErrorKind::Closed);
    }

    #[tokio::test]
    async fn whoever_waits_is_not_overtaken_by_one_who_needs_less() {
        let admission = admission(10, 1000);
        let held = admission.try_take(1, 600).unwrap();
        let mut waiting = Box::pin(admission.take(1, 500));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(admission.try_take(1, 100).unwrap_err().kind(), ErrorKind::Full, "400 are free, and spoken for");
        let mut later = Box::pin(admission.take(1, 100));
        assert!(later.as_mut().now_or_never().is_none());
        drop(held);
        drop((waiting.await.unwrap(), later.await.unwrap()));
        assert_eq!(left(&admission), (10, 1000));
    }
}
