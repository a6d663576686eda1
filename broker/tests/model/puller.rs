//! Reads the topic by offset, beside the group: every message that is stored, in each queue from offset to offset, and
//! after each opening of the broker from what was committed.

use std::collections::BTreeMap;
use std::time::Duration;

use cuemq::{Broker, PullConsumer, QueueKey, QueueOffset, SeekTo, Timestamp};

use super::reference::Reference;
use crate::common::checker::number_of;

const GROUP: &str = "puller";
const MOST_POLLED: usize = 7;

pub(crate) struct Puller {
    topic: &'static str,
    pull: Option<PullConsumer>,
    /// What is read next.
    next: BTreeMap<QueueKey, QueueOffset>,
    committed: BTreeMap<QueueKey, QueueOffset>,
}

impl Puller {
    pub(crate) fn new(topic: &'static str) -> Self {
        Self { topic, pull: None, next: BTreeMap::new(), committed: BTreeMap::new() }
    }

    /// Begins anew with all queues there are, each where it was committed.
    /// What has ended meanwhile may be passed over.
    pub(crate) async fn open(&mut self, broker: &Broker, reference: &Reference, now: Timestamp) {
        let mut pull = broker.pull_consumer(GROUP).await.unwrap();
        pull.assign_topic(self.topic).await.unwrap();
        self.next = pull.positions().into_iter().collect();
        for (queue, next) in &self.next {
            let committed = self.committed.get(queue).copied().unwrap_or_default();
            assert!(committed <= *next, "{queue} was committed at {committed}, and is at {next}");
            let expired = |offset| {
                let entry = &reference.entries[&reference.homes[&(queue.clone(), offset)]];
                entry.is_expired(now)
            };
            assert!((committed.get()..next.get()).all(expired), "{queue} was committed at {committed}, not at {next}");
        }
        self.pull = Some(pull);
    }

    pub(crate) fn close(&mut self) {
        self.pull = None;
    }

    /// Reads whatever there is, and tells the reference.
    pub(crate) async fn read(&mut self, reference: &mut Reference) {
        let pull = self.pull.as_mut().unwrap();
        loop {
            let some = pull.poll(MOST_POLLED, Duration::ZERO).await.unwrap();
            if some.is_empty() {
                return;
            }
            for received in some {
                let next = self.next.get_mut(received.queue()).unwrap();
                assert_eq!(received.offset(), *next, "{} is read from offset to offset", received.queue());
                *next = next.plus(1);
                let stored_at = received.stored_at();
                reference.located(received.queue(), received.offset().get(), number_of(&received), stored_at);
            }
        }
    }

    /// The queues there are.
    pub(crate) fn queues(&self) -> impl Iterator<Item = QueueKey> {
        self.next.keys().cloned()
    }

    pub(crate) async fn commit(&mut self) {
        self.pull.as_mut().unwrap().commit().await.unwrap();
        self.committed.clone_from(&self.next);
    }

    /// Goes back by so many messages in a queue, or to its begin.
    pub(crate) fn seek(&mut self, which: usize, back: Option<u64>) {
        let at = which % self.next.len();
        let (queue, next) = self.next.iter_mut().nth(at).unwrap();
        let to = back.map_or(SeekTo::Begin, |back| SeekTo::Offset(QueueOffset::new(next.get().saturating_sub(back))));
        *next = self.pull.as_mut().unwrap().seek(self.topic, queue.queue.get(), to).unwrap();
    }
}
