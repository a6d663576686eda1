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
use crate::commit_log::segment::Segments;
use crate::files::{LayerFile, OpenMode};
use crate::health::{corrupt, read_failed};

/// Bytes read from a segment in one go.
const WINDOW_BYTES: usize = 256 << 10;
/// Bytes that are looked at together for one that is not zero.
const PAGE_BYTES: usize = 4096;
/// Ranges of one segment that are told apart by whether they were written; what lies behind the last counts as written.
const MAX_WRITTEN_RANGES: usize = 1024;
/// Progress is reported each time this much more was read.
const PROGRESS_BYTES: u64 = 1 << 30;

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

/// Hands every whole frame, but for blank ones, to `visit`: its header and its items' bytes.
///
/// # Errors
/// `Corrupt` when something that was once durable is damaged or missing, naming the place and how many records lie
/// behind it; what `visit` answers; failed reads.
pub(crate) fn scan(
    segments: &Segments,
    plan: ScanPlan,
    visit: &mut dyn FnMut(&FrameHeader, &[u8]) -> Result<()>,
) -> Result<Scanned> {
    let mut end = LogEnd { position: plan.from, chain: plan.chain.unwrap_or(0), stored_at: plan.stored_at };
    let mut chain = plan.chain;
    let (mut epoch, mut reported) = (0, plan.from);
    // Asked before anything is read: room that was only taken looks like data once it was read ahead.
    let written = written_from(segments, plan.from)?;
    let most = segments.list()?.last().map_or(0, |last| (last + segments.segment_bytes()).saturating_sub(plan.from));
    let mut window = None;
    while plan.until.is_none_or(|until| end.position < until) {
        let start = segments.start_of(end.position);
        if window.as_ref().is_none_or(|window: &Window| window.start != start) {
            window = Window::open(segments, start)?;
        }
        let Some(window) = &mut window else { break };
        let Some((header, crc)) = window.frame(end.position)? else { break };
        let linked = chain.is_none_or(|chain| chain == header.previous);
        if !linked || header.epoch < epoch || header.epoch > plan.epoch || header.stored_at < end.stored_at {
            break;
        }
        if !header.blank {
            visit(&header, window.items(&header)?)?;
        }
        (chain, epoch) = (Some(crc), header.epoch);
        let position = end.position + u64::from(header.len);
        end = LogEnd { position, chain: crc, stored_at: header.stored_at };
        if position - reported >= PROGRESS_BYTES {
            reported = position;
            let percent = (position - plan.from) * 100 / most.max(1);
            tracing::info!(position, percent, "reading the commit log");
        }
    }
    if plan.until == Some(end.position) {
        return Ok(Scanned { end, torn: Vec::new() });
    }
    let torn = judge(segments, end.position, plan, &written)?;
    Ok(Scanned { end, torn })
}

/// Where the segments hold bytes that may be other than zero, at a position or behind it.
fn written_from(segments: &Segments, from: u64) -> Result<Vec<Range<u64>>> {
    let mut written = Vec::new();
    for start in segments.list()?.into_iter().filter(|start| start + segments.segment_bytes() > from) {
        let Some(window) = Window::open(segments, start)? else { continue };
        let (mut at, end) = (from.max(start), start + window.len);
        for left in (0..MAX_WRITTEN_RANGES).rev() {
            let data = window.file.data_from(at - start);
            let data = data.map_err(|error| read_failed("open", &Segments::path(start), error))?;
            let data = data.map(|data| start + data.start..end.min(start + data.end));
            let Some(data) = data.filter(|data| !data.is_empty()) else { break };
            at = if left == 0 { end } else { data.end };
            written.push(data.start..at);
        }
    }
    Ok(written)
}

