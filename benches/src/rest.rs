//! The moment at which what runs in the background is done.

use std::time::Duration;

/// A process that wrote nothing for so long has nothing left to write: ten times as long as the map engine waits before
/// it fills its reserve.
const REST: Duration = Duration::from_millis(50);
/// Looks before a process that never rests is taken as it is: half a minute.
const MAX_LOOKS: usize = 600;

/// Waits until this process writes nothing any more, at most half a minute. Where the system does not count what a
/// process writes, it waits for one moment and hopes.
pub(crate) fn wait_for_rest() {
    let mut before = None;
    for _ in 0..MAX_LOOKS {
        let now = written_bytes();
        if before == Some(now) {
            return;
        }
        before = Some(now);
        std::thread::park_timeout(REST);
    }
}

/// Bytes that this process has had written so far, as Linux counts them.
fn written_bytes() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/self/io").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    #[cfg(target_os = "linux")]
    fn it_waits_for_a_thread_that_writes() {
        let home = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (told, path) = (Arc::clone(&done), home.path().join("file"));
        let before = written_bytes().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..100_usize {
                    std::fs::write(&path, vec![1; 4096 * (number + 1)]).unwrap();
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                told.store(true, Ordering::SeqCst);
            });
            while written_bytes().unwrap() == before {
                std::thread::yield_now();
            }
            wait_for_rest();
            assert!(done.load(Ordering::SeqCst));
        });
    }
}
