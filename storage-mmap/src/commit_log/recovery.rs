//! Reading the log from front to back: after a crash, and to make derived files again.
//!
//! What counts is the longest prefix of whole frames, each linked to the one before it. Where the prefix ends there may
//! be the torn end that a power cut leaves, which is cut off, or damage to something that was once surely on disk,
//! which is refused. The two look alike at that place; the difference is a witness: a later frame, the watermark file
//! or a checkpoint saying that the log was durable beyond it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::Result;

use crate::commit_log::LogEnd;
use crate::commit_log::format::{ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader};
use crate::commit_log::pieces::{self, PIECE_BYTES};
use crate::commit_log::segment::Segments;
use crate::files::{LayerFile, OpenMode};
use crate::health::{corrupt, read_failed};

/// Bytes that are looked at together for one that is not zero.
const PAGE_BYTES: usize = 4096;
/// Ranges of one segment that are told apart by whether they were written; what lies behind the last counts as written.
const MAX_WRITTEN_RANGES: usize = 1024;

/// Where to begin and what is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScanPlan {
    /// A frame begins here.
    pub(crate) from: u64,
    /// The link that the first frame must carry, where it is known.
    pub(crate) chain: Option<u32>,
    /// The stored time before the first frame.
    pub(crate) stored_at: i64,
    /// Everything below was once durable: damage there is never a torn end.
    pub(crate) durable: u64,
    /// Stop exactly here; everything below must be whole.
    pub(crate) until: Option<u64>,
    /// No frame is of a later epoch.
    pub(crate) epoch: u32,
}

/// How far the log is whole.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) end: LogEnd,
    /// What lies beyond the end and is not zero, in pieces: a torn end, which must be cut off.
    pub(crate) torn: Vec<Range<u64>>,
}

/// What is called for each frame: with its header and its items' bytes.
pub(crate) type Visit<'a> = dyn FnMut(&FrameHeader, &[u8]) -> Result<()> + 'a;

/// Hands every whole frame, but for blank ones, to `visit`.
///
/// # Errors
/// `Corrupt` when something that was once durable is damaged or missing, naming the place and how many records lie
/// behind it; what `visit` answers; failed reads.
pub(crate) fn scan(segments: &Segments, plan: ScanPlan, visit: &mut Visit<'_>) -> Result<Scanned> {
    // Asked before anything is read: room that was only taken looks like data once it was read ahead. A log
    // whose end is known is asked only when it turns out to be damaged.
    let asked = if plan.until.is_none() { Some(written(segments, plan)?) } else { None };
    let end = pieces::read(segments, plan, visit)?;
    if plan.until == Some(end.position) {
        return Ok(Scanned { end, torn: Vec::new() });
    }
    let written = asked.map_or_else(|| written(segments, plan), Ok)?;
    let torn = judge(segments, end.position, plan, &written)?;
    Ok(Scanned { end, torn })
}

/// Where the segments hold bytes that may be other than zero, from where the scan begins.
fn written(segments: &Segments, plan: ScanPlan) -> Result<Vec<Range<u64>>> {
    let from = plan.from;
    let mut written = Vec::new();
    for start in segments.list()?.into_iter().filter(|start| start + segments.segment_bytes() > from) {
        let Some(file) = SegmentFile::open(segments, start)? else { continue };
        let (mut at, end) = (from.max(start), start + file.len);
        for left in (0..MAX_WRITTEN_RANGES).rev() {
            let data = file.file.data_from(at - start);
            let data = data.map_err(|error| read_failed("open", &Segments::path(start), error))?;
            let data = data.map(|data| start + data.start..end.min(start + data.end));
            let Some(data) = data.filter(|data| !data.is_empty()) else { break };
            at = if left == 0 { end } else { data.end };
            written.push(data.start..at);
            // This may not be in the cache. The disk has time while what lies before it is checked.
            if at > plan.durable {
                file.file.read_ahead(data.start.max(plan.durable) - start..at - start);
            }
        }
    }
    Ok(written)
}

/// What may stand at a place where no whole frame begins: nothing, or a torn end, whose pieces are answered.
fn judge(segments: &Segments, at: u64, plan: ScanPlan, written: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
    let mut rest = Remains { first: at, epoch: plan.epoch, ..Remains::default() };
    let mut file = None;
    for range in written.iter().filter(|range| range.end > at) {
        let start = segments.start_of(range.start);
        if file.as_ref().is_none_or(|file: &SegmentFile| file.start != start) {
            file = SegmentFile::open(segments, start)?;
        }
        let Some(file) = &file else { continue };
        rest.look_through(file, range.start.max(at)..range.end)?;
    }
    if at < plan.durable || rest.durable_upto > at || plan.until.is_some() {
        let durable = plan.durable.max(rest.durable_upto).max(plan.until.unwrap_or(0));
        let context = format!(
            "{} is damaged or missing, although the log was durable up to position {durable}; \
             {} whole record headers lie behind it: restore the file from a copy",
            segments.describe(at),
            rest.items
        );
        return Err(corrupt("open", context));
    }
    Ok(rest.torn)
}

