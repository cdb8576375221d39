//! Where the clients of an attachment come in, and on what terms.
//!
//! The terms are decided here and nowhere else: a Unix socket is for the users that are listed; TCP off loopback is
//! inside TLS, unless the caller says in so many words that it need not be; with certificates all TCP is. That
//! holds for sockets that a service manager made just the same.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::net::{AddressFamily, SocketType, sockopt};
use sealblk_nbd::{ConnectedClient, Listener, TlsServer, Users};
use sealblk_volume::VolumeId;

use crate::error::ControlError;
use crate::runtime::{BoundSocket, Openness};
use crate::uri::{tcp_uri, unix_uri};

/// Where to serve.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// The Unix socket.
    pub socket: UnixEndpoint,
    /// TCP addresses. Port 0: any free one.
    pub listen: Vec<SocketAddr>,
    /// Sockets that listen already, Unix or TCP, as a service manager passes them.
    pub inherited: Vec<OwnedFd>,
    /// A client that is there already. Without any other endpoint the attachment ends with it.
    pub client: Option<InheritedClient>,
    /// The TLS that TCP clients must use; `None`: TCP is plain.
    pub tls: Option<Arc<TlsServer>>,
    /// Whether plain TCP may be served off the loopback interface: whoever is on the network then reads and
    /// writes the volume.
    pub plaintext_tcp: bool,
    /// The users who may come in by a Unix socket, by their ids; empty: this process's user, and no other.
    pub users: Vec<u32>,
}

/// A Unix socket to serve at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum UnixEndpoint {
    /// The one that [`crate::RuntimeDir::nbd_socket`] names.
    #[default]
    Standard,
    /// This one.
    At(PathBuf),
    /// None.
    Absent,
}

/// A client's connection as two open files: one socket under two descriptors, or two pipes.
#[derive(Debug)]
pub struct InheritedClient {
    /// What the client writes to.
    pub from: OwnedFd,
    /// What the client reads from.
    pub to: OwnedFd,
}

/// Endpoints at which the kernel queues clients already.
pub(crate) struct BoundEndpoints {
    listeners: Vec<BoundListener>,
    client: Option<ConnectedClient>,
    users: Users,
    tls: Option<Arc<TlsServer>>,
    uris: Vec<String>,
    /// Removes the socket's file in the end.
    _socket: Option<BoundSocket>,
}

#[derive(Debug)]
enum BoundListener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Endpoints {
    /// Refuses what must not be served, before anything is done for it.
    pub(crate) fn check(&self) -> Result<(), ControlError> {
        for address in &self.listen {
            self.check_address(*address)?;
        }
        Ok(())
    }

    fn check_address(&self, address: SocketAddr) -> Result<(), ControlError> {
        if address.ip().is_loopback() || self.tls.is_some() || self.plaintext_tcp {
            return Ok(());
        }
        Err(ControlError::NotLoopback { address })
    }

    /// Listens everywhere. `socket` is the path of the Unix socket, if there is to be one.
    pub(crate) fn bind(
        &self,
        id: VolumeId,
        socket: Option<&PathBuf>,
    ) -> Result<BoundEndpoints, ControlError> {
        let users = if self.users.is_empty() { vec![own_uid()] } else { self.users.clone() };
        let others = users.iter().any(|uid| *uid != own_uid());
        let openness = if others { Openness::Everybody } else { Openness::Owner };
        let client = self.client.as_ref().map(connected).transpose()?;
        let mut bound = BoundEndpoints {
            listeners: Vec::new(),
            client,
            users: Users::Listed(users),
            tls: self.tls.clone(),
            uris: Vec::new(),
            _socket: None,
        };
        if let Some(path) = socket {
            let (file, listener) = BoundSocket::bind(path, openness)?;
            bound._socket = Some(file);
            bound.listeners.push(BoundListener::Unix(listener));
            bound.uris.push(unix_uri(id, path));
        }
        for descriptor in &self.inherited {
            let listener = self.inherit(descriptor)?;
            bound.uris.extend(listener.uri(id, self.tls.is_some()));
            bound.listeners.push(listener);
        }
        for address in &self.listen {
            let failed = |source| ControlError::Listen { address: *address, source };
            let listener = BoundListener::Tcp(TcpListener::bind(address).map_err(failed)?);
            bound.uris.extend(listener.uri(id, self.tls.is_some()));
            bound.listeners.push(listener);
        }
        Ok(bound)
    }

    /// Takes over a listening socket, on the same terms as our own.
    fn inherit(&self, descriptor: &OwnedFd) -> Result<BoundListener, ControlError> {
        let refused = |reason| ControlError::InheritedSocket { reason };
        let failed = |source| ControlError::Start { what: "an inherited socket", source };
        let family = stream_family(descriptor).ok_or(refused("it is no stream socket"))?;
        if !sockopt::socket_acceptconn(descriptor).unwrap_or(false) {
            return Err(refused("it does not listen"));
        }
        let descriptor = descriptor.try_clone().map_err(failed)?;
        match family {
            AddressFamily::UNIX => Ok(BoundListener::Unix(descriptor.into())),
            AddressFamily::INET | AddressFamily::INET6 => {
                let listener = TcpListener::from(descriptor);
                self.check_address(listener.local_addr().map_err(failed)?)?;
                Ok(BoundListener::Tcp(listener))
            }
            _ => Err(refused("it is neither a Unix nor a TCP socket")),
        }
    }
}

impl BoundListener {
    /// How clients are told of it; nothing for a Unix socket without a path.
    fn uri(&self, id: VolumeId, tls: bool) -> Option<String> {
        match self {
            Self::Unix(listener) => Some(unix_uri(id, listener.local_addr().ok()?.as_pathname()?)),
            Self::Tcp(listener) => Some(tcp_uri(id, listener.local_addr().ok()?, tls)),
        }
    }
}

