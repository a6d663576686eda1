//! The bytes of the commit log: frames and the items in them. `FORMAT.md` has the same as a table.
//!
//! A *frame* is one applied batch: a header, then one *item* per appended record, put, delete and trim, each filled up
//! with zeros to a multiple of 8. It counts only as a whole: every checksum in it must hold.

use bytes::{Buf, Bytes};
use cuemq_storage_api::{Attributes, Record, Timestamp};

use crate::commit_log::checksum::{self, LANES, SUM_BYTES};

/// Bytes of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// Bytes of an appended record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 64;
/// Frames and the items in them begin and end at multiples of this: a search for frames can go in steps, and a checksum
/// takes whole words of an item and no single bytes, whose number a processor would have to guess.
pub(crate) const ALIGNMENT: usize = 8;

const MAGIC: [u8; 4] = *b"CqFr";
const VERSION: u16 = 2;
const FLAG_BLANK: u16 = 1;
pub(super) const ITEM_PREFIX_BYTES: usize = 16;
pub(super) const TRIM_BYTES: usize = 24;
pub(super) const KIND_RECORD: u8 = 1;
pub(super) const KIND_PUT: u8 = 2;
pub(super) const KIND_DELETE: u8 = 3;
pub(super) const KIND_TRIM: u8 = 4;

/// The header of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHeader {
    /// Whole frame with header and padding; for a blank one, the rest of the segment.
    pub(crate) len: u32,
    pub(crate) items: u32,
    pub(crate) epoch: u32,
    /// The header checksum of the frame before this one; 0 for the first frame of a store.
    pub(crate) previous: u32,
    /// Where the frame begins in the log.
    pub(crate) position: u64,
    /// Up to where the log was surely on disk when this frame was written.
    pub(crate) durable_upto: u64,
    pub(crate) stored_at: i64,
    /// Checksum over the checksums of the items.
    pub(crate) items_crc: u32,
    /// Ends a segment: nothing but zeros follows it up to the next one.
    pub(crate) blank: bool,
}

impl FrameHeader {
    /// The header's bytes, and their checksum, which links the next frame to this one.
    pub(crate) fn encode(&self) -> ([u8; FRAME_HEADER_BYTES], u32) {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&(if self.blank { FLAG_BLANK } else { 0 }).to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..16].copy_from_slice(&self.items.to_le_bytes());
        out[16..20].copy_from_slice(&self.epoch.to_le_bytes());
        out[20..24].copy_from_slice(&self.previous.to_le_bytes());
        out[24..32].copy_from_slice(&self.position.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable_upto.to_le_bytes());
        out[40..48].copy_from_slice(&self.stored_at.to_le_bytes());
        out[48..52].copy_from_slice(&self.items_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// The header and its checksum, if these bytes are one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, u32)> {
        if bytes.len() < FRAME_HEADER_BYTES || bytes[0..4] != MAGIC || u16_at(bytes, 4) != VERSION {
            return None;
        }
        let crc = u32_at(bytes, 60);
        let flags = u16_at(bytes, 6);
        if crc32c::crc32c(&bytes[..60]) != crc || flags & !FLAG_BLANK != 0 || u64_at(bytes, 52) != 0 {
            return None;
        }
        let header = Self {
            len: u32_at(bytes, 8),
            items: u32_at(bytes, 12),
            epoch: u32_at(bytes, 16),
            previous: u32_at(bytes, 20),
            position: u64_at(bytes, 24),
            durable_upto: u64_at(bytes, 32),
            stored_at: i64_at(bytes, 40),
            items_crc: u32_at(bytes, 48),
            blank: flags & FLAG_BLANK != 0,
        };
        let whole = header.len as usize;
        let sound = whole >= FRAME_HEADER_BYTES && whole.is_multiple_of(ALIGNMENT);
        sound.then_some((header, crc))
    }

