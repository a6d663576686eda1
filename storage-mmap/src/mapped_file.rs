//! Maps of files: the one file of this crate with `unsafe` in it. `UNSAFE.md` has the argument in full.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapMut, MmapOptions};

use crate::files::{MappedRegion, WritableRegion};

/// A file mapped read-only over `[0, len)`, where `len` may be beyond the file's present end.
///
/// Every range is checked against the file's length before a byte of it is handed out, so that a range beyond the
/// end is a panic that says so and not a `SIGBUS`.
#[derive(Debug)]
pub(crate) struct MappedFile {
    file: Arc<File>,
    /// The whole map; slices of it share one reference count and need no allocation.
    whole: Bytes,
    /// The file was at least this long when it was last asked. Files under a map never shrink (`UNSAFE.md`, 2).
    reach: AtomicU64,
    /// Up to here the file was asked to be read ahead.
    asked: AtomicU64,
}

struct Owner(Mmap);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MappedFile {
    /// A file that is read on is read ahead by at least this much.
    const READ_AHEAD_BYTES: u64 = 2 << 20;

    /// Maps `[0, len)`; `len` is at least 1 (the operating system maps no empty range).
    ///
    /// # Errors
    /// What the operating system answers; `InvalidInput` when `len` is 0 or does not fit the address space.
    pub(crate) fn map(file: Arc<File>, len: u64) -> io::Result<Self> {
        let map_len = usize::try_from(len)
            .ok()
            .filter(|len| (1..=isize::MAX.unsigned_abs()).contains(len))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("cannot map {len} bytes")))?;
        let mut options = MmapOptions::new();
        options.len(map_len);
        // SAFETY: `Mmap::map` asks that nobody truncates the file and nobody changes bytes that are borrowed.
        // Truncation: the file lies in a store's directory, whose exclusive lock this process holds; the engine cuts
        // a file only in recovery, before it maps it, and `LayerFile::set_len` forbids it afterwards (UNSAFE.md, 2).
        // Changes: the file is written by the one writer and by who fills room ahead of it, always behind the published
        // end; `slice` is asked only for bytes below that end, and those are never written again (UNSAFE.md, 3).
        // Pages beyond the file's end are mapped but never touched: `slice` compares with the length first.
        let map = unsafe { options.map(&*file) }?;
        let whole = Bytes::from_owner(Owner(map));
        let reach = AtomicU64::new(file.metadata()?.len());
        Ok(Self { file, whole, reach, asked: AtomicU64::new(0) })
    }

    fn checked(&self, start: u64, len: usize) -> Range<usize> {
        let end = u64::try_from(len).ok().and_then(|len| start.checked_add(len)).unwrap_or(u64::MAX);
        assert!(self.is_within_file(end), "mapped range {start}..{end} reaches beyond the file");
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        match range {
            Some((start, end)) if end <= self.whole.len() => start..end,
            _ => panic!("mapped range {start}..{end} reaches beyond the map of {} bytes", self.whole.len()),
        }
    }

    fn is_within_file(&self, end: u64) -> bool {
        // Relaxed: the number only ever rises and guards nothing but itself.
        if end <= self.reach.load(Ordering::Relaxed) {
            return true;
        }
        let Ok(now) = self.file.metadata() else { return false };
        self.reach.fetch_max(now.len(), Ordering::Relaxed);
        end <= now.len()
    }
}

impl MappedRegion for MappedFile {
    fn slice(&self, start: u64, len: usize) -> Bytes {
        let range = self.checked(start, len);
        self.whole.slice(range)
    }

    fn slice_up_to(&self, start: u64, len: usize, end: u64) -> Bytes {
        let most = usize::try_from(end.saturating_sub(start)).unwrap_or(len);
        self.slice(start, len.max(most))
    }

    fn read_on(&self, end: u64) {
        // Relaxed: two readers at once only ask twice. A reader that jumps back begins anew.
        let asked = self.asked.load(Ordering::Relaxed);
        let is_near = (end..end + 2 * Self::READ_AHEAD_BYTES).contains(&asked);
        if is_near && asked - end >= Self::READ_AHEAD_BYTES {
            return;
        }
        let from = if is_near { asked } else { end };
        let upto = end + 2 * Self::READ_AHEAD_BYTES;
        self.asked.store(upto, Ordering::Relaxed);
        let _ = rustix::fs::fadvise(&self.file, from, NonZeroU64::new(upto - from), rustix::fs::Advice::WillNeed);
    }
}

/// A processor fetches memory in lines of this size.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE_BYTES: usize = 64;

