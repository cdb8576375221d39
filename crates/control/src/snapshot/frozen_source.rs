//! From a volume's id to the blocks of one instant of it: from the process that serves it, or, if nobody does, from a
//! thread of this one. Either way they come by a block stream, and no key is needed.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_volume::map::{Background, NoSource};
use sealblk_volume::{SnapshotId, VolumeDirectory, VolumeId, VolumeRecord};

use super::error::SnapshotOperationError;
use super::frozen::{FrozenVolume, Spool};
use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::block_stream;
use crate::conversation::ask_to_freeze;
use crate::error::ControlError;
use crate::freezing::{FreezeAnswer, FreezeRequest};
use crate::hold::HeldVolume;
use crate::keep::{self, StoredVolume};
use crate::offline;
use crate::open::OpenHow;
use crate::pool::Pool;
use crate::store::StoreDevice;

/// How long writes that are on their way when a volume is frozen may take.
const FREEZING_TIME: Duration = Duration::from_secs(60);

/// A frozen volume, as seen by who makes a snapshot of it. Dropped, it is frozen no more.
pub(super) struct FrozenSource {
    /// A block stream, not greeted yet.
    pub(super) stream: UnixStream,
    /// The snapshot since which the blocks that are served have changed; `None`: all that hold data are.
    pub(super) base: Option<SnapshotId>,
    /// The volume holds what it held when the snapshot was first begun, for certain.
    pub(super) unchanged: bool,
    /// Of a volume that nobody serves.
    pub(super) own: Option<OwnServer>,
}

/// A thread of this process that serves a volume that nobody else has.
pub(super) struct OwnServer {
    thread: JoinHandle<Result<(), ControlError>>,
    _announcement: Announcement,
    _held: HeldVolume,
}

impl OwnServer {
    /// Waits for its end, once the stream was dropped: by then the block map says what has changed since the snapshot.
    pub(super) fn join(self) -> Result<(), ControlError> {
        let panicked = |_| ControlError::Start {
            what: "the thread that reads the volume",
            source: io::Error::other("it panicked"),
        };
        self.thread.join().map_err(panicked)?
    }
}

impl Pool {
    /// Freezes a volume for a snapshot, wherever it is. `resumed`: the snapshot was begun before.
    pub(super) fn freeze_volume(
        &self,
        id: VolumeId,
        request: &FreezeRequest,
        resumed: bool,
    ) -> Result<FrozenSource, ControlError> {
        let there = |socket: &Path| {
            let frozen = ask_to_freeze(socket, request.clone(), FREEZING_TIME).ok().flatten();
            frozen.map(|(answer, stream)| attached(id, answer, stream))
        };
        self.wherever_it_is(id, || self.freeze_detached(id, request, resumed), there)
    }

    fn freeze_detached(
        &self,
        id: VolumeId,
        request: &FreezeRequest,
        resumed: bool,
    ) -> Result<FrozenSource, ControlError> {
        let mut held = self.hold(id)?;
        let announcement = announce(&held.directory, request.snapshot_id)?;
        let (directory, record) = self.load(id)?;
        let spool = directory.spool_path(request.snapshot_id);
        let there =
            || spool.try_exists().map_err(|source| ControlError::Pool { path: spool.clone(), source });
        let unchanged = resumed && there()?;
        let stored = open(&mut held, &directory, &record)?;
        let (ours, theirs) =
            UnixStream::pair().map_err(|source| ControlError::Start { what: "a block stream", source })?;
        let server = Server {
            volume: id,
            directory,
            stored,
            request: request.clone(),
            spool: if unchanged || !resumed { Spool::Kept } else { Spool::Unnamed },
        };
        let (begun, is_begun) = mpsc::channel();
        let thread = std::thread::Builder::new().name("volume".to_owned());
        let thread = thread
            .spawn(move || server.run(theirs, &begun))
            .map_err(|source| ControlError::Start { what: "the thread that reads the volume", source })?;
        let own = OwnServer { thread, _announcement: announcement, _held: held };
        match is_begun.recv() {
            Ok(base) => Ok(FrozenSource { stream: ours, base, unchanged, own: Some(own) }),
            // It has ended without having begun, and so with an error.
            Err(_) => Err(own.join().err().unwrap_or(ControlError::NotAttached { id })),
        }
    }
}

