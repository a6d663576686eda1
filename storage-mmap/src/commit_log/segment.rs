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
    current: Option<(u64, Arc<dyn MappedRegion>)>,
}

impl<'a> SegmentReader<'a> {
    pub(crate) fn new(segments: &'a Segments) -> Self {
        Self { segments, current: None }
    }

    /// Bytes of the log. The caller vouches that they were written and lie within one segment.
    pub(crate) fn slice(&mut self, position: u64, len: usize) -> io::Result<Bytes> {
        let start = self.segments.start_of(position);
        if let Some((current, region)) = &self.current
            && *current == start
        {
            return Ok(region.slice(position - start, len));
        }
        let region = self.segments.region(start)?;
        let bytes = region.slice(position - start, len);
        self.current = Some((start, region));
        Ok(bytes)
    }
}
