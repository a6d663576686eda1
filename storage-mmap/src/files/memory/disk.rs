//! A disk as a machine: operations go in, and a crash asks what could be left.
//!
//! For each file there are two contents: *live*, what a reader sees now, and *synced*, what a power cut surely leaves.
//! Between them lies the ordered list of changes since the last sync. A crash leaves each sector of a file in any
//! version between the two, each on its own, and the length in any version on its own. Changes of names are lost or
//! kept one by one, a rename as a whole, and per name in order: that is what a journalling file system does, and more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::choices::Choices;
use super::pages::{PAGE_BYTES, Pages};

/// Most unsynced bytes kept per file; beyond it the oldest count as synced, as when a kernel writes back early.
const MAX_PENDING_BYTES: usize = 16 << 20;
/// Most unsynced changes kept per file, and of names.
const MAX_PENDING_CHANGES: usize = 1 << 16;
/// The two sizes of what a disk writes whole.
const SECTOR_BYTES: [usize; 2] = [512, PAGE_BYTES];

/// Names one file, whatever it is called.
pub(super) type FileId = u64;

/// One change, as it is recorded and replayed.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Write {
        file: FileId,
        offset: u64,
        bytes: Bytes,
    },
    Allocate {
        file: FileId,
        end: u64,
    },
    SetLen {
        file: FileId,
        len: u64,
    },
    Sync {
        file: FileId,
    },
    /// A sync that failed: what was pending is gone, though readers still see it.
    LoseSync {
        file: FileId,
    },
    DropCache {
        file: FileId,
        from: u64,
    },
    Name(NameChange),
    SyncDirectory {
        path: String,
    },
}

/// One change of names.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create { path: String, file: FileId },
    Remove { path: String },
    Rename { from: String, to: String, file: FileId },
    MakeDirectory { path: String },
    RemoveDirectory { path: String },
}

impl Operation {
    /// Bytes that keeping this operation costs.
    pub(super) fn bytes(&self) -> usize {
        if let Self::Write { bytes, .. } = self { bytes.len() } else { 0 }
    }
}

impl NameChange {
    fn names(&self) -> [&str; 2] {
        match self {
            Self::Create { path, .. }
            | Self::Remove { path }
            | Self::MakeDirectory { path }
            | Self::RemoveDirectory { path } => [path, path],
            Self::Rename { from, to, .. } => [from, to],
        }
    }

    fn is_within(&self, directory: &str) -> bool {
        self.names().iter().any(|name| parent(name) == directory)
    }
}

/// The directory that a path lies in; the root is the empty path.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Bytes },
    Zero { range: Range<u64> },
    Length,
}

impl Change {
    fn range(&self) -> Range<u64> {
        match self {
            Self::Write { offset, bytes } => *offset..*offset + bytes.len() as u64,
            Self::Zero { range } => range.clone(),
            Self::Length => 0..0,
        }
    }

    /// Lands the part of this change that lies within a range.
    fn land_within(&self, pages: &mut Pages, within: &Range<u64>) {
        let range = self.range();
        let part = range.start.max(within.start)..range.end.min(within.end);
        if part.start >= part.end {
            return;
        }
        match self {
            Self::Write { bytes, .. } => {
                let skip = usize::try_from(part.start - range.start).expect("within a buffer");
                let len = usize::try_from(part.end - part.start).expect("within a buffer");
                pages.write_behind_end(part.start, &bytes[skip..skip + len]);
            }
            Self::Zero { .. } => pages.zero(part),
            Self::Length => {}
        }
    }
}

#[derive(Clone, Debug)]
struct Pending {
    change: Change,
    len_after: u64,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Pages,
    synced: Pages,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// End of the room taken from the disk.
    room: u64,
    /// A sync of this file has failed, so that live and synced differ where nothing is pending.
    lost_a_sync: bool,
}

impl Inode {
    fn change(&mut self, change: Change, len_after: u64) {
        change.land_within(&mut self.live, &(0..u64::MAX));
        self.live.set_len(len_after);
        if let Change::Write { bytes, .. } = &change {
            self.pending_bytes += bytes.len();
        }
        self.pending.push_back(Pending { change, len_after });
        while self.pending_bytes > MAX_PENDING_BYTES || self.pending.len() > MAX_PENDING_CHANGES {
            self.sync_oldest();
        }
    }

    fn sync_oldest(&mut self) {
        let Some(oldest) = self.pending.pop_front() else { return };
        self.pending_bytes -= if let Change::Write { bytes, .. } = &oldest.change { bytes.len() } else { 0 };
        oldest.change.land_within(&mut self.synced, &(0..u64::MAX));
        self.synced.set_len(oldest.len_after);
    }

