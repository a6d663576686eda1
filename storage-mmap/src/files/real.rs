//! The file layer over the operating system.
//!
//! Every name is looked up from a handle of the store's directory, and no part of it may be a symbolic link: whoever can plant a link in the directory can still not make the store write elsewhere. Directories are made
//! with mode 0700 and files with 0600, because a store holds what its users sent.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use super::{DiskSpace, FileLayer, LayerFile, LockGuard, MappedRegion, OpenMode, WritableRegion, sync_one_by_one};
use crate::mapped_file::{MappedFile, MappedWindow};

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// More files than these are synced with their whole file system.
#[cfg(target_os = "linux")]
const MANY_FILES: usize = 64;
/// Most pieces in one vectored write: Linux's `IOV_MAX`.
const MAX_PIECES: usize = 1024;
/// File systems that keep the room they gave and show a store into a map to every read at once: ext2 to ext4, XFS, tmpfs.
const MAPPED_FOR_WRITING: [u32; 3] = [0xEF53, 0x5846_5342, 0x0102_1994];
/// A lock file holds a process id in decimal; more than this is somebody else's file.
const MAX_LOCK_TEXT_BYTES: usize = 20;

/// A directory of the operating system, held open.
#[derive(Debug)]
pub struct RealFiles {
    root: OwnedFd,
    directory: PathBuf,
    maps_for_writing: bool,
    /// Whether names are looked up part by part: the kernel does not do it in one call.
    #[cfg(target_os = "linux")]
    walks: AtomicBool,
}

impl RealFiles {
    /// Opens a store's directory, and makes it with its parents if need be; new directories are made durable.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn open(directory: impl AsRef<Path>) -> io::Result<Self> {
        let directory = std::path::absolute(directory)?;
        let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(&directory)?;
        for parent in missing.iter().filter_map(|path| path.parent()) {
            File::open(parent)?.sync_all()?;
        }
        let root = rustix::fs::open(&directory, directory_flags() - OFlags::NOFOLLOW, Mode::empty())?;
        let kind = u32::try_from(rustix::fs::fstatfs(&root)?.f_type).unwrap_or(0);
        let maps_for_writing = MAPPED_FOR_WRITING.contains(&kind);
        Ok(Self {
            root,
            directory,
            maps_for_writing,
            #[cfg(target_os = "linux")]
            walks: AtomicBool::new(false),
        })
    }

    fn directory(&self, path: &str) -> io::Result<OwnedFd> {
        if path.is_empty() {
            Ok(self.root.try_clone()?)
        } else {
            self.open_below(path, directory_flags(), Mode::empty())
        }
    }

    /// Opens what lies at a path.
    fn open_below(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        check_path(path)?;
        #[cfg(target_os = "linux")]
        if !self.walks.load(Ordering::Relaxed) {
            let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS;
            match retry_on_intr(|| rustix::fs::openat2(&self.root, path, flags, mode, resolve)) {
                // Before Linux 5.6, or where a sandbox does not know the call.
                Err(Errno::NOSYS | Errno::PERM) => self.walks.store(true, Ordering::Relaxed),
                opened => return opened.map_err(|errno| named(errno, path)),
            }
        }
        self.walk(path, flags, mode)
    }

    /// The same, part by part.
    fn walk(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let mut at = self.root.try_clone()?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in parts(parent) {
            at = enter(&at, part?)?;
        }
        retry_on_intr(|| rustix::fs::openat(&at, name, flags, mode)).map_err(|errno| named(errno, path))
    }

    /// The directory that holds a path's last part, and that part.
    fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p str)> {
        check_path(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.directory(parent)?, name))
    }

    fn open_file(&self, path: &str, mode: OpenMode) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match mode {
            OpenMode::Existing => self.open_below(path, flags, Mode::empty()),
            OpenMode::Create => self.open_below(path, flags | OFlags::CREATE, Mode::from_raw_mode(FILE_MODE)),
        };
        Ok(File::from(file?))
    }
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

fn enter(at: &OwnedFd, part: &str) -> io::Result<OwnedFd> {
    retry_on_intr(|| rustix::fs::openat(at, part, directory_flags(), Mode::empty())).map_err(|errno| named(errno, part))
}

fn parts(path: &str) -> impl Iterator<Item = io::Result<&str>> {
    path.split('/').filter(move |_| !path.is_empty()).map(checked_part)
}

/// Refuses a path with a part that is no name, and one without any.
fn check_path(path: &str) -> io::Result<()> {
    path.split('/').try_for_each(|part| checked_part(part).map(|_| ()))
}

fn checked_part(part: &str) -> io::Result<&str> {
    if matches!(part, "" | "." | "..") || part.contains(['/', '\0']) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{part:?} is no name within a store")));
    }
    Ok(part)
}

