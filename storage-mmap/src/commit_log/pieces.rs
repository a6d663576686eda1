//! The log in pieces of whole frames, each checked and linked to the one before it.
//!
//! Where a layer's files may be read by two threads, one reads and checks the pieces that come next while the other takes
//! in what it was handed.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::thread;

use cuemq_storage_api::Result;

use crate::commit_log::LogEnd;
use crate::commit_log::format::{FRAME_HEADER_BYTES, FrameHeader};
use crate::commit_log::recovery::{ScanPlan, SegmentFile, Visit};
use crate::commit_log::segment::Segments;

/// Bytes read from a segment in one go, which stay near the processor until they are checked; a longer frame is read as a
/// whole.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are read and not taken in yet, so that neither side waits for the other at once.
const PIECES_AHEAD: usize = 8;
/// A frame that is longer than this is not read ahead.
const MAX_AHEAD_BYTES: usize = 1 << 20;
/// Progress is reported each time this much more was taken in.
const PROGRESS_BYTES: u64 = 1 << 30;

/// Hands every whole frame, but for blank ones, to `visit`, and says where the last one ends.
///
/// # Errors
/// What `visit` answers; failed reads, once all before them was visited.
pub(super) fn read(segments: &Segments, plan: ScanPlan, visit: &mut Visit<'_>) -> Result<LogEnd> {
    let mut pieces = Pieces::new(segments, plan);
    let mut intake = Intake::new(segments, plan, visit)?;
    let mut piece = Piece::default();
    while pieces.next(&mut piece, usize::MAX)? {
        intake.take(&piece)?;
        // Most logs end with the first piece, which takes less than a thread's start.
        if !pieces.ended && segments.works_beside() {
            read_beside(&mut pieces, &mut intake)?;
        }
    }
    Ok(pieces.end)
}

/// Has a thread read the pieces, to the last one, a long frame or an error. Where none can be started nothing is read.
fn read_beside(pieces: &mut Pieces<'_>, intake: &mut Intake<'_, '_>) -> Result<()> {
    thread::scope(|scope| {
        let (full, read) = sync_channel(PIECES_AHEAD);
        let (used, empty) = sync_channel(PIECES_AHEAD);
        for _ in 0..PIECES_AHEAD {
            // There is room for all of them, and for no more than them later on.
            let _ = used.send(Piece::default());
        }
        let reading = move || {
            for mut piece in empty {
                let filled = pieces.next(&mut piece, MAX_AHEAD_BYTES);
                let is_last = !matches!(filled, Ok(true));
                if full.send(filled.map(|_| piece)).is_err() || is_last {
                    break;
                }
            }
        };
        if thread::Builder::new().name("cuemq-mmap-read".to_owned()).spawn_scoped(scope, reading).is_err() {
            return Ok(());
        }
        for piece in read {
            let piece = piece?;
            intake.take(&piece)?;
            // The reader has ended where it takes none back.
            let _ = used.send(piece);
        }
        Ok(())
    })
}

/// Whoever takes the frames in.
struct Intake<'a, 'b> {
    visit: &'a mut Visit<'b>,
    from: u64,
    /// Bytes that there are to take in, at most.
    most: u64,
    reported: u64,
}

impl<'a, 'b> Intake<'a, 'b> {
    fn new(segments: &Segments, plan: ScanPlan, visit: &'a mut Visit<'b>) -> Result<Self> {
        let from = plan.from;
        let most = segments.list()?.last().map_or(0, |last| (last + segments.segment_bytes()).saturating_sub(from));
        Ok(Self { visit, from, most, reported: from })
    }

    fn take(&mut self, piece: &Piece) -> Result<()> {
        for (header, items) in &piece.frames {
            if !header.blank {
                (self.visit)(header, &piece.bytes[items.clone()])?;
            }
        }
        let position = piece.frames.last().map_or(self.from, |(header, _)| header.position + u64::from(header.len));
        if position.saturating_sub(self.reported) >= PROGRESS_BYTES {
            self.reported = position;
            let percent = (position - self.from) * 100 / self.most.max(1);
            tracing::info!(position, percent, "reading the commit log");
        }
        Ok(())
    }
}

/// Some bytes of one segment, with the frames that they hold.
#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    /// Headers, and where in the bytes the frames' items are.
    frames: Vec<(FrameHeader, Range<usize>)>,
}

/// What begins at a place in a piece.
enum Found {
    /// A whole frame, with its header's checksum.
    Whole(FrameHeader, u32),
    /// Perhaps a frame: so many bytes have to be read.
    Cut(usize),
    Nothing,
}

