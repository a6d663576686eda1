//! What a queue actor is asked for, and how each asker gets its answer.

use std::fmt;

use cuemq_storage_api::{QueueKey, Record};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::message::{MessageId, Receipt};
use crate::shared::Permit;
use crate::storage::{Stored, WriteResult};

/// One message, or several that go into the queue together.
#[derive(Debug)]
pub(crate) enum Records {
    One(Record),
    Many(Vec<Record>),
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(records) => records.len(),
        }
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        match self {
            Self::One(record) => record.payload_bytes(),
            Self::Many(records) => records.iter().map(Record::payload_bytes).sum(),
        }
    }
}

/// Appends records to one queue.
#[derive(Debug)]
pub(crate) struct AppendRequest {
    pub(crate) records: Records,
    pub(crate) reply: Reply,
    pub(crate) permit: Option<Permit>,
}

/// How the sender wants to hear of the outcome. Dropping it unanswered tells the sender `Unknown`.
pub(crate) enum Reply {
    One(oneshot::Sender<Result<Receipt>>),
    Many(oneshot::Sender<Result<Vec<Receipt>>>),
    Nobody,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Many(_) => "Many",
            Self::Nobody => "Nobody",
        })
    }
}

type Callback = Box<dyn FnOnce(Result<Receipt>) + Send>;

/// A callback that is called when it is answered or, with `Unknown`, when it is dropped.
pub(crate) struct CallbackOnce(Option<Callback>);

impl CallbackOnce {
    pub(crate) fn new(callback: impl FnOnce(Result<Receipt>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    pub(crate) fn call(mut self, result: Result<Receipt>) {
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

/// A request whose records are on their way to storage.
pub(super) struct Waiting {
    count: usize,
    reply: Reply,
    _permit: Option<Permit>,
}

impl AppendRequest {
    pub(super) fn take_records(self, all: &mut Vec<Record>) -> Waiting {
        let count = self.records.len();
        match self.records {
            Records::One(record) => all.push(record),
            Records::Many(mut records) => all.append(&mut records),
        }
        Waiting { count, reply: self.reply, _permit: self.permit }
    }

    /// Answers a request that was never handed to storage.
    pub(crate) fn refuse(self, error: Error) {
        match self.reply {
            // An asker that has gone away does not need the answer.
            Reply::One(sender) => drop(sender.send(Err(error))),
            Reply::Many(sender) => drop(sender.send(Err(error))),
            Reply::Nobody => {}
        }
    }
}

/// Answers everybody whose records were in one write.
pub(super) fn answer(key: &QueueKey, store_id: u64, waiting: Vec<Waiting>, result: &WriteResult) {
    let mut at = 0;
    for request in waiting {
        let range = at..at + request.count;
        at = range.end;
        let receipt = |index: usize| {
            result.as_ref().map_err(|error| error.get()).map(|stored| receipt(key, store_id, stored, index))
        };
        match request.reply {
            Reply::One(sender) => drop(sender.send(receipt(range.start))),
            Reply::Many(sender) => drop(sender.send(range.map(receipt).collect())),
            Reply::Nobody => {}
        }
    }
}

fn receipt(key: &QueueKey, store_id: u64, stored: &Stored, index: usize) -> Receipt {
    Receipt {
        topic: key.topic.clone(),
        queue: key.queue,
        offset: Some(stored.appends[0].first.plus(index as u64)),
        id: Some(MessageId::new(store_id, stored.positions[index])),
        level: stored.level,
    }
}
