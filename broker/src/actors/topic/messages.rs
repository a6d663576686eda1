//! A batch that spans several queues of one topic, and its answer.

use std::collections::HashMap;

use cuemq_storage_api::{QueueKey, Record};
use tokio::sync::oneshot;

use super::Parts;
use crate::admission::Permit;
use crate::error::{Error, Result};
use crate::message::{MessageId, Receipt};
use crate::storage::{Stored, WriteResult};

/// Appends each record to its queue, all or none.
#[derive(Debug)]
pub(crate) struct SpanRequest {
    pub(crate) records: Vec<(QueueKey, Record)>,
    pub(crate) reply: oneshot::Sender<Result<Vec<Receipt>>>,
    pub(crate) permit: Permit,
}

/// Remembers which record went where: `(part, index within the part)` in the sender's order.
pub(super) struct WaitingSpan {
    places: Vec<(usize, usize)>,
    queues: Vec<(QueueKey, usize)>,
    reply: oneshot::Sender<Result<Vec<Receipt>>>,
    _permit: Permit,
}

impl SpanRequest {
    pub(super) fn split(self) -> (Parts, WaitingSpan) {
        let mut parts: Parts = Vec::new();
        let mut part_of: HashMap<QueueKey, usize> = HashMap::new();
        let mut places = Vec::with_capacity(self.records.len());
        for (queue, record) in self.records {
            let part = *part_of.entry(queue.clone()).or_insert_with(|| {
                parts.push((queue, Vec::new()));
                parts.len() - 1
            });
            places.push((part, parts[part].1.len()));
            parts[part].1.push(record);
        }
        let queues = parts.iter().map(|(queue, records)| (queue.clone(), records.len())).collect();
        (parts, WaitingSpan { places, queues, reply: self.reply, _permit: self.permit })
    }

    pub(crate) fn refuse(self, error: Error) {
        // An asker that has gone away does not need the answer.
        drop(self.reply.send(Err(error)));
    }
}

impl WaitingSpan {
    pub(super) fn answer(self, store_id: u64, result: &WriteResult) {
        let receipts = match result {
            Ok(stored) => Ok(self.receipts(store_id, stored)),
            Err(error) => Err(error.get()),
        };
        // An asker that has gone away does not need the answer.
        drop(self.reply.send(receipts));
    }

    fn receipts(&self, store_id: u64, stored: &Stored) -> Vec<Receipt> {
        let mut first_position = Vec::with_capacity(self.queues.len());
        let mut next = 0;
        for (_, count) in &self.queues {
            first_position.push(next);
            next += count;
        }
        let place = |&(part, index): &(usize, usize)| {
            let queue = &self.queues[part].0;
            Receipt {
                topic: queue.topic.clone(),
                queue: queue.queue,
                offset: Some(stored.appends[part].first.plus(index as u64)),
                id: Some(MessageId::new(store_id, stored.positions[first_position[part] + index])),
                scheduled: None,
                level: stored.level,
            }
        };
        self.places.iter().map(place).collect()
    }
}
