//! What the committer of transactions is asked for.

use cuemq_storage_api::{QueueKey, Record, Timestamp, TopicName};
use tokio::sync::oneshot;

use crate::actors::group::Prepared;
use crate::admission::Permit;
use crate::consumer::Pledged;
use crate::domain::application::View;
use crate::error::Result;
use crate::message::{AckLevel, Receipt};
use crate::settings::Flush;

/// Every request and notice, in one order.
#[derive(Debug)]
pub(crate) enum ApplicationCommand {
    /// A transaction has run and wants to commit.
    Submit(Box<Submission>),
    /// A group has answered for the acknowledgements of a round.
    Prepared { round: u64, part: usize, answer: Result<Prepared> },
    /// The write of a round is applied or refused.
    Landed { round: u64 },
}

impl ApplicationCommand {
    /// The name by which a probe knows it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Submit(_) => "Submit",
            Self::Prepared { .. } => "Prepared",
            Self::Landed { .. } => "Landed",
        }
    }
}

/// A transaction that has run.
#[derive(Debug)]
pub(crate) struct Submission {
    /// What it saw of the tables and wants to write to them.
    pub(crate) view: View,
    /// What it sends, in order.
    pub(crate) sends: Vec<Send>,
    /// What it acknowledges and where it moves groups to.
    pub(crate) pledges: Vec<Pledged>,
    pub(crate) flush: Flush,
    /// Whether it gave up: then only what it saw is of interest.
    pub(crate) only_look: bool,
    /// How many changes it makes, and of how many bytes.
    pub(crate) operations: usize,
    pub(crate) bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<Outcome>>,
    /// Held until its outcome is known.
    pub(crate) permit: Permit,
}

/// One message of a transaction.
#[derive(Debug)]
pub(crate) enum Send {
    /// It is visible when the transaction is.
    Now(QueueKey, Record),
    /// It becomes visible at its time; its queue is chosen then.
    Later(TopicName, Timestamp, Record),
}

/// What became of a transaction.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is done, or, if it gave up, saw what was.
    Done(Vec<Receipt>, AckLevel),
    /// What it saw has changed: it has to run again.
    Again,
}
