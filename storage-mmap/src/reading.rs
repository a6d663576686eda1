//! Reading a file from its beginning on that may be larger than memory: a checkpoint.

use std::io;

use crate::files::LayerFile;

/// Bytes read at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// The unread rest of a file up to an end. Whatever the bytes claim, nothing is read beyond it.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    file: &'a dyn LayerFile,
    /// Where the unread rest begins.
    at: u64,
    end: u64,
    piece: Vec<u8>,
    piece_at: u64,
}

/// The error of bytes that are not what was written.
pub(crate) fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the checkpoint is damaged")
}

impl<'a> Reading<'a> {
    pub(crate) fn new(file: &'a dyn LayerFile, end: u64) -> Self {
        Self { file, at: 0, end, piece: Vec::new(), piece_at: 0 }
    }

    /// Where the unread rest begins.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// The next bytes.
    ///
    /// # Errors
    /// `InvalidData` when too few are left; what the operating system answers.
    pub(crate) fn bytes(&mut self, len: u64) -> io::Result<&[u8]> {
        let start = self.at;
        self.skip(len)?;
        let piece_end = self.piece_at + self.piece.len() as u64;
        if start < self.piece_at || start + len > piece_end {
            let want = len.max(PIECE_BYTES).min(self.end - start);
            self.piece.resize(usize::try_from(want).map_err(|_| damaged())?, 0);
            self.file.read_at(start, &mut self.piece)?;
            self.piece_at = start;
        }
        let from = usize::try_from(start - self.piece_at).map_err(|_| damaged())?;
        let len = usize::try_from(len).map_err(|_| damaged())?;
        Ok(&self.piece[from..from + len])
    }

    /// Passes over bytes.
    ///
    /// # Errors
    /// `InvalidData` when too few are left.
    pub(crate) fn skip(&mut self, len: u64) -> io::Result<()> {
        self.at = self.at.checked_add(len).filter(|at| *at <= self.end).ok_or_else(damaged)?;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.bytes(N as u64)?.try_into().map_err(|_| damaged())
    }

    pub(crate) fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self) -> io::Result<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A length of 8 bits and as many bytes of UTF-8.
    pub(crate) fn name(&mut self) -> io::Result<String> {
        let [len] = self.array()?;
        String::from_utf8(self.bytes(u64::from(len))?.to_vec()).map_err(|_| damaged())
    }

    /// The checksum over the whole file up to the end.
    pub(crate) fn crc(file: &'a dyn LayerFile, end: u64) -> io::Result<u32> {
        let (mut reading, mut crc) = (Self::new(file, end), 0);
        while !reading.is_empty() {
            let piece = reading.bytes(PIECE_BYTES.min(end - reading.position()))?;
            crc = crc32c::crc32c_append(crc, piece);
        }
        Ok(crc)
    }
}
