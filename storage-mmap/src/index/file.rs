//! One index file.

use std::collections::BTreeMap;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Duration;

use cuemq_storage_api::Timestamp;
use cuemq_storage_api::limits::MAX_POSITION;

use super::INDEX_DIRECTORY;
use super::layout::{ENTRY_BYTES, Entry, EntryBytes, HEADER_BYTES, Layout, SLOT_BYTES, seconds_since};
use super::recent::RecentEntry;
use super::state::FileState;
use crate::files::{FileLayer, LayerFile, OpenMode};

/// Slots are read and written in blocks of this many bytes.
const BLOCK_BYTES: usize = 4096;
/// When all slots are looked through, they are read in blocks of this many bytes.
const SCAN_BYTES: usize = 64 << 10;

/// Blocks of slots with the new heads of their chains, to be written once the entries are durable.
#[derive(Debug, Default)]
pub(super) struct Links {
    blocks: BTreeMap<u64, Vec<u8>>,
    fresh_slots: u32,
}

type HeaderBytes = [u8; 40];
const SLOTS_IN_USE_AT: u64 = 32;

fn header(state: &FileState, slots_in_use: u32) -> HeaderBytes {
    let mut bytes = [0; size_of::<HeaderBytes>()];
    bytes[..8].copy_from_slice(&state.begin_time.as_millis().to_be_bytes());
    bytes[8..16].copy_from_slice(&state.end_time.as_millis().to_be_bytes());
    bytes[16..24].copy_from_slice(&state.begin_position.to_be_bytes());
    bytes[24..32].copy_from_slice(&state.last_position.to_be_bytes());
    bytes[32..36].copy_from_slice(&slots_in_use.to_be_bytes());
    bytes[36..].copy_from_slice(&(state.used + 1).to_be_bytes());
    bytes
}

#[derive(Debug)]
pub(super) struct IndexFile {
    file: Arc<dyn LayerFile>,
    layout: Layout,
    path: String,
    begin_time: Timestamp,
    /// No entry points below this.
    begin_position: u64,
}

impl IndexFile {
    /// Makes a file with its full length but no room taken: only blocks that are written cost any.
    pub(super) fn create(files: &dyn FileLayer, layout: Layout, state: &FileState) -> io::Result<Self> {
        let path = state.path();
        let file = files.open(&path, OpenMode::Create)?;
        file.set_len(0)?;
        file.set_len(layout.file_bytes())?;
        files.sync_directory(INDEX_DIRECTORY)?;
        Ok(Self::over(file, layout, path, state))
    }

    pub(super) fn open(files: &dyn FileLayer, layout: Layout, state: &FileState) -> io::Result<Self> {
        let path = state.path();
        let file = files.open(&path, OpenMode::Existing)?;
        Ok(Self::over(file, layout, path, state))
    }

    fn over(file: Arc<dyn LayerFile>, layout: Layout, path: String, state: &FileState) -> Self {
        Self { file, layout, path, begin_time: state.begin_time, begin_position: state.begin_position }
    }

