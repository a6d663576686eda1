//! Looks messages up without consuming them: by id, by offset, by key, by tag, by the time at which they were stored.
//!
//! A query shows what consumers may see and nothing beyond: messages of a durable topic once they are durable. It
//! reads the engine on the caller's thread and keeps nothing between two pages; a [`Cursor`] is a plain value.

mod stored_order;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use cuemq_storage_api::{
    KeyQuery, LocatedRecord, LogPosition, QueueId, QueueKey, QueueOffset, TagHashes, Timestamp, TopicName,
};

use stored_order::Stop;
pub(crate) use stored_order::StoredOrder;

use crate::actors::topic::TopicHandle;
use crate::broker::{Broker, unknown_topic};
use crate::consumer::Received;
use crate::domain::filter::TagFilter;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{
    MAX_QUERY_BYTES, MAX_QUERY_CANDIDATES, MAX_QUERY_MESSAGES, MAX_QUERY_SCANNED, MIN_QUERY_SCANNED_OF_QUEUE,
};
use crate::message::MessageId;
use crate::shared::Shared;

/// Which messages of a topic to look for; every condition that is set has to hold. See [`Broker::query`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a query does nothing before Broker::query"]
pub struct Query {
    topic: String,
    queue: Option<u32>,
    key: Option<String>,
    tags: String,
    stored: Range<Timestamp>,
}

impl Query {
    /// All messages of a topic. Retry and dead-letter topics (`%RETRY%group`, `%DLQ%group`) can be read too.
    pub fn topic(topic: impl Into<String>) -> Self {
        let stored = Timestamp::MIN..Timestamp::MAX;
        Self { topic: topic.into(), queue: None, key: None, tags: "*".into(), stored }
    }

    /// Only messages of this queue.
    pub fn queue(mut self, queue: u32) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Only messages that carry this key. They come newest first.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Only messages whose tag matches: `*`, or tags as in `create || pay`.
    pub fn tags(mut self, tags: impl Into<String>) -> Self {
        self.tags = tags.into();
        self
    }

    /// Only messages stored at or after `from` and before `before`.
    pub fn stored(mut self, from: Timestamp, before: Timestamp) -> Self {
        self.stored = from..before;
        self
    }
}

/// Where a query goes on: behind the last message of the page before. A plain value, which may be kept, printed
/// and read back; it stays valid when messages expire, across restarts and for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Cursor {
    stored_at: Timestamp,
    position: LogPosition,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.stored_at.as_millis(), self.position.get())
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let (stored_at, position) = text.split_once('.')?;
            let position = position.parse().ok().filter(|p| *p <= cuemq_storage_api::limits::MAX_POSITION)?;
            let stored_at = Timestamp::from_millis(stored_at.parse().ok()?);
            Some(Self { stored_at, position: LogPosition::new(position) })
        };
        read().ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Error::new(ErrorKind::Invalid, format!("cursor {shown:?} is not one: use the text of Page::next"))
        })
    }
}

/// One page of what a query found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page {
    /// The messages.
    pub messages: Vec<Received>,
    /// Where the next page begins; `None` when there is nothing more. A page of a query for rare tags may be short, or
    /// empty, and there may be more all the same.
    pub next: Option<Cursor>,
}

impl Page {
    /// Cuts a page off messages of which there may be more.
    fn of(mut found: impl FnMut() -> Result<Found>, limit: usize) -> Result<Self> {
        let (mut messages, mut bytes) = (Vec::new(), 0usize);
        loop {
            let received = match found()? {
                Found::Message(received) => received,
                Found::Stopped(at) => return Ok(Self { messages, next: Some(at) }),
                Found::Nothing => return Ok(Self { messages, next: None }),
            };
            if messages.len() == limit || bytes >= MAX_QUERY_BYTES {
                let next = messages.last().map(Received::cursor);
                return Ok(Self { messages, next });
            }
            bytes = bytes.saturating_add(received.stored().record.payload_bytes());
            messages.push(*received);
        }
    }
}

/// What looking for the next message brings.
enum Found {
    Message(Box<Received>),
    /// Enough was looked at for one page.
    Stopped(Cursor),
    Nothing,
}

impl Cursor {
    /// In front of a record that was not looked at.
    fn before(stop: Stop) -> Self {
        let position = LogPosition::new(stop.position.get().saturating_sub(1));
        Self { stored_at: stop.stored_at, position }
    }
}

impl Received {
    fn cursor(&self) -> Cursor {
        Cursor { stored_at: self.stored().stored_at, position: self.stored().position }
    }
}

/// A checked query.
struct Search<'a> {
    shared: &'a Shared,
    /// The queues to look in, with the end of what may be seen of each.
    queues: Vec<(QueueKey, QueueOffset)>,
    topic: TopicName,
    filter: TagFilter,
    stored: Range<Timestamp>,
    after: Option<Cursor>,
    limit: usize,
}

