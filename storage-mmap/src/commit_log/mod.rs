//! The commit log: one sequence of frames over files of one size. Everything else can be made again from it.

pub(crate) mod format;
pub(crate) mod recovery;
pub(crate) mod segment;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{ErrorKind, Result, StorageError};

use crate::commit_log::format::{FRAME_HEADER_BYTES, FrameEncoder, FrameHeader};
use crate::commit_log::segment::Segments;
use crate::files::{FileLayer, LayerFile, OpenMode};
use crate::health::Health;
use crate::settings::MmapSettings;

/// Room that stays free behind the last frame of every segment for the blank frame that ends it.
const END_BYTES: u64 = FRAME_HEADER_BYTES as u64;

/// Where the log stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogEnd {
    /// Where the next frame begins.
    pub(crate) position: u64,
    /// The last frame's header checksum, which the next one carries.
    pub(crate) chain: u32,
    /// The last frame's time; stored times never fall.
    pub(crate) stored_at: i64,
}

impl LogEnd {
    /// The end of an empty log.
    pub(crate) const START: Self = Self { position: 0, chain: 0, stored_at: i64::MIN };
}

/// The last stored time of each segment, by where it begins.
pub(crate) type SegmentTimes = BTreeMap<u64, i64>;

/// The writing end of the log. Lives under the engine's writer lock.
#[derive(Debug)]
pub(crate) struct LogWriter {
    files: Arc<dyn FileLayer>,
    segments: Arc<Segments>,
    settings: LogSettings,
    epoch: u32,
    end: LogEnd,
    active: Active,
    /// The next segment, made but not used because the room for it was not complete.
    prepared: Option<Active>,
    /// Full segments that no sync has covered yet.
    sealed_unsynced: Vec<Arc<dyn LayerFile>>,
    /// Whether a segment was made since the directory was last synced.
    names_unsynced: bool,
    times: SegmentTimes,
}

#[derive(Clone, Copy, Debug)]
struct LogSettings {
    allocate_step_bytes: u64,
    disk_full_percent: u8,
}

#[derive(Debug)]
struct Active {
    start: u64,
    file: Arc<dyn LayerFile>,
    /// Bytes of the file that are surely backed by the disk.
    allocated: u64,
}

/// What one sync has to make durable.
#[derive(Debug)]
pub(crate) struct SyncWork {
    pub(crate) upto: u64,
    pub(crate) files: Vec<Arc<dyn LayerFile>>,
    pub(crate) names: bool,
}

impl LogWriter {
    /// Goes on writing at the end that recovery found.
    pub(crate) fn open(
        files: Arc<dyn FileLayer>,
        segments: Arc<Segments>,
        settings: &MmapSettings,
        epoch: u32,
        end: LogEnd,
        times: SegmentTimes,
    ) -> io::Result<Self> {
        let start = segments.start_of(end.position);
        let file = segments.open(start, OpenMode::Create)?;
        // What lies beyond the end was allocated or is a hole; taking the room again is cheap and certain.
        let active = Active { start, file, allocated: end.position - start };
        let settings = LogSettings {
            allocate_step_bytes: settings.allocate_step_bytes,
            disk_full_percent: settings.disk_full_percent,
        };
        let (prepared, sealed_unsynced, names_unsynced) = (None, Vec::new(), true);
        Ok(Self { files, segments, settings, epoch, end, active, prepared, sealed_unsynced, names_unsynced, times })
    }

    pub(crate) fn end(&self) -> LogEnd {
        self.end
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) fn times(&self) -> &SegmentTimes {
        &self.times
    }

    /// Where the segment being written begins.
    pub(crate) fn active_start(&self) -> u64 {
        self.active.start
    }

    /// Forgets segments that retention removes.
    pub(crate) fn forget_before(&mut self, log_start: u64) {
        self.times = self.times.split_off(&log_start);
    }

    /// Makes sure that a frame of this size can be written at the end, in this segment or the next. Every refusal
    /// comes before the first change.
    ///
    /// # Errors
    /// `Invalid` for a frame that no segment can hold; `Full` when disk or positions are used up; `Io`, which
    /// poisons, when the log could not be moved on to the next segment.
    pub(crate) fn make_room(&mut self, frame_bytes: u64, durable_upto: u64, health: &Health) -> Result<()> {
        let segment_bytes = self.segments.segment_bytes();
        if frame_bytes + END_BYTES > segment_bytes {
            let context = format!(
                "the batch takes {frame_bytes} bytes as one frame, more than the {} that fit with segment_bytes = \
                 {segment_bytes}: split the batch, or make the store with larger segments",
                segment_bytes - END_BYTES
            );
            return Err(StorageError::not_stored(ErrorKind::Invalid, "apply", context));
        }
        if self.end.position + frame_bytes + segment_bytes > MAX_POSITION {
            let context = format!("log positions are used up at {}: start a new store", self.end.position);
            return Err(StorageError::not_stored(ErrorKind::Full, "apply", context));
        }
        let used = self.end.position - self.active.start;
        let needed = used + frame_bytes + END_BYTES;
        if needed <= segment_bytes {
            let (files, settings) = (&*self.files, self.settings);
            return self.active.take_room(needed, segment_bytes, files, settings, health);
        }
        self.roll(frame_bytes + END_BYTES, durable_upto, health)
    }

