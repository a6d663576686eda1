//! The bodies, and what is stamped on each of them so that every single message can be recognised and checked.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::workload::{Payload, Workload};
use crate::Result;
use crate::workload::noise;

/// Bytes at the beginning of a body that the stamp takes; smaller bodies carry none and are only counted.
pub const STAMP_BYTES: usize = CHECKSUM_BYTES + 4 + 8 + 8;
const CHECKSUM_BYTES: usize = 4;

/// Which message a body belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Its producer, numbered over all topics from 0.
    pub producer: u32,
    /// Its number among the producer's messages, from 0.
    pub sequence: u64,
    /// When it was sent, in nanoseconds since the run began.
    pub sent: u64,
}

impl Stamp {
    /// Reads the stamp of a body and checks the body against it.
    ///
    /// # Errors
    /// When the body is too short for a stamp or was altered: names what it says of itself.
    pub fn read(body: &[u8]) -> Result<Self> {
        let (stamp, rest) = body
            .split_first_chunk::<STAMP_BYTES>()
            .ok_or_else(|| format!("a body of {} bytes came, too short for its stamp", body.len()))?;
        let (checksum, identity) = stamp.split_at(CHECKSUM_BYTES);
        let (producer, numbers) = identity.split_at(4);
        let (sequence, sent) = numbers.split_at(8);
        let read = Self {
            producer: u32::from_le_bytes(producer.try_into()?),
            sequence: u64::from_le_bytes(sequence.try_into()?),
            sent: u64::from_le_bytes(sent.try_into()?),
        };
        let (written, found) = (u32::from_le_bytes(checksum.try_into()?), checksum_of(crc32c::crc32c(rest), identity));
        if written != found {
            let text = format!(
                "the body of a message was altered: it says message {} of producer {}, with checksum {written:08x}, and \
                 its bytes have {found:08x}",
                read.sequence, read.producer
            );
            return Err(text.into());
        }
        Ok(read)
    }

    fn write(self, rest: &Rest, into: &mut BytesMut) {
        let mut identity = [0; STAMP_BYTES - CHECKSUM_BYTES];
        identity[..4].copy_from_slice(&self.producer.to_le_bytes());
        identity[4..12].copy_from_slice(&self.sequence.to_le_bytes());
        identity[12..].copy_from_slice(&self.sent.to_le_bytes());
        into.put_slice(&checksum_of(rest.checksum, &identity).to_le_bytes());
        into.put_slice(&identity);
        into.put_slice(&rest.bytes);
    }
}

/// The checksum covers the rest of the body and then the identity: so the sender, who knows that of the rest, need not
/// look at it again.
fn checksum_of(rest: u32, identity: &[u8]) -> u32 {
    crc32c::crc32c_append(rest, identity)
}

/// What follows the stamp.
#[derive(Debug)]
struct Rest {
    bytes: Bytes,
    checksum: u32,
}

/// Makes bodies. Clones share what is made in advance.
#[derive(Clone, Debug)]
pub struct Bodies {
    pool: Arc<Vec<Rest>>,
    body_bytes: usize,
    turn: usize,
}

impl Bodies {
    /// Makes everything that can be made in advance.
    ///
    /// # Errors
    /// A payload file that cannot be read or has another length than `messageSize`.
    pub fn new(workload: &Workload) -> Result<Self> {
        let body_bytes = workload.message_size;
        let stamp = if body_bytes < STAMP_BYTES { 0 } else { STAMP_BYTES };
        let rest = |body: Bytes| {
            let bytes = body.slice(stamp..);
            Rest { checksum: crc32c::crc32c(&bytes), bytes }
        };
        let pool = match &workload.payload {
            Payload::File(path) => {
                let file = path.display();
                let body =
                    std::fs::read(path).map_err(|error| format!("payloadFile {file} cannot be read: {error}"))?;
                if body.len() != body_bytes {
                    let text = format!(
                        "payloadFile {file} has {} bytes and messageSize is {body_bytes}: make them equal",
                        body.len()
                    );
                    return Err(text.into());
                }
                vec![rest(body.into())]
            }
            Payload::Random { random_share, pool } => {
                (0..*pool as u64).map(|number| rest(partly_random(number, body_bytes, *random_share))).collect()
            }
        };
        Ok(Self { pool: Arc::new(pool), body_bytes, turn: 0 })
    }

