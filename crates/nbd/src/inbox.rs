//! Bytes received and not yet taken: one read of the socket brings many requests.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// How much one read may bring. Holds a full batch of small requests (fifteen 4 KiB writes, or two
/// thousand reads) and is a small part of an L2 cache.
const CAPACITY_BYTES: usize = 64 << 10;

/// A lane's receive buffer.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What was received and not taken.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Fills `target` with the next bytes, once they are all here; says whether they are.
    pub(crate) fn take_exact(&mut self, target: &mut [u8]) -> bool {
        let whole = self.unread().len() >= target.len();
        if whole {
            self.take_into(target);
        }
        whole
    }

    /// Moves as much as there is into `target`; says how much.
    pub(crate) fn take_into(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.unread().len());
        target[..count].copy_from_slice(&self.unread()[..count]);
        self.consume(count);
        count
    }

    /// Forgets the next `count` bytes, at most those that are here.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.unread().len(), "only what was received can be taken");
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once from `stream`; 0 bytes is the end of the stream. There is room whenever less than a
    /// whole header, or none of a payload, is unread: the only times when anybody wants more.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(stream).poll_read(context, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}
