//! The file layer in memory, for tests: it fails on request, and it can show what a power cut would leave.
//!
//! ```text
//! let files = MemoryFiles::new();
//! files.start_recording();
//! // ... a store works on `files` ...
//! let mut history = files.history();
//! let mut choices = SeededChoices::new(7);
//! history.advance_to(history.end() / 2);
//! let after_the_crash = history.crash(&mut choices);      // a layer of its own, ready to be opened
//! ```

mod choices;
mod disk;
mod faults;
mod pages;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

pub use choices::{Choices, EverythingWritten, NothingUnsynced, SeededChoices};
use disk::{Disk, FileId, NameChange, Operation, parent};
pub use faults::{FaultEffect, FaultTarget, FileCall};
use faults::{Faults, injected};

use super::{DiskSpace, FileLayer, LayerFile, LockGuard, MappedRegion, OpenMode, WritableRegion};
use view::{Region, Stores};

/// Room on a fresh disk in memory; [`MemoryFiles::limit_room`] sets another.
const DEFAULT_ROOM_BYTES: u64 = 1 << 40;
/// Most operations in a recording; beyond it the oldest are forgotten (crashes before them cannot be shown any more).
const MAX_RECORDED_OPERATIONS: usize = 1 << 20;
/// Most written bytes in a recording; beyond it the oldest operations are forgotten.
const MAX_RECORDED_BYTES: usize = 512 << 20;

/// A directory in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryFiles {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    room_bytes: u64,
    handles: BTreeMap<FileId, usize>,
    locked: BTreeSet<String>,
    faults: Faults,
    recording: Option<History>,
    maps_for_writing: bool,
    read_on: Option<(String, u64)>,
}

impl Default for MemoryFiles {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryFiles {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::over(Disk::default())
    }

    fn over(disk: Disk) -> Self {
        let shared = Shared {
            disk,
            room_bytes: DEFAULT_ROOM_BYTES,
            handles: BTreeMap::new(),
            locked: BTreeSet::new(),
            faults: Faults::default(),
            recording: None,
            maps_for_writing: false,
            read_on: None,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// What a power cut at this moment could leave, as a directory of its own without locks, faults or recording.
    #[must_use]
    pub fn crash(&self, choices: &mut dyn Choices) -> Self {
        Self::over(self.shared().disk.crash(choices))
    }

    /// Records every change from now on, so that crashes at earlier moments can be shown. Forgets what was recorded.
    pub fn start_recording(&self) {
        let mut shared = self.shared();
        let first = shared.recording.as_ref().map_or(0, History::end);
        shared.recording =
            Some(History { disk: shared.disk.clone(), at: first, operations: VecDeque::new(), bytes: 0 });
    }

    /// The number of changes since recording was first started: the moment to give to [`History::advance_to`].
    #[must_use]
    pub fn moment(&self) -> u64 {
        self.shared().recording.as_ref().map_or(0, History::end)
    }

    /// A copy of the recording; empty at the present moment if there is none.
    #[must_use]
    pub fn history(&self) -> History {
        let shared = self.shared();
        let present = || History { disk: shared.disk.clone(), at: 0, operations: VecDeque::new(), bytes: 0 };
        shared.recording.clone().unwrap_or_else(present)
    }

    /// Arms a fault.
    ///
    /// # Panics
    /// With more than 64 armed.
    pub fn fail(&self, target: FaultTarget, effect: FaultEffect) {
        self.shared().faults.arm(target, effect);
    }

    /// Disarms every fault.
    pub fn clear_faults(&self) {
        self.shared().faults.clear();
    }

    /// Calls of every kind so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared().faults.calls()
    }

    /// The file and the offset behind which a reader said last that it may go on.
    #[must_use]
    pub fn last_read_on(&self) -> Option<(String, u64)> {
        self.shared().read_on.clone()
    }

    /// Lets files be mapped for stores, which they are not at first. Stores are recorded like writes, in pieces.
    #[must_use]
    pub fn mapped_for_writing(self) -> Self {
        self.shared().maps_for_writing = true;
        self
    }

    /// Sets the size of the disk. Allocations and writes beyond it are `StorageFull`.
    pub fn limit_room(&self, bytes: u64) {
        self.shared().room_bytes = bytes;
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // A panic of a test elsewhere leaves whole operations behind, never half of one.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn apply(&mut self, operation: Operation) {
        self.disk.apply(&operation);
        if let Some(recording) = &mut self.recording {
            recording.push(operation);
        }
    }

    /// Lets a fault have its way: an error to return, or `Pretend` and `ShortWrite` for the caller to carry out.
    fn meet(&mut self, call: FileCall, path: &str) -> io::Result<Option<FaultEffect>> {
        match self.faults.meet(call) {
            Some(FaultEffect::Fail(kind)) => Err(injected(kind, call, path)),
            Some(FaultEffect::ShortWrite(_, kind)) if call != FileCall::Write => Err(injected(kind, call, path)),
            other => Ok(other),
        }
    }

    fn take_room(&self, file: FileId, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(self.disk.room_of(file));
        if more > 0 && self.disk.room() + more > self.room_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn check_parent(&self, path: &str) -> io::Result<()> {
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is no name within a store")));
        }
        if !self.disk.has_directory(parent(path)) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path}: its directory does not exist")));
        }
        Ok(())
    }

    fn open(&mut self, path: &str, mode: OpenMode) -> io::Result<FileId> {
        self.check_parent(path)?;
        if self.disk.has_directory(path) {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, path.to_owned()));
        }
        if let Some(file) = self.disk.file(path) {
            return Ok(file);
        }
        if mode == OpenMode::Existing {
            return Err(io::Error::new(io::ErrorKind::NotFound, path.to_owned()));
        }
        let file = self.disk.fresh();
        self.apply(Operation::Name(NameChange::Create { path: path.to_owned(), file }));
        Ok(file)
    }
}

