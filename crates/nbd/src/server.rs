//! Many clients: listeners, and one thread per connection.
//!
//! The accept loop runs on the caller's runtime and does no I/O of any client. No failure of a
//! connection, not even a panic, reaches the loop or another connection: it is caught on the
//! connection's thread, told to the [`Events`], and counted.

use std::any::Any;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_block::{BlockDevice, ByteDevice};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::connection::{ConnectionError, Ended, Limits, serve_connection};
use crate::export::ExportInfo;
use crate::stats::Statistics;
use crate::stop::{StopSignal, Stopper};

/// Rest after an accept that failed for want of descriptors or memory: the connection stays pending, so
/// that the next accept would fail at once, for ever.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How long connections that were cut may take to return.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// A bound, listening socket.
#[derive(Debug)]
pub enum Listener {
    /// A Unix stream socket.
    Unix(UnixListener),
    /// A TCP socket.
    Tcp(TcpListener),
}

/// Who connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A process on this host.
    Unix,
    /// A TCP client.
    Tcp(SocketAddr),
}

/// Something that happened to a connection. Connections are numbered from 1.
#[derive(Debug)]
pub enum ConnectionEvent<'a> {
    /// A client connected.
    Connected(Peer),
    /// A client was turned away: there are as many connections as allowed, or no thread for it.
    Refused(Peer),
    /// A connection ended.
    Ended(&'a Result<Ended, ConnectionError>),
    /// A connection ended with a panic: our bug.
    Panicked(&'a str),
    /// A connection did not drain in time and was cut.
    Cut,
    /// Accepting failed. It is tried again.
    AcceptFailed(&'a io::Error),
}

/// Who wants to know what happens. Called on the accept loop: must not block.
pub trait Events {
    /// `event` happened to `connection`.
    fn connection(&mut self, connection: u64, event: ConnectionEvent<'_>);
}

/// Nobody wants to know.
impl Events for () {
    fn connection(&mut self, _: u64, _: ConnectionEvent<'_>) {}
}

/// What a server did.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ServeReport {
    /// Connections that were served.
    pub served: u64,
    /// Clients that were turned away.
    pub refused: u64,
    /// Connections that ended out of order.
    pub failed: u64,
    /// Connections that ended with a panic.
    pub panicked: u64,
    /// Connections that did not drain in time and were cut.
    pub cut: u64,
    /// Threads that did not return even then: storage that hangs in the kernel.
    pub stuck: u64,
}

/// Serves one device as one export.
pub struct Server<D> {
    device: ByteDevice<D>,
    info: Arc<ExportInfo>,
    limits: Arc<Limits>,
    statistics: Arc<Statistics>,
}

impl<D: BlockDevice> Server<D> {
    /// A server of `device` under the name and description in `info`.
    pub fn new(device: ByteDevice<D>, info: ExportInfo, limits: Limits) -> Self {
        Self { device, info: Arc::new(info), limits: Arc::new(limits), statistics: Arc::default() }
    }

    /// The same, with everything it serves counted in `statistics`, for anybody to read at any time.
    pub fn counting_in(self, statistics: Arc<Statistics>) -> Self {
        Self { statistics, ..self }
    }

    /// Accepts and serves clients until `shutdown` completes; then stops accepting, lets each connection
    /// answer what it accepted, cuts those that are still there after [`Limits::drain`], and returns when
    /// all threads have. Runs on a tokio runtime with I/O and time.
    pub async fn serve(
        &self,
        listeners: Vec<Listener>,
        shutdown: impl Future<Output = ()>,
        events: &mut impl Events,
    ) -> ServeReport {
        let (finished, mut endings) = mpsc::unbounded_channel();
        let mut clients = Clients {
            server: self,
            events,
            threads: HashMap::new(),
            stopper: Stopper::default(),
            finished,
            last: 0,
            report: ServeReport::default(),
        };
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(ending) = endings.recv() => clients.note_end(ending),
                accepted = poll_fn(|context| poll_accept(&listeners, context)) => match accepted {
                    Ok((stream, peer)) => clients.admit(stream, peer),
                    Err(error) => {
                        clients.events.connection(0, ConnectionEvent::AcceptFailed(&error));
                        if !is_of_the_client(&error) {
                            tokio::time::sleep(ACCEPT_REST).await;
                        }
                    }
                }
            }
        }
        drop(listeners);
        clients.stopper.drain();
        if !clients.wait_for_all(&mut endings, self.limits.drain).await {
            clients.cut();
            clients.wait_for_all(&mut endings, CUT_GRACE).await;
        }
        clients.report.stuck = u64::try_from(clients.threads.len()).unwrap_or(u64::MAX);
        clients.report
    }
}

/// A stream on its way to its thread's runtime.
enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// How a connection's thread ended.
type Ending = (u64, Result<Result<Ended, ConnectionError>, Box<dyn Any + Send>>);

/// The connections of one call of [`Server::serve`].
struct Clients<'a, D, E> {
    server: &'a Server<D>,
    events: &'a mut E,
    threads: HashMap<u64, JoinHandle<()>>,
    stopper: Stopper,
    finished: mpsc::UnboundedSender<Ending>,
    last: u64,
    report: ServeReport,
}

