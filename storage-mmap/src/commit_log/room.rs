//! Room in one segment: taken from the disk, and filled with zeros, ahead of what is written.
//!
//! ```text
//!   frames ......│ filled: zeros, written once │ taken: the disk has promised it │ nothing, up to the segment's end
//! ```
//! A frame that is stored into the map needs filled room; one that is written with a positioned write only taken room.
//! Filling is done in small steps by the preparing thread, or by the writer when it finds none. Nothing is ever filled
//! below what was filled or claimed before, so zeros never meet a frame.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::commit_log::segment::Segments;
use crate::files::{FileLayer, LayerFile};
use crate::settings::MmapSettings;

/// Room is filled in steps of at most this many bytes: the writer never waits for more.
pub(crate) const FILL_STEP_BYTES: u64 = 256 << 10;
/// The zeros that fill room: never written to, so the operating system backs all of them with one page.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
const _: () = assert!(ZEROS.len() as u64 == FILL_STEP_BYTES, "one step is one write of the zeros");

/// The segment that is written to, with the room in it.
#[derive(Debug)]
pub(crate) struct Room {
    /// Where the segment begins in the log.
    pub(crate) start: u64,
    pub(crate) file: Arc<dyn LayerFile>,
    files: Arc<dyn FileLayer>,
    rules: RoomRules,
    /// Held by whoever fills room, or says that it will be written over.
    filling: Mutex<()>,
    /// Held by whoever takes room, which may wait for the disk; taken behind `filling`.
    taking: Mutex<()>,
    /// Bytes of the file that are surely backed by the disk.
    taken: AtomicU64,
    /// Bytes of the file that were written: frames, then zeros.
    filled: AtomicU64,
    /// Bytes of the file that hold frames.
    used: AtomicU64,
    /// Filling failed: the writer will meet the cause if it lasts.
    gave_up: AtomicBool,
}

/// What taking room goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomRules {
    segment_bytes: u64,
    allocate_step_bytes: u64,
    disk_full_percent: u8,
}

impl RoomRules {
    pub(crate) fn new(settings: &MmapSettings) -> Self {
        Self {
            segment_bytes: settings.segment_bytes,
            allocate_step_bytes: settings.allocate_step_bytes,
            disk_full_percent: settings.disk_full_percent,
        }
    }
}

impl Room {
    /// The room of a segment whose first `used` bytes hold frames. What lies beyond was taken or is a hole; taking it
    /// again is cheap and certain.
    pub(crate) fn new(
        files: Arc<dyn FileLayer>,
        rules: RoomRules,
        start: u64,
        file: Arc<dyn LayerFile>,
        used: u64,
    ) -> Self {
        let at = || AtomicU64::new(used);
        let (filling, taking, gave_up) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self { start, file, files, rules, filling, taking, taken: at(), filled: at(), used: at(), gave_up }
    }

    /// The room of the segment behind this one, of which nothing is used.
    pub(crate) fn next(&self, file: Arc<dyn LayerFile>) -> Self {
        Self::new(Arc::clone(&self.files), self.rules, self.start + self.rules.segment_bytes, file, 0)
    }

