//! The one writer: gives offsets and positions, encodes a batch as one frame, makes its changes ready to be shown.

use std::collections::HashMap;

use cuemq_storage_api::{
    Appended, Applied, Attribute, LogPosition, Mark, QueueKey, QueueOffset, Record, Timestamp, WriteBatch,
    WriteOperation, tag_hash,
};

use crate::catalog::{Catalog, Staged};
use crate::commit_log::LogWriter;
use crate::commit_log::format::{self, FrameEncoder, RecordHeader, len_u8, len_u16, len_u32};
use crate::consume_queue::entry::Entry;
use crate::tables::RowChange;

/// Everything under the writer lock.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) log: LogWriter,
    pub(crate) encoder: FrameEncoder,
    pub(crate) staged: Staged,
    /// The next offset of every queue, and its slot in the catalog.
    ends: HashMap<QueueKey, QueueEnd>,
}

#[derive(Clone, Copy, Debug)]
struct QueueEnd {
    slot: usize,
    next: u64,
}

impl Writer {
    pub(crate) fn new(log: LogWriter, catalog: &Catalog) -> Self {
        let queues = catalog.queues().iter().enumerate();
        let ends = queues.map(|(slot, queue)| (queue.key.clone(), QueueEnd { slot, next: queue.end })).collect();
        Self { log, encoder: FrameEncoder::default(), staged: Staged::default(), ends }
    }

    /// When a batch with this time is stored: stored times never fall.
    pub(crate) fn stored_at(&self, batch: &WriteBatch) -> Timestamp {
        batch.stored_at().max(Timestamp::from_millis(self.log.end().stored_at))
    }

    /// Encodes the batch for the log's end and makes its changes ready. From here on the batch must be written, or the
    /// engine poisoned: the queues' ends have moved.
    pub(crate) fn stage(&mut self, batch: &WriteBatch, frame_bytes: usize) -> Applied {
        let stored_at = self.stored_at(batch);
        self.staged.clear();
        self.encoder.begin(frame_bytes);
        let (mut appends, mut positions) = (Vec::new(), Vec::with_capacity(batch.len()));
        for operation in batch.operations() {
            match operation {
                WriteOperation::Append { queue, records } => {
                    appends.push(self.stage_append(queue, records, stored_at, &mut positions));
                }
                WriteOperation::Put { table, key, value } => {
                    self.encoder.put(table.as_str(), key, value);
                    self.staged.rows.push(RowChange::put(table, key, value));
                }
                WriteOperation::Delete { table, key } => {
                    self.encoder.delete(table.as_str(), key);
                    self.staged.rows.push(RowChange::delete(table, key));
                }
                WriteOperation::Trim { queue, before } => self.stage_trim(queue, before.get()),
            }
        }
        let mark = Mark(self.log.end().position + frame_bytes as u64);
        Applied { mark, stored_at, appends, positions }
    }

    fn stage_append(
        &mut self,
        queue: &QueueKey,
        records: &[Record],
        stored_at: Timestamp,
        positions: &mut Vec<LogPosition>,
    ) -> Appended {
        let slots = self.ends.len();
        let end = match self.ends.get_mut(queue) {
            Some(end) => end,
            None => {
                self.staged.new_queues.push(queue.clone());
                self.ends.entry(queue.clone()).or_insert(QueueEnd { slot: slots, next: 0 })
            }
        };
        let first = end.next;
        let topic = queue.topic.as_str();
        for record in records {
            let position = self.log.end().position + self.encoder.len() as u64;
            let header = RecordHeader {
                len: len_u32(format::record_bytes(topic, record)),
                topic_len: len_u8(topic.len()),
                attributes_len: len_u16(record.attributes.as_bytes().len()),
                body_len: len_u32(record.body.len()),
                position,
                queue_offset: end.next,
                stored_at: stored_at.as_millis(),
                born_at: record.born_at.as_millis(),
                tag_hash: stored_tag_hash(record),
                queue: queue.queue.get(),
                epoch: self.log.epoch(),
            };
            self.encoder.record(&header, topic, record);
            self.staged.entries.push(Entry { position, tag_hash: header.tag_hash, size: header.len });
            positions.push(LogPosition::new(position));
            end.next += 1;
        }
        self.staged.appends.push((end.slot, records.len()));
        Appended { first: QueueOffset::new(first), count: len_u32(records.len()) }
    }

    fn stage_trim(&mut self, queue: &QueueKey, before: u64) {
        self.encoder.trim(queue.topic.as_str(), queue.queue.get(), before);
        if let Some(end) = self.ends.get(queue) {
            self.staged.trims.push((end.slot, before.min(end.next)));
        }
    }
}

/// Most records have no attributes at all; their tag is not looked for.
fn stored_tag_hash(record: &Record) -> i64 {
    if record.attributes.as_bytes().is_empty() {
        return 0;
    }
    let tag = record.attributes.iter().find_map(|field| if let Attribute::Tag(tag) = field { Some(tag) } else { None });
    tag.map_or(0, tag_hash)
}

/// Bytes of the frame that carries a batch.
pub(crate) fn frame_bytes(batch: &WriteBatch) -> u64 {
    let items = batch.operations().iter().map(|operation| match operation {
        WriteOperation::Append { queue, records } => {
            records.iter().map(|record| format::record_bytes(queue.topic.as_str(), record) as u64).sum()
        }
        WriteOperation::Put { table, key, value } => format::row_bytes(table.as_str(), key, value) as u64,
        WriteOperation::Delete { table, key } => format::row_bytes(table.as_str(), key, &[]) as u64,
        WriteOperation::Trim { queue, .. } => format::trim_bytes(queue.topic.as_str()) as u64,
    });
    format::frame_bytes(items.sum())
}
