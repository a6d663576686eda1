//! Where a crash image gets its choices from.

use std::fmt::Debug;

/// A source of choices: which version of a sector a crash leaves behind, which rename is lost.
pub trait Choices: Debug {
    /// One of `0..bound`: 0 is the oldest state (all lost), `bound - 1` the newest (all kept). `bound` is at least 1.
    fn pick(&mut self, bound: usize) -> usize;
}

/// Nothing survives that was not synced.
#[derive(Clone, Copy, Debug)]
pub struct NothingUnsynced;

impl Choices for NothingUnsynced {
    fn pick(&mut self, _bound: usize) -> usize {
        0
    }
}

/// Everything written survives: a process that was killed on a machine that lives on.
#[derive(Clone, Copy, Debug)]
pub struct EverythingWritten;

impl Choices for EverythingWritten {
    fn pick(&mut self, bound: usize) -> usize {
        bound - 1
    }
}

/// Choices that follow from a seed alone (SplitMix64), so that a failure can be repeated.
#[derive(Clone, Debug)]
pub struct SeededChoices {
    state: u64,
}

impl SeededChoices {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number of the sequence.
    pub fn next_number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Choices for SeededChoices {
    fn pick(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_number() % bound as u64).expect("less than bound, which is a usize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_reaches_every_choice() {
        let picked = |seed| {
            let mut choices = SeededChoices::new(seed);
            (0..200).map(|_| choices.pick(5)).collect::<Vec<_>>()
        };
        assert_eq!(picked(1), picked(1));
        assert_ne!(picked(1), picked(2));
        assert!((0..5).all(|choice| picked(1).contains(&choice)));
        assert_eq!(SeededChoices::new(1_234_567).next_number(), 6_457_827_717_110_365_317, "SplitMix64 as published");
    }
}
