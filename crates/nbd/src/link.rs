//! The socket of a lane, and the rule about it: whoever holds the link does all socket I/O, in both
//! directions. Other workers only queue replies and nudge the holder.
//!
//! [`Link::wait`] is the only place where a lane waits for its client. It sends whatever is queued
//! before it sleeps, so that replies leave in batches without any timer, and it goes on sending while it
//! waits for input or memory: a client that reads slowly delays itself and nobody else, and a client
//! that writes before it reads cannot deadlock the lane until the memory bounds are reached.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sealblk_block::Buffer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use crate::connection::{ConnectionError, Ended, Limits};
use crate::inbox::Inbox;
use crate::lane::Shared;
use crate::patience::Patience;
use crate::stall::StallClock;

/// A stopping lane takes silence of this length to mean that the client is waiting for replies.
const STOP_QUIET: Duration = Duration::from_millis(50);
/// After this long without a request, buffers kept for reuse are let go.
const IDLE: Duration = Duration::from_secs(2);
/// So many bytes of buffers stay even then: a depth of 32 requests of 16 KiB starts without an allocation.
const IDLE_KEPT_BYTES: usize = 512 << 10;
/// How long a closed connection waits for the client to close too. Closing a socket with unread bytes
/// resets it, and a reset may overtake replies on their way.
const LINGER: Duration = Duration::from_secs(1);

/// Why no further request will be received.
pub(crate) type End = Result<Ended, ConnectionError>;

/// A lane's stream and the bytes received from it.
pub(crate) struct Link<S> {
    stream: S,
    inbox: Inbox,
    patience: Patience,
    stall: StallClock,
    /// How long a client may leave a message unfinished without sending any of it.
    message_stall: Duration,
    /// How long it may take none of its replies.
    reply_stall: Duration,
}

/// What a wait is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The rest of a message: the client has begun it and owes it.
    Message,
    /// Something that a client in good order may take as long with as it likes, or that is ours to bring.
    Other,
}

/// What came of waiting for input.
enum Input {
    Bytes,
    EndOfStream,
    /// Nothing, but the lane was told to stop: the rules of waiting have changed.
    Stopping,
    /// Nothing, for as long as the waiter had patience.
    Quiet,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    pub(crate) fn new(stream: S, inbox: Inbox, limits: &Limits) -> Self {
        Self {
            stream,
            inbox,
            patience: Patience::new(),
            stall: StallClock::default(),
            message_stall: limits.message_stall,
            reply_stall: limits.reply_stall,
        }
    }

    /// Receives the next request's header into all of `header`.
    pub(crate) async fn next_header(&mut self, lane: &Shared, header: &mut [u8]) -> Result<(), End> {
        if lane.outbox().is_due() {
            self.send_queued(lane).await?;
        }
        loop {
            if self.inbox.take_exact(header) {
                return Ok(());
            }
            let between_requests = self.inbox.unread().is_empty();
            match self.input(lane, between_requests).await? {
                Input::Bytes | Input::Stopping => {}
                Input::EndOfStream if between_requests => return Err(Ok(Ended::EndOfStream)),
                Input::EndOfStream => return Err(Err(ConnectionError::Truncated)),
                Input::Quiet if lane.is_stopping() => return Err(Ok(Ended::Stopped)),
                Input::Quiet => lane.buffers().trim(),
            }
        }
    }

    /// A buffer of `len` bytes, as soon as the memory bounds allow. Until then nothing is received, which
    /// is the back-pressure that NBD has.
    pub(crate) async fn buffer(&mut self, lane: &Shared, len: usize) -> Result<Buffer, End> {
        if let Some(buffer) = lane.buffers().try_take(len) {
            return Ok(buffer);
        }
        self.wait(lane, Awaited::Other, |_, _| {
            lane.buffers().try_take(len).map_or(Poll::Pending, |buffer| Poll::Ready(Ok(buffer)))
        })
        .await
    }

    /// Receives a payload into all of `buffer`: first what is here already, the rest straight from the
    /// stream.
    pub(crate) async fn receive(&mut self, lane: &Shared, buffer: &mut [u8]) -> Result<(), End> {
        self.inbox.expect_like(buffer.len());
        let mut filled = self.inbox.take_into(buffer);
        while filled < buffer.len() {
            let count = self
                .wait(lane, Awaited::Message, |link, context| {
                    let mut room = ReadBuf::new(&mut buffer[filled..]);
                    ready!(Pin::new(&mut link.stream).poll_read(context, &mut room))?;
                    Poll::Ready(Ok(room.filled().len()))
                })
                .await?;
            if count == 0 {
                return Err(Err(ConnectionError::Truncated));
            }
            filled += count;
        }
        Ok(())
    }

