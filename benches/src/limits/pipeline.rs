//! What a log on a fresh file costs at the least when its work is shared among threads: records are encoded as LIMIT
//! encodes them, and another thread writes them. No actor, no lock, no table, no reader, and receipts that promise nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::encode::{ENTRY_BYTES, encode, is_whole, record_bytes};
use crate::Result;
use crate::place::Place;
use crate::stopwatch::Stopwatch;
use crate::workload::Bodies;

/// Room is taken in steps of this, as the map engine takes it.
const STEP_BYTES: u64 = 16 << 20;
/// One write; larger ones are no faster, and leave the nearest cache.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that are under way between the two threads.
const PIECES: usize = 4;
/// Entries that are kept, one behind the other and round again.
const ENTRIES: usize = 1 << 16;
/// Single messages that are encoded before one of them is answered.
const BURST: usize = 256;

/// A new file for each pass, in a folder of its own.
#[derive(Debug)]
pub struct Pipeline<'a> {
    bodies: &'a Bodies,
    folder: TempDir,
}

impl<'a> Pipeline<'a> {
    /// An empty folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(bodies: &'a Bodies, place: &Place) -> Result<Self> {
        Ok(Self { bodies, folder: place.folder()? })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Two threads: this one encodes, another one writes. The time until the system has all of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&self, count: u64) -> Result<Duration> {
        self.written(|pieces| (0..count).try_for_each(|number| pieces.add(&self.bodies.body(number)).map(|_| ())))
    }

    /// Three threads: this one makes batches and takes their receipts, of which some are out at a time.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn send_batches(&self, batch: u64, in_flight: usize, batches: u64) -> Result<Duration> {
        let (ask, asked) = sync_channel::<Vec<Bytes>>(in_flight);
        let (answer, answered) = sync_channel::<Vec<u64>>(in_flight);
        let encode = move |pieces: &mut Pieces| {
            for bodies in asked {
                let receipts: Result<Vec<u64>> = bodies.iter().map(|body| pieces.add(body)).collect();
                answer.send(receipts?)?;
            }
            Ok(())
        };
        self.sent(encode, || {
            let (mut out, mut next) = (0, 0);
            for first in (0..batches).map(|number| number * batch) {
                if out == in_flight {
                    next = check_receipts(next, &answered.recv()?)?;
                    out -= 1;
                }
                ask.send((first..first + batch).map(|number| self.bodies.body(number)).collect())?;
                out += 1;
            }
            drop(ask);
            (0..out).try_fold(next, |next, _| check_receipts(next, &answered.recv()?)).map(|_| ())
        })
    }

    /// The same with single messages, each in a channel of its own kind and with a receipt of its own.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn send_singles(&self, in_flight: usize, count: u64) -> Result<Duration> {
        let (ask, asked) = sync_channel::<Bytes>(in_flight);
        let (answer, answered) = sync_channel::<u64>(in_flight);
        self.sent(
            move |pieces| encode_singles(pieces, &asked, &answer),
            || {
                let (mut out, mut next) = (0, 0);
                for number in 0..count {
                    if out == in_flight {
                        next = check_receipts(next, &[answered.recv()?])?;
                        out -= 1;
                    }
                    ask.send(self.bodies.body(number))?;
                    out += 1;
                }
                drop(ask);
                (0..out).try_fold(next, |next, _| check_receipts(next, &[answered.recv()?])).map(|_| ())
            },
        )
    }

    fn sent(
        &self,
        encode: impl FnOnce(&mut Pieces) -> Result<()> + Send,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        std::thread::scope(|scope| {
            let encoding = scope.spawn(|| self.written(encode));
            send()?;
            encoding.join().map_err(|_| "the encoding thread panicked")?
        })
    }

    /// Has another thread write what is encoded here.
    fn written(&self, encode: impl FnOnce(&mut Pieces) -> Result<()>) -> Result<Duration> {
        let file = File::create(self.path())?;
        let (full, filled) = sync_channel(PIECES);
        let (empty, emptied) = sync_channel(PIECES);
        for _ in 0..PIECES {
            empty.send(vec![0; PIECE_BYTES])?;
        }
        let mut pieces = Pieces::new(record_bytes(self.bodies.body_bytes()), full, emptied)?;
        std::thread::scope(|scope| {
            let watch = Stopwatch::start();
            let writing = scope.spawn(move || write(&file, &filled, &empty));
            encode(&mut pieces)?;
            pieces.hand_over()?;
            drop(pieces);
            writing.join().map_err(|_| "the writing thread panicked")??;
            Ok(watch.elapsed())
        })
    }

    /// Reads back what the last pass wrote; returns how many messages there are.
    ///
    /// # Errors
    /// When one is not what was sent, or there are not `count`.
    pub fn check(&self, count: u64) -> Result<u64> {
        let written = std::fs::read(self.path())?;
        let records = written.chunks_exact(record_bytes(self.bodies.body_bytes()));
        let whole =
            records.zip(0..count).filter(|(record, number)| is_whole(record, &self.bodies.body(*number), *number));
        let whole = whole.count() as u64;
        if whole == count { Ok(count) } else { Err(format!("{whole} messages of {count} came back").into()) }
    }
}