    /// Bytes of the file once it is full.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.rules.segment_bytes
    }

    /// Bytes of the file that hold frames.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Where the log ends.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.used()
    }

    /// Bytes beyond the frames that are filled.
    pub(crate) fn lead(&self) -> u64 {
        self.filled.load(Ordering::Acquire).saturating_sub(self.used())
    }

    /// Whether a range of the file is filled up to here, or up to the segment's end.
    pub(crate) fn is_filled_to(&self, upto: u64) -> bool {
        self.filled.load(Ordering::Acquire) >= upto.min(self.rules.segment_bytes)
    }

    /// Whether nothing is left to fill, or filling has failed.
    pub(crate) fn is_done(&self) -> bool {
        self.is_filled_to(self.rules.segment_bytes) || self.gave_up.load(Ordering::Relaxed)
    }

    /// Says that frames were written up to here.
    pub(crate) fn use_to(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    // Neither guards a value: the numbers are atomic, and each is raised after what it speaks of is done.
    fn filling(&self) -> MutexGuard<'_, ()> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taking(&self) -> MutexGuard<'_, ()> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room up to `upto` for a positioned write of everything from `from` on, over which no zeros come any more.
    ///
    /// # Errors
    /// `StorageFull`, with nothing changed; what the file layer answers.
    pub(crate) fn claim(&self, from: u64, upto: u64) -> io::Result<()> {
        if upto <= self.filled.load(Ordering::Acquire) {
            return Ok(());
        }
        let _filling = self.filling();
        self.take(upto)?;
        // From here on the frame may be written: whoever fills next begins behind it.
        debug_assert!(from <= self.filled.load(Ordering::Acquire), "frames lie behind each other");
        self.filled.fetch_max(upto, Ordering::AcqRel);
        Ok(())
    }

    /// Takes room up to `upto` and fills it.
    ///
    /// # Errors
    /// `StorageFull`, with nothing changed that anybody could see; what the file layer answers.
    pub(crate) fn fill(&self, upto: u64) -> io::Result<()> {
        if upto <= self.filled.load(Ordering::Acquire) {
            return Ok(());
        }
        let _filling = self.filling();
        while self.filled.load(Ordering::Acquire) < upto {
            self.fill_step()?;
        }
        Ok(())
    }

    /// Fills one step more, for whoever prepares room ahead of the writer.
    ///
    /// # Errors
    /// As [`Room::fill`]; then the writer goes on by itself in this segment.
    pub(crate) fn fill_ahead(&self) -> io::Result<()> {
        let _filling = self.filling();
        self.fill_step().inspect_err(|_| self.gave_up.store(true, Ordering::Relaxed))
    }

    /// One step; the caller holds the lock.
    fn fill_step(&self) -> io::Result<()> {
        let from = self.filled.load(Ordering::Acquire);
        let step = FILL_STEP_BYTES.min(self.rules.allocate_step_bytes);
        let upto = (from + 1).next_multiple_of(step).min(self.rules.segment_bytes);
        if from >= upto {
            return Ok(());
        }
        self.take(upto)?;
        let zeros = usize::try_from(upto - from).ok().and_then(|len| ZEROS.get(..len));
        self.file.write_at(from, &[zeros.expect("a step is no longer than the zeros")])?;
        self.filled.store(upto, Ordering::Release);
        Ok(())
    }

    /// Takes room from the disk up to `needed` bytes of the file, in steps; what lies beyond the segment is left out.
    ///
    /// # Errors
    /// `StorageFull`, with nothing changed; what the file layer answers.
    pub(crate) fn take(&self, needed: u64) -> io::Result<()> {
        let needed = needed.min(self.rules.segment_bytes);
        if needed <= self.taken.load(Ordering::Acquire) {
            return Ok(());
        }
        let _taking = self.taking();
        let taken = self.taken.load(Ordering::Acquire);
        if needed <= taken {
            return Ok(());
        }
        let upto = needed.next_multiple_of(self.rules.allocate_step_bytes).min(self.rules.segment_bytes);
        let space = self.files.disk_space()?;
        let used = space.total_bytes.saturating_sub(space.free_bytes);
        if u128::from(used) * 100 > u128::from(space.total_bytes) * u128::from(self.rules.disk_full_percent) {
            let context = format!(
                "the disk of {} has {} of {} bytes free, fuller than disk_full_percent = {}",
                self.files.describe(),
                space.free_bytes,
                space.total_bytes,
                self.rules.disk_full_percent
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, context));
        }
        self.file.allocate(taken, upto - taken)?;
        self.taken.store(upto, Ordering::Release);
        Ok(())
    }

    /// Has `end` give the file its last length, after which no room is taken in it any more: taking that fails sets the
    /// length back to what it was.
    ///
    /// # Errors
    /// What `end` answers.
    pub(crate) fn seal(&self, end: impl FnOnce(&dyn LayerFile) -> io::Result<()>) -> io::Result<()> {
        let _taking = self.taking();
        end(&*self.file)?;
        self.taken.store(self.rules.segment_bytes, Ordering::Release);
        Ok(())
    }

    /// The path of the segment, for messages.
    pub(crate) fn path(&self) -> String {
        Segments::path(self.start)
    }
}
