//! The lines of a file or of standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

/// Longest line: the largest body that a broker takes by default.
pub const MAX_LINE_BYTES: u64 = 4 << 20;
/// Lines read ahead of whoever takes them.
const READ_AHEAD_LINES: usize = 1024;
/// The order events that come with the examples.
const ORDERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/orders.ndjson");

/// Where lines come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A file, which can be read more than once.
    File(PathBuf),
    /// Standard input.
    Standard,
}

impl Input {
    /// A file by its path, `-` for standard input, the order events of the examples when nothing is given.
    #[must_use]
    pub fn given(path: Option<&Path>) -> Self {
        match path {
            None => Self::File(PathBuf::from(ORDERS)),
            Some(path) if path.as_os_str() == "-" => Self::Standard,
            Some(path) => Self::File(path.to_owned()),
        }
    }

    /// What to call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Standard => "standard input".to_owned(),
        }
    }

    /// A legal topic name made of the file's name without its ending.
    #[must_use]
    pub fn topic(&self) -> String {
        let stem = match self {
            Self::File(path) => path.file_stem().map(|stem| stem.to_string_lossy().into_owned()),
            Self::Standard => None,
        };
        let legal = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
        let name: String = stem.unwrap_or_default().chars().take(64).map(legal).collect();
        if name.is_empty() { "lines".to_owned() } else { name }
    }

    /// The lines without their ends; empty ones are left out.
    ///
    /// # Errors
    /// When the file cannot be opened. Each line may be an error too: a failed read, or more than 4 MiB.
    pub fn lines(&self) -> Result<Lines> {
        let reader: Box<dyn BufRead + Send> = match self {
            Self::File(path) => {
                let file = File::open(path)
                    .with_context(|| format!("no input in {}: give the path of a text file", path.display()))?;
                Box::new(BufReader::with_capacity(1 << 16, file))
            }
            Self::Standard => Box::new(BufReader::new(io::stdin())),
        };
        Ok(Lines { reader, number: 0 })
    }

    /// The same lines, read on a thread that may block, a bounded number ahead.
    ///
    /// # Errors
    /// As [`lines`](Input::lines).
    pub fn stream(&self) -> Result<mpsc::Receiver<Result<Line>>> {
        let lines = self.lines()?;
        let (sender, receiver) = mpsc::channel(READ_AHEAD_LINES);
        tokio::task::spawn_blocking(move || {
            for line in lines {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// One line that is not empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Its place among them, from 0.
    pub number: u64,
    /// Its bytes, without the end of the line.
    pub bytes: Bytes,
}

/// See [`Input::lines`].
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    number: u64,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Lines {
    fn read(&mut self) -> Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let mut bounded = self.reader.by_ref().take(MAX_LINE_BYTES + 1);
            if bounded.read_until(b'\n', &mut bytes).context("the input cannot be read")? == 0 {
                return Ok(None);
            }
            let ends = bytes.iter().rev().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            bytes.truncate(bytes.len() - ends);
            if bytes.len() as u64 > MAX_LINE_BYTES {
                bail!("line {} has more than {MAX_LINE_BYTES} bytes: split it", self.number + 1);
            }
            if !bytes.is_empty() {
                let line = Line { number: self.number, bytes: bytes.into() };
                self.number += 1;
                return Ok(Some(line));
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &'static [u8]) -> Vec<Result<Line>> {
        Lines { reader: Box::new(text), number: 0 }.collect()
    }

    #[test]
    fn lines_are_counted_without_empty_ones() {
        let lines: Vec<Line> = lines_of(b"a\r\n\n\nb\nc").into_iter().map(Result::unwrap).collect();
        let told: Vec<(u64, &[u8])> = lines.iter().map(|line| (line.number, &line.bytes[..])).collect();
        assert_eq!(told, [(0, &b"a"[..]), (1, b"b"), (2, b"c")]);
    }

    #[test]
    fn topics_are_legal_names() {
        for (path, topic) in
            [("data/orders.ndjson", "orders"), ("my file.txt", "my_file"), ("-", "lines"), ("/", "lines")]
        {
            assert_eq!(Input::given(Some(Path::new(path))).topic(), topic);
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Input::given(Some(Path::new("/no/such.file"))).lines().unwrap_err();
        assert!(error.to_string().contains("/no/such.file"), "{error}");
    }
}
