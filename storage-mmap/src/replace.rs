//! Replacing a small file as a whole: temporary name, sync, rename, sync of the directory.

use std::io;
use std::sync::Arc;

use crate::files::{FileLayer, LayerFile, OpenMode};

/// A file being written from its beginning on. Collects pieces, so that many small ones cost few writes.
pub(crate) struct Replacement {
    file: Arc<dyn LayerFile>,
    written: u64,
    pending: Vec<u8>,
    crc: u32,
}

impl Replacement {
    /// Pieces are collected up to about this size.
    const PIECE_BYTES: usize = 256 << 10;

    /// Adds bytes behind those written so far.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= Self::PIECE_BYTES { self.flush() } else { Ok(()) }
    }

    /// The checksum over everything written so far.
    pub(crate) fn crc(&self) -> u32 {
        self.crc
    }

    /// The file itself, which keeps its bytes when it has got its name and another one replaces it.
    pub(crate) fn file(&self) -> Arc<dyn LayerFile> {
        Arc::clone(&self.file)
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.written, &[&self.pending])?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

/// Writes a file anew under a temporary name and puts it in place of the old one, durably. After a power cut there is
/// either the old file or the new one, whole.
pub(crate) fn replace_file(
    files: &dyn FileLayer,
    path: &str,
    write: impl FnOnce(&mut Replacement) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = format!("{path}.new");
    let file = files.open(&temporary, OpenMode::Create)?;
    file.set_len(0)?;
    let mut replacement = Replacement { file, written: 0, pending: Vec::new(), crc: 0 };
    write(&mut replacement)?;
    replacement.flush()?;
    replacement.file.sync_data()?;
    files.rename(&temporary, path)?;
    files.sync_directory("")
}
