//! A whole server for a test, on a thread of its own.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::{BlockDevice, ByteDevice};
use sealblk_nbd::{ConnectionEvent, Events, Limits, Listener, ServeReport, Server, TlsServer, Users};
use sealblk_testkit::nbd_client::NbdClient;
use tokio::sync::oneshot;

use crate::support::info;

/// A server on a Unix socket and a TCP port, on a thread of its own.
pub(crate) struct Running {
    directory: tempfile::TempDir,
    pub(crate) tcp: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<ServeReport>,
    ended: std::sync::mpsc::Receiver<String>,
}

/// Tells the test whenever a connection is over, and how.
struct Ends(std::sync::mpsc::Sender<String>);

impl Events for Ends {
    fn connection(&mut self, _: u64, event: ConnectionEvent<'_>) {
        if matches!(event, ConnectionEvent::Ended(_) | ConnectionEvent::Panicked(_)) {
            let _ = self.0.send(format!("{event:?}"));
        }
    }
}

pub(crate) fn run<D: BlockDevice>(device: D, limits: Limits) -> Running {
    run_inside(device, limits, None)
}

/// The same, with TLS at the TCP port.
pub(crate) fn run_inside<D: BlockDevice>(device: D, limits: Limits, tls: Option<Arc<TlsServer>>) -> Running {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (ends, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
        runtime.block_on(async move {
            let unix = tokio::net::UnixListener::bind(path).expect("a socket");
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ready.send(tcp.local_addr().expect("an address")).expect("the test waits");
            let server = Server::new(ByteDevice::new(device), info(), limits);
            let shutdown = async {
                let _ = stopped.await;
            };
            let listeners =
                vec![Listener::Unix { socket: unix, users: Users::Any }, Listener::Tcp { socket: tcp, tls }];
            server.serve(listeners, shutdown, &mut Ends(ends)).await
        })
    });
    let tcp = is_ready.recv().expect("the server starts");
    Running { directory, tcp, stop, thread, ended }
}

impl Running {
    pub(crate) fn unix(&self) -> NbdClient<UnixStream> {
        let stream = UnixStream::connect(self.directory.path().join("socket")).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        NbdClient::new(stream)
    }

    pub(crate) fn tcp(&self) -> NbdClient<TcpStream> {
        let stream = TcpStream::connect(self.tcp).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        NbdClient::new(stream)
    }

    /// Waits for the next end of a connection; says how it was.
    pub(crate) fn wait_for_end(&self) -> String {
        self.ended.recv_timeout(Duration::from_secs(20)).expect("a connection ends")
    }

    pub(crate) fn stop(self) -> ServeReport {
        self.stop.send(()).expect("the server runs");
        self.thread.join().expect("the server does not panic")
    }
}
