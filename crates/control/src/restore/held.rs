//! The hold that a volume has on its snapshot for as long as it is restored from it, and the block map that it begins with.
//!
//! The order that makes it safe to be killed: first a record that names the snapshot, then the hold; and the hold is
//! released before what names the snapshot is gone. So whoever finds a directory of a volume that does not exist
//! finds in it what to release.

use std::ops::Range;
use std::time::Duration;

use sealblk_block::{FileDevice, FileOptions};
use sealblk_snapshot::BlockSet;
use sealblk_volume::map::{MapIdentity, map_bytes, write_restoring_map};
use sealblk_volume::{SnapshotId, VolumeDirectory, VolumeId, VolumeRecord};

use super::helper::{Purpose, Task};
use crate::backing::BackingError;
use crate::error::ControlError;
use crate::offline;
use crate::pool::{Pool, load_record};
use crate::snapshot::{RepositoryName, RepositoryPlace};

/// How long a command waits for a store that does not answer, to release a hold that may as well be released later.
const PATIENCE: Duration = Duration::from_secs(10);

/// The snapshot that a volume's record says it is being restored from.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotHold {
    pub(crate) volume: VolumeId,
    pub(crate) snapshot: SnapshotId,
    pub(crate) place: RepositoryPlace,
}

impl SnapshotHold {
    /// What `record` names; `None`: it is not being restored.
    pub(crate) fn of(pool: &Pool, record: &VolumeRecord) -> Result<Option<Self>, ControlError> {
        let (Some(snapshot), Some(restoring)) = (record.snapshot_id, &record.restoring) else {
            return Ok(None);
        };
        let place = match &restoring.snapshot_repository {
            None => RepositoryPlace::own(pool.pool_directory()),
            Some(recorded) => RepositoryPlace::named(recorded.into(), pool.store_environment.clone())?,
        };
        Ok(Some(Self { volume: record.volume_id, snapshot, place }))
    }

    /// What a helper is told that is to read it.
    pub(crate) fn task(&self) -> Task {
        Task {
            repository: self.repository_name(),
            snapshot_id: self.snapshot,
            volume_id: self.volume,
            purpose: Purpose::Read,
        }
    }

    fn repository_name(&self) -> RepositoryName {
        let own = || RepositoryName { location: self.place.location().to_string(), options: [].into() };
        self.place.name().cloned().unwrap_or_else(own)
    }

    /// Holds the snapshot, and writes the map of the volume in `directory`, of which every block that the snapshot has
    /// is missing.
    pub(crate) fn begin(
        &self,
        directory: &VolumeDirectory,
        record: &VolumeRecord,
    ) -> Result<(), ControlError> {
        let (id, size) = (record.volume_id, record.size_bytes);
        // The same bytes as the snapshot's: what changes from now on is all that the next snapshot needs.
        let as_it_is = record.restoring.as_ref().is_some_and(|restoring| restoring.encrypt_anew.is_none());
        directory.create_map(size).map_err(BackingError::from)?;
        let options = FileOptions { expected_bytes: Some(map_bytes(size)), ..FileOptions::default() };
        let map = FileDevice::open(&directory.map_path(), &options).map_err(BackingError::from)?;
        offline::run(async {
            let snapshot = self.place.open().await?.hold(self.snapshot, &self.volume.to_string()).await?;
            let blocks = snapshot.data_blocks().await?;
            let identity = MapIdentity { volume_id: id, size };
            write_restoring_map(&map, identity, self.snapshot, runs(&blocks), as_it_is)
                .await
                .map_err(|source| ControlError::Map { id, source })
        })?
    }

    /// Releases the snapshot, if it is held. One that was deleted meanwhile is then gone.
    pub(crate) fn release(&self) -> Result<(), ControlError> {
        let place = self.place.clone().within(PATIENCE);
        offline::run(async {
            place.open().await?.release(self.snapshot, &self.volume.to_string()).await?;
            Ok(())
        })?
    }
}

/// Releases what a volume that does not exist holds, as its record in `directory` says; `false`: that is not possible now,
/// and the directory must stay. The volume is nobody's.
pub(crate) fn release_leftover(pool: &Pool, directory: &VolumeDirectory) -> bool {
    // Without a record nothing is held yet, or any more.
    let Ok(record) = load_record(directory) else { return true };
    match SnapshotHold::of(pool, &record) {
        Ok(None) => true,
        Ok(Some(hold)) => hold.release().is_ok(),
        Err(_) => false,
    }
}

fn runs(blocks: &BlockSet) -> impl Iterator<Item = Range<u64>> + '_ {
    std::iter::successors(blocks.next_run(0), |run| blocks.next_run(run.end))
}