    fn sync(&mut self) {
        if self.lost_a_sync {
            while !self.pending.is_empty() {
                self.sync_oldest();
            }
            return;
        }
        for pending in self.pending.drain(..) {
            for page in Pages::touched(pending.change.range()) {
                self.synced.share(page, &self.live);
            }
        }
        self.pending_bytes = 0;
        self.synced.set_len(self.live.len());
    }

    fn lose_sync(&mut self) {
        self.lost_a_sync |= !self.pending.is_empty();
        // The length and the names are metadata, which a journal keeps apart from the data that was lost.
        for pending in self.pending.drain(..) {
            if let Change::Zero { range } = pending.change {
                self.synced.zero(range);
            }
        }
        self.pending_bytes = 0;
        self.synced.set_len(self.live.len());
    }

    /// Pages that end before `from` stay as they are.
    fn drop_cache(&mut self, from: u64) {
        let cached = std::mem::replace(&mut self.live, self.synced.clone());
        for pending in &self.pending {
            pending.change.land_within(&mut self.live, &(0..u64::MAX));
            self.live.set_len(pending.len_after);
        }
        let kept = from.min(self.live.len());
        for page in Pages::touched(0..kept - kept % PAGE_BYTES as u64) {
            self.live.share(page, &cached);
        }
    }

    /// One content that a power cut could leave.
    fn crash(&self, sector: u64, choices: &mut dyn Choices) -> Pages {
        let mut left = self.synced.clone();
        let (len, settled) = self.crash_len(choices);
        let mut touching: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, pending) in self.pending.iter().enumerate() {
            let range = pending.change.range();
            for at in range.start / sector..range.end.div_ceil(sector) {
                touching.entry(at).or_default().push(number);
            }
        }
        for (at, changes) in touching {
            // Where a cut of the file has arrived, its zeroes have: no old byte shows when the file grows again.
            let is_settled =
                |number: &&usize| **number < settled && matches!(self.pending[**number].change, Change::Zero { .. });
            let least = changes.iter().rposition(|number| is_settled(&number)).map_or(0, |position| position + 1);
            let kept = least + choices.pick(changes.len() - least + 1);
            for number in &changes[..kept] {
                self.pending[*number].change.land_within(&mut left, &(at * sector..(at + 1) * sector));
            }
        }
        left.set_len(len);
        left
    }

    /// One length that a power cut could leave, and how many changes had been made when the file had it.
    fn crash_len(&self, choices: &mut dyn Choices) -> (u64, usize) {
        let mut lengths = vec![(self.synced.len(), 0)];
        for (number, pending) in self.pending.iter().enumerate() {
            if lengths.last().is_none_or(|(len, _)| *len != pending.len_after) {
                lengths.push((pending.len_after, number + 1));
            }
        }
        lengths[choices.pick(lengths.len())]
    }
}

#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<String, FileId>,
    directories: BTreeSet<String>,
}

impl Names {
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Create { path, file } => {
                self.files.insert(path.clone(), *file);
            }
            NameChange::Remove { path } => {
                self.files.remove(path);
            }
            NameChange::Rename { from, to, file } => {
                self.files.remove(from);
                self.files.insert(to.clone(), *file);
            }
            NameChange::MakeDirectory { path } => {
                self.directories.insert(path.clone());
            }
            NameChange::RemoveDirectory { path } => {
                self.directories.remove(path);
            }
        }
    }

    fn is_reachable(&self, path: &str) -> bool {
        let mut at = parent(path);
        while !at.is_empty() {
            if !self.directories.contains(at) {
                return false;
            }
            at = parent(at);
        }
        true
    }
}

/// All files and names, live and synced.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    live: Names,
    synced: Names,
    pending: VecDeque<NameChange>,
    inodes: BTreeMap<FileId, Inode>,
    last: FileId,
}

impl Disk {
    pub(super) fn file(&self, path: &str) -> Option<FileId> {
        self.live.files.get(path).copied()
    }

    pub(super) fn has_directory(&self, path: &str) -> bool {
        path.is_empty() || self.live.directories.contains(path)
    }

    /// A number that no file of this disk has had.
    pub(super) fn fresh(&self) -> FileId {
        self.last + 1
    }

