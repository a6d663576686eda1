//! Reads a queue in order: entries are chosen, the records that they mean are looked at, and slices are made of them.

use std::io;

use cuemq_storage_api::limits::MAX_FETCH_MESSAGES;
use cuemq_storage_api::{
    Attributes, Fetch, FetchRequest, LogPosition, QueueOffset, Record, Result, StoredRecord, TagHashes, Timestamp,
};

use crate::commit_log::checksum;
use crate::commit_log::format::{RECORD_HEADER_BYTES, RecordHeader, in_frame, item_is_sound};
use crate::commit_log::segment::SegmentReader;
use crate::consume_queue::entry::Entry;
use crate::health::read_failed;
use crate::mapped_file::bring_near;
use crate::reader::{is_of_entry, out_of_range, record_header};
use crate::store::Store;

/// Most entries read from a consume queue in one go.
const CHUNK_ENTRIES: usize = 1024;

/// Records whose sums are checked before the first of them is handed out, three side by side: handing out a slice counts it,
/// for which the processor waits before it goes on. A record's header is asked for so many records before it is looked at:
/// about as long before as memory takes to answer.
const BLOCK_RECORDS: usize = 12;
const _: () = assert!(BLOCK_RECORDS.is_multiple_of(checksum::LANES), "no checksum is computed alone");

/// What lies further behind in a record is asked for by the processor itself, which then knows the way.
const MOST_ASKED_BYTES: usize = 2048;

/// How far a fetch has come.
struct Fetching<'a> {
    request: FetchRequest<'a>,
    reader: SegmentReader<'a>,
    log_end: u64,
    /// From this position on records are taken without checking their sum.
    trusted_from: u64,
    /// Most records that are wanted.
    most: usize,
    records: Vec<StoredRecord>,
    /// Payload of the records.
    payload: usize,
    /// Where to go on.
    next: u64,
}

impl Fetching<'_> {
    /// How many entries to read in one go. Without a filter no entry is skipped, so none is read in vain.
    fn wanted(&self, until: u64) -> usize {
        let left = usize::try_from(until - self.next).unwrap_or(usize::MAX);
        let room = self.most - self.records.len();
        left.min(if self.request.tags == &TagHashes::All { room } else { CHUNK_ENTRIES }).min(CHUNK_ENTRIES)
    }

    /// Bytes of an item before its record's attributes and body.
    #[inline]
    fn head_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.request.queue.topic.as_str().len()
    }

    #[inline]
    fn is_trusted(&self, position: u64) -> bool {
        position >= self.trusted_from
    }

    /// Has what is looked at soon of a record brought near, so that memory answers for several at once: its header, or, where
    /// its sum is checked, all of it.
    #[inline]
    fn ask_for(&self, entry: &Entry) {
        let len = if self.is_trusted(entry.position) {
            self.head_bytes()
        } else {
            (entry.size as usize).min(MOST_ASKED_BYTES)
        };
        if self.request.tags.matches(entry.tag_hash)
            && let Some(part) = self.reader.in_view(entry.position, len)
        {
            bring_near(part);
        }
    }

    /// Counts a record's payload. False when that would be too much; the first record always comes.
    #[inline]
    fn has_room_for(&mut self, entry: &Entry) -> bool {
        self.payload = self.payload.saturating_add((entry.size as usize).saturating_sub(self.head_bytes()));
        self.payload <= self.request.limit.max_bytes || self.records.is_empty()
    }

    /// The item of an entry, with the zeros behind it, if it lies in the view.
    #[inline]
    fn item(&self, entry: &Entry) -> Option<&[u8]> {
        self.reader.in_view(entry.position, in_frame(entry.size as usize))
    }

    /// The entries to look at next, and whether the sums of all their records were found to hold.
    #[inline]
    fn block<'e>(&self, entries: &'e [Entry]) -> (&'e [Entry], bool) {
        if entries.first().is_some_and(|first| self.is_trusted(first.position)) {
            return (&entries[..entries.len().min(BLOCK_RECORDS)], false);
        }
        match entries.first_chunk() {
            Some(block) if self.request.tags == &TagHashes::All && self.are_sound(block) => (block, true),
            _ => (&entries[..entries.len().min(1)], false),
        }
    }

    /// Whether all items lie in the view and their sums hold.
    fn are_sound(&self, block: &[Entry; BLOCK_RECORDS]) -> bool {
        let items = block.each_ref().map(|entry| self.item(entry).unwrap_or_default());
        items.iter().all(|item| item.len() >= RECORD_HEADER_BYTES) && checksum::hold(&items)
    }

    /// The header of an item that is surely the record at `next`: nothing has to be asked, and nothing to be said.
    #[inline]
    fn header(&self, entry: &Entry, sum_holds: bool) -> Option<RecordHeader> {
        let item = self.item(entry)?;
        let header = record_header(item, entry.position, u64::from(entry.size))?;
        let is_it = is_of_entry(&header, item, self.request.queue, self.next, entry);
        (is_it && (sum_holds || self.is_trusted(entry.position) || item_is_sound(item))).then_some(header)
    }

    /// Adds the record that was looked at. Its parts are cut out of the view one by one: cutting them out of the item, as
    /// [`RecordHeader::record`] does for single records, makes a fetch a quarter slower.
    #[inline]
    fn add(&mut self, header: &RecordHeader) -> io::Result<()> {
        let position = header.position;
        let attributes = if header.attributes_len == 0 {
            Attributes::EMPTY
        } else {
            let at = position + header.attributes_at() as u64;
            Attributes::from_stored(self.reader.slice(at, usize::from(header.attributes_len))?)
        };
        let body = self.reader.slice(position + header.body_at() as u64, header.body_len as usize)?;
        self.records.push(StoredRecord {
            offset: QueueOffset::new(self.next),
            position: LogPosition::new(position),
            stored_at: Timestamp::from_millis(header.stored_at),
            record: Record { body, attributes, born_at: Timestamp::from_millis(header.born_at) },
        });
        Ok(())
    }

    /// Has the log read ahead behind the last record, if what follows may have to come from the disk.
    fn read_on(&self) {
        if let Some(last) = self.records.last()
            && !self.is_trusted(last.position.get())
        {
            let item_bytes = self.head_bytes() + last.record.payload_bytes();
            self.reader.read_on(last.position.get() + item_bytes as u64);
        }
    }
}

