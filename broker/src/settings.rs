//! What a user tunes: plain data that can be read from a file. What a user plugs in is in the builder.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::expiry::OnExpiry;
use crate::domain::length::MaxLength;
use crate::domain::retry::MAX_REDELIVERIES;
use crate::domain::topic_rules::TopicRules;
use crate::limits;

/// When a send is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flush {
    /// Once the message survives a power cut: one sync serves everybody who waits (group commit).
    #[default]
    Durable,
    /// Once the operating system has the bytes: survives the process, not the machine.
    Buffered,
}

/// Settings of one broker. Unknown keys are refused; [`validate`](BrokerSettings::validate) names the field at fault.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BrokerSettings {
    /// When sends are acknowledged, unless the topic says otherwise. Default: durable.
    pub flush: Flush,
    /// Whether a send to an unknown topic creates it. Default: true (RocketMQ's `autoCreateTopicEnable`).
    pub auto_create_topics: bool,
    /// Queues of a topic that does not say. 1 to 1024, default 4.
    pub default_queues: u32,
    /// Largest body in bytes. 1 byte to 64 MiB, default 4 MiB.
    pub max_body_bytes: usize,
    /// Most messages sent and not yet acknowledged to their senders. 1 to 2^20, default 65,536.
    pub max_in_flight_messages: u32,
    /// Most payload bytes sent and not yet acknowledged. At least `max_body_bytes` + 32 KiB, at most 2 GiB, default
    /// 256 MiB.
    pub max_in_flight_bytes: u32,
    /// Threads that carry queue, topic and group actors. 1 to 64, default: half the cores, at least 1.
    pub actor_threads: usize,
    /// Whether the actor of a queue, when it has written all that waited, stays awake for some 200 us and at most a
    /// millisecond, so that the next message need not wake its thread. A sender that awaits each receipt gets it in half
    /// the time; 10,000 messages a second, one at a time, then take a core and not a fifth of one. Default: true.
    pub stay_awake: bool,
    /// The delay levels, in milliseconds, level 1 first. 1 to 64 of them, each up to 2^40 ms. Default: RocketMQ's 18.
    pub delay_levels_ms: Vec<u64>,
    /// Most delayed messages that wait, retries of groups not counted in. 1 to 2^32, default 10,000,000. They lie
    /// on disk; the scheduler keeps a window of them in memory.
    pub max_delayed_messages: usize,
    /// First check of an undecided transaction after this many milliseconds. Default 6,000.
    pub transaction_check_after_ms: u64,
    /// Further checks every so many milliseconds. Default 30,000.
    pub transaction_check_interval_ms: u64,
    /// Checks before an undecided transaction is rolled back into the inspectable topic. Default 15.
    pub transaction_max_checks: u32,
    /// Most redeliveries of a message before it becomes a dead letter, whatever its group's retry policy says. 0 to
    /// 1000, default 1000; the default policy has 16.
    pub max_redeliveries: u32,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            flush: Flush::Durable,
            auto_create_topics: true,
            default_queues: 4,
            max_body_bytes: 4 << 20,
            max_in_flight_messages: 65_536,
            max_in_flight_bytes: 256 << 20,
            actor_threads: (cores / 2).clamp(1, 64),
            stay_awake: true,
            delay_levels_ms: DEFAULT_DELAY_LEVELS_S.iter().map(|s| s * 1000).collect(),
            max_delayed_messages: limits::MAX_DELAYED_MESSAGES,
            transaction_check_after_ms: 6_000,
            transaction_check_interval_ms: 30_000,
            transaction_max_checks: 15,
            max_redeliveries: MAX_REDELIVERIES,
        }
    }
}

/// RocketMQ's `messageDelayLevel`: 1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h.
const DEFAULT_DELAY_LEVELS_S: [u64; 18] =
    [1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];

/// A setting outside its range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("setting {field} is {value}: it needs {range}")]
pub struct InvalidSetting {
    /// The field at fault.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub range: String,
}