/// Has the lines of memory near that hold these bytes, soon, and waits for none of them. Where the processor or the
/// compiler knows no such hint nothing happens.
#[inline]
pub(crate) fn bring_near(bytes: &[u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for byte in bytes.iter().step_by(LINE_BYTES).chain(bytes.last()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the hint reads nothing that the program sees, and never faults, whatever address it is given; this one
        // is that of a byte which is borrowed. It is part of SSE, which every x86-64 processor has (UNSAFE.md, 10).
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(byte).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = bytes;
}

/// A part of a file that is mapped for stores.
#[derive(Debug)]
pub(crate) struct MappedWindow {
    map: MmapMut,
    /// Where the window begins in the file.
    start: u64,
}

impl MappedWindow {
    /// Pages are populated in pieces of this size: other changes of the process's maps wait no longer than for one.
    const POPULATE_BYTES: usize = 256 << 10;

    /// Maps `[start, start + len)`; `start` is a multiple of the page size and `len` at least 1.
    ///
    /// # Errors
    /// What the operating system answers.
    pub(crate) fn map(file: &File, start: u64, len: usize) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.offset(start).len(len);
        // SAFETY: `map_mut` asks that nobody truncates the file and nobody else uses the bytes that are borrowed.
        // Truncation: as in `MappedFile::map`; `bytes_mut` is asked only for room that was taken from the disk and
        // filled, which lies within the file and is never given back (UNSAFE.md, 2 and 6).
        // Others: `bytes_mut` is asked only by the one writer, which holds the window, and only for bytes behind the
        // published end of the log; readers borrow bytes below it, and whoever fills room with zeros does so beyond
        // what was filled before (UNSAFE.md, 3 and 7).
        let map = unsafe { options.map_mut(file) }?;
        Ok(Self { map, start })
    }

    fn within(&self, start: u64, len: usize) -> Option<Range<usize>> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(len)?;
        (to <= self.map.len()).then_some(from..to)
    }
}

impl WritableRegion for MappedWindow {
    fn bytes_mut(&mut self, start: u64, len: usize) -> &mut [u8] {
        let Some(range) = self.within(start, len) else {
            panic!("{len} bytes at {start} reach beyond the window of {} bytes at {}", self.map.len(), self.start)
        };
        &mut self.map[range]
    }

    fn populate(&mut self, start: u64, len: usize) {
        let Some(range) = self.within(start, len) else { return };
        for piece in range.clone().step_by(Self::POPULATE_BYTES) {
            // Advice: a kernel before 5.14 only leaves the pages to be taken by the first store into each.
            let _ = self.map.advise_range(Advice::PopulateWrite, piece, Self::POPULATE_BYTES.min(range.end - piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn mapped(len: u64) -> (Arc<File>, MappedFile) {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let map = MappedFile::map(Arc::clone(&file), len).unwrap();
        (file, map)
    }

    #[test]
    fn a_map_beyond_the_end_follows_later_writes() {
        let (file, map) = mapped(1 << 20);
        file.write_all_at(b"first", 0).unwrap();
        let first = map.slice(0, 5);
        file.write_all_at(b"far away", 500_000).unwrap();
        assert_eq!(&map.slice(500_000, 8)[..], b"far away");
        map.read_on(5);
        drop(map);
        assert_eq!(&first[..], b"first", "a slice keeps the map alive");
    }

    #[test]
    #[should_panic(expected = "beyond the file")]
    fn a_range_beyond_the_file_is_refused_before_it_is_touched() {
        let (file, map) = mapped(1 << 20);
        file.write_all_at(b"first", 0).unwrap();
        let _ = map.slice(3, 10);
    }

    #[test]
    #[should_panic(expected = "beyond the map")]
    fn a_range_beyond_the_map_is_refused() {
        let (file, map) = mapped(4096);
        file.set_len(1 << 20).unwrap();
        let _ = map.slice(4000, 97);
    }

    #[test]
    fn what_is_stored_into_a_window_is_read_from_the_file_and_from_other_maps() {
        let (file, map) = mapped(1 << 20);
        file.write_all_at(&[0; 16_384], 0).unwrap();
        let mut window = MappedWindow::map(&file, 8192, 1 << 20).unwrap();
        window.populate(8192, 8192);
        window.bytes_mut(10_000, 6).copy_from_slice(b"stored");
        let mut found = [0; 6];
        file.read_exact_at(&mut found, 10_000).unwrap();
        assert_eq!(&found, b"stored");
        assert_eq!(&map.slice(10_000, 6)[..], b"stored");
        file.write_all_at(b"again", 11_000).unwrap();
        assert_eq!(window.bytes_mut(11_000, 5), b"again");
    }

    #[test]
    #[should_panic(expected = "beyond the window")]
    fn a_store_before_the_window_is_refused() {
        let (file, _map) = mapped(4096);
        file.set_len(1 << 20).unwrap();
        MappedWindow::map(&file, 8192, 4096).unwrap().bytes_mut(8191, 1);
    }

    #[test]
    #[should_panic(expected = "beyond the window")]
    fn a_store_behind_the_window_is_refused() {
        let (file, _map) = mapped(4096);
        file.set_len(1 << 20).unwrap();
        MappedWindow::map(&file, 8192, 4096).unwrap().bytes_mut(12_287, 2);
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        assert_eq!(MappedFile::map(file, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
