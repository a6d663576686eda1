//! What a popped message is settled by: a value that can be printed, carried anywhere and read back.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{InvalidInput, QueueId, QueueKey, QueueOffset, TopicName};

const SEPARATOR: char = ':';

/// Names one delivery of one message to whoever popped it. Whoever has it may settle the message: as a value, or as
/// the text that it prints and that [`parse`](str::parse) reads back. It is sealed with a secret of the broker, so that
/// nobody can make one up.
///
/// It is good until the message is settled, the receipt is renewed, or the message's invisible time is over.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PopReceipt {
    pub(super) queue: QueueKey,
    pub(super) mark: Mark,
    pub(super) seal: u64,
}

/// A receipt without its queue and its seal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Mark {
    pub(crate) offset: QueueOffset,
    /// Which delivery of all that the group has made.
    pub(crate) delivery: u64,
}

impl Mark {
    /// That of the next message of a parcel, so many behind this one.
    pub(crate) fn plus(self, messages: usize) -> Self {
        Self { offset: self.offset.plus(messages as u64), delivery: self.delivery + messages as u64 }
    }
}

/// What seals receipts: a secret of the group's actor and of whoever popped from it in this process.
#[derive(Clone, Debug)]
pub(crate) struct Sealer(RandomState);

impl Sealer {
    /// A secret of its own.
    pub(crate) fn new() -> Self {
        Self(RandomState::new())
    }

    /// What all seals of a queue begin with.
    pub(super) fn queue_seal(&self, queue: &QueueKey) -> u64 {
        self.0.hash_one(queue)
    }

    pub(super) fn seal_in(&self, queue_seal: u64, mark: Mark) -> u64 {
        self.0.hash_one((queue_seal, mark))
    }

    /// The receipt of a message.
    pub(crate) fn receipt(&self, queue: QueueKey, mark: Mark) -> PopReceipt {
        let seal = self.seal_in(self.queue_seal(&queue), mark);
        PopReceipt { queue, mark, seal }
    }
}

/// Receipts of messages of one queue that are settled together. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReceiptRun {
    pub(super) queue: QueueKey,
    marks: Marks,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Marks {
    /// They may come from anywhere: each has its seal.
    Sealed(Vec<(Mark, u64)>),
    /// They never left the hands of whoever popped: so many, from this one on. Nobody can make such up, so they need no
    /// seal.
    Held { first: Mark, count: usize },
}

impl ReceiptRun {
    /// Receipts in their order, with those of one queue that follow each other together.
    pub(crate) fn collect<'a>(receipts: impl Iterator<Item = &'a PopReceipt>) -> Vec<Self> {
        let mut runs = Vec::new();
        receipts.for_each(|receipt| Self::add(&mut runs, receipt));
        runs
    }

    /// Adds a receipt that has to prove itself.
    pub(crate) fn add(runs: &mut Vec<Self>, PopReceipt { queue, mark, seal }: &PopReceipt) {
        match runs.last_mut() {
            Some(Self { queue: of, marks: Marks::Sealed(marks) }) if of == queue => marks.push((*mark, *seal)),
            _ => runs.push(Self { queue: queue.clone(), marks: Marks::Sealed(vec![(*mark, *seal)]) }),
        }
    }

    /// Adds a message that its group gave out to whoever settles it now.
    pub(crate) fn add_held(runs: &mut Vec<Self>, queue: &QueueKey, mark: Mark) {
        match runs.last_mut() {
            Some(Self { queue: of, marks: Marks::Held { first, count } })
                if first.plus(*count) == mark && of == queue =>
            {
                *count += 1;
            }
            _ => runs.push(Self { queue: queue.clone(), marks: Marks::Held { first: mark, count: 1 } }),
        }
    }

    /// The queue.
    pub(crate) fn queue(&self) -> &QueueKey {
        &self.queue
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        match &self.marks {
            Marks::Sealed(marks) => marks.len(),
            Marks::Held { count, .. } => *count,
        }
    }

    /// One of them, and its seal if it needs one.
    pub(super) fn mark(&self, index: usize) -> Option<(Mark, Option<u64>)> {
        match &self.marks {
            Marks::Sealed(marks) => marks.get(index).map(|(mark, seal)| (*mark, Some(*seal))),
            Marks::Held { first, count } => (index < *count).then(|| (first.plus(index), None)),
        }
    }

    /// One of them by itself.
    pub(crate) fn receipt(&self, index: usize, sealer: &Sealer) -> Option<PopReceipt> {
        let queue = self.queue.clone();
        Some(match self.mark(index)? {
            (mark, Some(seal)) => PopReceipt { queue, mark, seal },
            (mark, None) => sealer.receipt(queue, mark),
        })
    }
}

