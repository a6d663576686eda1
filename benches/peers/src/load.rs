//! Appends against the clock, and the proof that everything is there.

use std::time::Duration;

use cuemq_benches::stopwatch::Stopwatch;
use cuemq_benches::workload::Bodies;

use crate::Result;
use crate::store::{PAGE_BYTES, PAGE_MESSAGES, Page, Store, Writers};

/// Messages between two looks at the clock: with batches of one a look at each would be part of what is measured.
const LOOK_EVERY: u64 = 64;

/// Batches that follow each other, until the time is over or enough was written.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// The bodies of all messages.
    pub bodies: &'a Bodies,
    /// The number of the first message.
    pub first: u64,
    /// Messages per batch.
    pub batch: usize,
    /// How long to go on.
    pub time: Duration,
    /// Messages after which to stop all the same: bounds the disk in use.
    pub most: u64,
    /// Whether somebody waits for the disk: looks at the clock after every batch then, as batches are slow.
    pub durable: bool,
}

impl Load<'_> {
    /// Starts the clock.
    #[must_use]
    pub fn start(&self) -> Pace {
        let batch = self.batch as u64;
        let look_every = if self.durable { 1 } else { (LOOK_EVERY / batch).max(1) };
        let (first, time, most) = (self.first, self.time, self.most);
        Pace { watch: Stopwatch::start(), first, batch, time, most, look_every, until_look: look_every, handed: 0 }
    }

    /// Calls `append` with the number of the first message of each batch, for stores that are done when it returns.
    ///
    /// # Errors
    /// The first error of `append`.
    pub fn run(&self, mut append: impl FnMut(u64) -> Result<()>) -> Result<Appended> {
        let mut pace = self.start();
        while let Some(first) = pace.next_batch() {
            append(first)?;
        }
        Ok(pace.end())
    }
}

/// Hands out batches while there is time.
#[derive(Debug)]
pub struct Pace {
    watch: Stopwatch,
    first: u64,
    batch: u64,
    time: Duration,
    most: u64,
    look_every: u64,
    until_look: u64,
    handed: u64,
}

impl Pace {
    /// The number of the first message of the next batch; `None` when the time is over. The first batch always comes.
    pub fn next_batch(&mut self) -> Option<u64> {
        if self.until_look == 0 {
            if self.watch.elapsed() >= self.time {
                return None;
            }
            self.until_look = self.look_every;
        }
        if self.handed >= self.most {
            return None;
        }
        self.until_look -= 1;
        let first = self.first + self.handed;
        self.handed += self.batch;
        Some(first)
    }

    /// Stops the clock, once everything handed out is acknowledged.
    #[must_use]
    pub fn end(self) -> Appended {
        Appended { messages: self.handed, time: self.watch.elapsed() }
    }
}

/// How much was done in which time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Messages, all acknowledged or all read.
    pub messages: u64,
    /// The time it took.
    pub time: Duration,
}

impl Appended {
    /// Messages per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some million messages")]
        let messages = self.messages as f64;
        messages / self.time.as_secs_f64()
    }
}

/// Messages of one full page.
#[must_use]
pub fn page_messages(body_bytes: usize) -> usize {
    (PAGE_BYTES / body_bytes).clamp(1, PAGE_MESSAGES)
}

/// Reads the queue from its beginning to its end, page by page, and checks count, order and every body. The time is
/// that of the fetches and of giving their pages back, not of the checks between them.
///
/// # Errors
/// What differs from messages `0..count`.
pub fn fetch_all(store: &mut dyn Store, bodies: &Bodies, body_bytes: usize, count: u64) -> Result<Appended> {
    let mut next = 0;
    let time = pages(store, page_messages(body_bytes), |page| {
        let before = next;
        page.visit(&mut |number, body| {
            if number != next {
                return Err(format!("message {number} comes where {next} belongs").into());
            }
            bodies.check(number, body)?;
            next += 1;
            Ok(())
        })?;
        Ok(next - before)
    })?;
    if next != count {
        return Err(format!("the queue has {next} messages, {count} were acknowledged").into());
    }
    Ok(Appended { messages: count, time })
}

