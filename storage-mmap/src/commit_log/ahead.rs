//! What the writer and whoever prepares room for it know of each other.
//!
//! The writer never waits for preparation; it only finds more or less of it. Only a step of filling that is under way
//! holds it up, for as long as the same step would take the writer itself.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use crate::commit_log::room::{FILL_STEP_BYTES, Room};
use crate::commit_log::segment::Segments;
use crate::commit_log::window::{WINDOW_BYTES, Window};
use crate::files::OpenMode;

/// The next window is made ready once so much was written since the last sync: with less than that, another sync is to be
/// expected before the window is used, which then has its pages to write.
const WINDOW_AFTER_BYTES: u64 = 2 << 20;
/// Where so many bytes come to a sync, zeros that are filled ahead cost it more than bytes that are new to the file do.
/// Measured: 1.2 to 1.4 times as many messages with 1 MiB to a sync, a tenth fewer with 330 KiB.
const LARGE_SYNC_BYTES: u64 = 512 << 10;
/// Before a sync of so many bytes room is taken for as many more. Measured: while 300 MB were written out, taking 16 MiB waited
/// for 100 to 270 ms, in which the file system read from the disk where it has room, and then all room was used up.
const TAKE_BEFORE_SYNC_OF_BYTES: u64 = 8 << 20;
/// A log that was not written to for so long is at rest: then its reserve is filled, which a sync would have to wait for.
const REST: Duration = Duration::from_millis(5);
/// Windows that are used up and still mapped, at most.
const MAX_RETIRED_WINDOWS: usize = 4;

/// Steps of the reserve that are filled before they are synced: a sync that is wanted meanwhile waits for no more.
const RESERVE_STEPS: usize = 2;

/// A log to which nothing is written.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Where the log ended when it came to rest.
    end: u64,
}

/// Shared by the writer and the thread that prepares room.
#[derive(Debug)]
pub(crate) struct Ahead {
    segments: Arc<Segments>,
    room: Mutex<Arc<Room>>,
    /// The next segment, made before the writer needs it or when the room for it was not complete.
    next: Mutex<Option<Arc<Room>>>,
    /// The next window, its pages ready for stores.
    window: Mutex<Option<Window>>,
    /// Windows that are used up. Taking a map down costs more than a batch, so the thread does it.
    retired: Mutex<Vec<Window>>,
    /// The log position for which a window was last made ready.
    window_for: AtomicU64,
    /// Bytes written since the last sync.
    unsynced: AtomicU64,
    /// Bytes that had been written between the last sync and the one before it.
    last_synced: AtomicU64,
    /// Bytes of frames that were written with positioned writes since the store was opened.
    written: AtomicU64,
    /// Whether the last frame was stored into the map, which needs filled room.
    stores: AtomicBool,
    /// Most bytes to fill ahead.
    most: u64,
    /// Whether the thread waits to be woken.
    sleeps: AtomicBool,
    /// Whether it waits for the log to come to rest, and looks by itself whether it did.
    rests: AtomicBool,
    thread: OnceLock<Thread>,
}

/// What to prepare next.
#[derive(Debug)]
pub(crate) enum Task {
    /// A step of room.
    Fill(Arc<Room>),
    /// A window at this place of the segment.
    Map(Arc<Room>, u64),
}

