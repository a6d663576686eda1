//! The checksums of items: CRC-32C, of one item or of three side by side.
//!
//! A processor's CRC instruction has its result three cycles after it was begun, and the next one of the same checksum
//! needs it; one of another checksum does not. So three items take little longer than one.

/// Bytes at the front of an item that hold its checksum, which covers everything behind them.
pub(crate) const SUM_BYTES: usize = 4;
/// So many checksums are computed side by side: as many as the instruction takes cycles.
pub(crate) const LANES: usize = 3;

/// The checksum of an item as it lies in a frame, with the zeros behind it.
///
/// # Panics
/// For an item that is shorter than a checksum.
#[inline]
pub(crate) fn of_item(item: &[u8]) -> u32 {
    crc32c::crc32c(&item[SUM_BYTES..])
}

/// The checksums of three items, each as [`of_item`] has it.
#[inline]
pub(crate) fn of_items(items: [&[u8]; LANES]) -> [u32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if let Some(sums) = side_by_side::of_items(items) {
        return sums;
    }
    items.map(of_item)
}

#[cfg(target_arch = "x86_64")]
mod side_by_side {
    use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};

    use archmage::{SimdToken, X64V2Token, arcane};

    use super::LANES;

    /// `None` where the processor lacks the instruction, or an item is not made of words.
    #[inline]
    pub(super) fn of_items(items: [&[u8]; LANES]) -> Option<[u32; LANES]> {
        let words = items.map(|item| item.as_chunks());
        let is_in_words = words.iter().all(|(words, rest)| !words.is_empty() && rest.is_empty());
        let token = X64V2Token::summon().filter(|_| is_in_words)?;
        Some(of_words(token, words.map(|(words, _)| words)))
    }

    /// One step of each in turn, then what the longer ones have left. The first word begins with the checksum's place.
    #[arcane]
    fn of_words(_token: X64V2Token, items: [&[[u8; 8]]; LANES]) -> [u32; LANES] {
        let first = |item: &[[u8; 8]]| {
            // Not cut out of the word: it was stored in two parts, for which a load of the whole would have to wait.
            let [_, _, _, _, covered @ ..] = item[0];
            u64::from(_mm_crc32_u32(u32::MAX, u32::from_le_bytes(covered)))
        };
        let next = |sum, word: &[u8; 8]| _mm_crc32_u64(sum, u64::from_le_bytes(*word));
        let [mut x, mut y, mut z] = items.map(first);
        let [a, b, c] = items.map(|item| &item[1..]);
        let common = a.len().min(b.len()).min(c.len());
        for ((a, b), c) in a[..common].iter().zip(&b[..common]).zip(&c[..common]) {
            x = next(x, a);
            y = next(y, b);
            z = next(z, c);
        }
        let rest = |sum, item: &[[u8; 8]]| item[common..].iter().fold(sum, next);
        #[expect(clippy::cast_possible_truncation, reason = "the instruction leaves the upper half empty")]
        [rest(x, a), rest(y, b), rest(z, c)].map(|sum| !(sum as u32))
    }
}

/// Whether the checksums that these items begin with hold.
pub(crate) fn hold(items: &[&[u8]]) -> bool {
    let (threes, rest) = items.as_chunks::<LANES>();
    let is_of = |item: &[u8], sum: u32| item[..SUM_BYTES] == sum.to_le_bytes();
    threes.iter().all(|&three| three.into_iter().zip(of_items(three)).all(|(item, sum)| is_of(item, sum)))
        && rest.iter().all(|item| is_of(item, of_item(item)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + number * 101 + at / 7).to_le_bytes()[0]).collect()
    }

    #[test]
    fn three_side_by_side_are_as_one_by_one() {
        for lens in [[16, 16, 16], [16, 24, 32], [400, 16, 80], [8, 8, 4096], [1096, 1088, 1104], [17, 24, 33]] {
            let items = [item(1, lens[0]), item(2, lens[1]), item(3, lens[2])];
            let items = [&items[0][..], &items[1], &items[2]];
            assert_eq!(of_items(items), items.map(of_item), "{lens:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn three_are_computed_side_by_side_where_the_instruction_is() {
        let items = [item(1, 16), item(2, 24), item(3, 32)];
        let sums = side_by_side::of_items([&items[0], &items[1], &items[2]]);
        assert_eq!(sums.is_some(), std::arch::is_x86_feature_detected!("sse4.2"));
    }

    #[test]
    fn one_wrong_byte_anywhere_is_noticed() {
        let mut items: Vec<Vec<u8>> = (0..5).map(|number| item(number, 16 + 8 * number)).collect();
        for item in &mut items {
            let sum = of_item(item).to_le_bytes();
            item[..SUM_BYTES].copy_from_slice(&sum);
        }
        let holds = |items: &[Vec<u8>]| hold(&items.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert!(holds(&items));
        for number in 0..items.len() {
            for at in 0..items[number].len() {
                items[number][at] ^= 0x10;
                assert!(!holds(&items), "byte {at} of item {number}");
                items[number][at] ^= 0x10;
            }
        }
    }
}