/// The frames of a log, as far as it is whole.
struct Pieces<'a> {
    segments: &'a Segments,
    plan: ScanPlan,
    file: Option<SegmentFile>,
    end: LogEnd,
    chain: Option<u32>,
    epoch: u32,
    /// No frame follows.
    ended: bool,
}

impl<'a> Pieces<'a> {
    fn new(segments: &'a Segments, plan: ScanPlan) -> Self {
        let end = LogEnd { position: plan.from, chain: plan.chain.unwrap_or(0), stored_at: plan.stored_at };
        Self { segments, plan, file: None, end, chain: plan.chain, epoch: 0, ended: false }
    }

    /// Fills a piece with the frames that come next. False when there are none, or when the next is longer than `most`.
    fn next(&mut self, piece: &mut Piece, most: usize) -> Result<bool> {
        piece.frames.clear();
        if self.ended || self.is_at_end() {
            return Ok(false);
        }
        let start = self.segments.start_of(self.end.position);
        if self.file.as_ref().is_none_or(|file| file.start != start) {
            self.file = SegmentFile::open(self.segments, start)?;
        }
        self.ended = match self.file.take() {
            Some(file) => {
                let ended = self.fill(&file, piece, most)?;
                self.file = Some(file);
                ended
            }
            None => true,
        };
        Ok(!piece.frames.is_empty())
    }

    /// Whether the last frame was found.
    fn fill(&mut self, file: &SegmentFile, piece: &mut Piece, most: usize) -> Result<bool> {
        let Piece { bytes, frames } = piece;
        let (from, mut skip) = (self.end.position, 0);
        file.read(from, PIECE_BYTES, bytes)?;
        while !self.is_at_end() {
            match file.frame(self.end.position, &bytes[skip..]) {
                Found::Cut(len) if skip == 0 && len <= most => file.read(from, len, bytes)?,
                Found::Cut(_) => return Ok(false),
                Found::Whole(header, crc) if self.is_next(&header) => {
                    self.advance(&header, crc);
                    if header.blank {
                        frames.push((header, 0..0));
                        return Ok(false);
                    }
                    let items = skip + FRAME_HEADER_BYTES..skip + header.len as usize;
                    skip = items.end;
                    frames.push((header, items));
                }
                Found::Whole(..) | Found::Nothing => return Ok(true),
            }
        }
        Ok(true)
    }

    /// Whether all was read that was asked for.
    fn is_at_end(&self) -> bool {
        self.plan.until.is_some_and(|until| self.end.position >= until)
    }

    /// Whether a whole frame is the one that was written behind the last one.
    fn is_next(&self, header: &FrameHeader) -> bool {
        let is_linked = self.chain.is_none_or(|chain| chain == header.previous);
        let is_of_epoch = (self.epoch..=self.plan.epoch).contains(&header.epoch);
        is_linked && is_of_epoch && header.stored_at >= self.end.stored_at
    }

    fn advance(&mut self, header: &FrameHeader, crc: u32) {
        (self.chain, self.epoch) = (Some(crc), header.epoch);
        let position = self.end.position + u64::from(header.len);
        self.end = LogEnd { position, chain: crc, stored_at: header.stored_at };
    }
}

impl SegmentFile {
    /// What begins at a position, of which `bytes` holds the segment's bytes from there on, or their beginning.
    fn frame(&self, position: u64, bytes: &[u8]) -> Found {
        let left = (self.start + self.len).saturating_sub(position);
        let held = |len: u64| match usize::try_from(len) {
            Ok(len) if len <= bytes.len() => None,
            Ok(len) if len as u64 <= left => Some(Found::Cut(len)),
            _ => Some(Found::Nothing),
        };
        if let Some(found) = held(FRAME_HEADER_BYTES as u64) {
            return found;
        }
        let Some((header, crc)) = FrameHeader::decode(bytes) else { return Found::Nothing };
        let fits = !header.blank || u64::from(header.len) == self.start + self.segment_bytes - position;
        if header.position != position || !fits {
            return Found::Nothing;
        }
        let mut items: &[u8] = &[];
        if !header.blank {
            if let Some(found) = held(u64::from(header.len)) {
                return found;
            }
            items = &bytes[FRAME_HEADER_BYTES..header.len as usize];
        }
        if header.vouches_for(items) { Found::Whole(header, crc) } else { Found::Nothing }
    }
}
