//! How much of the cores others used while something was measured: beside busy neighbours no figure is worth quoting.

use crate::stopwatch::{Stopwatch, processor_time};

/// The kernel counts processor time in hundredths of a second, whatever its own tick is.
const COUNTS_PER_SECOND: f64 = 100.0;
/// Of `/proc/self/stat`, counted from 1; the next one is what they spent in the system.
const CHILDREN_USER_FIELD: usize = 16;
/// Shares above this are worth a warning.
pub const NOISY_SHARE: f64 = 0.1;

/// What was used when it began.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    watch: Stopwatch,
    all: Option<f64>,
    own: f64,
}

impl Neighbours {
    /// Begins to watch.
    #[must_use]
    pub fn watch() -> Self {
        Self { watch: Stopwatch::start(), all: used_by_all(), own: used_by_ours() }
    }

    /// The share of the cores' time since then that was used outside of this process and of its children that have ended,
    /// by the kernel's own threads too; `None` when the system does not tell.
    #[must_use]
    pub fn share(&self, cores: usize) -> Option<f64> {
        let all = used_by_all()? - self.all?;
        let own = used_by_ours() - self.own;
        #[expect(clippy::cast_precision_loss, reason = "a few cores")]
        let there_was = self.watch.elapsed().as_secs_f64() * cores as f64;
        Some(((all - own) / there_was).clamp(0.0, 1.0))
    }
}

/// Seconds of processor time of this process and of its children that have ended: some targets measure processes.
fn used_by_ours() -> f64 {
    let children = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| used_by_children(&stat));
    processor_time().as_secs_f64() + children.unwrap_or(0.0)
}

fn used_by_children(stat: &str) -> Option<f64> {
    // The name of the program stands in brackets and may hold anything; the third field is the first one behind it.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let (user, system) = (fields.nth(CHILDREN_USER_FIELD - 3)?, fields.next()?);
    Some((user.parse::<f64>().ok()? + system.parse::<f64>().ok()?) / COUNTS_PER_SECOND)
}

/// Seconds of processor time that everything on this machine has used.
fn used_by_all() -> Option<f64> {
    used(&std::fs::read_to_string("/proc/stat").ok()?)
}

fn used(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let counts: Vec<f64> = line.split_whitespace().filter_map(|count| count.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in these.
    let [user, nice, system, _idle, _iowait, irq, softirq, steal] = *counts.first_chunk::<8>()?;
    Some((user + nice + system + irq + softirq + steal) / COUNTS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_used_time() {
        assert_eq!(used("cpu  100 20 30 9000 800 7 3 40 5 5\ncpu0 1 1 1 1\n"), Some(2.0));
        assert_eq!(used("cpu  100 20\n"), None);
        assert_eq!(used_by_children("7 (a) b) S 1 7 7 0 -1 4 1 9 0 0 50 60 120 30 20 0 1 0\n"), Some(1.5));
        assert_eq!(used_by_children("7 (a) S 1 7"), None);
        let share = Neighbours::watch().share(2);
        assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)), "{share:?}");
    }
}
