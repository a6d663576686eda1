//! The keys of a YAML file, each taken with its range, so that every mistake is named with its fix.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Result;

/// Most letters by which an unknown key may differ from the one that was probably meant.
const TYPING_ERRORS: usize = 2;

/// Keys and values of a file that nobody has taken yet.
pub(super) struct Fields {
    values: BTreeMap<String, Scalar>,
}

/// A value as YAML understands it.
#[derive(Clone, PartialEq, Debug)]
enum Scalar {
    Nothing,
    Truth(bool),
    Whole(i128),
    Number(f64),
    Text(String),
    Nested,
}

impl Fields {
    /// Reads the text; `known` are all keys that there are.
    pub(super) fn read(text: &str, known: &[&str]) -> Result<Self> {
        let values: BTreeMap<String, Scalar> = serde_saphyr::from_str(text)
            .map_err(|error| format!("it is not YAML of the form `key: value`, each key once: {error}"))?;
        for key in values.keys() {
            if !known.contains(&key.as_str()) {
                let like = known.iter().find(|known| typing_errors(key, known) <= TYPING_ERRORS);
                let fix = like.map_or_else(|| "remove it".to_owned(), |like| format!("write {like}"));
                return Err(format!("unknown key {key}: {fix}; the keys are {}", known.join(", ")).into());
            }
        }
        Ok(Self { values })
    }

    /// A value that is given and not null.
    fn take(&mut self, key: &str) -> Option<Scalar> {
        self.values.remove(key).filter(|value| *value != Scalar::Nothing)
    }

    /// A whole number; `default` when the key is missing. `meaning` completes the error.
    pub(super) fn whole(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Option<u64>,
        meaning: &str,
    ) -> Result<u64> {
        let needs = format!("a whole number from {} to {} ({meaning})", range.start(), range.end());
        match (self.take(key), default) {
            (Some(Scalar::Whole(value)), _) if u64::try_from(value).is_ok_and(|value| range.contains(&value)) => {
                Ok(u64::try_from(value)?)
            }
            (Some(other), _) => Err(bad(key, &other, &needs)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(missing(key, &needs)),
        }
    }

    /// A number from 0 to 1.
    pub(super) fn share(&mut self, key: &'static str, default: f64, meaning: &str) -> Result<f64> {
        let value = match self.take(key) {
            None => return Ok(default),
            Some(Scalar::Number(value)) if (0.0..=1.0).contains(&value) => return Ok(value),
            Some(Scalar::Whole(0)) => return Ok(0.0),
            Some(Scalar::Whole(1)) => return Ok(1.0),
            Some(other) => other,
        };
        Err(bad(key, &value, &format!("a number from 0.0 to 1.0 ({meaning})")))
    }

    /// True or false; false when the key is missing.
    pub(super) fn truth(&mut self, key: &'static str, meaning: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Scalar::Truth(value)) => Ok(value),
            Some(other) => Err(bad(key, &other, &format!("true or false ({meaning})"))),
        }
    }

    /// A text that is not empty; numbers are texts too.
    pub(super) fn text(&mut self, key: &'static str, meaning: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Scalar::Text(text)) if !text.is_empty() => Ok(Some(text)),
            Some(value @ (Scalar::Whole(_) | Scalar::Number(_))) => Ok(Some(value.to_string())),
            Some(other) => Err(bad(key, &other, &format!("a text ({meaning})"))),
        }
    }
}

/// A value that a key cannot have.
fn bad(key: &str, value: &Scalar, needs: &str) -> crate::Failure {
    format!("{key} is {value}: it needs {needs}").into()
}

/// A key that has to be there.
pub(super) fn missing(key: &str, needs: &str) -> crate::Failure {
    format!("{key} is missing: add it with {needs}").into()
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("null"),
            Self::Truth(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::Nested => f.write_str("a list or a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Truth(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Whole(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_none<E>(self) -> std::result::Result<Scalar, E> {
        Ok(Scalar::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Scalar, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Nested)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Nested)
    }
}

/// How many letters have to be changed, added or removed, case aside (Levenshtein's distance).
fn typing_errors(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, candidate) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_counted() {
        for (one, other, errors) in [("topics", "topics", 0), ("Topics", "topics", 0), ("topic", "topics", 1)] {
            assert_eq!(typing_errors(one, other), errors, "{one} and {other}");
        }
        assert_eq!(typing_errors("kitten", "sitting"), 3);
        assert_eq!(typing_errors("", "abc"), 3);
    }

    #[test]
    fn values_have_yaml_types() {
        let mut fields =
            Fields::read("a: 1\nb: 1.5\nc: true\nd: \"1\"\ne:\nf: [1, 2]\n", &["a", "b", "c", "d", "e", "f"]);
        let fields = fields.as_mut().unwrap();
        assert_eq!(fields.take("a"), Some(Scalar::Whole(1)));
        assert_eq!(fields.take("b"), Some(Scalar::Number(1.5)));
        assert_eq!(fields.take("c"), Some(Scalar::Truth(true)));
        assert_eq!(fields.take("d"), Some(Scalar::Text("1".into())));
        assert_eq!(fields.take("e"), None);
        assert_eq!(fields.take("f"), Some(Scalar::Nested));
    }
}
