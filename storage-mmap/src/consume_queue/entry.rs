//! One entry of a consume queue: 20 bytes, big endian, as RocketMQ lays them out.

/// Bytes of an entry: log position 8, item length 4, tag hash 8.
pub(crate) const ENTRY_BYTES: usize = 20;

/// Where one record of a queue lies in the commit log, and its tag's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    pub(crate) tag_hash: i64,
    /// Bytes of the record's whole item in the log.
    pub(crate) size: u32,
}

impl Entry {
    /// The entry's bytes.
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        out[0..8].copy_from_slice(&self.position.to_be_bytes());
        out[8..12].copy_from_slice(&self.size.to_be_bytes());
        out[12..20].copy_from_slice(&self.tag_hash.to_be_bytes());
        out
    }

    /// The entry in these bytes.
    pub(crate) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let (position, rest) = bytes.split_first_chunk::<8>().expect("20 bytes begin with 8");
        let (size, rest) = rest.split_first_chunk::<4>().expect("12 bytes begin with 4");
        let tag_hash = rest.first_chunk::<8>().expect("8 bytes are left");
        Self {
            position: u64::from_be_bytes(*position),
            size: u32::from_be_bytes(*size),
            tag_hash: i64::from_be_bytes(*tag_hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_big_endian_and_comes_back() {
        let entry = Entry { position: 0x0102_0304_0506_0708, size: 0x0a0b_0c0d, tag_hash: -2 };
        let bytes = entry.encode();
        assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13]);
        assert_eq!(bytes[12..], (-2i64).to_be_bytes());
        assert_eq!(Entry::decode(&bytes), entry);
    }
}
