//! The block map of an open volume: its file, and the thread that keeps it while the volume is open.

use std::io;
use std::sync::mpsc;
use std::thread::JoinHandle;

use sealblk_block::{BlockError, FileDevice, FileOptions};
use sealblk_volume::map::{Background, MapError, MapIdentity, MapOptions, MappedDevice, map_bytes};
use sealblk_volume::{VolumeDirectory, VolumeId, VolumeRecord};

use crate::backing::BackingError;
use crate::error::ControlError;
use crate::offline;
use crate::pool::change_record;
use crate::restore::{FetchPlan, RestoreFetch};
use crate::store::StoreDevice;

/// A volume's stored bytes with its block map.
pub(crate) type StoredVolume = MappedDevice<StoreDevice, FileDevice>;

/// Opens the block map of the volume in `directory`, whose lock the caller holds, over `device`. A volume of a release
/// without maps gets one, unless it is only read.
pub(crate) fn open_stored(
    directory: &VolumeDirectory,
    record: &VolumeRecord,
    device: StoreDevice,
    read_only: bool,
) -> Result<StoredVolume, ControlError> {
    let id = record.volume_id;
    let path = directory.map_path();
    let pool_failed = |source| ControlError::Pool { path: directory.path().to_owned(), source };
    let exists = path.try_exists().map_err(pool_failed)?;
    if !read_only {
        directory.remove_spools().map_err(pool_failed)?;
    }
    if !exists && record.snapshot_id.is_some() {
        return Err(ControlError::Map { id, source: MapError::Lost });
    }
    if !exists && read_only {
        return Ok(MappedDevice::without_map(device, record.size_bytes, true));
    }
    if !exists {
        // First a record that says that maps are kept: a release that does not would not open it.
        change_record(directory, Ok)?;
        directory.create_map(record.size_bytes).map_err(BackingError::from)?;
    }
    let options =
        FileOptions { expected_bytes: Some(map_bytes(record.size_bytes)), ..FileOptions::default() };
    let store = FileDevice::open(&path, &options).map_err(BackingError::from)?;
    let options = MapOptions {
        identity: MapIdentity { volume_id: id, size: record.size_bytes },
        origin: record.snapshot_id,
        read_only,
    };
    offline::run(MappedDevice::open(device, store, options))?
        .map_err(|source| ControlError::Map { id, source })
}

/// The keeper of an open volume's block map, in a thread of its own. Dropped, it ends without the map saying what
/// changed.
pub(crate) struct Keeping {
    id: VolumeId,
    stored: StoredVolume,
    thread: Option<JoinHandle<Result<(), ControlError>>>,
}

impl Keeping {
    /// Starts the keeper; on return it has begun. Missing blocks come as `plan` says; without one there are none.
    pub(crate) fn start(
        id: VolumeId,
        stored: StoredVolume,
        plan: Option<FetchPlan>,
    ) -> Result<Self, ControlError> {
        let kept = stored.clone();
        let (begun, has_begun) = mpsc::channel();
        let run = move || {
            let source = RestoreFetch::new(plan);
            let tell = || begun.send(()).expect("who started this waits for it");
            let ended = offline::run(kept.keep_and_tell(source, Background::Restore, tell));
            // Without a runtime it did not even come to know of its inbox.
            kept.give_up_keeping();
            ended?.map_err(|source| ControlError::Device { id, doing: "keeping the block map", source })
        };
        let started = std::thread::Builder::new().name("keeper".to_owned()).spawn(run);
        let thread =
            started.map_err(|source| ControlError::Start { what: "the keeper of the block map", source })?;
        let mut keeping = Self { id, stored, thread: Some(thread) };
        match has_begun.recv() {
            Ok(()) => Ok(keeping),
            // It has ended instead, and says why.
            Err(mpsc::RecvError) => keeping.join().map(|()| keeping),
        }
    }

    /// Has the map say what changed, once all of it is durable, and ends the keeper. No lane is open any more.
    pub(crate) async fn close(mut self) -> Result<(), ControlError> {
        let closed = self.stored.close().await;
        let ended = self.join();
        let failed = |source: BlockError| ControlError::LastFlush { id: self.id, source };
        // A keeper that could not begin says more than that it did not answer.
        ended.and(closed.map_err(failed))
    }

    fn join(&mut self) -> Result<(), ControlError> {
        self.stored.stop();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let panicked = |_| ControlError::Start {
            what: "the keeper of the block map",
            source: io::Error::other("it panicked"),
        };
        thread.join().map_err(panicked)?
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // There is an error to tell already, or nobody to tell.
        let _ = self.join();
    }
}
