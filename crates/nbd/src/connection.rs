//! One connection from its first byte to its last: negotiation, then a lane.
//!
//! Generic over the stream, so that Unix sockets, TCP, TLS and a test's in-memory pipe are served by the
//! same code. [`crate::server`] calls [`serve_connection`] on a thread of its own for each client.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockError, ByteDevice};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::export::{Export, ExportInfo};
use crate::inbox::Inbox;
use crate::lane::Lane;
use crate::link::Link;
use crate::negotiation::{self, Negotiation, Outcome, TlsMode};
use crate::request;
use crate::session::Session;
use crate::stats::{Meter, Statistics};
use crate::stop::StopSignal;
use crate::tls::{TlsError, TlsServer, TlsStream};

/// How long a client may go on negotiating with a server that is shutting down.
const NEGOTIATION_STOP_GRACE: Duration = Duration::from_millis(200);

/// Bounds on what clients may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; further ones are closed at once.
    pub max_connections: usize,
    /// Connections at a time of one user (Unix sockets) or one address (TCP); further ones are closed at once.
    pub max_connections_per_peer: usize,
    /// Requests of one connection that may wait for storage at a time; at least 1. More are received only
    /// when one of them is done.
    pub workers: usize,
    /// Bytes of data buffers of one connection; at least 32 MiB, the largest payload. A request that
    /// does not fit waits, and with it everything behind it.
    pub in_flight_bytes: usize,
    /// From the first byte of the greeting to the end of the negotiation, the TLS handshake included.
    pub handshake: Duration,
    /// How long a client may leave a request's header or payload unfinished without sending any of it.
    /// Between two requests it may be silent for ever.
    pub message_stall: Duration,
    /// How long a client may take none of the replies that wait for it.
    pub reply_stall: Duration,
    /// From the order to stop to the moment when connections that are still open are cut.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16,
            max_connections_per_peer: usize::MAX,
            workers: 32,
            in_flight_bytes: 36 << 20,
            handshake: Duration::from_secs(10),
            message_stall: Duration::from_secs(60),
            reply_stall: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }
}

/// An orderly end of a connection. Every accepted request was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The client ended the negotiation.
    Aborted,
    /// The client sent DISC.
    Disconnected,
    /// The client closed the stream between two messages.
    EndOfStream,
    /// The server is stopping.
    Stopped,
}

/// What ended a connection out of order. No request was carried out in part.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream ended within a message.
    #[error("the client closed the connection within a message")]
    Truncated,
    /// The negotiation took too long.
    #[error("the client did not finish the negotiation in time")]
    HandshakeTimeout,
    /// The TLS handshake failed: the client does not speak TLS, or is not let in, or does not let us.
    #[error("TLS handshake")]
    Tls(#[source] io::Error),
    /// The certificates have changed since the server was started, and cannot be used now.
    #[error("TLS certificates")]
    Certificates(#[from] TlsError),
    /// There was no connection left for a newcomer, and this client was the slowest to negotiate.
    #[error("the client had not finished the negotiation when another needed its place")]
    MadeRoom,
    /// The client began a message and stopped sending.
    #[error("the client stopped in the middle of a message")]
    MessageStalled,
    /// The client stopped taking its replies.
    #[error("the client does not take its replies")]
    ReplyStalled,
    /// The client broke the rules of the negotiation.
    #[error("negotiation")]
    Negotiation(#[from] negotiation::Violation),
    /// The client broke the rules of transmission.
    #[error("transmission")]
    Request(#[from] request::Violation),
    /// The stream failed.
    #[error("socket")]
    Socket(#[source] io::Error),
    /// The device could not be opened for this connection.
    #[error("opening the device for a connection")]
    Open(#[source] BlockError),
}

/// Serves one client over `stream` until either side ends it; without TLS.
///
/// Must run on a current-thread runtime with time (and I/O, if `stream` or the device needs it) where
/// local tasks can be spawned: a `LocalSet` or a `LocalRuntime`. The device's lane is opened when the
/// client has chosen the export, and not before; what it serves is counted in `statistics`. Dropping the future cuts the connection.
pub async fn serve_connection<S, D>(
    stream: S,
    device: &ByteDevice<D>,
    info: &ExportInfo,
    limits: &Limits,
    stop: StopSignal,
    statistics: &Arc<Statistics>,
) -> Result<Ended, ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    D: BlockDevice,
{
    Service { device, info, limits, stop, statistics, established: &|| {} }.serve(stream).await
}

/// What one connection serves, within which bounds, and who is told.
pub(crate) struct Service<'a, D> {
    pub(crate) device: &'a ByteDevice<D>,
    pub(crate) info: &'a ExportInfo,
    pub(crate) limits: &'a Limits,
    pub(crate) stop: StopSignal,
    pub(crate) statistics: &'a Arc<Statistics>,
    /// Called when the client has chosen the export.
    pub(crate) established: &'a dyn Fn(),
}

impl<D: BlockDevice> Service<'_, D> {
    /// Serves `stream`, as [`serve_connection`] says.
    pub(crate) async fn serve<S>(self, stream: S) -> Result<Ended, ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let export = Export::new(self.info.clone(), self.device.geometry());
        let mut negotiation = Negotiation::new(&export, TlsMode::Off);
        let mut handshake = Handshake::new(stream, &self);
        let outcome = handshake.negotiate(&mut negotiation).await?;
        self.conclude(handshake, negotiation, outcome, &export).await
    }

    /// The same, but only after the client has come inside `tls`.
    pub(crate) async fn serve_inside<S>(self, tls: &TlsServer, stream: S) -> Result<Ended, ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let export = Export::new(self.info.clone(), self.device.geometry());
        let mut negotiation = Negotiation::new(&export, TlsMode::Required);
        let mut outside = Handshake::new(stream, &self);
        let outcome = outside.negotiate(&mut negotiation).await?;
        if outcome != Outcome::StartTls {
            return self.conclude(outside, negotiation, outcome, &export).await;
        }
        outside.send(negotiation.replies()).await?;
        let mut inside = outside.upgrade(tls, self.limits).await?;
        negotiation.tls_established();
        let outcome = inside.negotiate(&mut negotiation).await?;
        self.conclude(inside, negotiation, outcome, &export).await
    }

    /// What the negotiation came to: an end, or a lane.
    async fn conclude<S>(
        self,
        mut handshake: Handshake<S>,
        mut negotiation: Negotiation<'_>,
        outcome: Outcome,
        export: &Export,
    ) -> Result<Ended, ConnectionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        match outcome {
            Outcome::Aborted => {
                // The client may be gone without waiting for its ACK; that is its right.
                let _ = handshake.send(negotiation.replies()).await;
                Link::new(handshake.stream, handshake.inbox, self.limits).close().await;
                Ok(Ended::Aborted)
            }
            Outcome::StartTls => unreachable!("it is granted where TLS is required, and once"),
            Outcome::Transmission => {
                let workers = self.limits.workers.max(1);
                let lane = self.device.open_lane(workers).map_err(ConnectionError::Open)?;
                (self.established)();
                handshake.send(negotiation.replies()).await?;
                let session = Session { agreement: negotiation.agreement(), export: export.clone() };
                let link = Link::new(handshake.stream, handshake.inbox, self.limits);
                let meter = Meter::new(self.statistics);
                Lane::new(lane, session, link, self.limits, meter).run(workers, self.stop).await
            }
        }
    }
}

