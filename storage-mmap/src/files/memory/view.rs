//! Views of files in memory: one to read, one to store into.

use bytes::{Bytes, BytesMut};

use super::disk::Operation;
use super::{Handle, MappedRegion, WritableRegion};

/// A view that copies what it shows.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) content: Handle,
    pub(super) len: u64,
}

impl MappedRegion for Region {
    fn slice(&self, start: u64, len: usize) -> Bytes {
        let end = start.saturating_add(len as u64);
        assert!(end <= self.len, "mapped range {start}..{end} reaches beyond the map of {} bytes", self.len);
        let mut bytes = BytesMut::zeroed(len);
        let read = self.content.files.shared().disk.read(self.content.file, start, &mut bytes);
        assert!(read.is_ok(), "mapped range {start}..{end} reaches beyond the file");
        bytes.freeze()
    }

    fn read_on(&self, end: u64) {
        let advice = (self.content.path.clone(), end);
        self.content.files.shared().read_on = Some(advice);
    }
}

/// A view to store into: the bytes lie apart until the writer says that they are written.
#[derive(Debug)]
pub(super) struct Stores {
    content: Handle,
    start: u64,
    len: usize,
    /// Where `bytes` belongs in the file.
    at: u64,
    bytes: Vec<u8>,
}

impl Stores {
    pub(super) fn new(content: Handle, start: u64, len: usize) -> Self {
        Self { content, start, len, at: start, bytes: Vec::new() }
    }
}

impl WritableRegion for Stores {
    fn bytes_mut(&mut self, start: u64, len: usize) -> &mut [u8] {
        let (end, beyond) = (start + len as u64, self.start + self.len as u64);
        assert!(
            start >= self.start && end <= beyond,
            "{start}..{end} reaches beyond the window {}..{beyond}",
            self.start
        );
        let shared = self.content.files.shared();
        self.bytes.resize(len, 0);
        let read = shared.disk.read(self.content.file, start, &mut self.bytes);
        assert!(read.is_ok(), "a store into {start}..{end} reaches beyond the file: a real one would end the process");
        self.at = start;
        &mut self.bytes
    }

    fn written(&mut self, start: u64, len: usize) {
        let skip = usize::try_from(start - self.at).expect("within the window");
        let bytes = &self.bytes[skip..skip + len];
        // An operating system may write a page back while it is half stored.
        let (first, second) = bytes.split_at(len / 2);
        let mut shared = self.content.files.shared();
        for (at, piece) in [(start, first), (start + first.len() as u64, second)] {
            if !piece.is_empty() {
                let bytes = Bytes::copy_from_slice(piece);
                shared.apply(Operation::Write { file: self.content.file, offset: at, bytes });
            }
        }
    }
}
