//! `checkpoint`: the state at one position of the log, from where the next opening goes on.

use std::io;

use cuemq_storage_api::{QueueId, QueueKey, TopicName};

use crate::catalog::QueueState;
use crate::commit_log::format::{len_u8, len_u32};
use crate::commit_log::{LogEnd, SegmentTimes};
use crate::cursor::Cursor;
use crate::files::FileLayer;
use crate::manifest::read_whole;
use crate::replace::replace_file;
use crate::tables::Tables;

/// The file's name.
pub(crate) const CHECKPOINT: &str = "checkpoint";
const MAGIC: &[u8; 4] = b"CqCp";
const VERSION: u16 = 1;
const FLAG_CLEAN: u16 = 1;

/// Everything that would otherwise have to be replayed from the log's beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Checkpoint {
    /// Written by a clean close of the opening with this epoch: the log ends at `end`.
    pub(crate) clean: bool,
    pub(crate) epoch: u32,
    pub(crate) end: LogEnd,
    /// Where the oldest segment begins.
    pub(crate) log_start: u64,
    pub(crate) times: SegmentTimes,
    pub(crate) queues: Vec<QueuePoint>,
    pub(crate) tables: Tables,
}

/// One queue in a checkpoint. Its files hold every entry of `[base, end)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct QueuePoint {
    pub(crate) key: QueueKey,
    pub(crate) base: u64,
    pub(crate) min: u64,
    pub(crate) end: u64,
}

impl QueuePoint {
    pub(crate) fn of(queue: &QueueState) -> Self {
        Self { key: queue.key.clone(), base: queue.base, min: queue.min, end: queue.end }
    }
}

impl Checkpoint {
    /// Replaces the file, durably, and says how many bytes it has.
    pub(crate) fn write(&self, files: &dyn FileLayer) -> io::Result<u64> {
        let mut bytes = 0;
        replace_file(files, CHECKPOINT, |out| {
            out.write(MAGIC)?;
            out.write(&VERSION.to_le_bytes())?;
            out.write(&(if self.clean { FLAG_CLEAN } else { 0 }).to_le_bytes())?;
            out.write(&self.epoch.to_le_bytes())?;
            out.write(&self.end.position.to_le_bytes())?;
            out.write(&self.end.chain.to_le_bytes())?;
            out.write(&self.end.stored_at.to_le_bytes())?;
            out.write(&self.log_start.to_le_bytes())?;
            out.write(&len_u32(self.times.len()).to_le_bytes())?;
            for (start, stored_at) in &self.times {
                out.write(&start.to_le_bytes())?;
                out.write(&stored_at.to_le_bytes())?;
            }
            out.write(&len_u32(self.queues.len()).to_le_bytes())?;
            for queue in &self.queues {
                let topic = queue.key.topic.as_str();
                out.write(&[len_u8(topic.len())])?;
                out.write(topic.as_bytes())?;
                out.write(&queue.key.queue.get().to_le_bytes())?;
                out.write(&queue.base.to_le_bytes())?;
                out.write(&queue.min.to_le_bytes())?;
                out.write(&queue.end.to_le_bytes())?;
            }
            self.tables.write(out)?;
            let crc = out.crc();
            out.write(&crc.to_le_bytes())?;
            bytes = out.len();
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Reads the file. `None` if there is none, or if it is damaged: all that it says can be had from the log as long
    /// as the log reaches back to its beginning.
    pub(crate) fn read(files: &dyn FileLayer) -> io::Result<Option<Self>> {
        let bytes = match read_whole(files, CHECKPOINT) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let checkpoint = decode(&bytes);
        if checkpoint.is_none() {
            tracing::warn!(store = files.describe(), "the checkpoint is damaged; replaying the whole commit log");
        }
        Ok(checkpoint)
    }
}

fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut cursor = Cursor::new(content);
    if cursor.bytes(MAGIC.len())? != MAGIC || cursor.u16()? != VERSION {
        return None;
    }
    let clean = cursor.u16()? & FLAG_CLEAN != 0;
    let epoch = cursor.u32()?;
    let end = LogEnd { position: cursor.u64()?, chain: cursor.u32()?, stored_at: cursor.i64()? };
    let log_start = cursor.u64()?;
    let mut times = SegmentTimes::new();
    for _ in 0..cursor.u32()? {
        times.insert(cursor.u64()?, cursor.i64()?);
    }
    let mut queues = Vec::new();
    for _ in 0..cursor.u32()? {
        queues.push(read_queue(&mut cursor)?);
    }
    let tables = Tables::read(&mut cursor)?;
    let checkpoint = Checkpoint { clean, epoch, end, log_start, times, queues, tables };
    cursor.is_empty().then_some(checkpoint)
}

fn read_queue(cursor: &mut Cursor<'_>) -> Option<QueuePoint> {
    let topic = TopicName::from_stored(cursor.name()?).ok()?;
    let queue = QueueId::new(cursor.u32()?).ok()?;
    let (base, min, end) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    let sound = base <= min && min <= end;
    sound.then_some(QueuePoint { key: QueueKey::new(topic, queue), base, min, end })
}
