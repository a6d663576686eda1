//! What producers send and what they get back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use cuemq_storage_api::{
    Attributes, AttributesBuilder, InvalidInput, LogPosition, QueueId, QueueOffset, Record, Timestamp, TopicName,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_PROPERTIES_BYTES;
use crate::scheduled::ScheduledId;

/// Names of properties that the broker keeps for itself begin so.
pub(crate) const SYSTEM_PROPERTY_PREFIX: &str = "__";
/// How often a message was delivered before, on retry copies.
pub(crate) const ATTEMPTS: &str = "__attempts";
/// The topic a retry copy or dead letter was first sent to.
pub(crate) const ORIGIN_TOPIC: &str = "__origin_topic";
/// The queue of that topic in which it was first stored.
pub(crate) const ORIGIN_QUEUE: &str = "__origin_queue";
/// Its offset in that queue.
pub(crate) const ORIGIN_OFFSET: &str = "__origin_offset";
/// The id of the message that a retry copy or dead letter was made from.
pub(crate) const ORIGIN_ID: &str = "__origin_id";
/// When a message failed for the first time, in milliseconds, on retry copies and dead letters.
pub(crate) const FIRST_FAILED_AT: &str = "__first_failed_at";
/// What the last failure that said anything said.
pub(crate) const LAST_ERROR: &str = "__last_error";
/// Why a message became a dead letter.
pub(crate) const DEAD_REASON: &str = "__dead_reason";
/// When it did, in milliseconds.
pub(crate) const DIED_AT: &str = "__died_at";
/// The id under which a message was first stored that was sent again from the dead letters.
pub(crate) const REDRIVEN_FROM: &str = "__redriven_from";
/// When a message stops being of use, in milliseconds.
pub(crate) const EXPIRES_AT: &str = "__expires_at";

/// A message to send: a body, and whatever finds, filters, orders or delays it.
#[derive(Clone, Debug)]
pub struct Message {
    body: Bytes,
    /// Apart from the body, because most messages of a fast sender have none of it and are moved often.
    extras: Option<Box<Extras>>,
}

#[derive(Clone, Debug, Default)]
struct Extras {
    tag: Option<String>,
    keys: Vec<String>,
    sharding_key: Option<String>,
    properties: Vec<(String, String)>,
    delay: Option<Delay>,
    ttl: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Delay {
    For(Duration),
    Level(u8),
    Until(Timestamp),
}

impl Message {
    /// A message with this body.
    #[must_use]
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), extras: None }
    }

    fn extras_mut(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }

    /// A message whose body is a value as JSON.
    ///
    /// # Errors
    /// `Invalid` when the value cannot be written as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let body = serde_json::to_vec(value)
            .map_err(|e| Error::new(ErrorKind::Invalid, format!("the value cannot be written as JSON: {e}")))?;
        Ok(Self::new(body))
    }

    /// Sets the tag, by which consumers filter; 1 byte to 1 KiB, without `||`.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.extras_mut().tag = Some(tag.into());
        self
    }

    /// Adds a key under which the message can be found.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.extras_mut().keys.push(key.into());
        self
    }

    /// Sets the key that chooses the queue: messages with one sharding key are delivered in the order of their sends.
    #[must_use]
    pub fn sharding_key(mut self, key: impl Into<String>) -> Self {
        self.extras_mut().sharding_key = Some(key.into());
        self
    }

    /// Adds a named value. Names that begin with `__` are the broker's own and refused at the send.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.extras_mut().properties.push((name.into(), value.into()));
        self
    }

    /// Delivers the message only after this time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.extras_mut().delay = Some(Delay::For(delay));
        self
    }

    /// Delivers the message after delay level 1 to 18 (1 s to 2 h); 0 is no delay, beyond the last means the last.
    #[must_use]
    pub fn delay_level(mut self, level: u8) -> Self {
        self.extras_mut().delay = (level > 0).then_some(Delay::Level(level));
        self
    }

    /// Delivers the message at this time of the broker's clock or right after; a past time is now.
    #[must_use]
    pub fn deliver_at(mut self, at: Timestamp) -> Self {
        self.extras_mut().delay = Some(Delay::Until(at));
        self
    }

    /// Puts another body in place of the one it has.
    #[must_use]
    pub fn replace_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Lets the message live this long, in whole milliseconds, from the time at which it becomes visible: now, when its
    /// delay is over, or when its transaction is committed. A group that has not consumed it by then gets it no more; see
    /// [`OnExpiry`](crate::OnExpiry). A shorter time to live of the topic counts instead.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.extras_mut().ttl = Some(ttl);
        self
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The sharding key, if one was set: what a selector looks at.
    #[must_use]
    pub fn sharding_key_ref(&self) -> Option<&str> {
        self.extras.as_ref()?.sharding_key.as_deref()
    }

    /// The tag, if one was set.
    #[must_use]
    pub fn tag_ref(&self) -> Option<&str> {
        self.extras.as_ref()?.tag.as_deref()
    }

    pub(crate) fn ttl_ref(&self) -> Option<Duration> {
        self.extras.as_ref()?.ttl
    }

    pub(crate) fn delay_ref(&self) -> Option<Delay> {
        self.extras.as_ref()?.delay
    }

    /// Bytes that count against the limits on what is in flight.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.body.len() + self.extras.as_ref().map_or(0, |extras| extras.payload_bytes())
    }

    /// Checks everything that depends on the message alone; returns all but its body as engines store it.
    pub(crate) fn checked_attributes(&self, max_body_bytes: usize) -> std::result::Result<Attributes, InvalidInput> {
        if self.body.len() > max_body_bytes {
            return Err(InvalidInput::new(format!(
                "body has {} bytes, more than max_body_bytes = {max_body_bytes}: split it, or raise the setting",
                self.body.len()
            )));
        }
        self.extras.as_ref().map_or(Ok(Attributes::EMPTY), |extras| extras.attributes())
    }

    /// What engines store, with the attributes that a check returned.
    pub(crate) fn into_record(self, attributes: Attributes, now: Timestamp) -> Record {
        Record { body: self.body, attributes, born_at: now }
    }
}

