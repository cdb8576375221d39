//! Aligned I/O buffers, owned by the operation that uses them.

use std::ops::{Deref, DerefMut};

/// Alignment of every buffer's first byte: enough for O_DIRECT on any file system.
const ALIGNMENT: usize = 4096;

/// A heap buffer whose first byte is aligned to 4096, with a fixed capacity and a settable length.
///
/// Its bytes never move while it lives, so that the kernel may be given their address for as long as
/// an operation owns the buffer. Fresh buffers hold zeros; reused ones hold old bytes, and whoever
/// sets the length must have overwritten what it shows.
pub struct Buffer {
    // Never grown after construction: `start` would lose its meaning.
    storage: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl Buffer {
    /// A zeroed buffer of `capacity` bytes, with its length set to `capacity`.
    pub fn new(capacity: usize) -> Self {
        let storage = vec![0; capacity + ALIGNMENT];
        let start = storage.as_ptr().align_offset(ALIGNMENT);
        Self { storage, start, len: capacity, capacity }
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length to `len` bytes, at most the capacity. Bytes keep what they held.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer does not grow");
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for Buffer {
    /// Length and capacity only: the bytes are a guest's data.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}
