//! What every contender is driven through.

use cuemq_benches::workload::Bodies;

use crate::Result;
use crate::load::{Appended, Load};

/// Most messages of one page: as many as CueMQ's own consumers fetch at a time.
pub const PAGE_MESSAGES: usize = 256;
/// Most body bytes of one page.
pub const PAGE_BYTES: usize = 64 << 10;

/// When an append counts as done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Flush {
    /// It survives the end of the process, not a power cut: nobody waits for the disk.
    Buffered,
    /// It survives a power cut, as far as the contender can promise that: the append waits for a sync.
    Durable,
}

/// An open store that has one queue. Messages are numbered from 0, and a message's number is its place in the queue.
pub trait Store {
    /// Appends batches until the load's time is over, each one acknowledged by the rules of the store's [`Flush`].
    ///
    /// # Errors
    /// Whatever the store meets, and a message that landed where it does not belong.
    fn append(&mut self, load: &Load<'_>) -> Result<Appended>;

    /// Makes ready to fetch from the first message, with whatever a reader needs. It is not timed: the first reader of a
    /// group makes that group, which waits for a sync of all that was appended before.
    ///
    /// # Errors
    /// What the store says.
    fn rewind(&mut self) -> Result<()> {
        Ok(())
    }

    /// The next messages from a number on, at most [`PAGE_BYTES`] of bodies; `messages` is what that comes to. The last
    /// page may be shorter; behind the last message it is empty.
    ///
    /// # Errors
    /// Whatever the store meets.
    fn fetch(&mut self, from: u64, messages: usize) -> Result<Box<dyn Page>>;

    /// Has many threads or tasks append one message at a time to the empty store, each waiting until its message is
    /// durable, in any order between the writers. Does nothing where the store offers that to one caller only.
    ///
    /// # Errors
    /// Whatever the store meets.
    fn group_commit(&mut self, writers: &Writers<'_>) -> Result<Option<Appended>> {
        let _ = writers;
        Ok(None)
    }

    /// Closes the store and opens it again, where that can be done within one process: durable is what another opening
    /// finds. The time it takes does not count.
    ///
    /// # Errors
    /// Whatever the store meets.
    fn reopen(self: Box<Self>) -> Result<Box<dyn Store>>;

    /// Ends everything that the store does in the background and removes it, so that nothing of it is in the way of
    /// the next one.
    ///
    /// # Errors
    /// Whatever the store meets.
    fn close(self: Box<Self>) -> Result<()> {
        drop(self);
        Ok(())
    }
}

/// What one fetch brought, in the form in which the store hands it out.
pub trait Page {
    /// Shows each message's number and body in order.
    ///
    /// # Errors
    /// The first error of `see`.
    fn visit(&self, see: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;
}

/// The load of [`Store::group_commit`].
#[derive(Clone, Copy, Debug)]
pub struct Writers<'a> {
    /// The bodies of all messages.
    pub bodies: &'a Bodies,
    /// How many write at the same time.
    pub writers: u64,
    /// Messages of each; writer `w` has the messages from `w * rounds` on.
    pub rounds: u64,
}

impl Writers<'_> {
    /// All messages together.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.writers * self.rounds
    }

    /// The messages of one writer.
    #[must_use]
    pub fn of(&self, writer: u64) -> std::ops::Range<u64> {
        writer * self.rounds..(writer + 1) * self.rounds
    }

    /// Runs one thread per writer, each calling `write` for its messages in turn, and measures them together.
    ///
    /// # Errors
    /// The first error of any writer.
    pub fn on_threads(&self, write: impl Fn(u64) -> Result<()> + Sync) -> Result<Appended> {
        let watch = cuemq_benches::stopwatch::Stopwatch::start();
        std::thread::scope(|scope| {
            let run = |writer| self.of(writer).try_for_each(&write);
            let threads: Vec<_> = (0..self.writers).map(|writer| scope.spawn(move || run(writer))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer panicked")?);
            joined.collect::<Result<Vec<()>>>()
        })?;
        Ok(Appended { messages: self.messages(), time: watch.elapsed() })
    }
}
