//! Reading the log from front to back: after a crash, and to make derived files again.
//!
//! What counts is the longest prefix of whole frames, each linked to the one before it. Where the prefix ends there may
//! be the torn end that a power cut leaves, which is cut off, or damage to something that was once surely on disk,
//! which is refused. The two look alike at that place; the difference is a witness: a later frame, the watermark file
//! or a checkpoint saying that the log was durable beyond it.

use std::io;
use std::sync::Arc;

use cuemq_storage_api::Result;

use crate::commit_log::LogEnd;
use crate::commit_log::format::{ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader};
use crate::commit_log::segment::Segments;
use crate::files::{LayerFile, OpenMode};
use crate::health::{corrupt, read_failed};

/// Bytes read from a segment in one go.
const WINDOW_BYTES: usize = 256 << 10;
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanned {
    pub(crate) end: LogEnd,
    /// Whether bytes beyond the end must be cut off.
    pub(crate) torn: bool,
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
        return Ok(Scanned { end, torn: false });
    }
    let torn = judge(segments, end.position, plan)?;
    Ok(Scanned { end, torn })
}

/// What may stand at a place where no whole frame begins: nothing (false), or a torn end (true).
fn judge(segments: &Segments, at: u64, plan: ScanPlan) -> Result<bool> {
    let mut rest = Remains::default();
    for start in segments.list()?.into_iter().filter(|start| start + segments.segment_bytes() > at) {
        rest.look_through(segments, start, at.max(start), plan.epoch)?;
        if start > at {
            rest.dirty = true; // A segment behind a hole, even an empty one, has to go.
        }
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
    Ok(rest.dirty)
}

/// What lies behind the whole part of the log.
#[derive(Debug, Default)]
struct Remains {
    dirty: bool,
    durable_upto: u64,
    items: u64,
}

impl Remains {
    fn look_through(&mut self, segments: &Segments, start: u64, from: u64, epoch: u32) -> Result<()> {
        let Some(mut window) = Window::open(segments, start)? else { return Ok(()) };
        let (end, mut from) = (start + window.len, from);
        while let Some((at, piece)) = window.piece_from(from)? {
            if piece.iter().any(|byte| *byte != 0) {
                self.dirty = true;
                self.look_for_headers(piece, at, epoch);
            }
            // Pieces overlap by one header, so that none is missed between them; the last one needs no more.
            let next = at + piece.len() as u64;
            from = if next == end { end } else { next - FRAME_HEADER_BYTES as u64 };
        }
        Ok(())
    }

    fn look_for_headers(&mut self, piece: &[u8], position: u64, epoch: u32) {
        for skip in (0..piece.len()).step_by(ALIGNMENT) {
            let Some((header, _)) = FrameHeader::decode(&piece[skip..]) else { continue };
            if header.position == position + skip as u64 && header.epoch <= epoch {
                self.durable_upto = self.durable_upto.max(header.durable_upto);
                self.items += u64::from(header.items);
            }
        }
    }
}

/// Makes the log end at a position: zeros behind it in its segment, no segment after that, full segments of full length
/// from `from` on, all of it durable. What is so already is not written again.
///
/// # Errors
/// What the file layer answers.
pub(crate) fn cut(segments: &Segments, from: u64, end: u64) -> Result<()> {
    let start = segments.start_of(end);
    let failed = |path: String| move |error| read_failed("open", &path, error);
    if let Some(mut window) = Window::open(segments, start)? {
        let mut from = end;
        while let Some((at, piece)) = window.piece_from(from)? {
            let (len, is_zero) = (piece.len(), piece.iter().all(|byte| *byte == 0));
            if !is_zero {
                window.file.write_at(at - start, &[&vec![0; len]]).map_err(failed(Segments::path(start)))?;
            }
            from = at + len as u64;
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

    /// The next bytes of the segment at a position or behind it that may be other than zero, and where they begin: room that
    /// was only taken is not read.
    fn piece_from(&mut self, position: u64) -> Result<Option<(u64, &[u8])>> {
        let end = self.start + self.len;
        if position >= end {
            return Ok(None);
        }
        let data = self.file.data_from(position - self.start);
        let data = data.map_err(|error| read_failed("open", &Segments::path(self.start), error))?;
        let Some(at) = data.map(|data| self.start + data).filter(|at| *at < end) else { return Ok(None) };
        let left = usize::try_from(end - at).unwrap_or(usize::MAX);
        Ok(Some((at, self.bytes(at, left.min(WINDOW_BYTES))?)))
    }

    /// Bytes of the segment; the caller knows that the file has them.
    fn bytes(&mut self, position: u64, len: usize) -> Result<&[u8]> {
        let held = position.checked_sub(self.at).and_then(|skip| usize::try_from(skip).ok());
        let skip = match held.filter(|skip| skip + len <= self.held.len()) {
            Some(skip) => skip,
            None => {
                let left = usize::try_from(self.start + self.len - position).unwrap_or(usize::MAX);
                self.held.resize(len.max(WINDOW_BYTES).min(left), 0);
                self.at = position;
                self.file
                    .read_at(position - self.start, &mut self.held)
                    .map_err(|error| read_failed("open", &Segments::path(self.start), error))?;
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