/// What may stand at a place where no whole frame begins: nothing, or a torn end, whose pieces are answered.
fn judge(segments: &Segments, at: u64, plan: ScanPlan, written: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
    let mut rest = Remains { first: at, epoch: plan.epoch, ..Remains::default() };
    let mut window = None;
    for range in written.iter().filter(|range| range.end > at) {
        let start = segments.start_of(range.start);
        if window.as_ref().is_none_or(|window: &Window| window.start != start) {
            window = Window::open(segments, start)?;
        }
        let Some(window) = &mut window else { continue };
        rest.look_through(window, range.start.max(at)..range.end)?;
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
    fn look_through(&mut self, window: &mut Window, range: Range<u64>) -> Result<()> {
        let mut from = range.start;
        while from < range.end {
            let next = range.end.min(from + WINDOW_BYTES as u64);
            // Pieces overlap by one header, so that none is missed between them.
            let at = from.saturating_sub(FRAME_HEADER_BYTES as u64).max(self.first).max(window.start);
            let at = at - at % ALIGNMENT as u64;
            let bytes = window.read(at..next)?;
            if !is_zero(bytes) {
                self.look_for_headers(bytes, at);
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
    if let Some(window) = Window::open(segments, start)? {
        for piece in scanned.torn.iter().filter(|piece| segments.start_of(piece.start) == start) {
            let zeros = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX)];
            window.file.write_at(piece.start - start, &[&zeros]).map_err(failed(Segments::path(start)))?;
        }
        window.file.sync_data().map_err(failed(Segments::path(start)))?;
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

/// A piece of one segment in memory.
struct Window {
    file: Arc<dyn LayerFile>,
    start: u64,
    len: u64,
    segment_bytes: u64,
    /// Log position of the first byte held.
    at: u64,
    held: Vec<u8>,
}

impl Window {
    fn open(segments: &Segments, start: u64) -> Result<Option<Self>> {
        let file = match segments.open(start, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read_failed("open", &Segments::path(start), error)),
        };
        let len = file.len().map_err(|error| read_failed("open", &Segments::path(start), error))?;
        let segment_bytes = segments.segment_bytes();
        Ok(Some(Self { file, start, len: len.min(segment_bytes), segment_bytes, at: start, held: Vec::new() }))
    }

    /// Exactly these bytes of the segment; the caller knows that the file has them.
    fn read(&mut self, range: Range<u64>) -> Result<&[u8]> {
        self.held.resize(usize::try_from(range.end - range.start).unwrap_or(usize::MAX), 0);
        self.at = range.start;
        self.file
            .read_at(range.start - self.start, &mut self.held)
            .map_err(|error| read_failed("open", &Segments::path(self.start), error))?;
        Ok(&self.held)
    }

    /// Bytes of the segment, and what lies behind them while it is at it; the caller knows that the file has them.
    fn bytes(&mut self, position: u64, len: usize) -> Result<&[u8]> {
        let held = position.checked_sub(self.at).and_then(|skip| usize::try_from(skip).ok());
        let skip = match held.filter(|skip| skip + len <= self.held.len()) {
            Some(skip) => skip,
            None => {
                let (end, most) = (self.start + self.len, len.max(WINDOW_BYTES) as u64);
                self.read(position..end.min(position + most))?;
                0
            }
        };
        Ok(&self.held[skip..skip + len])
    }

    /// The header of the frame that begins at a position, if a whole frame does.
    fn frame(&mut self, position: u64) -> Result<Option<(FrameHeader, u32)>> {
        let left = self.start + self.len.max(position - self.start) - position;
        if left < FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let Some((header, crc)) = FrameHeader::decode(self.bytes(position, FRAME_HEADER_BYTES)?) else {
            return Ok(None);
        };
        let to_segment_end = self.start + self.segment_bytes - position;
        let fits = if header.blank { u64::from(header.len) == to_segment_end } else { u64::from(header.len) <= left };
        if header.position != position || !fits {
            return Ok(None);
        }
        let whole = header.vouches_for(self.items(&header)?);
        Ok(whole.then_some((header, crc)))
    }

    /// The bytes behind the header of a frame that this segment has room for.
    fn items(&mut self, header: &FrameHeader) -> Result<&[u8]> {
        if header.blank {
            return Ok(&[]);
        }
        let len = header.len as usize;
        Ok(&self.bytes(header.position, len)?[FRAME_HEADER_BYTES..])
    }
}
