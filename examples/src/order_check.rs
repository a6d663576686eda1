//! Checks while consuming that the events of each key come in the order in which they were sent.

use std::collections::HashMap;

/// Most keys that are watched; events of further keys are counted but their order is not looked at.
pub const MAX_KEYS: usize = 1_000_000;

/// What one event is to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It comes behind the last one of its key.
    New,
    /// It is the last one of its key once more: a redelivery.
    Again,
    /// It comes behind a later one of its key.
    OutOfOrder,
    /// There is no room to remember its key.
    Unwatched,
}

/// Remembers the last event of each key.
#[derive(Clone, Debug, Default)]
pub struct OrderCheck<P> {
    last: HashMap<String, P>,
}

impl<P: Ord + Copy> OrderCheck<P> {
    /// Judges an event by its key and its place in the order of the sends.
    pub fn judge(&mut self, key: &str, place: P) -> Verdict {
        let full = self.last.len() >= MAX_KEYS;
        match self.last.get_mut(key) {
            Some(last) if place > *last => {
                *last = place;
                Verdict::New
            }
            Some(last) if place == *last => Verdict::Again,
            Some(_) => Verdict::OutOfOrder,
            None if full => Verdict::Unwatched,
            None => {
                self.last.insert(key.to_owned(), place);
                Verdict::New
            }
        }
    }

    /// How many keys were seen.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.last.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overtaken_event_is_noticed() {
        let mut check = OrderCheck::default();
        assert_eq!(check.judge("a", (0, 5)), Verdict::New);
        assert_eq!(check.judge("b", (0, 3)), Verdict::New);
        assert_eq!(check.judge("a", (0, 5)), Verdict::Again);
        assert_eq!(check.judge("a", (1, 0)), Verdict::New);
        assert_eq!(check.judge("a", (0, 6)), Verdict::OutOfOrder);
        assert_eq!(check.keys(), 2);
    }
}
