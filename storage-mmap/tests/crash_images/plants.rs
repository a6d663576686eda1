//! Planted bugs: layers that do to the files what a broken engine or disk would. The checker must see each.

use std::io;
use std::sync::Arc;

use cuemq_storage_mmap::files::memory::{FaultEffect, FaultTarget, FileCall};
use cuemq_storage_mmap::files::{
    DiskSpace, FileLayer, LayerFile, LockGuard, MappedRegion, MemoryFiles, OpenMode, WritableRegion,
};

/// A disk that says it synced and did not.
pub(crate) fn no_sync(files: MemoryFiles) -> Arc<dyn FileLayer> {
    files.fail(FaultTarget::Every(FileCall::SyncData), FaultEffect::Pretend);
    Arc::new(files)
}

/// An engine that leaves a torn end of its log where it is.
pub(crate) fn no_zeroing(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files, bug: Bug::NoZeroing })
}

/// An engine that does not count its openings.
pub(crate) fn no_new_epoch(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files, bug: Bug::NoNewEpoch })
}

/// An engine that fills room from a little before the place where its frames end.
pub(crate) fn zeros_over_frames(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files: files.mapped_for_writing(), bug: Bug::ZerosOverFrames })
}

/// A system whose syncs leave out what was stored into a map.
pub(crate) fn stores_never_synced(files: MemoryFiles) -> Arc<dyn FileLayer> {
    Arc::new(Planted { files: files.mapped_for_writing(), bug: Bug::StoresNeverSynced })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    ZerosOverFrames,
    StoresNeverSynced,
    NoZeroing,
    NoNewEpoch,
}

#[derive(Debug)]
struct Planted {
    files: MemoryFiles,
    bug: Bug,
}

impl FileLayer for Planted {
    hand_on!(files: create_directory, list, remove, remove_directory, sync_directory, lock, disk_space, describe);
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn LayerFile>> {
        let file = self.files.open(path, mode)?;
        let is_log = path.starts_with("commitlog/");
        if is_log { Ok(Arc::new(PlantedFile { file, bug: self.bug })) } else { Ok(file) }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let is_known = || self.files.open(to, OpenMode::Existing).is_ok();
        if self.bug == Bug::NoNewEpoch && to == "MANIFEST" && is_known() {
            return self.files.remove(from);
        }
        self.files.rename(from, to)
    }
}

#[derive(Debug)]
struct PlantedFile {
    file: Arc<dyn LayerFile>,
    bug: Bug,
}

/// Bytes of a frame that [`Bug::ZerosOverFrames`] loses.
const LOST_BYTES: u64 = 8;

impl LayerFile for PlantedFile {
    hand_on!(file: len, read_at, allocate, set_len, sync_data, drop_cache, map);
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let is_zero = pieces.iter().all(|piece| piece.iter().all(|byte| *byte == 0));
        match self.bug {
            Bug::NoZeroing if is_zero => Ok(()),
            Bug::ZerosOverFrames if is_zero => self.file.write_at(offset.saturating_sub(LOST_BYTES), pieces),
            _ => self.file.write_at(offset, pieces),
        }
    }
    fn map_for_writing(&self, start: u64, len: usize) -> io::Result<Option<Box<dyn WritableRegion>>> {
        let region = self.file.map_for_writing(start, len)?;
        if self.bug != Bug::StoresNeverSynced {
            return Ok(region);
        }
        Ok(region.map(|region| Box::new(NeverSynced(region)) as Box<dyn WritableRegion>))
    }
}

#[derive(Debug)]
struct NeverSynced(Box<dyn WritableRegion>);

impl WritableRegion for NeverSynced {
    fn bytes_mut(&mut self, start: u64, len: usize) -> &mut [u8] {
        self.0.bytes_mut(start, len)
    }
    fn written(&mut self, _start: u64, _len: usize) {}
}
