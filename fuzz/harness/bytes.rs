//! Bytes as a source of numbers and of choices.

/// A reader of big-endian numbers that takes what is there and says what is not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'b>(pub(crate) &'b [u8]);

impl<'b> Bytes<'b> {
    /// The next `count` bytes, if there are as many.
    pub(crate) fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next number of `width` bytes, up to eight.
    pub(crate) fn number(&mut self, width: usize) -> Option<u64> {
        Some(self.take(width)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// The next number of four bytes.
    pub(crate) fn word(&mut self) -> Option<u32> {
        self.number(4).map(|word| u32::try_from(word).expect("four bytes"))
    }

    /// The next number of two bytes.
    pub(crate) fn half(&mut self) -> Option<u16> {
        self.number(2).map(|half| u16::try_from(half).expect("two bytes"))
    }

    /// A number below `bound`, made of the next byte; 0 when there are no more.
    pub(crate) fn choice(&mut self, bound: u64) -> u64 {
        self.number(1).unwrap_or(0) % bound
    }

    /// One of `things`, by the next byte.
    pub(crate) fn pick<T: Copy>(&mut self, things: &[T]) -> T {
        let index = self.choice(things.len().try_into().expect("few things"));
        things[usize::try_from(index).expect("below their number")]
    }
}

/// Lengths of pieces, from a seed: mostly short, so that messages are cut everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Pieces(u64);

impl Pieces {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Iterator for Pieces {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, size) = (self.0 >> 62, self.0 >> 33 & 0xffff);
        let length = match kind {
            0 => size % 4,
            1 => size % 24,
            2 => size % 600,
            _ => size,
        };
        Some(usize::try_from(length).expect("16 bits") + 1)
    }
}
