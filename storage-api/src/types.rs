//! The vocabulary: names, ids, offsets, positions and times, each checked when it is made.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::error::InvalidInput;
use crate::limits::{MAX_NAME_BYTES, MAX_POSITION, MAX_QUEUE_ID, MAX_STORED_NAME_BYTES, MAX_TABLE_NAME_BYTES};

/// Names that a broker of this family keeps for itself (RocketMQ's `TopicValidator`).
const RESERVED_NAMES: &[&str] = &[
    "TBW102",
    "SCHEDULE_TOPIC_XXXX",
    "BenchmarkTest",
    "SELF_TEST_TOPIC",
    "OFFSET_MOVED_EVENT",
    "CID_ONSAPI_OWNER",
    "DEFAULT_CONSUMER",
    "DEFAULT_PRODUCER",
];
const RESERVED_PREFIXES: &[&str] = &["%RETRY%", "%DLQ%", "rmq_sys_", "CID_RMQ_SYS_"];
const RETRY_PREFIX: &str = "%RETRY%";
const DEAD_LETTER_PREFIX: &str = "%DLQ%";

fn is_legal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'%')
}

fn check_characters(what: &'static str, name: &str, longest: usize) -> Result<(), InvalidInput> {
    if name.is_empty() {
        return Err(InvalidInput::new(format!("{what} name is empty: use 1 to {longest} of [A-Za-z0-9_%-]")));
    }
    if name.len() > longest {
        return Err(InvalidInput::new(format!(
            "{what} name has {} bytes, more than {longest}: shorten it",
            name.len()
        )));
    }
    if let Some(bad) = name.chars().find(|c| !c.is_ascii() || !is_legal(*c as u8)) {
        return Err(InvalidInput::new(format!("{what} name {name:?} contains {bad:?}: use only [A-Za-z0-9_%-]")));
    }
    Ok(())
}

fn check_user_name(what: &'static str, name: &str) -> Result<(), InvalidInput> {
    check_characters(what, name, MAX_NAME_BYTES)?;
    let reserved = RESERVED_NAMES.contains(&name) || RESERVED_PREFIXES.iter().any(|p| name.starts_with(p));
    if reserved {
        return Err(InvalidInput::new(format!("{what} name {name:?} is reserved for the broker: choose another")));
    }
    Ok(())
}

/// The name of a topic: 1 to 127 of `[A-Za-z0-9_%-]`, not reserved. Cheap to clone.
#[derive(Clone, Eq, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

