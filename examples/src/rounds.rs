//! How far a file was sent to a topic, read from the topic itself.
//!
//! The quickstart sends a file in rounds, and every message says its round and its line. Queues keep their order, but
//! one queue may be ahead of another when the program is killed; so the messages of the last round are read back, and
//! what is not among them is sent.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cuemq::{Broker, ErrorKind, Message, PullConsumer, QueueDescription, QueueOffset, Received, SeekTo};

/// The property that holds the round of a message.
const ROUND: &str = "round";
/// The property that holds the line of a message.
const LINE: &str = "line";
/// The group under whose name queues are read back. It commits nothing.
const READER: &str = "quickstart-reader";
/// Messages read back at once.
const PAGE_MESSAGES: usize = 1024;
/// Most lines of one input: what was sent of a round is kept in memory.
pub const MAX_LINES: u64 = 10_000_000;

/// Puts a line's place in the sending order on its message.
#[must_use]
pub fn mark(message: Message, round: u64, line: u64) -> Message {
    message.property(ROUND, round.to_string()).property(LINE, line.to_string())
}

/// A message's round and line.
///
/// # Errors
/// When the message has none: it does not come from the quickstart.
pub fn place_of(message: &Received) -> Result<(u64, u64)> {
    let number = |name| message.property(name).and_then(|text| text.parse().ok());
    let place = || Some((number(ROUND)?, number(LINE)?));
    place().ok_or_else(|| {
        let (queue, offset) = (message.queue(), message.offset());
        anyhow!("message {offset} of queue {queue} was not sent by the quickstart: give another directory with --dir")
    })
}

/// What there is of the last round.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LastRound {
    /// Its number, from 0.
    pub number: u64,
    /// A hash of the body of every line that is stored.
    lines: HashMap<u64, u64>,
    /// Whether messages before the oldest stored ones have expired, so that more of the round may have been there.
    expired: bool,
}

impl LastRound {
    /// Reads the last round back; `None` when the topic has no message.
    ///
    /// # Errors
    /// A failed read, or messages of another program.
    pub async fn read(broker: &Broker, topic: &str) -> Result<Option<Self>> {
        let queues = match broker.describe_topic(topic) {
            Ok(description) => description.queues,
            Err(error) if error.kind() == ErrorKind::UnknownTopic => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut readers = Vec::new();
        for queue in queues {
            if queue.min < queue.end {
                readers.push(QueueReader::new(broker, topic, queue).await?);
            } else if queue.end > QueueOffset::ZERO {
                bail!("all messages of queue {} have expired: give another directory with --dir", queue.queue);
            }
        }
        let mut number = None;
        for reader in &mut readers {
            let (round, _) = place_of(&reader.at(reader.end - 1).await?)?;
            number = number.max(Some(round));
        }
        let Some(number) = number else { return Ok(None) };
        let mut last = Self { number, lines: HashMap::new(), expired: false };
        for reader in &mut readers {
            last.read_queue(reader).await?;
        }
        Ok(Some(last))
    }

    async fn read_queue(&mut self, reader: &mut QueueReader) -> Result<()> {
        let from = reader.first_of(self.number).await?;
        self.expired |= from == reader.min && reader.min > 0;
        for message in reader.rest(from).await? {
            let (_, line) = place_of(&message)?;
            if self.lines.insert(line, hash_of(message.body())).is_some() {
                bail!("line {} was stored twice in round {}", line + 1, self.number + 1);
            }
        }
        Ok(())
    }

    /// Whether a line is stored.
    ///
    /// # Errors
    /// When it is stored with another body: the input has changed.
    pub fn has(&self, line: u64, body: &[u8]) -> Result<bool> {
        match self.lines.get(&line) {
            None => Ok(false),
            Some(hash) if *hash == hash_of(body) => Ok(true),
            Some(_) => {
                let (line, round) = (line + 1, self.number + 1);
                bail!(
                    "line {line} was sent with other words in round {round}: give the same input as before, or another \
                     directory with --dir"
                )
            }
        }
    }

    /// How many lines are stored.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.lines.len() as u64
    }

