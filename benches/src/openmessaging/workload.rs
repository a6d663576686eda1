//! A workload as OpenMessaging's files describe it.

use std::path::{Path, PathBuf};

use cuemq::limits::{MAX_GROUPS, MAX_MEMBERS, MAX_QUEUES_PER_TOPIC, MAX_TOPICS};

use super::fields::{Fields, missing};
use super::keys::KeyDistributor;
use crate::Result;

/// Every key that a file may have.
pub const KEYS: [&str; 17] = [
    "name",
    "topics",
    "partitionsPerTopic",
    "keyDistributor",
    "messageSize",
    "payloadFile",
    "useRandomizedPayloads",
    "randomBytesRatio",
    "randomizedPayloadPoolSize",
    "subscriptionsPerTopic",
    "consumerPerSubscription",
    "producersPerTopic",
    "producerRate",
    "consumerBacklogSizeGB",
    "backlogDrainRatio",
    "testDurationMinutes",
    "warmupDurationMinutes",
];

/// Largest body in bytes: the broker's default `max_body_bytes`.
pub const MAX_MESSAGE_BYTES: u64 = 4 << 20;
/// Most producers of one topic.
pub const MAX_PRODUCERS: u64 = 1000;
/// Highest rate that may be asked for, in messages a second over all producers.
pub const MAX_RATE: u64 = 100_000_000;
/// Longest warm-up or test, in minutes: a week.
pub const MAX_MINUTES: u64 = 7 * 24 * 60;
/// Largest backlog, in GB.
pub const MAX_BACKLOG_GB: u64 = 1024;
/// Most bodies that are made in advance, and most bytes of them together.
pub const MAX_POOL: u64 = 100_000;
/// See [`MAX_POOL`].
pub const MAX_POOL_BYTES: u64 = 1 << 30;

/// What the bodies are made of.
#[derive(Clone, PartialEq, Debug)]
pub enum Payload {
    /// The bytes of a file, which has as many as a message.
    File(PathBuf),
    /// Bodies of which a share is random and the rest zero.
    Random {
        /// The share that is random, 0 to 1.
        random_share: f64,
        /// How many different bodies there are.
        pool: usize,
    },
}

/// One workload. Rates are in messages a second over all producers.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    /// What the result calls it.
    pub name: String,
    /// Topics to create.
    pub topics: u32,
    /// Queues of each topic.
    pub partitions_per_topic: u32,
    /// Which key a message gets.
    pub key_distributor: KeyDistributor,
    /// Bytes of a body.
    pub message_size: usize,
    /// What bodies are made of.
    pub payload: Payload,
    /// Consumer groups of each topic; each gets all its messages.
    pub subscriptions_per_topic: u32,
    /// Members of each group.
    pub consumer_per_subscription: u32,
    /// Producers of each topic.
    pub producers_per_topic: u32,
    /// The target rate; 0 looks for the highest one that is sustained.
    pub producer_rate: u64,
    /// Bytes of messages that pile up while the consumers pause, after the warm-up; 0 for none.
    pub backlog_bytes: u64,
    /// The share of the backlog that has to be drained before the test may end, 0 to 1.
    pub backlog_drain_ratio: f64,
    /// How long is measured, in seconds.
    pub test_seconds: u64,
    /// How long traffic flows before that, in seconds.
    pub warmup_seconds: u64,
}

