//! The part of the active segment that is mapped for stores.
//!
//! Windows follow each other, each beginning at a multiple of [`WINDOW_BYTES`] and reaching far enough beyond the next
//! such place for the frame that lies across it. So only a small part of a segment is ever mapped, and giving a window
//! up is how its pages are let go.

use std::io;

use crate::commit_log::format::FRAME_HEADER_BYTES;
use crate::commit_log::room::Room;
use crate::files::WritableRegion;

/// Windows begin at multiples of this. The writer is done with one in some milliseconds at its fastest: smaller ones (2 MiB)
/// were used up before the next was ready, and cost a map and a wake-up four times as often.
pub(crate) const WINDOW_BYTES: u64 = 8 << 20;
/// Larger frames are written with a positioned write. Up to here a copy less makes an append a quarter to a third faster, and
/// the next window need not be far longer than its step.
pub(crate) const MAX_MAPPED_FRAME_BYTES: u64 = 4 << 20;

/// One window.
#[derive(Debug)]
pub(crate) struct Window {
    /// Where the segment begins in the log.
    segment: u64,
    /// Where the window begins and ends in the segment's file.
    start: u64,
    end: u64,
    region: Box<dyn WritableRegion>,
}

impl Window {
    /// Maps the window around a place of a segment; `None` if the layer maps nothing for stores.
    pub(crate) fn open(room: &Room, at: u64) -> io::Result<Option<Self>> {
        let start = at - at % WINDOW_BYTES;
        let end = (start + WINDOW_BYTES + MAX_MAPPED_FRAME_BYTES).min(room.segment_bytes());
        let len = usize::try_from(end - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let region = room.file.map_for_writing(start, len)?;
        Ok(region.map(|region| Self { segment: room.start, start, end, region }))
    }

    /// Whether a frame of a segment is to be stored here: it begins before the next window.
    pub(crate) fn covers(&self, segment: u64, at: u64, len: u64) -> bool {
        segment == self.segment && (self.start..self.start + WINDOW_BYTES).contains(&at) && at + len <= self.end
    }

    /// Has the pages up to the next window ready for stores.
    pub(crate) fn populate(&mut self) {
        let len = WINDOW_BYTES.min(self.end - self.start);
        self.region.populate(self.start, usize::try_from(len).unwrap_or(0));
    }

    /// A place to store into.
    pub(crate) fn bytes_mut(&mut self, at: u64, len: usize) -> &mut [u8] {
        self.region.bytes_mut(at, len)
    }

    /// Puts the header before a frame whose items stand.
    pub(crate) fn finish(&mut self, at: u64, frame_bytes: usize, head: &[u8; FRAME_HEADER_BYTES]) {
        self.region.written(at + FRAME_HEADER_BYTES as u64, frame_bytes - FRAME_HEADER_BYTES);
        self.region.bytes_mut(at, FRAME_HEADER_BYTES).copy_from_slice(head);
        self.region.written(at, FRAME_HEADER_BYTES);
    }
}