    /// Whether the bytes behind the header are exactly this frame's items, each whole.
    pub(crate) fn vouches_for(&self, items: &[u8]) -> bool {
        if self.blank {
            return self.items == 0;
        }
        let (mut rest, mut crc, mut left) = (items, 0, self.items as usize);
        while left > 0 {
            let (mut group, mut sums): ([&[u8]; LANES], _) = ([&[]; LANES], [[0; SUM_BYTES]; LANES]);
            let count = left.min(LANES);
            for (place, sum) in group[..count].iter_mut().zip(&mut sums) {
                let Some((item, tail)) = split_item(rest) else { return false };
                (*place, rest) = (item, tail);
                sum.copy_from_slice(&item[..SUM_BYTES]);
            }
            if !checksum::hold(&group[..count]) {
                return false;
            }
            crc = crc32c::crc32c_append(crc, sums[..count].as_flattened());
            left -= count;
        }
        crc == self.items_crc && rest.is_empty()
    }
}

/// Bytes of a frame around items that take so many bytes in it.
pub(crate) const fn frame_bytes(items: u64) -> u64 {
    FRAME_HEADER_BYTES as u64 + items
}

/// Bytes that an item of this length takes in a frame.
#[inline]
pub(crate) const fn in_frame(item_len: usize) -> usize {
    item_len.next_multiple_of(ALIGNMENT)
}

/// Length of the item that carries a record.
pub(crate) fn record_bytes(topic: &str, record: &Record) -> usize {
    RECORD_HEADER_BYTES + topic.len() + record.payload_bytes()
}

/// Length of the item that sets or (without a value) removes a row.
pub(crate) fn row_bytes(table: &str, key: &[u8], value: &[u8]) -> usize {
    ITEM_PREFIX_BYTES + table.len() + key.len() + value.len()
}

/// Length of the item that trims a queue.
pub(crate) fn trim_bytes(topic: &str) -> usize {
    TRIM_BYTES + topic.len()
}

/// The fixed part of an appended record's item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) len: u32,
    pub(crate) topic_len: u8,
    pub(crate) attributes_len: u16,
    pub(crate) body_len: u32,
    pub(crate) position: u64,
    pub(crate) queue_offset: u64,
    pub(crate) stored_at: i64,
    pub(crate) born_at: i64,
    pub(crate) tag_hash: i64,
    pub(crate) queue: u32,
    pub(crate) epoch: u32,
}

impl RecordHeader {
    /// The header, if these bytes begin an item of a record whose lengths add up.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        // Of a size that is known, so that no field is compared with the end again.
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk()?;
        if bytes[8] != KIND_RECORD {
            return None;
        }
        let header = Self {
            len: u32_at(bytes, 4),
            topic_len: bytes[9],
            attributes_len: u16_at(bytes, 10),
            body_len: u32_at(bytes, 12),
            position: u64_at(bytes, 16),
            queue_offset: u64_at(bytes, 24),
            stored_at: i64_at(bytes, 32),
            born_at: i64_at(bytes, 40),
            tag_hash: i64_at(bytes, 48),
            queue: u32_at(bytes, 56),
            epoch: u32_at(bytes, 60),
        };
        let parts = RECORD_HEADER_BYTES as u64
            + u64::from(header.topic_len)
            + u64::from(header.attributes_len)
            + u64::from(header.body_len);
        (parts == u64::from(header.len)).then_some(header)
    }

    /// Where the attributes begin within the item.
    #[inline]
    pub(crate) fn attributes_at(&self) -> usize {
        RECORD_HEADER_BYTES + usize::from(self.topic_len)
    }

    /// Where the body begins within the item; it ends with it.
    #[inline]
    pub(crate) fn body_at(&self) -> usize {
        self.attributes_at() + usize::from(self.attributes_len)
    }

    /// The topic within the whole item.
    #[inline]
    pub(crate) fn topic<'a>(&self, item: &'a [u8]) -> &'a [u8] {
        &item[RECORD_HEADER_BYTES..self.attributes_at()]
    }

    /// The attributes within the whole item.
    pub(crate) fn attributes<'a>(&self, item: &'a [u8]) -> &'a [u8] {
        &item[self.attributes_at()..self.body_at()]
    }

    /// The record as slices of the whole item, which becomes the body: one slice less to count.
    pub(crate) fn record(&self, mut item: Bytes) -> Record {
        let (attributes_start, body_start) = (self.attributes_at(), self.body_at());
        let attributes = if self.attributes_len == 0 {
            Attributes::EMPTY
        } else {
            Attributes::from_stored(item.slice(attributes_start..body_start))
        };
        item.truncate(body_start + self.body_len as usize);
        item.advance(body_start);
        Record { body: item, attributes, born_at: Timestamp::from_millis(self.born_at) }
    }
}

