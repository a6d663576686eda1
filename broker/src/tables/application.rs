//! Tables `app.<name>`: the application's own rows, whose keys and values are whatever it says.

use cuemq_storage_api::Table;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_APPLICATION_TABLE_BYTES;

const PREFIX: &str = "app.";

/// The table that an application knows by this name.
///
/// # Errors
/// `Invalid` unless the name is 1 to 40 of `[a-z0-9_]`.
pub(crate) fn table(name: &str) -> Result<Table> {
    let legal = (1..=MAX_APPLICATION_TABLE_BYTES).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if !legal {
        let text = format!("table name {name:?}: use 1 to {MAX_APPLICATION_TABLE_BYTES} of [a-z0-9_]");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(Table::new(&format!("{PREFIX}{name}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_apart_from_the_brokers_own_and_bounded() {
        assert_eq!(table("stock").unwrap().as_str(), "app.stock");
        assert!(table(&"a".repeat(40)).is_ok());
        for bad in ["", "Stock", "a.b", "a-b", "ä", &"a".repeat(41)] {
            let error = table(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("1 to 40"), "{error}");
        }
    }
}