impl Broker {
    /// The message with this id; `None` when it expired, was deleted, or comes from another store.
    ///
    /// # Errors
    /// A failed read.
    pub fn message(&self, id: MessageId) -> Result<Option<Received>> {
        if id.store() != self.shared().store_id {
            return Ok(None);
        }
        let located = self.shared().storage.engine().record_at(id.position())?;
        Ok(located.and_then(|located| self.visible(located)))
    }

    /// Messages of a topic that carry a key, stored at or after `from` and before `to`, newest first, at most `limit`
    /// and never more than [`MAX_QUERY_MESSAGES`](crate::limits::MAX_QUERY_MESSAGES). For more, page by page, see
    /// [`query`](Broker::query).
    ///
    /// # Errors
    /// A failed read.
    pub fn find_by_key(
        &self,
        topic: &str,
        key: &str,
        from: Timestamp,
        to: Timestamp,
        limit: usize,
    ) -> Result<Vec<Received>> {
        let (topic, limit) = (TopicName::from_stored(topic)?, limit.min(MAX_QUERY_MESSAGES));
        let found = self.shared().storage.engine().find(KeyQuery { topic: &topic, key, from, to, limit })?;
        Ok(found.into_iter().filter_map(|located| self.visible(located)).collect())
    }

    /// A record as long as consumers may see it.
    fn visible(&self, located: LocatedRecord) -> Option<Received> {
        let tail = self.shared().storage.tail(&located.queue).ok()?;
        let seen = located.stored.offset < tail.visible();
        seen.then(|| Received::new(located.queue, located.stored, self.shared().store_id, 0))
    }

