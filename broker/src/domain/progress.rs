//! How far a consumer group is in one queue, when acknowledgements come out of order.
//!
//! ```text
//!  offsets   0 .. 4 │ 5    6 7    8    9 ...                  committed = 5: the lowest not yet acknowledged
//!            done   │ open done   open open                   acked     = [6, 8)
//!                   ▲ committed                ▲ window end: nothing at or beyond it is fetched
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use cuemq_storage_api::QueueOffset;

/// Most messages of one queue that are open below one that is done or fetched. How far these lie apart does not matter:
/// one that is stuck keeps nothing from going on behind it.
pub(crate) const MAX_OPEN_MESSAGES: u64 = 2048;

/// Most ranges that one queue's progress can have, which bounds its memory and its durable row: each has at least one
/// open message of its own before it.
pub(crate) const MAX_ACKED_RANGES: usize = 2048;

/// Most ranges that withdrawn messages beyond the window add to that.
pub(crate) const MAX_WITHDRAWN_RANGES: usize = 1024;

/// What an acknowledgement changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acked {
    /// Everything below this offset is done now.
    Advanced(QueueOffset),
    /// It is remembered; an earlier message is still open.
    Kept,
    /// It was acknowledged before.
    Again,
}

/// Too many messages are open below the offset: nothing was delivered from there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BeyondWindow {
    /// The first offset beyond the window.
    pub(crate) end: QueueOffset,
}

/// What a recovery had to cut off, because the log ended earlier than the acknowledgements (promise P6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Clamped {
    /// The highest end that was stored.
    pub(crate) stored: QueueOffset,
    /// The log's end, above which nothing counts.
    pub(crate) log_end: QueueOffset,
}

/// The acknowledged offsets of one queue for one group.
///
/// Acknowledgements are told by offset alone: whoever calls keeps away those of an old lease, and those of deliveries
/// made before a [`reset`](Self::reset).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Progress {
    committed: QueueOffset,
    /// Start to end of acknowledged ranges; none touches another or `committed`. All but those of withdrawn messages lie
    /// within the window.
    acked: BTreeMap<QueueOffset, QueueOffset>,
    /// How many offsets these ranges have together.
    done: u64,
}

impl Progress {
    /// Everything below `committed` is done, nothing above.
    #[must_use]
    pub(crate) fn starting_at(committed: QueueOffset) -> Self {
        Self { committed, acked: BTreeMap::new(), done: 0 }
    }

    /// Takes up stored progress. What lies above the log's end is cut off and reported: the messages there were lost
    /// with the end of the log, and new ones will get their offsets.
    #[must_use]
    pub(crate) fn recover(
        committed: QueueOffset,
        acked: impl IntoIterator<Item = Range<QueueOffset>>,
        log_end: QueueOffset,
    ) -> (Self, Option<Clamped>) {
        let mut progress = Self::starting_at(committed.min(log_end));
        let mut stored = committed;
        for range in acked {
            stored = stored.max(range.end);
            let within = range.start..range.end.min(log_end);
            // Nothing was written that may not be there.
            progress.insert(within);
        }
        (progress, (stored > log_end).then_some(Clamped { stored, log_end }))
    }

    /// The lowest offset not yet acknowledged: where a consumer starts anew.
    #[must_use]
    pub(crate) fn committed(&self) -> QueueOffset {
        self.committed
    }

    /// The acknowledged ranges above the committed offset, rising, at most [`MAX_ACKED_RANGES`].
    pub(crate) fn acked_ranges(&self) -> impl ExactSizeIterator<Item = Range<QueueOffset>> {
        self.acked.iter().map(|(start, end)| *start..*end)
    }

    /// Whether anything above the committed offset was acknowledged.
    #[must_use]
    pub(crate) fn has_acked_ranges(&self) -> bool {
        !self.acked.is_empty()
    }

    /// How many offsets are done, from the first there ever was: the difference of two moments tells what was done between.
    #[must_use]
    pub(crate) fn total_done(&self) -> u64 {
        self.committed.get() + self.done
    }

    /// Whether this offset was acknowledged.
    #[must_use]
    pub(crate) fn is_acked(&self, offset: QueueOffset) -> bool {
        offset < self.committed || self.range_at(offset).is_some()
    }

    /// The first offset that may not be fetched yet: with everything below it fetched, as many messages would be open as
    /// may be.
    #[must_use]
    pub(crate) fn window_end(&self) -> QueueOffset {
        let end = self.committed.plus(self.done + MAX_OPEN_MESSAGES);
        if self.acked.last_key_value().is_none_or(|(_, last)| *last <= end) {
            return end;
        }
        // Messages were withdrawn beyond it: what is done there opens nothing.
        let open = self.committed.plus(MAX_OPEN_MESSAGES);
        self.acked_ranges()
            .fold(open, |end, done| if done.start <= end { end.plus(done.end.get() - done.start.get()) } else { end })
    }

