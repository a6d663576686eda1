//! The file layer: every byte that this engine reads from or writes to a disk passes through here.
//!
//! Two implementations: [`RealFiles`] over the operating system, and
//! [`MemoryFiles`], which records every operation and can produce *crash images*: any prefix of
//! the operations, any subset and version of unsynced sectors, lost renames and sizes.
//!
//! Paths are relative to the store's directory, with `/` between parts.

pub mod memory;
pub mod real;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use memory::MemoryFiles;
pub use real::RealFiles;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must exist.
    Existing,
    /// It is made if it does not exist. The new name survives a power cut only after a sync of its directory.
    Create,
}

/// Room on the disk that holds the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpace {
    /// All bytes of the file system.
    pub total_bytes: u64,
    /// Bytes this process may still take.
    pub free_bytes: u64,
}

/// A store's directory, seen as names.
pub trait FileLayer: Debug + Send + Sync + 'static {
    /// Makes a directory and its parents; one that exists is no error.
    ///
    /// # Errors
    /// What the operating system answers.
    fn create_directory(&self, path: &str) -> io::Result<()>;
    /// Names of the files and directories directly within a directory, sorted; none if it does not exist.
    ///
    /// # Errors
    /// What the operating system answers.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Opens a file for reading and positioned writing. Refuses symbolic links.
    ///
    /// # Errors
    /// `NotFound` for an absent file in mode `Existing`.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>>;
    /// Renames a file over another, atomically; durable only after a sync of the directory.
    ///
    /// # Errors
    /// What the operating system answers.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; an absent one is no error.
    ///
    /// # Errors
    /// What the operating system answers.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory; an absent one is no error.
    ///
    /// # Errors
    /// What the operating system answers.
    fn remove_directory(&self, path: &str) -> io::Result<()>;
    /// Makes the names within a directory survive a power cut.
    ///
    /// # Errors
    /// What the operating system answers.
    fn sync_directory(&self, path: &str) -> io::Result<()>;
    /// Makes files, and the names within directories, survive a power cut. A file that is gone is no error. Directories
    /// are synced in the order given, after all files.
    ///
    /// # Errors
    /// As [`LayerFile::sync_data`].
    fn sync_all(&self, files: &BTreeSet<String>, directories: &[&str]) -> io::Result<()> {
        sync_one_by_one(self, files, directories)
    }
    /// Takes the exclusive lock of a file until the guard is dropped. `WouldBlock` if somebody else holds it,
    /// in this process or another.
    ///
    /// # Errors
    /// `WouldBlock`, or what the operating system answers.
    fn lock(&self, path: &str) -> io::Result<Box<dyn LockGuard>>;
    /// Room on the disk.
    ///
    /// # Errors
    /// What the operating system answers.
    fn disk_space(&self) -> io::Result<DiskSpace>;
    /// The store's directory as shown to a person.
    fn describe(&self) -> String;
    /// Whether a second thread may call beside the first one: prepare room beside the writer, read the log ahead at an
    /// opening. A layer that plays one order of calls again and again says no, which is the default: then one thread
    /// does everything by itself.
    fn works_beside(&self) -> bool {
        false
    }
}

