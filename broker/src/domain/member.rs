//! The name of one consumer within its group, and of where it stands.

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::InvalidInput;

/// Longest member name, in bytes.
pub(crate) const MAX_MEMBER_NAME_BYTES: usize = 255;

/// Names of members that the broker makes itself begin so.
const RESERVED: char = '%';

/// The name of one consumer within its group: 1 to 255 bytes without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MemberId(Arc<str>);

impl MemberId {
    /// Checks a name.
    ///
    /// # Errors
    /// Names the offending length or character.
    pub(crate) fn new(name: &str) -> Result<Self, InvalidInput> {
        check_name("member name", name)?;
        Ok(Self(name.into()))
    }

    /// Checks a name chosen by a user: those that begin with `%` are the broker's own.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for a reserved name.
    pub(crate) fn chosen(name: &str) -> Result<Self, InvalidInput> {
        if name.starts_with(RESERVED) {
            let text = format!(
                "member name {name:?} begins with {RESERVED:?}, which is reserved for the broker: choose another"
            );
            return Err(InvalidInput::new(text));
        }
        Self::new(name)
    }

    /// The name as text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of the place where a member stands: the same bounds as a member's name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Room(Arc<str>);

impl Room {
    /// Checks a name.
    ///
    /// # Errors
    /// Names the offending length or character.
    pub(crate) fn new(name: &str) -> Result<Self, InvalidInput> {
        check_name("room name", name)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks the name of a member or a room: 1 to 255 bytes without control characters.
///
/// # Errors
/// Names the offending length or character.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), InvalidInput> {
    if name.is_empty() || name.len() > MAX_MEMBER_NAME_BYTES {
        return Err(InvalidInput::new(format!("{what} has {} bytes: use 1 to {MAX_MEMBER_NAME_BYTES}", name.len())));
    }
    if let Some(bad) = name.chars().find(|c| c.is_control()) {
        return Err(InvalidInput::new(format!("{what} {name:?} contains {bad:?}: use printable characters")));
    }
    Ok(())
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_birth() {
        let long = "x".repeat(MAX_MEMBER_NAME_BYTES + 1);
        for bad in ["", "a\0b", "a\n", &long] {
            assert!(MemberId::new(bad).is_err() && Room::new(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(MemberId::chosen("%divert").unwrap_err().to_string().contains("choose another"));
        assert_eq!(MemberId::chosen("a%"), MemberId::new("a%"));
        for good in ["192.168.1.2@4711#0", "消费者", &long[1..]] {
            assert_eq!(MemberId::new(good).unwrap().as_str(), good);
            assert_eq!(Room::new(good).unwrap().as_str(), good);
        }
    }
}