impl FileLayer for MemoryFiles {
    fn create_directory(&self, path: &str) -> io::Result<()> {
        let mut shared = self.shared();
        shared.meet(FileCall::CreateDirectory, path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for directory in ends.map(|end| &path[..end]).filter(|_| !path.is_empty()) {
            shared.check_parent(directory)?;
            if shared.disk.file(directory).is_some() {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, directory.to_owned()));
            }
            if !shared.disk.has_directory(directory) {
                shared.apply(Operation::Name(NameChange::MakeDirectory { path: directory.to_owned() }));
            }
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut shared = self.shared();
        shared.meet(FileCall::List, path)?;
        Ok(shared.disk.children(path))
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        let mut shared = self.shared();
        shared.meet(FileCall::Open, path)?;
        let id = shared.open(path, mode)?;
        drop(shared);
        Ok(Arc::new(Handle::new(self.clone(), id, path)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut shared = self.shared();
        shared.meet(FileCall::Rename, from)?;
        shared.check_parent(to)?;
        let file = shared.disk.file(from).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, from.to_owned()))?;
        if from != to {
            shared.apply(Operation::Name(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), file }));
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut shared = self.shared();
        shared.meet(FileCall::Remove, path)?;
        if shared.disk.has_directory(path) {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, path.to_owned()));
        }
        if shared.disk.file(path).is_some() {
            shared.apply(Operation::Name(NameChange::Remove { path: path.to_owned() }));
        }
        Ok(())
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        let mut shared = self.shared();
        shared.meet(FileCall::Remove, path)?;
        if !shared.disk.children(path).is_empty() {
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, path.to_owned()));
        }
        if !path.is_empty() && shared.disk.has_directory(path) {
            shared.apply(Operation::Name(NameChange::RemoveDirectory { path: path.to_owned() }));
        }
        Ok(())
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        let mut shared = self.shared();
        if shared.meet(FileCall::SyncDirectory, path)?.is_some() {
            return Ok(());
        }
        if !shared.disk.has_directory(path) {
            return Err(io::Error::new(io::ErrorKind::NotFound, path.to_owned()));
        }
        shared.apply(Operation::SyncDirectory { path: path.to_owned() });
        let Shared { disk, handles, .. } = &mut *shared;
        disk.collect(|file| handles.contains_key(&file));
        Ok(())
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn LockGuard>> {
        let mut shared = self.shared();
        shared.meet(FileCall::Lock, path)?;
        shared.open(path, OpenMode::Create)?;
        if !shared.locked.insert(path.to_owned()) {
            let text = format!("{path} is held by process {}", std::process::id());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
        }
        Ok(Box::new(HeldLock { files: self.clone(), path: path.to_owned() }))
    }

    fn disk_space(&self) -> io::Result<DiskSpace> {
        let mut shared = self.shared();
        shared.meet(FileCall::DiskSpace, "")?;
        let total_bytes = shared.room_bytes;
        Ok(DiskSpace { total_bytes, free_bytes: total_bytes.saturating_sub(shared.disk.room()) })
    }

    fn describe(&self) -> String {
        "a directory in memory".to_owned()
    }
}

#[derive(Debug)]
struct HeldLock {
    files: MemoryFiles,
    path: String,
}

impl LockGuard for HeldLock {}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.files.shared().locked.remove(&self.path);
    }
}

/// An open file; it keeps the content alive when the name is gone.
#[derive(Debug)]
struct Handle {
    files: MemoryFiles,
    file: FileId,
    path: String,
}

