//! A list outside the broker of what it has acknowledged: what a crash test holds the broker to.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use cuemq::Receipt;

/// One acknowledged event, as one line of text: `acked round line queue offset key`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The round in which it was sent, from 0.
    pub round: u64,
    /// Its line in the input, from 0.
    pub line: u64,
    /// The queue that it was stored in.
    pub queue: u32,
    /// Its offset there.
    pub offset: u64,
    /// Its sharding key.
    pub key: String,
}

/// Begins every line of a ledger, so that it can share a stream with other text.
const MARK: &str = "acked";

impl Entry {
    /// What a receipt says of one line.
    #[must_use]
    pub fn new(round: u64, line: u64, key: &str, receipt: &Receipt) -> Self {
        let offset = receipt.offset.map_or(0, cuemq::QueueOffset::get);
        Self { round, line, queue: receipt.queue.get(), offset, key: key.to_owned() }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { round, line, queue, offset, key } = self;
        write!(f, "{MARK} {round} {line} {queue} {offset} {key}")
    }
}

impl FromStr for Entry {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || anyhow!("{text:?} is not a line of a ledger");
        let mut words = text.splitn(6, ' ');
        let mut next = || words.next().ok_or_else(bad);
        if next()? != MARK {
            return Err(bad());
        }
        let (round, line, queue, offset) = (next()?.parse()?, next()?.parse()?, next()?.parse()?, next()?.parse()?);
        Ok(Self { round, line, queue, offset, key: next()?.to_owned() })
    }
}

/// Where entries are written, one `write` each, right after the receipt.
pub struct Ledger(Option<Box<dyn Write + Send>>);

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ledger").field(&self.0.is_some()).finish()
    }
}

impl Ledger {
    /// A ledger in a file, behind what is there; on standard output for `-`; none without a path.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let writer: Box<dyn Write + Send> = match path {
            None => return Ok(Self(None)),
            Some(path) if path.as_os_str() == "-" => Box::new(io::stdout()),
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.with_context(|| format!("the ledger {} cannot be written", path.display()))?)
            }
        };
        Ok(Self(Some(writer)))
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, entry: &Entry) -> Result<()> {
        let Some(writer) = &mut self.0 else { return Ok(()) };
        writer.write_all(format!("{entry}\n").as_bytes()).context("the ledger cannot be written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_text() {
        let entry = Entry { round: 1, line: 22, queue: 3, offset: 44, key: "a key with spaces".to_owned() };
        assert_eq!(entry.to_string().parse::<Entry>().unwrap(), entry);
        for bad in ["", "acked 1 2 3", "sent 1 2 3 4 k", "acked 1 2 3 x k"] {
            assert!(bad.parse::<Entry>().is_err(), "{bad:?}");
        }
    }
}
