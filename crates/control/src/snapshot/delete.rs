//! DeleteSnapshot: frees exactly what no other snapshot needs. Calls no key service, but to
//! retire what a killed copy left there.

use sealblk_snapshot::{BLOCK_BYTES, Deletion};
use sealblk_volume::SnapshotId;
use serde::Serialize;

use super::copy::retire_left_grants;
use super::metadata::SnapshotMetadata;
use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;

/// What a deletion did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeletedSnapshot {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// `deleted`; or `deleting`: it is closed, and gone when the last of its holders lets go of it.
    pub state: &'static str,
    /// Blocks that were removed.
    pub freed_blocks: u64,
    /// Their bytes; the last block of a volume may be shorter than it is counted here.
    pub freed_bytes: u64,
    /// Snapshots that are being made upon it, and volumes and copies that are being made from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
}

impl Pool {
    /// Deletes a snapshot, in whatever state; one that is a copy in progress is given up first. Goes on with a deletion that was interrupted, of this one and of others.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<DeletedSnapshot, ControlError> {
        let record =
            offline::run(async { Ok::<_, ControlError>(self.repository.open().await?.record(id).await?) })??;
        let metadata: SnapshotMetadata = record.metadata()?;
        self.require_owned(id, &metadata)?;
        if metadata.copied_from.is_some() {
            // Such a grant lets nobody do what this host may not: it is no reason not to delete.
            let _ = retire_left_grants(self);
        }
        if metadata.copied_from.is_some() && record.completion_time.is_none() {
            self.give_up_copy(id)?;
        }
        let deletion = offline::run(async {
            let repository = self.repository.open().await?;
            let deletion = repository.delete(id).await?;
            // Others': an error there is told to who deletes those.
            let _ = repository.finish_deletions().await;
            Ok::<_, ControlError>(deletion)
        })??;
        let (state, freed_blocks, holders) = match deletion {
            Deletion::Removed(freed) => ("deleted", freed.blocks, Vec::new()),
            Deletion::Held { holders } => ("deleting", 0, holders),
        };
        let freed_bytes = freed_blocks.saturating_mul(BLOCK_BYTES);
        Ok(DeletedSnapshot { snapshot_id: id, state, freed_blocks, freed_bytes, holders })
    }
}
