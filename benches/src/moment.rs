//! When a run began, by the clock of the file system that keeps its results.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Result;

const SECONDS_PER_DAY: u64 = 24 * 3600;

/// Leaves a file in a directory, which is made if need be. Its age tells results of this run from those of earlier
/// ones.
///
/// # Errors
/// When it cannot be written.
pub fn mark_start(directory: &Path) -> Result<SystemTime> {
    fs::create_dir_all(directory)?;
    let marker = directory.join("started");
    fs::write(&marker, b"")?;
    Ok(fs::metadata(&marker)?.modified()?)
}

/// A moment as a reader knows it: `2026-11-25 20:40:05 UTC`. Moments before 1970 are shown as its beginning.
#[must_use]
pub fn text(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970. Years are counted from March on, so that a leap day is the last of its
/// year; 400 years, an era, always have as many days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since March of the year 0
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_shown_by_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(text(UNIX_EPOCH + Duration::from_secs(seconds)), shown);
        }
    }
}
