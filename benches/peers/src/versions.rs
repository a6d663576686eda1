//! Which versions take part: those of the lock file that this was built with.

const LOCK: &str = include_str!("../Cargo.lock");

/// The locked version of a package; `unknown` when it has none.
#[must_use]
pub fn version(package: &str) -> &'static str {
    let name = format!("name = \"{package}\"");
    let mut lines = LOCK.lines().skip_while(|line| **line != *name);
    let version =
        lines.nth(1).and_then(|line| line.strip_prefix("version = \"")).map(|rest| rest.trim_end_matches('"'));
    version.unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Contender;

    #[test]
    fn everybody_has_a_version() {
        for contender in Contender::ALL {
            let version = version(contender.package());
            assert_eq!(version.split('.').count(), 3, "{contender} has version {version}");
        }
        assert_eq!(version("no-such-package"), "unknown");
    }
}