impl Store {
    pub(crate) fn read_queue(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        let (bounds, log_end) = {
            let catalog = self.catalog("fetch")?;
            (catalog.queue(request.queue).map_or(0..0, |queue| queue.min..queue.end), catalog.log_end)
        };
        let (queue, from) = (request.queue, request.from.get());
        if from < bounds.start || from > bounds.end {
            return Err(out_of_range(queue, from, &bounds));
        }
        let until = request.until.map_or(bounds.end, QueueOffset::get).clamp(from, bounds.end);
        let mut fetching = Fetching {
            reader: SegmentReader::new(&self.segments, log_end),
            log_end,
            trusted_from: self.trusted_from(log_end),
            most: request.limit.max_messages.min(MAX_FETCH_MESSAGES),
            request,
            records: Vec::new(),
            payload: 0,
            next: from,
        };
        while fetching.next < until && fetching.records.len() < fetching.most {
            let entries = self.entries("fetch", queue, fetching.next, fetching.wanted(until))?;
            let goes_on = self.read_entries(&mut fetching, &entries)?;
            fetching.read_on();
            if !goes_on {
                break;
            }
        }
        let bounds = QueueOffset::new(bounds.start)..QueueOffset::new(bounds.end);
        Ok(Fetch { records: fetching.records, next: QueueOffset::new(fetching.next), bounds })
    }

    /// Adds the records of the entries from `next` on that pass the filter. False when a limit is reached.
    fn read_entries(&self, fetching: &mut Fetching<'_>, entries: &[Entry]) -> Result<bool> {
        if fetching.request.tags == &TagHashes::All {
            fetching.records.reserve(entries.len());
        }
        let mut rest = entries;
        while !rest.is_empty() {
            let (block, sums_hold) = fetching.block(rest);
            for (at, entry) in block.iter().enumerate() {
                if fetching.records.len() == fetching.most {
                    return Ok(false);
                }
                if let Some(soon) = rest.get(at + BLOCK_RECORDS) {
                    fetching.ask_for(soon);
                }
                if fetching.request.tags.matches(entry.tag_hash) {
                    if !fetching.has_room_for(entry) {
                        return Ok(false);
                    }
                    self.read_entry(fetching, entry, sums_hold)?;
                }
                fetching.next += 1;
            }
            rest = &rest[block.len()..];
        }
        Ok(true)
    }

    #[inline]
    fn read_entry(&self, fetching: &mut Fetching<'_>, entry: &Entry, sum_holds: bool) -> Result<()> {
        let header = if let Some(header) = fetching.header(entry, sum_holds) {
            header
        } else {
            // It lies elsewhere, or something is wrong with it.
            let Fetching { request, reader, next, log_end, .. } = &mut *fetching;
            self.check_record("fetch", reader, request.queue, *next, entry, *log_end)?
        };
        fetching.add(&header).map_err(|error| read_failed("fetch", &self.segments.describe(entry.position), error))
    }
}
