//! The result of a run, with OpenMessaging's field names.

use serde_json::{Map, Value, json};

use super::backlog::Backlog;
use super::statistics::{Latencies, Period, Tally};
use super::workload::Workload;

/// The percentiles that are reported, with the end of their fields' names.
pub const PERCENTILES: [(&str, f64); 7] = [
    ("50pct", 50.0),
    ("75pct", 75.0),
    ("95pct", 95.0),
    ("99pct", 99.0),
    ("999pct", 99.9),
    ("9999pct", 99.99),
    ("99999pct", 99.999),
];

/// What was measured.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The driver's name.
    pub driver: String,
    /// What was run.
    pub workload: Workload,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
    /// How long was measured.
    pub seconds: f64,
    /// Messages that were received and found right, warm-up and end included, over all subscriptions.
    pub verified: u64,
    /// The highest rate that was kept for a whole trial, of a search.
    pub sustained_rate: Option<f64>,
    /// The backlog, if there was one.
    pub backlog: Option<Backlog>,
    /// The lines of the report.
    pub periods: Vec<Period>,
    /// All of them together.
    pub total: Tally,
}

/// A latency by the name that its fields begin with.
struct Named {
    name: &'static str,
    of: fn(&Tally) -> &Latencies,
    unit: Unit,
}

const LATENCIES: [Named; 3] = [
    Named { name: "publishLatency", of: |tally| &tally.publish, unit: Unit::Millis },
    Named { name: "publishDelayLatency", of: |tally| &tally.delay, unit: Unit::Micros },
    Named { name: "endToEndLatency", of: |tally| &tally.end_to_end, unit: Unit::Millis },
];

/// OpenMessaging tells some latencies in milliseconds with fractions, and one in whole microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unit {
    Millis,
    Micros,
}

impl Unit {
    fn of(self, micros: f64) -> Value {
        match self {
            Self::Millis => json!(micros / 1e3),
            Self::Micros => whole(micros),
        }
    }

    fn mean(self, micros: f64) -> Value {
        if self == Self::Millis { json!(micros / 1e3) } else { json!(micros) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "microseconds of a latency are positive and far below 2^53")]
fn whole(micros: f64) -> Value {
    json!(micros.round() as u64)
}

impl Outcome {
    /// A mean rate over all that was measured, in messages a second.
    #[must_use]
    pub fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }

    /// The result as OpenMessaging writes it. What it has no name for is in the field `cuemq`, to which `conditions` are
    /// added.
    #[must_use]
    pub fn to_json(&self, conditions: Value) -> Value {
        let workload = &self.workload;
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("workload", json!(workload.name));
        set("driver", json!(self.driver));
        set("messageSize", json!(workload.message_size));
        set("topics", json!(workload.topics));
        set("partitions", json!(workload.partitions_per_topic));
        set("producersPerTopic", json!(workload.producers_per_topic));
        set("consumersPerTopic", json!(workload.consumer_per_subscription));
        let series = |value: &dyn Fn(&Period) -> Value| self.periods.iter().map(value).collect::<Value>();
        set("publishRate", series(&|period| json!(period.rate(period.tally.sent))));
        set("publishErrorRate", series(&|period| json!(period.rate(period.tally.failed))));
        set("consumeRate", series(&|period| json!(period.rate(period.tally.received))));
        set("backlog", series(&|period| json!(period.backlog)));
        for Named { name, of: latencies, unit } in LATENCIES {
            let aggregated = format!("aggregated{}{}", name[..1].to_uppercase(), &name[1..]);
            let of = |period: &Period| unit.mean(latencies(&period.tally).mean_micros());
            set(&format!("{name}Avg"), series(&of));
            set(&format!("{aggregated}Avg"), unit.mean(latencies(&self.total).mean_micros()));
            for (ending, percent) in PERCENTILES {
                let of = |period: &Period| unit.of(latencies(&period.tally).micros_at(percent));
                set(&format!("{name}{ending}"), series(&of));
                set(&format!("{aggregated}{ending}"), unit.of(latencies(&self.total).micros_at(percent)));
            }
            let of = |period: &Period| unit.of(latencies(&period.tally).max_micros());
            set(&format!("{name}Max"), series(&of));
            set(&format!("{aggregated}Max"), unit.of(latencies(&self.total).max_micros()));
            let quantiles = latencies(&self.total).quantiles();
            let quantiles: Map<String, Value> =
                quantiles.map(|(percent, micros)| (percent.to_string(), unit.of(micros))).collect();
            set(&format!("{aggregated}Quantiles"), Value::Object(quantiles));
        }
        set("cuemq", self.own_fields(conditions));
        Value::Object(fields)
    }