impl Workload {
    /// Reads a file. A payload file is looked for as it is named and then beside the workload's file.
    ///
    /// # Errors
    /// Names the file, and what [`parse`](Workload::parse) says of its text.
    pub fn read(path: &Path) -> Result<Self> {
        let in_file = |error: crate::Failure| format!("workload {}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| in_file(error.into()))?;
        let mut workload = Self::parse(&text).map_err(in_file)?;
        if let Payload::File(file) = &mut workload.payload
            && !file.exists()
            && let Some(folder) = path.parent()
        {
            *file = folder.join(&*file);
        }
        Ok(workload)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Names the key, its value, what it may be and what to write.
    pub fn parse(text: &str) -> Result<Self> {
        let mut fields = Fields::read(text, &KEYS)?;
        let name = fields.text("name", "as the result calls the workload")?;
        let (key_distributor, payload) = (key_distributor(&mut fields)?, payload(&mut fields)?);
        let backlog_drain_ratio = fields.share("backlogDrainRatio", 1.0, "the share of the backlog that is drained")?;
        let backlog = "what piles up while consumers pause; 0 for none";
        let rate = "messages a second over all producers; 0 finds the highest rate that is sustained";
        let mut whole = |key, least, most, default, meaning| fields.whole(key, least..=most, default, meaning);
        let backlog_gigabytes = whole("consumerBacklogSizeGB", 0, MAX_BACKLOG_GB, Some(0), backlog)?;
        let producer_rate = whole("producerRate", 0, MAX_RATE, None, rate)?;
        let test_minutes = whole("testDurationMinutes", 1, MAX_MINUTES, None, "how long is measured")?;
        let warmup_minutes = whole("warmupDurationMinutes", 0, MAX_MINUTES, Some(1), "traffic before that")?;
        let mut count =
            |key, least, most: u64, meaning| Result::Ok(u32::try_from(whole(key, least, most, None, meaning)?)?);
        let workload = Self {
            name: name.ok_or_else(|| missing("name", "a text (as the result calls the workload)"))?,
            topics: count("topics", 1, MAX_TOPICS as u64, "topics to create")?,
            partitions_per_topic: count(
                "partitionsPerTopic",
                1,
                u64::from(MAX_QUEUES_PER_TOPIC),
                "queues of each topic",
            )?,
            message_size: count("messageSize", 1, MAX_MESSAGE_BYTES, "bytes of a body")? as usize,
            subscriptions_per_topic: count("subscriptionsPerTopic", 0, MAX_GROUPS as u64, "groups of each topic")?,
            consumer_per_subscription: count("consumerPerSubscription", 1, MAX_MEMBERS as u64, "members of a group")?,
            producers_per_topic: count("producersPerTopic", 1, MAX_PRODUCERS, "producers of each topic")?,
            key_distributor,
            payload,
            producer_rate,
            backlog_bytes: backlog_gigabytes << 30,
            backlog_drain_ratio,
            test_seconds: 60 * test_minutes,
            warmup_seconds: 60 * warmup_minutes,
        };
        workload.check()?;
        Ok(workload)
    }

    /// Checks what depends on several keys at once; done by [`parse`](Workload::parse), and to be done again after a
    /// change.
    ///
    /// # Errors
    /// Names the keys, their values and what to change.
    pub fn check(&self) -> Result<()> {
        // Each group has a retry topic of its own.
        let topics = u64::from(self.topics) * (1 + u64::from(self.subscriptions_per_topic));
        if topics > MAX_TOPICS as u64 {
            let text = format!(
                "topics is {} and subscriptionsPerTopic {}: with a retry topic for each subscription these are {topics} \
                 topics, and a broker has at most {MAX_TOPICS}: lower one of them",
                self.topics, self.subscriptions_per_topic
            );
            return Err(text.into());
        }
        if self.backlog_bytes > 0 && self.producer_rate == 0 {
            let text = "producerRate is 0 and consumerBacklogSizeGB is not: a search for the highest rate cannot run \
                        while a backlog is built: set a producerRate, or consumerBacklogSizeGB: 0";
            return Err(text.into());
        }
        if self.backlog_bytes > 0 && self.subscriptions_per_topic == 0 {
            let text = "subscriptionsPerTopic is 0 and consumerBacklogSizeGB is not: without consumers nobody drains a \
                        backlog: set subscriptionsPerTopic: 1";
            return Err(text.into());
        }
        if let Payload::Random { pool, .. } = self.payload
            && pool as u64 * self.message_size as u64 > MAX_POOL_BYTES
        {
            let text = format!(
                "randomizedPayloadPoolSize is {pool} and messageSize {}: together more than {MAX_POOL_BYTES} bytes of \
                 bodies: lower one of them",
                self.message_size
            );
            return Err(text.into());
        }
        Ok(())
    }

    /// How many producers there are in all.
    #[must_use]
    pub fn producers(&self) -> u32 {
        self.topics * self.producers_per_topic
    }
}

fn key_distributor(fields: &mut Fields) -> Result<KeyDistributor> {
    let needs = format!("one of {}", KeyDistributor::ALL.map(KeyDistributor::name).join(", "));
    let Some(text) = fields.text("keyDistributor", &needs)? else { return Ok(KeyDistributor::NoKey) };
    let found = KeyDistributor::ALL.into_iter().find(|one| one.name() == text);
    found.ok_or_else(|| format!("keyDistributor is {text:?}: it needs {needs}").into())
}

fn payload(fields: &mut Fields) -> Result<Payload> {
    let random = fields.truth("useRandomizedPayloads", "whether bodies are made up")?;
    let random_share = fields.share("randomBytesRatio", 0.0, "the share of a body that is random; the rest is zero")?;
    let pool = fields.whole("randomizedPayloadPoolSize", 0..=MAX_POOL, Some(0), "how many bodies are made up")?;
    let file = fields.text("payloadFile", "the path of a file with messageSize bytes")?;
    match (random, file) {
        (true, _) if pool == 0 => {
            Err("randomizedPayloadPoolSize is 0 or missing and useRandomizedPayloads is true: it \
                                       needs a whole number from 1, such as 1000"
                .into())
        }
        (true, _) => Ok(Payload::Random { random_share, pool: usize::try_from(pool)? }),
        (false, Some(file)) => Ok(Payload::File(file.into())),
        (false, None) => Err("payloadFile is missing and useRandomizedPayloads is not true: name a file with \
                              messageSize bytes, or set useRandomizedPayloads: true, randomBytesRatio and \
                              randomizedPayloadPoolSize"
            .into()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A workload for other tests to change.
    pub(crate) fn small() -> Workload {
        Workload::parse(GOOD).unwrap()
    }

    const GOOD: &str = "name: a test\ntopics: 2\npartitionsPerTopic: 3\nmessageSize: 100\n\
        useRandomizedPayloads: true\nrandomBytesRatio: 0.5\nrandomizedPayloadPoolSize: 10\nsubscriptionsPerTopic: 1\n\
        consumerPerSubscription: 1\nproducersPerTopic: 4\nproducerRate: 1000\nconsumerBacklogSizeGB: 0\n\
        testDurationMinutes: 15\n";

    #[test]
    fn missing_keys_have_openmessagings_defaults() {
        let workload = Workload::parse(GOOD).unwrap();
        assert_eq!(workload.name, "a test");
        assert_eq!((workload.topics, workload.partitions_per_topic, workload.producers()), (2, 3, 8));
        assert_eq!(workload.key_distributor, KeyDistributor::NoKey);
        assert_eq!(workload.payload, Payload::Random { random_share: 0.5, pool: 10 });
        assert_eq!((workload.test_seconds, workload.warmup_seconds), (900, 60));
        assert_eq!((workload.backlog_bytes, workload.backlog_drain_ratio.to_bits()), (0, 1f64.to_bits()));
    }

    #[test]
    fn every_mistake_is_named_with_its_fix() {
        let cases = [
            ("topics: 2", "topicz: 2", "unknown key topicz: write topics; the keys are name, topics"),
            ("topics: 2", "topics: 2\nblue: 1", "unknown key blue: remove it"),
            ("topics: 2", "", "topics is missing: add it with a whole number from 1 to 10000 (topics to create)"),
            ("topics: 2", "topics: 2\ntopics: 3", "each key once"),
            ("topics: 2", "topics: 0", "topics is 0: it needs a whole number from 1 to 10000"),
            ("topics: 2", "topics: two", "topics is \"two\": it needs a whole number"),
            ("topics: 2", "topics: 2.5", "topics is 2.5: it needs a whole number"),
            ("topics: 2", "topics: [2]", "topics is a list or a mapping: it needs a whole number"),
            ("topics: 2", "topics: 6000", "with a retry topic for each subscription these are 12000"),
            ("name: a test", "name: ''", "name is \"\": it needs a text"),
            ("partitionsPerTopic: 3", "partitionsPerTopic: 1025", "partitionsPerTopic is 1025: it needs a whole"),
            ("messageSize: 100", "messageSize: 4194305", "messageSize is 4194305: it needs a whole number from 1 to"),
            ("messageSize: 100", "messageSize: -1", "messageSize is -1: it needs"),
            ("producerRate: 1000", "producerRate: fast", "0 finds the highest rate that is sustained"),
            ("producerRate: 1000", "keyDistributor: RANDOM", "keyDistributor is \"RANDOM\": it needs one of NO_KEY, "),
            ("useRandomizedPayloads: true", "useRandomizedPayloads: 7", "it needs true or false"),
            ("useRandomizedPayloads: true", "", "payloadFile is missing and useRandomizedPayloads is not true"),
            ("randomBytesRatio: 0.5", "randomBytesRatio: 1.5", "randomBytesRatio is 1.5: it needs a number from 0.0"),
            ("randomizedPayloadPoolSize: 10", "", "it needs a whole number from 1, such as 1000"),
            ("consumerBacklogSizeGB: 0", "consumerBacklogSizeGB: 1\nbacklogDrainRatio: 2", "backlogDrainRatio is 2"),
            ("testDurationMinutes: 15", "testDurationMinutes: 0", "testDurationMinutes is 0: it needs a whole number"),
        ];
        for (good, bad, expected) in cases {
            assert!(GOOD.contains(good), "{good}");
            let error = Workload::parse(&GOOD.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn a_search_and_a_backlog_exclude_each_other() {
        let text = GOOD.replace("producerRate: 1000", "producerRate: 0").replace("SizeGB: 0", "SizeGB: 1");
        let error = Workload::parse(&text).unwrap_err().to_string();
        assert!(error.starts_with("producerRate is 0 and consumerBacklogSizeGB is not"), "{error}");
    }

    #[test]
    fn a_payload_file_is_found_beside_the_workload() {
        let folder = tempfile::tempdir().unwrap();
        let text = GOOD.replace("useRandomizedPayloads: true", "payloadFile: body.data");
        std::fs::write(folder.path().join("w.yaml"), text).unwrap();
        let workload = Workload::read(&folder.path().join("w.yaml")).unwrap();
        assert_eq!(workload.payload, Payload::File(folder.path().join("body.data")));
        let error = Workload::read(&folder.path().join("none.yaml")).unwrap_err().to_string();
        assert!(error.contains("none.yaml"), "{error}");
    }

    #[test]
    fn every_shipped_workload_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| Workload::read(&entry.unwrap().path()).unwrap_or_else(|error| panic!("{error}")).name)
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6, "{names:?}");
    }
}
