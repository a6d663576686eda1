//! Broker time: as steady as the monotonic clock, and on its way to the wall clock.
//!
//! ```text
//!  wall clock          ─────┐ step                          ┌──────
//!  broker time   ───────────────▁▁▁▁ runs 5 % faster or slower, until it has caught up
//! ```
//! A wall clock that is set forward or back moves nothing at once: broker time goes on without a gap and never falls,
//! only faster or slower by a twentieth. So nothing fires early by more than that, and nothing stalls.

use std::time::Duration;

use cuemq_storage_api::Timestamp;

/// Broker time gains or loses one part in so many on the way to the wall clock.
const SLEW_PART: i64 = 20;
/// A difference that is not worth a correction: readings are not more exact, in microseconds.
const TOLERANCE_US: i64 = 2_000;
/// A move of the wall clock between two looks beyond this is a step: logged and counted. In microseconds.
const STEP_US: i64 = 5_000_000;

/// How broker time runs from one look at the wall clock to the next. All values are microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slew {
    /// The last look, by the monotonic clock.
    monotonic: i64,
    /// The wall clock then.
    wall: i64,
    /// Broker time then.
    time: i64,
    /// What broker time has to gain, or to lose if it is negative.
    correction: i64,
}

/// What a look at the wall clock found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// By how much the wall clock was set forward, in milliseconds; back if negative.
    pub(crate) by_ms: i64,
}

impl Slew {
    /// Broker time begins as the wall clock says, in microseconds since 1970.
    pub(crate) fn new(monotonic: Duration, wall: i64) -> Self {
        Self { monotonic: micros(monotonic), wall, time: wall, correction: 0 }
    }

    /// The broker time at a monotonic time. Rises with it.
    pub(crate) fn time(&self, monotonic: Duration) -> Timestamp {
        Timestamp::from_millis(self.at(micros(monotonic)).div_euclid(1000))
    }

    fn at(&self, monotonic: i64) -> i64 {
        let elapsed = monotonic.saturating_sub(self.monotonic).max(0);
        let most = elapsed / SLEW_PART;
        self.time.saturating_add(elapsed).saturating_add(self.correction.clamp(-most, most))
    }

    /// Takes a look at the wall clock: broker time is on its way there from now on. Tells of a step.
    pub(crate) fn look(&mut self, monotonic: Duration, wall: i64) -> Option<Step> {
        let monotonic = micros(monotonic);
        let passed = monotonic.saturating_sub(self.monotonic);
        let by = wall.saturating_sub(self.wall).saturating_sub(passed);
        let time = self.at(monotonic);
        let correction = wall.saturating_sub(time);
        let correction = if correction.saturating_abs() <= TOLERANCE_US { 0 } else { correction };
        *self = Self { monotonic, wall, time, correction };
        (by.saturating_abs() > STEP_US).then_some(Step { by_ms: by / 1000 })
    }

    /// How far broker time is behind the wall clock, in milliseconds; ahead if negative. As of the last look.
    pub(crate) fn behind_ms(&self) -> i64 {
        self.correction / 1000
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: i64 = 1_000_000;
    const HOUR: i64 = 3600 * S;
    const TEN_YEARS: i64 = 3653 * 24 * HOUR;
    const START: i64 = 1_700_000_000 * S;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    /// Looks once a second from 1 s on; the wall clock is set by `step` at the second look.
    fn after_step(step: i64, looks: u64) -> (Slew, Vec<Step>) {
        let mut slew = Slew::new(Duration::ZERO, START);
        let mut steps = Vec::new();
        for look in 1..=looks {
            let set = if look >= 2 { step } else { 0 };
            steps.extend(slew.look(seconds(look), START + i64::try_from(look).unwrap() * S + set));
        }
        (slew, steps)
    }

    #[test]
    fn steps_of_the_wall_clock() {
        // The step, whether it is one, and what broker time has gained 100 s after it.
        let cases = [
            (0, false, 0),
            (1_000, false, 0),
            (4 * S, false, 4 * S),
            (-4 * S, false, -4 * S),
            (6 * S, true, 5 * S),
            (-6 * S, true, -5 * S),
            (HOUR, true, 5 * S),
            (-HOUR, true, -5 * S),
            (TEN_YEARS, true, 5 * S),
            (-TEN_YEARS, true, -5 * S),
        ];
        for (step, is_step, gained) in cases {
            let (slew, steps) = after_step(step, 102);
            assert_eq!(steps, if is_step { vec![Step { by_ms: step / 1000 }] } else { vec![] }, "{step}");
            assert_eq!(slew.at(102 * S), START + 102 * S + gained, "{step}");
        }
    }

    #[test]
    fn it_arrives_and_stays() {
        let (slew, steps) = after_step(HOUR, 20 * 3600 + 10);
        assert_eq!((steps.len(), slew.behind_ms()), (1, 0), "after twenty hours");
        let (there, _) = after_step(-HOUR, 21 * 3600);
        assert_eq!(there.at(21 * HOUR), START + 21 * HOUR - HOUR);
    }

    #[test]
    fn wild_readings_break_nothing() {
        let mut slew = Slew::new(Duration::ZERO, i64::MIN);
        slew.look(seconds(1), i64::MAX);
        slew.look(Duration::MAX, i64::MIN);
        slew.look(seconds(1), 0);
        let _ = slew.time(Duration::MAX);
    }

    proptest! {
        #[test]
        fn it_never_falls_and_is_never_off_by_more_than_a_twentieth(
            looks in prop::collection::vec((0u64..10_000_000, -TEN_YEARS..TEN_YEARS), 1..50),
        ) {
            let mut slew = Slew::new(Duration::ZERO, START);
            let (mut monotonic, mut wall) = (0u64, START);
            for (passed, step) in looks {
                let from = slew.at(i64::try_from(monotonic).unwrap());
                let half = slew.at(i64::try_from(monotonic + passed / 2).unwrap());
                monotonic += passed;
                wall += i64::try_from(passed).unwrap() + step;
                let to = slew.at(i64::try_from(monotonic).unwrap());
                prop_assert!(from <= half && half <= to);
                let passed = i64::try_from(passed).unwrap();
                prop_assert!((to - from - passed).abs() <= passed / SLEW_PART);
                slew.look(Duration::from_micros(monotonic), wall);
                prop_assert_eq!(slew.at(i64::try_from(monotonic).unwrap()), to, "a look moves nothing");
            }
        }
    }
}
