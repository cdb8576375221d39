//! A fixed array of bits that many threads read and change: one per block of a volume.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u64 = u64::BITS as u64;

/// `len` bits. A bit that is seen changed makes what its changer did before visible (release, acquire).
#[derive(Debug)]
pub(crate) struct Bits {
    words: Box<[AtomicU64]>,
    len: u64,
}

impl Bits {
    /// All clear.
    pub(crate) fn new(len: u64) -> Self {
        let words = usize::try_from(len.div_ceil(WORD_BITS)).expect("a volume's blocks fit memory");
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect(), len }
    }

    /// All set.
    pub(crate) fn full(len: u64) -> Self {
        let bits = Self::new(len);
        bits.set_range(0..len);
        bits
    }

    /// The same bits in an array of their own.
    pub(crate) fn copy(&self) -> Self {
        let words = self.words.iter().map(|word| AtomicU64::new(word.load(Ordering::Acquire))).collect();
        Self { words, len: self.len }
    }

    /// The same bits with more behind them, all clear, in an array of their own.
    pub(crate) fn longer(&self, len: u64) -> Self {
        let longer = Self::new(len);
        longer.add(self);
        longer
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn get(&self, index: u64) -> bool {
        let (word, mask) = self.place(index);
        word.load(Ordering::Acquire) & mask != 0
    }

    /// Sets a bit; whether it was clear.
    pub(crate) fn set(&self, index: u64) -> bool {
        let (word, mask) = self.place(index);
        word.fetch_or(mask, Ordering::AcqRel) & mask == 0
    }

    /// Clears a bit; whether it was set.
    pub(crate) fn clear(&self, index: u64) -> bool {
        let (word, mask) = self.place(index);
        word.fetch_and(!mask, Ordering::AcqRel) & mask != 0
    }

    /// Sets all bits in `range`. Words that have them already are only read: the common case of a block that
    /// is written again and again keeps its cache line shared.
    pub(crate) fn set_range(&self, range: Range<u64>) {
        for (word, mask) in self.words_of(range) {
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// Whether any bit in `range` is set.
    pub(crate) fn any(&self, range: Range<u64>) -> bool {
        self.words_of(range).any(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    /// The first set bit at or after `from`.
    pub(crate) fn next_set(&self, from: u64) -> Option<u64> {
        self.next(from, |word| word)
    }

    /// The first clear bit at or after `from`.
    pub(crate) fn next_clear(&self, from: u64) -> Option<u64> {
        self.next(from, |word| !word)
    }

    /// Sets what is set in `other`, which is not longer.
    pub(crate) fn add(&self, other: &Self) {
        for (mine, theirs) in self.words.iter().zip(&other.words) {
            mine.fetch_or(theirs.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// How many are set.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// The bits in words of 64 each, the first lowest.
    pub(crate) fn to_words(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }

    fn next(&self, from: u64, wanted: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.len {
            return None;
        }
        let first = from / WORD_BITS;
        for (number, word) in (first..).zip(&self.words[first as usize..]) {
            let mut bits = wanted(word.load(Ordering::Acquire));
            if number == first {
                bits &= u64::MAX << (from % WORD_BITS);
            }
            if bits != 0 {
                let found = number * WORD_BITS + u64::from(bits.trailing_zeros());
                return (found < self.len).then_some(found);
            }
        }
        None
    }

    fn place(&self, index: u64) -> (&AtomicU64, u64) {
        assert!(index < self.len, "a block of this volume");
        (&self.words[(index / WORD_BITS) as usize], 1 << (index % WORD_BITS))
    }

    /// The words that `range` touches, each with a mask of the bits in the range.
    fn words_of(&self, range: Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        assert!(range.end <= self.len, "blocks of this volume");
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let word = at / WORD_BITS;
            let first = at % WORD_BITS;
            let count = (WORD_BITS - first).min(range.end - at);
            at += count;
            Some((&self.words[word as usize], (u64::MAX >> (WORD_BITS - count)) << first))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_cleared_found_and_counted() {
        let bits = Bits::new(200);
        assert_eq!(bits.next_set(0), None);
        assert!(bits.set(130) && !bits.set(130));
        bits.set_range(60..70);
        assert_eq!((bits.count(), bits.next_set(0), bits.next_set(70)), (11, Some(60), Some(130)));
        assert!(bits.any(0..61) && !bits.any(0..60) && !bits.any(70..130) && bits.any(70..131));
        assert!(bits.clear(60) && !bits.clear(60));
        assert_eq!((bits.next_set(0), bits.next_clear(61), bits.next_set(131)), (Some(61), Some(70), None));
    }

    #[test]
    fn there_is_no_bit_behind_the_last() {
        let bits = Bits::full(65);
        assert_eq!((bits.count(), bits.next_clear(0), bits.next_set(65)), (65, None, None));
        let copy = bits.copy();
        bits.clear(64);
        assert_eq!((bits.count(), copy.count()), (64, 65));
        bits.add(&copy);
        assert_eq!(bits.count(), 65);
    }
}