    /// Messages of one queue from an offset on, at most `limit` of them. The next page: from the offset behind the
    /// last message, or a [`query`](Broker::query) of this queue after [`Page::next`].
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` names a queue that the topic does not have, or a bad limit; `OutOfRange` names the
    /// offsets there are.
    pub fn messages(&self, topic: &str, queue: u32, from: QueueOffset, limit: usize) -> Result<Page> {
        let search = self.search(&Query::topic(topic).queue(queue), None, limit)?;
        let (key, end) = search.queues[0].clone();
        let min = self.shared().storage.engine().bounds(&key)?.start;
        if from < min || from > end {
            let text = format!("offset {from} of queue {key} is not within {min} to {end}: choose one of these");
            return Err(Error::new(ErrorKind::OutOfRange, text));
        }
        search.in_stored_order(vec![(key, from..end)])
    }

    /// One page of the messages that a query describes, at most `limit` of them and, but for a single larger message,
    /// no more than a few MiB; the first page with `after = None`, the others after [`Page::next`]. In the order in
    /// which they were stored, over all queues; with a key newest first. What is stored between two pages shows up
    /// at the end of those in stored order, and not in those of a key.
    ///
    /// Tags are compared by their hash before any message is read, and by their text before it is shown. One page looks
    /// at no more than [`MAX_QUERY_SCANNED`](crate::limits::MAX_QUERY_SCANNED) of these hashes, in each queue its share,
    /// and then ends, full or not: go on after [`Page::next`] until there is none.
    ///
    /// # Errors
    /// `UnknownTopic`; `Invalid` names a bad queue, tag expression or limit; a failed read.
    pub fn query(&self, query: &Query, after: Option<Cursor>, limit: usize) -> Result<Page> {
        let search = self.search(query, after, limit)?;
        match &query.key {
            Some(key) => search.by_key(key),
            None => search.by_time(),
        }
    }

    fn search(&self, query: &Query, after: Option<Cursor>, limit: usize) -> Result<Search<'_>> {
        let shared = self.shared();
        if limit == 0 || limit > MAX_QUERY_MESSAGES {
            let text = format!("a page of {limit} messages: use 1 to {MAX_QUERY_MESSAGES}, and Page::next for more");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let topic = TopicName::from_stored(&query.topic)?;
        let filter = TagFilter::parse(&query.tags)?;
        let handle = shared.topics.get(&topic).ok_or_else(|| unknown_topic(&topic))?;
        let queues = visible_ends(&handle, query.queue)?;
        Ok(Search { shared, queues, topic, filter, stored: query.stored.clone(), after, limit })
    }
}

/// The queues of a topic, or one of them, with the end of what may be seen.
fn visible_ends(topic: &TopicHandle, queue: Option<u32>) -> Result<Vec<(QueueKey, QueueOffset)>> {
    let end = |queue: &std::sync::Arc<crate::actors::queue::QueueHandle>| (queue.key().clone(), queue.tail().visible());
    match queue {
        Some(id) => Ok(vec![end(&topic.queue(QueueId::new(id)?)?)]),
        None => Ok(topic.queues().iter().map(end).collect()),
    }
}

impl Search<'_> {
    /// All that was stored within the times, from behind the cursor on.
    fn by_time(self) -> Result<Page> {
        let engine = self.shared.storage.engine();
        let from = self.after.map_or(self.stored.start, |after| after.stored_at.max(self.stored.start));
        let mut ranges = Vec::with_capacity(self.queues.len());
        for (queue, end) in &self.queues {
            let start = engine.offset_at(queue, from)?;
            let start = match self.after {
                Some(after) => stored_order::first_behind(&**engine, queue, start..*end, after.position)?,
                None => start,
            };
            ranges.push((queue.clone(), start..*end));
        }
        self.in_stored_order(ranges)
    }

    fn in_stored_order(&self, ranges: Vec<(QueueKey, Range<QueueOffset>)>) -> Result<Page> {
        let engine = self.shared.storage.engine();
        let tags = self.filter.hashes();
        // Where everything is wanted, every entry that is looked at is shown.
        let most = if tags == TagHashes::All { u64::MAX } else { MAX_QUERY_SCANNED };
        let of_each = (most / ranges.len().max(1) as u64).max(MIN_QUERY_SCANNED_OF_QUEUE);
        let mut records = StoredOrder::within(&**engine, &tags, ranges, of_each)?;
        let found = || {
            while let Some(located) = records.next()? {
                if located.stored.stored_at >= self.stored.end {
                    return Ok(Found::Nothing);
                }
                if self.after.is_none_or(|after| located.stored.position > after.position) && self.wants(&located) {
                    return Ok(Found::Message(Box::new(self.receive(located))));
                }
            }
            let stop = records.stopped().filter(|stop| stop.stored_at < self.stored.end);
            Ok(stop.map_or(Found::Nothing, |stop| Found::Stopped(Cursor::before(stop))))
        };
        Page::of(found, self.limit)
    }

    /// What carries a key, newest first, from before the cursor.
    fn by_key(self, key: &str) -> Result<Page> {
        let engine = self.shared.storage.engine();
        let before = self.after.map_or(self.stored.end, |after| {
            self.stored.end.min(after.stored_at.plus(std::time::Duration::from_millis(1)))
        });
        let mut ask = self.limit + 1;
        loop {
            let query = KeyQuery { topic: &self.topic, key, from: self.stored.start, to: before, limit: ask };
            let candidates = engine.find(query)?;
            let exhausted = candidates.len() < ask;
            // Where the next page begins if this one does not fill up.
            let last = candidates.last().map(|last| (last.stored.stored_at, last.stored.position));
            let mut wanted: Vec<LocatedRecord> = candidates;
            wanted.retain(|located| self.after.is_none_or(|after| located.stored.position < after.position));
            wanted.retain(|located| self.sees(located) && self.wants(located));
            // Where some were sorted out more is asked for, until the page is full or there are no more.
            if exhausted || wanted.len() > self.limit || ask == MAX_QUERY_CANDIDATES {
                let mut wanted = wanted.into_iter();
                let rest = last.filter(|_| !exhausted).map(|(stored_at, position)| Cursor { stored_at, position });
                // Of more in one millisecond than are looked at the rest is not shown.
                let rest = rest.filter(|rest| self.after.is_none_or(|after| rest.position < after.position));
                let end = || rest.map_or(Found::Nothing, Found::Stopped);
                let mut found = || wanted.next().map(|located| Found::Message(Box::new(self.receive(located))));
                return Page::of(|| Ok(found().unwrap_or_else(end)), self.limit);
            }
            ask = (ask * 4).min(MAX_QUERY_CANDIDATES);
        }
    }

    /// Whether the tag is really one of those asked for, and not only its hash.
    fn wants(&self, located: &LocatedRecord) -> bool {
        self.filter.matches(located.stored.record.attributes.tag())
    }

    /// Whether consumers may see it and it lies in one of the queues.
    fn sees(&self, located: &LocatedRecord) -> bool {
        self.queues.iter().any(|(queue, end)| *queue == located.queue && located.stored.offset < *end)
    }

    fn receive(&self, located: LocatedRecord) -> Received {
        Received::new(located.queue, located.stored, self.shared.store_id, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_text() {
        let cursor = Cursor { stored_at: Timestamp::from_millis(-5), position: LogPosition::new(42) };
        assert_eq!(cursor.to_string(), "-5.42");
        assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        for bad in ["", "5", "5.", ".5", "a.b", "5.-1", "5.99999999999999999"] {
            let error = bad.parse::<Cursor>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("Page::next"), "{error}");
        }
    }
}