    fn own_fields(&self, conditions: Value) -> Value {
        json!({
            "conditions": conditions,
            "interrupted": self.interrupted,
            "measuredSeconds": self.seconds,
            "messagesSent": self.total.sent,
            "messagesFailed": self.total.failed,
            "messagesReceived": self.total.received,
            "messagesVerified": self.verified,
            "sustainedRate": self.sustained_rate,
            "backlogBuildSeconds": self.backlog.and_then(|backlog| backlog.build_seconds()),
            "backlogDrainSeconds": self.backlog.and_then(|backlog| backlog.drain_seconds()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::tests::small;
    use super::*;

    fn outcome() -> Outcome {
        let mut tally = Tally { sent: 300, failed: 3, received: 290, ..Tally::default() };
        tally.publish.record(2_000_000, 300);
        tally.delay.record(7_400, 300);
        tally.end_to_end.record(3_000_000, 290);
        let period = Period { seconds: 3.0, tally: tally.clone(), backlog: 10 };
        let mut total = tally.clone();
        total.add(&tally);
        Outcome {
            driver: "d".into(),
            workload: small(),
            interrupted: false,
            seconds: 6.0,
            verified: 600,
            sustained_rate: Some(99.5),
            backlog: None,
            periods: vec![period.clone(), period],
            total,
        }
    }

    /// Every field that OpenMessaging's chart script reads, and those of its result class.
    #[test]
    fn the_result_has_openmessagings_names() {
        let json = outcome().to_json(json!({"disk": "slow"}));
        let plain =
            ["workload", "driver", "messageSize", "topics", "partitions", "producersPerTopic", "consumersPerTopic"];
        assert!(plain.iter().all(|name| json[name].is_string() || json[name].is_u64()), "{json}");
        let mut names: Vec<String> =
            ["publishRate", "publishErrorRate", "consumeRate", "backlog"].map(str::to_owned).to_vec();
        let endings = ["Avg", "50pct", "75pct", "95pct", "99pct", "999pct", "9999pct", "99999pct", "Max"];
        for (name, capital) in [("publish", "Publish"), ("publishDelay", "PublishDelay"), ("endToEnd", "EndToEnd")] {
            for ending in endings {
                names.push(format!("{name}Latency{ending}"));
                let aggregated = format!("aggregated{capital}Latency{ending}");
                assert!(json[&aggregated].is_number(), "{aggregated}");
            }
            let quantiles = json[format!("aggregated{capital}LatencyQuantiles")].as_object().unwrap();
            assert!(!quantiles.is_empty());
            assert!(quantiles.iter().all(|(key, value)| key.parse::<f64>().is_ok() && value.is_number()));
        }
        for name in names {
            let series = json[&name].as_array().unwrap_or_else(|| panic!("{name} is no list"));
            assert!(series.len() == 2 && series.iter().all(Value::is_number), "{name}: {series:?}");
        }
        assert_eq!(json["cuemq"]["conditions"]["disk"], "slow");
    }

    #[test]
    fn units_are_openmessagings() {
        let json = outcome().to_json(Value::Null);
        let millis = |name: &str| json[name][0].as_f64().unwrap();
        assert!((millis("publishLatency99pct") - 2.0).abs() < 0.01);
        assert!((millis("endToEndLatencyAvg") - 3.0).abs() < 0.01);
        assert_eq!(json["publishDelayLatency50pct"][1].as_u64(), Some(7));
        assert!((millis("publishRate") - 100.0).abs() < 0.01);
        assert_eq!(json["backlog"][1].as_u64(), Some(10));
        assert_eq!(json["cuemq"]["messagesSent"].as_u64(), Some(600));
    }
}
