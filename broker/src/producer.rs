//! Sends messages to one topic.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cuemq_storage_api::{Attributes, QueueId, QueueKey, Record, Timestamp};
use tokio::sync::oneshot;

use crate::actors::delay::{DelayRequest, RecurRequest};
use crate::actors::queue::{QueueHandle, Ticket};
use crate::actors::topic::{Routes, SpanRequest, TopicHandle};
use crate::admission::Taken;
use crate::broker::Keeper;
use crate::domain::expiry::{end_of_life, stamp};
use crate::domain::recurrence::Recurrence;
use crate::domain::routing::QueueCount;
use crate::error::{Error, ErrorKind, Rejected, Result};
use crate::message::{Delay, Message, Receipt};
use crate::recurring::RecurrenceId;
use crate::scheduled::{self, Recalled, Rescheduled, ScheduledId};

/// Chooses the queue of a message: gets the message and the number of queues, returns a queue number.
type Selector = Arc<dyn Fn(&Message, u32) -> u32 + Send + Sync>;

/// What a selector chose, and among how many queues: another number asks it again.
#[derive(Clone, Copy)]
struct Selected {
    among: QueueCount,
    queue: QueueId,
}

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
        match self.enqueue(message) {
            Ok(pending) => pending.await,
            // In a box, so that a send that need not wait does not carry what one that waits needs.
            Err(Rejected { error, message }) if error.kind() == ErrorKind::Full => {
                Box::pin(self.send_once_there_is_room(*message)).await
            }
            Err(rejected) => Err(rejected.error),
        }
    }

    async fn send_once_there_is_room(&self, message: Message) -> Result<Receipt> {
        let shared = self.keeper.shared();
        let attributes = message.checked_attributes(shared.settings.max_body_bytes)?;
        let taken = shared.admit(1, message.payload_bytes()).await?;
        let selected = self.select(&message)?;
        self.hand_over(selected, message, attributes, taken).await
    }

    /// Sends a message without waiting: the receipt comes later. Calls from one thread keep their order.
    ///
    /// # Errors
    /// `Full` when too much is in flight, and what [`send`](Producer::send) says of bad messages; the message comes back.
    pub fn enqueue(&self, message: impl Into<Message>) -> std::result::Result<PendingReceipt, Rejected> {
        let (message, shared) = (message.into(), self.keeper.shared());
        let admitted = shared.check_running().and_then(|()| {
            let attributes = message.checked_attributes(shared.settings.max_body_bytes)?;
            let taken = shared.try_admit(1, message.payload_bytes())?;
            let selected = self.select(&message)?;
            Ok((attributes, taken, selected))
        });
        match admitted {
            Ok((attributes, taken, selected)) => Ok(self.hand_over(selected, message, attributes, taken)),
            Err(error) => Err(Rejected { error, message: Box::new(message) }),
        }
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
        let pending = self.enqueue(message)?;
        let callback = CallbackOnce::new(callback);
        self.keeper.shared().arbiters.delivery().spawn(async move {
            callback.call(pending.await);
        });
        Ok(())
    }

    /// Sends a message and never hears of it again (one-way). It is stored as safely as the topic asks.
    ///
    /// # Errors
    /// As [`enqueue`](Producer::enqueue).
    pub fn send_one_way(&self, message: impl Into<Message>) -> std::result::Result<(), Rejected> {
        self.enqueue(message).map(drop)
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
        let taken = shared.admit(messages.len(), bytes).await?;
        // Without keys and without a selector the whole batch takes its turn as one.
        let free = self.selector.is_none() && messages.iter().all(|m| m.sharding_key_ref().is_none());
        let sent = if free {
            let records = self.batch_records(messages)?;
            Sent::Together(self.topic.routes().choose(None).send_batch(shared, records, bytes, taken))
        } else {
            self.hand_over_batch(messages, bytes, taken)?
        };
        match sent {
            Sent::Together(mut ticket) => poll_fn(|cx| ticket.poll_receipts(cx)).await,
            Sent::Across(receipts) => receipts.await.unwrap_or_else(|_| Err(Error::lost("the batch"))),
        }
    }

    /// Takes a delayed message back; see [`Broker::recall`](crate::Broker::recall). Any producer of the broker can.
    ///
    /// # Errors
    /// As there.
    pub async fn recall(&self, id: &ScheduledId) -> Result<Recalled> {
        scheduled::recall(self.keeper.shared(), *id).await
    }

    /// Gives a delayed message another time; see [`Broker::reschedule`](crate::Broker::reschedule).
    ///
    /// # Errors
    /// As there.
    pub async fn reschedule(&self, id: &ScheduledId, at: Timestamp) -> Result<Rescheduled> {
        scheduled::reschedule(self.keeper.shared(), *id, at).await
    }

    /// Sends a message again and again, whenever a cron pattern says so, from the next time on: until it is
    /// [cancelled](crate::Broker::cancel_recurring) or its topic is deleted. Resolves when that is stored. What falls
    /// due while the broker is down comes once when it is up again, however many times were missed. Each message's
    /// `born_at` is the time it was due, from which its time to live counts.
    ///
    /// # Errors
    /// `Invalid` for a message that is delayed as well, and for a pattern that never comes true; `Full` when
    /// 10,000 messages recur; and what [`send`](Producer::send) says.
    pub async fn send_recurring(&self, message: impl Into<Message>, recurrence: &Recurrence) -> Result<RecurrenceId> {
        let (message, shared) = (message.into(), self.keeper.shared());
        if message.delay_ref().is_some() {
            let text = "a recurring message cannot be delayed: its pattern says when it comes";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let attributes = message.checked_attributes(shared.settings.max_body_bytes)?;
        let permit = shared.admit(1, message.payload_bytes()).await?.keep();
        let now = shared.clock.now();
        let due = recurrence.next_after(now).ok_or_else(|| {
            let text = format!("cron pattern {:?} never comes true: correct it", recurrence.pattern());
            Error::new(ErrorKind::Invalid, text)
        })?;
        let attributes = self.with_end(&message, attributes, || due);
        let selected = self.select(&message)?;
        let (reply, answer) = oneshot::channel();
        self.keeper.delay().recur(RecurRequest {
            topic: self.topic.name().clone(),
            queue: selected.map(|selected| selected.queue),
            recurrence: recurrence.clone(),
            due,
            record: message.into_record(attributes, now),
            flush: self.topic.flush(),
            reply,
            _permit: permit,
        });
        let number = answer.await.unwrap_or_else(|_| Err(Error::lost("the recurring message")))?;
        Ok(RecurrenceId::new(shared.store_id, number))
    }

    fn batch_records(&self, messages: Vec<Message>) -> Result<Vec<Record>> {
        let shared = self.keeper.shared();
        let (now, most) = (shared.clock.now(), shared.settings.max_body_bytes);
        let mut records = Vec::with_capacity(messages.len());
        for message in messages {
            if message.delay_ref().is_some() {
                return Err(Error::new(ErrorKind::Invalid, "a message of a batch cannot be delayed: send it alone"));
            }
            let attributes = message.checked_attributes(most)?;
            let attributes = self.with_end(&message, attributes, || now);
            records.push(message.into_record(attributes, now));
        }
        Ok(records)
    }

    /// Chooses each message's queue and hands all of them over while that holds.
    fn hand_over_batch(&self, messages: Vec<Message>, bytes: usize, taken: Taken<'_>) -> Result<Sent> {
        let shared = self.keeper.shared();
        let (routes, selected) = match &self.selector {
            None => (self.topic.routes(), None),
            // The selector is the program's: it runs while nothing is held.
            Some(select) => loop {
                let among = self.topic.written();
                let all = messages.iter().map(|message| self.selected(select, message, among));
                let all = all.collect::<Result<Vec<_>>>()?;
                let routes = self.topic.routes();
                if routes.written() == among {
                    break (routes, Some(all));
                }
            },
        };
        let choose = |(at, message): (usize, &Message)| {
            let selected = selected.as_ref().and_then(|selected| routes.queue(selected[at].queue));
            selected.unwrap_or_else(|| routes.choose(message.sharding_key_ref()))
        };
        let chosen: Vec<&QueueHandle> = messages.iter().enumerate().map(choose).collect();
        let records = self.batch_records(messages)?;
        if chosen.iter().all(|queue| queue.key() == chosen[0].key()) {
            // One queue: its own actor keeps the order with the sends before and after.
            return Ok(Sent::Together(chosen[0].send_batch(shared, records, bytes, taken)));
        }
        let queues: Vec<QueueKey> = chosen.iter().map(|queue| queue.key().clone()).collect();
        let (reply, receipts) = oneshot::channel();
        let records = queues.into_iter().zip(records).collect();
        self.topic.append_across(shared, SpanRequest { records, reply, permit: taken.keep() });
        Ok(Sent::Across(receipts))
    }

    /// The queue that the selector chooses.
    fn selected(&self, select: &Selector, message: &Message, among: QueueCount) -> Result<Selected> {
        let queues = among.get();
        let chosen = select(message, queues);
        let queue = QueueId::new(chosen).ok().filter(|id| among.contains(*id));
        let queue = queue.ok_or_else(|| {
            let text = format!("the selector chose queue {chosen} of {queues}: return 0 to {}", queues - 1);
            Error::new(ErrorKind::Invalid, text)
        })?;
        Ok(Selected { among, queue })
    }

    /// What the selector chooses among the queues of now, if there is one.
    fn select(&self, message: &Message) -> Result<Option<Selected>> {
        self.selector.as_ref().map(|select| self.selected(select, message, self.topic.written())).transpose()
    }

    /// The queues to choose from, among which `selected` was chosen.
    fn routes(&self, message: &Message, selected: &mut Option<Selected>) -> Result<Routes<'_>> {
        loop {
            let routes = self.topic.routes();
            if selected.is_none_or(|selected| selected.among == routes.written()) {
                return Ok(routes);
            }
            drop(routes);
            *selected = self.select(message)?;
        }
    }

    /// Hands a message over; from here on it lands. `selected` is what a selector chose.
    fn hand_over(
        &self,
        mut selected: Option<Selected>,
        message: Message,
        attributes: Attributes,
        taken: Taken<'_>,
    ) -> PendingReceipt {
        let clock = &self.keeper.shared().clock;
        let _entered = tracing::trace_span!("broker.send", topic = self.topic()).entered();
        if let Some(delay) = message.delay_ref() {
            let (reply, receipt) = oneshot::channel();
            let now = clock.now();
            let due = self.due(delay, now);
            let attributes = self.with_end(&message, attributes, || due.max(now));
            // A selector has chosen, because it needs the message; the others choose when the message is due.
            let request = DelayRequest {
                topic: self.topic.name().clone(),
                queue: selected.map(|selected| selected.queue),
                due,
                record: message.into_record(attributes, now),
                flush: self.topic.flush(),
                reply,
                _permit: taken.keep(),
            };
            self.keeper.delay().schedule(request);
            return PendingReceipt(Pending::Delayed(receipt));
        }
        let attributes = self.with_end(&message, attributes, || clock.now());
        let routes = match self.routes(&message, &mut selected) {
            Ok(routes) => routes,
            Err(error) => return PendingReceipt(Pending::Stored(Ticket::refused(error))),
        };
        let selected = selected.and_then(|selected| routes.queue(selected.queue));
        let queue = selected.unwrap_or_else(|| routes.choose(message.sharding_key_ref()));
        // The queue sets when it was born: one look at the clock for all that wait.
        let record = message.into_record(attributes, Timestamp::MIN);
        PendingReceipt(Pending::Stored(queue.send(self.keeper.shared(), record, taken)))
    }

    /// The attributes with the end of a message that becomes visible then, if it has one.
    fn with_end(&self, message: &Message, attributes: Attributes, visible: impl FnOnce() -> Timestamp) -> Attributes {
        let (own, topic) = (message.ttl_ref(), self.topic.rules().ttl);
        if own.is_none() && topic.is_none() {
            return attributes;
        }
        end_of_life(visible(), own, topic).map_or(attributes.clone(), |end| stamp(&attributes, end))
    }

    fn due(&self, delay: Delay, now: Timestamp) -> Timestamp {
        self.keeper.shared().due(delay, now)
    }
}

/// A batch on its way.
enum Sent {
    Together(Ticket),
    Across(oneshot::Receiver<Result<Vec<Receipt>>>),
}

/// A receipt that comes later. Dropping it does not take the message back.
#[derive(Debug)]
#[must_use = "the outcome of a send is lost unless its receipt is awaited"]
pub struct PendingReceipt(Pending);

#[derive(Debug)]
enum Pending {
    Stored(Ticket),
    Delayed(oneshot::Receiver<Result<Receipt>>),
}

impl Future for PendingReceipt {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Pending::Stored(ticket) => ticket.poll_receipt(cx),
            Pending::Delayed(receiver) => {
                Pin::new(receiver).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(Error::lost("the send"))))
            }
        }
    }
}

type Callback = Box<dyn FnOnce(Result<Receipt>) + Send>;

/// A callback that is called when it is answered or, with `Unknown`, when it is dropped.
struct CallbackOnce(Option<Callback>);

impl CallbackOnce {
    fn new(callback: impl FnOnce(Result<Receipt>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    fn call(mut self, result: Result<Receipt>) {
        if let Some(callback) = self.0.take() {
            callback(result);
        }
    }
}

impl Drop for CallbackOnce {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback(Err(Error::lost("the send")));
        }
    }
}
