//! Ways in: sockets that clients connect to, and on what terms; clients that are there already.
//!
//! Who connects is known before a byte is exchanged: by the user that the kernel vouches for on a Unix socket, by
//! the address on TCP. [`crate::server`] accepts, and decides.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::tls::TlsServer;

/// TCP asks a silent client's kernel whether it is still there after this long, …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);
/// … and so often again, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// … and gives it up after so many questions in vain: ten minutes in all.
const KEEPALIVE_COUNT: u32 = 5;

/// One way in.
#[derive(Debug)]
pub enum Listener {
    /// A listening Unix stream socket, for processes of some users.
    Unix {
        /// The socket.
        socket: UnixListener,
        /// Who may come in. Others are turned away before the greeting.
        users: Users,
    },
    /// A listening TCP socket.
    Tcp {
        /// The socket.
        socket: TcpListener,
        /// The TLS without which nothing is served here, or none.
        tls: Option<Arc<TlsServer>>,
    },
    /// A client that is there already, without TLS. When there are no listeners, the server ends with the last
    /// of these.
    Connected(ConnectedClient),
}

/// Users by their numeric ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Users {
    /// Whoever can open the socket.
    Any,
    /// These. Root is none of them unless it is listed.
    Listed(Vec<u32>),
}

impl Users {
    fn include(&self, uid: u32) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(uids) => uids.contains(&uid),
        }
    }
}

/// The two directions of a connection that somebody else made.
#[derive(Debug)]
pub enum ConnectedClient {
    /// A Unix stream socket.
    Unix(std::os::unix::net::UnixStream),
    /// A TCP socket.
    Tcp(std::net::TcpStream),
    /// Two pipes.
    Pipes {
        /// What the client writes to.
        from: OwnedFd,
        /// What the client reads from.
        to: OwnedFd,
    },
}

/// Who connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this host.
    Unix {
        /// The user whose process it is.
        uid: u32,
    },
    /// A TCP client.
    Tcp(SocketAddr),
    /// Whoever holds the other end of a connection that was there already.
    Connected,
}

impl Peer {
    /// Whether two clients count as one when connections of one peer are counted: those of one user, and those
    /// of one address.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix { uid: one }, Self::Unix { uid: other }) => one == other,
            (Self::Tcp(one), Self::Tcp(other)) => one.ip() == other.ip(),
            _ => false,
        }
    }
}

/// Why a client was turned away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There are as many connections as allowed.
    TooMany,
    /// There are as many connections of this peer as allowed.
    TooManyOfPeer,
    /// The user may not come in.
    User,
    /// There is no thread for it.
    NoThread,
}

/// A stream on its way to its thread's runtime.
pub(crate) enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream, Option<Arc<TlsServer>>),
    Pipes { from: OwnedFd, to: OwnedFd },
}

/// A client that came in by one of the listeners.
pub(crate) struct Arrival {
    pub(crate) stream: Accepted,
    pub(crate) peer: Peer,
    /// Whether the listener's terms let it in.
    pub(crate) admitted: bool,
}

/// All ways in of one server.
pub(crate) struct Entrances {
    listeners: Vec<Listener>,
    connected: VecDeque<ConnectedClient>,
}

impl Entrances {
    pub(crate) fn new(ways: Vec<Listener>) -> Self {
        let (mut listeners, mut connected) = (Vec::new(), VecDeque::new());
        for way in ways {
            match way {
                Listener::Connected(client) => connected.push_back(client),
                listener => listeners.push(listener),
            }
        }
        Self { listeners, connected }
    }

    /// Whether nobody can come in any more.
    pub(crate) fn are_used_up(&self) -> bool {
        self.listeners.is_empty() && self.connected.is_empty()
    }

    /// Waits for a client.
    pub(crate) fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        if let Some(client) = self.connected.pop_front() {
            return Poll::Ready(of_connected(client));
        }
        for listener in &self.listeners {
            let accepted = match listener {
                Listener::Unix { socket, users } => poll_unix(socket, users, context),
                Listener::Tcp { socket, tls } => poll_tcp(socket, tls.as_ref(), context),
                Listener::Connected(_) => unreachable!("they are kept apart"),
            };
            if accepted.is_ready() {
                return accepted;
            }
        }
        Poll::Pending
    }
}

fn of_connected(client: ConnectedClient) -> io::Result<Arrival> {
    let stream = match client {
        ConnectedClient::Unix(stream) => {
            stream.set_nonblocking(true)?;
            Accepted::Unix(stream)
        }
        ConnectedClient::Tcp(stream) => {
            stream.set_nonblocking(true)?;
            tune(&stream)?;
            Accepted::Tcp(stream, None)
        }
        ConnectedClient::Pipes { from, to } => Accepted::Pipes { from, to },
    };
    Ok(Arrival { stream, peer: Peer::Connected, admitted: true })
}

fn poll_unix(socket: &UnixListener, users: &Users, context: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
    let (stream, _) = ready!(socket.poll_accept(context))?;
    let uid = stream.peer_cred()?.uid();
    let (peer, admitted) = (Peer::Unix { uid }, users.include(uid));
    Poll::Ready(Ok(Arrival { stream: Accepted::Unix(stream.into_std()?), peer, admitted }))
}

fn poll_tcp(
    socket: &TcpListener,
    tls: Option<&Arc<TlsServer>>,
    context: &mut Context<'_>,
) -> Poll<io::Result<Arrival>> {
    let (stream, address) = ready!(socket.poll_accept(context))?;
    let stream = TcpStream::into_std(stream)?;
    tune(&stream)?;
    let stream = Accepted::Tcp(stream, tls.cloned());
    Poll::Ready(Ok(Arrival { stream, peer: Peer::Tcp(address), admitted: true }))
}

/// Small replies leave at once, and a peer that vanished is noticed in the end.
fn tune(stream: &std::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_COUNT)?;
    Ok(())
}

/// Whether a failed accept says something of one client only, so that the next one may be tried at once.
pub(crate) fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | InvalidInput | NotConnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a01_tcp_replies_leave_at_once_and_vanished_peers_are_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(address).expect("a connection");
        let arrival = std::future::poll_fn(|context| poll_tcp(&listener, None, context)).await;
        let Accepted::Tcp(stream, None) = arrival.expect("the connection").stream else {
            panic!("a TCP connection without TLS")
        };
        assert!(stream.nodelay().expect("an option"));
        assert!(sockopt::socket_keepalive(&stream).expect("an option"));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(KEEPALIVE_IDLE));
        drop(client);
    }
}
