//! The keys that OpenMessaging's key distributors give to messages.

use crate::workload::noise;

/// How many different keys there are (OpenMessaging's number).
pub const DIFFERENT_KEYS: usize = 10_000;
/// Letters of a key: seven random bytes in base 64.
const KEY_LETTERS: usize = 10;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Which key the next message gets. Messages with one key are kept in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyDistributor {
    /// None: queues take turns.
    NoKey,
    /// One after the other.
    RoundRobin,
    /// One that the time in nanoseconds chooses.
    RandomNano,
}

impl KeyDistributor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NoKey, Self::RoundRobin, Self::RandomNano];

    /// Its name in a workload file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoKey => "NO_KEY",
            Self::RoundRobin => "KEY_ROUND_ROBIN",
            Self::RandomNano => "RANDOM_NANO",
        }
    }
}

/// Gives out keys. One per publishing thread.
#[derive(Debug)]
pub struct Keys {
    distributor: KeyDistributor,
    keys: Vec<String>,
    turn: usize,
}

impl Keys {
    /// Makes the keys, the same ones in every run.
    #[must_use]
    pub fn new(distributor: KeyDistributor) -> Self {
        let count = if distributor == KeyDistributor::NoKey { 0 } else { DIFFERENT_KEYS };
        let letter = |byte: &u8| char::from(ALPHABET[usize::from(byte % 64)]);
        let keys = (0..count as u64).map(|number| noise(number, KEY_LETTERS).iter().map(letter).collect()).collect();
        Self { distributor, keys, turn: 0 }
    }

    /// The next message's key. `nanos` is the time, read once for all messages of a batch; each of them is taken to be
    /// made a nanosecond after the one before.
    pub fn next(&mut self, nanos: u64) -> Option<&str> {
        self.turn = self.turn.wrapping_add(1);
        let at = match self.distributor {
            KeyDistributor::NoKey => return None,
            KeyDistributor::RoundRobin => self.turn,
            KeyDistributor::RandomNano => usize::try_from(nanos % DIFFERENT_KEYS as u64).ok()?.wrapping_add(self.turn),
        };
        self.keys.get(at % DIFFERENT_KEYS).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robin_gives_each_key_once_in_a_round() {
        let mut keys = Keys::new(KeyDistributor::RoundRobin);
        let mut round: Vec<String> = (0..DIFFERENT_KEYS).map(|_| keys.next(5).unwrap().to_owned()).collect();
        let first = round[0].clone();
        round.sort();
        round.dedup();
        assert_eq!(round.len(), DIFFERENT_KEYS);
        assert!(round.iter().all(|key| key.len() == KEY_LETTERS));
        assert_eq!(keys.next(5), Some(first.as_str()));
    }

    #[test]
    fn the_time_chooses_or_nobody_does() {
        let mut keys = Keys::new(KeyDistributor::RandomNano);
        let one = keys.next(17).unwrap().to_owned();
        assert_ne!(keys.next(4711).unwrap(), one);
        assert_eq!(Keys::new(KeyDistributor::NoKey).next(17), None);
    }
}
