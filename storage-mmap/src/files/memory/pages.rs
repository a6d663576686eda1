//! The bytes of one file in memory: sparse, and cheap to copy because pages are shared until written.

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub(super) const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

type Page = Arc<[u8; PAGE_BYTES]>;

/// Sparse content; a page that was never written is absent and reads as zero. Bytes behind the end are zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: Vec<Option<Page>>,
    len: u64,
}

/// The part of a byte range that lies in one page: the page's number, and where within it.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = offset;
    let end = offset + len as u64;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let within = index(at % PAGE);
            let count = (PAGE_BYTES - within).min(index(end - at));
            let piece = (index(at / PAGE), within..within + count);
            at += count as u64;
            piece
        })
    })
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a file in memory fits the address space")
}

impl Pages {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Numbers of the pages that a byte range touches.
    pub(super) fn touched(range: Range<u64>) -> Range<usize> {
        index(range.start / PAGE)..index(range.end.div_ceil(PAGE))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = buffer;
        for (page, within) in pieces(offset, rest.len()) {
            let (head, tail) = rest.split_at_mut(within.len());
            match self.pages.get(page) {
                Some(Some(page)) => head.copy_from_slice(&page[within]),
                _ => head.fill(0),
            }
            rest = tail;
        }
        Ok(())
    }

    /// Writes without extending; [`set_len`](Self::set_len) must follow to settle the end.
    pub(super) fn write_behind_end(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, within) in pieces(offset, rest.len()) {
            let (head, tail) = rest.split_at(within.len());
            self.page_mut(page)[within].copy_from_slice(head);
            rest = tail;
        }
    }

    /// Makes a range read as zero without changing the length.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        for page in Self::touched(range.clone()) {
            if !matches!(self.pages.get(page), Some(Some(_))) {
                continue;
            }
            let start = page as u64 * PAGE;
            let within = index(range.start.max(start) - start)..index(range.end.min(start + PAGE) - start);
            if within == (0..PAGE_BYTES) {
                self.pages[page] = None;
            } else {
                self.page_mut(page)[within].fill(0);
            }
        }
    }

    /// Cuts or extends; nothing stays behind the end.
    pub(super) fn set_len(&mut self, len: u64) {
        let held = self.pages.len() as u64 * PAGE;
        if len < held {
            self.zero(len..held);
            self.pages.truncate(index(len.div_ceil(PAGE)));
        }
        self.len = len;
    }

    /// Takes one page from another file's content, shared.
    pub(super) fn share(&mut self, page: usize, from: &Self) {
        let taken = from.pages.get(page).cloned().flatten();
        if taken.is_some() || page < self.pages.len() {
            if self.pages.len() <= page {
                self.pages.resize(page + 1, None);
            }
            self.pages[page] = taken;
        }
    }

    fn page_mut(&mut self, page: usize) -> &mut [u8; PAGE_BYTES] {
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pages: &mut Pages, offset: u64, bytes: &[u8]) {
        pages.write_behind_end(offset, bytes);
        pages.set_len(pages.len().max(offset + bytes.len() as u64));
    }

    fn all(pages: &Pages) -> Vec<u8> {
        let mut bytes = vec![1; index(pages.len())];
        pages.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_across_pages_and_holes() {
        let mut pages = Pages::default();
        write(&mut pages, 4090, &[7; 10]);
        write(&mut pages, 20_000, &[8]);
        let copy = pages.clone();
        pages.zero(4092..4098);
        let mut expected = vec![0; 20_001];
        expected[4090..4092].fill(7);
        expected[4098..4100].fill(7);
        expected[20_000] = 8;
        assert_eq!(all(&pages), expected);
        assert_eq!(all(&copy)[4090..4100], [7; 10]);
        assert!(pages.read(20_000, &mut [0; 2]).is_err());
    }

    #[test]
    fn nothing_stays_behind_a_cut() {
        let mut pages = Pages::default();
        write(&mut pages, 0, &[9; 10_000]);
        pages.set_len(5000);
        pages.set_len(10_000);
        let bytes = all(&pages);
        assert!(bytes[..5000].iter().all(|b| *b == 9) && bytes[5000..].iter().all(|b| *b == 0));
    }
}
