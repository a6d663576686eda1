//! The files of the commit log: `commitlog/<20-digit position of the first byte>`, all of one size.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cuemq_storage_api::Result;

use crate::files::{FileLayer, LayerFile, MappedRegion, OpenMode};
use crate::health::{corrupt, read_failed};

/// The directory of the commit log.
pub(crate) const DIRECTORY: &str = "commitlog";
/// Segments that are mapped at once for readers. Slices already handed out keep theirs beyond that.
const MAX_MAPPED_SEGMENTS: usize = 64;

/// The segments of one log.
#[derive(Debug)]
pub(crate) struct Segments {
    files: Arc<dyn FileLayer>,
    segment_bytes: u64,
    mapped: Mutex<Mapped>,
}

#[derive(Debug, Default)]
struct Mapped {
    regions: HashMap<u64, (Arc<dyn MappedRegion>, u64)>,
    uses: u64,
}

impl Segments {
    pub(crate) fn new(files: Arc<dyn FileLayer>, segment_bytes: u64) -> Self {
        Self { files, segment_bytes, mapped: Mutex::default() }
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// As [`FileLayer::works_beside`].
    pub(crate) fn works_beside(&self) -> bool {
        self.files.works_beside()
    }

    /// Where the segment of a position begins.
    pub(crate) fn start_of(&self, position: u64) -> u64 {
        position - position % self.segment_bytes
    }

    /// The path of the segment that begins at a position.
    pub(crate) fn path(start: u64) -> String {
        format!("{DIRECTORY}/{start:020}")
    }

    /// File and offset of a position, for messages.
    pub(crate) fn describe(&self, position: u64) -> String {
        let start = self.start_of(position);
        format!("{} at offset {}", Self::path(start), position - start)
    }

    /// Where the segments that are there begin, rising.
    pub(crate) fn list(&self) -> Result<Vec<u64>> {
        let names = self.files.list(DIRECTORY).map_err(|error| read_failed("open", DIRECTORY, error))?;
        let start = |name: &String| {
            let start = name.parse::<u64>().ok();
            start.filter(|start| name.len() == 20 && start.is_multiple_of(self.segment_bytes)).ok_or_else(|| {
                corrupt("open", format!("{DIRECTORY}/{name} is no segment of this store: move it elsewhere"))
            })
        };
        names.iter().map(start).collect()
    }

    pub(crate) fn open(&self, start: u64, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        self.files.open(&Self::path(start), mode)
    }

    /// Removes a segment's name; slices handed out stay valid.
    pub(crate) fn remove(&self, start: u64) -> io::Result<()> {
        // The name first: a reader that comes in between must not map the segment anew and keep its room taken.
        self.files.remove(&Self::path(start))?;
        self.mapped().regions.remove(&start);
        Ok(())
    }

    pub(crate) fn sync_directory(&self) -> io::Result<()> {
        self.files.sync_directory(DIRECTORY)
    }

    // A panic cannot leave the map of regions half changed.
    fn mapped(&self) -> MutexGuard<'_, Mapped> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The read-only view of the segment of a position.
    pub(crate) fn region(&self, start: u64) -> io::Result<Arc<dyn MappedRegion>> {
        let mut mapped = self.mapped();
        mapped.uses += 1;
        let now = mapped.uses;
        if let Some((region, used)) = mapped.regions.get_mut(&start) {
            *used = now;
            return Ok(Arc::clone(region));
        }
        let region = self.open(start, OpenMode::Existing)?.map(self.segment_bytes)?;
        if mapped.regions.len() >= MAX_MAPPED_SEGMENTS
            && let Some(oldest) = mapped.regions.iter().min_by_key(|(_, (_, used))| *used).map(|(start, _)| *start)
        {
            mapped.regions.remove(&oldest);
        }
        mapped.regions.insert(start, (Arc::clone(&region), now));
        Ok(region)
    }
}

/// Reads records one after the other, and asks for a segment's view only when the segment changes.
#[derive(Debug)]
pub(crate) struct SegmentReader<'a> {
    segments: &'a Segments,
    /// Where the log ends, as far as this reader may look.
    log_end: u64,
    current: Option<View>,
}

/// A part of a segment that was checked to lie within its file.
#[derive(Debug)]
struct View {
    /// Log position of the first byte.
    start: u64,
    segment: u64,
    region: Arc<dyn MappedRegion>,
    bytes: Bytes,
    /// Whether `bytes` are counted apart from the segment's.
    counted_apart: bool,
}

impl View {
    /// What slices are made of. All of one view share a count of their own, so that who drops those of one fetch does not
    /// keep other processors from counting those of the next.
    #[inline]
    fn sliceable(&mut self) -> &Bytes {
        if !self.counted_apart {
            self.bytes = Bytes::from_owner(std::mem::take(&mut self.bytes));
            self.counted_apart = true;
        }
        &self.bytes
    }

    /// Where a part of the log lies within the view, if all of it does.
    #[inline]
    fn within(&self, position: u64, len: usize) -> Option<usize> {
        let skip = usize::try_from(position.checked_sub(self.start)?).ok()?;
        (skip.checked_add(len)? <= self.bytes.len()).then_some(skip)
    }
}

impl<'a> SegmentReader<'a> {
    pub(crate) fn new(segments: &'a Segments, log_end: u64) -> Self {
        Self { segments, log_end, current: None }
    }

    /// The view that holds a part of the log, and where in it. The caller vouches that the part was written and lies
    /// within one segment.
    #[inline]
    fn view(&mut self, position: u64, len: usize) -> io::Result<(&mut View, usize)> {
        if self.current.as_ref().is_none_or(|view| view.within(position, len).is_none()) {
            self.current = Some(self.open_view(position, len)?);
        }
        let view = self.current.as_mut().and_then(|view| view.within(position, len).map(|skip| (view, skip)));
        Ok(view.expect("a view that was opened for a part of the log holds it"))
    }

    #[cold]
    fn open_view(&mut self, position: u64, len: usize) -> io::Result<View> {
        let segment = self.segments.start_of(position);
        let region = match self.current.take() {
            Some(view) if view.segment == segment => view.region,
            _ => self.segments.region(segment)?,
        };
        let end = self.log_end.min(segment + self.segments.segment_bytes()) - segment;
        let bytes = region.slice_up_to(position - segment, len, end);
        Ok(View { start: position, segment, region, bytes, counted_apart: false })
    }

    /// Bytes of the log, to be looked at only, if they lie in the view that was read last: it holds nothing but what was
    /// written, and nothing beyond its segment.
    #[inline]
    pub(crate) fn in_view(&self, position: u64, len: usize) -> Option<&[u8]> {
        let view = self.current.as_ref()?;
        let skip = view.within(position, len)?;
        view.bytes.get(skip..skip + len)
    }

    /// Bytes of the log, to be looked at only. The caller vouches as for [`SegmentReader::slice`].
    pub(crate) fn look(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let (view, skip) = self.view(position, len)?;
        Ok(&view.bytes[skip..skip + len])
    }

    /// Bytes of the log. The caller vouches that they were written and lie within one segment.
    #[inline]
    pub(crate) fn slice(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
        let (view, skip) = self.view(position, len)?;
        Ok(view.sliceable().slice(skip..skip + len))
    }

    /// Says that reading may go on behind a position of the segment that was read last.
    pub(crate) fn read_on(&self, position: u64) {
        if let Some(view) = &self.current
            && let Some(end) = position.checked_sub(view.segment)
        {
            view.region.read_on(end);
        }
    }
}
