//! Consume queues: for every queue, where its records lie in the commit log.
//!
//! `consumequeue/<topic>/<queue id>/<20-digit offset of the first entry>`, a fixed number of 20-byte entries per file.
//! All of it can be made again from the log. Files are read with positioned reads and not through maps: an entry is
//! copied out anyway, and thousands of queues then need no address space.

pub(crate) mod entry;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuemq_storage_api::QueueKey;

use crate::consume_queue::entry::{ENTRY_BYTES, Entry};
use crate::files::{FileLayer, LayerFile, OpenMode};

/// The directory of all consume queues.
pub(crate) const DIRECTORY: &str = "consumequeue";
/// Files of consume queues that are held open at once, over all queues.
const MAX_OPEN_FILES: usize = 128;

/// The files of all consume queues.
#[derive(Debug)]
pub(crate) struct QueueFiles {
    files: Arc<dyn FileLayer>,
    entries_per_file: u64,
    open: Mutex<OpenFiles>,
    unsynced: Mutex<Unsynced>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<String, (Arc<dyn LayerFile>, u64)>,
    uses: u64,
}

#[derive(Debug, Default)]
struct Unsynced {
    files: BTreeSet<String>,
    directories: BTreeSet<String>,
}

/// Who opens a file. A writer goes through all queues in turn and comes to none of them soon again, so it does not push
/// out what readers have open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Reader,
    Writer,
}

/// Whether a queue's files hold what they should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Every entry is there.
    Whole,
    /// Some are not.
    Missing,
}

impl QueueFiles {
    pub(crate) fn new(files: Arc<dyn FileLayer>, entries_per_file: u32) -> Self {
        let entries_per_file = u64::from(entries_per_file);
        Self { files, entries_per_file, open: Mutex::default(), unsynced: Mutex::default() }
    }

    fn directory(key: &QueueKey) -> String {
        format!("{DIRECTORY}/{}/{}", key.topic, key.queue)
    }

    fn file_start(&self, offset: u64) -> u64 {
        offset - offset % self.entries_per_file
    }

    fn path(&self, key: &QueueKey, offset: u64) -> String {
        format!("{}/{:020}", Self::directory(key), self.file_start(offset))
    }

    /// The place of an entry within its file.
    fn place(&self, offset: u64) -> u64 {
        (offset % self.entries_per_file) * ENTRY_BYTES as u64
    }

    /// The path of the file that holds an entry, for messages.
    pub(crate) fn describe(&self, key: &QueueKey, offset: u64) -> String {
        self.path(key, offset)
    }

