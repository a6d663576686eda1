//! The key-and-time index: which records of a topic carry a key, newest first.
//!
//! ```text
//!   add ──▶ recent (memory, bounded) ──flush──▶ active file ──full──▶ sealed files ──expire──▶ gone
//!                                                  └── STATE says how much of each file counts
//! ```
//!
//! The index is derived from the log and never trusted further than it vouches for itself: `STATE` (replaced as a
//! whole, with a checksum) names the files, how many entries of each count, and the log position up to which the log
//! has been indexed. Whatever does not fit together is deleted, and the log is replayed from the beginning. An entry
//! holds a hash of the key, so an answer is a list of *candidates*: the engine looks at the record itself.

mod file;
mod layout;
mod recent;
mod state;

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cuemq_storage_api::{LogPosition, Timestamp};

use crate::files::FileLayer;
use file::IndexFile;
use layout::Layout;
pub(crate) use layout::key_hash;
use recent::{Recent, RecentEntry};
use state::{FileState, State};

/// The directory of all index files.
pub(crate) const INDEX_DIRECTORY: &str = "index";

/// What shapes an index file. Both numbers are fixed for a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexSettings {
    /// Hash slots of a file, at least 1.
    pub(crate) slots: u32,
    /// Entries of a file, at least 2: number 0 is never used, as in RocketMQ.
    pub(crate) entries: u32,
}

/// The index over all topics. Adding is for one writer; looking up is for any thread, beside it.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    files: Arc<dyn FileLayer>,
    layout: Layout,
    /// What is not in the files yet. Locked before `kept`, never after it.
    recent: Mutex<Recent>,
    /// What counts in the files.
    kept: RwLock<State>,
    /// Held by the one that writes files.
    writer: Mutex<()>,
    /// `kept.covered_to`, without the lock.
    covered_to: AtomicU64,
    /// The first failed write or contradiction. From then on nothing is added and nothing is found, until the store is reopened.
    failure: OnceLock<(io::ErrorKind, String)>,
}

impl KeyIndex {
    /// Opens the index and brings it to a log that ends at `log_end`: entries at or above that position are cut.
    /// The caller then replays the log from [`covered_to`](Self::covered_to) on, through [`add`](Self::add).
    ///
    /// `is_clean` says that the store was closed in order with a log of that length. An index that covers all of it has
    /// then no chain that leads too far, and none is looked for: that would be a look at every slot.
    ///
    /// # Errors
    /// Only what the file layer answers; a damaged index is deleted and covers nothing.
    pub(crate) fn open(
        files: Arc<dyn FileLayer>,
        settings: IndexSettings,
        log_end: LogPosition,
        is_clean: bool,
    ) -> io::Result<Self> {
        let layout = Layout::new(settings);
        files.create_directory(INDEX_DIRECTORY)?;
        files.sync_directory("")?;
        let kept = match open_kept(&*files, layout, log_end.get(), is_clean) {
            Ok(Some(kept)) => kept,
            Ok(None) => start_anew(&*files, layout)?,
            Err(error) if is_damage(&error) => start_anew(&*files, layout)?,
            Err(error) => return Err(error),
        };
        Ok(Self {
            files,
            layout,
            recent: Mutex::new(Recent::default()),
            covered_to: AtomicU64::new(kept.covered_to),
            kept: RwLock::new(kept),
            writer: Mutex::new(()),
            failure: OnceLock::new(),
        })
    }

    /// The log position below which every record is in the files, so that no replay needs to look at it. It survives
    /// a power cut.
    pub(crate) fn covered_to(&self) -> LogPosition {
        LogPosition::new(self.covered_to.load(Ordering::Acquire))
    }

