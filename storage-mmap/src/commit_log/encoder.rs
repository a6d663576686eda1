//! Writes one frame, item by item, into a place of exactly its size: a buffer, or the mapped file itself.

use cuemq_storage_api::Record;

use crate::mapped_file::bring_near;

use super::checksum::{self, LANES, SUM_BYTES};
use super::format::{
    ALIGNMENT, FRAME_HEADER_BYTES, ITEM_PREFIX_BYTES, KIND_DELETE, KIND_PUT, KIND_RECORD, KIND_TRIM,
    RECORD_HEADER_BYTES, RecordHeader, TRIM_BYTES, in_frame, len_u8, len_u16, len_u32, row_bytes, trim_bytes,
};

/// Lines of memory are asked for so far ahead of the item that is being stored, an item's worth at a time.
const LINES_AHEAD_BYTES: usize = 2048;
/// Items that are smaller leave the processor the time to fetch lines by itself.
const LARGE_ITEM_BYTES: usize = 512;

/// Encodes the items of one frame. The header's place is left alone: whoever gave the place fills it in last, when
/// everything else stands.
#[derive(Debug)]
pub(crate) struct FrameEncoder<'a> {
    frame: &'a mut [u8],
    /// Bytes so far, the header's place included.
    len: usize,
    /// The checksums of the items so far: one checksum over many of them costs less than many steps of it.
    sums: &'a mut Vec<u8>,
    items: u32,
    /// Where the last items begin, of which so many stand and lack their checksums.
    open: [usize; LANES],
    open_items: usize,
}

/// What a frame's header says about its items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Encoded {
    /// How many there are.
    pub(crate) items: u32,
    /// Checksum over their checksums.
    pub(crate) items_crc: u32,
}

impl<'a> FrameEncoder<'a> {
    /// Begins a frame in a place of the size that [`frame_bytes`](super::format::frame_bytes) gives for its items.
    /// `sums` is scratch room, to be used again and again.
    pub(crate) fn new(frame: &'a mut [u8], sums: &'a mut Vec<u8>) -> Self {
        sums.clear();
        bring_near(&frame[..frame.len().min(LINES_AHEAD_BYTES)]);
        Self { frame, len: FRAME_HEADER_BYTES, sums, items: 0, open: [0; LANES], open_items: 0 }
    }

    /// Bytes so far, the header's place included: where the next item begins within the frame.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a record. The lengths in `header` are those of the parts.
    #[inline]
    pub(crate) fn record(&mut self, header: &RecordHeader, topic: &str, record: &Record) {
        let item = self.place(header.len as usize);
        let (head, parts) = item.split_first_chunk_mut::<RECORD_HEADER_BYTES>().expect("an item holds its header");
        let lengths = u64::from(KIND_RECORD)
            | u64::from(header.topic_len) << 8
            | u64::from(header.attributes_len) << 16
            | u64::from(header.body_len) << 32;
        head[4..8].copy_from_slice(&header.len.to_le_bytes());
        head[8..16].copy_from_slice(&lengths.to_le_bytes());
        head[16..24].copy_from_slice(&header.position.to_le_bytes());
        head[24..32].copy_from_slice(&header.queue_offset.to_le_bytes());
        head[32..40].copy_from_slice(&header.stored_at.to_le_bytes());
        head[40..48].copy_from_slice(&header.born_at.to_le_bytes());
        head[48..56].copy_from_slice(&header.tag_hash.to_le_bytes());
        head[56..64].copy_from_slice(&(u64::from(header.queue) | u64::from(header.epoch) << 32).to_le_bytes());
        fill(parts, [topic.as_bytes(), record.attributes.as_bytes(), &record.body]);
        self.end_item(header.len as usize);
    }

    /// Adds the setting of a row.
    pub(crate) fn put(&mut self, table: &str, key: &[u8], value: &[u8]) {
        self.row(KIND_PUT, table, key, value);
    }

    /// Adds the removal of a row.
    pub(crate) fn delete(&mut self, table: &str, key: &[u8]) {
        self.row(KIND_DELETE, table, key, &[]);
    }

    fn row(&mut self, kind: u8, table: &str, key: &[u8], value: &[u8]) {
        let len = row_bytes(table, key, value);
        let item = self.place(len);
        let (head, parts) = item.split_first_chunk_mut::<ITEM_PREFIX_BYTES>().expect("an item holds its header");
        head[4..8].copy_from_slice(&len_u32(len).to_le_bytes());
        head[8] = kind;
        head[9] = len_u8(table.len());
        head[10..12].copy_from_slice(&len_u16(key.len()).to_le_bytes());
        head[12..16].copy_from_slice(&len_u32(value.len()).to_le_bytes());
        fill(parts, [table.as_bytes(), key, value]);
        self.end_item(len);
    }