impl Handle {
    fn new(files: MemoryFiles, file: FileId, path: &str) -> Self {
        *files.shared().handles.entry(file).or_insert(0) += 1;
        Self { files, file, path: path.to_owned() }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut shared = self.files.shared();
        if let Some(count) = shared.handles.get_mut(&self.file) {
            *count -= 1;
            if *count == 0 {
                shared.handles.remove(&self.file);
            }
        }
    }
}

impl LayerFile for Handle {
    fn len(&self) -> io::Result<u64> {
        let mut shared = self.files.shared();
        shared.meet(FileCall::Len, &self.path)?;
        Ok(shared.disk.len(self.file))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut shared = self.files.shared();
        shared.meet(FileCall::Read, &self.path)?;
        shared.disk.read(self.file, offset, buffer)
    }

    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut shared = self.files.shared();
        let effect = shared.meet(FileCall::Write, &self.path)?;
        let mut bytes = BytesMut::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
        pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let mut bytes = bytes.freeze();
        let mut result = Ok(());
        if let Some(FaultEffect::ShortWrite(landed, kind)) = effect {
            bytes.truncate(landed);
            result = Err(injected(kind, FileCall::Write, &self.path));
        }
        shared.take_room(self.file, offset + bytes.len() as u64)?;
        if !bytes.is_empty() {
            shared.apply(Operation::Write { file: self.file, offset, bytes });
        }
        result
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut shared = self.files.shared();
        shared.meet(FileCall::Allocate, &self.path)?;
        let end = offset.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        shared.take_room(self.file, end)?;
        shared.apply(Operation::Allocate { file: self.file, end });
        Ok(())
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut shared = self.files.shared();
        shared.meet(FileCall::Read, &self.path)?;
        let len = shared.disk.len(self.file);
        let mut rest = vec![0; usize::try_from(len.saturating_sub(offset)).expect("it is all in memory")];
        shared.disk.read(self.file, offset, &mut rest)?;
        Ok(rest.iter().position(|byte| *byte != 0).map(|skip| offset + skip as u64..len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut shared = self.files.shared();
        shared.meet(FileCall::SetLen, &self.path)?;
        shared.apply(Operation::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut shared = self.files.shared();
        match shared.meet(FileCall::SyncData, &self.path) {
            Ok(None) => shared.apply(Operation::Sync { file: self.file }),
            Ok(Some(_)) => {}
            Err(error) => {
                shared.apply(Operation::LoseSync { file: self.file });
                return Err(error);
            }
        }
        Ok(())
    }

    fn drop_cache(&self, from: u64) {
        self.files.shared().apply(Operation::DropCache { file: self.file, from });
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedRegion>> {
        self.files.shared().meet(FileCall::Map, &self.path)?;
        let content = Self::new(self.files.clone(), self.file, &self.path);
        Ok(Arc::new(Region { content, len }))
    }

    fn map_for_writing(&self, start: u64, len: usize) -> io::Result<Option<Box<dyn WritableRegion>>> {
        let mut shared = self.files.shared();
        if !shared.maps_for_writing {
            return Ok(None);
        }
        shared.meet(FileCall::Map, &self.path)?;
        drop(shared);
        let content = Self::new(self.files.clone(), self.file, &self.path);
        Ok(Some(Box::new(Stores::new(content, start, len))))
    }
}

/// A recording of changes, and a disk that is moved along it.
#[derive(Clone, Debug)]
pub struct History {
    disk: Disk,
    at: u64,
    operations: VecDeque<Operation>,
    bytes: usize,
}

impl History {
    /// The moment the disk stands at: so many changes have been made.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The last recorded moment.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at + self.operations.len() as u64
    }

    /// Moves the disk on to a moment; one that has passed leaves it where it is.
    pub fn advance_to(&mut self, moment: u64) {
        while self.at < moment && self.step() {}
    }

    /// What a power cut at the moment [`at`](Self::at) could leave.
    #[must_use]
    pub fn crash(&self, choices: &mut dyn Choices) -> MemoryFiles {
        MemoryFiles::over(self.disk.crash(choices))
    }

    fn step(&mut self) -> bool {
        let Some(operation) = self.operations.pop_front() else { return false };
        self.at += 1;
        self.bytes -= operation.bytes();
        self.disk.apply(&operation);
        if matches!(operation, Operation::SyncDirectory { .. }) {
            self.disk.collect(|_| false);
        }
        true
    }

    fn push(&mut self, operation: Operation) {
        self.bytes += operation.bytes();
        self.operations.push_back(operation);
        while self.operations.len() > MAX_RECORDED_OPERATIONS || self.bytes > MAX_RECORDED_BYTES {
            self.step();
        }
    }
}

#[cfg(test)]
mod tests;
