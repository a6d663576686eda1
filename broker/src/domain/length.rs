//! How much may wait in a queue, and what happens to what is too much.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use cuemq_storage_api::{InvalidInput, QueueOffset, Record};
use serde::{Deserialize, Serialize};

/// The most that may wait in each queue of a topic: messages that a group has not consumed. Under
/// [`Overflow::DropHead`] what its consumers have at hand does not count; under the other policies it does, so that
/// whatever they give back finds its place. Every group counts for itself; where no group reads the queue, all that is
/// stored counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MaxLength {
    /// Most messages, at least 1.
    pub messages: Option<u64>,
    /// Most bytes of bodies and attributes, at least 1. Such a queue also has no more than 2^20 messages between the
    /// oldest that waits and its end.
    pub bytes: Option<u64>,
    /// What happens when there is no room.
    pub policy: Overflow,
}

/// What happens to a message for which its queue has no room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Overflow {
    /// The oldest messages that wait make room: they become dead letters of their group, with the reason `maxlen`.
    #[default]
    DropHead,
    /// The message is refused: the send fails with `Full` and nothing is stored.
    RejectNew,
    /// The message is refused, and kept as a dead letter of every group that reads the queue, with the reason `maxlen`.
    /// The send fails with `Full` all the same.
    RejectNewDeadLetter,
}

/// An amount of messages: what waits, what is to come, or the room between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Size {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl MaxLength {
    /// At most this many messages; the oldest make room.
    #[must_use]
    pub fn of_messages(messages: u64) -> Self {
        Self { messages: Some(messages), ..Self::default() }
    }

    /// At most this many bytes; the oldest make room.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..Self::default() }
    }

    /// The same with another policy.
    #[must_use]
    pub fn policy(mut self, policy: Overflow) -> Self {
        self.policy = policy;
        self
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// When there is neither a limit on messages nor on bytes, or one is 0.
    pub(crate) fn check(&self) -> Result<(), InvalidInput> {
        if self.messages.is_none() && self.bytes.is_none() {
            return Err(InvalidInput::new("max_length has no limit: set messages, bytes or both"));
        }
        if self.messages == Some(0) || self.bytes == Some(0) {
            return Err(InvalidInput::new(format!("max_length is {self}: it needs at least 1")));
        }
        Ok(())
    }

    /// Whether what consumers have in their hands keeps its place: nothing makes way for it when it comes back.
    #[must_use]
    pub(crate) fn keeps_places(&self) -> bool {
        self.policy != Overflow::DropHead
    }

    /// How much of what waits has to go for what comes.
    #[must_use]
    pub(crate) fn excess(&self, waiting: Size, incoming: Size) -> Size {
        if waiting.and(incoming).fits_in(self.whole()) {
            return Size::default();
        }
        waiting.less(self.whole().less(incoming))
    }

    /// The room that is left beside what waits.
    #[must_use]
    pub(crate) fn room_beside(&self, waiting: Size) -> Size {
        let left = |most: Option<u64>, used: u64| most.map_or(u64::MAX, |most| most.saturating_sub(used));
        Size { messages: left(self.messages, waiting.messages), bytes: left(self.bytes, waiting.bytes) }
    }

    /// The room of an empty queue.
    #[must_use]
    pub(crate) fn whole(&self) -> Size {
        self.room_beside(Size::default())
    }
}

impl fmt::Display for MaxLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.messages, self.bytes) {
            (Some(messages), Some(bytes)) => write!(f, "{messages} messages and {bytes} bytes"),
            (Some(messages), None) => write!(f, "{messages} messages"),
            (None, Some(bytes)) => write!(f, "{bytes} bytes"),
            (None, None) => f.write_str("unlimited"),
        }
    }
}

impl Size {
    /// Of these records together.
    #[must_use]
    pub(crate) fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        records
            .into_iter()
            .fold(Self::default(), |size, record| size.and(Self { messages: 1, bytes: record.payload_bytes() as u64 }))
    }

    #[must_use]
    pub(crate) fn and(self, more: Self) -> Self {
        Self { messages: self.messages.saturating_add(more.messages), bytes: self.bytes.saturating_add(more.bytes) }
    }

    /// What remains of it without this much; 0 where that is more.
    #[must_use]
    pub(crate) fn less(self, fewer: Self) -> Self {
        Self { messages: self.messages.saturating_sub(fewer.messages), bytes: self.bytes.saturating_sub(fewer.bytes) }
    }

    /// Whether it fits into this room.
    #[must_use]
    pub(crate) fn fits_in(self, room: Self) -> bool {
        self.messages <= room.messages && self.bytes <= room.bytes
    }

    #[must_use]
    pub(crate) fn least(self, other: Self) -> Self {
        Self { messages: self.messages.min(other.messages), bytes: self.bytes.min(other.bytes) }
    }
}

/// The sizes of a queue's messages from an offset on, as sums: what a range of them takes is two look-ups.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    base: QueueOffset,
    /// The bytes of all messages from `base` up to and with the one at the index; rising.
    sums: VecDeque<u64>,
    /// The sum up to `base`, of what was known and forgotten.
    before: u64,
}

impl Sizes {
    /// Nothing is known, and what comes begins there.
    #[must_use]
    pub(crate) fn from(base: QueueOffset) -> Self {
        Self { base, sums: VecDeque::new(), before: 0 }
    }

    /// The first message whose size is known.
    #[must_use]
    pub(crate) fn base(&self) -> QueueOffset {
        self.base
    }

