//! The bytes' way to a server: a Unix socket or TCP, and TLS over either. Above it nothing knows which.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::uri::Place;

/// A silent peer is asked whether it is still there after this long, and again at the interval.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Questions without an answer after which the connection counts as lost.
const KEEPALIVE_COUNT: u32 = 3;

/// What a stream can do.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A stream of any kind.
pub(crate) type Stream = Box<dyn Duplex>;

/// Connects; no byte is exchanged yet.
pub(crate) async fn connect(place: &Place) -> io::Result<Stream> {
    match place {
        Place::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Place::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            sockopt::set_socket_keepalive(&stream, true)?;
            sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
            sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
            sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
            Ok(Box::new(stream))
        }
    }
}