    /// Checks what can be checked without reading it all.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.file.len()? == self.layout.file_bytes() { Ok(()) } else { Err(self.damaged("has another length")) }
    }

    /// Writes entries behind those in use and makes them durable. No chain leads to them yet.
    pub(super) fn write_entries(&self, state: &mut FileState, entries: &[RecentEntry]) -> io::Result<Links> {
        let mut links = Links::default();
        let first = state.used + 1;
        let mut bytes = Vec::with_capacity(entries.len() * EntryBytes::default().len());
        for entry in entries {
            state.used += 1;
            state.end_time = state.end_time.max(entry.stored_at);
            state.last_position = entry.position;
            let previous = self.link(&mut links, self.layout.slot_of(entry.hash), state.used)?;
            let seconds = seconds_since(self.begin_time, entry.stored_at);
            let entry = Entry { hash: entry.hash, position: entry.position, seconds, previous };
            bytes.extend_from_slice(&entry.encode());
        }
        self.file.write_at(self.layout.entry_at(first), &[&bytes])?;
        self.file.sync_data()?;
        Ok(links)
    }

    /// Puts an entry at the head of a slot's chain and returns the head before it.
    fn link(&self, links: &mut Links, slot: u32, number: u32) -> io::Result<u32> {
        let at = u64::from(slot) * SLOT_BYTES;
        let start = at - at % BLOCK_BYTES as u64;
        let block = match links.blocks.entry(start) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(unknown) => unknown.insert(self.read_slots(start, BLOCK_BYTES)?),
        };
        let within = usize::try_from(at - start).expect("less than a block");
        let head = block[within..].first_chunk_mut::<4>().expect("blocks hold whole slots");
        let previous = u32::from_be_bytes(*head);
        *head = number.to_be_bytes();
        links.fresh_slots += u32::from(previous == 0);
        Ok(previous)
    }

    fn read_slots(&self, start: u64, most: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.layout.slots_bytes() - start).unwrap_or(usize::MAX);
        let mut block = vec![0; left.min(most)];
        self.file.read_at(HEADER_BYTES + start, &mut block)?;
        Ok(block)
    }

    /// Leads the chains to entries that are durable, and brings the header up to date. [`sync`](Self::sync) follows.
    pub(super) fn write_links(&self, state: &FileState, links: &Links) -> io::Result<()> {
        for (start, block) in &links.blocks {
            self.file.write_at(HEADER_BYTES + start, &[block])?;
        }
        let mut slots_in_use = [0; 4];
        self.file.read_at(SLOTS_IN_USE_AT, &mut slots_in_use)?;
        let slots_in_use = u32::from_be_bytes(slots_in_use).saturating_add(links.fresh_slots);
        self.file.write_at(0, &[&header(state, slots_in_use)])
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Shows the positions of entries with a hash and a time, newest first.
    pub(super) fn candidates(
        &self,
        hash: u32,
        times: &Range<Timestamp>,
        show: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> io::Result<ControlFlow<()>> {
        let slot = self.layout.slot_of(hash);
        let mut head = [0; 4];
        self.file.read_at(HEADER_BYTES + u64::from(slot) * SLOT_BYTES, &mut head)?;
        let mut number = u32::from_be_bytes(head);
        let mut above = self.layout.entries;
        while number != 0 {
            let entry = self.chained(slot, number, above)?;
            let (earliest, latest) = self.times_of(&entry);
            if latest < times.start {
                break;
            }
            if entry.hash == hash && earliest < times.end && show(entry.position).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            above = number;
            number = entry.previous;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The first and the last millisecond of the second in which an entry's record was stored.
    fn times_of(&self, entry: &Entry) -> (Timestamp, Timestamp) {
        let earliest = self.begin_time.plus(Duration::from_secs(u64::from(entry.seconds)));
        let latest = if entry.seconds == u32::MAX { Timestamp::MAX } else { earliest.plus(Duration::from_millis(999)) };
        (earliest, latest)
    }

    /// An entry of a slot's chain, which leads from newer entries to older ones.
    fn chained(&self, slot: u32, number: u32, above: u32) -> io::Result<Entry> {
        if number >= above {
            return Err(self.damaged("has a chain that does not fall"));
        }
        let entry = self.entry(number)?;
        if self.layout.slot_of(entry.hash) != slot {
            return Err(self.damaged("has a chain that leaves its slot"));
        }
        if !(self.begin_position..=MAX_POSITION).contains(&entry.position) {
            return Err(self.damaged("has an entry that points out of its range"));
        }
        Ok(entry)
    }

    fn entry(&self, number: u32) -> io::Result<Entry> {
        let mut bytes = EntryBytes::default();
        self.file.read_at(self.layout.entry_at(number), &mut bytes)?;
        Ok(Entry::decode(bytes))
    }

    /// Lets only entries below a position count. At least the first one must be.
    pub(super) fn cut(&self, state: &mut FileState, below: u64) -> io::Result<()> {
        let (mut kept, mut beyond) = (0, state.used + 1);
        while beyond - kept > 1 {
            let middle = kept + (beyond - kept) / 2;
            if self.entry(middle)?.position < below { kept = middle } else { beyond = middle }
        }
        if kept == 0 {
            return Err(self.damaged("begins at another position than the list says"));
        }
        let last = self.entry(kept)?;
        state.used = kept;
        state.last_position = last.position;
        state.end_time = self.times_of(&last).1.min(state.end_time);
        Ok(())
    }

    /// Leads every chain back to the entries that count, durably. Entries above them were durable before a chain led
    /// to them, so each chain can be followed back.
    pub(super) fn forget_above(&self, state: &FileState) -> io::Result<()> {
        let mut slots_in_use = 0;
        let mut is_changed = false;
        let mut start = 0;
        while start < self.layout.slots_bytes() {
            let found = self.read_slots(start, SCAN_BYTES)?;
            if found.iter().all(|byte| *byte == 0) {
                start += found.len() as u64;
                continue;
            }
            let mut block = found.clone();
            let first_slot = u32::try_from(start / SLOT_BYTES).expect("slots are counted in 32 bits");
            for (slot, head) in (first_slot..).zip(block.as_chunks_mut::<4>().0) {
                *head = self.newest_of(slot, u32::from_be_bytes(*head), state.used)?.to_be_bytes();
                slots_in_use += u32::from(*head != [0; 4]);
            }
            if block != found {
                self.file.write_at(HEADER_BYTES + start, &[&block])?;
                is_changed = true;
            }
            start += block.len() as u64;
        }
        let mut found = [0; size_of::<HeaderBytes>()];
        self.file.read_at(0, &mut found)?;
        let header = header(state, slots_in_use);
        if found != header {
            self.file.write_at(0, &[&header])?;
            is_changed = true;
        }
        // Synced, for the room of the forgotten entries is about to be used again.
        if is_changed { self.file.sync_data() } else { Ok(()) }
    }

    /// The newest entry of a slot's chain among those that count.
    fn newest_of(&self, slot: u32, head: u32, used: u32) -> io::Result<u32> {
        let mut number = head;
        let mut above = self.layout.entries;
        while number > used {
            let entry = self.chained(slot, number, above)?;
            above = number;
            number = entry.previous;
        }
        Ok(number)
    }

    fn damaged(&self, how: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("index file {} {how}", self.path))
    }
}

const _: () = assert!(BLOCK_BYTES.is_multiple_of(4) && ENTRY_BYTES == size_of::<EntryBytes>() as u64);
