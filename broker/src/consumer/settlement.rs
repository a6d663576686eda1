//! What a handler answers.

use std::fmt;
use std::time::Duration;

/// What shall become of a message, as its handler sees it. A handler that knows only done and failed returns a
/// `Result`, which is turned into one.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Settlement {
    /// It is done.
    Done,
    /// It failed: it comes again after the pause of the group's retry policy, and after the last redelivery it is a
    /// dead letter. With a word on what went wrong.
    Failed(String),
    /// It failed, and comes again after this pause instead.
    RetryIn(Duration, String),
    /// It will never succeed: it is a dead letter at once. With a word on why.
    Rejected(String),
}

impl<E: fmt::Display> From<Result<(), E>> for Settlement {
    fn from(result: Result<(), E>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_answers() {
        assert_eq!(Settlement::from(Ok::<(), String>(())), Settlement::Done);
        assert_eq!(Settlement::from(Err::<(), _>("no")), Settlement::Failed("no".to_owned()));
    }
}
