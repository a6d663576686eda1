//! Reads a queue in order: entries are chosen, the records that they mean are looked at, and slices are made of them.

use cuemq_storage_api::limits::MAX_FETCH_MESSAGES;
use cuemq_storage_api::{
    Attributes, Fetch, FetchRequest, LogPosition, QueueKey, QueueOffset, Record, Result, StoredRecord, TagHashes,
    Timestamp,
};

use crate::commit_log::format::{RECORD_HEADER_BYTES, RecordHeader, in_frame, item_is_sound};
use crate::commit_log::segment::SegmentReader;
use crate::consume_queue::entry::Entry;
use crate::health::read_failed;
use crate::reader::{is_of_entry, out_of_range, record_header};
use crate::store::Store;

/// Most entries read from a consume queue in one go.
const CHUNK_ENTRIES: usize = 1024;

/// How far a fetch has come.
struct Fetching {
    /// The records of one chunk that are wanted.
    chosen: Vec<Chosen>,
    /// Payload of everything chosen so far.
    payload: usize,
    /// Where to go on.
    next: u64,
}

/// A record that is wanted: its entry, and once it was looked at what its header says. The map is not looked at twice,
/// so that what was checked is what is handed out.
struct Chosen {
    offset: u64,
    entry: Entry,
    stored_at: i64,
    born_at: i64,
    /// Where attributes and body begin within the item; the body ends with the item.
    attributes_at: usize,
    body_at: usize,
}

impl Fetching {
    /// Goes through the entries from `next` on and keeps those that pass the filter, up to the limits, of which `have`
    /// records are used up. True when a limit is reached.
    fn choose(&mut self, entries: &[Entry], request: &FetchRequest<'_>, have: usize, most: usize) -> bool {
        let head_bytes = RECORD_HEADER_BYTES + request.queue.topic.as_str().len();
        self.chosen.clear();
        self.chosen.reserve(entries.len());
        for entry in entries {
            let count = have + self.chosen.len();
            if count == most {
                return true;
            }
            if request.tags.matches(entry.tag_hash) {
                self.payload = self.payload.saturating_add((entry.size as usize).saturating_sub(head_bytes));
                if self.payload > request.limit.max_bytes && count > 0 {
                    return true;
                }
                self.chosen.push(Chosen::of(self.next, *entry));
            }
            self.next += 1;
        }
        false
    }
}

impl Chosen {
    #[inline]
    fn of(offset: u64, entry: Entry) -> Self {
        Self { offset, entry, stored_at: 0, born_at: 0, attributes_at: 0, body_at: 0 }
    }

    #[inline]
    fn see(&mut self, header: &RecordHeader) {
        self.stored_at = header.stored_at;
        self.born_at = header.born_at;
        self.attributes_at = header.attributes_at();
        self.body_at = header.body_at();
    }

    /// The header of an item that is surely the record: nothing has to be asked, and nothing to be said.
    #[inline]
    fn header_in(&self, item: &[u8], queue: &QueueKey, trusted_from: u64) -> Option<RecordHeader> {
        let (position, size) = (self.entry.position, u64::from(self.entry.size));
        let header = record_header(item, position, size)?;
        let is_it = is_of_entry(&header, item, queue, self.offset, &self.entry);
        (is_it && (position >= trusted_from || item_is_sound(item))).then_some(header)
    }

    /// The record, once it was looked at. Its parts are cut out of the view one by one: cutting them out of the item, as
    /// [`RecordHeader::record`] does for single records, makes a fetch a quarter slower.
    #[inline]
    fn stored(&self, reader: &mut SegmentReader<'_>) -> std::io::Result<StoredRecord> {
        let (position, size) = (self.entry.position, self.entry.size as usize);
        let attributes = if self.attributes_at == self.body_at {
            Attributes::EMPTY
        } else {
            let len = self.body_at - self.attributes_at;
            Attributes::from_stored(reader.slice(position + self.attributes_at as u64, len)?)
        };
        let body = reader.slice(position + self.body_at as u64, size - self.body_at)?;
        Ok(StoredRecord {
            offset: QueueOffset::new(self.offset),
            position: LogPosition::new(position),
            stored_at: Timestamp::from_millis(self.stored_at),
            record: Record { body, attributes, born_at: Timestamp::from_millis(self.born_at) },
        })
    }
}

impl Store {
    pub(crate) fn read_queue(&self, request: FetchRequest<'_>) -> Result<Fetch> {
        let (bounds, log_end) = {
            let catalog = self.catalog("fetch")?;
            (catalog.queue(request.queue).map_or(0..0, |queue| queue.min..queue.end), catalog.log_end)
        };
        let from = request.from.get();
        if from < bounds.start || from > bounds.end {
            return Err(out_of_range(request.queue, from, &bounds));
        }
        let until = request.until.map_or(bounds.end, QueueOffset::get).clamp(from, bounds.end);
        let most = request.limit.max_messages.min(MAX_FETCH_MESSAGES);
        let mut reader = SegmentReader::new(&self.segments, log_end);
        let mut fetching = Fetching { chosen: Vec::new(), payload: 0, next: from };
        let mut records = Vec::new();
        while fetching.next < until && records.len() < most {
            let left = usize::try_from(until - fetching.next).unwrap_or(usize::MAX);
            // Without a filter no entry is skipped, so none is read in vain.
            let wanted = if request.tags == &TagHashes::All { most - records.len() } else { CHUNK_ENTRIES };
            let count = left.min(wanted).min(CHUNK_ENTRIES);
            let entries = self.entries("fetch", request.queue, fetching.next, count)?;
            let is_full = fetching.choose(&entries, &request, records.len(), most);
            self.look_at_all(&mut reader, request.queue, &mut fetching.chosen, log_end)?;
            self.hand_out(&mut reader, &fetching.chosen, log_end, &mut records)?;
            if is_full {
                break;
            }
        }
        let bounds = QueueOffset::new(bounds.start)..QueueOffset::new(bounds.end);
        Ok(Fetch { records, next: QueueOffset::new(fetching.next), bounds })
    }

    /// Looks at the records that are wanted. All are seen before the first is counted: counting makes a processor wait
    /// for what it looks at, seeing lets it look at many at once.
    fn look_at_all(
        &self,
        reader: &mut SegmentReader<'_>,
        queue: &QueueKey,
        wanted: &mut [Chosen],
        log_end: u64,
    ) -> Result<()> {
        let trusted_from = self.trusted_from(log_end);
        for chosen in wanted {
            let entry = chosen.entry;
            let seen = reader.in_view(entry.position, in_frame(entry.size as usize));
            match seen.and_then(|item| chosen.header_in(item, queue, trusted_from)) {
                Some(header) => chosen.see(&header),
                // It lies elsewhere, or something is wrong with it.
                None => chosen.see(&self.check_record("fetch", reader, queue, chosen.offset, &entry, log_end)?),
            }
        }
        Ok(())
    }

    /// Adds the records that were looked at.
    fn hand_out(
        &self,
        reader: &mut SegmentReader<'_>,
        wanted: &[Chosen],
        log_end: u64,
        records: &mut Vec<StoredRecord>,
    ) -> Result<()> {
        records.reserve(wanted.len());
        for chosen in wanted {
            let stored = chosen.stored(reader);
            let place = || self.segments.describe(chosen.entry.position);
            records.push(stored.map_err(|error| read_failed("fetch", &place(), error))?);
        }
        if let Some(last) = wanted.last()
            && last.entry.position < self.trusted_from(log_end)
        {
            reader.read_on(last.entry.position + u64::from(last.entry.size));
        }
        Ok(())
    }
}
