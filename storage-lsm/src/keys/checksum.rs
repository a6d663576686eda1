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

/// What a value's checksum is computed over: its key, then the rest of it.
pub(crate) fn checksum_of(key: &[u8], rest: &[u8]) -> u32 {
    let len = key.len() + rest.len();
    if len > SMALL_BYTES {
        return crc32c::crc32c_append(crc32c::crc32c(key), rest);
    }
    let mut small = Aligned([0; SMALL_BYTES]);
    small.0[..key.len()].copy_from_slice(key);
    small.0[key.len()..len].copy_from_slice(rest);
    crc32c::crc32c(&small.0[..len])
}

/// Key and rest up to this long are summed in one go on the stack. The rows of queues are: two sums over slices that
/// begin and end anywhere take three times as many steps.
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
    fn the_checksum_is_one_over_key_and_rest_of_any_length() {
        let bytes: Vec<u8> = (0..200).collect();
        for len in 0..bytes.len() {
            for key in [0, 1, 12, len].map(|key| key.min(len)) {
                let expected = crc32c::crc32c(&bytes[..len]);
                assert_eq!(checksum_of(&bytes[..key], &bytes[key..len]), expected, "{key} of {len}");
            }
        }
    }
}
