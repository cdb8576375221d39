//! AttachVolume: the order of everything an attachment does, from the lock to the sockets and back (design §1, §4.8).
//!
//! Called by the process that serves, and by nobody else: one process, one volume, one data key. The caller has
//! made the process undumpable before.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealblk_block::{BlockDevice, BlockLane, ByteDevice, Caching};
use sealblk_nbd::{Events, ExportInfo, Limits, Listener, ServeReport, Server, Statistics};
use sealblk_volume::VolumeId;
use tokio::sync::watch;

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::conversation::{Answer, ControlSocket};
use crate::error::ControlError;
use crate::grant::HeldGrant;
use crate::hold::HeldVolume;
use crate::metrics::{MetricsAddress, MetricsServer};
use crate::open::{OpenHow, OpenVolume};
use crate::pool::Pool;
use crate::runtime::{BoundSocket, RuntimeDir};
use crate::stats::StatisticsSource;
use crate::uri::{tcp_uri, unix_uri};

/// What AttachVolume is asked for.
#[derive(Clone, Debug)]
pub struct AttachVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The Unix socket to serve at; `None`: the one that [`RuntimeDir::nbd_socket`] names.
    pub socket: Option<PathBuf>,
    /// TCP addresses to serve at too: of the loopback interface only. Port 0: any free one.
    pub listen: Vec<SocketAddr>,
    /// Whether writes are refused. The volume is nobody else's all the same.
    pub read_only: bool,
    /// `None`: files through the page cache, block devices around it.
    pub caching: Option<Caching>,
    /// Clients at a time.
    pub max_connections: usize,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<MetricsAddress>,
}

/// A volume that is ready to be served. Dropped instead, it is detached again: sockets and announcement go, round
/// keys are wiped, the grant is retired, in this order, and last the lock.
pub struct Attachment<'p> {
    id: VolumeId,
    nbd_socket: BoundSocket,
    listeners: Vec<BoundListener>,
    control: ControlSocket,
    metrics: Option<MetricsServer>,
    uris: Vec<String>,
    limits: Limits,
    volume: OpenVolume<'p>,
    announcement: Announcement,
    _held: HeldVolume,
}

enum BoundListener {
    Unix(std::os::unix::net::UnixListener),
    Tcp(TcpListener),
}

impl Pool {
    /// Attaches a volume: locks it, cleans up after a killed predecessor, has its key unwrapped under a grant of
    /// this attachment's own, checks or writes the seal, and listens. On an error all of that is undone.
    ///
    /// Blocks, and must not be called from within a runtime.
    pub fn attach_volume(
        &self,
        runtime: &RuntimeDir,
        request: &AttachVolume,
    ) -> Result<Attachment<'_>, ControlError> {
        let id = request.volume;
        if let Some(address) = request.listen.iter().find(|address| !address.ip().is_loopback()) {
            return Err(ControlError::NotLoopback { address: *address });
        }
        request.metrics.as_ref().map_or(Ok(()), MetricsAddress::require_local)?;
        let nbd_socket = request.socket.clone().unwrap_or_else(|| runtime.nbd_socket(&id));
        let control_socket = runtime.control_socket(&id);

        let mut held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        let (_, record) = self.load(id)?;
        let mut holder = AttachmentRecord::of_this_process(AttachmentState::Attaching, request.read_only);
        holder.control_socket = Some(control_socket.clone());
        holder.sockets = vec![nbd_socket.clone(), control_socket.clone()];
        if let Some(MetricsAddress::Unix(path)) = &request.metrics {
            holder.sockets.push(path.clone());
        }
        let mut announcement = Announcement::make(&held.directory, holder)?;

        let how = OpenHow { read_only: request.read_only, caching: request.caching };
        let volume = self.open_volume(&mut held, &record, how, &mut announcement)?;

        let (control, listener) = BoundSocket::bind(&control_socket)?;
        let control = ControlSocket::new(control, listener);
        let (nbd_socket, listeners, uris) = listen(id, &nbd_socket, &request.listen)?;
        let metrics = request.metrics.as_ref().map(MetricsServer::bind).transpose()?;
        announcement.update(|holder| {
            holder.state = AttachmentState::Attached;
            holder.uris.clone_from(&uris);
        })?;
        let limits = Limits { max_connections: request.max_connections, ..Limits::default() };
        Ok(Attachment {
            id,
            nbd_socket,
            listeners,
            control,
            metrics,
            uris,
            limits,
            volume,
            announcement,
            _held: held,
        })
    }
}

