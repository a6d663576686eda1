//! PING: what one question to another thread and its answer cost without any actor.

use std::sync::mpsc::sync_channel;

use super::Spread;
use crate::Result;
use crate::stopwatch::Stopwatch;

/// The time of a round trip through two channels between two threads, one at a time.
///
/// # Errors
/// When the other thread is lost.
#[expect(clippy::cast_precision_loss, reason = "a round trip takes less than 2^52 ns")]
pub fn ping_time(rounds: usize) -> Result<Spread> {
    let (ask, asked) = sync_channel::<u64>(1);
    let (answer, answered) = sync_channel::<u64>(1);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            for number in asked {
                // The asker has gone away only when it failed itself.
                if answer.send(number).is_err() {
                    return;
                }
            }
        });
        let mut nanos = Vec::with_capacity(rounds);
        for number in 0..rounds.max(1) as u64 {
            let watch = Stopwatch::start();
            ask.send(number)?;
            let back = answered.recv()?;
            nanos.push(watch.elapsed().as_nanos() as f64);
            if back != number {
                return Err(format!("{back} was answered to {number}").into());
            }
        }
        drop(ask);
        other.join().map_err(|_| "the answering thread panicked")?;
        Ok(Spread::of(nanos))
    })
}