/// Checks that exactly the writers' messages are there, in whatever order.
///
/// # Errors
/// What differs.
pub fn check_set(store: &mut dyn Store, writers: &Writers<'_>, body_bytes: usize) -> Result<()> {
    let mut found = Vec::new();
    pages(store, page_messages(body_bytes), |page| {
        let before = found.len();
        page.visit(&mut |_, body| {
            found.push(crc32c::crc32c(body));
            Ok(())
        })?;
        Ok((found.len() - before) as u64)
    })?;
    let mut written: Vec<_> = (0..writers.messages()).map(|n| crc32c::crc32c(&writers.bodies.body(n))).collect();
    found.sort_unstable();
    written.sort_unstable();
    if found != written {
        let (found, written) = (found.len(), written.len());
        return Err(format!("{found} messages were found that are not the {written} acknowledged ones").into());
    }
    Ok(())
}

/// Fetches from the first message until nothing comes; `take` says how many messages a page had.
fn pages(store: &mut dyn Store, messages: usize, mut take: impl FnMut(&dyn Page) -> Result<u64>) -> Result<Duration> {
    let (mut from, mut time) = (0, Duration::ZERO);
    store.rewind()?;
    loop {
        let watch = Stopwatch::start();
        let page = store.fetch(from, messages)?;
        time += watch.elapsed();
        let count = take(&*page)?;
        let watch = Stopwatch::start();
        drop(page);
        if count == 0 {
            return Ok(time);
        }
        time += watch.elapsed();
        from += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store in memory whose faults are known.
    struct Faulty {
        bodies: Vec<Vec<u8>>,
    }

    struct Copied(u64, Vec<Vec<u8>>);

    impl Page for Copied {
        fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
            (self.0..).zip(&self.1).try_for_each(|(number, body)| see(number, body))
        }
    }

    impl Store for Faulty {
        fn append(&mut self, load: &Load<'_>) -> Result<Appended> {
            load.run(|first| {
                self.bodies.extend((first..).take(load.batch).map(|n| load.bodies.body(n).to_vec()));
                Ok(())
            })
        }

        fn fetch(&mut self, from: u64, messages: usize) -> Result<Box<dyn Page>> {
            let page = self.bodies.iter().skip(usize::try_from(from)?).take(messages).cloned().collect();
            Ok(Box::new(Copied(from, page)))
        }

        fn reopen(self: Box<Self>) -> Result<Box<dyn Store>> {
            Ok(self)
        }
    }

    fn filled(bodies: &Bodies) -> Faulty {
        let mut store = Faulty { bodies: Vec::new() };
        let load = Load { bodies, first: 0, batch: 10, time: Duration::MAX, most: 1000, durable: false };
        assert_eq!(store.append(&load).unwrap().messages, 1000);
        store
    }

    #[test]
    fn a_lost_doubled_swapped_or_changed_message_is_found() {
        let bodies = Bodies::new(256);
        let check = |store: &mut Faulty, count| fetch_all(store, &bodies, 256, count).map(|read| read.messages);
        assert_eq!(check(&mut filled(&bodies), 1000).unwrap(), 1000);
        assert!(check(&mut filled(&bodies), 1001).is_err(), "one too few");
        let spoilt: [fn(&mut Vec<Vec<u8>>); 4] = [
            |bodies| drop(bodies.remove(500)),
            |bodies| bodies.insert(7, bodies[7].clone()),
            |bodies| bodies.swap(999, 998),
            |bodies| bodies[999][255] ^= 1,
        ];
        for spoil in spoilt {
            let mut store = filled(&bodies);
            spoil(&mut store.bodies);
            assert!(check(&mut store, 1000).is_err());
            let writers = Writers { bodies: &bodies, writers: 10, rounds: 100 };
            let swapped = store.bodies.len() == 1000 && bodies.check(998, &store.bodies[999]).is_ok();
            assert_eq!(check_set(&mut store, &writers, 256).is_ok(), swapped, "a set has no order");
        }
    }

    #[test]
    fn a_load_ends_with_its_time_or_its_messages() {
        let bodies = Bodies::new(16);
        let load = Load { bodies: &bodies, first: 5, batch: 3, time: Duration::ZERO, most: 1000, durable: false };
        let mut firsts = Vec::new();
        let done = load.run(|first| {
            firsts.push(first);
            Ok(())
        });
        assert_eq!(done.unwrap().messages, 63, "the clock is looked at after 21 batches of 3");
        assert_eq!(firsts[..3], [5, 8, 11]);
        let load = Load { time: Duration::MAX, most: 7, ..load };
        assert_eq!(load.run(|_| Ok(())).unwrap().messages, 9, "whole batches");
    }
}