impl Ahead {
    pub(crate) fn new(segments: Arc<Segments>, room: Arc<Room>, most: u64) -> Self {
        Self {
            segments,
            room: Mutex::new(room),
            next: Mutex::new(None),
            window: Mutex::new(None),
            retired: Mutex::default(),
            window_for: AtomicU64::new(0),
            unsynced: AtomicU64::new(0),
            last_synced: AtomicU64::new(0),
            written: AtomicU64::new(0),
            stores: AtomicBool::new(false),
            most,
            sleeps: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }

    // No guarded value can be left half changed by a panic.
    fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn window(&self) -> MutexGuard<'_, Option<Window>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_slot(&self) -> MutexGuard<'_, Option<Arc<Room>>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment behind the one that is written to, which is made unless it was before. There is only one of it, because
    /// all that take room in one file have to know of each other.
    ///
    /// # Errors
    /// What the file layer answers.
    pub(crate) fn next(&self) -> io::Result<Arc<Room>> {
        let mut next = self.next_slot();
        if let Some(made) = next.as_ref() {
            return Ok(Arc::clone(made));
        }
        // It stays the one that is written to as long as the slot is held.
        let room = self.room();
        let file = self.segments.open(room.start + room.segment_bytes(), OpenMode::Create)?;
        Ok(Arc::clone(next.insert(Arc::new(room.next(file)))))
    }

    /// The writer has begun the next segment.
    pub(crate) fn go_on_in(&self, room: Arc<Room>) {
        let mut next = self.next_slot();
        *next = None;
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
        *self.window() = None;
    }

    /// The writer has written a frame of this size, or stored it into the map.
    pub(crate) fn moved_on(&self, frame_bytes: u64, stored: bool) {
        // The writer's lock is held by whoever changes this number.
        let unsynced = self.unsynced.load(Ordering::Relaxed) + frame_bytes;
        self.unsynced.store(unsynced, Ordering::Relaxed);
        if !stored {
            self.written.store(self.written.load(Ordering::Relaxed) + frame_bytes, Ordering::Relaxed);
        }
        self.stores.store(stored, Ordering::Relaxed);
        if self.sleeps.load(Ordering::Relaxed) {
            self.wake_if_due();
        }
    }

    /// A sync of all that was written begins. A window that is ready was written to by that, in the eyes of the sync.
    pub(crate) fn synced(&self) {
        let written = self.unsynced.swap(0, Ordering::Relaxed);
        if written > 0 {
            self.last_synced.store(written, Ordering::Relaxed);
        }
        let ready = self.window().take();
        self.retire(ready);
    }

    /// Takes room for what may be written while a large sync keeps the disk busy: as much again as it writes, in the next
    /// segment too. For the thread that syncs, after [`synced`](Ahead::synced).
    ///
    /// # Errors
    /// What the file layer answers; the writer meets the cause if it lasts.
    pub(crate) fn take_for_sync(&self) -> io::Result<()> {
        let written = self.last_synced.load(Ordering::Relaxed);
        if written < TAKE_BEFORE_SYNC_OF_BYTES {
            return Ok(());
        }
        let room = self.room();
        let upto = room.used().saturating_add(written);
        room.take(upto)?;
        let beyond = upto.saturating_sub(room.segment_bytes());
        if beyond > 0 { self.next()?.take(beyond) } else { Ok(()) }
    }

    /// The next window, if it is ready.
    pub(crate) fn take_window(&self) -> Option<Window> {
        self.window().take()
    }

    /// Takes a window that is used up off the writer.
    pub(crate) fn retire(&self, window: Option<Window>) {
        let Some(window) = window else { return };
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the thread, or while it is behind, the writer takes the map down by itself.
        if self.thread.get().is_some() && retired.len() < MAX_RETIRED_WINDOWS {
            retired.push(window);
        }
    }

    /// Takes down the maps of windows that are used up.
    pub(crate) fn take_down(&self) {
        let retired = std::mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner));
        drop(retired);
    }

    /// Bytes that should be filled beyond what is used: as much again as was written since the last sync, so that a
    /// sync never has much more to write than what it is for. Nothing where frames are written and not stored and
    /// syncs are large: zeros would only be more to write.
    fn wanted(&self) -> u64 {
        let is_large = self.last_synced.load(Ordering::Relaxed) >= LARGE_SYNC_BYTES;
        if is_large && !self.stores.load(Ordering::Relaxed) {
            return 0;
        }
        self.unsynced.load(Ordering::Relaxed).max(FILL_STEP_BYTES).min(self.most)
    }

    /// Bytes that a log whose frames are written keeps filled and synced ahead when it comes to rest: as many as it has
    /// written so far. A frame that overwrites them is synced in two thirds of the time of one whose room is only taken.
    fn reserve(&self) -> u64 {
        if self.stores.load(Ordering::Relaxed) { 0 } else { self.written.load(Ordering::Relaxed).min(self.most) }
    }

    /// Whether half of the reserve is used up.
    pub(crate) fn lacks_reserve(&self) -> bool {
        is_low(&self.room(), self.reserve())
    }

    /// Waits until somebody wakes the thread or the log may have come to rest; returns where it has, if so.
    pub(crate) fn rest(&self, is_idle: impl FnOnce() -> bool) -> Option<Rest> {
        let end = self.room().end();
        self.rests.store(true, Ordering::SeqCst);
        let undisturbed = self.wait(is_idle, || std::thread::park_timeout(REST));
        self.rests.store(false, Ordering::SeqCst);
        let rest = Rest { end };
        (undisturbed && self.lasts(&rest)).then_some(rest)
    }

    /// Whether nothing was written since the log came to rest, and all before is synced.
    fn lasts(&self, rest: &Rest) -> bool {
        self.unsynced.load(Ordering::Relaxed) == 0 && self.room().end() == rest.end
    }

    /// Fills a step of the reserve; false when it is complete, or the log is no longer at rest.
    ///
    /// # Errors
    /// What the file layer answers; then no more is filled in this segment.
    pub(crate) fn fill_reserve(&self, rest: &Rest) -> io::Result<bool> {
        let room = self.room();
        if room.lead() >= self.reserve() || room.is_done() {
            return Ok(false);
        }
        for _ in 0..RESERVE_STEPS {
            if !self.lasts(rest) {
                return Ok(false);
            }
            room.fill_ahead()?;
        }
        Ok(true)
    }

    /// Whether so much was written since the last sync that the next one is not expected soon.
    fn is_between_syncs(&self) -> bool {
        self.unsynced.load(Ordering::Relaxed) >= WINDOW_AFTER_BYTES
    }

    /// Where the next window is due: it is filled, none was made ready for it, and no sync is to be expected soon.
    fn due_window(&self, room: &Room) -> Option<u64> {
        let next = (room.used() / WINDOW_BYTES + 1) * WINDOW_BYTES;
        let is_due = self.is_between_syncs()
            && next < room.segment_bytes()
            && self.window_for.load(Ordering::Relaxed) < room.start + next
            && room.is_filled_to(next + WINDOW_BYTES);
        is_due.then_some(next)
    }

    /// What is worth doing now. Room comes first while the writer could run into its end, then the next window.
    pub(crate) fn task(&self) -> Option<Task> {
        let room = self.room();
        let (lead, wanted) = (room.lead(), self.wanted());
        let is_filling = lead < wanted && !room.is_done();
        if is_filling && lead < 2 * WINDOW_BYTES {
            return Some(Task::Fill(room));
        }
        if let Some(next) = self.due_window(&room) {
            return Some(Task::Map(room, next));
        }
        is_filling.then_some(Task::Fill(room))
    }

    /// Does one task.
    ///
    /// # Errors
    /// What the file layer answers; the same task is then not given again in this segment.
    pub(crate) fn carry_out(&self, task: Task) -> io::Result<()> {
        match task {
            Task::Fill(room) => room.fill_ahead(),
            Task::Map(room, at) => {
                self.window_for.store(room.start + at, Ordering::Relaxed);
                let Some(mut window) = Window::open(&room, at)? else { return Ok(()) };
                window.populate();
                let mut slot = self.window();
                // A sync that came in between may have cleaned the pages.
                if self.is_between_syncs() {
                    *slot = Some(window);
                }
                Ok(())
            }
        }
    }

    /// Waits on the engine's thread until it is woken, unless there is something to do.
    pub(crate) fn sleep(&self, is_idle: impl FnOnce() -> bool) {
        self.wait(is_idle, std::thread::park);
    }

    /// Parks unless there is something to do; true when it did, and nobody woke it.
    fn wait(&self, is_idle: impl FnOnce() -> bool, park: impl FnOnce()) -> bool {
        let _ = self.thread.set(std::thread::current());
        self.sleeps.store(true, Ordering::SeqCst);
        let idle = is_idle();
        if idle {
            park();
        }
        self.sleeps.swap(false, Ordering::SeqCst) && idle
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        if self.sleeps.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Half of what is wanted or of the reserve is used up, or a window is due.
    fn wake_if_due(&self) {
        let room = self.room();
        let resting = self.rests.load(Ordering::Relaxed);
        let wanted = if resting { self.wanted() } else { self.wanted().max(self.reserve()) };
        if is_low(&room, wanted) || self.due_window(&room).is_some() {
            self.wake();
        }
    }
}

/// Whether half of so many bytes ahead is used up, and there is more to fill.
fn is_low(room: &Room, wanted: u64) -> bool {
    room.lead() < wanted / 2 && !room.is_done()
}
