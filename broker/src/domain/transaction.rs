//! Half messages: invisible until their producer decides, asked about when it does not.
//!
//! ```text
//!  begin ─▶ Open ──end(commit | rollback)──▶ Deciding ──stored──▶ Decided, remembered for a while
//!            │ ▲                                │
//!            │ └──────────not stored────────────┘
//!            └─ 6 s, then every 30 s: Check, 15 times at most ─▶ GiveUp (a rollback into an inspectable topic)
//! ```
//! The first decision stands: the same one again is no error, the opposite one is refused. Deciding is one batch of
//! the storage engine, so a half message is delivered or discarded once, whatever happens in between.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cuemq_storage_api::{GroupName, Timestamp};

/// Decisions remembered; beyond that the oldest are forgotten, and a late repetition is told that it is unknown.
pub(crate) const MAX_REMEMBERED_DECISIONS: usize = 100_000;
/// How long a decision is remembered.
pub(crate) const DECISION_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Names one transaction for ever; rises in the order of beginning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionId(pub u64);

/// What becomes of a half message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Decision {
    /// It is delivered.
    Commit,
    /// It is discarded.
    Rollback,
}

/// When undecided transactions are checked, and how many there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TransactionSettings {
    /// From the beginning to the first check. RocketMQ: 6 s.
    pub(crate) first_check_after: Duration,
    /// From one check to the next. RocketMQ: 30 s.
    pub(crate) check_interval: Duration,
    /// Checks before the transaction is given up. RocketMQ: 15.
    pub(crate) max_checks: u32,
    /// Most transactions without a stored decision.
    pub(crate) max_open: usize,
}

/// What has to be done. Everything that changes a row is one batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum TransactionEffect {
    /// Store the decision: append the message to its queue when it is a commit, delete the half message, put the
    /// outcome. Then call [`Transactions::decided`], or [`Transactions::not_decided`] if it surely did not happen.
    Finish { transaction: TransactionId, decision: Decision },
    /// Nobody decided: as `Finish` with a rollback, but append the message to the topic for inspection.
    GiveUp { transaction: TransactionId },
    /// Ask a member of the producer group, and store how often and when next, so that a restart goes on from there.
    Check { transaction: TransactionId, group: GroupName, attempt: u32, next_check_at: Timestamp },
    /// Delete the outcome's row: it was remembered long enough.
    Forget { transaction: TransactionId },
}

/// How an end of a transaction was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// The decision is being stored because of this call; answer when it is.
    Started,
    /// The same decision is being stored because of an earlier call; answer when it is.
    UnderWay,
    /// The same decision was stored before.
    Already,
}

/// An end of a transaction that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndRefused {
    /// The opposite was decided first.
    Conflict { first: Decision },
    /// No such transaction, or it was decided so long ago that the decision is forgotten.
    Unknown,
}

/// The broker has its most undecided transactions already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooManyOpen {
    /// The limit.
    pub(crate) limit: usize,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Half {
    group: GroupName,
    checks: u32,
    next_check_at: Timestamp,
    deciding: Option<Decision>,
}

/// All transactions of a broker that are open or were decided lately.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Transactions {
    settings: TransactionSettings,
    halves: HashMap<TransactionId, Half>,
    /// Open transactions by the time of their next check; those being decided are not in here.
    checks: BTreeSet<(Timestamp, TransactionId)>,
    outcomes: HashMap<TransactionId, (Decision, Timestamp)>,
    /// Outcomes by age.
    outcome_ages: BTreeSet<(Timestamp, TransactionId)>,
}

impl Transactions {
    /// No transaction yet; the rows found in storage follow by [`restore_half`](Self::restore_half) and
    /// [`restore_outcome`](Self::restore_outcome).
    #[must_use]
    pub(crate) fn new(settings: TransactionSettings) -> Self {
        Self {
            settings,
            halves: HashMap::new(),
            checks: BTreeSet::new(),
            outcomes: HashMap::new(),
            outcome_ages: BTreeSet::new(),
        }
    }

    /// Takes in a half message found in storage. The limit on open ones does not count here: none is lost.
    pub(crate) fn restore_half(
        &mut self,
        transaction: TransactionId,
        group: GroupName,
        checks: u32,
        next_check_at: Timestamp,
    ) {
        self.checks.insert((next_check_at, transaction));
        self.halves.insert(transaction, Half { group, checks, next_check_at, deciding: None });
    }

    /// Takes in an outcome found in storage; [`tick`](Self::tick) forgets it when it is old.
    pub(crate) fn restore_outcome(&mut self, transaction: TransactionId, decision: Decision, at: Timestamp) {
        self.outcomes.insert(transaction, (decision, at));
        self.outcome_ages.insert((at, transaction));
    }

    /// Makes room for a half message that the caller stores now, and says when it is checked first. If it surely is
    /// not stored, the caller takes it back by [`abandon`](Self::abandon).
    ///
    /// # Errors
    /// When too many are open; nothing has changed then.
    pub(crate) fn begin(
        &mut self,
        transaction: TransactionId,
        group: GroupName,
        now: Timestamp,
    ) -> Result<Timestamp, TooManyOpen> {
        if self.halves.len() >= self.settings.max_open {
            return Err(TooManyOpen { limit: self.settings.max_open });
        }
        let next_check_at = now.plus(self.settings.first_check_after);
        self.restore_half(transaction, group, 0, next_check_at);
        Ok(next_check_at)
    }

