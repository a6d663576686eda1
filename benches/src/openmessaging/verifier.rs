//! Finds what a subscription lost, got altered, twice, out of order, or from somewhere else.

use std::collections::VecDeque;

use super::payload::{STAMP_BYTES, Stamp};
use crate::Result;

/// Most messages that may lie between the oldest one that is missing and the newest one that came: 128 MiB of bits.
const MAX_SPREAD: u64 = 1 << 30;
const WORD_BITS: u64 = 64;

/// Everything that one subscription to one topic has received, from all its consumers.
#[derive(Debug)]
pub struct Verifier {
    topic: String,
    subscription: String,
    first_producer: u32,
    queues: u32,
    body_bytes: usize,
    seen: Vec<Seen>,
    /// By producer and then queue: the number after the last message.
    next: Vec<u64>,
    count: u64,
}

/// What a producer says it sent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Its number over all topics.
    pub producer: u32,
    /// Messages handed over, numbered from 0.
    pub messages: u64,
    /// Those of them that were not acknowledged, in order: they may or may not have come.
    pub failed: Vec<u64>,
}

impl Verifier {
    /// For a topic with `queues` queues and the producers from `first_producer` on.
    #[must_use]
    pub fn new(topic: &str, subscription: &str, first_producer: u32, producers: u32, queues: u32, body: usize) -> Self {
        Self {
            topic: topic.to_owned(),
            subscription: subscription.to_owned(),
            first_producer,
            queues,
            body_bytes: body,
            seen: (0..producers).map(|_| Seen::default()).collect(),
            next: vec![0; producers as usize * queues as usize],
            count: 0,
        }
    }

    /// Checks a message that was received from a queue. `None` when its body is too small for a stamp.
    ///
    /// # Errors
    /// Names the message and what is wrong with it.
    pub fn accept(&mut self, queue: u32, body: &[u8]) -> Result<Option<Stamp>> {
        self.count += 1;
        if body.len() != self.body_bytes {
            let wrong = format!("a message has {} bytes, {} were sent", body.len(), self.body_bytes);
            return Err(self.fault(queue, &wrong));
        }
        if body.len() < STAMP_BYTES {
            return Ok(None);
        }
        let stamp = Stamp::read(body).map_err(|altered| self.fault(queue, &altered.to_string()))?;
        let producer = stamp.producer.checked_sub(self.first_producer).map_or(usize::MAX, |number| number as usize);
        let name = format_args!("message {} of producer {}", stamp.sequence, stamp.producer);
        let Some(seen) = self.seen.get_mut(producer).filter(|_| queue < self.queues) else {
            return Err(self.fault(queue, &format!("{name} was sent to another topic")));
        };
        match seen.insert(stamp.sequence) {
            Inserted::New => {}
            Inserted::Twice => return Err(self.fault(queue, &format!("{name} came twice"))),
            Inserted::TooFar => return Err(self.fault(queue, &format!("{name} came {MAX_SPREAD} too early"))),
        }
        let next = &mut self.next[producer * self.queues as usize + queue as usize];
        if stamp.sequence < *next {
            let after = *next - 1;
            return Err(self.fault(queue, &format!("{name} came after message {after}: out of order")));
        }
        *next = stamp.sequence + 1;
        Ok(Some(stamp))
    }

    fn fault(&self, queue: u32, what: &str) -> crate::Failure {
        format!("{}: subscription {} at queue {queue} of topic {}", what, self.subscription, self.topic).into()
    }

