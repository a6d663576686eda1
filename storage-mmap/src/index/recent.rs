//! Entries that are not in the files yet.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::Timestamp;

/// Entries that wait in memory before the writer must flush: about 16 MB, once more while they are being written.
pub(super) const MAX_RECENT_ENTRIES: usize = 1 << 18;

/// One key of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecentEntry {
    pub(super) hash: u32,
    pub(super) position: u64,
    pub(super) stored_at: Timestamp,
}

/// Two runs of entries in rising order: those being written to the files, then those that wait.
#[derive(Debug, Default)]
pub(super) struct Recent {
    flushing: Arc<Vec<RecentEntry>>,
    waiting: Vec<RecentEntry>,
    /// For each waiting entry, where the one before it with its hash waits.
    previous: Vec<Option<usize>>,
    newest: HashMap<u32, usize>,
}

impl Recent {
    /// Adds an entry; true when it is time to flush.
    pub(super) fn push(&mut self, entry: RecentEntry) -> bool {
        let number = self.waiting.len();
        self.waiting.push(entry);
        self.previous.push(self.newest.insert(entry.hash, number));
        self.waiting.len() >= MAX_RECENT_ENTRIES
    }

    /// Hands out the entries below a position; they are found here until [`end_flush`](Self::end_flush).
    pub(super) fn begin_flush(&mut self, below: u64) -> Arc<Vec<RecentEntry>> {
        let count = self.waiting.partition_point(|entry| entry.position < below);
        let later = self.waiting.split_off(count);
        self.flushing = Arc::new(std::mem::take(&mut self.waiting));
        self.previous.clear();
        self.newest.clear();
        for entry in later {
            self.push(entry);
        }
        Arc::clone(&self.flushing)
    }

    /// Forgets what was handed out: it is in the files.
    pub(super) fn end_flush(&mut self) {
        self.flushing = Arc::default();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Positions of entries with a hash and a time, newest first, and the position below which the files must be
    /// asked.
    pub(super) fn find(&self, hash: u32, times: &Range<Timestamp>) -> (Vec<u64>, u64) {
        let mut found = Vec::new();
        let mut at = self.newest.get(&hash).copied();
        while let Some(number) = at {
            let entry = self.waiting[number];
            if times.contains(&entry.stored_at) {
                found.push(entry.position);
            }
            at = self.previous[number];
        }
        let flushing = self.flushing.iter().rev();
        found.extend(flushing.filter(|e| e.hash == hash && times.contains(&e.stored_at)).map(|e| e.position));
        let oldest = self.flushing.first().or(self.waiting.first());
        (found, oldest.map_or(u64::MAX, |entry| entry.position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Range<Timestamp> = Timestamp::MIN..Timestamp::MAX;

    fn entry(hash: u32, position: u64) -> RecentEntry {
        RecentEntry { hash, position, stored_at: Timestamp::from_millis(0) }
    }

    #[test]
    fn found_before_during_and_after_a_flush() {
        let mut recent = Recent::default();
        assert_eq!(recent.find(1, &ALL), (vec![], u64::MAX));
        for position in 0..6 {
            assert!(!recent.push(entry(u32::try_from(position % 2).unwrap(), position)));
        }
        assert_eq!(recent.find(1, &ALL), (vec![5, 3, 1], 0));
        assert_eq!(recent.begin_flush(4).len(), 4);
        assert_eq!(recent.find(1, &ALL), (vec![5, 3, 1], 0));
        recent.end_flush();
        assert_eq!(recent.find(1, &ALL), (vec![5], 4));
        recent.push(entry(1, 6));
        assert_eq!(recent.find(1, &ALL), (vec![6, 5], 4));
    }

    #[test]
    fn full_is_full() {
        let mut recent = Recent::default();
        let asks = (0..MAX_RECENT_ENTRIES as u64).map(|position| recent.push(entry(7, position)));
        assert_eq!(asks.filter(|asked| *asked).count(), 1);
    }
}
