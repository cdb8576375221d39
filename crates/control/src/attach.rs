//! AttachVolume: the order of everything an attachment does, from the lock to the sockets and back (design §1, §4.8).
//!
//! Called by the process that serves, and by nobody else: one process, one volume, one data key. The caller has
//! made the process undumpable before.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, ByteDevice, Caching};
use sealblk_nbd::{Events, ExportInfo, Limits, Listener, ServeReport, Server, Statistics};
use sealblk_volume::VolumeId;
use tokio::sync::watch;

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState, GrantRecord};
use crate::conversation::{Answer, ControlSocket};
use crate::endpoints::{BoundEndpoints, Endpoints, UnixEndpoint};
use crate::error::ControlError;
use crate::export_info::export_info;
use crate::freezing::{Freezable, Freezing, SnapshotEvents};
use crate::grant::{HeldGrant, KeyUse};
use crate::grow::{Grower, Growing};
use crate::hold::HeldVolume;
use crate::keep::Keeping;
use crate::key_watch::{KeyEvent, KeyEvents, KeyLossPolicy, KeyWatch, WatchedKey};
use crate::metrics::{MetricsAddress, MetricsServer};
use crate::open::{OpenHow, OpenVolume};
use crate::pool::Pool;
use crate::restore::{FetchPlan, Restoration, RestoreEvents, RunningRestoration};
use crate::runtime::{BoundSocket, Openness, RuntimeDir};
use crate::stats::StatisticsSource;

/// What AttachVolume is asked for.
#[derive(Debug)]
pub struct AttachVolume {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is served.
    pub endpoints: Endpoints,
    /// Whether writes are refused. The volume is nobody else's all the same.
    pub read_only: bool,
    /// `None`: files through the page cache, block devices around it.
    pub caching: Option<Caching>,
    /// What clients may cost.
    pub limits: Limits,
    /// For how long a process that makes a snapshot may take nothing of it; then it has lost it.
    pub snapshot_stall: Duration,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<MetricsAddress>,
    /// What happens when the key can no longer be used; of an unencrypted volume nothing.
    pub key_loss: KeyLossPolicy,
}

impl AttachVolume {
    /// What `snapshot_stall` is if nothing else is asked for: more than three times as long as a store that does not answer is
    /// asked again.
    pub const SNAPSHOT_STALL: Duration = Duration::from_secs(600);
}

/// A volume that is ready to be served. Dropped instead, it is detached again: sockets and announcement go, round
/// keys are wiped, the grant is retired, in this order, and last the lock.
pub struct Attachment<'p> {
    id: VolumeId,
    endpoints: BoundEndpoints,
    control: ControlSocket,
    metrics: Option<MetricsServer>,
    limits: Limits,
    snapshot_stall: Duration,
    volume: OpenVolume<'p>,
    /// What is left to be restored, and from where.
    restoration: Option<(Restoration, FetchPlan)>,
    announcement: Announcement,
    /// What clients are told of the export.
    info: ExportInfo,
    held: HeldVolume,
    pool: &'p Pool,
    key_loss: KeyLossPolicy,
    key_events: KeyEvents,
    restore_events: RestoreEvents,
    snapshot_events: SnapshotEvents,
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
        request.endpoints.check()?;
        request.metrics.as_ref().map_or(Ok(()), MetricsAddress::require_local)?;
        let nbd_socket = match &request.endpoints.socket {
            UnixEndpoint::Standard => Some(runtime.nbd_socket(&id)),
            UnixEndpoint::At(path) => Some(path.clone()),
            UnixEndpoint::Absent => None,
        };
        let control_socket = runtime.control_socket(&id);

        let mut held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        let (_, record) = self.load(id)?;
        let mut holder = AttachmentRecord::of_this_process(AttachmentState::Attaching, request.read_only);
        holder.control_socket = Some(control_socket.clone());
        holder.sockets = nbd_socket.iter().chain([&control_socket]).cloned().collect();
        if let Some(MetricsAddress::Unix(path)) = &request.metrics {
            holder.sockets.push(path.clone());
        }
        let mut announcement = Announcement::make(&held.directory, holder)?;

        let how = OpenHow { read_only: request.read_only, caching: request.caching };
        let volume = self.open_volume(&mut held, &record, how, &mut announcement)?;
        // Of the record as it is now: it may have been re-wrapped since it was read.
        let (directory, now) = self.load(id)?;
        let restoration = self.prepare_restoration(&directory, &now, &volume, &mut announcement)?;

        let (control, listener) = BoundSocket::bind(&control_socket, Openness::Owner)?;
        let control = ControlSocket::new(control, listener);
        let endpoints = request.endpoints.bind(id, nbd_socket.as_ref())?;
        let metrics = request.metrics.as_ref().map(MetricsServer::bind).transpose()?;
        announcement.update(|holder| {
            holder.state = AttachmentState::Attached;
            holder.uris = endpoints.uris().to_vec();
        })?;
        let limits = request.limits.clone();
        let info = export_info(&record, volume.stored());
        let (pool, key_loss, key_events) = (self, request.key_loss, Box::new(|_: &KeyEvent| {}) as KeyEvents);
        Ok(Attachment {
            id,
            endpoints,
            control,
            metrics,
            limits,
            snapshot_stall: request.snapshot_stall,
            volume,
            restoration,
            announcement,
            info,
            held,
            pool,
            key_loss,
            key_events,
            restore_events: Box::new(|_| {}),
            snapshot_events: Box::new(|_| {}),
        })
    }
}

