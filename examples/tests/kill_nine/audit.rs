//! Compares a ledger with what a store has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use cuemq::Received;
use cuemq_examples::backlog::Backlog;
use cuemq_examples::ledger::Entry;
use cuemq_examples::store::StoreArguments;

/// One message as it was read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) queue: u32,
    pub(crate) offset: u64,
    /// Its round and line.
    pub(crate) place: (u64, u64),
    pub(crate) key: String,
    pub(crate) body: Bytes,
}

/// Everything that was read back.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    /// In the order of their offsets within each queue.
    pub(crate) messages: Vec<Stored>,
    /// How far the quickstart's group is.
    pub(crate) group: Backlog,
}

/// What must not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    /// It was acknowledged and is not there.
    Missing(Entry),
    /// It is there, but is not what was sent.
    Altered(Stored),
    /// It lies behind a later event of its key, or in another queue than an earlier one.
    OutOfOrder(Stored),
    /// The line is stored a second time in its round.
    Twice(Stored),
    /// The line was never stored, though its round was sent to the end.
    Absent { round: u64, line: u64 },
}

impl Store {
    /// Reads the topic with the broker's own API.
    pub(crate) async fn read(store: &StoreArguments, topic: &str) -> Self {
        let broker = store.open().await.unwrap();
        let mut consumer = broker.pull_consumer("auditor").await.unwrap();
        consumer.assign_topic(topic).await.unwrap();
        let mut messages = Vec::new();
        loop {
            let page = consumer.poll(1000, Duration::ZERO).await.unwrap();
            if page.is_empty() {
                break;
            }
            messages.extend(page.iter().map(stored));
        }
        drop(consumer);
        let group = Backlog::of(&broker, "quickstart", topic).await.unwrap();
        broker.shutdown().await.unwrap();
        Self { messages, group }
    }
}

fn stored(message: &Received) -> Stored {
    let number = |name| message.property(name).unwrap().parse::<u64>().unwrap();
    Stored {
        queue: message.queue().queue.get(),
        offset: message.offset().get(),
        place: (number("round"), number("line")),
        key: message.sharding_key().unwrap().to_owned(),
        body: Bytes::copy_from_slice(message.body()),
    }
}

/// Everything that is wrong; nothing if the store has what was acknowledged, as it was sent, in the order of the keys.
pub(crate) fn audit(ledger: &[Entry], store: &Store, lines: &[Bytes]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let at: HashMap<(u32, u64), &Stored> = store.messages.iter().map(|m| ((m.queue, m.offset), m)).collect();
    for entry in ledger {
        let place = (entry.round, entry.line);
        let there = at.get(&(entry.queue, entry.offset)).filter(|m| m.place == place && m.key == entry.key);
        if there.is_none() {
            problems.push(Problem::Missing(entry.clone()));
        }
    }
    let mut last: HashMap<&str, &Stored> = HashMap::new();
    let mut rounds: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for message in &store.messages {
        let (round, line) = message.place;
        let sent = usize::try_from(line).ok().and_then(|line| lines.get(line));
        if sent != Some(&message.body) {
            problems.push(Problem::Altered(message.clone()));
        }
        if !rounds.entry(round).or_default().insert(line) {
            problems.push(Problem::Twice(message.clone()));
        }
        if let Some(before) = last.insert(&message.key, message)
            && (before.place >= message.place || before.queue != message.queue || before.offset >= message.offset)
        {
            problems.push(Problem::OutOfOrder(message.clone()));
        }
    }
    for (round, stored) in rounds {
        let absent = (0..lines.len() as u64).filter(|line| !stored.contains(line));
        problems.extend(absent.map(|line| Problem::Absent { round, line }));
    }
    problems
}