/// Receipts are numbers that rise; returns the next one.
fn check_receipts(next: u64, receipts: &[u64]) -> Result<u64> {
    let rise = receipts.iter().zip(next..).all(|(receipt, number)| *receipt == number);
    if rise { Ok(next + receipts.len() as u64) } else { Err(format!("no receipts from {next} on").into()) }
}

/// Encodes all that waits before it answers the first of them, so that both threads work by the burst.
fn encode_singles(pieces: &mut Pieces, asked: &Receiver<Bytes>, answer: &SyncSender<u64>) -> Result<()> {
    let mut receipts = VecDeque::with_capacity(BURST);
    while let Ok(body) = asked.recv() {
        receipts.push_back(pieces.add(&body)?);
        while receipts.len() < BURST {
            match asked.try_recv() {
                Ok(body) => receipts.push_back(pieces.add(&body)?),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        receipts.drain(..).try_for_each(|receipt| answer.send(receipt))?;
    }
    Ok(())
}

/// Where records are encoded, piece by piece.
struct Pieces {
    record_bytes: usize,
    piece: Vec<u8>,
    used: usize,
    entries: Vec<u8>,
    number: u64,
    full: SyncSender<(Vec<u8>, usize)>,
    emptied: Receiver<Vec<u8>>,
}

impl Pieces {
    fn new(record_bytes: usize, full: SyncSender<(Vec<u8>, usize)>, emptied: Receiver<Vec<u8>>) -> Result<Self> {
        let piece = emptied.recv()?;
        Ok(Self { record_bytes, piece, used: 0, entries: vec![1; ENTRIES * ENTRY_BYTES], number: 0, full, emptied })
    }

    /// Encodes one message and says its number.
    fn add(&mut self, body: &[u8]) -> Result<u64> {
        if self.used + self.record_bytes > self.piece.len() {
            self.hand_over()?;
        }
        let number = self.number;
        let entry = usize::try_from(number)? % ENTRIES * ENTRY_BYTES;
        let record = &mut self.piece[self.used..self.used + self.record_bytes];
        encode(record, &mut self.entries[entry..entry + ENTRY_BYTES], body, number);
        self.used += self.record_bytes;
        self.number += 1;
        Ok(number)
    }

    fn hand_over(&mut self) -> Result<()> {
        let next = self.emptied.recv()?;
        self.full.send((std::mem::replace(&mut self.piece, next), std::mem::take(&mut self.used)))?;
        Ok(())
    }
}

/// Writes piece behind piece, and gives each back.
fn write(file: &File, filled: &Receiver<(Vec<u8>, usize)>, empty: &SyncSender<Vec<u8>>) -> Result<()> {
    let (mut at, mut taken) = (0, 0);
    for (piece, used) in filled {
        let end = at + used as u64;
        if end > taken {
            let upto = end.next_multiple_of(STEP_BYTES);
            // Keeps the file's length at what was written.
            fallocate(file, FallocateFlags::KEEP_SIZE, taken, upto - taken)?;
            taken = upto;
        }
        file.write_all_at(&piece[..used], at)?;
        at = end;
        // Who encodes has gone away when it is done.
        let _ = empty.send(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_writes_every_message_and_a_changed_one_is_found() {
        let home = tempfile::tempdir().unwrap();
        let (place, bodies) = (Place::at(home.path().to_owned()).unwrap(), Bodies::new(100));
        let pipeline = Pipeline::new(&bodies, &place).unwrap();
        pipeline.append(5_000).unwrap();
        assert_eq!(pipeline.check(5_000).unwrap(), 5_000);
        pipeline.send_batches(64, 4, 50).unwrap();
        assert_eq!(pipeline.check(3_200).unwrap(), 3_200);
        pipeline.send_singles(256, 4_000).unwrap();
        assert_eq!(pipeline.check(4_000).unwrap(), 4_000);
        assert!(pipeline.check(4_001).is_err());
        let mut written = std::fs::read(pipeline.path()).unwrap();
        written[1_000] ^= 1;
        std::fs::write(pipeline.path(), written).unwrap();
        assert!(pipeline.check(4_000).is_err());
    }
}
