//! One transaction over messages, acknowledgements and the program's own tables.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use cuemq_storage_api::TopicName;
use futures_util::future::{Either, select};
use tokio::sync::OwnedMutexGuard;

use crate::actors::application::{Outcome, Send, StoredRows, Submission};
use crate::broker::{Keeper, unknown_topic};
use crate::consumer::{Acknowledgeable, Acknowledged, PopConsumer, PullConsumer};
use crate::domain::application::View;
use crate::domain::expiry::{end_of_life, stamp};
use crate::domain::pop_receipt::PopReceipt;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{
    MAX_APPLICATION_KEY_BYTES, MAX_APPLICATION_VALUE_BYTES, MAX_TRANSACTION_ATTEMPTS, MAX_TRANSACTION_BYTES,
    MAX_TRANSACTION_OPERATIONS, MAX_TRANSACTION_RUNS_AT_ONCE, MAX_TRANSACTION_TURN,
};
use crate::message::{AckLevel, Message, Receipt};
use crate::settings::Flush;
use crate::shared::Shared;
use crate::tables::application::table;

/// A transaction that is committed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Committed<T> {
    /// What its work returned.
    pub value: T,
    /// The receipts of its messages, in the order in which it sent them.
    pub receipts: Vec<Receipt>,
    /// What all of it survives.
    pub level: AckLevel,
    /// How often its work ran; 1 when nobody was in its way.
    pub runs: u32,
}

/// What the work of a [transaction](crate::Broker::transaction) reads and writes. Nothing is done before it is
/// committed. After an error of one of its methods the transaction cannot be committed any more, whether the work
/// passes the error on or not.
///
/// At most 16,384 reads, writes, messages and acknowledgements, and 16 MiB.
pub struct ApplicationTransaction {
    shared: Arc<Shared>,
    view: View,
    sends: Vec<Send>,
    acknowledged: Vec<Acknowledged>,
    flush: Flush,
    operations: usize,
    bytes: usize,
    /// The first error, with which everything has come to nothing.
    failed: Option<(ErrorKind, String)>,
    /// A topic that it wants to send to and that may be made.
    missing: Option<TopicName>,
}

impl fmt::Debug for ApplicationTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplicationTransaction").field("operations", &self.operations).finish_non_exhaustive()
    }
}

