//! A connection after STARTTLS, as a stream like any other.
//!
//! What is received is copied once after the kernel has: it is decrypted where the socket's read put it, and moved from
//! there to where it belongs.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::crypto::cipher::OutboundChunks;
use rustls::{Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handshake::{invalid, shake_hands};
use super::protection::{Opened, Protection};
use super::received::{Received, Record};

/// The data of a record (RFC 8446, section 5.1).
const MOST_DATA_BYTES: usize = 16 << 10;
/// So many records leave in one write.
const BATCH: usize = 4;
/// So many pieces of data are put together at a time.
const PIECES: usize = 128;
/// Data is copied in pieces of this size, to and from records. From 8 KiB on glibc copies with an instruction that is
/// many times slower on AMD's processors where the destination is not aligned, as data behind a header is not.
pub(super) const COPY_BYTES: usize = 4 << 10;

/// A stream whose other side has passed the TLS handshake.
pub(crate) struct TlsStream<S> {
    stream: S,
    received: Received,
    protection: Protection,
    unsent: Unsent,
    /// Whether the client has ended its direction.
    is_over: bool,
    /// What the client did that was wrong; it has been told.
    failure: Option<Error>,
    /// Whether nothing more may be sent.
    is_closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Does the TLS handshake. `stream` is the bare socket: nothing that was read from it may be left elsewhere.
    /// When the handshake fails the socket comes back, without what was read from it.
    pub(crate) async fn accept(mut stream: S, config: Arc<ServerConfig>) -> Result<Self, (io::Error, S)> {
        let mut received = Received::new();
        match shake_hands(&mut stream, &mut received, config).await {
            Ok(protection) => Ok(Self {
                stream,
                received,
                protection,
                unsent: Unsent::default(),
                is_over: false,
                failure: None,
                is_closed: false,
            }),
            Err(error) => Err((error, stream)),
        }
    }

    /// Opens the next record, if all of it is here; whether it was.
    fn open_next(&mut self) -> Result<bool, Error> {
        let sealed = self.received.sealed();
        let Some(Record { kind, body }) = self.received.record_at(sealed.start)? else { return Ok(false) };
        let opened = self.protection.open(kind, self.received.bytes(body.clone()))?;
        let data = match opened {
            Opened::Data(range) => body.start + range.start..body.start + range.end,
            Opened::Nothing => body.start..body.start,
            Opened::Goodbye => {
                self.is_over = true;
                body.start..body.start
            }
        };
        self.received.opened(body.end - sealed.start, data);
        Ok(true)
    }

    /// Takes up to one write's worth of data; says how much.
    fn seal(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut chunks: [&[u8]; PIECES] = [&[]; PIECES];
        let parts = pieces.iter().flat_map(|piece| piece.chunks(COPY_BYTES));
        let mut count = 0;
        for (chunk, part) in chunks.iter_mut().zip(parts) {
            *chunk = part;
            count += 1;
        }
        let mut rest = OutboundChunks::new(&chunks[..count]);
        let mut taken = 0;
        for _ in 0..BATCH {
            let length = rest.len().min(MOST_DATA_BYTES);
            if length == 0 {
                break;
            }
            let data;
            (data, rest) = rest.split_at(length);
            self.protection.seal_data(data, |record| self.unsent.push(record)).map_err(io::Error::other)?;
            taken += length;
        }
        Ok(taken)
    }

    /// Tells the client what it did wrong, as far as that can be done at once, and sends nothing more.
    fn fail(&mut self, error: Error, context: &mut Context<'_>) {
        if let Some(alert) = self.protection.seal_failure(&error).filter(|_| !self.is_closed) {
            self.unsent.push(alert);
            // It is on its way, or it will be with the stream's end.
            let _ = self.unsent.poll_send(&mut self.stream, context);
        }
        (self.failure, self.is_closed) = (Some(error), true);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    /// As much as can be had without waiting for more. Many clients close their socket without TLS's own goodbye. NBD
    /// knows by itself whether a message is complete, and so the end of the stream is the end in either way.
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = room.filled().len();
        loop {
            this.received.take_into(room);
            if room.remaining() == 0 || this.is_over {
                return Poll::Ready(Ok(()));
            }
            let got_some = room.filled().len() > before;
            if let Some(failure) = &this.failure {
                return Poll::Ready(if got_some { Ok(()) } else { Err(invalid(failure.clone())) });
            }
            match this.open_next() {
                Ok(true) => {}
                Ok(false) if got_some => return Poll::Ready(Ok(())),
                Ok(false) => {
                    this.is_over = ready!(this.received.poll_fill(&mut this.stream, context))? == 0;
                }
                Err(error) => this.fail(error, context),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    /// Pieces are packed into records of 16 KiB without regard to where one ends: a reply's header shares a
    /// record with its data, and small replies share one.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.unsent.poll_send(&mut this.stream, context))?;
        let taken = this.seal(pieces)?;
        match this.unsent.poll_send(&mut this.stream, context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What did not leave leaves before the next, or when the stream is flushed.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.unsent.poll_send(&mut this.stream, context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    /// Says goodbye as TLS does, then ends the stream.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closed {
            self.is_closed = true;
            let goodbye = self.protection.seal_goodbye().map_err(io::Error::other)?;
            self.unsent.push(goodbye);
        }
        ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Records that are on their way to the socket.
#[derive(Default)]
struct Unsent {
    records: VecDeque<Vec<u8>>,
    /// How much of the first was sent.
    sent_bytes: usize,
}

impl Unsent {
    fn push(&mut self, record: Vec<u8>) {
        self.records.push_back(record);
    }

    /// Sends all there is.
    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.records.is_empty() {
            let mut slices = [IoSlice::new(&[]); BATCH + 1];
            let mut skip = self.sent_bytes;
            for (slice, record) in slices.iter_mut().zip(&self.records) {
                *slice = IoSlice::new(&record[skip..]);
                skip = 0;
            }
            let count = slices.len().min(self.records.len());
            let sent = ready!(Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent_bytes += sent;
            while let Some(first) =
                self.records.front().map(Vec::len).filter(|first| self.sent_bytes >= *first)
            {
                self.sent_bytes -= first;
                self.records.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client;

    use super::*;

    /// How both sides speak this version, and no other.
    pub(crate) fn configs(version: &'static SupportedProtocolVersion) -> (ServerConfig, ClientConfig) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("this version")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .expect("a certificate and its key");
        server.enable_secret_extraction = true;
        server.send_tls13_tickets = 0;
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).expect("its own authority");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("this version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        (server, client)
    }

    /// Both ends of a connection whose pipe holds `pipe_bytes`.
    async fn connected(
        version: &'static SupportedProtocolVersion,
        pipe_bytes: usize,
    ) -> (TlsStream<DuplexStream>, client::TlsStream<DuplexStream>) {
        let (server, client) = configs(version);
        let (ours, theirs) = tokio::io::duplex(pipe_bytes);
        let name = "localhost".try_into().expect("a name");
        let connector = TlsConnector::from(Arc::new(client));
        let (inside, client) =
            tokio::join!(TlsStream::accept(ours, Arc::new(server)), connector.connect(name, theirs));
        (inside.map_err(|(error, _)| error).expect("a client"), client.expect("a server"))
    }

    #[tokio::test]
    async fn another_key_comes_before_the_last_record_that_one_may_protect() {
        let (mut server, mut client) = connected(&rustls::version::TLS13, 1 << 20).await;
        server.protection.most_records = 5;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let mut received = vec![0; sent.len()];
        let (written, read) = tokio::join!(
            async {
                server.write_all(&sent).await?;
                server.flush().await
            },
            client.read_exact(&mut received)
        );
        written.expect("sent");
        read.expect("received");
        assert!(received == sent);
        let under_this_key = server.protection.sent_under_this_key();
        assert!(under_this_key <= 5, "of 62 records one key protected {under_this_key}");
    }

    #[tokio::test]
    async fn tls_1_2_ends_before_its_key_has_protected_too_much() {
        let (mut server, mut client) = connected(&rustls::version::TLS12, 1 << 20).await;
        server.protection.most_records = 5;
        // The handshake's end was the first.
        for _ in 1..5 {
            server.write_all(b"data").await.expect("sent");
        }
        server.write_all(b"data").await.expect_err("there is no other key");
        server.shutdown().await.expect("a goodbye");
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.expect("the end, with a goodbye");
        assert_eq!(received, b"data".repeat(4));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_holds_one_write_and_gets_all_of_it_later() {
        let (mut server, mut client) = connected(&rustls::version::TLS13, 4096).await;
        let sent = vec![7; 1 << 20];
        let mut taken = 0;
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(count) = Pin::new(&mut server).poll_write(&mut context, &sent[taken..]) {
            taken += count.expect("taken");
        }
        assert_eq!(taken, BATCH * MOST_DATA_BYTES);
        let mut received = vec![0; taken];
        let (flushed, read) = tokio::join!(server.flush(), client.read_exact(&mut received));
        flushed.expect("sent");
        read.expect("received");
        assert!(received == sent[..taken]);
    }
}
