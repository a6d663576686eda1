//! The bytes of an index file, as RocketMQ's `IndexFile` lays them out. Numbers are big endian.
//!
//! ```text
//! header 40 B: begin time 8 | end time 8 | begin position 8 | end position 8 | slots in use 4 | next entry number 4
//! slots:       newest entry number 4, per slot; 0 is none
//! entries:     key hash 4 | log position 8 | seconds since begin time 4 | previous entry number in the slot 4
//! ```
//! Entry numbers begin at 1; the room of number 0 is left empty.

use cuemq_storage_api::Timestamp;

use super::IndexSettings;

pub(super) const HEADER_BYTES: u64 = 40;
pub(super) const SLOT_BYTES: u64 = 4;
pub(super) const ENTRY_BYTES: u64 = 20;

/// Where things are in an index file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) slots: u32,
    pub(super) entries: u32,
}

impl Layout {
    pub(super) fn new(settings: IndexSettings) -> Self {
        assert!(settings.slots >= 1 && settings.entries >= 2, "an index file has a slot and room for an entry");
        Self { slots: settings.slots, entries: settings.entries }
    }

    /// Most entries in a file.
    pub(super) fn capacity(self) -> u32 {
        self.entries - 1
    }

    pub(super) fn file_bytes(self) -> u64 {
        self.entry_at(self.entries)
    }

    pub(super) fn slots_bytes(self) -> u64 {
        SLOT_BYTES * u64::from(self.slots)
    }

    pub(super) fn slot_of(self, hash: u32) -> u32 {
        hash % self.slots
    }

    pub(super) fn entry_at(self, number: u32) -> u64 {
        HEADER_BYTES + self.slots_bytes() + ENTRY_BYTES * u64::from(number)
    }
}

/// The hash under which a key is found: Java's `String.hashCode` of `topic#key`, made positive as RocketMQ does.
pub(crate) fn key_hash(topic: &str, key: &str) -> u32 {
    let units = topic.encode_utf16().chain([u16::from(b'#')]).chain(key.encode_utf16());
    let hash = units.fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    hash.checked_abs().map_or(0, i32::unsigned_abs)
}

/// One entry as it lies in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) hash: u32,
    pub(super) position: u64,
    pub(super) seconds: u32,
    pub(super) previous: u32,
}

pub(super) type EntryBytes = [u8; 20];

impl Entry {
    pub(super) fn encode(self) -> EntryBytes {
        let mut bytes = EntryBytes::default();
        bytes[..4].copy_from_slice(&self.hash.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.position.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.seconds.to_be_bytes());
        bytes[16..].copy_from_slice(&self.previous.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: EntryBytes) -> Self {
        let [h0, h1, h2, h3, p0, p1, p2, p3, p4, p5, p6, p7, s0, s1, s2, s3, n0, n1, n2, n3] = bytes;
        Self {
            hash: u32::from_be_bytes([h0, h1, h2, h3]),
            position: u64::from_be_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            seconds: u32::from_be_bytes([s0, s1, s2, s3]),
            previous: u32::from_be_bytes([n0, n1, n2, n3]),
        }
    }
}

/// Whole seconds from the begin of a file to a time, as an entry holds them. The last number stands for "later".
pub(super) fn seconds_since(begin: Timestamp, at: Timestamp) -> u32 {
    u32::try_from(at.since(begin).as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_sizes() {
        let layout = Layout::new(IndexSettings { slots: 5_000_000, entries: 20_000_000 });
        assert_eq!(layout.file_bytes(), 420_000_040);
        assert_eq!(layout.entry_at(1), 40 + 20_000_000 + 20);
    }

    #[test]
    fn the_known_hash() {
        // "TopicTest#k1".hashCode() by hand: h = 31 h + c over the UTF-16 units.
        let by_hand = "TopicTest#k1".encode_utf16().fold(0i64, |h, c| (h * 31 + i64::from(c)) & 0xffff_ffff);
        let signed = if by_hand >= 1 << 31 { by_hand - (1 << 32) } else { by_hand };
        assert_eq!(i64::from(key_hash("TopicTest", "k1")), signed.abs());
        assert_eq!(key_hash("", "\u{ffff}"), 35 * 31 + 0xffff);
    }

    #[test]
    fn entries_round_trip() {
        let entry = Entry { hash: 0x0102_0304, position: 0x0001_0203_0405_0607, seconds: 99, previous: 0xfffe_fdfc };
        assert_eq!(Entry::decode(entry.encode()), entry);
        assert_eq!(entry.encode()[..6], [1, 2, 3, 4, 0, 1]);
    }

    #[test]
    fn seconds_saturate() {
        let at = Timestamp::from_millis;
        assert_eq!(seconds_since(at(1000), at(3999)), 2);
        assert_eq!(seconds_since(at(1000), at(0)), 0);
        assert_eq!(seconds_since(Timestamp::MIN, Timestamp::MAX), u32::MAX);
    }
}
