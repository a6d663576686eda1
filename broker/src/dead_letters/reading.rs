//! Reads the queue of a group's dead letters, without those that were dealt with.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use cuemq_storage_api::{FetchLimit, FetchRequest, GroupName, QueueKey, QueueOffset, StoredRecord, TagHashes};

use super::letter::{DeadLetter, Found, LetterRef};
use crate::consumer::Received;
use crate::domain::letters::LetterFilter;
use crate::error::{Error, Result};
use crate::limits::{FETCH_MESSAGES, MAX_LETTER_BATCH_BYTES};
use crate::shared::Shared;
use crate::storage::{QueueTail, scan_rows};
use crate::tables::dead_letter;

/// One group's queue of dead letters.
#[derive(Clone)]
pub(super) struct LetterQueue {
    pub(super) shared: Arc<Shared>,
    pub(super) tail: Arc<QueueTail>,
    group: GroupName,
    key: QueueKey,
}

/// What one read found.
pub(super) struct Part {
    pub(super) letters: Vec<DeadLetter>,
    /// Where to go on; beyond what was asked for once there is nothing more.
    pub(super) next: QueueOffset,
    pub(super) examined: usize,
}

impl LetterQueue {
    pub(super) fn new(shared: Arc<Shared>, group: GroupName, key: QueueKey) -> Result<Self> {
        let tail = shared.storage.tail(&key)?;
        Ok(Self { shared, tail, group, key })
    }

    /// The first letter that is still stored.
    pub(super) fn start(&self) -> Result<QueueOffset> {
        Ok(self.shared.storage.engine().bounds(&self.key)?.start)
    }

    /// Behind the last letter that can be seen.
    pub(super) fn end(&self) -> QueueOffset {
        self.tail.visible()
    }

    /// The next letters, dealt with or not, at most `most` of them, from `from` on or where the queue begins.
    pub(super) fn fetch(
        &self,
        from: QueueOffset,
        until: QueueOffset,
        most: usize,
    ) -> Result<(Vec<StoredRecord>, QueueOffset)> {
        let limit = FetchLimit { max_messages: most.min(FETCH_MESSAGES), max_bytes: MAX_LETTER_BATCH_BYTES };
        let mut from = from;
        loop {
            from = from.max(self.start()?);
            if from >= until {
                return Ok((Vec::new(), from));
            }
            let request = FetchRequest { queue: &self.key, from, until: Some(until), limit, tags: &TagHashes::All };
            match self.shared.storage.engine().fetch(request) {
                Ok(fetch) => return Ok((fetch.records, fetch.next)),
                // Its beginning has moved since it was asked for.
                Err(error) if error.kind() == cuemq_storage_api::ErrorKind::OutOfRange && from < self.start()? => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Open letters that a filter means: looks at no more than one fetch.
    pub(super) fn read(
        &self,
        from: QueueOffset,
        until: QueueOffset,
        most: usize,
        filter: &LetterFilter,
    ) -> Result<Part> {
        let (records, mut next) = self.fetch(from, until, FETCH_MESSAGES)?;
        let (examined, handled) = (records.len(), self.handled(from..next)?);
        let start = self.start()?;
        let mut letters = Vec::new();
        for stored in records {
            if letters.len() == most {
                next = stored.offset;
                break;
            }
            let open = stored.offset >= start && !handled.contains(&stored.offset);
            if open && filter.matches(&stored.record) {
                letters.push(self.letter(stored));
            }
        }
        Ok(Part { letters, next, examined })
    }

    pub(super) fn letter(&self, stored: StoredRecord) -> DeadLetter {
        DeadLetter::new(Received::new(self.key.clone(), stored, self.shared.store_id, 0))
    }

    /// Which of these letters were dealt with.
    fn handled(&self, letters: Range<QueueOffset>) -> Result<BTreeSet<QueueOffset>> {
        let (keys, mut handled) = (dead_letter::keys(&self.group, &letters), BTreeSet::new());
        let engine = &**self.shared.storage.engine();
        scan_rows::<Error>(engine, &dead_letter::TABLE, &keys.start, Some(&keys.end), usize::MAX, |key, _| {
            handled.insert(dead_letter::decode_key(key)?.1);
            Ok(())
        })?;
        Ok(handled)
    }

    pub(super) fn count(&self) -> Result<u64> {
        let (start, end) = (self.start()?, self.end());
        let (keys, mut handled) = (dead_letter::keys(&self.group, &(start..end.max(start))), 0);
        let engine = &**self.shared.storage.engine();
        scan_rows::<Error>(engine, &dead_letter::TABLE, &keys.start, Some(&keys.end), usize::MAX, |_, _| {
            handled += 1;
            Ok(())
        })?;
        Ok(end.get().saturating_sub(start.get()).saturating_sub(handled))
    }

    pub(super) fn find(&self, letter: LetterRef) -> Result<Found> {
        let id = match letter {
            LetterRef::Offset(offset) => return self.at(offset),
            LetterRef::Id(id) => id,
        };
        if id.store() == self.shared.store_id
            && let Some(located) = self.shared.storage.engine().record_at(id.position())?
            && located.queue == self.key
        {
            return self.at(located.stored.offset);
        }
        let (mut at, end) = (self.start()?, self.end());
        while at < end {
            let part = self.read(at, end, FETCH_MESSAGES, &LetterFilter::all())?;
            if let Some(letter) = part.letters.into_iter().find(|letter| letter.origin_id() == id) {
                return Ok(Found::Open(Box::new(letter)));
            }
            at = part.next;
        }
        Ok(Found::Nowhere)
    }

    fn at(&self, offset: QueueOffset) -> Result<Found> {
        let end = self.end();
        if offset >= end {
            return Ok(Found::NotOpen(offset));
        }
        let part = self.read(offset, offset.plus(1), 1, &LetterFilter::all())?;
        let open = part.letters.into_iter().next().map(Box::new);
        Ok(open.map_or(Found::NotOpen(offset), Found::Open))
    }
}