    /// Forgets a half message that was not stored.
    pub(crate) fn abandon(&mut self, transaction: TransactionId) {
        if let Some(half) = self.halves.remove(&transaction) {
            self.checks.remove(&(half.next_check_at, transaction));
        }
    }

    /// Takes the producer's decision. An answer `unknown` is none: nothing is called, the next check comes in its time.
    ///
    /// # Errors
    /// When the opposite was decided first, or the transaction is not known; nothing has changed then.
    pub(crate) fn end(
        &mut self,
        transaction: TransactionId,
        decision: Decision,
        out: &mut Vec<TransactionEffect>,
    ) -> Result<Ending, EndRefused> {
        if let Some(half) = self.halves.get_mut(&transaction) {
            match half.deciding {
                Some(first) => same(first, decision, Ending::UnderWay),
                None => {
                    half.deciding = Some(decision);
                    self.checks.remove(&(half.next_check_at, transaction));
                    out.push(TransactionEffect::Finish { transaction, decision });
                    Ok(Ending::Started)
                }
            }
        } else {
            match self.outcomes.get(&transaction) {
                Some((first, _)) => same(*first, decision, Ending::Already),
                None => Err(EndRefused::Unknown),
            }
        }
    }

    /// Notes that the decision is stored, at the time that stands in its row.
    pub(crate) fn decided(&mut self, transaction: TransactionId, now: Timestamp, out: &mut Vec<TransactionEffect>) {
        if let Some(Half { deciding: Some(decision), .. }) = self.halves.get(&transaction) {
            let decision = *decision;
            self.halves.remove(&transaction);
            self.restore_outcome(transaction, decision, now);
            while self.outcomes.len() > MAX_REMEMBERED_DECISIONS {
                self.forget_oldest(out);
            }
        }
    }

    /// Opens a transaction again whose decision surely was not stored.
    pub(crate) fn not_decided(&mut self, transaction: TransactionId) {
        if let Some(half) = self.halves.get_mut(&transaction)
            && half.deciding.take().is_some()
        {
            self.checks.insert((half.next_check_at, transaction));
        }
    }

    /// Checks the transactions whose time has come, gives up those checked often enough, forgets old outcomes; at
    /// most `limit` effects. After a long downtime a transaction is checked once, not once for every missed interval.
    pub(crate) fn tick(&mut self, now: Timestamp, limit: usize, out: &mut Vec<TransactionEffect>) {
        let most = out.len().saturating_add(limit);
        while out.len() < most
            && let Some((at, transaction)) = self.checks.first().copied()
            && at <= now
        {
            self.checks.pop_first();
            self.check(transaction, now, out);
        }
        while out.len() < most && self.next_forgetting().is_some_and(|at| at <= now) {
            self.forget_oldest(out);
        }
    }

    /// Whether nothing is decided about it.
    #[must_use]
    pub(crate) fn is_open(&self, transaction: TransactionId) -> bool {
        self.halves.get(&transaction).is_some_and(|half| half.deciding.is_none())
    }

    /// When [`tick`](Self::tick) has something to do next.
    #[must_use]
    pub(crate) fn next_wakeup(&self) -> Option<Timestamp> {
        let check = self.checks.first().map(|(at, _)| *at);
        check.into_iter().chain(self.next_forgetting()).min()
    }

    /// How many transactions have no stored decision.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn open(&self) -> usize {
        self.halves.len()
    }

    fn check(&mut self, transaction: TransactionId, now: Timestamp, out: &mut Vec<TransactionEffect>) {
        let Some(half) = self.halves.get_mut(&transaction) else { return };
        half.next_check_at = now.plus(self.settings.check_interval);
        if half.checks >= self.settings.max_checks {
            // If this cannot be stored, it is tried again at the next check's time and not in a busy loop.
            half.deciding = Some(Decision::Rollback);
            out.push(TransactionEffect::GiveUp { transaction });
            return;
        }
        half.checks += 1;
        let (group, attempt, next_check_at) = (half.group.clone(), half.checks, half.next_check_at);
        self.checks.insert((next_check_at, transaction));
        out.push(TransactionEffect::Check { transaction, group, attempt, next_check_at });
    }

    fn next_forgetting(&self) -> Option<Timestamp> {
        self.outcome_ages.first().map(|(at, _)| at.plus(DECISION_MEMORY))
    }

    fn forget_oldest(&mut self, out: &mut Vec<TransactionEffect>) {
        if let Some((_, transaction)) = self.outcome_ages.pop_first() {
            self.outcomes.remove(&transaction);
            out.push(TransactionEffect::Forget { transaction });
        }
    }
}

fn same(first: Decision, decision: Decision, ending: Ending) -> Result<Ending, EndRefused> {
    if first == decision { Ok(ending) } else { Err(EndRefused::Conflict { first }) }
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