    /// How many messages came.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Compares with what all producers of the topic say they sent; others' are passed over.
    ///
    /// # Errors
    /// Names the first message that was lost, and how many were; or the first one that nobody sent.
    pub fn finish(&self, sent: &[Sent]) -> Result<()> {
        let own = |one: &&Sent| {
            one.producer.checked_sub(self.first_producer).is_some_and(|number| (number as usize) < self.seen.len())
        };
        let (mut messages, mut failed) = (0, 0);
        for one in sent.iter().filter(own) {
            messages += one.messages;
            failed += one.failed.len() as u64;
            if self.body_bytes >= STAMP_BYTES {
                self.finish_producer(one)?;
            }
        }
        // Bodies without stamps can only be counted.
        if self.count > messages || self.count < messages - failed {
            let (topic, name, count) = (&self.topic, &self.subscription, self.count);
            return Err(format!(
                "subscription {name} received {count} messages of topic {topic}; {messages} were sent, of which {failed} \
                 were not acknowledged"
            )
            .into());
        }
        Ok(())
    }

    fn finish_producer(&self, sent: &Sent) -> Result<()> {
        let seen = &self.seen[(sent.producer - self.first_producer) as usize];
        let mut lost =
            seen.missing_before(sent.messages).filter(|number| sent.failed.binary_search(number).is_err()).peekable();
        if let Some(first) = lost.peek().copied() {
            let (producer, count) = (sent.producer, lost.count());
            let text = format!(
                "message {first} of producer {producer} was acknowledged and never came to subscription {} of topic {}: \
                 lost, and with it {} more of this producer",
                self.subscription,
                self.topic,
                count - 1
            );
            return Err(text.into());
        }
        match seen.first_from(sent.messages) {
            None => Ok(()),
            Some(number) => Err(format!(
                "message {number} of producer {} came to subscription {} of topic {}, and nobody sent it",
                sent.producer, self.subscription, self.topic
            )
            .into()),
        }
    }
}

/// Numbers that were seen: all below a mark, and bits for those above.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Seen {
    /// How many whole words below have all their bits.
    full_words: u64,
    words: VecDeque<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Inserted {
    New,
    Twice,
    TooFar,
}

