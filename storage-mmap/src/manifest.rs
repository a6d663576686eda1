//! `MANIFEST`: which format a store has, how its files are shaped, how often it was opened.

use std::io;

use cuemq_storage_api::{ErrorKind, Result, StorageError};

use crate::cursor::Cursor;
use crate::files::{FileLayer, OpenMode};
use crate::health::{corrupt, read_failed};
use crate::replace::replace_file;
use crate::settings::MmapSettings;

/// The format this version writes. A higher minor number may be read and written, a higher major one not.
pub(crate) const FORMAT_MAJOR: u16 = 2;
/// See [`FORMAT_MAJOR`].
pub(crate) const FORMAT_MINOR: u16 = 0;

/// The file's name.
pub(crate) const MANIFEST: &str = "MANIFEST";
/// The lock file's name.
pub(crate) const LOCK: &str = "LOCK";
const MAGIC: &[u8; 8] = b"CueMQmap";
const BYTES: usize = 48;

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    pub(crate) minor: u16,
    /// Rises at every opening for writing, before the first write.
    pub(crate) epoch: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) consume_queue_entries: u32,
    pub(crate) index_slots: u32,
    pub(crate) index_entries: u32,
}

impl Manifest {
    /// The manifest of a new store, before its first opening.
    pub(crate) fn new(settings: &MmapSettings) -> Self {
        Self {
            minor: FORMAT_MINOR,
            epoch: 0,
            segment_bytes: settings.segment_bytes,
            consume_queue_entries: settings.consume_queue_entries,
            index_slots: settings.index_slots,
            index_entries: settings.index_entries,
        }
    }

    fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[0..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&FORMAT_MAJOR.to_le_bytes());
        out[10..12].copy_from_slice(&self.minor.to_le_bytes());
        out[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        out[16..24].copy_from_slice(&self.segment_bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.consume_queue_entries.to_le_bytes());
        out[28..32].copy_from_slice(&self.index_slots.to_le_bytes());
        out[32..36].copy_from_slice(&self.index_entries.to_le_bytes());
        let crc = crc32c::crc32c(&out[..BYTES - 4]);
        out[BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], place: &str) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.bytes(MAGIC.len()) != Some(MAGIC) {
            return Err(foreign(&format!("{place}/{MANIFEST} does not begin as a CueMQ manifest does")));
        }
        let damaged = || corrupt("open", format!("{place}/{MANIFEST} is damaged: restore it from a copy of the store"));
        let (major, minor) = cursor.u16().zip(cursor.u16()).ok_or_else(damaged)?;
        if major != FORMAT_MAJOR {
            let context = format!(
                "{place} has format {major}.{minor}; this version reads {FORMAT_MAJOR}.{FORMAT_MINOR}: \
                 use the version that wrote it; nothing was touched"
            );
            return Err(StorageError::not_stored(ErrorKind::Version, "open", context));
        }
        let stored_crc = bytes.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc));
        if bytes.len() != BYTES || stored_crc != Some(crc32c::crc32c(&bytes[..BYTES - 4])) {
            return Err(damaged());
        }
        let mut read = || {
            Some(Self {
                minor,
                epoch: cursor.u32()?,
                segment_bytes: cursor.u64()?,
                consume_queue_entries: cursor.u32()?,
                index_slots: cursor.u32()?,
                index_entries: cursor.u32()?,
            })
        };
        read().ok_or_else(damaged)
    }

    /// Reads the manifest of a store; `None` if the directory is empty but for what an interrupted first opening left.
    pub(crate) fn read(files: &dyn FileLayer) -> Result<Option<Self>> {
        let place = files.describe();
        match read_whole(files, MANIFEST) {
            Ok(bytes) => Self::decode(&bytes, &place).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let names = files.list("").map_err(|error| read_failed("open", &place, error))?;
                match names.iter().find(|name| !matches!(name.as_str(), LOCK | "MANIFEST.new" | "lost+found")) {
                    None => Ok(None),
                    Some(name) => Err(foreign(&format!("{place} holds {name:?} but no {MANIFEST}"))),
                }
            }
            Err(error) => Err(read_failed("open", MANIFEST, error)),
        }
    }

    /// Replaces the file, durably.
    pub(crate) fn write(&self, files: &dyn FileLayer) -> io::Result<()> {
        replace_file(files, MANIFEST, |file| file.write(&self.encode()))
    }

    /// Refuses settings that would shape files otherwise than they are.
    pub(crate) fn check_shape(&self, settings: &MmapSettings) -> Result<()> {
        for (name, stored, wanted) in [
            ("segment_bytes", self.segment_bytes, settings.segment_bytes),
            ("consume_queue_entries", u64::from(self.consume_queue_entries), u64::from(settings.consume_queue_entries)),
            ("index_slots", u64::from(self.index_slots), u64::from(settings.index_slots)),
            ("index_entries", u64::from(self.index_entries), u64::from(settings.index_entries)),
        ] {
            if stored != wanted {
                let context = format!(
                    "{name} is {wanted}, but the store was made with {stored}: set it to {stored} or use a new directory"
                );
                return Err(StorageError::not_stored(ErrorKind::Invalid, "open", context));
            }
        }
        Ok(())
    }
}

/// The whole content of a small file.
pub(crate) fn read_whole(files: &dyn FileLayer, path: &str) -> io::Result<Vec<u8>> {
    let file = files.open(path, OpenMode::Existing)?;
    let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn foreign(what: &str) -> StorageError {
    let context = format!(
        "{what}: it is not a store of this engine (format {FORMAT_MAJOR}.{FORMAT_MINOR}); \
         use an empty directory; nothing was touched"
    );
    StorageError::not_stored(ErrorKind::Version, "open", context)
}