/// What lies behind the whole part of the log.
#[derive(Debug, Default)]
struct Remains {
    /// Where the whole part ends.
    first: u64,
    epoch: u32,
    torn: Vec<Range<u64>>,
    durable_upto: u64,
    items: u64,
}

impl Remains {
    fn look_through(&mut self, file: &SegmentFile, range: Range<u64>) -> Result<()> {
        let (mut from, mut bytes) = (range.start, Vec::new());
        while from < range.end {
            let next = range.end.min(from + PIECE_BYTES as u64);
            // Pieces overlap by one header, so that none is missed between them.
            let at = from.saturating_sub(FRAME_HEADER_BYTES as u64).max(self.first).max(file.start);
            let at = at - at % ALIGNMENT as u64;
            file.read(at, usize::try_from(next - at).unwrap_or(usize::MAX), &mut bytes)?;
            if !is_zero(&bytes) {
                self.look_for_headers(&bytes, at);
                self.torn.push(at..next);
            }
            from = next;
        }
        Ok(())
    }

    fn look_for_headers(&mut self, piece: &[u8], position: u64) {
        for skip in (0..piece.len()).step_by(ALIGNMENT) {
            let Some((header, _)) = FrameHeader::decode(&piece[skip..]) else { continue };
            if header.position == position + skip as u64 && header.epoch <= self.epoch {
                self.durable_upto = self.durable_upto.max(header.durable_upto);
                self.items += u64::from(header.items);
            }
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PAGE_BYTES).all(|page| page.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Makes the log end where the scan found its end: zeros behind it in its segment, no segment after that, full segments of
/// full length from `from` on, all of it durable. What is so already is not written again.
///
/// # Errors
/// What the file layer answers.
pub(crate) fn cut(segments: &Segments, from: u64, scanned: &Scanned) -> Result<()> {
    let start = segments.start_of(scanned.end.position);
    let failed = |path: String| move |error| read_failed("open", &path, error);
    if let Some(SegmentFile { file, .. }) = SegmentFile::open(segments, start)? {
        for piece in scanned.torn.iter().filter(|piece| segments.start_of(piece.start) == start) {
            let zeros = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX)];
            file.write_at(piece.start - start, &[&zeros]).map_err(failed(Segments::path(start)))?;
        }
        file.sync_data().map_err(failed(Segments::path(start)))?;
    }
    let there = segments.list()?;
    // A power cut may keep the frame that ends a segment and lose the length that the segment was given with it.
    for full in there.iter().filter(|full| (segments.start_of(from)..start).contains(full)) {
        fill_out(segments, *full).map_err(failed(Segments::path(*full)))?;
    }
    for later in there.into_iter().filter(|later| *later > start) {
        segments.remove(later).map_err(failed(Segments::path(later)))?;
    }
    segments.sync_directory().map_err(failed(Segments::path(start)))
}

fn fill_out(segments: &Segments, start: u64) -> io::Result<()> {
    let file = segments.open(start, OpenMode::Existing)?;
    if file.len()? < segments.segment_bytes() {
        file.set_len(segments.segment_bytes())?;
        file.sync_data()?;
    }
    Ok(())
}

/// One segment's file, for reading.
pub(super) struct SegmentFile {
    file: Arc<dyn LayerFile>,
    /// Where it begins in the log.
    pub(super) start: u64,
    /// Bytes that it has, at most [`segment_bytes`](Self::segment_bytes).
    pub(super) len: u64,
    pub(super) segment_bytes: u64,
}

impl SegmentFile {
    /// `None` where there is none.
    pub(super) fn open(segments: &Segments, start: u64) -> Result<Option<Self>> {
        let file = match segments.open(start, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_failed("open", &Segments::path(start), error)),
        };
        let len = file.len().map_err(|error| read_failed("open", &Segments::path(start), error))?;
        let segment_bytes = segments.segment_bytes();
        Ok(Some(Self { file, start, len: len.min(segment_bytes), segment_bytes }))
    }

    /// Reads the bytes from a position on, so many or as many as the file has.
    pub(super) fn read(&self, position: u64, len: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let left = (self.start + self.len).saturating_sub(position);
        bytes.resize(len.min(usize::try_from(left).unwrap_or(usize::MAX)), 0);
        if bytes.is_empty() {
            return Ok(());
        }
        let read = self.file.read_at(position - self.start, bytes);
        read.map_err(|error| read_failed("open", &Segments::path(self.start), error))
    }
}