    /// The bodies of `count` messages that follow each other from `first` on, all sent at once. They share one
    /// allocation.
    pub fn batch(&mut self, first: Stamp, count: usize) -> impl Iterator<Item = Bytes> {
        let mut all = BytesMut::with_capacity(count * self.body_bytes);
        for sequence in (first.sequence..).take(count) {
            self.turn = (self.turn + 1) % self.pool.len();
            let rest = &self.pool[self.turn];
            if self.body_bytes < STAMP_BYTES {
                all.put_slice(&rest.bytes);
            } else {
                Stamp { sequence, ..first }.write(rest, &mut all);
            }
        }
        let (mut all, body_bytes) = (all.freeze(), self.body_bytes);
        (0..count).map(move |_| all.split_to(body_bytes))
    }
}

/// Random bytes first and zeros behind them.
#[expect(clippy::cast_possible_truncation, reason = "a share of a number that fits")]
fn partly_random(number: u64, body_bytes: usize, random_share: f64) -> Bytes {
    let random = (body_bytes as f64 * random_share) as usize;
    let mut body = BytesMut::from(noise(number, random).as_ref());
    body.resize(body_bytes, 0);
    body.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::workload::tests::small;
    use super::*;

    const FIRST: Stamp = Stamp { producer: 7, sequence: 40, sent: 123_456 };

    #[test]
    fn a_stamp_comes_back_from_each_body_of_a_batch() {
        for body_bytes in [STAMP_BYTES, STAMP_BYTES + 1, 1024] {
            let mut bodies = Bodies::new(&Workload { message_size: body_bytes, ..small() }).unwrap();
            let batch: Vec<Bytes> = bodies.batch(FIRST, 3).collect();
            for (body, sequence) in batch.iter().zip(40..) {
                assert_eq!(body.len(), body_bytes);
                assert_eq!(Stamp::read(body).unwrap(), Stamp { sequence, ..FIRST });
            }
        }
    }

    #[test]
    fn no_altered_byte_is_missed() {
        let mut bodies = Bodies::new(&Workload { message_size: 100, ..small() }).unwrap();
        let body = bodies.batch(FIRST, 1).next().unwrap();
        for at in 0..body.len() {
            let mut altered = body.to_vec();
            altered[at] ^= 0x10;
            let error = Stamp::read(&altered).unwrap_err().to_string();
            assert!(error.contains("was altered: it says message "), "byte {at}: {error}");
        }
        assert!(Stamp::read(&body[..body.len() - 1]).is_err());
        assert!(Stamp::read(&body[..STAMP_BYTES - 1]).is_err());
    }

    #[test]
    fn bodies_are_as_random_as_asked() {
        for (share, zeros) in [(0.0, 1000), (0.5, 500), (1.0, 0)] {
            let body = partly_random(3, 1000, share);
            assert_eq!(body.len(), 1000);
            assert!(body[1000 - zeros..].iter().all(|byte| *byte == 0));
            assert!(share == 0.0 || body[..1000 - zeros].iter().filter(|byte| **byte == 0).count() < 20);
        }
    }

    #[test]
    fn a_tiny_body_has_no_stamp() {
        let mut bodies = Bodies::new(&Workload { message_size: 10, ..small() }).unwrap();
        assert!(bodies.batch(FIRST, 5).all(|body| body.len() == 10));
    }

    #[test]
    fn a_file_has_to_have_the_messages_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("body");
        std::fs::write(&path, [7; 100]).unwrap();
        let of_size = |message_size| Workload { message_size, payload: Payload::File(path.clone()), ..small() };
        let body = Bodies::new(&of_size(100)).unwrap().batch(FIRST, 1).next().unwrap();
        assert_eq!(body[STAMP_BYTES..], [7; 100 - STAMP_BYTES]);
        let error = Bodies::new(&of_size(101)).unwrap_err().to_string();
        assert!(error.contains("has 100 bytes and messageSize is 101"), "{error}");
    }
}