impl Attachment<'_> {
    /// Where clients reach the volume: NBD URIs, that of the Unix socket first. Clients may connect already; they
    /// are served once [`Self::serve`] runs.
    pub fn uris(&self) -> &[String] {
        self.endpoints.uris()
    }

    /// Which key unwrapped the data key; `None`: the volume is not encrypted.
    pub fn key_use(&self) -> Option<&KeyUse> {
        match &self.volume {
            OpenVolume::Plain(_) => None,
            OpenVolume::Encrypted(_, grant, _) => Some(&grant.key_use),
        }
    }

    /// Who is to hear what happens to the key while it serves; otherwise nobody does.
    pub fn on_key_events(&mut self, events: KeyEvents) {
        self.key_events = events;
    }

    /// Who is to hear how the restoration of the volume goes while it serves; otherwise nobody does.
    pub fn on_restore_events(&mut self, events: RestoreEvents) {
        self.restore_events = events;
    }

    /// Who is to hear of snapshots that their makers leave lying while it serves; otherwise nobody does.
    pub fn on_snapshot_events(&mut self, events: SnapshotEvents) {
        self.snapshot_events = events;
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
        mut self,
        events: &mut impl Events,
        shutdown: impl Future<Output = ()>,
    ) -> Result<ServeReport, ControlError> {
        let watch = self.watch_key()?;
        let Self { id, endpoints, mut control, mut metrics, .. } = self;
        let Self { limits, volume, restoration, restore_events, snapshot_stall, snapshot_events, .. } = self;
        let Self { mut announcement, info, held, pool, .. } = self;
        let statistics = Arc::<Statistics>::default();
        let source = StatisticsSource::new(id, Arc::clone(&statistics), volume.cipher_statistics());
        if let Some(metrics) = &mut metrics {
            let serving = metrics.serve(source.clone());
            serving.map_err(|source| ControlError::Start { what: "the metrics server", source })?;
        }
        let (stop, mut stopped) = watch::channel(false);
        let growing = Growing::new(Grower {
            id,
            directory: held.directory.clone(),
            stored: volume.stored().clone(),
            growth: volume.growth(),
        });
        let freezing = Freezing::new(Freezable {
            id,
            directory: held.directory.clone(),
            stored: volume.stored().clone(),
            stall: snapshot_stall,
            events: snapshot_events,
        });
        let listening = control.listen(source, growing.clone(), freezing.clone(), move || {
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
            // Whoever waits for the key would keep the volume from ending.
            watch.iter().for_each(KeyWatch::conclude);
        };
        let (listeners, socket) =
            endpoints.on_this_runtime().map_err(|source| ControlError::Serve { id, source })?;
        let front = Front { id, info, listeners, limits, statistics };
        let (restoration, plan) = restoration.unzip();
        let keeping = Keeping::start(id, volume.stored().clone(), plan)?;
        let restoring = restoration
            .map(|what| RunningRestoration::start(what, volume.stored().clone(), restore_events))
            .transpose()?;
        let (report, grant) = match volume {
            OpenVolume::Plain(volume) => (front.serve(volume, events, over).await, None),
            OpenVolume::Encrypted(volume, grant, _) => (front.serve(volume, events, over).await, Some(grant)),
        };
        growing.end();
        freezing.end();
        // The volume, and with it every key, is gone from here on.
        drop((socket, metrics));
        let report = match report {
            Ok(report) => keeping.close().await.map(|()| report),
            Err(error) => {
                drop(keeping);
                Err(error)
            }
        };
        let restored = restoring.map_or(Ok(()), RunningRestoration::end);
        let later = watch.map_or_else(Vec::new, KeyWatch::into_grants);
        let ended = end(pool, grant, &later, restored, &mut announcement);
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

impl Attachment<'_> {
    /// Begins to watch the key, if that was asked for and there is one.
    fn watch_key(&mut self) -> Result<Option<KeyWatch>, ControlError> {
        let OpenVolume::Encrypted(_, grant, hold) = &self.volume else { return Ok(None) };
        let events = std::mem::replace(&mut self.key_events, Box::new(|_| {}));
        let key = WatchedKey {
            id: self.id,
            directory: self.held.directory.clone(),
            kms: Arc::clone(&self.pool.kms),
            key: grant.key_use.key.clone(),
            grant: grant.record().cloned(),
            hold: hold.clone(),
        };
        KeyWatch::start(key, self.key_loss, events)
    }
}

/// What clients meet, whatever is behind it.
struct Front {
    id: VolumeId,
    info: ExportInfo,
    listeners: Vec<Listener>,
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
        let Self { id, info, listeners, limits, statistics } = self;
        let failed = |source| ControlError::Serve { id, source };
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

/// Retires the grant. If that fails, the announcement stays, so that the next holder tries again.
fn end(
    pool: &Pool,
    grant: Option<HeldGrant<'_>>,
    later: &[GrantRecord],
    restored: Result<(), ControlError>,
    announcement: &mut Announcement,
) -> Result<(), ControlError> {
    // Those of keys that the volume was moved to are given again to the next attachment, if they stay.
    let also = later.iter().try_for_each(|grant| pool.retire(grant));
    let retired = grant.map_or(Ok(()), HeldGrant::retire).and(restored);
    if retired.is_err() {
        announcement.keep_for_successor();
    }
    retired.and(also)
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
            let info = ExportInfo::new("v", &[], "").expect("a name");
            let front = Front { id, info, listeners: Vec::new(), limits, statistics: Arc::default() };
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