/// Every socket that clients are served at, and their URIs, the Unix socket's first.
fn listen(
    id: VolumeId,
    socket: &Path,
    addresses: &[SocketAddr],
) -> Result<(BoundSocket, Vec<BoundListener>, Vec<String>), ControlError> {
    let (bound, unix) = BoundSocket::bind(socket)?;
    let mut listeners = vec![BoundListener::Unix(unix)];
    let mut uris = vec![unix_uri(id, socket)];
    for address in addresses {
        let failed = |source| ControlError::Listen { address: *address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        uris.push(tcp_uri(id, listener.local_addr().map_err(failed)?));
        listeners.push(BoundListener::Tcp(listener));
    }
    Ok((bound, listeners, uris))
}

impl Attachment<'_> {
    /// Where clients reach the volume: NBD URIs, that of the Unix socket first. Clients may connect already; they
    /// are served once [`Self::serve`] runs.
    pub fn uris(&self) -> &[String] {
        &self.uris
    }

    /// Where metrics are served: a URL, or `unix:` and a path.
    pub fn metrics_url(&self) -> Option<&str> {
        self.metrics.as_ref().map(MetricsServer::url)
    }

    /// Serves until `shutdown` completes or somebody asks to detach; then finishes what is in flight, flushes,
    /// wipes the round keys, retires the grant and gives the volume back.
    ///
    /// Runs on a current-thread runtime with I/O and time, inside a local task set. `events` hears of
    /// connections. An error tells what of the end did not work; the key is wiped whatever happens.
    pub async fn serve(
        self,
        events: &mut impl Events,
        shutdown: impl Future<Output = ()>,
    ) -> Result<ServeReport, ControlError> {
        let Self { id, nbd_socket, listeners, mut control, mut metrics, .. } = self;
        let Self { limits, volume, mut announcement, _held, .. } = self;
        let statistics = Arc::<Statistics>::default();
        let source = StatisticsSource::new(id, Arc::clone(&statistics), volume.cipher_statistics());
        if let Some(metrics) = &mut metrics {
            let serving = metrics.serve(source.clone());
            serving.map_err(|source| ControlError::Start { what: "the metrics server", source })?;
        }
        let (stop, mut stopped) = watch::channel(false);
        let listening = control.listen(source, move || {
            stop.send_replace(true);
        });
        listening.map_err(|source| ControlError::Start { what: "the control socket", source })?;
        let over = async {
            tokio::select! {
                () = shutdown => {}
                // An error is a control socket that is gone; signals are left to end this.
                result = stopped.wait_for(|stop| *stop) => if result.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let front = Front { id, listeners, limits, statistics };
        let (report, grant) = match volume {
            OpenVolume::Plain(volume) => (front.serve(volume, events, over).await, None),
            OpenVolume::Encrypted(volume, grant) => (front.serve(volume, events, over).await, Some(grant)),
        };
        // The volume, and with it every key, is gone from here on.
        drop((nbd_socket, metrics));
        let ended = end(grant, &mut announcement);
        let outcome = match (report, ended) {
            (Ok(report), Ok(())) => announcement.withdraw().map(|()| report),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        control.conclude(&match &outcome {
            Ok(_) => Answer::detached(),
            Err(error) => Answer::Error(error.with_causes()),
        });
        outcome
    }
}

/// What clients meet, whatever is behind it.
struct Front {
    id: VolumeId,
    listeners: Vec<BoundListener>,
    limits: Limits,
    statistics: Arc<Statistics>,
}

impl Front {
    /// Serves `volume` and flushes it. It is dropped on return: `Server` and connections only borrow it or are over.
    async fn serve<D: BlockDevice>(
        self,
        volume: D,
        events: &mut impl Events,
        over: impl Future<Output = ()>,
    ) -> Result<ServeReport, ControlError> {
        let Self { id, listeners, limits, statistics } = self;
        let name = id.to_string();
        let info = ExportInfo::new(&name, &[], "").expect("a volume's id is a short text without NUL");
        let failed = |source| ControlError::Serve { id, source };
        let listeners =
            listeners.into_iter().map(on_this_runtime).collect::<io::Result<_>>().map_err(failed)?;
        let device = ByteDevice::new(volume);
        let server = Server::new(device.clone(), info, limits).counting_in(statistics);
        let report = server.serve(listeners, over, events).await;
        if !device.geometry().read_only {
            let flush_failed = |source| ControlError::LastFlush { id, source };
            let lane = device.device().open_lane().map_err(flush_failed)?;
            lane.flush().await.map_err(flush_failed)?;
        }
        if report.stuck > 0 {
            let stuck = format!("{} connections hang in the kernel, waiting for storage", report.stuck);
            return Err(failed(io::Error::other(stuck)));
        }
        Ok(report)
    }
}

fn on_this_runtime(listener: BoundListener) -> io::Result<Listener> {
    Ok(match listener {
        BoundListener::Unix(listener) => {
            listener.set_nonblocking(true)?;
            Listener::Unix(tokio::net::UnixListener::from_std(listener)?)
        }
        BoundListener::Tcp(listener) => {
            listener.set_nonblocking(true)?;
            Listener::Tcp(tokio::net::TcpListener::from_std(listener)?)
        }
    })
}

/// Retires the grant. If that fails, the announcement stays, so that the next holder tries again.
fn end(grant: Option<HeldGrant<'_>>, announcement: &mut Announcement) -> Result<(), ControlError> {
    let retired = grant.map_or(Ok(()), HeldGrant::retire);
    if retired.is_err() {
        announcement.keep_for_successor();
    }
    retired
}

#[cfg(test)]
mod tests {
    use sealblk_block::{MemoryDevice, Operation};
    use sealblk_testkit::fault_device::{Effect, Fault, FaultDevice};

    use super::*;

    /// Serves nobody on a device, and ends at once.
    fn serve_and_end(device: FaultDevice<MemoryDevice>) -> Result<ServeReport, ControlError> {
        let id = "vol-0123456789abcdef0".parse().expect("an id");
        let io = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&io, async {
            let limits = Limits::default();
            let front = Front { id, listeners: Vec::new(), limits, statistics: Arc::default() };
            front.serve(device, &mut (), std::future::ready(())).await
        })
    }

    #[test]
    fn a_failed_last_flush_is_an_error() {
        let device = FaultDevice::new(MemoryDevice::new(8));
        serve_and_end(device).expect("a device that works");
        let device = FaultDevice::new(MemoryDevice::new(8));
        let effect = Effect::Fail(io::ErrorKind::Other);
        device.add(Fault { operation: Operation::Flush, nth: Some(1), effect });
        let error = serve_and_end(device).expect_err("nobody knows what is durable");
        assert!(matches!(error, ControlError::LastFlush { .. }), "{error}");
    }
}