    /// Whether nothing of an input with this many lines has to be sent any more in this round. A round of which
    /// something has expired counts as complete: nobody can tell how much of it was there.
    #[must_use]
    pub fn is_complete(&self, lines: u64) -> bool {
        self.expired || self.stored() >= lines
    }
}

fn hash_of(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}

/// Reads one queue by offset.
struct QueueReader {
    consumer: PullConsumer,
    topic: String,
    queue: u32,
    min: u64,
    end: u64,
}

impl QueueReader {
    async fn new(broker: &Broker, topic: &str, queue: QueueDescription) -> Result<Self> {
        let mut consumer = broker.pull_consumer(READER).await?;
        let id = queue.queue.queue.get();
        consumer.assign(topic, id).await?;
        Ok(Self { consumer, topic: topic.to_owned(), queue: id, min: queue.min.get(), end: queue.end.get() })
    }

    async fn at(&mut self, offset: u64) -> Result<Received> {
        self.consumer.seek(&self.topic, self.queue, SeekTo::Offset(QueueOffset::new(offset)))?;
        let mut messages = self.consumer.poll(1, Duration::ZERO).await?;
        messages.pop().with_context(|| format!("message {offset} of queue {}/{} is gone", self.topic, self.queue))
    }

    /// The first offset whose message belongs to this round or a later one, found by halving: rounds never fall.
    async fn first_of(&mut self, round: u64) -> Result<u64> {
        let (mut low, mut high) = (self.min, self.end);
        while low < high {
            let middle = low + (high - low) / 2;
            if place_of(&self.at(middle).await?)?.0 < round { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    async fn rest(&mut self, from: u64) -> Result<Vec<Received>> {
        let mut messages = Vec::new();
        self.consumer.seek(&self.topic, self.queue, SeekTo::Offset(QueueOffset::new(from)))?;
        loop {
            let page = self.consumer.poll(PAGE_MESSAGES, Duration::ZERO).await?;
            if page.is_empty() {
                return Ok(messages);
            }
            messages.extend(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuemq::TopicSpec;

    async fn send(broker: &Broker, round: u64, line: u64) {
        let producer = broker.producer("letters").await.unwrap();
        let message = Message::new(format!("line {line}")).sharding_key(format!("k{}", line % 7));
        producer.send(mark(message, round, line)).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_sent_is_read_from_the_queues() {
        let broker = Broker::in_memory().await.unwrap();
        assert_eq!(LastRound::read(&broker, "letters").await.unwrap(), None);
        broker.create_topic(TopicSpec::new("letters").queues(4)).await.unwrap();
        assert_eq!(LastRound::read(&broker, "letters").await.unwrap(), None);
        for line in 0..50 {
            send(&broker, 0, line).await;
        }
        let first = LastRound::read(&broker, "letters").await.unwrap().unwrap();
        assert_eq!((first.number, first.stored(), first.is_complete(50), first.is_complete(51)), (0, 50, true, false));
        // The second round has holes, as one that was killed while queues were ahead of each other.
        for line in [0, 1, 2, 9, 20] {
            send(&broker, 1, line).await;
        }
        let second = LastRound::read(&broker, "letters").await.unwrap().unwrap();
        assert_eq!((second.number, second.stored(), second.is_complete(50)), (1, 5, false));
        assert!(second.has(9, b"line 9").unwrap());
        assert!(!second.has(3, b"line 3").unwrap());
        let error = second.has(9, b"another line").unwrap_err().to_string();
        assert!(error.contains("line 10 "), "{error}");
        broker.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn messages_of_others_are_named() {
        let broker = Broker::in_memory().await.unwrap();
        broker.producer("letters").await.unwrap().send("no line").await.unwrap();
        let error = LastRound::read(&broker, "letters").await.unwrap_err().to_string();
        assert!(error.contains("--dir"), "{error}");
        broker.shutdown().await.unwrap();
    }
}
