//! Numbers that rise for ever, across restarts, without a write for each.

/// How many numbers one durable reservation covers; as many are skipped at most by a restart.
pub const RESERVATION: u64 = 4096;

/// A rising number and, now and then, what has to be written before it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    /// The number, never given before.
    pub(crate) number: u64,
    /// When present, this bound has to be stored in the batch that first uses the number, and no later number may be
    /// used in another batch before that one is applied: all numbers below the bound count as given.
    pub(crate) reserve: Option<u64>,
}

/// Gives numbers below a durable bound and moves the bound when they run out. Starting at the bound after a restart
/// skips numbers but gives none twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Sequence {
    next: u64,
    reserved: u64,
}

impl Sequence {
    /// Goes on from the bound found in storage; 0 when there is none.
    #[must_use]
    pub(crate) fn starting_at(reserved: u64) -> Self {
        Self { next: reserved, reserved }
    }

    /// The next number. At a million a second they last for half a million years.
    pub(crate) fn take(&mut self) -> Taken {
        let number = self.next;
        self.next += 1;
        let reserve = (number >= self.reserved).then(|| number + RESERVATION);
        if let Some(bound) = reserve {
            self.reserved = bound;
        }
        Taken { number, reserve }
    }

    /// Makes the next number come with a reservation again, after the write that carried the last one did not happen.
    pub(crate) fn reservation_failed(&mut self) {
        self.reserved = self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_a_restart_gives_none_twice() {
        let (mut durable, mut last) = (0, None);
        for lives in [1u64, RESERVATION, RESERVATION + 1, 3] {
            let mut sequence = Sequence::starting_at(durable);
            for use_number in 0..lives {
                let taken = sequence.take();
                assert!(last.is_none_or(|last| taken.number > last), "{taken:?} after {last:?}");
                assert_eq!(taken.reserve.is_some(), use_number % RESERVATION == 0);
                durable = taken.reserve.unwrap_or(durable);
                assert!(durable > taken.number, "what is used is below the durable bound");
                last = Some(taken.number);
            }
        }
    }

    #[test]
    fn a_reservation_that_was_not_written_is_asked_for_again() {
        let mut sequence = Sequence::starting_at(7);
        assert_eq!(sequence.take(), Taken { number: 7, reserve: Some(7 + RESERVATION) });
        sequence.reservation_failed();
        assert_eq!(sequence.take(), Taken { number: 8, reserve: Some(8 + RESERVATION) });
        assert_eq!(sequence.take(), Taken { number: 9, reserve: None });
    }
}
