//! How much of the cores others used while something was measured: beside busy neighbours no figure is worth quoting.

use crate::stopwatch::{Stopwatch, processor_time};

/// The kernel counts processor time in hundredths of a second, whatever its own tick is.
const COUNTS_PER_SECOND: f64 = 100.0;
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
        Self { watch: Stopwatch::start(), all: used_by_all(), own: processor_time().as_secs_f64() }
    }

    /// The share of the cores' time since then that was used outside of this process, by its children and by the
    /// kernel's own threads too; `None` when the system does not tell.
    #[must_use]
    pub fn share(&self, cores: usize) -> Option<f64> {
        let all = used_by_all()? - self.all?;
        let own = processor_time().as_secs_f64() - self.own;
        #[expect(clippy::cast_precision_loss, reason = "a few cores")]
        let there_was = self.watch.elapsed().as_secs_f64() * cores as f64;
        Some(((all - own) / there_was).clamp(0.0, 1.0))
    }
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
        let share = Neighbours::watch().share(2);
        assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)), "{share:?}");
    }
}
