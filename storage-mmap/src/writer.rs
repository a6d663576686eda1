//! The one writer: gives offsets and positions, encodes a batch as one frame, makes its changes ready to be shown.

use std::collections::HashMap;

use cuemq_storage_api::{
    Appended, Applied, Attribute, LogPosition, Mark, QueueKey, QueueOffset, Record, Timestamp, WriteBatch,
    WriteOperation, tag_hash,
};

use crate::catalog::{Catalog, Staged};
use crate::commit_log::LogWriter;
use crate::commit_log::encoder::{Encoded, FrameEncoder};
use crate::commit_log::format::{self, RecordHeader, len_u8, len_u16, len_u32};
use crate::consume_queue::entry::Entry;

const PLACES_ARE_RESOLVED: &str = "places are resolved before a batch is encoded";

/// Everything under the writer lock.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) log: LogWriter,
    pub(crate) staged: Staged,
    /// Entries of consume queues that were in memory only after the last batch.
    pub(crate) buffered: usize,
    /// Scratch room for the checksums of a frame's items: 4 bytes for each.
    sums: Vec<u8>,
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
        Self { log, staged: Staged::default(), buffered: catalog.buffered(), sums: Vec::new(), ends }
    }

    /// When a batch with this time is stored: stored times never fall.
    pub(crate) fn stored_at(&self, batch: &WriteBatch) -> Timestamp {
        batch.stored_at().max(Timestamp::from_millis(self.log.end().stored_at))
    }

    /// Where a queue ends; 0 for one that never had a record.
    pub(crate) fn end_of(&self, queue: &QueueKey) -> QueueOffset {
        QueueOffset::new(self.ends.get(queue).map_or(0, |end| end.next))
    }

    /// Encodes the batch in the place that the log has for it and makes its changes ready. From here on the batch must
    /// be written, or the engine poisoned: the queues' ends have moved.
    pub(crate) fn stage(&mut self, batch: &WriteBatch, frame_bytes: usize) -> (Applied, Encoded) {
        let (stored_at, position, epoch) = (self.stored_at(batch), self.log.end().position, self.log.epoch());
        self.staged.clear();
        let encoder = FrameEncoder::new(self.log.place(frame_bytes), &mut self.sums);
        let positions = Vec::with_capacity(batch.len());
        let (staged, ends) = (&mut self.staged, &mut self.ends);
        let mut staging = Staging { staged, ends, encoder, position, epoch, stored_at, positions };
        let mut appends = Vec::new();
        for operation in batch.operations() {
            match operation {
                WriteOperation::Append { queue, records } => appends.push(staging.append(queue, records)),
                WriteOperation::Put { table, key, value } => {
                    staging.encoder.put(table.as_str(), key, value);
                    staging.staged.put_row(table, key, value);
                }
                WriteOperation::PutPlaced { .. } => unreachable!("{PLACES_ARE_RESOLVED}"),
                WriteOperation::Delete { table, key } => {
                    staging.encoder.delete(table.as_str(), key);
                    staging.staged.delete_row(table, key);
                }
                WriteOperation::Trim { queue, before } => staging.trim(queue, before.get()),
            }
        }
        let Staging { encoder, positions, .. } = staging;
        let mark = Mark(position + frame_bytes as u64);
        (Applied { mark, stored_at, appends, positions }, encoder.finish())
    }
}

/// One batch on its way into a frame.
struct Staging<'a> {
    staged: &'a mut Staged,
    ends: &'a mut HashMap<QueueKey, QueueEnd>,
    encoder: FrameEncoder<'a>,
    /// Where the frame begins.
    position: u64,
    epoch: u32,
    stored_at: Timestamp,
    positions: Vec<LogPosition>,
}

impl Staging<'_> {
    fn append(&mut self, queue: &QueueKey, records: &[Record]) -> Appended {
        let slots = self.ends.len();
        let end = match self.ends.get_mut(queue) {
            Some(end) => end,
            None => {
                self.staged.new_queues.push(queue.clone());
                self.ends.entry(queue.clone()).or_insert(QueueEnd { slot: slots, next: 0 })
            }
        };
        let first = end.next;
        end.next += records.len() as u64;
        self.staged.appends.push((end.slot, records.len()));
        self.staged.entries.reserve(records.len());
        let topic = queue.topic.as_str();
        let mut header = RecordHeader {
            len: 0,
            topic_len: len_u8(topic.len()),
            attributes_len: 0,
            body_len: 0,
            position: 0,
            queue_offset: first,
            stored_at: self.stored_at.as_millis(),
            born_at: 0,
            tag_hash: 0,
            queue: queue.queue.get(),
            epoch: self.epoch,
        };
        for record in records {
            header.len = len_u32(format::record_bytes(topic, record));
            header.attributes_len = len_u16(record.attributes.as_bytes().len());
            header.body_len = len_u32(record.body.len());
            header.position = self.position + self.encoder.len() as u64;
            header.born_at = record.born_at.as_millis();
            header.tag_hash = stored_tag_hash(record);
            self.encoder.record(&header, topic, record);
            let entry = Entry { position: header.position, tag_hash: header.tag_hash, size: header.len };
            self.staged.entries.push(entry);
            self.positions.push(LogPosition::new(header.position));
            header.queue_offset += 1;
        }
        Appended { first: QueueOffset::new(first), count: len_u32(records.len()) }
    }

    fn trim(&mut self, queue: &QueueKey, before: u64) {
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
    let in_frame = |item_len| format::in_frame(item_len) as u64;
    let items = batch.operations().iter().map(|operation| match operation {
        WriteOperation::Append { queue, records } => {
            let topic = queue.topic.as_str();
            records.iter().map(|record| in_frame(format::record_bytes(topic, record))).sum()
        }
        WriteOperation::Put { table, key, value } => in_frame(format::row_bytes(table.as_str(), key, value)),
        WriteOperation::PutPlaced { .. } => unreachable!("{PLACES_ARE_RESOLVED}"),
        WriteOperation::Delete { table, key } => in_frame(format::row_bytes(table.as_str(), key, &[])),
        WriteOperation::Trim { queue, .. } => in_frame(format::trim_bytes(queue.topic.as_str())),
    });
    format::frame_bytes(items.sum())
}
