//! Bytes received and not yet taken: one read of the socket brings many requests.
//!
//! Of small ones, that is. While payloads are large, a read of all there is room for would bring half a payload along
//! with its header, to be copied once more to where it belongs (4 to 14 % of a lane's time in a profile of 128 KiB
//! writes); so it then brings little more than headers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// How much one read may bring. Holds a full batch of small requests (fifteen 4 KiB writes, or two
/// thousand reads) and is a small part of an L2 cache.
const CAPACITY_BYTES: usize = 64 << 10;

/// The same while payloads are large.
const SIP_BYTES: usize = 1 << 10;
/// From this size on a payload is large.
const LARGE_PAYLOAD_BYTES: usize = 32 << 10;

/// A lane's receive buffer.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// How much to hold at once: all of `bytes`, or a sip.
    room_bytes: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            room_bytes: CAPACITY_BYTES,
        }
    }

    /// What is received next is a payload of `len` bytes, and what follows will be like it.
    pub(crate) fn expect_like(&mut self, len: usize) {
        self.room_bytes = if len < LARGE_PAYLOAD_BYTES { CAPACITY_BYTES } else { SIP_BYTES };
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
        // More than a sip may be here from before. Then it is one byte more, for none would look like the end.
        let until = self.room_bytes.max(self.end + 1).min(CAPACITY_BYTES);
        let mut room = ReadBuf::new(&mut self.bytes[self.end..until]);
        ready!(Pin::new(stream).poll_read(context, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much one read brings of a stream that has plenty.
    fn fill(inbox: &mut Inbox) -> usize {
        let plenty = [7; 2 * CAPACITY_BYTES];
        let mut context = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(Ok(count)) = inbox.poll_fill(&mut &plenty[..], &mut context) else {
            panic!("the bytes are there")
        };
        count
    }

    #[test]
    fn little_of_a_large_payload_comes_with_its_header_and_all_of_small_ones() {
        let mut inbox = Inbox::new();
        assert_eq!(fill(&mut inbox), CAPACITY_BYTES);
        inbox.consume(CAPACITY_BYTES - 20);
        inbox.expect_like(LARGE_PAYLOAD_BYTES);
        assert_eq!(fill(&mut inbox), SIP_BYTES - 20);
        inbox.expect_like(4096);
        assert_eq!(fill(&mut inbox), CAPACITY_BYTES - SIP_BYTES);
    }

    #[test]
    fn there_is_a_byte_to_read_whatever_is_here() {
        let mut inbox = Inbox::new();
        inbox.expect_like(LARGE_PAYLOAD_BYTES);
        assert_eq!(fill(&mut inbox), SIP_BYTES);
        assert_eq!(fill(&mut inbox), 1);
        assert_eq!(inbox.unread().len(), SIP_BYTES + 1);
    }
}
