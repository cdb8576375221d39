//! Many clients: listeners, and one thread per connection.
//!
//! The accept loop runs on the caller's runtime and does no I/O of any client. No failure of a
//! connection, not even a panic, reaches the loop or another connection: it is caught on the
//! connection's thread, told to the [`Events`], and counted.
//!
//! Clients that only connect cannot keep others out: when all connections are taken and some have not come
//! past their negotiation, the oldest of those makes room for the newcomer.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_block::{BlockDevice, ByteDevice};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use crate::connection::{ConnectionError, Ended, Limits, Service};
use crate::export::ExportInfo;
use crate::listener::{Accepted, Arrival, Entrances, Listener, Peer, Refusal, is_of_the_client};
use crate::stats::Statistics;
use crate::stop::{StopSignal, Stopper};

/// Rest after an accept that failed for want of descriptors or memory: the connection stays pending, so
/// that the next accept would fail at once, for ever.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// How long connections that were cut may take to return.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// Something that happened to a connection. Connections are numbered from 1.
#[derive(Debug)]
pub enum ConnectionEvent<'a> {
    /// A client connected.
    Connected(Peer),
    /// A client was turned away.
    Refused(Peer, Refusal),
    /// A connection ended.
    Ended(&'a Result<Ended, ConnectionError>),
    /// A connection ended with a panic: our bug.
    Panicked(&'a str),
    /// A connection did not drain in time and was cut.
    Cut,
    /// Accepting failed. It is tried again, and that it still fails is not told.
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

    /// Accepts and serves clients until `shutdown` completes, or until there is nobody left and no way in; then
    /// stops accepting, lets each connection answer what it accepted, cuts those that are still there after
    /// [`Limits::drain`], and returns when all threads have. Runs on a tokio runtime with I/O and time.
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
            connections: BTreeMap::new(),
            next: None,
            stopper: Stopper::default(),
            finished,
            last: 0,
            report: ServeReport::default(),
        };
        clients.run(Entrances::new(listeners), &mut endings, shutdown).await;
        clients.stopper.drain();
        if !clients.wait_for_all(&mut endings, self.limits.drain).await {
            clients.cut();
            clients.wait_for_all(&mut endings, CUT_GRACE).await;
        }
        clients.report.stuck = u64::try_from(clients.connections.len()).unwrap_or(u64::MAX);
        clients.report
    }
}

/// How a connection's thread ended.
type Ending = (u64, Result<Result<Ended, ConnectionError>, Box<dyn Any + Send>>);

/// A connection as the accept loop knows it.
struct Connection {
    thread: JoinHandle<()>,
    peer: Peer,
    standing: Arc<Standing>,
}

/// What the accept loop and a connection's thread tell each other.
#[derive(Default)]
struct Standing {
    /// The client has chosen the export: the connection is not taken from it any more.
    established: AtomicBool,
    /// The client has to go.
    make_room: Notify,
}

/// The connections of one call of [`Server::serve`], by number, which is by age.
struct Clients<'a, D, E> {
    server: &'a Server<D>,
    events: &'a mut E,
    connections: BTreeMap<u64, Connection>,
    /// A client for which another one is making room.
    next: Option<Arrival>,
    stopper: Stopper,
    finished: mpsc::UnboundedSender<Ending>,
    last: u64,
    report: ServeReport,
}