    pub(super) fn children(&self, directory: &str) -> Vec<String> {
        let paths = self.live.files.keys().chain(&self.live.directories);
        let mut names: Vec<String> = paths
            .filter(|path| parent(path) == directory)
            .map(|path| path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name).to_owned())
            .collect();
        names.sort();
        names
    }

    pub(super) fn len(&self, file: FileId) -> u64 {
        self.inodes.get(&file).map_or(0, |inode| inode.live.len())
    }

    pub(super) fn read(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.inodes.get(&file) {
            Some(inode) => inode.live.read(offset, buffer),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Bytes of room that all files have taken.
    pub(super) fn room(&self) -> u64 {
        self.inodes.values().map(|inode| inode.room).sum()
    }

    /// Bytes of room that one file has taken, from its beginning.
    pub(super) fn room_of(&self, file: FileId) -> u64 {
        self.inodes.get(&file).map_or(0, |inode| inode.room)
    }

    /// Carries an operation out. One on a file that is gone changes nothing.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Name(change) => self.rename(change),
            Operation::SyncDirectory { path } => self.sync_directory(path),
            Operation::Write { file, offset, bytes } => self.with(*file, |inode| {
                let end = offset + bytes.len() as u64;
                inode.room = inode.room.max(end);
                let len = inode.live.len().max(end);
                inode.change(Change::Write { offset: *offset, bytes: bytes.clone() }, len);
            }),
            Operation::Allocate { file, end } => self.with(*file, |inode| {
                inode.room = inode.room.max(*end);
                let len = inode.live.len().max(*end);
                inode.change(Change::Length, len);
            }),
            Operation::SetLen { file, len } => self.with(*file, |inode| {
                inode.room = inode.room.min(*len);
                let before = inode.live.len();
                let change = if *len < before { Change::Zero { range: *len..before } } else { Change::Length };
                inode.change(change, *len);
            }),
            Operation::Sync { file } => self.with(*file, Inode::sync),
            Operation::LoseSync { file } => self.with(*file, Inode::lose_sync),
            Operation::DropCache { file, from } => self.with(*file, |inode| inode.drop_cache(*from)),
        }
    }

    fn with(&mut self, file: FileId, change: impl FnOnce(&mut Inode)) {
        if let Some(inode) = self.inodes.get_mut(&file) {
            change(inode);
        }
    }

    fn rename(&mut self, change: &NameChange) {
        if let NameChange::Create { file, .. } = change {
            self.inodes.insert(*file, Inode::default());
            self.last = self.last.max(*file);
        }
        self.live.apply(change);
        self.pending.push_back(change.clone());
        if self.pending.len() > MAX_PENDING_CHANGES
            && let Some(oldest) = self.pending.pop_front()
        {
            self.synced.apply(&oldest);
        }
    }

    fn sync_directory(&mut self, path: &str) {
        let (within, elsewhere) =
            std::mem::take(&mut self.pending).into_iter().partition(|change| change.is_within(path));
        self.pending = elsewhere;
        let within: VecDeque<NameChange> = within;
        for change in &within {
            self.synced.apply(change);
        }
    }

    /// Forgets files that no name leads to any more, but for those that are open.
    pub(super) fn collect(&mut self, is_open: impl Fn(FileId) -> bool) {
        let mut named: BTreeSet<FileId> = self.live.files.values().chain(self.synced.files.values()).copied().collect();
        named.extend(self.pending.iter().filter_map(|change| match change {
            NameChange::Create { file, .. } | NameChange::Rename { file, .. } => Some(*file),
            _ => None,
        }));
        self.inodes.retain(|file, _| named.contains(file) || is_open(*file));
    }

    /// One disk that a power cut at this moment could leave.
    pub(super) fn crash(&self, choices: &mut dyn Choices) -> Self {
        let sector = SECTOR_BYTES[choices.pick(SECTOR_BYTES.len())] as u64;
        let mut names = self.synced.clone();
        let mut stopped: BTreeSet<&str> = BTreeSet::new();
        for change in &self.pending {
            if change.names().iter().any(|name| stopped.contains(name)) || choices.pick(2) == 0 {
                stopped.extend(change.names());
            } else {
                names.apply(change);
            }
        }
        let files = std::mem::take(&mut names.files);
        names.files = files.into_iter().filter(|(path, _)| names.is_reachable(path)).collect();
        let directories = names.directories.iter().filter(|path| names.is_reachable(path)).cloned().collect();
        names.directories = directories;
        let mut inodes = BTreeMap::new();
        for file in names.files.values() {
            if let Some(inode) = self.inodes.get(file) {
                let left = inode.crash(sector, choices);
                let room = inode.room.min(left.len());
                inodes.insert(*file, Inode { live: left.clone(), synced: left, room, ..Inode::default() });
            }
        }
        Self { live: names.clone(), synced: names, pending: VecDeque::new(), inodes, last: self.last }
    }
}
