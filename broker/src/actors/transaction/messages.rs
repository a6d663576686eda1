//! What the transaction checker is asked for, and whom it asks.

use std::fmt;
use std::sync::Weak;

use cuemq_storage_api::{GroupName, QueueKey, Record, Timestamp};

use super::TransactionHandle;
use crate::actors::group::Answer;
use crate::admission::Permit;
use crate::domain::transaction::{Decision, TransactionId};
use crate::error::SharedError;
use crate::message::Receipt;
use crate::settings::Flush;
use crate::tables::half_message::HalfMessageRow;

/// Every request and notice, in one order.
#[derive(Debug)]
pub(crate) enum TransactionCommand {
    /// Stores a half message.
    Begin(Box<BeginRequest>),
    /// A half message surely was not stored.
    NotBegun(TransactionId),
    /// Decides; without a reply when a check was answered.
    End { transaction: TransactionId, decision: Decision, reply: Option<Answer<Option<Receipt>>> },
    /// The write of a decision has an outcome.
    Finished { transaction: TransactionId, at: Timestamp, receipt: Finish },
    /// A producer that can be asked while it lives.
    Register { checker: Weak<dyn Checker>, reply: Answer<()> },
    /// It is gone.
    Unregister(Weak<dyn Checker>),
}

impl TransactionCommand {
    /// The name by which a probe knows it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "Begin",
            Self::NotBegun(_) => "NotBegun",
            Self::End { .. } => "End",
            Self::Finished { .. } => "Finished",
            Self::Register { .. } => "Register",
            Self::Unregister(_) => "Unregister",
        }
    }
}

/// The outcome of a decision's write, with the receipt of a committed message.
pub(crate) type Finish = Result<Option<Receipt>, SharedError>;

/// See [`TransactionCommand::Begin`].
#[derive(Debug)]
pub(crate) struct BeginRequest {
    pub(crate) group: GroupName,
    pub(crate) queue: QueueKey,
    pub(crate) record: Record,
    /// How long the message lives once it is committed.
    pub(crate) ttl: Option<std::time::Duration>,
    pub(crate) flush: Flush,
    pub(crate) reply: Answer<TransactionId>,
    pub(crate) permit: Permit,
}

/// A live member of a producer group.
pub(crate) trait Checker: fmt::Debug + Send + Sync {
    /// The group.
    fn group(&self) -> &GroupName;
    /// Asks about a transaction and posts the answer, if there is one; runs on the thread for user code.
    fn check(&self, transaction: TransactionId, half: HalfMessageRow, answer_to: TransactionHandle);
}
