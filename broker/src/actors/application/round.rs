//! A round before its write: its transactions, and what the groups say to their acknowledgements.

use std::collections::BTreeMap;
use std::sync::Arc;

use cuemq_storage_api::{GroupName, WriteBatch};

use super::rooms::Rooms;
use super::{ApplicationActor, Stage, Submission};
use crate::actors::group::{Claim, ClaimRefused, GroupHandle, Prepared, Release};
use crate::error::{Error, ErrorKind, Result};

/// What one group is asked for.
type Request = (Arc<GroupHandle>, Vec<Claim>);

pub(super) struct Preparing {
    submissions: Vec<Submission>,
    /// For each transaction where its claims are.
    places: Vec<Vec<Place>>,
    answers: Vec<Option<Result<Prepared>>>,
    rooms: Rooms,
}

/// One claim: which group's, and which of it.
#[derive(Clone, Copy)]
struct Place {
    part: usize,
    claim: usize,
}

impl Preparing {
    /// Sorts the claims of transactions by group. For what they send to limited queues there are these rooms.
    pub(super) fn new(submissions: Vec<Submission>, rooms: Rooms) -> (Self, Vec<Request>) {
        let mut requests: Vec<Request> = Vec::new();
        let mut part_of: BTreeMap<GroupName, usize> = BTreeMap::new();
        let mut places = Vec::with_capacity(submissions.len());
        for submission in &submissions {
            let mut place = |pledged: &crate::consumer::Pledged| {
                let (group, claim) = pledged.claim();
                let part = *part_of.entry(group.name().clone()).or_insert_with(|| {
                    requests.push((group, Vec::new()));
                    requests.len() - 1
                });
                requests[part].1.push(claim);
                Place { part, claim: requests[part].1.len() - 1 }
            };
            places.push(submission.pledges.iter().map(&mut place).collect());
        }
        let answers = requests.iter().map(|_| None).collect();
        (Self { submissions, places, answers, rooms }, requests)
    }

    /// Takes in a group's answer; true when it was the last.
    fn answered(&mut self, part: usize, answer: Result<Prepared>) -> bool {
        self.answers[part] = Some(answer);
        self.answers.iter().all(Option::is_some)
    }

    /// The transactions, to begin anew. What the groups hold is let go.
    pub(super) fn into_submissions(self) -> Vec<Submission> {
        self.submissions
    }

    /// The transactions, their claims and their rooms.
    pub(super) fn into_parts(self) -> (Vec<Submission>, Claims, Rooms) {
        let answers = self.answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect();
        (self.submissions, Claims { places: self.places, answers }, self.rooms)
    }
}

impl ApplicationActor {
    /// A group has answered. If it was the last, the round is decided.
    pub(super) fn prepared(&mut self, round: u64, part: usize, answer: Result<Prepared>) {
        // An answer to an earlier round is dropped, and lets its group go on.
        if round == self.round
            && let Stage::Preparing(preparing) = &mut self.stage
            && preparing.answered(part, answer)
        {
            self.decide();
        }
    }
}

/// What the groups have answered.
pub(super) struct Claims {
    places: Vec<Vec<Place>>,
    answers: Vec<Result<Prepared>>,
}

impl Claims {
    /// Whether every claim of a transaction is good, those of the ones before it in the round carried out.
    pub(super) fn check(&self, transaction: usize) -> std::result::Result<(), Refused> {
        for (number, place) in self.places[transaction].iter().enumerate() {
            match &self.answers[place.part] {
                Ok(prepared) => prepared.check(place.claim).map_err(|why| Refused { number, why })?,
                Err(error) => {
                    let why = ClaimRefused::Refused(Error::new(error.kind(), error.to_string()));
                    return Err(Refused { number, why });
                }
            }
        }
        Ok(())
    }

    /// Carries the claims of a transaction out, in the rows that the groups have handed over.
    pub(super) fn carry_out(&mut self, transaction: usize) {
        for place in &self.places[transaction] {
            if let Ok(prepared) = &mut self.answers[place.part] {
                prepared.carry_out(place.claim);
            }
        }
    }

    /// Adds the changed rows to a batch; what is to be told to the groups once it is applied.
    pub(super) fn finish(self, batch: &mut WriteBatch) -> Vec<Release> {
        self.answers.into_iter().flatten().map(|prepared| prepared.finish(batch)).collect()
    }
}

/// A claim of a transaction that is not good: which of them, and why.
pub(super) struct Refused {
    pub(super) number: usize,
    pub(super) why: ClaimRefused,
}

fn unanswered() -> Error {
    Error::new(ErrorKind::NotStored, "nothing of the transaction was done: a group did not answer; run it again")
}