impl PartialEq for TopicName {
    fn eq(&self, other: &Self) -> bool {
        // Mostly they are clones of one name: then nothing of it is read.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for TopicName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl TopicName {
    /// Checks a name chosen by a user.
    ///
    /// # Errors
    /// Names the offending length, character or reserved word.
    pub fn new(name: &str) -> Result<Self, InvalidInput> {
        check_user_name("topic", name)?;
        Ok(Self(name.into()))
    }

    /// The topic that carries a group's redeliveries, `%RETRY%group`.
    #[must_use]
    pub fn retry_of(group: &GroupName) -> Self {
        Self(format!("{RETRY_PREFIX}{group}").into())
    }

    /// The topic that carries a group's dead letters, `%DLQ%group`.
    #[must_use]
    pub fn dead_letter_of(group: &GroupName) -> Self {
        Self(format!("{DEAD_LETTER_PREFIX}{group}").into())
    }

    /// Checks a name that comes back from storage or from the broker itself: legal characters, up to
    /// 134 bytes, reserved names allowed.
    ///
    /// # Errors
    /// Names the offending length or character.
    pub fn from_stored(name: &str) -> Result<Self, InvalidInput> {
        check_characters("topic", name, MAX_STORED_NAME_BYTES)?;
        Ok(Self(name.into()))
    }

    /// Whether the broker keeps this topic for itself (retry, dead letters, system).
    #[must_use]
    pub fn is_system(&self) -> bool {
        check_user_name("topic", &self.0).is_err()
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a consumer or producer group: 1 to 127 of `[A-Za-z0-9_%-]`, not reserved. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(Arc<str>);

impl GroupName {
    /// Checks a name chosen by a user.
    ///
    /// # Errors
    /// Names the offending length, character or reserved word.
    pub fn new(name: &str) -> Result<Self, InvalidInput> {
        check_user_name("group", name)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}
text_traits!(TopicName);
text_traits!(GroupName);

/// The number of a queue within its topic, from 0 to 999,999.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct QueueId(u32);

impl QueueId {
    /// The first queue of every topic.
    pub const FIRST: Self = Self(0);

    /// Checks a queue number.
    ///
    /// # Errors
    /// When it is above 999,999.
    pub fn new(id: u32) -> Result<Self, InvalidInput> {
        if id > MAX_QUEUE_ID {
            return Err(InvalidInput::new(format!("queue id {id} is above {MAX_QUEUE_ID}")));
        }
        Ok(Self(id))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One queue of one topic. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct QueueKey {
    /// The topic.
    pub topic: TopicName,
    /// The queue within it.
    pub queue: QueueId,
}

impl QueueKey {
    /// Names one queue of one topic.
    #[must_use]
    pub fn new(topic: TopicName, queue: QueueId) -> Self {
        Self { topic, queue }
    }
}

impl fmt::Display for QueueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.queue)
    }
}

/// Counts the messages of one queue from 0, dense, never reused. As a consumer offset: the *next* one to read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct QueueOffset(u64);

impl QueueOffset {
    /// Where every queue begins.
    pub const ZERO: Self = Self(0);

    /// Wraps a count.
    ///
    /// # Panics
    /// At 2^53, which a queue never reaches: a million messages a second take 285 years.
    #[must_use]
    #[inline]
    pub const fn new(offset: u64) -> Self {
        assert!(offset <= MAX_POSITION, "a queue offset stays below 2^53");
        Self(offset)
    }

    /// The count.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The offset `count` messages further on.
    #[must_use]
    #[inline]
    pub const fn plus(self, count: u64) -> Self {
        Self::new(self.0 + count)
    }
}

impl fmt::Display for QueueOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The place of one record in the whole broker: unique, rising in write order, the same after a restart,
/// and below 2^53 on every engine. Bytes into the commit log on one engine, a count on another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct LogPosition(u64);

impl LogPosition {
    /// Wraps a position.
    ///
    /// # Panics
    /// At 2^53: engines refuse the write before that (`Full`).
    #[must_use]
    #[inline]
    pub const fn new(position: u64) -> Self {
        assert!(position <= MAX_POSITION, "a log position stays below 2^53");
        Self(position)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// How far an engine's one sequence of batches has come. Comparable within one open engine only:
/// a batch with mark `m` is durable once [`Engine::durable`](crate::Engine::durable) is at least `m`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Mark(pub u64);

/// Milliseconds since the Unix epoch, as read from the broker's clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest time there is.
    pub const MIN: Self = Self(i64::MIN);
    /// The latest time there is.
    pub const MAX: Self = Self(i64::MAX);

    /// Wraps milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This time moved on, stopping at the ends of the range.
    #[must_use]
    pub fn plus(self, by: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        let millis = self.0.saturating_sub(earlier.0);
        std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// The name of an ordered table: 1 to 63 of `[a-z0-9_.]`. Free to clone when it is static.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Table(Cow<'static, str>);

impl Table {
    /// Names a table in a constant.
    ///
    /// # Panics
    /// At compile time, in a `const`, when the name is not legal.
    #[must_use]
    pub const fn named(name: &'static str) -> Self {
        assert!(table_name_is_legal(name.as_bytes()), "a table name is 1 to 63 of [a-z0-9_.]");
        Self(Cow::Borrowed(name))
    }

    /// Checks a name that is not known until the program runs.
    ///
    /// # Errors
    /// When the name is not 1 to 63 of `[a-z0-9_.]`.
    pub fn new(name: &str) -> Result<Self, InvalidInput> {
        if !table_name_is_legal(name.as_bytes()) {
            return Err(InvalidInput::new(format!("table name {name:?} is not 1 to 63 of [a-z0-9_.]")));
        }
        Ok(Self(Cow::Owned(name.to_owned())))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn table_name_is_legal(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > MAX_TABLE_NAME_BYTES {
        return false;
    }
    let mut at = 0;
    while at < name.len() {
        if !matches!(name[at], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.') {
            return false;
        }
        at += 1;
    }
    true
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_birth() {
        let long = "x".repeat(128);
        for bad in ["", "a b", "ä", "../etc", "a/b", ".", "TBW102", "%RETRY%g", "%DLQ%g", "rmq_sys_x", &long] {
            assert!(TopicName::new(bad).is_err(), "{bad:?} must be refused");
            assert!(GroupName::new(bad).is_err(), "{bad:?} must be refused");
        }
        for good in ["orders", "A-1_b%", &"x".repeat(127)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn a_retry_topic_of_the_longest_group_can_be_stored() {
        let group = GroupName::new(&"g".repeat(127)).unwrap();
        let topic = TopicName::retry_of(&group);
        assert_eq!(TopicName::from_stored(topic.as_str()).unwrap(), topic);
        assert!(topic.is_system());
    }

    #[test]
    fn time_saturates() {
        let late = Timestamp::MAX.plus(std::time::Duration::from_secs(1));
        assert_eq!(late, Timestamp::MAX);
        assert_eq!(Timestamp::from_millis(5).since(Timestamp::from_millis(9)).as_millis(), 0);
    }

    #[test]
    fn table_names() {
        assert!(Table::new("delay.by_due").is_ok());
        for bad in ["", "A", "a-b", "a/b", &"x".repeat(64)] {
            assert!(Table::new(bad).is_err(), "{bad:?}");
        }
    }
}