fn attached(id: VolumeId, answer: FreezeAnswer, stream: UnixStream) -> Result<FrozenSource, ControlError> {
    match answer {
        FreezeAnswer::Frozen { base } => Ok(FrozenSource { stream, base, unchanged: false, own: None }),
        FreezeAnswer::InProgress {} => Err(SnapshotOperationError::InProgress { volume: id }.into()),
        FreezeAnswer::Error(message) => Err(SnapshotOperationError::Refused { volume: id, message }.into()),
    }
}

/// Says that this process works on the volume. What a killed server has left to be cleaned up is kept for the next attachment:
/// retiring its grant would be a call of the key service, and a snapshot makes none.
fn announce(directory: &VolumeDirectory, snapshot: SnapshotId) -> Result<Announcement, ControlError> {
    let stale = AttachmentRecord::read(directory)?;
    let mut holder = AttachmentRecord::of_this_process(AttachmentState::Busy, true);
    holder.snapshot = Some(snapshot);
    let keep = stale.is_some();
    if let Some(stale) = stale {
        (holder.grant, holder.restore_grant) = (stale.grant, stale.restore_grant);
        holder.sockets = stale.sockets;
    }
    let mut announcement = Announcement::make(directory, holder)?;
    if keep {
        announcement.keep_for_successor();
    }
    Ok(announcement)
}

/// Opens the volume's stored bytes, with its block map.
fn open(
    held: &mut HeldVolume,
    directory: &VolumeDirectory,
    record: &VolumeRecord,
) -> Result<StoredVolume, ControlError> {
    let device = StoreDevice::open(held, record, OpenHow { read_only: false, caching: None })?;
    keep::open_stored(directory, record, device, false)
}

/// What the thread does.
struct Server {
    volume: VolumeId,
    directory: VolumeDirectory,
    stored: StoredVolume,
    request: FreezeRequest,
    spool: Spool,
}

impl Server {
    fn run(self, stream: UnixStream, begun: &mpsc::Sender<Option<SnapshotId>>) -> Result<(), ControlError> {
        offline::run(async {
            let kept = self.stored.clone();
            let keeper = tokio::task::spawn_local(async move { kept.keep(NoSource, Background::Idle).await });
            let served = self.serve(stream, begun).await;
            let volume = self.volume;
            let closed = match &served {
                Ok(()) => self.stored.close().await,
                Err(_) => {
                    self.stored.stop();
                    Ok(())
                }
            };
            let ended = keeper.await.map_err(|failed| ControlError::Start {
                what: "the keeper of the block map",
                source: failed.into(),
            });
            let failed = |doing| move |source| ControlError::Device { id: volume, doing, source };
            served?;
            ended?.map_err(failed("keeping the block map"))?;
            closed.map_err(failed("writing the block map"))
        })?
    }

    async fn serve(
        &self,
        stream: UnixStream,
        begun: &mpsc::Sender<Option<SnapshotId>>,
    ) -> Result<(), ControlError> {
        let Self { volume, directory, stored, request, spool } = self;
        let id = request.snapshot_id;
        let frozen = FrozenVolume::begin((*volume, directory), stored, id, &request.onto, *spool).await?;
        let failed = |source| ControlError::from(SnapshotOperationError::Stream { volume: *volume, source });
        let ready = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
        let ready = ready.map_err(failed)?;
        // Who waits for it is there.
        let _ = begun.send(frozen.base());
        // A client that does not keep to the protocol is this very process, which knows.
        // Both sides are this very process: it cannot wait for a part of it that stands still.
        let served = block_stream::serve(ready, frozen, block_stream::Patience::Endless).await;
        if let Ok(block_stream::Ended::Completed) = served {
            // What is left is removed by the next attachment.
            let _ = fs::remove_file(directory.spool_path(id));
        }
        Ok(())
    }
}
