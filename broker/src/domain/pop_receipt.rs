//! What a popped message is settled by: a value that can be printed, carried anywhere and read back.

use std::fmt;
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
}

/// A receipt without its queue: those of one queue travel together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Mark {
    pub(super) offset: QueueOffset,
    /// Which delivery of all that the group has made.
    pub(super) delivery: u64,
    pub(super) seal: u64,
}

/// Receipts of messages of one queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReceiptRun {
    pub(super) queue: QueueKey,
    pub(super) marks: Vec<Mark>,
}

impl ReceiptRun {
    /// Receipts in their order, with those of one queue that follow each other together.
    pub(crate) fn collect<'a>(receipts: impl Iterator<Item = &'a PopReceipt>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        let (least, _) = receipts.size_hint();
        for PopReceipt { queue, mark } in receipts {
            match runs.last_mut() {
                Some(run) if run.queue == *queue => run.marks.push(*mark),
                _ => {
                    let mut marks = Vec::with_capacity(if runs.is_empty() { least.max(1) } else { 1 });
                    marks.push(*mark);
                    runs.push(Self { queue: queue.clone(), marks });
                }
            }
        }
        runs
    }

    /// The queue.
    pub(crate) fn queue(&self) -> &QueueKey {
        &self.queue
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.marks.len()
    }

    /// One of them by itself.
    pub(crate) fn receipt(&self, index: usize) -> Option<PopReceipt> {
        Some(PopReceipt::new(self.queue.clone(), *self.marks.get(index)?))
    }
}

impl PopReceipt {
    pub(crate) fn new(queue: QueueKey, mark: Mark) -> Self {
        Self { queue, mark }
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
        let Self { queue: QueueKey { topic, queue }, mark: Mark { offset, delivery, seal } } = self;
        write!(f, "{topic}:{queue}:{offset}:{delivery:x}:{seal:016x}")
    }
}

impl fmt::Debug for PopReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the seal: a log is no place for a secret.
        let Self { queue, mark: Mark { offset, delivery, .. } } = self;
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
    Some(PopReceipt::new(QueueKey::new(topic, queue), Mark { offset: QueueOffset::new(offset), delivery, seal }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receipt() -> PopReceipt {
        let topic = TopicName::from_stored("%RETRY%group").unwrap();
        let queue = QueueKey::new(topic, QueueId::new(3).unwrap());
        PopReceipt::new(queue, Mark { offset: QueueOffset::new(42), delivery: 0xabc, seal: 0x1f })
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
            let receipt = PopReceipt::new(queue, Mark { offset: QueueOffset::new(offset), delivery, seal });
            prop_assert_eq!(receipt.to_string().parse::<PopReceipt>().unwrap(), receipt);
        }
    }
}