    /// The first message whose size is not known.
    #[must_use]
    pub(crate) fn end(&self) -> QueueOffset {
        self.base.plus(self.sums.len() as u64)
    }

    /// Takes in the message at [`end`](Self::end).
    pub(crate) fn push(&mut self, bytes: u64) {
        let sum = self.sums.back().copied().unwrap_or(self.before);
        self.sums.push_back(sum.saturating_add(bytes));
    }

    /// Forgets what lies below an offset.
    pub(crate) fn forget_below(&mut self, offset: QueueOffset) {
        while self.base < offset
            && let Some(sum) = self.sums.pop_front()
        {
            self.before = sum;
            self.base = self.base.plus(1);
        }
    }

    /// The bytes of a range; what is not known counts nothing.
    #[must_use]
    pub(crate) fn bytes(&self, range: &Range<QueueOffset>) -> u64 {
        self.up_to(range.end).saturating_sub(self.up_to(range.start))
    }

    fn up_to(&self, offset: QueueOffset) -> u64 {
        let known = offset.get().saturating_sub(self.base.get());
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(self.sums.len());
        known.checked_sub(1).map_or(self.before, |last| self.sums[last])
    }
}

/// How many of the oldest messages, given in order with their sizes, have to go to free this much.
#[must_use]
pub(crate) fn how_many_free(sizes: impl IntoIterator<Item = u64>, wanted: Size) -> usize {
    let (mut freed, mut count) = (Size::default(), 0);
    for bytes in sizes {
        if wanted.fits_in(freed) {
            break;
        }
        freed = freed.and(Size { messages: 1, bytes });
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(messages: u64, bytes: u64) -> Size {
        Size { messages, bytes }
    }

    fn span(start: u64, end: u64) -> Range<QueueOffset> {
        QueueOffset::new(start)..QueueOffset::new(end)
    }

    #[test]
    fn limits_are_checked_and_named() {
        assert!(MaxLength::default().check().unwrap_err().to_string().contains("set messages"));
        assert!(MaxLength::of_messages(0).check().unwrap_err().to_string().contains("0 messages"));
        assert!(MaxLength::of_bytes(0).check().is_err());
        let both = MaxLength { messages: Some(3), bytes: Some(9), policy: Overflow::RejectNew };
        assert!(both.check().is_ok());
        assert_eq!(both.to_string(), "3 messages and 9 bytes");
    }

    #[test]
    fn room_is_what_waits_no_more_leaves() {
        let limit = MaxLength { messages: Some(3), bytes: Some(100), policy: Overflow::DropHead };
        assert_eq!(limit.room_beside(size(1, 30)), size(2, 70));
        assert_eq!(limit.room_beside(size(9, 300)), size(0, 0));
        assert_eq!(MaxLength::of_messages(3).room_beside(size(1, 30)), size(2, u64::MAX));
        assert!(size(2, 70).fits_in(size(2, 70)) && !size(2, 71).fits_in(size(2, 70)));
    }

    #[test]
    fn what_is_too_much_is_known_also_when_nothing_comes() {
        let limit = MaxLength { messages: Some(3), bytes: Some(100), policy: Overflow::DropHead };
        for (waiting, incoming, excess) in [
            (size(3, 100), size(0, 0), size(0, 0)),
            (size(5, 90), size(0, 0), size(2, 0)),
            (size(5, 130), size(0, 0), size(2, 30)),
            (size(3, 90), size(1, 20), size(1, 10)),
            (size(3, 90), size(9, 20), size(3, 10)),
        ] {
            assert_eq!(limit.excess(waiting, incoming), excess, "{waiting:?} and {incoming:?}");
        }
        assert_eq!(MaxLength::of_messages(1).excess(size(3, 9), size(0, 0)), size(2, 0));
        assert!(!limit.keeps_places());
        assert!(limit.policy(Overflow::RejectNew).keeps_places());
        assert!(limit.policy(Overflow::RejectNewDeadLetter).keeps_places());
    }

    #[test]
    fn as_many_of_the_oldest_go_as_have_to() {
        assert_eq!(how_many_free([5, 5, 5], size(0, 0)), 0);
        assert_eq!(how_many_free([5, 5, 5], size(2, 0)), 2);
        assert_eq!(how_many_free([5, 5, 5], size(0, 6)), 2);
        assert_eq!(how_many_free([5, 5, 5], size(1, 11)), 3);
        assert_eq!(how_many_free([5, 5, 5], size(9, 0)), 3, "more there are not");
    }

    proptest! {
        #[test]
        fn sums_equal_counting(
            bytes in prop::collection::vec(0u64..50, 0..60), base in 0u64..9, forget in 0u64..80, from in 0u64..80, len in 0u64..80,
        ) {
            let mut sizes = Sizes::from(QueueOffset::new(base));
            bytes.iter().for_each(|bytes| sizes.push(*bytes));
            sizes.forget_below(QueueOffset::new(forget));
            let first = forget.max(base).min(base + bytes.len() as u64);
            let counted: u64 = (from..from + len)
                .filter(|at| *at >= first)
                .filter_map(|at| bytes.get(usize::try_from(at.checked_sub(base)?).ok()?))
                .sum();
            prop_assert_eq!(sizes.bytes(&span(from, from + len)), counted);
            prop_assert_eq!((sizes.base().get(), sizes.end().get()), (first, base + bytes.len() as u64));
        }
    }
}
