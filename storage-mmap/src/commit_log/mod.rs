//! The commit log: one sequence of frames over files of one size. Everything else can be made again from it.

pub(crate) mod ahead;
pub(crate) mod checksum;
pub(crate) mod encoder;
pub(crate) mod format;
mod pieces;
pub(crate) mod recovery;
pub(crate) mod room;
pub(crate) mod segment;
mod window;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{ErrorKind, Result, StorageError};

use crate::commit_log::ahead::Ahead;
use crate::commit_log::encoder::Encoded;
use crate::commit_log::format::{FRAME_HEADER_BYTES, FrameHeader};
use crate::commit_log::room::{Room, RoomRules};
use crate::commit_log::segment::Segments;
use crate::commit_log::window::{MAX_MAPPED_FRAME_BYTES, Window};
use crate::files::{FileLayer, LayerFile, OpenMode};
use crate::health::Health;
use crate::settings::MmapSettings;

/// Room that stays free behind the last frame of every segment for the blank frame that ends it.
const END_BYTES: u64 = FRAME_HEADER_BYTES as u64;
/// A buffer that grew beyond this for one large batch is given back after it.
const KEPT_BUFFER_BYTES: usize = 8 << 20;

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
    segments: Arc<Segments>,
    epoch: u32,
    end: LogEnd,
    active: Arc<Room>,
    /// What whoever prepares room knows of this writer.
    ahead: Arc<Ahead>,
    /// Where the active segment is mapped for stores.
    window: Option<Window>,
    /// Whether the layer maps files for stores at all.
    maps: bool,
    /// Whether the frame that is being written goes into the window.
    into_window: bool,
    /// For frames that are written with a positioned write.
    buffer: Vec<u8>,
    /// Full segments that no sync has covered yet.
    sealed_unsynced: Vec<Arc<dyn LayerFile>>,
    /// Whether a segment was made since the directory was last synced.
    names_unsynced: bool,
    times: SegmentTimes,
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
        let active = Arc::new(Room::new(files, RoomRules::new(settings), start, file, end.position - start));
        let ahead = Arc::new(Ahead::new(Arc::clone(&segments), Arc::clone(&active), settings.prepare_bytes));
        let (window, buffer, sealed_unsynced, names_unsynced) = (None, Vec::new(), Vec::new(), true);
        let (maps, into_window) = (true, false);
        Ok(Self {
            segments,
            epoch,
            end,
            active,
            ahead,
            window,
            maps,
            into_window,
            buffer,
            sealed_unsynced,
            names_unsynced,
            times,
        })
    }

    /// What whoever prepares room has to know.
    pub(crate) fn ahead(&self) -> &Arc<Ahead> {
        &self.ahead
    }

    /// The segment that is being written, with the room in it.
    pub(crate) fn room(&self) -> Arc<Room> {
        Arc::clone(&self.active)
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
    /// comes before the first change. A frame behind which a sync is expected is written with a positioned write, which
    /// leaves the sync less to do; all others are stored into the mapped file, which copies nothing.
    ///
    /// # Errors
    /// `Invalid` for a frame that no segment can hold; `Full` when disk or positions are used up; `Io`, which
    /// poisons, when the log could not be moved on to the next segment.
    pub(crate) fn make_room(
        &mut self,
        frame_bytes: u64,
        expects_sync: bool,
        durable_upto: u64,
        health: &Health,
    ) -> Result<()> {
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
        if self.end.position - self.active.start + frame_bytes + END_BYTES > segment_bytes {
            self.roll(frame_bytes + END_BYTES, durable_upto, health)?;
        }
        let used = self.end.position - self.active.start;
        self.into_window = !expects_sync && self.has_window(used, frame_bytes);
        let (from, upto) = (used, used + frame_bytes);
        let room = if self.into_window { self.active.fill(upto) } else { self.active.claim(from, upto) };
        room.map_err(|error| no_room("apply", &self.active.path(), error, health))
    }

    /// Whether the place of a frame is mapped for stores, by now.
    fn has_window(&mut self, used: u64, frame_bytes: u64) -> bool {
        if !self.maps || frame_bytes > MAX_MAPPED_FRAME_BYTES {
            return false;
        }
        let start = self.active.start;
        if self.window.as_ref().is_some_and(|window| window.covers(start, used, frame_bytes)) {
            return true;
        }
        let ready = self.ahead.take_window().filter(|window| window.covers(start, used, frame_bytes));
        match ready.map_or_else(|| Window::open(&self.active, used), |ready| Ok(Some(ready))) {
            Ok(Some(window)) => {
                self.ahead.retire(self.window.replace(window));
                true
            }
            Ok(None) => {
                self.maps = false;
                false
            }
            Err(error) => {
                // As when the process has too many maps: the positioned write needs none.
                tracing::debug!(segment = self.active.path(), %error, "no map to store into");
                false
            }
        }
    }

    /// Ends this segment and goes on in the next one.
    fn roll(&mut self, needed: u64, durable_upto: u64, health: &Health) -> Result<()> {
        let segment_bytes = self.segments.segment_bytes();
        let used = self.end.position - self.active.start;
        let next_start = self.active.start + segment_bytes;
        let room = self.ahead.next().and_then(|next| next.take(needed).map(|()| next));
        let next = room
            .and_then(|next| self.active.claim(used, used + END_BYTES).map(|()| next))
            .map_err(|error| no_room("apply", &Segments::path(next_start), error, health))?;
        let header = FrameHeader {
            len: u32::try_from(segment_bytes - used).expect("a segment is at most 2 GiB"),
            blank: true,
            ..self.header(self.end.stored_at, durable_upto)
        };
        let (blank, chain) = header.encode();
        self.active
            .seal(|file| file.write_at(used, &[&blank]).and_then(|()| file.set_len(segment_bytes)))
            .map_err(|error| health.poison("apply", format!("ending {}", self.active.path()), error))?;
        let sealed = std::mem::replace(&mut self.active, next);
        self.ahead.retire(self.window.take());
        self.ahead.go_on_in(Arc::clone(&self.active));
        self.sealed_unsynced.push(Arc::clone(&sealed.file));
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

    /// The place of the next frame, of the size for which [`LogWriter::make_room`] has made room. What it holds before
    /// it is written may be anything.
    pub(crate) fn place(&mut self, frame_bytes: usize) -> &mut [u8] {
        let used = self.end.position - self.active.start;
        if let Some(window) = self.window.as_mut().filter(|_| self.into_window) {
            return window.bytes_mut(used, frame_bytes);
        }
        if self.buffer.len() < frame_bytes {
            self.buffer.resize(frame_bytes, 0);
        }
        &mut self.buffer[..frame_bytes]
    }

    /// Gives the frame whose items stand in the [`place`](LogWriter::place) its header, and moves the log's end behind
    /// it.
    ///
    /// # Errors
    /// `Io` with an unknown outcome, which poisons.
    pub(crate) fn append(
        &mut self,
        frame_bytes: usize,
        encoded: Encoded,
        stored_at: i64,
        durable_upto: u64,
        health: &Health,
    ) -> Result<()> {
        let len = u32::try_from(frame_bytes).expect("a frame fits a segment, which is at most 2 GiB");
        let Encoded { items, items_crc } = encoded;
        let (head, chain) = FrameHeader { len, items, items_crc, ..self.header(stored_at, durable_upto) }.encode();
        let used = self.end.position - self.active.start;
        if let Some(window) = self.window.as_mut().filter(|_| self.into_window) {
            window.finish(used, frame_bytes, &head);
        } else {
            self.write_buffer(used, frame_bytes, &head).map_err(|error| {
                health.poison("apply", format!("writing {}", self.segments.describe(self.end.position)), error)
            })?;
        }
        self.end = LogEnd { position: self.end.position + u64::from(len), chain, stored_at };
        self.times.insert(self.active.start, stored_at);
        self.active.use_to(used + u64::from(len));
        self.ahead.moved_on(u64::from(len), self.into_window);
        Ok(())
    }

    fn write_buffer(&mut self, used: u64, frame_bytes: usize, head: &[u8; FRAME_HEADER_BYTES]) -> io::Result<()> {
        self.buffer[..FRAME_HEADER_BYTES].copy_from_slice(head);
        self.active.file.write_at(used, &[&self.buffer[..frame_bytes]])?;
        if self.buffer.len() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// What must reach the disk so that everything up to the end is durable. The caller syncs it all or poisons.
    pub(crate) fn take_sync_work(&mut self) -> SyncWork {
        let mut files = std::mem::take(&mut self.sealed_unsynced);
        files.push(Arc::clone(&self.active.file));
        // A page that a sync has cleaned takes a fault of microseconds to be stored into again; a page that is not
        // mapped takes a tenth of that.
        self.ahead.retire(self.window.take());
        self.ahead.synced();
        SyncWork { upto: self.end.position, files, names: std::mem::take(&mut self.names_unsynced) }
    }
}

/// A full disk is a refusal and leaves everything as it was; any other failure to take room poisons.
pub(crate) fn no_room(operation: &'static str, path: &str, error: io::Error, health: &Health) -> StorageError {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        let context = format!("the disk has no room for {path} ({error}): free some space");
        return StorageError::not_stored(ErrorKind::Full, operation, context).with_source(error);
    }
    health.poison(operation, format!("taking room for {path}"), error)
}