impl<D: BlockDevice, E: Events> Clients<'_, D, E> {
    /// Accepts and serves until `shutdown` completes or nobody can come any more.
    async fn run(
        &mut self,
        mut entrances: Entrances,
        endings: &mut mpsc::UnboundedReceiver<Ending>,
        shutdown: impl Future<Output = ()>,
    ) {
        let mut shutdown = pin!(shutdown);
        let (mut resting_until, mut failing) = (None, false);
        while !(entrances.are_used_up() && self.connections.is_empty()) {
            let rest = async { sleep_until(resting_until.unwrap_or_else(Instant::now)).await };
            let accepting = self.next.is_none() && resting_until.is_none();
            tokio::select! {
                () = &mut shutdown => break,
                Some(ending) = endings.recv() => self.note_end(ending),
                () = rest, if resting_until.is_some() => resting_until = None,
                accepted = poll_fn(|context| entrances.poll_accept(context)), if accepting => match accepted {
                    Ok(arrival) => {
                        failing = false;
                        self.receive(arrival);
                    }
                    Err(error) if is_of_the_client(&error) => {
                        self.events.connection(0, ConnectionEvent::AcceptFailed(&error));
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            self.events.connection(0, ConnectionEvent::AcceptFailed(&error));
                        }
                        resting_until = Some(Instant::now() + ACCEPT_REST);
                    }
                },
            }
        }
    }

    /// Admits a client, has another make room for it, or turns it away.
    fn receive(&mut self, arrival: Arrival) {
        let limits = &self.server.limits;
        let alike = || self.connections.values().filter(|other| other.peer.is_like(&arrival.peer)).count();
        if !arrival.admitted {
            self.refuse(arrival.peer, Refusal::User);
        } else if alike() >= limits.max_connections_per_peer {
            self.refuse(arrival.peer, Refusal::TooManyOfPeer);
        } else if self.connections.len() < limits.max_connections {
            self.admit(arrival);
        } else if let Some(oldest) = self.oldest_that_negotiates() {
            oldest.make_room.notify_one();
            self.next = Some(arrival);
        } else {
            self.refuse(arrival.peer, Refusal::TooMany);
        }
    }

    fn oldest_that_negotiates(&self) -> Option<Arc<Standing>> {
        let standings = self.connections.values().map(|connection| &connection.standing);
        standings.into_iter().find(|standing| !standing.established.load(Ordering::Acquire)).cloned()
    }

    /// Gives a client a thread, or turns it away.
    fn admit(&mut self, Arrival { stream, peer, .. }: Arrival) {
        let number = self.last + 1;
        let standing = Arc::<Standing>::default();
        let thread = ConnectionThread {
            stream,
            device: self.server.device.clone(),
            info: Arc::clone(&self.server.info),
            limits: Arc::clone(&self.server.limits),
            statistics: Arc::clone(&self.server.statistics),
            standing: Arc::clone(&standing),
            stop: self.stopper.signal(),
        };
        let (statistics, finished) = (Arc::clone(&self.server.statistics), self.finished.clone());
        let body = move || {
            let connected = statistics.connect();
            let outcome = catch_unwind(AssertUnwindSafe(|| thread.serve()));
            drop(connected);
            // The receiver outlives every thread that is waited for; nobody listens to a stuck one.
            let _ = finished.send((number, outcome));
        };
        match std::thread::Builder::new().name(format!("nbd-{number}")).spawn(body) {
            Ok(thread) => {
                self.last = number;
                self.connections.insert(number, Connection { thread, peer, standing });
                self.report.served += 1;
                self.events.connection(number, ConnectionEvent::Connected(peer));
            }
            Err(_) => self.refuse(peer, Refusal::NoThread),
        }
    }

    fn refuse(&mut self, peer: Peer, refusal: Refusal) {
        self.last += 1;
        self.report.refused += 1;
        self.server.statistics.turn_away();
        self.events.connection(self.last, ConnectionEvent::Refused(peer, refusal));
    }

    fn note_end(&mut self, (number, outcome): Ending) {
        if let Some(connection) = self.connections.remove(&number) {
            // It has sent its last message and is about to return.
            connection.thread.join().expect("panics are caught on the thread");
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
        if let Some(next) = self.next.take() {
            self.receive(next);
        }
    }

    /// Waits until no connection is left; says whether that was so within `patience`.
    async fn wait_for_all(
        &mut self,
        endings: &mut mpsc::UnboundedReceiver<Ending>,
        patience: Duration,
    ) -> bool {
        self.next = None;
        let all = async {
            while !self.connections.is_empty() {
                let ending = endings.recv().await.expect("this end keeps a sender");
                self.note_end(ending);
            }
        };
        timeout(patience, all).await.is_ok()
    }

    /// Tells every connection that is left to close at once.
    fn cut(&mut self) {
        for number in self.connections.keys() {
            self.events.connection(*number, ConnectionEvent::Cut);
        }
        self.report.cut = u64::try_from(self.connections.len()).unwrap_or(u64::MAX);
        self.stopper.close();
    }
}

/// The text of a panic, where it has one.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

/// Everything that a connection's thread takes with it.
struct ConnectionThread<D> {
    stream: Accepted,
    device: ByteDevice<D>,
    info: Arc<ExportInfo>,
    limits: Arc<Limits>,
    statistics: Arc<Statistics>,
    standing: Arc<Standing>,
    stop: StopSignal,
}

impl<D: BlockDevice> ConnectionThread<D> {
    /// The body of the thread.
    fn serve(self) -> Result<Ended, ConnectionError> {
        let runtime = tokio::runtime::LocalRuntime::new().map_err(ConnectionError::Socket)?;
        let (mut cut, standing) = (self.stop.clone(), Arc::clone(&self.standing));
        runtime.block_on(async move {
            tokio::select! {
                outcome = self.serve_stream() => outcome,
                () = cut.closing() => Ok(Ended::Stopped),
                () = standing.make_room.notified() => Err(ConnectionError::MadeRoom),
            }
        })
    }

    async fn serve_stream(self) -> Result<Ended, ConnectionError> {
        let Self { stream, device, info, limits, statistics, standing, stop } = self;
        let established = || standing.established.store(true, Ordering::Release);
        let service = Service {
            device: &device,
            info: &info,
            limits: &limits,
            stop,
            statistics: &statistics,
            established: &established,
        };
        let failed = ConnectionError::Socket;
        match stream {
            Accepted::Unix(stream) => service.serve(UnixStream::from_std(stream).map_err(failed)?).await,
            Accepted::Tcp(stream, tls) => {
                let stream = TcpStream::from_std(stream).map_err(failed)?;
                match tls {
                    Some(tls) => service.serve_inside(&tls, stream).await,
                    None => service.serve(stream).await,
                }
            }
            Accepted::Pipes { from, to } => {
                let from = pipe::Receiver::from_owned_fd(from).map_err(failed)?;
                let to = pipe::Sender::from_owned_fd(to).map_err(failed)?;
                service.serve(tokio::io::join(from, to)).await
            }
        }
    }
}