    // Neither guarded value can be left half changed by a panic.
    fn open_files(&self) -> MutexGuard<'_, OpenFiles> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsynced(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, path: &str, mode: OpenMode, by: By) -> io::Result<Arc<dyn LayerFile>> {
        let mut open = self.open_files();
        open.uses += 1;
        let now = open.uses;
        if let Some((file, used)) = open.files.get_mut(path) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = self.files.open(path, mode)?;
        let is_full = open.files.len() >= MAX_OPEN_FILES;
        if is_full && by == By::Writer {
            return Ok(file);
        }
        if is_full
            && let Some(oldest) = open.files.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone())
        {
            open.files.remove(&oldest);
        }
        open.files.insert(path.to_owned(), (Arc::clone(&file), now));
        Ok(file)
    }

    /// Reads up to `count` entries from an offset on, none beyond the end of the file that holds the first. Every
    /// entry asked for must have been written.
    pub(crate) fn read(&self, key: &QueueKey, offset: u64, count: usize) -> io::Result<Vec<Entry>> {
        let file = self.open(&self.path(key, offset), OpenMode::Existing, By::Reader)?;
        let in_file = self.file_start(offset) + self.entries_per_file - offset;
        let count = count.min(usize::try_from(in_file).unwrap_or(usize::MAX));
        let mut bytes = vec![0; count * ENTRY_BYTES];
        file.read_at(self.place(offset), &mut bytes)?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        Ok(entries.iter().map(Entry::decode).collect())
    }

    /// Writes entries from an offset on.
    pub(crate) fn write(&self, key: &QueueKey, first: u64, entries: &[Entry]) -> io::Result<()> {
        let (mut offset, mut rest) = (first, entries);
        while !rest.is_empty() {
            let in_file = self.file_start(offset) + self.entries_per_file - offset;
            let count = rest.len().min(usize::try_from(in_file).unwrap_or(usize::MAX));
            let (here, later) = rest.split_at(count);
            let bytes: Vec<u8> = here.iter().flat_map(Entry::encode).collect();
            let path = self.path(key, offset);
            self.file_for_writing(key, &path)?.write_at(self.place(offset), &[&bytes])?;
            self.unsynced().files.insert(path);
            offset += count as u64;
            rest = later;
        }
        Ok(())
    }

    fn file_for_writing(&self, key: &QueueKey, path: &str) -> io::Result<Arc<dyn LayerFile>> {
        match self.open(path, OpenMode::Existing, By::Writer) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = Self::directory(key);
                self.files.create_directory(&directory)?;
                let file = self.open(path, OpenMode::Create, By::Writer)?;
                let mut unsynced = self.unsynced();
                unsynced.directories.insert(directory);
                unsynced.directories.insert(format!("{DIRECTORY}/{}", key.topic));
                unsynced.directories.insert(DIRECTORY.to_owned());
                Ok(file)
            }
            other => other,
        }
    }

    /// Makes everything written so far survive a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let unsynced = std::mem::take(&mut *self.unsynced());
        // Innermost first, so that no name is durable before what it leads to. Retention may have removed a file.
        let directories: Vec<&str> = unsynced.directories.iter().rev().map(String::as_str).collect();
        self.files.sync_all(&unsynced.files, &directories)
    }

    /// Compares a queue's files with the entries they should hold, and cuts off what is beyond `end`: it may be what
    /// a crash left of records that the log does not have.
    pub(crate) fn verify(&self, key: &QueueKey, base: u64, end: u64) -> io::Result<Found> {
        let directory = Self::directory(key);
        let names = self.files.list(&directory)?;
        let mut expected = self.file_start(base);
        let mut found = Found::Whole;
        for name in names {
            let path = format!("{directory}/{name}");
            let start = name.parse::<u64>().ok().filter(|start| *start < end && start % self.entries_per_file == 0);
            let Some(start) = start else {
                self.files.remove(&path)?;
                continue;
            };
            if start < expected {
                continue; // Wholly expired; retention was interrupted.
            }
            let wanted = (end - start).min(self.entries_per_file) * ENTRY_BYTES as u64;
            let file = self.files.open(&path, OpenMode::Existing)?;
            let len = file.len()?;
            if len > wanted {
                file.set_len(wanted)?;
            }
            if start != expected || len < wanted {
                found = Found::Missing;
            }
            expected = start + self.entries_per_file;
        }
        if base < end && expected < end {
            found = Found::Missing;
        }
        Ok(found)
    }

    /// Removes the files of queues that are not known.
    pub(crate) fn remove_unknown(&self, known: impl Fn(&str, &str) -> bool) -> io::Result<()> {
        for topic in self.files.list(DIRECTORY)? {
            for queue in self.files.list(&format!("{DIRECTORY}/{topic}"))? {
                if known(&topic, &queue) {
                    continue;
                }
                let directory = format!("{DIRECTORY}/{topic}/{queue}");
                for name in self.files.list(&directory)? {
                    self.files.remove(&format!("{directory}/{name}"))?;
                }
                self.files.remove_directory(&directory)?;
            }
        }
        Ok(())
    }

    /// Removes a queue's files that lie wholly below its base, and blanks the expired entries of the file that holds
    /// the base, so that the files are what a rebuild from the log would make.
    pub(crate) fn expire(&self, key: &QueueKey, base: u64) -> io::Result<()> {
        let directory = Self::directory(key);
        for name in self.files.list(&directory)? {
            let Ok(start) = name.parse::<u64>() else { continue };
            let path = format!("{directory}/{name}");
            if start + self.entries_per_file <= base {
                self.files.remove(&path)?;
                self.open_files().files.remove(&path);
            } else if start < base {
                let zeros = vec![0; usize::try_from(self.place(base)).unwrap_or(0)];
                self.open(&path, OpenMode::Existing, By::Writer)?.write_at(0, &[&zeros])?;
                self.unsynced().files.insert(path);
            }
        }
        Ok(())
    }
}