    /// The first offset at or after `from` that is not acknowledged: where a fetch goes on after a restart.
    #[must_use]
    pub(crate) fn next_open(&self, from: QueueOffset) -> QueueOffset {
        let from = from.max(self.committed);
        self.range_at(from).map_or(from, |range| range.end)
    }

    /// Acknowledges one message.
    ///
    /// # Errors
    /// When the offset lies beyond the window; nothing has changed then.
    pub(crate) fn ack(&mut self, offset: QueueOffset) -> Result<Acked, BeyondWindow> {
        self.ack_range(offset..offset.plus(1))
    }

    /// Acknowledges neighbouring messages, such as those that a filter skipped. What is acknowledged already is no
    /// error; an empty range is [`Acked::Again`].
    ///
    /// # Errors
    /// When too many messages would be open below the range's end; nothing has changed then.
    pub(crate) fn ack_range(&mut self, range: Range<QueueOffset>) -> Result<Acked, BeyondWindow> {
        if !self.accepts(&range) {
            return Err(BeyondWindow { end: self.window_end() });
        }
        let before = self.committed;
        let changed = self.insert(range);
        Ok(match changed {
            _ if self.committed > before => Acked::Advanced(self.committed),
            true => Acked::Kept,
            false => Acked::Again,
        })
    }

    /// Whether [`ack_range`](Self::ack_range) would take these.
    #[must_use]
    pub(crate) fn accepts(&self, range: &Range<QueueOffset>) -> bool {
        range.end <= self.window_end() || self.open_below(range.start) <= MAX_OPEN_MESSAGES
    }

    /// Whether a message can be withdrawn: one within the window always, one beyond it as long as there are few gaps.
    #[must_use]
    pub(crate) fn has_room_to_withdraw(&self, offset: QueueOffset) -> bool {
        offset < self.window_end() || self.acked.len() < MAX_WITHDRAWN_RANGES
    }

    /// Declares a message done that was never given out, wherever it lies; false, and nothing has changed, when there is
    /// no room for it.
    pub(crate) fn withdraw(&mut self, offset: QueueOffset) -> bool {
        let room = self.has_room_to_withdraw(offset);
        if room {
            self.insert(offset..offset.plus(1));
        }
        room
    }

    /// Declares everything below an offset done, as a manual commit or the loss of expired messages does. Never moves
    /// back; the answer is whether it moved. The caller has checked the offset against the end of the log.
    pub(crate) fn commit(&mut self, offset: QueueOffset) -> bool {
        let moves = offset > self.committed;
        if moves {
            self.insert(self.committed..offset);
        }
        moves
    }

    /// Sets the committed offset, forwards or back, and forgets every acknowledgement above it.
    pub(crate) fn reset(&mut self, offset: QueueOffset) {
        *self = Self::starting_at(offset);
    }

    /// How many offsets are open below this one.
    fn open_below(&self, offset: QueueOffset) -> u64 {
        let done = self.acked.range(..offset).map(|(start, end)| (*end).min(offset).get() - start.get());
        offset.get().saturating_sub(self.committed.get()).saturating_sub(done.sum())
    }

    /// What is open within a range; rising.
    pub(crate) fn open_ranges(&self, within: Range<QueueOffset>) -> impl Iterator<Item = Range<QueueOffset>> {
        let mut at = within.start.max(self.committed);
        let ends = self.acked_ranges().chain(std::iter::once(within.end..within.end));
        ends.filter_map(move |done| {
            let open = at..done.start.min(within.end);
            at = at.max(done.end);
            (open.start < open.end).then_some(open)
        })
    }

    /// Adds a range, merging it with its neighbours and with the committed offset; whether anything changed.
    fn insert(&mut self, range: Range<QueueOffset>) -> bool {
        let (mut start, mut end) = (range.start.max(self.committed), range.end);
        if start >= end || self.range_at(start).is_some_and(|known| known.end >= end) {
            return false;
        }
        if let Some((before, before_end)) = self.acked.range(..start).next_back().map(|(s, e)| (*s, *e))
            && before_end >= start
        {
            (start, end) = (before, end.max(before_end));
        }
        while let Some((after, after_end)) = self.acked.range(start..=end).next().map(|(s, e)| (*s, *e)) {
            self.acked.remove(&after);
            self.done -= after_end.get() - after.get();
            end = end.max(after_end);
        }
        if start == self.committed {
            self.committed = end;
        } else {
            self.acked.insert(start, end);
            self.done += end.get() - start.get();
        }
        true
    }