impl Seen {
    fn insert(&mut self, number: u64) -> Inserted {
        let Some(at) = (number / WORD_BITS).checked_sub(self.full_words) else { return Inserted::Twice };
        let Some(at) = usize::try_from(at).ok().filter(|_| at < MAX_SPREAD / WORD_BITS) else {
            return Inserted::TooFar;
        };
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (number % WORD_BITS);
        if self.words[at] & bit != 0 {
            return Inserted::Twice;
        }
        self.words[at] |= bit;
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.full_words += 1;
        }
        Inserted::New
    }

    fn contains(&self, number: u64) -> bool {
        let Some(at) = (number / WORD_BITS).checked_sub(self.full_words) else { return true };
        let word = usize::try_from(at).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & (1 << (number % WORD_BITS)) != 0)
    }

    fn missing_before(&self, end: u64) -> impl Iterator<Item = u64> {
        (self.full_words * WORD_BITS..end).filter(|number| !self.contains(*number))
    }

    /// The first number from `start` on that was seen.
    fn first_from(&self, start: u64) -> Option<u64> {
        let end = (self.full_words + self.words.len() as u64) * WORD_BITS;
        (start..end).find(|number| self.contains(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::Bodies;
    use super::super::workload::Workload;
    use super::super::workload::tests::small;
    use super::*;

    const SIZE: usize = 64;

    fn body(producer: u32, sequence: u64) -> bytes::Bytes {
        let mut bodies = Bodies::new(&Workload { message_size: SIZE, ..small() }).unwrap();
        bodies.batch(Stamp { producer, sequence, sent: 1 }, 1).next().unwrap()
    }

    /// Producers 10 and 11, two queues.
    fn verifier() -> Verifier {
        Verifier::new("t", "s", 10, 2, 2, SIZE)
    }

    fn sent(messages: [u64; 2], failed: &[u64]) -> Vec<Sent> {
        let other = Sent { producer: 9, messages: 1000, failed: Vec::new() };
        let one = |at: u32| Sent { producer: 10 + at, messages: messages[at as usize], failed: Vec::new() };
        vec![other, Sent { failed: failed.to_vec(), ..one(0) }, one(1)]
    }

    #[test]
    fn what_is_whole_and_in_order_passes() {
        let mut verifier = verifier();
        for (producer, sequence, queue) in [(10, 0, 0), (10, 2, 0), (11, 0, 0), (10, 1, 1), (10, 3, 1)] {
            let stamp = verifier.accept(queue, &body(producer, sequence)).unwrap().unwrap();
            assert_eq!((stamp.producer, stamp.sequence), (producer, sequence));
        }
        verifier.finish(&sent([4, 1], &[])).unwrap();
        assert_eq!(verifier.count(), 5);
    }

    #[test]
    fn each_fault_names_its_message() {
        let altered = {
            let mut altered = body(10, 5).to_vec();
            altered[SIZE - 1] ^= 1;
            altered
        };
        let cases: [(&str, u32, Vec<u8>, &str); 6] = [
            ("twice", 1, body(10, 4).to_vec(), "message 4 of producer 10 came twice"),
            ("order", 0, body(10, 3).to_vec(), "message 3 of producer 10 came after message 4: out of order"),
            ("altered", 0, altered, "altered: it says message 5 of producer 10"),
            ("topic", 0, body(12, 0).to_vec(), "message 0 of producer 12 was sent to another topic"),
            ("length", 0, vec![0; SIZE + 1], "a message has 65 bytes, 64 were sent"),
            ("spread", 0, body(10, MAX_SPREAD + 64).to_vec(), "too early"),
        ];
        for (case, queue, body_now, expected) in cases {
            let mut verifier = verifier();
            verifier.accept(0, &body(10, 4)).unwrap();
            let error = verifier.accept(queue, &body_now).unwrap_err().to_string();
            assert!(error.contains(expected) && error.ends_with("of topic t"), "{case}: {error}");
        }
    }

    #[test]
    fn what_is_lost_or_made_up_is_found_in_the_end() {
        let mut verifier = verifier();
        for number in (0..200).filter(|number| *number != 130) {
            verifier.accept(0, &body(10, number)).unwrap();
        }
        let error = verifier.finish(&sent([202, 0], &[])).unwrap_err().to_string();
        assert!(error.contains("message 130 of producer 10 was acknowledged and never came"), "{error}");
        assert!(error.contains("and with it 2 more"), "{error}");
        verifier.finish(&sent([200, 0], &[130])).unwrap();
        let error = verifier.finish(&sent([199, 0], &[130])).unwrap_err().to_string();
        assert!(error.contains("message 199 of producer 10 came") && error.contains("nobody sent it"), "{error}");
        let error = verifier.finish(&sent([200, 1], &[130])).unwrap_err().to_string();
        assert!(error.contains("message 0 of producer 11"), "{error}");
    }

    #[test]
    fn tiny_bodies_are_counted() {
        let mut verifier = Verifier::new("t", "s", 10, 2, 2, 3);
        for _ in 0..3 {
            assert_eq!(verifier.accept(0, &[1, 2, 3]).unwrap(), None);
        }
        verifier.finish(&sent([2, 1], &[])).unwrap();
        verifier.finish(&sent([2, 2], &[1])).unwrap();
        for messages in [[2, 0], [2, 2]] {
            let error = verifier.finish(&sent(messages, &[])).unwrap_err().to_string();
            assert!(error.contains("received 3 messages of topic t"), "{error}");
        }
    }

    #[test]
    fn numbers_that_come_in_any_order_need_little_room() {
        let mut seen = Seen::default();
        for number in (0..10_000).rev() {
            assert_eq!(seen.insert(number), Inserted::New, "{number}");
        }
        assert_eq!((seen.words.len(), seen.missing_before(10_000).count()), (1, 0));
        assert_eq!(seen.insert(7), Inserted::Twice);
        assert_eq!(seen.first_from(10_000), None);
    }
}