/// Keeps the operating system's kind of error and adds the name, which it leaves out.
fn named(errno: Errno, path: &str) -> io::Error {
    let error = io::Error::from(errno);
    if errno == Errno::LOOP {
        let text = format!("{path} is a symbolic link or leads through one, which a store never follows");
        return io::Error::new(error.kind(), text);
    }
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

impl FileLayer for RealFiles {
    fn create_directory(&self, path: &str) -> io::Result<()> {
        // Mostly all but the last part are there.
        let made = self.parent(path).and_then(|(parent, name)| {
            let made = rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE));
            made.map_err(|errno| named(errno, path))
        });
        if made.is_ok() {
            return made;
        }
        let mut at = self.root.try_clone()?;
        for part in parts(path) {
            let part = part?;
            match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => at = enter(&at, part)?,
                Err(errno) => return Err(named(errno, path)),
            }
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let directory = match self.directory(path) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_str().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {:?} is not UTF-8", entry.file_name()))
            })?;
            if !matches!(name, "." | "..") {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        let file = Arc::new(self.open_file(path, mode)?);
        Ok(Arc::new(RealFile { file, maps_for_writing: self.maps_for_writing }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        rustix::fs::renameat(&from_parent, from_name, &to_parent, to_name).map_err(|errno| named(errno, from))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        absent_is_fine(self.parent(path).and_then(|(parent, name)| {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(|errno| named(errno, path))
        }))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        absent_is_fine(self.parent(path).and_then(|(parent, name)| {
            rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(|errno| named(errno, path))
        }))
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        File::from(self.directory(path)?).sync_all()
    }

    fn sync_all(&self, files: &BTreeSet<String>, directories: &[&str]) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if files.len() > MANY_FILES {
            // All of the file system: one flush of the disk instead of thousands, one behind the other.
            return Ok(rustix::fs::syncfs(&self.root)?);
        }
        sync_one_by_one(self, files, directories)
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn LockGuard>> {
        let file = self.open_file(path, OpenMode::Create)?;
        match file.try_lock() {
            Ok(()) => {
                // The id is for a person who meets the lock; the lock itself is the kernel's and dies with us.
                file.set_len(0)?;
                file.write_all_at(std::process::id().to_string().as_bytes(), 0)?;
                Ok(Box::new(RealLock { _file: file }))
            }
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                format!("{} is held by process {}", self.directory.join(path).display(), holder(&file)),
            )),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn disk_space(&self) -> io::Result<DiskSpace> {
        let found = rustix::fs::fstatvfs(&self.root)?;
        // What only root may use is neither in use nor free, as with df: a disk that holds much of it back would be full
        // for ever.
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(DiskSpace {
            total_bytes: used.saturating_add(found.f_bavail).saturating_mul(found.f_frsize),
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    fn describe(&self) -> String {
        self.directory.display().to_string()
    }

    fn works_beside(&self) -> bool {
        true
    }
}

/// The process id in a lock file, or `unknown` while its holder has not written it yet.
fn holder(file: &File) -> String {
    let mut text = [0; MAX_LOCK_TEXT_BYTES];
    let len = file.read_at(&mut text, 0).unwrap_or(0);
    match std::str::from_utf8(&text[..len]) {
        Ok(pid) if !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) => pid.to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Closing the file gives the lock back.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl LockGuard for RealLock {}

#[derive(Debug)]
struct RealFile {
    file: Arc<File>,
    maps_for_writing: bool,
}

impl RealFile {
    fn write_vectored(&self, mut offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        // Drops empty pieces at the front, so that the loop below ends when nothing is left.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let few = &rest[..rest.len().min(MAX_PIECES)];
            let written = retry_on_intr(|| rustix::io::pwritev(&self.file, few, offset))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }
}

impl LayerFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        match pieces {
            [one] => self.file.write_all_at(one, offset),
            _ => self.write_vectored(offset, pieces),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let before = self.len()?;
        retry_on_intr(|| rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len)).map_err(|errno| {
            // Some file systems keep what they got before the disk was full. Nothing beyond the old end was ever
            // read, so giving it back cannot hurt; if that fails, the file is only longer than it needs to be.
            let _ = self.file.set_len(before);
            io::Error::from(errno)
        })
    }

    fn data_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows of no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
            Err(error) => return Err(error.into()),
        };
        let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(data)) {
            Ok(hole) => hole,
            // The end, at the latest, is a hole to whoever knows of them.
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => self.len()?,
            Err(error) => return Err(error.into()),
        };
        Ok((data < hole).then_some(data..hole))
    }

    fn read_ahead(&self, range: Range<u64>) {
        // No length at all would stand for the whole rest of the file.
        if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let _ = rustix::fs::fadvise(&self.file, range.start, Some(len), rustix::fs::Advice::WillNeed);
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self, from: u64) {
        // What is cached in one piece goes as a whole or stays: from the beginning of the largest piece that there is,
        // which is as large as one table of pages maps.
        let page = rustix::param::page_size() as u64;
        let piece = page * (page / 8);
        let _ = rustix::fs::fadvise(&self.file, from - from % piece, None, rustix::fs::Advice::DontNeed);
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn MappedRegion>> {
        Ok(Arc::new(MappedFile::map(Arc::clone(&self.file), len)?))
    }

    fn map_for_writing(&self, start: u64, len: usize) -> io::Result<Option<Box<dyn WritableRegion>>> {
        if !self.maps_for_writing {
            return Ok(None);
        }
        Ok(Some(Box::new(MappedWindow::map(&self.file, start, len)?)))
    }
}

#[cfg(test)]
#[path = "../tests/real.rs"]
mod tests;