impl Extras {
    fn payload_bytes(&self) -> usize {
        let properties: usize = self.properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        let keys: usize = self.keys.iter().map(String::len).sum();
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        properties + keys + text(&self.tag) + text(&self.sharding_key)
    }

    fn attributes(&self) -> std::result::Result<Attributes, InvalidInput> {
        if self.tag.is_none() && self.keys.is_empty() && self.sharding_key.is_none() && self.properties.is_empty() {
            return Ok(Attributes::EMPTY);
        }
        let mut builder = AttributesBuilder::default();
        if let Some(tag) = &self.tag {
            builder.tag(tag);
        }
        if let Some(key) = &self.sharding_key {
            builder.sharding_key(key);
        }
        for key in &self.keys {
            builder.key(key);
        }
        for (name, value) in &self.properties {
            if name.starts_with(SYSTEM_PROPERTY_PREFIX) {
                return Err(InvalidInput::new(format!(
                    "property {name:?} begins with {SYSTEM_PROPERTY_PREFIX:?}, which the broker keeps for itself: rename it"
                )));
            }
            builder.property(name, value);
        }
        let attributes = builder.build()?;
        let bytes = attributes.as_bytes().len();
        if bytes > MAX_PROPERTIES_BYTES {
            return Err(InvalidInput::new(format!(
                "tag, keys and properties take {bytes} bytes, more than {MAX_PROPERTIES_BYTES}: move data into the body"
            )));
        }
        Ok(attributes)
    }
}

impl<T: Into<Bytes>> From<T> for Message {
    fn from(body: T) -> Self {
        Self::new(body)
    }
}

/// Names one stored message for ever: the store's own number and the message's log position, 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    store: u64,
    position: LogPosition,
}

impl MessageId {
    pub(crate) fn new(store: u64, position: LogPosition) -> Self {
        Self { store, position }
    }

    pub(crate) fn store(self) -> u64 {
        self.store
    }

    /// Where the message lies in its broker.
    #[must_use]
    pub fn position(self) -> LogPosition {
        self.position
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}{:016X}", self.store, self.position.get())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::new(ErrorKind::Invalid, format!("message id {text:?} is not 32 hexadecimal digits"));
        let (store, position) = text.split_at_checked(16).ok_or_else(bad)?;
        if position.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let store = u64::from_str_radix(store, 16).map_err(|_| bad())?;
        let position = u64::from_str_radix(position, 16).map_err(|_| bad())?;
        if position > cuemq_storage_api::limits::MAX_POSITION {
            return Err(bad());
        }
        Ok(Self { store, position: LogPosition::new(position) })
    }
}

/// What an acknowledged message survives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum AckLevel {
    /// Nothing: the engine keeps everything in memory.
    Memory,
    /// The end of the process, not a power cut.
    Buffered,
    /// The end of the process, a power cut, a crash of the operating system.
    Durable,
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Buffered => "buffered",
            Self::Durable => "durable",
        })
    }
}

/// The acknowledgement of one message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Receipt {
    /// The topic.
    pub topic: TopicName,
    /// The queue within it. For a delayed message, whose queue is chosen when it is due: queue 0.
    pub queue: QueueId,
    /// The message's place in its queue; `None` for a delayed message until it is due.
    pub offset: Option<QueueOffset>,
    /// The message's id; `None` for a delayed message until it is due.
    pub id: Option<MessageId>,
    /// Names a delayed message until it is due: it can be [recalled](crate::Producer::recall) or
    /// [moved](crate::Producer::reschedule) by this. `None` for one that is not delayed.
    pub scheduled: Option<ScheduledId>,
    /// What the message survives.
    pub level: AckLevel,
}

/// Reads a JSON body.
pub(crate) fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("the body is not the expected JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text() {
        let id = MessageId::new(0xdead_beef, LogPosition::new(42));
        assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
        for bad in ["", "xyz", &"f".repeat(32), &"0".repeat(31), &"é".repeat(16)] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_brokers_own_properties_are_refused() {
        let message = Message::new("x").property("__attempts", "9");
        let error = message.checked_attributes(10).unwrap_err();
        assert!(error.to_string().contains("rename it"), "{error}");
        let large = Message::new("x").property("p", "x".repeat(MAX_PROPERTIES_BYTES));
        let error = large.checked_attributes(10).unwrap_err();
        assert!(error.to_string().contains("more than 32768"), "{error}");
        let error = Message::new(vec![0; 11]).checked_attributes(10).unwrap_err();
        assert!(error.to_string().contains("11 bytes, more than max_body_bytes = 10"), "{error}");
    }
}
