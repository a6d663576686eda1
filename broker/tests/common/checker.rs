//! Messages that say what they have to look like, and a record of what was delivered that finds every alteration,
//! phantom, gap and change of order.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cuemq::{Message, QueueKey, QueueOffset, Received};

/// Message number `n`: everything about it follows from its number.
pub(crate) fn numbered(n: u64) -> Message {
    Message::new(format!("message {n} {}", filler(n)))
        .tag(format!("tag{}", n % 3))
        .key(format!("key{n}"))
        .key(format!("group{}", n % 5))
        .property("number", n.to_string())
}

fn filler(n: u64) -> String {
    "x".repeat(usize::try_from(n * 37 % 101).unwrap())
}

/// The number of a message, after a look at all of it.
pub(crate) fn number_of(received: &Received) -> u64 {
    let n: u64 = received.property("number").expect("a phantom: it has no number").parse().unwrap();
    let body = String::from_utf8(received.body().to_vec()).unwrap();
    assert_eq!(body, format!("message {n} {}", filler(n)), "the body was altered");
    assert_eq!(received.tag(), Some(format!("tag{}", n % 3).as_str()), "the tag was altered");
    assert_eq!(received.keys().collect::<Vec<_>>(), [format!("key{n}"), format!("group{}", n % 5)]);
    n
}

/// What one consumer group got.
#[derive(Default, Debug)]
pub(crate) struct Checker {
    places: BTreeMap<u64, (QueueKey, QueueOffset)>,
    next_new: HashMap<QueueKey, QueueOffset>,
    duplicates: usize,
}

impl Checker {
    /// Takes in a delivery. First deliveries of a queue come in offset order; a message keeps its place for ever.
    pub(crate) fn delivered(&mut self, received: &Received) -> u64 {
        let n = number_of(received);
        let place = (received.queue().clone(), received.offset());
        if let Some(known) = self.places.get(&n) {
            assert_eq!(*known, place, "message {n} was stored twice");
            self.duplicates += 1;
            return n;
        }
        let next = self.next_new.entry(place.0.clone()).or_default();
        assert!(place.1 >= *next, "message {n} at {}/{} was overtaken by offset {next}", place.0, place.1);
        *next = place.1.plus(1);
        self.places.insert(n, place);
        n
    }

    /// Exactly these messages came.
    pub(crate) fn complete(&self, expected: impl IntoIterator<Item = u64>) {
        let expected: BTreeSet<u64> = expected.into_iter().collect();
        let got: BTreeSet<u64> = self.places.keys().copied().collect();
        let (lost, phantoms): (Vec<_>, Vec<_>) =
            (expected.difference(&got).collect(), got.difference(&expected).collect());
        assert!(lost.is_empty() && phantoms.is_empty(), "lost {lost:?}, phantoms {phantoms:?}");
    }

    /// How many messages came.
    pub(crate) fn count(&self) -> usize {
        self.places.len()
    }

    /// Whether message `n` came.
    pub(crate) fn has(&self, n: u64) -> bool {
        self.places.contains_key(&n)
    }

    /// How many deliveries were repetitions.
    pub(crate) fn duplicates(&self) -> usize {
        self.duplicates
    }
}
