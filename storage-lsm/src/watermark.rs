//! A small file that remembers how far the store was durable, because fjall does not notice a cut journal.
//!
//! ```text
//! two slots at 0 and 512, written in turn:
//! magic "CQWM" | round u64 LE | batches u64 LE | next position u64 LE | CRC-32C u32 LE over what is before it
//! ```
//! A slot lies within one sector, and the other one is whole while it is written. It is written after the sync that it
//! speaks of, so the store can be ahead of it but never behind, unless something was lost. It need not be synced
//! itself: an old watermark only notices less.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cuemq_storage_api::{ErrorKind, Result, StorageError};

use crate::keys::state::State;

/// The file's name within the engine's directory.
pub(crate) const FILE_NAME: &str = "watermark";
const MAGIC: [u8; 4] = *b"CQWM";
const SLOT_BYTES: usize = 4 + 8 + 8 + 8 + 4;
const SLOT_DISTANCE: u64 = 512;
const SLOTS: u64 = 2;

/// How far a store was durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Durable {
    pub(crate) batches: u64,
    pub(crate) next_position: u64,
}

impl From<&State> for Durable {
    fn from(state: &State) -> Self {
        Self { batches: state.batches, next_position: state.next_position }
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Watermark {
    file: File,
    round: u64,
    written: Durable,
}

impl Watermark {
    /// Opens the file or, if there is none, creates it for a store that has come to `now`.
    ///
    /// # Errors
    /// `Corrupt` when neither slot can be read, or when the store ends before the watermark.
    pub(crate) fn open(directory: &Path, now: Durable) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let io_error = |error: io::Error| {
            StorageError::not_stored(ErrorKind::Io, "open", format!("watermark {}", path.display())).with_source(error)
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::create(&path, &mut options, now).map_err(io_error);
            }
            Err(error) => return Err(io_error(error)),
        };
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&file, SLOT_DISTANCE * SLOTS), &mut content).map_err(io_error)?;
        let Some((round, written)) = newest_slot(&content) else {
            return Err(corrupt(format!(
                "{} is damaged: remove it to open the store without the check that nothing was cut off",
                path.display()
            )));
        };
        if now.batches < written.batches || now.next_position < written.next_position {
            return Err(corrupt(format!(
                "the store ends at batch {} and position {}, but {} says that it was durable to batch {} and position \
                 {}: a journal or table was cut; restore a copy, or remove the watermark to go on with what is left \
                 (journals.kept beside it, if it is there, holds the journals as they were)",
                now.batches,
                now.next_position,
                path.display(),
                written.batches,
                written.next_position
            )));
        }
        Ok(Self { file, round, written })
    }

    fn create(path: &Path, options: &mut OpenOptions, now: Durable) -> io::Result<Self> {
        let file = options.create_new(true).open(path)?;
        let mut watermark = Self { file, round: 0, written: now };
        for _ in 0..SLOTS {
            watermark.write_slot(now)?;
        }
        watermark.file.sync_all()?;
        // The names of this file and of the store beside it must survive a power cut too.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(watermark)
    }

    /// Remembers that the store is durable to `now`; does nothing when that is known.
    pub(crate) fn raise(&mut self, now: Durable) -> io::Result<()> {
        if now.batches <= self.written.batches {
            return Ok(());
        }
        self.write_slot(now)
    }

    /// Makes the file itself survive a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_slot(&mut self, now: Durable) -> io::Result<()> {
        let round = self.round + 1;
        let mut slot = [0; SLOT_BYTES];
        slot[..4].copy_from_slice(&MAGIC);
        slot[4..12].copy_from_slice(&round.to_le_bytes());
        slot[12..20].copy_from_slice(&now.batches.to_le_bytes());
        slot[20..28].copy_from_slice(&now.next_position.to_le_bytes());
        let checksum = crc32c::crc32c(&slot[..28]);
        slot[28..].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&slot, round % SLOTS * SLOT_DISTANCE)?;
        (self.round, self.written) = (round, now);
        Ok(())
    }
}

fn newest_slot(content: &[u8]) -> Option<(u64, Durable)> {
    let slots = [0, 512].into_iter().filter_map(|at| read_slot(content.get(at..at + SLOT_BYTES)?));
    slots.max_by_key(|(round, _)| *round)
}

fn read_slot(slot: &[u8]) -> Option<(u64, Durable)> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let checksum = crc32c::crc32c(slot.get(..28)?).to_le_bytes();
    if slot[..4] != MAGIC || slot[28..] != checksum {
        return None;
    }
    Some((number(4)?, Durable { batches: number(12)?, next_position: number(20)? }))
}

fn corrupt(context: String) -> StorageError {
    StorageError::not_stored(ErrorKind::Corrupt, "open", context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(batches: u64) -> Durable {
        Durable { batches, next_position: batches * 10 }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let directory = tempfile::tempdir().unwrap();
        let mut watermark = Watermark::open(directory.path(), at(0)).unwrap();
        watermark.raise(at(1)).unwrap();
        watermark.raise(at(2)).unwrap();
        let newest = watermark.round % SLOTS * SLOT_DISTANCE;
        drop(watermark);
        assert_eq!(Watermark::open(directory.path(), at(1)).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(Watermark::open(directory.path(), at(2)).unwrap().written, at(2));
        assert_eq!(Watermark::open(directory.path(), at(3)).unwrap().written, at(2));

        // A slot torn while it was written: the one before it still counts.
        let path = directory.path().join(FILE_NAME);
        let mut content = std::fs::read(&path).unwrap();
        content[usize::try_from(newest).unwrap() + 13] ^= 1;
        std::fs::write(&path, &content).unwrap();
        assert_eq!(Watermark::open(directory.path(), at(1)).unwrap().written, at(1));
        assert_eq!(Watermark::open(directory.path(), at(0)).unwrap_err().kind(), ErrorKind::Corrupt);

        std::fs::write(&path, b"").unwrap();
        let error = Watermark::open(directory.path(), at(9)).unwrap_err();
        assert!(error.context().contains("watermark"), "{error}");
    }
}