    /// Receives a payload that nobody wants.
    pub(crate) async fn discard(&mut self, lane: &Shared, payload_bytes: u32) -> Result<(), End> {
        let mut left = usize::try_from(payload_bytes).expect("at most 32 MiB");
        // It is not to be received elsewhere: the larger the gulps the better.
        self.inbox.expect_like(0);
        loop {
            let here = left.min(self.inbox.unread().len());
            self.inbox.consume(here);
            left -= here;
            if left == 0 {
                return Ok(());
            }
            if let Input::EndOfStream = self.input(lane, false).await? {
                return Err(Err(ConnectionError::Truncated));
            }
        }
    }

    /// Sends replies until all that was accepted is answered. The last task of the worker that met the
    /// end of input.
    pub(crate) async fn answer_the_rest(&mut self, lane: &Shared) -> Result<(), End> {
        let answered = || if lane.is_all_answered() { Poll::Ready(Ok(())) } else { Poll::Pending };
        self.wait(lane, Awaited::Other, |_, _| answered()).await
    }

    /// Ends the stream so that the client sees it, and waits a little for the client to do the same.
    pub(crate) async fn close(mut self) {
        let until_closed = async {
            // Failing here means that the client is gone already: the purpose is reached. It may also wait, for
            // TLS has a last message to send.
            if self.stream.shutdown().await.is_err() {
                return;
            }
            loop {
                let unread = self.inbox.unread().len();
                self.inbox.consume(unread);
                match poll_fn(|context| self.inbox.poll_fill(&mut self.stream, context)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, until_closed).await;
    }

    /// Waits for input. Between requests the wait ends early when the lane is told to stop, and at the
    /// end of its patience: when stopping, or with buffers to let go. Within a message it does not.
    async fn input(&mut self, lane: &Shared, between_requests: bool) -> Result<Input, End> {
        let stopping = lane.is_stopping();
        let patience = match between_requests {
            true if stopping => Some(STOP_QUIET),
            true if lane.buffers().kept_bytes() > IDLE_KEPT_BYTES => Some(IDLE),
            _ => None,
        };
        let awaited = if between_requests { Awaited::Other } else { Awaited::Message };
        let arrival = self.wait(lane, awaited, |link, context| {
            if between_requests && lane.is_stopping() && !stopping {
                return Poll::Ready(Ok(Input::Stopping));
            }
            let count = ready!(link.inbox.poll_fill(&mut link.stream, context))?;
            Poll::Ready(Ok(if count == 0 { Input::EndOfStream } else { Input::Bytes }))
        });
        match patience {
            None => arrival.await,
            Some(patience) => tokio::time::timeout(patience, arrival).await.unwrap_or(Ok(Input::Quiet)),
        }
    }

    /// Sends what is queued, as far as the client takes it; waits only if the queue is full.
    async fn send_queued(&mut self, lane: &Shared) -> Result<(), End> {
        let mut tried = false;
        self.wait(lane, Awaited::Other, |_, _| {
            let enough = tried && !lane.outbox().is_full();
            tried = true;
            if enough { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Waits until `ready` says so, sending queued replies meanwhile. Before it sleeps it looks again for a
    /// while, if that has paid lately. A client that stalls ends the wait.
    async fn wait<T>(
        &mut self,
        lane: &Shared,
        awaited: Awaited,
        mut ready: impl FnMut(&mut Self, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Result<T, End> {
        let mut since = None;
        let outcome = poll_fn(|context| {
            if let Poll::Ready(outcome) = ready(self, context) {
                return Poll::Ready(outcome.map_err(ConnectionError::Socket));
            }
            if !lane.outbox().is_empty() {
                let sent = lane.poll_send(&mut self.stream, context);
                if let Poll::Ready(Err(error)) = sent {
                    return Poll::Ready(Err(ConnectionError::Socket(error)));
                }
                // Sending gave back buffers and room in the queue, which may be what is waited for.
                if let Poll::Ready(outcome) = ready(self, context) {
                    return Poll::Ready(outcome.map_err(ConnectionError::Socket));
                }
            }
            lane.nudge_when_queued(context.waker());
            if self.patience.look_again() {
                // The runtime asks the kernel for events without sleeping, and comes back.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let since = (awaited == Awaited::Message).then(|| *since.get_or_insert_with(Instant::now));
            self.poll_stall(lane, since, context).map(Err)
        })
        .await;
        self.patience.over();
        outcome.map_err(|error| {
            lane.give_up_sending();
            Err(error)
        })
    }

    /// Ready when the client has stalled: with a message that is waited for `since` then, or with its replies.
    fn poll_stall(
        &mut self,
        lane: &Shared,
        since: Option<Instant>,
        context: &mut Context<'_>,
    ) -> Poll<ConnectionError> {
        let message = since.map(|since| (since + self.message_stall, ConnectionError::MessageStalled));
        let reply = lane.outbox().stuck_since();
        let reply = reply.map(|since| (since + self.reply_stall, ConnectionError::ReplyStalled));
        let first = message.into_iter().chain(reply).min_by_key(|(due, _)| *due);
        let Some((due, error)) = first else { return Poll::Pending };
        self.stall.poll(due, context).map(|()| error)
    }
}