impl ApplicationTransaction {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            view: View::default(),
            sends: Vec::new(),
            acknowledged: Vec::new(),
            flush: shared.settings.flush,
            operations: 0,
            bytes: 0,
            failed: None,
            missing: None,
        }
    }

    /// A row of one of the program's tables: what this transaction wrote to it, else what is committed. The same each
    /// time it is asked for, but for own writes. A table is there as soon as it has a row.
    ///
    /// # Errors
    /// `Invalid` unless the table's name is 1 to 40 of `[a-z0-9_]` and the key has 1 to 1,024 bytes, or when the
    /// transaction is too large; a failed read.
    pub fn get(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        self.attempt(|t| t.read(table, key.as_ref()))
    }

    fn read(&mut self, name: &str, key: &[u8]) -> Result<Option<Bytes>> {
        let table = table(name)?;
        check_key(name, key)?;
        let row = self.view.get(&StoredRows(&**self.shared.storage.engine()), &table, key)?;
        self.count(1, key.len() + row.as_ref().map_or(0, Bytes::len))?;
        Ok(row)
    }

    /// Rows of one of the program's tables with keys in `[from, to)`, in byte order, at most `limit`; without `to` up to
    /// the last one, and from an empty `from` the first. What others add to the range or take from it before this
    /// transaction is committed is in conflict with it.
    ///
    /// # Errors
    /// As [`get`](Self::get); each row that is looked at counts.
    pub fn scan(
        &mut self,
        table: &str,
        from: impl AsRef<[u8]>,
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>> {
        self.attempt(|t| t.read_range(table, from.as_ref(), to, limit))
    }

    fn read_range(&mut self, name: &str, from: &[u8], to: Option<&[u8]>, limit: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let table = table(name)?;
        // No more than is left: one more than may be counted is an error.
        let most = limit.min(MAX_TRANSACTION_OPERATIONS.saturating_sub(self.operations) + 1);
        let (rows, looked_at) = self.view.scan(&StoredRows(&**self.shared.storage.engine()), &table, from, to, most)?;
        let bytes = rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.count(looked_at.max(rows.len()).max(1), bytes)?;
        Ok(rows)
    }

    /// Sets a row of one of the program's tables.
    ///
    /// # Errors
    /// As [`get`](Self::get); `Invalid` too for a value of more than 1 MiB.
    pub fn put(&mut self, table: &str, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<()> {
        self.attempt(|t| t.write(table, key.as_ref(), Some(value.into())))
    }

    /// Removes a row of one of the program's tables; one that is not there is no error.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<()> {
        self.attempt(|t| t.write(table, key.as_ref(), None))
    }

    fn write(&mut self, name: &str, key: &[u8], value: Option<Bytes>) -> Result<()> {
        let table = table(name)?;
        check_key(name, key)?;
        let bytes = value.as_ref().map_or(0, Bytes::len);
        if bytes > MAX_APPLICATION_VALUE_BYTES {
            let text = format!(
                "a value of {bytes} bytes for table {name}: use at most {MAX_APPLICATION_VALUE_BYTES}, or split it"
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.count(1, key.len() + bytes)?;
        self.view.set(&table, Bytes::copy_from_slice(key), value);
        Ok(())
    }

    /// Sends a message once the transaction is committed. Its sharding key chooses the queue, or the queues take turns.
    /// A delayed message waits for its time from then on. A topic that does not exist is made before the work runs
    /// again, if the settings allow it.
    ///
    /// # Errors
    /// `Invalid` names what is wrong with the message, and the limit; `UnknownTopic`.
    pub fn send(&mut self, topic: &str, message: impl Into<Message>) -> Result<()> {
        self.attempt(|t| t.add_message(topic, message.into()))
    }

    fn add_message(&mut self, topic: &str, message: Message) -> Result<()> {
        let name = TopicName::new(topic)?;
        let Some(handle) = self.shared.topics.get(&name) else {
            let error = unknown_topic(&name);
            if self.shared.settings.auto_create_topics {
                self.missing = Some(name);
            }
            return Err(error);
        };
        let attributes = message.checked_attributes(self.shared.settings.max_body_bytes)?;
        self.count(1, message.payload_bytes())?;
        if handle.flush() == Flush::Durable {
            self.flush = Flush::Durable;
        }
        let now = self.shared.clock.now();
        let due = message.delay_ref().map(|delay| self.shared.due(delay, now));
        // Its time to live begins when it becomes visible.
        let visible = due.map_or(now, |due| due.max(now));
        let attributes = match end_of_life(visible, message.ttl_ref(), handle.rules().ttl) {
            Some(end) => stamp(&attributes, end),
            None => attributes,
        };
        let send = match due {
            Some(due) => Send::Later(name, due, message.into_record(attributes, now)),
            None => {
                // Chosen anew at the commit, if the topic's queues have changed by then.
                let queue = handle.routes().choose(message.sharding_key_ref()).key().clone();
                Send::Now(queue, message.into_record(attributes, now))
            }
        };
        self.sends.push(send);
        Ok(())
    }

    /// Acknowledges with the transaction what any consumer group has given out: a [`Delivery`](crate::Delivery), all
    /// messages of a [`Batch`](crate::Batch), or a [`Popped`](crate::Popped) message. The same once more is no error, and
    /// counts once. Once the transaction is committed it is settled, and dropping it does nothing; otherwise it is in its
    /// holder's hands as before.
    ///
    /// # Errors
    /// `Invalid` when the transaction is too large. Whether the message still belongs to its holder turns out at the
    /// commit, which is refused as a whole if not: with `Stale` when its queue has gone to another member, the receipt was
    /// renewed or its invisible time is over, or when the message is done already; with `Conflict` when it was given back
    /// or rejected, or while another transaction has it.
    pub fn ack<M: Acknowledgeable>(&mut self, message: &M) -> Result<()> {
        self.attempt(|t| t.acknowledge(message.acknowledged().0))
    }

    /// As [`ack`](Self::ack), for a popped message of which only the receipt is at hand. The consumer may be any one of
    /// the group.
    ///
    /// # Errors
    /// As [`ack`](Self::ack); at the commit `Invalid` too, when the group never gave such a receipt out.
    pub fn ack_receipt(&mut self, consumer: &PopConsumer, receipt: &PopReceipt) -> Result<()> {
        self.attempt(|t| t.acknowledge(consumer.acknowledged(receipt)))
    }

    /// Commits what all polls of a pull consumer so far have returned, with the transaction.
    ///
    /// # Errors
    /// As [`ack`](Self::ack). At the commit the transaction is refused with `Conflict` when a member of the group reads
    /// one of the queues, or when somebody else has moved the group's offset since this consumer learned of it.
    pub fn commit_offset(&mut self, consumer: &PullConsumer) -> Result<()> {
        self.attempt(|t| consumer.acknowledged().into_iter().try_for_each(|position| t.acknowledge(position)))
    }

    fn acknowledge(&mut self, acknowledged: Acknowledged) -> Result<()> {
        if self.acknowledged.iter().any(|known| known.is(&acknowledged)) {
            return Ok(());
        }
        self.count(1, 0)?;
        self.acknowledged.push(acknowledged);
        Ok(())
    }

    fn count(&mut self, operations: usize, bytes: usize) -> Result<()> {
        self.operations += operations;
        self.bytes += bytes;
        if self.operations > MAX_TRANSACTION_OPERATIONS || self.bytes > MAX_TRANSACTION_BYTES {
            let text = format!(
                "a transaction of {} operations and {} bytes: use at most {MAX_TRANSACTION_OPERATIONS} and \
                 {MAX_TRANSACTION_BYTES}, and split it into several",
                self.operations, self.bytes
            );
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }

    /// Remembers the first error: work that goes on after one must not be committed without what failed.
    fn attempt<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some((kind, text)) = &self.failed {
            return Err(Error::new(*kind, text.clone()));
        }
        operation(self).inspect_err(|error| self.failed = Some((error.kind(), error.to_string())))
    }

    /// Hands what was done over to be committed, or, if the work gave up, to be compared with what is.
    async fn submit(self, gave_up: bool) -> Result<Outcome> {
        let shared = Arc::clone(&self.shared);
        let (sends, acknowledged) = if gave_up { Default::default() } else { (self.sends, self.acknowledged) };
        let permit = shared.admit(sends.len().max(1), self.bytes).await?.keep();
        let pledges = acknowledged.into_iter().map(Acknowledged::pledge).collect::<Result<_>>()?;
        let (view, flush, operations, bytes) = (self.view, self.flush, self.operations, self.bytes);
        let submission =
            |reply| Submission { view, sends, pledges, flush, only_look: gave_up, operations, bytes, reply, permit };
        shared.application_handle().submit(submission).await
    }
}

fn check_key(table: &str, key: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_APPLICATION_KEY_BYTES {
        let text = format!("a key of {} bytes for table {table}: use 1 to {MAX_APPLICATION_KEY_BYTES}", key.len());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(())
}

/// A transaction's turn among those that others have been in the way of too often. Without turns, whoever comes back
/// last each time loses each time. `None` when those before it take too long.
async fn turn(shared: &Shared) -> Option<OwnedMutexGuard<()>> {
    let turn = std::pin::pin!(Arc::clone(&shared.contended).lock_owned());
    match select(turn, shared.clock.sleep(MAX_TRANSACTION_TURN)).await {
        Either::Left((turn, _)) => Some(turn),
        Either::Right(_) => None,
    }
}

/// See [`Broker::transaction`](crate::Broker::transaction).
pub(crate) async fn run<T>(
    keeper: &Arc<Keeper>,
    mut work: impl FnMut(&mut ApplicationTransaction) -> Result<T>,
) -> Result<Committed<T>> {
    let mut its_turn = None;
    for run in 1..=MAX_TRANSACTION_ATTEMPTS {
        if run > MAX_TRANSACTION_RUNS_AT_ONCE && its_turn.is_none() {
            its_turn = turn(keeper.shared()).await;
        }
        keeper.shared().check_running()?;
        let mut transaction = ApplicationTransaction::new(keeper.shared());
        let mut result = work(&mut transaction);
        if let Some(missing) = transaction.missing.take() {
            keeper.topic(missing.as_str()).await?;
            continue;
        }
        if let Some((kind, text)) = transaction.failed.take() {
            // What the work says to it is worth more, unless it keeps silent.
            result = result.and_then(|_| Err(Error::new(kind, text)));
        }
        let gave_up = result.is_err();
        if gave_up && transaction.view.reads().is_empty() {
            return Err(result.err().expect("it gave up"));
        }
        match (transaction.submit(gave_up).await?, result) {
            (Outcome::Done(receipts, level), Ok(value)) => return Ok(Committed { value, receipts, level, runs: run }),
            (Outcome::Done(..), Err(error)) => return Err(error),
            (Outcome::Again, _) => {}
        }
    }
    let text = format!(
        "the transaction ran {MAX_TRANSACTION_ATTEMPTS} times, and each time somebody else had changed what it read: \
         run it again, or have it read less"
    );
    Err(Error::new(ErrorKind::Conflict, text))
}
