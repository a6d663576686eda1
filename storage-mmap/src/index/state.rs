//! `index/STATE`: which files there are and how much of each counts. Little endian, replaced as a whole.
//!
//! ```text
//! magic 8 "CUEINDEX" | version 4 (1) | slots 4 | entries 4 | covered position 8 | number of files 4
//! per file: name 8 | begin time 8 | end time 8 | begin position 8 | last position 8 | entries in use 4
//! CRC-32C over all before it 4
//! ```

use std::io;
use std::ops::Range;

use cuemq_storage_api::Timestamp;

use super::INDEX_DIRECTORY;
use super::layout::Layout;
use super::recent::RecentEntry;
use crate::files::{FileLayer, OpenMode};

pub(super) const STATE_PATH: &str = "index/STATE";
const NEW_STATE_PATH: &str = "index/STATE.new";
const MAGIC: [u8; 8] = *b"CUEINDEX";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 32;
const FILE_BYTES: usize = 44;
const CRC_BYTES: usize = 4;
/// More files than any store has; a longer list is damage.
const MAX_FILES: usize = 1 << 20;
/// Names hold a year of four digits; times outside them are brought inside.
const LATEST_NAME: i64 = 253_402_300_799_999;

/// What is known of one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct FileState {
    /// Milliseconds since the Unix epoch; unique, rising from file to file.
    pub(super) name: i64,
    pub(super) begin_time: Timestamp,
    pub(super) end_time: Timestamp,
    pub(super) begin_position: u64,
    pub(super) last_position: u64,
    /// Entries that count, numbered from 1.
    pub(super) used: u32,
}

impl FileState {
    /// An empty file behind another, to begin with an entry.
    pub(super) fn begin(before: Option<&Self>, first: &RecentEntry) -> Self {
        let created = first.stored_at.as_millis().clamp(0, LATEST_NAME);
        Self {
            name: before.map_or(created, |before| created.max(before.name + 1)),
            begin_time: first.stored_at,
            end_time: first.stored_at,
            begin_position: first.position,
            last_position: first.position,
            used: 0,
        }
    }

    /// The path of the file: its creation time in UTC as year, month, day, hour, minute, second, millisecond.
    pub(super) fn path(&self) -> String {
        let (days, millis) = (self.name.div_euclid(86_400_000), self.name.rem_euclid(86_400_000));
        let (year, month, day) = civil_date(days);
        let (hour, minute, second) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
        let milli = millis % 1000;
        format!("{INDEX_DIRECTORY}/{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{milli:03}")
    }

