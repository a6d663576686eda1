//! Sends messages to one topic.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cuemq_storage_api::{QueueId, QueueKey, Record, Timestamp};
use tokio::sync::oneshot;

use crate::actors::delay::DelayRequest;
use crate::actors::queue::{AppendRequest, CallbackOnce, QueueHandle, Records, Reply};
use crate::actors::topic::{SpanRequest, TopicHandle};
use crate::broker::Keeper;
use crate::error::{Error, ErrorKind, Rejected, Result};
use crate::message::{Delay, Message, Receipt};
use crate::shared::Permit;

/// Chooses the queue of a message: gets the message and the number of queues, returns a queue number.
type Selector = Arc<dyn Fn(&Message, u32) -> u32 + Send + Sync>;

/// Sends to one topic, from any thread and any async runtime. Cheap to clone.
///
/// Messages with the same sharding key, or sent to one queue, are stored in the order of their sends when each send
/// follows the other's `await`, and in the order of the calls with [`enqueue`](Producer::enqueue).
///
/// Dropping the future of a send before it is first polled, or while it waits for room, sends nothing. Afterwards
/// the message lands whether or not anybody waits: a caller's own timeout means that the outcome is unknown.
#[derive(Clone)]
pub struct Producer {
    keeper: Arc<Keeper>,
    topic: Arc<TopicHandle>,
    selector: Option<Selector>,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("topic", self.topic.name()).finish_non_exhaustive()
    }
}

impl Producer {
    pub(crate) fn new(keeper: Arc<Keeper>, topic: Arc<TopicHandle>) -> Self {
        Self { keeper, topic, selector: None }
    }

    /// A producer that chooses queues itself: `select` gets the message and the number of queues `n` and returns
    /// 0 to `n - 1`. Without it the sharding key decides, or else the queues take turns.
    #[must_use]
    pub fn with_selector(mut self, select: impl Fn(&Message, u32) -> u32 + Send + Sync + 'static) -> Self {
        self.selector = Some(Arc::new(select));
        self
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.topic.name().as_str()
    }

    /// Sends a message and resolves when it is stored as safely as the topic asks. Waits while too much is in flight.
    ///
    /// # Errors
    /// `Invalid` names the value and the limit; `NotStored`, `Full`, `Closed` and `Unavailable` mean that nothing was
    /// stored; `Unknown` that it may have been.
    pub async fn send(&self, message: impl Into<Message>) -> Result<Receipt> {
        let message = message.into();
        let shared = self.keeper.shared();
        let permit = shared.admit(1, message.payload_bytes()).await?;
        let (sender, receiver) = oneshot::channel();
        self.hand_over(&message, Reply::One(sender), permit)?;
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the send")))
    }

    /// Sends a message without waiting: the receipt comes later. Calls from one thread keep their order.
    ///
    /// # Errors
    /// `Full` when too much is in flight, and what [`send`](Producer::send) says of bad messages; the message comes back.
    pub fn enqueue(&self, message: impl Into<Message>) -> std::result::Result<PendingReceipt, Rejected> {
        let (sender, receiver) = oneshot::channel();
        self.try_hand_over(message.into(), Reply::One(sender))?;
        Ok(PendingReceipt { receiver })
    }

    /// Sends a message and calls back exactly once, on one of the broker's threads, with the outcome. The callback
    /// shall be short: other senders' answers wait behind it.
    ///
    /// # Errors
    /// As [`enqueue`](Producer::enqueue); then the callback is not called.
    pub fn send_with(
        &self,
        message: impl Into<Message>,
        callback: impl FnOnce(Result<Receipt>) + Send + 'static,
    ) -> std::result::Result<(), Rejected> {
        let (sender, receiver) = oneshot::channel::<Result<Receipt>>();
        self.try_hand_over(message.into(), Reply::One(sender))?;
        let callback = CallbackOnce::new(callback);
        self.keeper.shared().arbiters.delivery().spawn(async move {
            callback.call(receiver.await.unwrap_or_else(|_| Err(Error::lost("the send"))));
        });
        Ok(())
    }

    /// Sends a message and never hears of it again (one-way). It is stored as safely as the topic asks.
    ///
    /// # Errors
    /// As [`enqueue`](Producer::enqueue).
    pub fn send_one_way(&self, message: impl Into<Message>) -> std::result::Result<(), Rejected> {
        self.try_hand_over(message.into(), Reply::Nobody)
    }

