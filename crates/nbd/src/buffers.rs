//! The data buffers of one lane: reused while hot, bounded in bytes.
//!
//! Buffers come in sizes of powers of two and are handed out last in, first out, so that a lane that
//! serves small requests works in the same few pages, which stay in the L2 cache. What is lent out and
//! what is kept for reuse never exceed the budget together: that is a connection's whole memory for data.

use sealblk_block::Buffer;

/// The smallest size: one page.
const SMALLEST_BYTES: usize = 4096;
/// How many sizes: 4 KiB, 8 KiB, … 32 MiB, the largest payload.
const SIZES: usize = 14;

/// Buffers lent and kept.
pub(crate) struct Buffers {
    kept: [Vec<Buffer>; SIZES],
    kept_bytes: usize,
    lent_bytes: usize,
    budget_bytes: usize,
}

impl Buffers {
    /// An empty pool that never holds and lends more than `budget_bytes`, or one largest buffer.
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self {
            kept: std::array::from_fn(|_| Vec::with_capacity(8)),
            kept_bytes: 0,
            lent_bytes: 0,
            budget_bytes: budget_bytes.max(SMALLEST_BYTES << (SIZES - 1)),
        }
    }

    /// A buffer of length `len`, holding old bytes, unless the budget is used up.
    ///
    /// # Panics
    /// If `len` is over 32 MiB, which no checked request is.
    pub(crate) fn try_take(&mut self, len: usize) -> Option<Buffer> {
        let size = len.next_power_of_two().max(SMALLEST_BYTES);
        if self.lent_bytes.saturating_add(size) > self.budget_bytes {
            return None;
        }
        let mut buffer = match self.kept[size_index(size)].pop() {
            Some(buffer) => {
                self.kept_bytes -= size;
                buffer
            }
            None => {
                self.make_room(size);
                Buffer::new(size)
            }
        };
        self.lent_bytes += size;
        buffer.set_len(len);
        Some(buffer)
    }

    /// Takes a buffer back for reuse.
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        let size = buffer.capacity();
        self.lent_bytes -= size;
        self.kept_bytes += size;
        self.kept[size_index(size)].push(buffer);
    }

    /// Bytes kept for reuse.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Lets go of everything that is kept.
    pub(crate) fn trim(&mut self) {
        for kept in &mut self.kept {
            kept.clear();
        }
        self.kept_bytes = 0;
    }

    /// Lets go of kept buffers, the largest first, until `size` more bytes fit the budget.
    fn make_room(&mut self, size: usize) {
        let held = |pool: &Self| pool.lent_bytes + pool.kept_bytes + size;
        for index in (0..SIZES).rev() {
            while held(self) > self.budget_bytes {
                let Some(buffer) = self.kept[index].pop() else { break };
                self.kept_bytes -= buffer.capacity();
            }
        }
    }
}

/// Where buffers of a size are kept.
fn size_index(size: usize) -> usize {
    let index = (size / SMALLEST_BYTES).trailing_zeros() as usize;
    assert!(size == SMALLEST_BYTES << index && index < SIZES, "a pool's buffers have the pool's sizes");
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_buffer_given_back_last_is_lent_first() {
        let mut buffers = Buffers::new(0);
        let (mut first, second) =
            (buffers.try_take(512).expect("free"), buffers.try_take(4096).expect("free"));
        first[0] = 0xaa;
        buffers.give_back(second);
        buffers.give_back(first);
        let again = buffers.try_take(1).expect("free");
        assert_eq!((again[0], again.len()), (0xaa, 1));
    }

    #[test]
    fn lent_and_kept_bytes_stay_within_the_budget() {
        let mut buffers = Buffers::new(36 * MIB);
        let large = buffers.try_take(32 * MIB).expect("free");
        assert!(buffers.try_take(5 * MIB).is_none(), "8 MiB more would be 40");
        let small = buffers.try_take(4 * MIB).expect("4 MiB more are 36");
        buffers.give_back(large);
        buffers.give_back(small);
        assert_eq!(buffers.kept_bytes(), 36 * MIB);
        let other_size = buffers.try_take(MIB).expect("nothing is lent");
        assert_eq!(buffers.kept_bytes(), 4 * MIB, "the largest made room");
        buffers.give_back(other_size);
        buffers.trim();
        assert_eq!(buffers.kept_bytes(), 0);
    }
}