    /// Adds the trimming of a queue.
    pub(crate) fn trim(&mut self, topic: &str, queue: u32, before: u64) {
        let len = trim_bytes(topic);
        let item = self.place(len);
        let (head, parts) = item.split_first_chunk_mut::<TRIM_BYTES>().expect("an item holds its header");
        head[4..8].copy_from_slice(&len_u32(len).to_le_bytes());
        head[8] = KIND_TRIM;
        head[9] = len_u8(topic.len());
        head[10..12].fill(0);
        head[12..16].copy_from_slice(&queue.to_le_bytes());
        head[16..24].copy_from_slice(&before.to_le_bytes());
        fill(parts, [topic.as_bytes(), &[], &[]]);
        self.end_item(len);
    }

    /// The place of the next item, of this length, with the zeros behind it. A frame that was measured too small is a bug
    /// that must not write anything.
    #[inline]
    fn place(&mut self, len: usize) -> &mut [u8] {
        if len >= LARGE_ITEM_BYTES
            && let Some(ahead) = self.frame.get(self.len + LINES_AHEAD_BYTES..)
        {
            bring_near(&ahead[..len.min(LINES_AHEAD_BYTES).min(ahead.len())]);
        }
        &mut self.frame[self.len..self.len + in_frame(len)]
    }

    /// Ends the item in its [`place`](Self::place). Its checksum comes with those of its neighbours.
    #[inline(always)]
    fn end_item(&mut self, len: usize) {
        let [_, first, second] = self.open;
        self.open = [first, second, self.len];
        self.open_items += 1;
        self.items += 1;
        self.len += in_frame(len);
        if self.open_items == LANES {
            self.seal_open();
        }
    }

    /// Gives as many items their checksums as are computed side by side.
    fn seal_open(&mut self) {
        let [first, second, third] = self.open;
        let items = [&self.frame[first..second], &self.frame[second..third], &self.frame[third..self.len]];
        self.seal(self.open, checksum::of_items(items));
        self.open_items = 0;
    }

    /// Gives the items that begin there their checksums, and notes these in one step.
    #[inline]
    fn seal<const N: usize>(&mut self, starts: [usize; N], sums: [u32; N]) {
        let sums = sums.map(u32::to_le_bytes);
        for (start, sum) in starts.into_iter().zip(&sums) {
            self.frame[start..start + SUM_BYTES].copy_from_slice(sum);
        }
        self.sums.extend_from_slice(sums.as_flattened());
    }

    /// Says what the frame's header has to say about the items.
    ///
    /// # Panics
    /// When the items do not end where the frame was said to end.
    pub(crate) fn finish(mut self) -> Encoded {
        let ends = [self.open[1], self.open[2], self.len];
        for (start, end) in self.open.into_iter().zip(ends).skip(LANES - self.open_items) {
            self.seal([start], [checksum::of_item(&self.frame[start..end])]);
        }
        assert!(self.len == self.frame.len(), "the frame was measured larger than its items are");
        Encoded { items: self.items, items_crc: crc32c::crc32c(self.sums) }
    }
}

/// Copies the parts one behind the other, and zeros over what is left of the place.
#[inline]
fn fill(place: &mut [u8], parts: [&[u8]; 3]) {
    // What is left is less than a word, so the parts come over all of this but that.
    if let Some(last) = place.last_chunk_mut::<ALIGNMENT>() {
        *last = [0; ALIGNMENT];
    }
    let [first, second, third] = parts;
    let (one, rest) = place.split_at_mut(first.len());
    copy_short(one, first);
    let (two, three) = rest.split_at_mut(second.len());
    if !second.is_empty() {
        two.copy_from_slice(second);
    }
    let (three, left) = three.split_at_mut(third.len());
    three.copy_from_slice(third);
    debug_assert!(left.iter().all(|&byte| byte == 0), "zeros follow an item");
}

/// Copies a name, which mostly has less than 17 bytes: two words that may overlap instead of a call.
#[inline]
fn copy_short(to: &mut [u8], from: &[u8]) {
    if let (Some(first), Some(last), 8..=16) = (from.first_chunk::<8>(), from.last_chunk::<8>(), from.len()) {
        to[..8].copy_from_slice(first);
        to[from.len() - 8..].copy_from_slice(last);
    } else if let (Some(first), Some(last), 4..8) = (from.first_chunk::<4>(), from.last_chunk::<4>(), from.len()) {
        to[..4].copy_from_slice(first);
        to[from.len() - 4..].copy_from_slice(last);
    } else {
        to.copy_from_slice(from);
    }
}
