//! Transactional sends: a half message that nobody sees, the program's own transaction, then commit or rollback; and,
//! when that decision never comes, a question to any live producer of the group.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use cuemq_storage_api::GroupName;
use futures_util::FutureExt;
use tokio::sync::oneshot;

use crate::actors::topic::TopicHandle;
use crate::actors::transaction::{BeginRequest, Checker, TransactionCommand, TransactionHandle};
use crate::broker::Keeper;
pub use crate::domain::transaction::{Decision, TransactionId};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, Receipt};
use crate::tables::half_message::HalfMessageRow;

/// A half message, as the listener is asked about it.
#[derive(Clone, Debug)]
pub struct HalfMessage {
    transaction: TransactionId,
    row: HalfMessageRow,
}

impl HalfMessage {
    /// Its transaction.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &bytes::Bytes {
        &self.row.record.body
    }

    /// The keys under which it will be found.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.row.record.attributes.keys()
    }

    /// A property that the producer set.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        self.row.record.attributes.property(name)
    }

    /// How often the group has been asked, this time included.
    #[must_use]
    pub fn checks(&self) -> u32 {
        self.row.checks
    }
}

/// Knows what became of the program's own transactions.
pub trait TransactionListener: Send + Sync + 'static {
    /// Tells whether the transaction behind a half message was committed; `None` when that is not known yet: the
    /// question comes again. Asked on the broker's thread for user code, also about transactions that a dead member
    /// of the group began.
    fn check(&self, half: HalfMessage) -> Pin<Box<dyn Future<Output = Option<Decision>> + Send + '_>>;
}

impl<F> TransactionListener for F
where
    F: Fn(HalfMessage) -> Option<Decision> + Send + Sync + 'static,
{
    fn check(&self, half: HalfMessage) -> Pin<Box<dyn Future<Output = Option<Decision>> + Send + '_>> {
        Box::pin(std::future::ready(self(half)))
    }
}

/// Sends half messages to one topic. Dropping it only means that it can no longer be asked.
pub struct TransactionProducer {
    keeper: Arc<Keeper>,
    topic: Arc<TopicHandle>,
    member: Arc<Member>,
    registered: Arc<dyn Checker>,
}

struct Member {
    group: GroupName,
    listener: Arc<dyn TransactionListener>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("group", &self.group).finish_non_exhaustive()
    }
}

impl fmt::Debug for TransactionProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionProducer").field("group", &self.member.group).finish_non_exhaustive()
    }
}

impl Checker for Member {
    fn group(&self) -> &GroupName {
        &self.group
    }

    fn check(&self, transaction: TransactionId, half: HalfMessageRow, answer_to: TransactionHandle) {
        let listener = Arc::clone(&self.listener);
        actix_rt::spawn(async move {
            let asked = async { listener.check(HalfMessage { transaction, row: half }).await };
            match std::panic::AssertUnwindSafe(asked).catch_unwind().await {
                Ok(Some(decision)) => answer_to.post(TransactionCommand::End { transaction, decision, reply: None }),
                Ok(None) => {}
                Err(_) => {
                    tracing::warn!(transaction = transaction.0, "a transaction listener panicked: it is asked again")
                }
            }
        });
    }
}

impl TransactionProducer {
    /// Resolves once it can be asked.
    pub(crate) async fn new(
        keeper: Arc<Keeper>,
        group: GroupName,
        topic: Arc<TopicHandle>,
        listener: impl TransactionListener,
    ) -> Result<Self> {
        let member = Arc::new(Member { group, listener: Arc::new(listener) });
        let registered: Arc<dyn Checker> = Arc::<Member>::clone(&member);
        let checker = Arc::downgrade(&registered);
        let checkers = keeper.shared().transaction_handle();
        checkers.ask(|reply| TransactionCommand::Register { checker, reply }).await?;
        Ok(Self { keeper, topic, member, registered })
    }