    fn range_at(&self, offset: QueueOffset) -> Option<Range<QueueOffset>> {
        let (start, end) = self.acked.range(..=offset).next_back()?;
        (*end > offset).then_some(*start..*end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(offset: u64) -> QueueOffset {
        QueueOffset::new(offset)
    }

    fn span(range: Range<u64>) -> Range<QueueOffset> {
        at(range.start)..at(range.end)
    }

    fn ranges(progress: &Progress) -> Vec<(u64, u64)> {
        progress.acked_ranges().map(|range| (range.start.get(), range.end.get())).collect()
    }

    #[test]
    fn commits_up_to_the_first_gap() {
        let mut progress = Progress::starting_at(at(5));
        assert_eq!(progress.ack(at(6)), Ok(Acked::Kept));
        assert_eq!(progress.ack(at(8)), Ok(Acked::Kept));
        assert_eq!(progress.ack(at(7)), Ok(Acked::Kept));
        assert_eq!(ranges(&progress), [(6, 9)]);
        assert_eq!(progress.ack(at(7)), Ok(Acked::Again));
        assert_eq!(progress.next_open(at(6)), at(9));
        assert_eq!(progress.ack(at(5)), Ok(Acked::Advanced(at(9))));
        assert_eq!(progress.ack(at(4)), Ok(Acked::Again));
        assert_eq!(progress, Progress::starting_at(at(9)));
    }

    #[test]
    fn skipped_messages_are_acked_as_a_range() {
        let mut progress = Progress::default();
        progress.ack_range(span(3..10)).unwrap();
        progress.ack_range(span(12..14)).unwrap();
        assert_eq!(progress.ack_range(span(5..13)), Ok(Acked::Kept));
        assert_eq!(ranges(&progress), [(3, 14)]);
        assert_eq!(progress.ack_range(span(7..7)), Ok(Acked::Again));
        assert_eq!(progress.ack_range(span(0..4)), Ok(Acked::Advanced(at(14))));
    }

    #[test]
    fn the_window_counts_what_is_open() {
        let mut progress = Progress::default();
        let most = MAX_OPEN_MESSAGES;
        assert_eq!(progress.window_end(), at(most));
        assert_eq!(progress.ack(at(most - 1)), Ok(Acked::Kept), "2047 are open before it");
        assert_eq!(progress.window_end(), at(most + 1), "and one more may be fetched");
        assert_eq!(progress.ack(at(most + 1)), Ok(Acked::Kept), "2048 are open before it");
        assert_eq!(progress.ack(at(most + 3)), Err(BeyondWindow { end: at(most + 2) }), "2049 would be");
        assert_eq!(progress.ack_range(span(most + 2..3 * most)), Ok(Acked::Kept), "none of these is open");
        progress.ack(at(0)).unwrap();
        assert_eq!(progress.ack(at(3 * most + 1)), Ok(Acked::Kept));
    }

    #[test]
    fn one_stuck_message_stops_nothing() {
        let mut progress = Progress::default();
        for offset in 1..=20_000 {
            assert!(at(offset) < progress.window_end());
            assert_eq!(progress.ack(at(offset)), Ok(Acked::Kept));
        }
        assert_eq!(ranges(&progress), [(1, 20_001)]);
        assert_eq!(progress.ack(at(0)), Ok(Acked::Advanced(at(20_001))));
        assert_eq!(progress, Progress::starting_at(at(20_001)));
    }

    #[test]
    fn as_many_ranges_as_the_bound_says() {
        let mut progress = Progress::default();
        for offset in (1..2 * MAX_OPEN_MESSAGES).step_by(2) {
            progress.ack(at(offset)).unwrap();
        }
        assert_eq!(ranges(&progress).len(), MAX_ACKED_RANGES);
        let next = 2 * MAX_OPEN_MESSAGES + 1;
        assert_eq!(progress.ack(at(next)), Err(BeyondWindow { end: at(next - 1) }));
    }

    #[test]
    fn a_commit_moves_forward_only_and_a_reset_anywhere() {
        let mut progress = Progress::starting_at(at(10));
        progress.ack(at(12)).unwrap();
        assert!(!progress.commit(at(9)) && !progress.commit(at(10)));
        assert!(progress.commit(at(12)));
        assert_eq!(progress.committed(), at(13), "12 was acknowledged before");
        assert!(progress.commit(at(1_000_000)), "a commit may jump over the window");
        progress.ack(at(1_000_005)).unwrap();
        progress.reset(at(3));
        assert_eq!(progress, Progress::starting_at(at(3)));
    }

    #[test]
    fn recovery_clamps_to_the_end_of_the_log() {
        let stored = [span(12..15), span(18..22)];
        let (progress, clamped) = Progress::recover(at(10), stored.clone(), at(22));
        assert_eq!((progress.committed(), ranges(&progress), clamped), (at(10), vec![(12, 15), (18, 22)], None));

        let (progress, clamped) = Progress::recover(at(10), stored.clone(), at(20));
        assert_eq!((progress.committed(), ranges(&progress)), (at(10), vec![(12, 15), (18, 20)]));
        assert_eq!(clamped, Some(Clamped { stored: at(22), log_end: at(20) }));

        let (progress, clamped) = Progress::recover(at(10), stored, at(4));
        assert_eq!(progress, Progress::starting_at(at(4)));
        assert_eq!(clamped, Some(Clamped { stored: at(22), log_end: at(4) }));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ack(u64, u64),
        Commit(u64),
        Reset(u64),
        Recover(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0u64..80, 0u64..6).prop_map(|(start, len)| Step::Ack(start, len)),
            2 => (0u64..80).prop_map(Step::Commit),
            1 => (0u64..80).prop_map(Step::Reset),
            2 => (0u64..90).prop_map(Step::Recover),
        ]
    }

    proptest! {
        /// The model keeps every acknowledged offset one by one.
        #[test]
        fn equals_a_set_of_offsets(steps in prop::collection::vec(any_step(), 0..60)) {
            let (mut progress, mut model) = (Progress::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Ack(start, len) => {
                        let before = (model.len(), first_gap(&model));
                        model.extend(start..start + len);
                        let expected = match first_gap(&model) {
                            gap if gap > before.1 => Acked::Advanced(at(gap)),
                            _ if model.len() > before.0 => Acked::Kept,
                            _ => Acked::Again,
                        };
                        prop_assert_eq!(progress.ack_range(span(start..start + len)), Ok(expected));
                    }
                    Step::Commit(to) => {
                        prop_assert_eq!(progress.commit(at(to)), to > first_gap(&model));
                        model.extend(0..to);
                    }
                    Step::Reset(to) => {
                        progress.reset(at(to));
                        model = (0..to).collect();
                    }
                    Step::Recover(end) => {
                        let stored = model.last().map_or(0, |last| last + 1);
                        let (again, clamped) = Progress::recover(progress.committed(), progress.acked_ranges(), at(end));
                        prop_assert_eq!(clamped.is_some(), stored > end);
                        model.retain(|offset| *offset < end);
                        progress = again;
                    }
                }
                prop_assert_eq!(progress.committed().get(), first_gap(&model));
                let acked: BTreeSet<u64> = (0..100).filter(|offset| progress.is_acked(at(*offset))).collect();
                prop_assert_eq!(&acked, &model);
                let ranges = ranges(&progress);
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "merged: {:?}", ranges);
                prop_assert!(ranges.iter().all(|(start, end)| *start > progress.committed().get() && start < end));
            }
        }
    }

    proptest! {
        /// Of offsets that may lie far apart: refused is what would leave too many open below it, and nothing else.
        #[test]
        fn never_more_open_than_allowed(acks in prop::collection::vec((0u64..9000, 1u64..1500), 1..25), first in 0u64..3) {
            let mut progress = Progress::starting_at(at(first));
            let mut model: Vec<bool> = (0..11_000).map(|offset| offset < first).collect();
            let open_below = |model: &[bool], end| model[..end].iter().filter(|done| !**done).count() as u64;
            for (start, len) in acks {
                let mut after = model.clone();
                let (from, to) = (usize::try_from(start).unwrap(), usize::try_from(start + len).unwrap());
                after[from..to].fill(true);
                let end = after.iter().rposition(|done| *done).map_or(0, |last| last + 1);
                let allowed = open_below(&after, end) <= MAX_OPEN_MESSAGES;
                prop_assert_eq!(progress.ack_range(span(start..start + len)).is_ok(), allowed);
                if allowed {
                    model = after;
                }
                let window = usize::try_from(progress.window_end().get()).unwrap().min(model.len());
                if window < model.len() {
                    prop_assert_eq!(open_below(&model, window), MAX_OPEN_MESSAGES);
                }
                let end = at(u64::MAX >> 12);
                let again = Progress::recover(progress.committed(), progress.acked_ranges(), end);
                prop_assert_eq!(again, (progress.clone(), None));
            }
        }
    }

    fn first_gap(model: &BTreeSet<u64>) -> u64 {
        (0..).find(|offset| !model.contains(offset)).unwrap()
    }
}
