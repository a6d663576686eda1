//! Whether an actor that has run dry goes to sleep or stays awake for a moment. Falling asleep and being woken takes two
//! threads tens of microseconds, so that who sends one message after the other, or has few under way, would wait for little
//! else. Awake means that its thread goes round: other actors of the thread have their turns, and other threads the core.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Turns in which an actor finds nothing before it sleeps: some 200 us where nobody else wants the core.
/// Measured beside 0, 16 and 64 in turns: twice as many messages from a sender that awaits each receipt, a tenth to a fifth
/// more from durable senders, no difference for batches.
const LINGERING_TURNS: u32 = 128;
/// On a busy machine a turn that was left to others may take milliseconds to come back: then it was the last one.
const LINGERING_AT_MOST: Duration = Duration::from_millis(1);

/// After each time in vain twice as many bursts pass before the actor lingers again, up to this many: messages that come further
/// apart than it would look for cost next to nothing.
const MOST_BURSTS_PASSED: u32 = 64;

thread_local! {
    /// Whether an actor of this thread lingers. One of them keeps the thread awake for all; a thousand queues that have a
    /// message each would only be in each other's way.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// One actor's.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// Whether the broker's settings have it linger at all.
    wanted: bool,
    /// Since when it has found nothing, and for how many turns, while it is the one that lingers.
    since: Option<(Instant, u32)>,
    /// How many bursts it let pass when it had lingered in vain last, and how many of them are still to pass.
    passed: u32,
    to_pass: u32,
}

impl Lingering {
    pub(super) fn new(wanted: bool) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Whether the actor takes one more turn, after one in which it has found something to do or nothing.
    pub(super) fn goes_on(&mut self, found: bool, now: Instant) -> bool {
        let (since, turns) = match self.since.take() {
            Some(_) if found => {
                self.passed = 0;
                (now, 1)
            }
            Some((since, turns)) => (since, turns + 1),
            None if !self.wanted || !found || self.has_to_pass() || TAKEN.replace(true) => return false,
            None => (now, 1),
        };
        // Kept till its end, which gives the place free.
        self.since = Some((since, turns));
        let goes_on = turns <= LINGERING_TURNS && now - since < LINGERING_AT_MOST;
        if !goes_on {
            self.end();
            self.passed = (2 * self.passed).clamp(1, MOST_BURSTS_PASSED);
            self.to_pass = self.passed;
        }
        goes_on
    }

    /// Whether it lets this burst pass, because it lingered in vain of late.
    fn has_to_pass(&mut self) -> bool {
        let passes = self.to_pass > 0;
        self.to_pass = self.to_pass.saturating_sub(1);
        passes
    }

    /// Leaves it to another actor of the thread.
    pub(super) fn end(&mut self) {
        if self.since.take().is_some() {
            // The thread may be ending; then there is nobody left to linger.
            let _ = TAKEN.try_with(|taken| taken.set(false));
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "some moment to count from")]
mod tests {
    use super::*;

    /// Turns it takes in which it finds nothing, each so long after the one before.
    fn turns(lingering: &mut Lingering, begun: Instant, each: Duration) -> u32 {
        (1..).find(|turn| !lingering.goes_on(false, begun + each * *turn)).unwrap_or(0)
    }

    #[test]
    fn it_lasts_so_many_turns_and_begins_anew_with_each_find() {
        let (mut lingering, now) = (Lingering::new(true), Instant::now());
        assert!(!lingering.goes_on(false, now), "nobody was there yet");
        for _ in 0..3 {
            assert!(lingering.goes_on(true, now));
            assert!(lingering.goes_on(false, now));
        }
        assert!(lingering.goes_on(true, now));
        assert_eq!(turns(&mut lingering, now, Duration::ZERO), LINGERING_TURNS);
        assert!(!lingering.goes_on(false, now), "it sleeps");
    }

    #[test]
    fn a_turn_that_comes_back_late_is_the_last_one() {
        let (mut lingering, now) = (Lingering::new(true), Instant::now());
        assert!(lingering.goes_on(true, now));
        assert_eq!(turns(&mut lingering, now, LINGERING_AT_MOST), 1);
    }

    /// How many bursts pass until it lingers, the one for which it does included.
    fn bursts(lingering: &mut Lingering, now: Instant) -> u32 {
        (1..).find(|_| lingering.goes_on(true, now)).unwrap_or(0)
    }

    #[test]
    fn what_is_in_vain_is_tried_less_and_less_and_what_is_not_always() {
        let (mut lingering, now) = (Lingering::new(true), Instant::now());
        for expected in [1, 2, 3, 5, 9, 17, 33, 65, 65] {
            assert_eq!(bursts(&mut lingering, now), expected);
            turns(&mut lingering, now, Duration::ZERO);
        }
        assert_eq!(bursts(&mut lingering, now), 65);
        assert!(lingering.goes_on(true, now), "this time something came");
        turns(&mut lingering, now, Duration::ZERO);
        assert_eq!(bursts(&mut lingering, now), 2, "all is forgotten");
    }

    #[test]
    fn one_actor_of_a_thread_lingers_at_a_time() {
        let (mut one, mut other, now) = (Lingering::new(true), Lingering::new(true), Instant::now());
        assert!(one.goes_on(true, now));
        assert!(!other.goes_on(true, now));
        std::thread::scope(|scope| {
            let elsewhere = scope.spawn(move || Lingering::new(true).goes_on(true, now));
            assert!(elsewhere.join().unwrap(), "another thread has its own");
        });
        drop(one);
        assert!(other.goes_on(true, now));
        other.end();
        assert!(Lingering::new(true).goes_on(true, now));
    }

    #[test]
    fn who_shall_not_linger_does_not_and_is_in_nobodys_way() {
        let (mut lingering, now) = (Lingering::new(false), Instant::now());
        assert!(!lingering.goes_on(true, now));
        assert!(Lingering::new(true).goes_on(true, now));
    }
}
