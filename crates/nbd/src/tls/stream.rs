//! A connection after STARTTLS, as a stream like any other.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server;

/// How much one read of the socket may bring: four records of the largest size. rustls itself asks for 4 KiB at
/// a time, which would be 32 system calls for a request of 128 KiB.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// A stream whose other side has passed the TLS handshake.
#[derive(Debug)]
pub(crate) struct TlsStream<S>(server::TlsStream<ReadAhead<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Does the TLS handshake. `stream` is the bare socket: nothing that was read from it may be left elsewhere.
    /// When the handshake fails the socket comes back, without what was read from it.
    pub(crate) async fn accept(stream: S, config: Arc<ServerConfig>) -> Result<Self, (io::Error, S)> {
        let accepting = TlsAcceptor::from(config).accept(ReadAhead::new(stream));
        accepting.into_fallible().await.map(Self).map_err(|(error, ahead)| (error, ahead.stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    /// Many clients close their socket without TLS's own goodbye. NBD knows by itself whether a message is
    /// complete, and so the end of the stream is the end in either way.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(context, room)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    /// Pieces are packed into records of 16 KiB without regard to where one ends: a reply's header shares a
    /// record with its data, and small replies share one.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    /// Says goodbye as TLS does, then ends the stream.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Reads the socket in large pieces, below TLS.
#[derive(Debug)]
struct ReadAhead<S> {
    stream: S,
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    fn new(stream: S) -> Self {
        Self { stream, bytes: vec![0; READ_AHEAD_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start == this.end {
            let mut ahead = ReadBuf::new(&mut this.bytes);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut ahead))?;
            (this.start, this.end) = (0, ahead.filled().len());
        }
        let count = room.remaining().min(this.end - this.start);
        room.put_slice(&this.bytes[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
