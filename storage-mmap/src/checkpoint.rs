//! `checkpoint`: the state at one position of the log, from where the next opening goes on.

use std::io;
use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, TopicName};

use crate::catalog::QueueState;
use crate::commit_log::format::{len_u8, len_u32};
use crate::commit_log::{LogEnd, SegmentTimes};
use crate::files::{FileLayer, LayerFile, OpenMode};
use crate::reading::{Reading, damaged};
use crate::replace::replace_file;
use crate::tables::{Base, Snapshot};

/// The file's name.
pub(crate) const CHECKPOINT: &str = "checkpoint";
const MAGIC: &[u8; 4] = b"CqCp";
const VERSION: u16 = 2;
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
}

/// A checkpoint on disk.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    /// Where its rows are.
    pub(crate) base: Base,
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
    /// Replaces the file, durably.
    pub(crate) fn write(&self, files: &dyn FileLayer, rows: &Snapshot) -> io::Result<Written> {
        let mut written = Written { bytes: 0, base: Base::default() };
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
            written.base = rows.write(out)?;
            let crc = out.crc();
            out.write(&crc.to_le_bytes())?;
            written.bytes = out.len();
            Ok(())
        })?;
        Ok(written)
    }

    /// Reads the file. `None` if there is none, or if it is damaged: all that it says can be had from the log as long
    /// as the log reaches back to its beginning.
    pub(crate) fn read(files: &dyn FileLayer) -> io::Result<Option<(Self, Base)>> {
        let file = match files.open(CHECKPOINT, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match decode(&file) {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(store = files.describe(), "the checkpoint is damaged; replaying the whole commit log");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Reads twice: for the checksum first, so that nothing of damaged bytes is believed.
fn decode(file: &Arc<dyn LayerFile>) -> io::Result<(Checkpoint, Base)> {
    let end = file.len()?.checked_sub(4).ok_or_else(damaged)?;
    let mut crc = [0; 4];
    file.read_at(end, &mut crc)?;
    if Reading::crc(&**file, end)? != u32::from_le_bytes(crc) {
        return Err(damaged());
    }
    let mut reading = Reading::new(&**file, end);
    if reading.bytes(MAGIC.len() as u64)? != MAGIC || reading.u16()? != VERSION {
        return Err(damaged());
    }
    let clean = reading.u16()? & FLAG_CLEAN != 0;
    let epoch = reading.u32()?;
    let log_end = LogEnd { position: reading.u64()?, chain: reading.u32()?, stored_at: reading.i64()? };
    let log_start = reading.u64()?;
    let mut times = SegmentTimes::new();
    for _ in 0..reading.u32()? {
        times.insert(reading.u64()?, reading.i64()?);
    }
    let mut queues = Vec::new();
    for _ in 0..reading.u32()? {
        queues.push(read_queue(&mut reading)?);
    }
    let base = Base::read(file, &mut reading)?;
    let checkpoint = Checkpoint { clean, epoch, end: log_end, log_start, times, queues };
    if reading.is_empty() { Ok((checkpoint, base)) } else { Err(damaged()) }
}

fn read_queue(reading: &mut Reading<'_>) -> io::Result<QueuePoint> {
    let topic = TopicName::from_stored(&reading.name()?).map_err(|_| damaged())?;
    let queue = QueueId::new(reading.u32()?).map_err(|_| damaged())?;
    let (base, min, end) = (reading.u64()?, reading.u64()?, reading.u64()?);
    let sound = base <= min && min <= end;
    if sound { Ok(QueuePoint { key: QueueKey::new(topic, queue), base, min, end }) } else { Err(damaged()) }
}