impl BrokerSettings {
    /// Checks every range.
    ///
    /// # Errors
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let most_body = cuemq_storage_api::limits::MAX_BODY_BYTES as u64;
        let least_bytes = self.max_body_bytes as u64 + cuemq_storage_api::limits::MAX_ATTRIBUTES_BYTES as u64;
        check("default_queues", u64::from(self.default_queues), 1, u64::from(limits::MAX_QUEUES_PER_TOPIC))?;
        check("max_body_bytes", self.max_body_bytes as u64, 1, most_body)?;
        check("max_in_flight_messages", u64::from(self.max_in_flight_messages), 1, 1 << 20)?;
        check("max_in_flight_bytes", u64::from(self.max_in_flight_bytes), least_bytes, 2 << 30)?;
        check("actor_threads", self.actor_threads as u64, 1, 64)?;
        check("delay_levels_ms (count)", self.delay_levels_ms.len() as u64, 1, 64)?;
        for level in &self.delay_levels_ms {
            check("delay_levels_ms", *level, 1, 1 << 40)?;
        }
        check("max_delayed_messages", self.max_delayed_messages as u64, 1, 1 << 32)?;
        check("transaction_check_after_ms", self.transaction_check_after_ms, 1, 1 << 40)?;
        check("transaction_check_interval_ms", self.transaction_check_interval_ms, 1, 1 << 40)?;
        check("transaction_max_checks", u64::from(self.transaction_max_checks), 1, 1000)?;
        check("max_redeliveries", u64::from(self.max_redeliveries), 0, u64::from(MAX_REDELIVERIES))
    }

    /// How long delay level `level` (from 1) waits; levels beyond the last mean the last (RocketMQ's rule).
    #[must_use]
    pub fn delay_of_level(&self, level: u8) -> Option<Duration> {
        let last = self.delay_levels_ms.len();
        let at = usize::from(level).min(last).checked_sub(1)?;
        self.delay_levels_ms.get(at).copied().map(Duration::from_millis)
    }
}

fn check(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), InvalidSetting> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InvalidSetting { field, value: value.to_string(), range: format!("{least} to {most}") })
}

/// What a topic is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TopicSpec {
    pub(crate) name: String,
    pub(crate) queues: Option<u32>,
    pub(crate) flush: Option<Flush>,
    pub(crate) rules: TopicRules,
}

impl TopicSpec {
    /// A topic with the broker's default number of queues and flush mode.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), queues: None, flush: None, rules: TopicRules::default() }
    }

    /// Sets the number of queues, 1 to 1024.
    #[must_use]
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = Some(queues);
        self
    }

    /// Sets how long the messages of this topic live, from the time at which they become visible, in whole milliseconds.
    /// A message may live shorter ([`Message::ttl`](crate::Message::ttl)), not longer.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.rules.ttl = Some(ttl);
        self
    }

    /// Sets what becomes of messages that a group did not consume within their time to live. Default: dead letters.
    #[must_use]
    pub fn on_expiry(mut self, on_expiry: OnExpiry) -> Self {
        self.rules.on_expiry = on_expiry;
        self
    }

    /// Sets the most that may wait in each queue of this topic.
    #[must_use]
    pub fn max_length(mut self, max_length: MaxLength) -> Self {
        self.rules.max_length = Some(max_length);
        self
    }

    /// Sets when sends to this topic are acknowledged.
    #[must_use]
    pub fn flush(mut self, flush: Flush) -> Self {
        self.flush = Some(flush);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_a_file() {
        let settings = BrokerSettings::default();
        settings.validate().unwrap();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<BrokerSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn unknown_keys_and_bad_ranges_are_named() {
        let error = serde_json::from_str::<BrokerSettings>(r#"{"flsh":"durable"}"#).unwrap_err();
        assert!(error.to_string().contains("flsh"), "{error}");
        let settings = BrokerSettings { default_queues: 0, ..BrokerSettings::default() };
        assert_eq!(settings.validate().unwrap_err().to_string(), "setting default_queues is 0: it needs 1 to 1024");
    }

    #[test]
    fn delay_levels_follow_rocketmq() {
        let settings = BrokerSettings::default();
        assert_eq!(settings.delay_of_level(0), None);
        assert_eq!(settings.delay_of_level(3), Some(Duration::from_secs(10)));
        assert_eq!(settings.delay_of_level(18), Some(Duration::from_secs(7200)));
        assert_eq!(settings.delay_of_level(200), Some(Duration::from_secs(7200)));
    }
}
