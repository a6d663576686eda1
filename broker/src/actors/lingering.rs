//! Whether an actor that has run dry goes to sleep or stays awake for a moment. Falling asleep and being woken takes two
//! threads tens of microseconds, so that who sends one message after the other, or has few under way, would wait for little
//! else. Awake means that its thread goes round: other actors of the thread have their turns, and other threads the core.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Turns in which an actor finds nothing before it sleeps: some tens of microseconds where nobody else wants the core.
/// Measured beside 0, 16 and 64 in turns: twice as many messages from a sender that awaits each receipt, a tenth to a fifth
/// more from durable senders, no difference for batches.
const LINGERING_TURNS: u32 = 128;
/// On a busy machine a turn that was left to others may take milliseconds to come back: then it was the last one.
const LINGERING_AT_MOST: Duration = Duration::from_millis(1);

thread_local! {
    /// Whether an actor of this thread lingers. One of them keeps the thread awake for all; a thousand queues that have a
    /// message each would only be in each other's way.
    static TAKEN: Cell<bool> = const { Cell::new(false) };
}

/// One actor's.
#[derive(Debug, Default)]
pub(super) struct Lingering {
    /// Since when it has found nothing, and for how many turns, while it is the one that lingers.
    since: Option<(Instant, u32)>,
}

impl Lingering {
    /// Whether the actor takes one more turn, after one in which it has found something to do or nothing.
    pub(super) fn goes_on(&mut self, found: bool, now: Instant) -> bool {
        self.since = match self.since.take() {
            Some(_) if found => Some((now, 1)),
            Some((since, turns)) => Some((since, turns + 1)),
            None if found && !TAKEN.replace(true) => Some((now, 1)),
            None => return false,
        };
        let goes_on =
            self.since.is_some_and(|(since, turns)| turns <= LINGERING_TURNS && now - since < LINGERING_AT_MOST);
        if !goes_on {
            self.end();
        }
        goes_on
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
        let (mut lingering, now) = (Lingering::default(), Instant::now());
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
        let (mut lingering, now) = (Lingering::default(), Instant::now());
        assert!(lingering.goes_on(true, now));
        assert_eq!(turns(&mut lingering, now, LINGERING_AT_MOST), 1);
        assert!(lingering.goes_on(true, now + LINGERING_AT_MOST * 2), "the next find is a new beginning");
    }

    #[test]
    fn one_actor_of_a_thread_lingers_at_a_time() {
        let (mut one, mut other, now) = (Lingering::default(), Lingering::default(), Instant::now());
        assert!(one.goes_on(true, now));
        assert!(!other.goes_on(true, now));
        std::thread::scope(|scope| {
            let elsewhere = scope.spawn(move || Lingering::default().goes_on(true, now));
            assert!(elsewhere.join().unwrap(), "another thread has its own");
        });
        drop(one);
        assert!(other.goes_on(true, now));
        other.end();
        assert!(Lingering::default().goes_on(true, now));
    }
}