impl PopReceipt {
    /// Which delivery of all that the group has made.
    pub(crate) fn delivery(&self) -> u64 {
        self.mark.delivery
    }

    /// The queue that the message lies in; for a redelivery that of the group's retry topic.
    #[must_use]
    pub fn queue(&self) -> &QueueKey {
        &self.queue
    }

    /// The message's offset in that queue.
    #[must_use]
    pub fn offset(&self) -> QueueOffset {
        self.mark.offset
    }
}

impl fmt::Display for PopReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue: QueueKey { topic, queue }, mark: Mark { offset, delivery }, seal } = self;
        write!(f, "{topic}:{queue}:{offset}:{delivery:x}:{seal:016x}")
    }
}

impl fmt::Debug for PopReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the seal: a log is no place for a secret.
        let Self { queue, mark: Mark { offset, delivery }, .. } = self;
        write!(f, "PopReceipt({queue}:{offset}:{delivery:x})")
    }
}

impl FromStr for PopReceipt {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.splitn(6, SEPARATOR).collect();
        let read = match parts[..] {
            [topic, queue, offset, delivery, seal] => read(topic, queue, offset, delivery, seal),
            _ => None,
        };
        let receipt = read.ok_or_else(|| {
            let shown: String = text.chars().take(200).collect();
            InvalidInput::new(format!("{shown:?} is no receipt: pass on the text that one printed, unchanged"))
        })?;
        Ok(receipt)
    }
}

fn read(topic: &str, queue: &str, offset: &str, delivery: &str, seal: &str) -> Option<PopReceipt> {
    let topic = TopicName::from_stored(topic).ok()?;
    let queue = QueueId::new(queue.parse().ok()?).ok()?;
    let offset = offset.parse().ok().filter(|offset| *offset < MAX_POSITION)?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (delivery, seal) = (hex(delivery)?, hex(seal)?);
    let (queue, mark) = (QueueKey::new(topic, queue), Mark { offset: QueueOffset::new(offset), delivery });
    Some(PopReceipt { queue, mark, seal })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receipt() -> PopReceipt {
        let topic = TopicName::from_stored("%RETRY%group").unwrap();
        let queue = QueueKey::new(topic, QueueId::new(3).unwrap());
        PopReceipt { queue, mark: Mark { offset: QueueOffset::new(42), delivery: 0xabc }, seal: 0x1f }
    }

    #[test]
    fn is_text_that_keeps_its_secret_out_of_logs() {
        let text = receipt().to_string();
        assert_eq!(text, "%RETRY%group:3:42:abc:000000000000001f");
        assert_eq!(text.parse::<PopReceipt>().unwrap(), receipt());
        assert_eq!(format!("{:?}", receipt()), "PopReceipt(%RETRY%group/3:42:abc)");
    }

    #[test]
    fn what_is_no_receipt_is_said_so() {
        let good = receipt().to_string();
        for bad in
            ["", "a", "::::", "t:0:0:0", &format!("{good}:1"), "t:x:0:0:0", "t:0:-1:0:0", "t:0:0:zz:0", "ü:0:0:0:0"]
        {
            let error = bad.parse::<PopReceipt>().unwrap_err().to_string();
            assert!(error.contains("is no receipt"), "{bad:?}: {error}");
        }
        let beyond = format!("t:0:{MAX_POSITION}:0:0").parse::<PopReceipt>();
        assert!(beyond.is_err(), "no offset of a queue");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[a-z:0-9%]{0,60}") {
            if let Ok(receipt) = text.parse::<PopReceipt>() {
                prop_assert_eq!(receipt.to_string().parse::<PopReceipt>().unwrap(), receipt);
            }
        }

        #[test]
        fn every_receipt_comes_back(queue in 0u32..1024, offset in 0u64..MAX_POSITION, delivery: u64, seal: u64) {
            let queue = QueueKey::new(TopicName::new("t").unwrap(), QueueId::new(queue).unwrap());
            let receipt = PopReceipt { queue, mark: Mark { offset: QueueOffset::new(offset), delivery }, seal };
            prop_assert_eq!(receipt.to_string().parse::<PopReceipt>().unwrap(), receipt);
        }
    }
}
