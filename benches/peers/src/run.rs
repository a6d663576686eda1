//! Rounds in which all contenders take turns.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;

use cuemq_benches::workload::Bodies;
use serde::Serialize;

use crate::contender::{Contender, Opener};
use crate::load::{Appended, Load, check_set, fetch_all, page_messages};
use crate::profile::Profile;
use crate::store::{Flush, Store, Writers};
use crate::{Failure, Result};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// Appends that do not wait for the disk.
    AppendBuffered,
    /// Appends that wait until they survive a power cut, one at a time.
    AppendDurable,
    /// The same by many writers of single messages; the batch is the number of writers.
    GroupCommit,
    /// Reading in order what was just written; the batch is the messages of a page.
    Fetch,
}

impl Path {
    /// A short name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AppendBuffered => "append buffered",
            Self::AppendDurable => "append durable",
            Self::GroupCommit => "group commit",
            Self::Fetch => "fetch",
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one figure belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    /// What is measured.
    pub path: Path,
    /// Bytes of each body.
    pub body_bytes: usize,
    /// Messages per append or page, or writers.
    pub batch: usize,
    /// Whose figure it is.
    pub contender: Contender,
}

/// What a run brought.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// Messages per second of each cell, in the order of the rounds.
    pub rates: BTreeMap<Cell, Vec<f64>>,
    /// Messages that were read back and checked.
    pub checked: u64,
}

impl Outcome {
    fn note(&mut self, cell: Cell, done: Appended) {
        self.rates.entry(cell).or_default().push(done.rate());
    }
}

/// Measures everything. Buffered appends come first, so that what they leave to the disk burdens no durable one.
///
/// # Errors
/// Whatever a store meets, and what a check finds, with the name of the contender.
pub fn run(profile: &Profile, opener: &mut Opener, mut progress: impl FnMut(&str)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let sizes: Vec<_> = profile.sizes.iter().map(|&size| (size, Bodies::new(size))).collect();
    for flush in [Flush::Buffered, Flush::Durable] {
        for round in 0..profile.rounds {
            progress(&format!("{flush:?} appends, round {} of {}", round + 1, profile.rounds));
            for (body_bytes, bodies) in &sizes {
                let mut round =
                    Round { profile, opener, outcome: &mut outcome, bodies, body_bytes: *body_bytes, round };
                round.appends(flush)?;
                if flush == Flush::Durable {
                    round.group_commits()?;
                }
            }
        }
    }
    Ok(outcome)
}

/// One round with bodies of one size.
struct Round<'a> {
    profile: &'a Profile,
    opener: &'a mut Opener,
    outcome: &'a mut Outcome,
    bodies: &'a Bodies,
    body_bytes: usize,
    round: usize,
}

impl Round<'_> {
    /// Everybody, each time with another one first.
    fn turns(&self) -> impl Iterator<Item = Contender> + use<> {
        Contender::ALL.into_iter().cycle().skip(self.round).take(Contender::ALL.len())
    }

    fn appends(&mut self, flush: Flush) -> Result<()> {
        for &batch in &self.profile.appends {
            for contender in self.turns().filter(|contender| contender.takes_part(flush)) {
                let named = |error: Failure| format!("{contender}, {flush:?}, batches of {batch}: {error}");
                self.append(contender, flush, batch).map_err(named)?;
            }
        }
        Ok(())
    }

    /// Writes a new store, reads it back, and notes both.
    fn append(&mut self, contender: Contender, flush: Flush, batch: usize) -> Result<()> {
        self.settle()?;
        let (profile, body_bytes) = (self.profile, self.body_bytes);
        let mut store = self.opener.open(contender, flush)?;
        let load = Load {
            bodies: self.bodies,
            first: 0,
            batch,
            time: profile.before,
            most: profile.most_bytes / body_bytes as u64,
            durable: flush == Flush::Durable,
        };
        let warm = store.append(&load)?.messages;
        let done = store.append(&Load { first: warm, time: profile.time, ..load })?;
        let (path, read) = match flush {
            Flush::Buffered => (Path::AppendBuffered, store),
            Flush::Durable => (Path::AppendDurable, store.reopen()?),
        };
        let fetched = self.read_back(read, warm + done.messages)?;
        self.outcome.note(Cell { path, body_bytes, batch, contender }, done);
        if flush == Flush::Buffered && batch == profile.fetch_after && contender != Contender::BrokerAlone {
            let cell = Cell { path: Path::Fetch, body_bytes, batch: page_messages(body_bytes), contender };
            self.outcome.note(cell, fetched);
        }
        Ok(())
    }

    fn read_back(&mut self, mut store: Box<dyn Store>, count: u64) -> Result<Appended> {
        let fetched = fetch_all(&mut *store, self.bodies, self.body_bytes, count)?;
        self.outcome.checked += fetched.messages;
        store.close()?;
        Ok(fetched)
    }

    fn group_commits(&mut self) -> Result<()> {
        for contender in self.turns().filter(|contender| contender.takes_part(Flush::Durable)) {
            let named = |error: Failure| format!("{contender}, group commit: {error}");
            self.group_commit(contender).map_err(named)?;
        }
        Ok(())
    }

    fn group_commit(&mut self, contender: Contender) -> Result<()> {
        self.settle()?;
        let (profile, body_bytes) = (self.profile, self.body_bytes);
        let writers = Writers { bodies: self.bodies, writers: profile.writers, rounds: profile.messages_per_writer };
        let mut store = self.opener.open(contender, Flush::Durable)?;
        let Some(done) = store.group_commit(&writers)? else { return store.close() };
        let mut store = store.reopen()?;
        check_set(&mut *store, &writers, body_bytes)?;
        store.close()?;
        self.outcome.checked += done.messages;
        let cell = Cell { path: Path::GroupCommit, body_bytes, batch: usize::try_from(profile.writers)?, contender };
        self.outcome.note(cell, done);
        Ok(())
    }

    /// Waits until the disk has everything that earlier stores left to it.
    fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(self.opener.place().directory())?)?)
    }
}
