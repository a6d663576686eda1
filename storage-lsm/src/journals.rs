//! fjall's journal files, seen from outside: which there are, and making the newest one durable.
//!
//! fjall 3.1.13 names them `<number>.jnl`, appends only to the one with the highest number, and before it makes a new
//! one it syncs the old one whole; a journal is removed only when its rows are in synced tables. So whoever syncs the
//! newest file after a commit has made that commit durable.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

const EXTENSION: &str = "jnl";
const COPY_BLOCK_BYTES: usize = 64 << 10;

/// The journals of one database.
#[derive(Debug)]
pub(crate) struct Journals {
    directory: PathBuf,
    newest: Mutex<Option<(u64, File)>>,
}

impl Journals {
    /// The journals in a directory, which need not be there yet.
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), newest: Mutex::new(None) }
    }

    /// Their numbers, lowest first; none when there is no directory.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u64>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new(EXTENSION)) {
                numbers.extend(path.file_stem().and_then(OsStr::to_str).and_then(|name| name.parse::<u64>().ok()));
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Bytes of the journals with these numbers that are still there.
    pub(crate) fn bytes(&self, numbers: &[u64]) -> u64 {
        numbers.iter().map(|number| fs::metadata(self.path(*number)).map_or(0, |found| found.len())).sum()
    }

    /// Makes every row that was committed before the call survive a power cut, while commits go on beside.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // What is behind the lock is looked at again below, so a panic elsewhere cannot have broken it.
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.as_ref().map(|(number, _)| *number);
        if known.is_none_or(|number| self.path(number + 1).exists()) {
            *newest = Some(self.open_newest()?);
        }
        newest.as_ref().map_or(Ok(()), |(_, file)| file.sync_data())
    }

    /// Empties the newest journal of a closed database whose rows are all in tables, as fjall does when it finds
    /// nothing whole in it. It must not be removed: without a journal fjall 3.1.13 begins to number batches anew.
    pub(crate) fn empty_newest(&self) -> io::Result<()> {
        let (_, file) = self.open_newest()?;
        file.set_len(0)?;
        file.sync_all()
    }

    /// Copies what is in the journals to a folder, unless an earlier copy is there, because fjall cuts a journal off
    /// behind the first damaged byte and with that whatever could still have been saved.
    pub(crate) fn keep(&self, folder: &Path) -> io::Result<()> {
        if folder.try_exists()? {
            return Ok(());
        }
        let unfinished = folder.with_extension("new");
        if unfinished.try_exists()? {
            fs::remove_dir_all(&unfinished)?;
        }
        let numbers = self.numbers()?;
        if self.bytes(&numbers) == 0 {
            return Ok(());
        }
        fs::create_dir(&unfinished)?;
        for number in numbers {
            let path = self.path(number);
            copy_sparsely(&path, &unfinished.join(format!("{number}.{EXTENSION}")))?;
        }
        fs::rename(unfinished, folder)
    }

    fn open_newest(&self) -> io::Result<(u64, File)> {
        loop {
            let Some(newest) = self.numbers()?.pop() else {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the store has no journal"));
            };
            match OpenOptions::new().write(true).open(self.path(newest)) {
                Ok(file) => return Ok((newest, file)),
                // Sealed and removed since, so there is a newer one.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number}.{EXTENSION}"))
    }
}

/// Copies a file but leaves out blocks of zeros: most of a new journal is room that was never written.
fn copy_sparsely(from: &Path, to: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    let mut block = vec![0; COPY_BLOCK_BYTES];
    let mut length = 0;
    loop {
        let read = from.read(&mut block)?;
        if read == 0 {
            return to.set_len(length);
        }
        let content = &block[..read];
        length += read as u64;
        if content.iter().all(|byte| *byte == 0) {
            // Else every opening would read the 64 MiB of zeros that a new journal has and nobody has written.
            length = data_from(&from, length)?;
            from.seek(SeekFrom::Start(length))?;
            to.seek(SeekFrom::Start(length))?;
        } else {
            to.write_all(content)?;
        }
    }
}

/// Where a file has content again, seen from an offset in it: at its end, at the latest.
fn data_from(file: &File, offset: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Ok(data),
        Err(Errno::NXIO) => Ok(file.metadata()?.len()),
        // A file system that knows of no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn the_newest_journal_is_synced_and_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let journals = Journals::new(directory.path());
        assert_eq!(journals.sync().unwrap_err().kind(), io::ErrorKind::NotFound);
        let synced = || journals.newest.lock().unwrap().as_ref().map(|(number, _)| *number);
        for number in [9, 10] {
            fs::write(journals.path(number), "rows").unwrap();
            journals.sync().unwrap();
            assert_eq!(synced(), Some(number));
        }
        fs::write(directory.path().join("lock"), "").unwrap();
        fs::remove_file(journals.path(9)).unwrap();
        fs::write(journals.path(11), "rows").unwrap();
        assert_eq!(journals.numbers().unwrap(), [10, 11]);
        assert_eq!(journals.bytes(&[9, 10, 11]), 8);
        journals.empty_newest().unwrap();
        assert_eq!(journals.bytes(&[10, 11]), 4);
        assert_eq!(Journals::new(&directory.path().join("none")).numbers().unwrap(), []);
    }

    #[test]
    fn the_first_copy_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("kept");
        let journals = Journals::new(directory.path());
        journals.keep(&kept).unwrap();
        assert!(!kept.exists(), "there was nothing to keep");
        // Written zeros, a hole with something behind it, and a hole at the end.
        let mut content = vec![0; 64 * COPY_BLOCK_BYTES + 7];
        (content[5], content[2 * COPY_BLOCK_BYTES], content[32 * COPY_BLOCK_BYTES + 9]) = (1, 2, 3);
        let file = File::create_new(journals.path(4)).unwrap();
        file.set_len(content.len() as u64).unwrap();
        for part in [0..4 * COPY_BLOCK_BYTES, 32 * COPY_BLOCK_BYTES..33 * COPY_BLOCK_BYTES] {
            file.write_all_at(&content[part.clone()], part.start as u64).unwrap();
        }
        fs::create_dir(directory.path().join("kept.new")).unwrap();
        journals.keep(&kept).unwrap();
        fs::write(journals.path(4), "cut").unwrap();
        journals.keep(&kept).unwrap();
        assert_eq!(fs::read(kept.join("4.jnl")).unwrap(), content);
        assert!(!directory.path().join("kept.new").exists());
    }
}