impl BoundEndpoints {
    /// NBD URIs, that of the attachment's own Unix socket first.
    pub(crate) fn uris(&self) -> &[String] {
        &self.uris
    }

    /// For a server on this runtime; and what has to be kept until it has ended.
    pub(crate) fn on_this_runtime(self) -> io::Result<(Vec<Listener>, Option<BoundSocket>)> {
        let mut listeners = Vec::new();
        for listener in self.listeners {
            listeners.push(match listener {
                BoundListener::Unix(listener) => {
                    listener.set_nonblocking(true)?;
                    let socket = tokio::net::UnixListener::from_std(listener)?;
                    Listener::Unix { socket, users: self.users.clone() }
                }
                BoundListener::Tcp(listener) => {
                    listener.set_nonblocking(true)?;
                    let socket = tokio::net::TcpListener::from_std(listener)?;
                    Listener::Tcp { socket, tls: self.tls.clone() }
                }
            });
        }
        listeners.extend(self.client.map(Listener::Connected));
        Ok((listeners, self._socket))
    }
}

/// What a client's two descriptors are.
fn connected(client: &InheritedClient) -> Result<ConnectedClient, ControlError> {
    let unusable = || ControlError::InheritedClient;
    let failed = |source| ControlError::Start { what: "the client's connection", source };
    let status = |descriptor: &OwnedFd| fstat(descriptor).map_err(|errno| failed(errno.into()));
    let (from, to) = (status(&client.from)?, status(&client.to)?);
    let same = (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino);
    match (FileType::from_raw_mode(from.st_mode), FileType::from_raw_mode(to.st_mode)) {
        (FileType::Socket, FileType::Socket) if same => {
            let socket = client.from.try_clone().map_err(failed)?;
            match stream_family(&socket).ok_or_else(unusable)? {
                AddressFamily::UNIX => Ok(ConnectedClient::Unix(UnixStream::from(socket))),
                AddressFamily::INET | AddressFamily::INET6 => {
                    Ok(ConnectedClient::Tcp(TcpStream::from(socket)))
                }
                _ => Err(unusable()),
            }
        }
        (FileType::Fifo, FileType::Fifo) => Ok(ConnectedClient::Pipes {
            from: client.from.try_clone().map_err(failed)?,
            to: client.to.try_clone().map_err(failed)?,
        }),
        _ => Err(unusable()),
    }
}

/// The family of a stream socket.
fn stream_family(descriptor: impl AsFd) -> Option<AddressFamily> {
    let stream = sockopt::socket_type(&descriptor).is_ok_and(|kind| kind == SocketType::STREAM);
    stream.then(|| sockopt::socket_domain(&descriptor).ok()).flatten()
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn id() -> VolumeId {
        "vol-0123456789abcdef0".parse().expect("an id")
    }

    #[test]
    fn plain_tcp_off_loopback_is_refused_unless_it_is_asked_for_by_its_name() {
        let listen = vec!["192.0.2.1:10809".parse().expect("an address")];
        let plain = Endpoints { listen: listen.clone(), ..Endpoints::default() };
        assert!(matches!(plain.check(), Err(ControlError::NotLoopback { .. })));
        let dangerous = Endpoints { listen, plaintext_tcp: true, ..Endpoints::default() };
        dangerous.check().expect("it was asked for");
        let loopback = vec!["127.8.9.1:0".parse().expect("an address"), "[::1]:0".parse().expect("one")];
        Endpoints { listen: loopback, ..Endpoints::default() }.check().expect("nobody else is there");
    }

    #[test]
    fn an_inherited_socket_has_to_listen_and_keeps_to_the_same_terms() {
        let refused = |descriptor: OwnedFd| {
            let endpoints = Endpoints { inherited: vec![descriptor], ..Endpoints::default() };
            endpoints.bind(id(), None).map(|_| ()).expect_err("refused").to_string()
        };
        let (stream, other) = UnixStream::pair().expect("a pair");
        assert!(refused(stream.into()).contains("does not listen"));
        assert!(refused(UnixDatagram::unbound().expect("a socket").into()).contains("no stream socket"));
        let file = tempfile::tempfile().expect("a file");
        assert!(refused(file.into()).contains("no stream socket"));
        let everywhere = TcpListener::bind("0.0.0.0:0").expect("a port");
        assert!(refused(everywhere.into()).contains("not a loopback address"));
        drop(other);
    }

    #[test]
    fn inherited_listeners_are_told_as_uris() {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = tcp.local_addr().expect("an address");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.sock");
        let unix = UnixListener::bind(&path).expect("a socket");
        let endpoints = Endpoints { inherited: vec![tcp.into(), unix.into()], ..Endpoints::default() };
        let bound = endpoints.bind(id(), None).expect("both can be used");
        let expected = [format!("nbd://{address}/{}", id()), unix_uri(id(), &path)];
        assert_eq!(bound.uris(), expected);
    }

    #[test]
    fn a_client_is_one_socket_or_two_pipes() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let copy = one.try_clone().expect("a copy");
        let client = InheritedClient { from: one.into(), to: copy.into() };
        assert!(matches!(connected(&client), Ok(ConnectedClient::Unix(_))));
        let (from, to) = std::io::pipe().expect("a pipe");
        let client = InheritedClient { from: from.into(), to: to.into() };
        assert!(matches!(connected(&client), Ok(ConnectedClient::Pipes { .. })));
        let file = tempfile::tempfile().expect("a file");
        let copy = file.try_clone().expect("a copy");
        let client = InheritedClient { from: file.into(), to: copy.into() };
        assert!(matches!(connected(&client), Err(ControlError::InheritedClient)));
    }
}