/// What an item says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item<'a> {
    Record { header: RecordHeader, bytes: &'a [u8] },
    Put { table: &'a str, key: &'a [u8], value: &'a [u8] },
    Delete { table: &'a str, key: &'a [u8] },
    Trim { topic: &'a [u8], queue: u32, before: u64 },
}

/// Cuts one item off the front with the zeros behind it, going by its length alone.
fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.len() < ITEM_PREFIX_BYTES {
        return None;
    }
    let len = u32_at(bytes, 4) as usize;
    if len < ITEM_PREFIX_BYTES { None } else { bytes.split_at_checked(in_frame(len)) }
}

/// Whether the checksum of an item holds, given with the zeros behind it.
pub(crate) fn item_is_sound(item: &[u8]) -> bool {
    item.len() >= ITEM_PREFIX_BYTES && checksum::hold(&[item])
}

/// The items of a frame for which the frame's header vouched. Ends early at an item it cannot read, which then is
/// the work of a writer with a bug: [`Items::is_complete`] tells.
#[derive(Debug)]
pub(crate) struct Items<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Items<'a> {
    pub(crate) fn new(header: &FrameHeader, items: &'a [u8]) -> Self {
        Self { rest: items, left: header.items }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.left == 0
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    #[inline]
    fn next(&mut self) -> Option<Item<'a>> {
        if self.left == 0 {
            return None;
        }
        let (bytes, rest) = split_item(self.rest)?;
        let item = decode_item(bytes)?;
        self.rest = rest;
        self.left -= 1;
        Some(item)
    }
}

/// What an item says, of which `bytes` holds all up to the zeros and these too.
#[inline]
fn decode_item(bytes: &[u8]) -> Option<Item<'_>> {
    let bytes = bytes.get(..u32_at(bytes, 4) as usize)?;
    let name_len = usize::from(bytes[9]);
    match bytes[8] {
        KIND_RECORD => Some(Item::Record { header: RecordHeader::decode(bytes)?, bytes }),
        kind @ (KIND_PUT | KIND_DELETE) => {
            let key_len = usize::from(u16_at(bytes, 10));
            let (table, row) = bytes[ITEM_PREFIX_BYTES..].split_at_checked(name_len)?;
            let (key, value) = row.split_at_checked(key_len)?;
            let table = std::str::from_utf8(table).ok()?;
            if value.len() != u32_at(bytes, 12) as usize || (kind == KIND_DELETE && !value.is_empty()) {
                return None;
            }
            Some(if kind == KIND_PUT { Item::Put { table, key, value } } else { Item::Delete { table, key } })
        }
        KIND_TRIM if bytes.len() == TRIM_BYTES + name_len => {
            Some(Item::Trim { topic: &bytes[TRIM_BYTES..], queue: u32_at(bytes, 12), before: u64_at(bytes, 16) })
        }
        _ => None,
    }
}

/// A length that the batch's own check has bounded far below 4 GiB.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a checked batch has no part of 4 GiB")
}

/// The length of attributes or a table key, at most 32 KiB.
pub(crate) fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("a checked batch has no attributes or key of 64 KiB")
}

/// The length of a topic's or table's name, at most 134.
pub(crate) fn len_u8(len: usize) -> u8 {
    u8::try_from(len).expect("a checked name is shorter than 256 bytes")
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[inline]
fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}

#[cfg(test)]
mod tests;