    /// Stores a half message, which no consumer sees until it is committed.
    ///
    /// # Errors
    /// As [`Producer::send`](crate::Producer::send); `Full` when too many transactions are undecided; `Invalid` for
    /// a delayed message.
    pub async fn begin(&self, message: impl Into<Message>) -> Result<Transaction> {
        let (message, shared) = (message.into(), self.keeper.shared());
        shared.check_running()?;
        if message.delay_ref().is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a half message cannot be delayed: delay what its consumer sends",
            ));
        }
        let attributes = message.checked_attributes(shared.settings.max_body_bytes)?;
        let permit = shared.admit(1, message.payload_bytes()).await?.keep();
        let queue = self.topic.routes().choose(message.sharding_key_ref()).key().clone();
        let ttl = message.ttl_ref();
        let record = message.into_record(attributes, shared.clock.now());
        let handle = shared.transaction_handle();
        let (reply, answer) = oneshot::channel();
        let (group, flush) = (self.member.group.clone(), self.topic.flush());
        handle.begin(BeginRequest { group, queue, record, ttl, flush, reply, permit });
        let id = answer.await.unwrap_or_else(|_| Err(Error::lost("the begin of the transaction")))?;
        Ok(Transaction { id, handle, _keeper: Arc::clone(&self.keeper) })
    }

    /// Stores a half message, runs the program's own transaction, and ends the broker's accordingly: `Ok(Some(..))`
    /// decides; `Ok(None)` leaves the decision to a later check; an error rolls back and is returned.
    ///
    /// # Errors
    /// As [`begin`](TransactionProducer::begin) and [`Transaction::commit`]; and `NotStored` with the text of the
    /// program's own error after the rollback.
    pub async fn send<F, E>(
        &self,
        message: impl Into<Message>,
        execute: impl FnOnce(TransactionId) -> F,
    ) -> Result<Option<Receipt>>
    where
        F: Future<Output = std::result::Result<Option<Decision>, E>>,
        E: fmt::Display,
    {
        let transaction = self.begin(message).await?;
        match execute(transaction.id()).await {
            Ok(Some(Decision::Commit)) => transaction.commit().await,
            Ok(Some(Decision::Rollback)) => transaction.rollback().await.map(|()| None),
            Ok(None) => Ok(None),
            Err(error) => {
                transaction.rollback().await?;
                Err(Error::new(ErrorKind::NotStored, format!("the transaction failed and was rolled back: {error}")))
            }
        }
    }

    /// Decides a transaction by its id: for a program that was restarted in between.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    pub async fn end(&self, transaction: TransactionId, decision: Decision) -> Result<Option<Receipt>> {
        self.keeper.shared().transaction_handle().ask(|reply| end(transaction, decision, reply)).await
    }
}

impl Drop for TransactionProducer {
    fn drop(&mut self) {
        let gone = TransactionCommand::Unregister(Arc::downgrade(&self.registered));
        self.keeper.shared().transaction_handle().post(gone);
    }
}

/// A half message whose fate is open. Dropping it leaves the decision to a check.
#[derive(Debug)]
pub struct Transaction {
    id: TransactionId,
    handle: TransactionHandle,
    _keeper: Arc<Keeper>,
}

impl Transaction {
    /// Its id; write it down together with the program's own changes to be able to answer a check.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Delivers the message. Again for the same decision is no error, and then there is no receipt.
    ///
    /// # Errors
    /// `Conflict` when it was rolled back before; `Invalid` when it is not known; `NotStored` or `Unknown` when the
    /// write failed: the message stays half and its fate open.
    pub async fn commit(&self) -> Result<Option<Receipt>> {
        self.handle.ask(|reply| end(self.id, Decision::Commit, reply)).await
    }

    /// Discards the message. Again for the same decision is no error.
    ///
    /// # Errors
    /// As [`commit`](Transaction::commit), the other way round.
    pub async fn rollback(&self) -> Result<()> {
        self.handle.ask(|reply| end(self.id, Decision::Rollback, reply)).await.map(|_| ())
    }
}

fn end(
    transaction: TransactionId,
    decision: Decision,
    reply: oneshot::Sender<Result<Option<Receipt>>>,
) -> TransactionCommand {
    TransactionCommand::End { transaction, decision, reply: Some(reply) }
}