impl<D: BlockDevice, E: Events> Clients<'_, D, E> {
    /// Gives a client a thread, or turns it away.
    fn admit(&mut self, stream: Accepted, peer: Peer) {
        self.last += 1;
        let number = self.last;
        if self.threads.len() >= self.server.limits.max_connections {
            return self.refuse(number, peer);
        }
        let (device, info, limits) =
            (self.server.device.clone(), Arc::clone(&self.server.info), Arc::clone(&self.server.limits));
        let (stop, finished) = (self.stopper.signal(), self.finished.clone());
        let statistics = Arc::clone(&self.server.statistics);
        let body = move || {
            let connected = statistics.connect();
            let serve =
                AssertUnwindSafe(|| serve_on_this_thread(stream, &device, &info, &limits, stop, &statistics));
            let outcome = catch_unwind(serve);
            drop(connected);
            // The receiver outlives every thread that is waited for; nobody listens to a stuck one.
            let _ = finished.send((number, outcome));
        };
        match std::thread::Builder::new().name(format!("nbd-{number}")).spawn(body) {
            Ok(thread) => {
                self.threads.insert(number, thread);
                self.report.served += 1;
                self.events.connection(number, ConnectionEvent::Connected(peer));
            }
            Err(_) => self.refuse(number, peer),
        }
    }

    fn refuse(&mut self, number: u64, peer: Peer) {
        self.report.refused += 1;
        self.server.statistics.turn_away();
        self.events.connection(number, ConnectionEvent::Refused(peer));
    }

    fn note_end(&mut self, (number, outcome): Ending) {
        if let Some(thread) = self.threads.remove(&number) {
            // It has sent its last message and is about to return.
            thread.join().expect("panics are caught on the thread");
        }
        match outcome {
            Ok(outcome) => {
                self.report.failed += u64::from(outcome.is_err());
                self.events.connection(number, ConnectionEvent::Ended(&outcome));
            }
            Err(panic) => {
                self.report.panicked += 1;
                self.events.connection(number, ConnectionEvent::Panicked(panic_text(&*panic)));
            }
        }
    }

    /// Waits until no connection is left; says whether that was so within `patience`.
    async fn wait_for_all(
        &mut self,
        endings: &mut mpsc::UnboundedReceiver<Ending>,
        patience: Duration,
    ) -> bool {
        let all = async {
            while !self.threads.is_empty() {
                let ending = endings.recv().await.expect("this end keeps a sender");
                self.note_end(ending);
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Tells every connection that is left to close at once.
    fn cut(&mut self) {
        for number in self.threads.keys() {
            self.events.connection(*number, ConnectionEvent::Cut);
        }
        self.report.cut = u64::try_from(self.threads.len()).unwrap_or(u64::MAX);
        self.stopper.close();
    }
}

/// The text of a panic, where it has one.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

/// Waits for a client on any of `listeners`.
fn poll_accept(listeners: &[Listener], context: &mut Context<'_>) -> Poll<io::Result<(Accepted, Peer)>> {
    for listener in listeners {
        match listener {
            Listener::Unix(listener) => {
                if let Poll::Ready(accepted) = listener.poll_accept(context) {
                    return Poll::Ready(
                        accepted.and_then(|(stream, _)| Ok((Accepted::Unix(stream.into_std()?), Peer::Unix))),
                    );
                }
            }
            Listener::Tcp(listener) => {
                if let Poll::Ready(accepted) = listener.poll_accept(context) {
                    return Poll::Ready(accepted.and_then(|(stream, peer)| {
                        tune(&stream)?;
                        Ok((Accepted::Tcp(stream.into_std()?), Peer::Tcp(peer)))
                    }));
                }
            }
        }
    }
    Poll::Pending
}

/// Small replies leave at once, and a peer that vanished is noticed in the end.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// Whether a failed accept says something of one client only, so that the next one may be tried at once.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | InvalidInput | NotConnected)
}

/// The body of a connection's thread.
fn serve_on_this_thread<D: BlockDevice>(
    stream: Accepted,
    device: &ByteDevice<D>,
    info: &ExportInfo,
    limits: &Limits,
    stop: StopSignal,
    statistics: &Arc<Statistics>,
) -> Result<Ended, ConnectionError> {
    let runtime = tokio::runtime::LocalRuntime::new().map_err(ConnectionError::Socket)?;
    let mut cut = stop.clone();
    runtime.block_on(async move {
        let serving = async {
            match stream {
                Accepted::Unix(stream) => {
                    let stream = UnixStream::from_std(stream).map_err(ConnectionError::Socket)?;
                    serve_connection(stream, device, info, limits, stop.clone(), statistics).await
                }
                Accepted::Tcp(stream) => {
                    let stream = TcpStream::from_std(stream).map_err(ConnectionError::Socket)?;
                    serve_connection(stream, device, info, limits, stop.clone(), statistics).await
                }
            }
        };
        tokio::select! {
            outcome = serving => outcome,
            () = cut.closing() => Ok(Ended::Stopped),
        }
    })
}