    /// Sends messages that are stored together or not at all, also when they belong to several queues. Receipts
    /// come in the order of the messages. At most 16,384 messages; none is delayed.
    ///
    /// # Errors
    /// As [`send`](Producer::send); any error holds for the whole batch.
    pub async fn send_batch(&self, messages: Vec<Message>) -> Result<Vec<Receipt>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let shared = self.keeper.shared();
        shared.check_running()?;
        let bytes = messages.iter().map(Message::payload_bytes).sum();
        let permit = shared.admit(messages.len(), bytes).await?;
        let (sender, receiver) = oneshot::channel();
        self.hand_over_batch(messages, sender, permit)?;
        receiver.await.unwrap_or_else(|_| Err(Error::lost("the batch")))
    }

    fn hand_over_batch(
        &self,
        messages: Vec<Message>,
        reply: oneshot::Sender<Result<Vec<Receipt>>>,
        permit: Permit,
    ) -> Result<()> {
        let now = self.keeper.shared().clock.now();
        // Without keys and without a selector the whole batch takes its turn as one.
        let free = self.selector.is_none() && messages.iter().all(|m| m.sharding_key_ref().is_none());
        if free {
            let records = messages.iter().map(|m| self.batch_record(m, now)).collect::<Result<Vec<_>>>()?;
            let records = Records::Many(records);
            let queue = self.topic.choose(None);
            queue.append(AppendRequest { records, reply: Reply::Many(reply), permit: Some(permit) });
            return Ok(());
        }
        let mut records: Vec<(QueueKey, Record)> = Vec::with_capacity(messages.len());
        for message in &messages {
            let record = self.batch_record(message, now)?;
            records.push((self.queue_of(message)?.key().clone(), record));
        }
        let first = records[0].0.clone();
        if records.iter().all(|(queue, _)| *queue == first) {
            // One queue: its own actor keeps the order with the sends before and after.
            let records = Records::Many(records.into_iter().map(|(_, record)| record).collect());
            let request = AppendRequest { records, reply: Reply::Many(reply), permit: Some(permit) };
            self.topic.queue(first.queue)?.append(request);
        } else {
            self.topic.append_across(SpanRequest { records, reply, permit });
        }
        Ok(())
    }

    fn batch_record(&self, message: &Message, now: Timestamp) -> Result<Record> {
        if message.delay_ref().is_some() {
            return Err(Error::new(ErrorKind::Invalid, "a message of a batch cannot be delayed: send it alone"));
        }
        Ok(message.to_record(now, self.keeper.shared().settings.max_body_bytes)?)
    }

    fn queue_of(&self, message: &Message) -> Result<&QueueHandle> {
        match &self.selector {
            Some(select) => {
                let queues = self.topic.queue_count().get();
                let chosen = select(message, queues);
                let id = QueueId::new(chosen).ok().filter(|id| self.topic.queue_count().contains(*id));
                let id = id.ok_or_else(|| {
                    let text = format!("the selector chose queue {chosen} of {queues}: return 0 to {}", queues - 1);
                    Error::new(ErrorKind::Invalid, text)
                })?;
                self.topic.queue(id)
            }
            None => Ok(self.topic.choose(message.sharding_key_ref())),
        }
    }

    fn try_hand_over(&self, message: Message, reply: Reply) -> std::result::Result<(), Rejected> {
        let shared = self.keeper.shared();
        let handed = shared
            .check_running()
            .and_then(|()| shared.admission.try_admit(1, message.payload_bytes()))
            .and_then(|permit| self.hand_over(&message, reply, permit));
        handed.map_err(|error| Rejected { error, message: Box::new(message) })
    }

    fn hand_over(&self, message: &Message, reply: Reply, permit: Permit) -> Result<()> {
        let shared = self.keeper.shared();
        let now = shared.clock.now();
        let span = tracing::trace_span!("broker.send", topic = self.topic());
        let _entered = span.enter();
        let record = message.to_record(now, shared.settings.max_body_bytes)?;
        if let Some(delay) = message.delay_ref() {
            let due = self.due(delay, now);
            // The selector chooses now, because it needs the message; the others choose when the message is due.
            let queue = if self.selector.is_some() { Some(self.queue_of(message)?.key().queue) } else { None };
            let topic = self.topic.name().clone();
            let request = DelayRequest { topic, queue, due, record, flush: self.topic.flush(), reply, _permit: permit };
            self.keeper.delay().schedule(request);
            return Ok(());
        }
        self.queue_of(message)?.append(AppendRequest { records: Records::One(record), reply, permit: Some(permit) });
        Ok(())
    }

    fn due(&self, delay: Delay, now: Timestamp) -> Timestamp {
        match delay {
            Delay::For(delay) => now.plus(delay),
            Delay::Until(at) => at,
            Delay::Level(level) => now.plus(self.keeper.shared().settings.delay_of_level(level).unwrap_or_default()),
        }
    }
}

/// A receipt that comes later. Dropping it does not take the message back.
#[derive(Debug)]
#[must_use = "the outcome of a send is lost unless its receipt is awaited"]
pub struct PendingReceipt {
    receiver: oneshot::Receiver<Result<Receipt>>,
}

impl Future for PendingReceipt {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(Error::lost("the send"))))
    }
}