fn sync_one_by_one<L: FileLayer + ?Sized>(layer: &L, files: &BTreeSet<String>, directories: &[&str]) -> io::Result<()> {
    for path in files {
        match layer.open(path, OpenMode::Existing) {
            Ok(file) => file.sync_data()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    directories.iter().try_for_each(|directory| layer.sync_directory(directory))
}

/// Holds a lock until it is dropped.
pub trait LockGuard: Debug + Send + Sync {}

/// One open file. Positioned reads and writes; no cursor.
#[expect(clippy::len_without_is_empty, reason = "a length is a question to the disk here, not to a collection")]
pub trait LayerFile: Debug + Send + Sync + 'static {
    /// Bytes in the file.
    ///
    /// # Errors
    /// What the operating system answers.
    fn len(&self) -> io::Result<u64>;
    /// Reads exactly `buffer.len()` bytes at an offset.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all pieces one behind the other at an offset, extending the file if need be. Repeats short and
    /// interrupted writes.
    ///
    /// # Errors
    /// What the operating system answers; some of the bytes may have been written.
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()>;
    /// Takes room from the disk for `[offset, offset + len)` and extends the file over it; fresh bytes read as zero.
    ///
    /// # Errors
    /// `StorageFull` while nothing has changed that a reader could see.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The first bytes at an offset or behind it that may be other than zero, up to where there surely are none; `None` when
    /// there are none. The default does not know and says all of the file. Room that was only taken holds none, but what is
    /// read of it, or read ahead, may look as if it did from then on: ask first.
    ///
    /// # Errors
    /// What the operating system answers.
    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }
    /// Has the operating system begin to read a range that will be read soon. Advice; the default takes none.
    fn read_ahead(&self, _range: Range<u64>) {}
    /// Cuts or extends the file. Never below a range that was mapped and may still be read.
    ///
    /// # Errors
    /// What the operating system answers.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes all bytes written so far, and the file's length, survive a power cut.
    ///
    /// # Errors
    /// Never retry after one: the bytes may be gone while the next sync succeeds.
    fn sync_data(&self) -> io::Result<()>;
    /// Drops what the operating system has cached of the file from a place on, and perhaps some before it, so that the
    /// next read tests the disk. Best effort.
    fn drop_cache(&self, from: u64);
    /// Maps `[0, len)` read-only; `len` may be beyond the file's present end. The map outlives the file's name.
    ///
    /// # Errors
    /// What the operating system answers.
    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedRegion>>;
    /// Maps `[start, start + len)` for stores, where `start` is a multiple of 4096 and the range may reach beyond the
    /// file's present end. `None`, the default, where a store into room that was taken could fail, or would not be
    /// seen by reads and syncs of the file: then everything is written with [`write_at`](Self::write_at).
    ///
    /// # Errors
    /// What the operating system answers.
    fn map_for_writing(&self, _start: u64, _len: usize) -> io::Result<Option<Box<dyn WritableRegion>>> {
        Ok(None)
    }
}

/// Part of a file into which its one writer stores. What is stored is seen by every read of the file at once, and made
/// durable by its [`sync_data`](LayerFile::sync_data).
pub trait WritableRegion: Debug + Send {
    /// The bytes of the file in `[start, start + len)`, to be stored into.
    ///
    /// The caller owns the range: it lies in room that was taken and filled, and nobody reads it or writes it in
    /// another way until the caller has published it.
    ///
    /// # Panics
    /// When the range reaches beyond the region.
    fn bytes_mut(&mut self, start: u64, len: usize) -> &mut [u8];

    /// Says that the stores into `[start, start + len)` are done, so that a layer which records writes can record them.
    /// The default needs no telling.
    fn written(&mut self, _start: u64, _len: usize) {}

    /// Has the pages of `[start, start + len)` ready for stores, which changes none of their bytes. Advice, for speed
    /// only; the default takes none.
    fn populate(&mut self, _start: u64, _len: usize) {}
}

/// A read-only view of a file that follows later writes to it.
pub trait MappedRegion: Debug + Send + Sync + 'static {
    /// Bytes of the view `[start, start + len)` without a copy where the layer can; the result keeps the view alive.
    ///
    /// The caller asks only for bytes that lie within the file and are no longer written to.
    ///
    /// # Panics
    /// When the range reaches beyond the view.
    fn slice(&self, start: u64, len: usize) -> Bytes;

    /// The same from `start` on, at least `len` bytes and at most up to `end`: as much as costs no more than `len`.
    ///
    /// # Panics
    /// As [`MappedRegion::slice`].
    fn slice_up_to(&self, start: u64, len: usize, _end: u64) -> Bytes {
        self.slice(start, len)
    }

    /// Says that what lies up to `end` was asked for and that reading may go on behind it: advice, for speed only. The
    /// default takes no advice.
    fn read_on(&self, _end: u64) {}
}
