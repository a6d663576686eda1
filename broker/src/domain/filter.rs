//! Tag expressions: `*` for every message, `pay || refund` for those with one of these tags.

use cuemq_storage_api::limits::MAX_KEY_BYTES;
use cuemq_storage_api::{InvalidInput, TagHashes, tag_hash};

/// Most tags in one expression: each stored message of the queue is compared with all of them.
pub(crate) const MAX_FILTER_TAGS: usize = 64;

const EVERY_TAG: &str = "*";
const OR: &str = "||";

/// Which messages of a topic a consumer wants, by their tags.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) enum TagFilter {
    /// Every message, with or without a tag.
    #[default]
    All,
    /// Messages whose tag is one of these: 1 to 64, sorted, none twice.
    AnyOf(Vec<String>),
}

impl TagFilter {
    /// Reads an expression: `*`, or tags separated by `||`. Spaces around tags are ignored.
    ///
    /// # Errors
    /// Names what is wrong and how to put it right.
    pub(crate) fn parse(expression: &str) -> Result<Self, InvalidInput> {
        if expression.trim() == EVERY_TAG {
            return Ok(Self::All);
        }
        let mut tags = Vec::new();
        for tag in expression.split(OR).map(str::trim) {
            check_tag(tag, expression)?;
            if tags.len() == MAX_FILTER_TAGS {
                return Err(InvalidInput::new(format!(
                    "a tag expression has more than {MAX_FILTER_TAGS} tags: use \"*\" or several groups"
                )));
            }
            tags.push(tag.to_owned());
        }
        tags.sort_unstable();
        tags.dedup();
        Ok(Self::AnyOf(tags))
    }

    /// The hashes by which an engine sorts out most of the others. Different tags may share a hash, so
    /// [`matches`](Self::matches) has the last word.
    #[must_use]
    pub(crate) fn hashes(&self) -> TagHashes {
        match self {
            Self::All => TagHashes::All,
            Self::AnyOf(tags) => {
                let mut hashes: Vec<i64> = tags.iter().map(|tag| tag_hash(tag)).collect();
                hashes.sort_unstable();
                hashes.dedup();
                TagHashes::AnyOf(hashes)
            }
        }
    }

    /// Whether a message with this tag is wanted.
    #[must_use]
    pub(crate) fn matches(&self, tag: Option<&str>) -> bool {
        match (self, tag) {
            (Self::All, _) => true,
            (Self::AnyOf(_), None) => false,
            (Self::AnyOf(tags), Some(tag)) => tags.iter().any(|wanted| wanted == tag),
        }
    }
}

fn check_tag(tag: &str, expression: &str) -> Result<(), InvalidInput> {
    let shown = expression.get(..128).unwrap_or(expression);
    if tag.is_empty() {
        return Err(InvalidInput::new(format!(
            "tag expression {shown:?} has an empty tag: write \"*\" for all messages, or tags like \"a || b\""
        )));
    }
    if tag == EVERY_TAG {
        return Err(InvalidInput::new(format!(
            "tag expression {shown:?} mixes \"*\" with tags: write \"*\" alone for all messages"
        )));
    }
    if tag.len() > MAX_KEY_BYTES {
        return Err(InvalidInput::new(format!(
            "a tag in the expression has {} bytes, more than {MAX_KEY_BYTES}: no message can have it",
            tag.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_of(tags: &[&str]) -> TagFilter {
        TagFilter::AnyOf(tags.iter().map(|tag| (*tag).to_owned()).collect())
    }

    #[test]
    fn expressions() {
        for (text, filter) in [
            ("*", TagFilter::All),
            ("  * ", TagFilter::All),
            ("pay", any_of(&["pay"])),
            (" refund||pay ", any_of(&["pay", "refund"])),
            ("a || b || a", any_of(&["a", "b"])),
            ("new order", any_of(&["new order"])),
            ("a|b", any_of(&["a|b"])),
        ] {
            assert_eq!(TagFilter::parse(text), Ok(filter), "{text:?}");
        }
    }

    #[test]
    fn errors_name_the_fix() {
        let many = vec!["t"; MAX_FILTER_TAGS + 1].join("||");
        for (text, hint) in [
            ("", "write \"*\" for all"),
            ("  ", "write \"*\" for all"),
            ("a ||", "empty tag"),
            ("|| a", "empty tag"),
            ("a || || b", "empty tag"),
            ("* || a", "write \"*\" alone"),
            (&many, "more than 64 tags"),
            (&"x".repeat(1025), "1025 bytes"),
        ] {
            let error = TagFilter::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_string_has_the_last_word() {
        let filter = TagFilter::parse("Aa").unwrap();
        assert!(filter.hashes().matches(tag_hash("BB")), "Java's hash does not tell them apart");
        assert!(filter.matches(Some("Aa")) && !filter.matches(Some("BB")) && !filter.matches(None));
        assert!(TagFilter::All.matches(None));
        assert_eq!(TagFilter::parse("Aa || BB").unwrap().hashes(), TagHashes::AnyOf(vec![tag_hash("Aa")]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_hashes_let_every_match_through(text in ".{0,200}", tag in "[ab|* ]{1,3}") {
            if let Ok(filter) = TagFilter::parse(&text) {
                prop_assert!(!filter.matches(Some(&tag)) || filter.hashes().matches(tag_hash(&tag)));
            }
            if let Ok(filter) = TagFilter::parse(&format!("x || {tag}")) {
                prop_assert!(filter.matches(Some("x")) && filter.hashes().matches(tag_hash("x")));
            }
        }
    }
}
