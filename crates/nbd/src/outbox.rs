//! Replies that are finished and not yet sent: many leave in one write, header and data together.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sealblk_block::Buffer;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::buffers::Buffers;
use crate::reply::Head;

/// Pieces in one vectored write: the replies to 64 reads. The kernel would take 1024; more than this
/// saves nothing, for the calls are already few, and the array is set up anew for each.
const PIECES: usize = 128;
/// Bytes after which replies are sent although more requests are at hand: the client gets to work while
/// the rest of the batch is served, and the buffers are hot when they are used again. With 4 KiB reads 32
/// deep, 64 KiB gave a tenth more than one send for the whole batch; less gave no more.
const PROMPT_BYTES: usize = 64 << 10;
/// The same in replies, for those that carry no data: a client that writes 32 deep goes on while the second half of
/// its batch is served.
const PROMPT_REPLIES: usize = 16;
/// Replies after which no further request is received until some were sent: a client that never reads
/// costs this many entries, and no more.
const MOST_REPLIES: usize = 1024;

/// A lane's queue of replies.
pub(crate) struct Outbox {
    replies: VecDeque<Reply>,
    /// How much of the first reply was sent.
    sent_bytes: usize,
    unsent_bytes: usize,
    /// The stream took bytes that it has not passed on yet, as TLS does.
    unflushed: bool,
    /// When the client stopped taking bytes, if it did.
    stuck_since: Option<Instant>,
    /// Set when writing has become impossible: replies are dropped from then on.
    closed: bool,
}

struct Reply {
    head: Head,
    tail: Tail,
}

/// What follows a reply's head.
pub(crate) enum Tail {
    /// Data; the buffer goes back to the pool once it is sent.
    Data(Buffer),
    /// An error's text, or nothing.
    Text(&'static str),
}

impl Tail {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Data(buffer) => buffer,
            Self::Text(text) => text.as_bytes(),
        }
    }

    fn give_back(self, buffers: &mut Buffers) {
        if let Self::Data(buffer) = self {
            buffers.give_back(buffer);
        }
    }
}

impl Reply {
    fn len(&self) -> usize {
        self.head.len() + self.tail.bytes().len()
    }
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            replies: VecDeque::with_capacity(PIECES),
            sent_bytes: 0,
            unsent_bytes: 0,
            unflushed: false,
            stuck_since: None,
            closed: false,
        }
    }

    /// Queues a reply. Its buffer goes back to `buffers` once it is sent.
    pub(crate) fn push(&mut self, head: Head, tail: Tail, buffers: &mut Buffers) {
        if self.closed {
            return tail.give_back(buffers);
        }
        let reply = Reply { head, tail };
        self.unsent_bytes += reply.len();
        self.replies.push_back(reply);
    }

    /// Whether everything has left.
    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty() && !self.unflushed
    }

    /// Since when there is something to send and the client takes none of it.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        self.stuck_since
    }

    /// Whether enough is queued to be sent before the next request is looked at.
    pub(crate) fn is_due(&self) -> bool {
        self.unsent_bytes >= PROMPT_BYTES || self.replies.len() >= PROMPT_REPLIES
    }

    /// Whether nothing more may be received before something was sent.
    pub(crate) fn is_full(&self) -> bool {
        self.replies.len() >= MOST_REPLIES
    }

    /// Drops everything, and whatever will be pushed: nobody is there to read it.
    pub(crate) fn close(&mut self, buffers: &mut Buffers) {
        self.closed = true;
        self.unflushed = false;
        self.stuck_since = None;
        self.unsent_bytes = 0;
        self.sent_bytes = 0;
        for reply in self.replies.drain(..) {
            reply.tail.give_back(buffers);
        }
    }

    /// Sends until nothing is queued or the stream takes no more.
    pub(crate) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        buffers: &mut Buffers,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let sent = self.poll_send_all(stream, buffers, context);
        match sent {
            Poll::Pending => _ = self.stuck_since.get_or_insert_with(Instant::now),
            Poll::Ready(_) => self.stuck_since = None,
        }
        sent
    }

    fn poll_send_all<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        buffers: &mut Buffers,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.replies.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let count = self.fill_pieces(&mut pieces);
            let written = ready!(Pin::new(&mut *stream).poll_write_vectored(context, &pieces[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.stuck_since = None;
            self.forget(written, buffers);
        }
        ready!(Pin::new(stream).poll_flush(context))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Points `pieces` at unsent bytes, in order; says how many are used.
    fn fill_pieces<'a>(&'a self, pieces: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.sent_bytes;
        let mut parts = self.replies.iter().flat_map(|reply| [&*reply.head, reply.tail.bytes()]);
        let mut count = 0;
        for piece in pieces {
            // Only parts of the first reply can be sent already; replies without data have an empty part, and block status has no head.
            let Some(part) = parts.find_map(|part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                (skipped < part.len()).then(|| &part[skipped..])
            }) else {
                break;
            };
            *piece = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// Takes `written` bytes off the front, and gives back the buffers of replies sent whole.
    fn forget(&mut self, written: usize, buffers: &mut Buffers) {
        self.unsent_bytes -= written;
        self.sent_bytes += written;
        while let Some(first) = self.replies.front() {
            let len = first.len();
            if self.sent_bytes < len {
                break;
            }
            self.sent_bytes -= len;
            if let Some(sent) = self.replies.pop_front() {
                sent.tail.give_back(buffers);
            }
        }
    }
}