    /// Adds one key of one record. Positions and times never fall from call to call; a position that is covered
    /// already is ignored, so that a replay may begin too early. The entry can be found at once.
    ///
    /// When [`MAX_RECENT_ENTRIES`](recent::MAX_RECENT_ENTRIES) are waiting, this call writes them to the files; if that
    /// fails, the next [`flush`](Self::flush) says so.
    pub(crate) fn add(&self, topic: &str, key: &str, position: LogPosition, stored_at: Timestamp) {
        let entry = RecentEntry { hash: key_hash(topic, key), position: position.get(), stored_at };
        if position < self.covered_to() || self.check().is_err() {
            return;
        }
        let is_full = self.recent().push(entry);
        if is_full {
            // Other keys of this very record may still come, so it stays in memory. The failure, if there is one, is
            // kept in `failure`, where the next flush and every look-up find it.
            let _ = self.flush(position);
        }
    }

    /// Writes every entry below `covered_to` to the files, durably. The caller vouches that each record below that
    /// position has been added.
    ///
    /// # Errors
    /// What the file layer answered, now or in an earlier call. After an error the index gives no more answers
    /// until it is opened again, which replays what is missing.
    pub(crate) fn flush(&self, covered_to: LogPosition) -> io::Result<()> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        if covered_to <= self.covered_to() {
            return Ok(());
        }
        let entries = self.recent().begin_flush(covered_to.get());
        self.write(&entries, covered_to.get()).map_err(|error| self.fail(error))?;
        self.recent().end_flush();
        Ok(())
    }

    /// Shows the positions of records that may carry a key and were stored within a time range, newest first, each
    /// once, until `visit` breaks. Times are compared by the second, so the caller checks them again, as it checks the
    /// key.
    ///
    /// # Errors
    /// What the file layer answers; `InvalidData` when a file contradicts itself; an earlier failure. After a
    /// contradiction the index gives no more answers, and the next opening makes it again from the log.
    pub(crate) fn candidates(
        &self,
        topic: &str,
        key: &str,
        times: Range<Timestamp>,
        visit: &mut dyn FnMut(LogPosition) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.check()?;
        self.walk(topic, key, times, visit)
            .map_err(|error| if is_damage(&error) { self.distrust(error) } else { error })
    }

    /// Sees to it that the next opening does not trust the files either.
    fn distrust(&self, error: io::Error) -> io::Error {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.files.remove(state::STATE_PATH).and_then(|()| self.files.sync_directory(INDEX_DIRECTORY));
        if let Err(cause) = removed {
            tracing::warn!(store = self.files.describe(), %cause, "a damaged index could not be given up");
        }
        self.fail(error)
    }

    fn walk(
        &self,
        topic: &str,
        key: &str,
        times: Range<Timestamp>,
        visit: &mut dyn FnMut(LogPosition) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let hash = key_hash(topic, key);
        // Memory first: what moves to the files meanwhile is then seen twice, and `below` drops the second sight.
        let (recent, below) = self.recent().find(hash, &times);
        let mut last = None;
        let mut show = |position: u64| {
            if last.replace(position) == Some(position) {
                return ControlFlow::Continue(());
            }
            visit(LogPosition::new(position))
        };
        if recent.into_iter().try_for_each(&mut show).is_break() {
            return Ok(());
        }
        let kept = self.kept();
        for state in kept.files.iter().rev().filter(|file| file.may_hold(&times)) {
            let file = IndexFile::open(&*self.files, self.layout, state)?;
            let mut show_older = |position| if position < below { show(position) } else { ControlFlow::Continue(()) };
            if file.candidates(hash, &times, &mut show_older)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes the files whose every entry lies below a position. The newest file stays.
    ///
    /// # Errors
    /// What the file layer answers; the index fails as after [`flush`](Self::flush).
    pub(crate) fn expire_below(&self, position: LogPosition) -> io::Result<()> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let mut state = self.kept().clone();
        let newest = state.files.len().saturating_sub(1);
        let old = state.files[..newest].iter().take_while(|file| file.last_position < position.get()).count();
        if old == 0 {
            return Ok(());
        }
        let gone: Vec<FileState> = state.files.drain(..old).collect();
        self.remove(&state, &gone).map_err(|error| self.fail(error))
    }

    fn remove(&self, state: &State, gone: &[FileState]) -> io::Result<()> {
        state.write(&*self.files)?;
        // The lock keeps readers from opening a file between its loss and the new list.
        let mut kept = self.kept_mut();
        *kept = state.clone();
        gone.iter().try_for_each(|file| self.files.remove(&file.path()))
    }

    fn write(&self, entries: &[RecentEntry], covered_to: u64) -> io::Result<()> {
        let mut rest = entries;
        while !rest.is_empty() {
            rest = self.write_some(rest)?;
        }
        let mut state = self.kept().clone();
        state.covered_to = covered_to;
        state.write(&*self.files)?;
        *self.kept_mut() = state;
        self.covered_to.store(covered_to, Ordering::Release);
        Ok(())
    }

    /// Writes as many entries as the active file takes, and returns the others.
    fn write_some<'e>(&self, entries: &'e [RecentEntry]) -> io::Result<&'e [RecentEntry]> {
        let (mut state, is_new) = match self.kept().files.last() {
            Some(state) if state.used < self.layout.capacity() => (state.clone(), false),
            newest => (FileState::begin(newest, &entries[0]), true),
        };
        let file = if is_new {
            IndexFile::create(&*self.files, self.layout, &state)?
        } else {
            IndexFile::open(&*self.files, self.layout, &state)?
        };
        let room = usize::try_from(self.layout.capacity() - state.used).unwrap_or(usize::MAX);
        let (now, later) = entries.split_at(room.min(entries.len()));
        let links = file.write_entries(&mut state, now)?;
        {
            // Readers walk from the slots; under the lock they see either no new entry or all.
            let mut kept = self.kept_mut();
            file.write_links(&state, &links)?;
            if !is_new {
                kept.files.pop();
            }
            kept.files.push(state);
        }
        file.sync()?;
        Ok(later)
    }

    fn check(&self) -> io::Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some((kind, cause)) => Err(io::Error::new(*kind, format!("the index failed earlier: {cause}"))),
        }
    }

    fn fail(&self, error: io::Error) -> io::Error {
        self.failure.get_or_init(|| (error.kind(), error.to_string()));
        self.recent().clear();
        error
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> RwLockReadGuard<'_, State> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

/// What `STATE` vouches for, cut to the log's end; `None` when that is nothing or does not fit the files.
fn open_kept(files: &dyn FileLayer, layout: Layout, log_end: u64, is_clean: bool) -> io::Result<Option<State>> {
    let Some(mut state) = State::read(files, layout)? else { return Ok(None) };
    remove_unlisted(files, &state)?;
    let Some(active) = state.files.last_mut() else {
        state.covered_to = state.covered_to.min(log_end);
        return Ok(Some(state));
    };
    let file = IndexFile::open(files, layout, active)?;
    let may_lead_too_far = !is_clean || state.covered_to != log_end;
    if state.covered_to > log_end {
        if active.begin_position >= log_end {
            return Ok(None);
        }
        file.cut(active, log_end)?;
        state.covered_to = log_end;
        // Durable before a slot is touched: after a crash in between, the slots are brought to this state.
        state.write(files)?;
    }
    for listed in &state.files {
        IndexFile::open(files, layout, listed)?.check()?;
    }
    if let Some(active) = state.files.last().filter(|_| may_lead_too_far) {
        file.forget_above(active)?;
    }
    Ok(Some(state))
}

/// Files that a crash left half made: nothing in them counts.
fn remove_unlisted(files: &dyn FileLayer, state: &State) -> io::Result<()> {
    for name in files.list(INDEX_DIRECTORY)? {
        let path = format!("{INDEX_DIRECTORY}/{name}");
        if path != state::STATE_PATH && state.files.iter().all(|file| file.path() != path) {
            files.remove(&path)?;
        }
    }
    Ok(())
}

fn start_anew(files: &dyn FileLayer, layout: Layout) -> io::Result<State> {
    // First the list and then the files: no crash in between leaves a list of files that are being made again.
    files.remove(state::STATE_PATH)?;
    files.sync_directory(INDEX_DIRECTORY)?;
    for name in files.list(INDEX_DIRECTORY)? {
        files.remove(&format!("{INDEX_DIRECTORY}/{name}"))?;
    }
    files.sync_directory(INDEX_DIRECTORY)?;
    Ok(State::empty(layout))
}

#[cfg(test)]
mod tests;