/// The I/O of a negotiation, under its deadline.
struct Handshake<S> {
    stream: S,
    inbox: Inbox,
    deadline: Instant,
    stop: StopSignal,
    stopping: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Handshake<S> {
    fn new<D>(stream: S, service: &Service<'_, D>) -> Self {
        let deadline = Instant::now() + service.limits.handshake;
        Self { stream, inbox: Inbox::new(), deadline, stop: service.stop.clone(), stopping: false }
    }

    /// Goes inside TLS, under the same deadline. Nothing that was received outside may be left: the stream goes
    /// on bare (negotiation saw to it that whoever sent more than STARTTLS is not here).
    async fn upgrade(
        mut self,
        tls: &TlsServer,
        limits: &Limits,
    ) -> Result<Handshake<TlsStream<S>>, ConnectionError> {
        assert!(self.inbox.unread().is_empty(), "bytes behind STARTTLS end the negotiation");
        let mut accepting = pin!(TlsStream::accept(self.stream, tls.current()?));
        let accepted = loop {
            tokio::select! {
                accepted = timeout_at(self.deadline, accepting.as_mut()) => break accepted,
                () = self.stop.draining(), if !self.stopping => {
                    self.stopping = true;
                    self.deadline = self.deadline.min(Instant::now() + NEGOTIATION_STOP_GRACE);
                }
            }
        };
        match accepted {
            Err(_) => Err(ConnectionError::HandshakeTimeout),
            Ok(Err((error, stream))) => {
                // So that the client learns from TLS's alert why.
                Link::new(stream, self.inbox, limits).close().await;
                Err(ConnectionError::Tls(error))
            }
            // That the server stops has to be told to the negotiation once more.
            Ok(Ok(stream)) => {
                let (inbox, deadline, stop) = (self.inbox, self.deadline, self.stop);
                Ok(Handshake { stream, inbox, deadline, stop, stopping: false })
            }
        }
    }

    /// Talks until the negotiation ends. The last replies are left to the caller, who may have to do
    /// something before the client learns of its success.
    async fn negotiate(&mut self, negotiation: &mut Negotiation<'_>) -> Result<Outcome, ConnectionError> {
        loop {
            self.send(negotiation.replies()).await?;
            if self.inbox.unread().is_empty() {
                self.receive(negotiation).await?;
            }
            let fed = negotiation.feed(self.inbox.unread())?;
            self.inbox.consume(fed.consumed);
            if let Some(outcome) = fed.ended {
                return Ok(outcome);
            }
        }
    }

    /// Sends `replies` and empties them.
    async fn send(&mut self, replies: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let sending = async {
            self.stream.write_all(replies).await?;
            self.stream.flush().await
        };
        let sent = timeout_at(self.deadline, sending).await;
        replies.clear();
        sent.map_err(|_| ConnectionError::HandshakeTimeout)?.map_err(ConnectionError::Socket)
    }

    /// Receives more bytes. A server that begins to stop says so to each further option, and gives the
    /// client a moment to take it in.
    async fn receive(&mut self, negotiation: &mut Negotiation<'_>) -> Result<(), ConnectionError> {
        loop {
            let fill = poll_fn(|context| self.inbox.poll_fill(&mut self.stream, context));
            tokio::select! {
                filled = timeout_at(self.deadline, fill) => {
                    return match filled {
                        Ok(Ok(0)) => Err(ConnectionError::Truncated),
                        Ok(Ok(_)) => Ok(()),
                        Ok(Err(error)) => Err(ConnectionError::Socket(error)),
                        Err(_) => Err(ConnectionError::HandshakeTimeout),
                    };
                }
                () = self.stop.draining(), if !self.stopping => {
                    self.stopping = true;
                    negotiation.shut_down();
                    self.deadline = self.deadline.min(Instant::now() + NEGOTIATION_STOP_GRACE);
                }
            }
        }
    }
}
