//! What the runner needs of a messaging system. The embedded broker is one; servers come later.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::Result;

/// A message to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Messages with one key are kept in order; without one queues take turns.
    pub key: Option<String>,
    /// The body.
    pub body: Bytes,
}

/// A message that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Incoming {
    /// The queue of its topic that it came from.
    pub queue: u32,
    /// The body.
    pub body: Bytes,
}

/// What became of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Published {
    /// Messages that were not acknowledged, by their place in the batch, in order.
    pub failed: Vec<usize>,
    /// Why the last of them was not.
    pub why: Option<String>,
}

/// A messaging system under load.
pub trait Driver: Send + Sync {
    /// What the result calls it.
    fn name(&self) -> String;

    /// Creates topics, all with as many queues.
    ///
    /// # Errors
    /// Names the topic that could not be created.
    fn create_topics<'a>(&'a self, topics: &'a [String], queues: u32) -> BoxFuture<'a, Result<()>>;

    /// A new producer for a topic.
    ///
    /// # Errors
    /// Why there is none.
    fn producer<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverProducer>>>;

    /// A new member of a subscription to a topic. The subscription gets every message of the topic from the oldest on,
    /// each by one of its members. It is made by its first member and belongs to one topic.
    ///
    /// # Errors
    /// Why there is none.
    fn consumer<'a>(&'a self, topic: &'a str, subscription: &'a str) -> BoxFuture<'a, Result<Box<dyn DriverConsumer>>>;

    /// How many messages of a subscription are not acknowledged.
    ///
    /// # Errors
    /// Why that cannot be told.
    fn unacknowledged<'a>(&'a self, subscription: &'a str) -> BoxFuture<'a, Result<u64>>;

    /// Ends the connection, and whatever was started for the benchmark.
    ///
    /// # Errors
    /// What went wrong at the end.
    fn close(&self) -> BoxFuture<'_, Result<()>>;
}

/// Sends to one topic.
pub trait DriverProducer: Send {
    /// Sends messages. The first poll of the future hands them over, in the order of the batches and of the messages
    /// in them; it resolves once all of them are acknowledged or have failed. It is polled by a plain thread: whatever
    /// needs a runtime has to bring it along.
    fn publish(&self, messages: Vec<Outgoing>) -> BoxFuture<'static, Published>;
}

/// Receives as a member of a subscription.
pub trait DriverConsumer: Send {
    /// Waits for messages and adds what is there. Dropping the future loses no message.
    fn receive<'a>(&'a mut self, into: &'a mut Vec<Incoming>) -> BoxFuture<'a, Result<()>>;

    /// Acknowledges everything received so far, without waiting for that to be stored.
    fn acknowledge(&mut self);
}
