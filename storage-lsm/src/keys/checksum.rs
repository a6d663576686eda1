//! The checksum in front of every value.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes that the checksum takes.
pub(crate) const CHECKSUM_BYTES: usize = 4;

/// Begins a value at the end of `buffer`: leaves room for its checksum.
pub(crate) fn begin(buffer: &mut BytesMut) {
    buffer.put_u32_le(0);
}

/// Ends the value that fills `buffer`: computes its checksum and takes it out.
pub(crate) fn seal(key: &[u8], buffer: &mut BytesMut) -> Bytes {
    let checksum = checksum_of(key, &buffer[CHECKSUM_BYTES..]);
    buffer[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    buffer.split().freeze()
}

/// What follows the checksum of an undamaged value.
pub(crate) fn verified<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (stored, rest) = value.split_first_chunk::<CHECKSUM_BYTES>()?;
    (u32::from_le_bytes(*stored) == checksum_of(key, rest)).then_some(rest)
}

/// The checksum of a value: over its key, then the rest of it.
pub(crate) fn checksum_of(key: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), rest)
}

/// The checksum of a small value whose lengths are known, in one go on the stack: two sums over slices that begin and
/// end anywhere take three times as many steps.
pub(crate) fn checksum_of_small<const KEY: usize, const REST: usize>(key: &[u8; KEY], rest: &[u8; REST]) -> u32 {
    const { assert!(KEY + REST <= SMALL_BYTES) };
    let mut small = Aligned([0; SMALL_BYTES]);
    small.0[..KEY].copy_from_slice(key);
    small.0[KEY..KEY + REST].copy_from_slice(rest);
    crc32c::crc32c(&small.0[..KEY + REST])
}

const SMALL_BYTES: usize = 64;

/// Begins where the checksum's instructions like their words to begin.
#[repr(align(8))]
struct Aligned([u8; SMALL_BYTES]);

/// Takes a little-endian number off the front of a value.
macro_rules! take {
    ($bytes:ident, $number:ty) => {{
        let (number, rest) = $bytes.split_first_chunk::<{ size_of::<$number>() }>()?;
        $bytes = rest;
        <$number>::from_le_bytes(*number)
    }};
}
pub(crate) use take;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_another_key_are_noticed() {
        let mut buffer = BytesMut::new();
        begin(&mut buffer);
        buffer.put_slice(b"value");
        let value = seal(b"key", &mut buffer);
        assert_eq!(verified(b"key", &value), Some(&b"value"[..]));
        assert_eq!(verified(b"kez", &value), None);
        for bit in 0..value.len() * 8 {
            let mut damaged = value.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verified(b"key", &damaged), None, "bit {bit}");
        }
        assert_eq!(verified(b"key", &value[..3]), None);
    }

    #[test]
    fn a_small_values_checksum_is_that_of_any_other() {
        let (key, rest) = (*b"twelve bytes", *b"and twenty-nine of the other!");
        assert_eq!(checksum_of_small(&key, &rest), checksum_of(&key, &rest));
        assert_eq!(checksum_of_small(&[], &rest), checksum_of(&[], &rest));
        assert_eq!(checksum_of_small(&[7; 64], &[]), checksum_of(&[7; 64], &[]));
    }
}
