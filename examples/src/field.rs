//! Looks into one line of input.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// A field of a line that is a JSON object, as text: without the quotes of a string, as it stands for everything else.
/// `None` when the line is no such object or has no such field.
#[must_use]
pub fn field_of(line: &[u8], name: &str) -> Option<String> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(line).ok()?;
    let raw = fields.get(name)?.get();
    Some(serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()))
}

/// What orders a line among others: its field of this name, or its first word when it has none.
#[must_use]
pub fn key_of(line: &[u8], name: &str) -> String {
    field_of(line, name).filter(|key| is_short(key)).unwrap_or_else(|| first_word(line))
}

fn first_word(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let word = text.split_whitespace().next().unwrap_or_default();
    if is_short(word) { word.to_owned() } else { "-".to_owned() }
}

/// Whether a text can be a key of a message.
fn is_short(key: &str) -> bool {
    (1..=cuemq::storage_api::limits::MAX_KEY_BYTES).contains(&key.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_as_text() {
        let line = br#"{"order":"o-\u0031","count":12,"empty":""}"#;
        assert_eq!(field_of(line, "order").as_deref(), Some("o-1"));
        assert_eq!(field_of(line, "count").as_deref(), Some("12"));
        assert_eq!(field_of(line, "other"), None);
        assert_eq!(field_of(b"no JSON", "order"), None);
    }

    #[test]
    fn every_line_has_a_key() {
        assert_eq!(key_of(br#"{"order":"o-1"}"#, "order"), "o-1");
        assert_eq!(key_of(b"  first second", "order"), "first");
        assert_eq!(key_of(b"", "order"), "-");
        assert_eq!(key_of("x".repeat(5000).as_bytes(), "order"), "-");
    }
}
