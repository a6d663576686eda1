//! When a recurring message comes next: a cron pattern, read on the clocks of a time zone.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use cuemq_storage_api::{InvalidInput, Timestamp};
use jiff::Zoned;
use jiff::tz::TimeZone;

use crate::limits::MAX_PATTERN_BYTES;

/// When a message recurs: a cron pattern and the time zone whose clocks it means.
///
/// A pattern has five fields, `minute hour day-of-month month day-of-week`, or six with seconds first. Lists (`1,15`),
/// ranges (`MON-FRI`), steps (`*/5`), names, `L` (the last day of the month), `#` (`FRI#2`: the second Friday) and
/// nicknames such as `@daily` are understood.
///
/// Where the clocks are moved, what vixie-cron does holds:
///
/// | pattern | an hour that is left out | an hour that comes twice |
/// |---|---|---|
/// | a time of day (`30 2 * * *`) | right after the gap, once | once, the first time |
/// | every so often (`*/30 * * * *`) | goes on behind the gap | both times |
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recurrence {
    pattern: String,
    zone_name: String,
    cron: Cron,
    zone: TimeZone,
}

impl Recurrence {
    /// A recurrence by a cron pattern on the clocks of an IANA time zone, such as `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    /// Names what is wrong with the pattern or the zone. A pattern that never comes true, such as 30 February, is
    /// refused when a message is sent with it.
    pub fn cron(pattern: &str, zone: &str) -> Result<Self, InvalidInput> {
        if pattern.len() > MAX_PATTERN_BYTES || zone.len() > MAX_PATTERN_BYTES {
            let text = format!("a cron pattern or time zone is longer than {MAX_PATTERN_BYTES} bytes: shorten it");
            return Err(InvalidInput::new(text));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|error| {
            InvalidInput::new(format!(
                "cron pattern {pattern:?}: {error}: write `minute hour day-of-month month day-of-week`, or seconds first"
            ))
        })?;
        let found = TimeZone::get(zone).map_err(|error| {
            InvalidInput::new(format!("time zone {zone:?}: {error}: use an IANA name such as Europe/Berlin"))
        })?;
        Ok(Self { pattern: pattern.to_owned(), zone_name: zone.to_owned(), cron, zone: found })
    }

    /// The pattern as it was given.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The time zone's name as it was given.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone_name
    }

    /// The first time after `time` at which it comes; `None` when there is none, or none that a calendar has.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let time = jiff::Timestamp::from_millisecond(time.as_millis()).ok()?;
        let next: Zoned = self.cron.find_next_occurrence(&time.to_zoned(self.zone.clone()), false).ok()?;
        Some(Timestamp::from_millis(next.timestamp().as_millisecond()))
    }
}

#[cfg(test)]
#[path = "recurrence_tests.rs"]
mod tests;
