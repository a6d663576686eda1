//! Failed deliveries of a message that keeps its place: it comes again where it lies, and what is known of its failures
//! is kept beside it.

use cuemq_storage_api::{AttributesBuilder, InvalidInput, Record, StoredRecord, Timestamp};

use super::failed_copy::cut;
use crate::limits::MAX_ERROR_BYTES;
use crate::message::{ATTEMPTS, FIRST_FAILED_AT, LAST_ERROR};

/// What is known of the failures of one message in its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InPlaceFailures {
    /// How many deliveries failed, with those of before it came to this place.
    pub(crate) failures: u32,
    /// When the first of them did.
    pub(crate) first_failed_at: Timestamp,
    /// What the consumer said of the last of which it said anything; no more than is kept.
    pub(crate) last_error: Option<String>,
}

impl InPlaceFailures {
    /// The same stored message, saying so; as it was where there is no room for that.
    #[must_use]
    pub(crate) fn marked(&self, stored: StoredRecord) -> StoredRecord {
        match self.mark(&stored.record) {
            Ok(record) => StoredRecord { record, ..stored },
            Err(_) => stored,
        }
    }

    /// After one more failure of a message as it was delivered.
    #[must_use]
    pub(crate) fn after(delivered: &Record, failures: u32, error: Option<&str>, now: Timestamp) -> Self {
        let before = |name| delivered.attributes.property(name);
        let first = before(FIRST_FAILED_AT).and_then(|text| text.parse().ok()).map(Timestamp::from_millis);
        let last_error = error.or_else(|| before(LAST_ERROR)).map(|text| cut(text, MAX_ERROR_BYTES).to_owned());
        Self { failures, first_failed_at: first.unwrap_or(now), last_error }
    }

    /// The message as it is delivered next: it says what is known of its failures.
    ///
    /// # Errors
    /// When that is more than attributes take, which the bounds of what producers send rule out.
    pub(crate) fn mark(&self, record: &Record) -> Result<Record, InvalidInput> {
        let keeps = |name: &str| !matches!(name, ATTEMPTS | FIRST_FAILED_AT | LAST_ERROR);
        let mut builder = AttributesBuilder::from_attributes_keeping(&record.attributes, keeps);
        builder
            .property(ATTEMPTS, &self.failures.to_string())
            .property(FIRST_FAILED_AT, &self.first_failed_at.as_millis().to_string());
        if let Some(error) = &self.last_error {
            builder.property(LAST_ERROR, error);
        }
        Ok(record.clone().with_attributes(builder.build()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::from_millis(5000);

    #[test]
    fn what_is_known_of_failures_is_added_up() {
        let mut attributes = AttributesBuilder::default();
        attributes.tag("t").key("k").sharding_key("s").property("a", "1");
        let record = Record::new("body", AT).with_attributes(attributes.build().unwrap());
        let first = InPlaceFailures::after(&record, 1, Some("no"), AT);
        assert_eq!(first, InPlaceFailures { failures: 1, first_failed_at: AT, last_error: Some("no".into()) });
        let marked = first.mark(&record).unwrap();
        let later = Timestamp::from_millis(9000);
        let second = InPlaceFailures::after(&marked, 2, None, later);
        assert_eq!(second, InPlaceFailures { failures: 2, first_failed_at: AT, last_error: Some("no".into()) });
        let third = InPlaceFailures::after(&marked, 3, Some(&"x".repeat(5000)), later);
        assert_eq!(third.last_error.unwrap().len(), MAX_ERROR_BYTES);
        let marked = second.mark(&marked).unwrap();
        assert_eq!(marked, second.mark(&record).unwrap(), "what it said before is replaced");
        assert_eq!((&marked.body, marked.born_at), (&record.body, record.born_at));
        let read = &marked.attributes;
        assert_eq!((read.tag(), read.sharding_key(), read.property("a")), (Some("t"), Some("s"), Some("1")));
        assert_eq!(read.property(ATTEMPTS), Some("2"));
    }
}