    pub(super) fn may_hold(&self, times: &Range<Timestamp>) -> bool {
        self.begin_time < times.end && self.end_time >= times.start
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar (Howard Hinnant's algorithm).
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// All that counts in the index's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct State {
    layout: Layout,
    pub(super) covered_to: u64,
    /// In rising order; the last one is written to.
    pub(super) files: Vec<FileState>,
}

impl State {
    pub(super) fn empty(layout: Layout) -> Self {
        Self { layout, covered_to: 0, files: Vec::new() }
    }

    /// Reads what was last written; `None` if nothing was, or it is damaged or of another shape.
    pub(super) fn read(files: &dyn FileLayer, layout: Layout) -> io::Result<Option<Self>> {
        let file = match files.open(STATE_PATH, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        if len > HEAD_BYTES + FILE_BYTES * MAX_FILES + CRC_BYTES {
            return Ok(None);
        }
        let mut bytes = vec![0; len];
        file.read_at(0, &mut bytes)?;
        Ok(Self::decode(&bytes, layout))
    }

    /// Replaces the list durably: after a power cut there is the old one or the new one.
    pub(super) fn write(&self, files: &dyn FileLayer) -> io::Result<()> {
        let file = files.open(NEW_STATE_PATH, OpenMode::Create)?;
        file.set_len(0)?;
        file.write_at(0, &[&self.encode()])?;
        file.sync_data()?;
        files.rename(NEW_STATE_PATH, STATE_PATH)?;
        files.sync_directory(INDEX_DIRECTORY)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + FILE_BYTES * self.files.len() + CRC_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.layout.slots.to_le_bytes());
        bytes.extend_from_slice(&self.layout.entries.to_le_bytes());
        bytes.extend_from_slice(&self.covered_to.to_le_bytes());
        let count = u32::try_from(self.files.len()).expect("files are far fewer than 2^32");
        bytes.extend_from_slice(&count.to_le_bytes());
        for file in &self.files {
            bytes.extend_from_slice(&file.name.to_le_bytes());
            bytes.extend_from_slice(&file.begin_time.as_millis().to_le_bytes());
            bytes.extend_from_slice(&file.end_time.as_millis().to_le_bytes());
            bytes.extend_from_slice(&file.begin_position.to_le_bytes());
            bytes.extend_from_slice(&file.last_position.to_le_bytes());
            bytes.extend_from_slice(&file.used.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], layout: Layout) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (magic, mut rest) = body.split_first_chunk::<8>()?;
        let version = take_u32(&mut rest)?;
        let found = Layout { slots: take_u32(&mut rest)?, entries: take_u32(&mut rest)? };
        let covered_to = take_u64(&mut rest)?;
        let count = usize::try_from(take_u32(&mut rest)?).ok()?;
        if *magic != MAGIC || version != VERSION || found != layout || rest.len() != count * FILE_BYTES {
            return None;
        }
        let files = rest.chunks_exact(FILE_BYTES).map(decode_file).collect::<Option<Vec<_>>>()?;
        let fits = files.iter().all(|file| (1..=layout.capacity()).contains(&file.used));
        let rises = files.is_sorted_by(|a, b| a.name < b.name && a.last_position <= b.begin_position);
        (fits && rises).then_some(Self { layout, covered_to, files })
    }
}

fn decode_file(mut bytes: &[u8]) -> Option<FileState> {
    let rest = &mut bytes;
    Some(FileState {
        name: take_u64(rest)?.cast_signed(),
        begin_time: Timestamp::from_millis(take_u64(rest)?.cast_signed()),
        end_time: Timestamp::from_millis(take_u64(rest)?.cast_signed()),
        begin_position: take_u64(rest)?,
        last_position: take_u64(rest)?,
        used: take_u32(rest)?,
    })
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_le_bytes(*bytes))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::MemoryFiles;

    const LAYOUT: Layout = Layout { slots: 3, entries: 9 };

    fn named(name: i64) -> FileState {
        let first = RecentEntry { hash: 1, position: 10, stored_at: Timestamp::from_millis(name) };
        FileState { used: 2, ..FileState::begin(None, &first) }
    }

    #[test]
    fn names_are_times() {
        assert_eq!(named(0).path(), "index/19700101000000000");
        assert_eq!(named(1_709_210_096_789).path(), "index/20240229123456789");
        assert_eq!(named(LATEST_NAME).path(), "index/99991231235959999");
        assert_eq!(named(i64::MIN).path(), named(0).path());
        let first = RecentEntry { hash: 1, position: 10, stored_at: Timestamp::from_millis(-5) };
        assert_eq!(FileState::begin(Some(&named(7)), &first).name, 8, "no name is given twice");
    }

    #[test]
    fn a_list_round_trips_and_any_flip_is_seen() {
        let files = MemoryFiles::new();
        files.create_directory(INDEX_DIRECTORY).unwrap();
        assert_eq!(State::read(&files, LAYOUT).unwrap(), None);
        let state = State { layout: LAYOUT, covered_to: 77, files: vec![named(5), named(9)] };
        state.write(&files).unwrap();
        assert_eq!(State::read(&files, LAYOUT).unwrap(), Some(state.clone()));
        assert_eq!(State::read(&files, Layout { slots: 4, entries: 9 }).unwrap(), None, "other settings");
        let bytes = state.encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(State::decode(&flipped, LAYOUT), None, "byte {at}");
            assert_eq!(State::decode(&bytes[..at], LAYOUT), None, "cut at {at}");
        }
    }
}