    /// Ends this segment and goes on in the next one.
    fn roll(&mut self, needed: u64, durable_upto: u64, health: &Health) -> Result<()> {
        let segment_bytes = self.segments.segment_bytes();
        let used = self.end.position - self.active.start;
        let next_start = self.active.start + segment_bytes;
        let mut next = match self.prepared.take() {
            Some(prepared) => prepared,
            None => match self.segments.open(next_start, OpenMode::Create) {
                Ok(file) => Active { start: next_start, file, allocated: 0 },
                Err(error) => return Err(no_room("apply", &Segments::path(next_start), error, health)),
            },
        };
        let room = next
            .take_room(needed, segment_bytes, &*self.files, self.settings, health)
            .and_then(|()| self.active.take_room(used + END_BYTES, segment_bytes, &*self.files, self.settings, health));
        if let Err(error) = room {
            self.prepared = Some(next);
            return Err(error);
        }
        let header = FrameHeader {
            len: u32::try_from(segment_bytes - used).expect("a segment is at most 2 GiB"),
            blank: true,
            ..self.header(self.end.stored_at, durable_upto)
        };
        let (blank, chain) = header.encode();
        let sealed = &self.active.file;
        sealed
            .write_at(used, &[&blank])
            .and_then(|()| sealed.set_len(segment_bytes))
            .map_err(|error| health.poison("apply", format!("ending {}", Segments::path(self.active.start)), error))?;
        let sealed = std::mem::replace(&mut self.active, next);
        self.sealed_unsynced.push(sealed.file);
        self.names_unsynced = true;
        self.end = LogEnd { position: next_start, chain, stored_at: self.end.stored_at };
        Ok(())
    }

    /// A header for the next frame, but for what the encoder fills in.
    fn header(&self, stored_at: i64, durable_upto: u64) -> FrameHeader {
        FrameHeader {
            len: 0,
            items: 0,
            epoch: self.epoch,
            previous: self.end.chain,
            position: self.end.position,
            durable_upto: durable_upto.min(self.end.position),
            stored_at,
            items_crc: 0,
            blank: false,
        }
    }

    /// Writes the encoded frame with one positioned write, for which [`LogWriter::make_room`] has made room.
    ///
    /// # Errors
    /// `Io` with an unknown outcome, which poisons.
    pub(crate) fn append(
        &mut self,
        encoder: &mut FrameEncoder,
        stored_at: i64,
        durable_upto: u64,
        health: &Health,
    ) -> Result<()> {
        let (frame, chain) = encoder.finish(self.header(stored_at, durable_upto));
        let used = self.end.position - self.active.start;
        self.active.file.write_at(used, &[frame]).map_err(|error| {
            health.poison("apply", format!("writing {}", self.segments.describe(self.end.position)), error)
        })?;
        self.end = LogEnd { position: self.end.position + frame.len() as u64, chain, stored_at };
        self.times.insert(self.active.start, stored_at);
        Ok(())
    }

    /// What must reach the disk so that everything up to the end is durable. The caller syncs it all or poisons.
    pub(crate) fn take_sync_work(&mut self) -> SyncWork {
        let mut files = std::mem::take(&mut self.sealed_unsynced);
        files.push(Arc::clone(&self.active.file));
        SyncWork { upto: self.end.position, files, names: std::mem::take(&mut self.names_unsynced) }
    }
}

impl Active {
    /// Takes room from the disk up to `needed` bytes of the file, in steps.
    fn take_room(
        &mut self,
        needed: u64,
        segment_bytes: u64,
        files: &dyn FileLayer,
        settings: LogSettings,
        health: &Health,
    ) -> Result<()> {
        if needed <= self.allocated {
            return Ok(());
        }
        let path = Segments::path(self.start);
        let upto = needed.next_multiple_of(settings.allocate_step_bytes).min(segment_bytes);
        let space = files.disk_space().map_err(|error| no_room("apply", &path, error, health))?;
        let used = space.total_bytes.saturating_sub(space.free_bytes);
        if u128::from(used) * 100 > u128::from(space.total_bytes) * u128::from(settings.disk_full_percent) {
            let context = format!(
                "the disk of {} has {} of {} bytes free, fuller than disk_full_percent = {}: free some space",
                files.describe(),
                space.free_bytes,
                space.total_bytes,
                settings.disk_full_percent
            );
            return Err(StorageError::not_stored(ErrorKind::Full, "apply", context));
        }
        self.file
            .allocate(self.allocated, upto - self.allocated)
            .map_err(|error| no_room("apply", &path, error, health))?;
        self.allocated = upto;
        Ok(())
    }
}

/// A full disk is a refusal and leaves everything as it was; any other failure to take room poisons.
pub(crate) fn no_room(operation: &'static str, path: &str, error: io::Error, health: &Health) -> StorageError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let context = format!("the disk has no room for {path}: free some space");
        return StorageError::not_stored(ErrorKind::Full, operation, context).with_source(error);
    }
    health.poison(operation, format!("taking room for {path}"), error)
}
