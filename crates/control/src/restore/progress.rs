//! How far a volume is restored, as its block map says it to who looks from outside.

use sealblk_block::{FileDevice, FileOptions};
use sealblk_volume::map::{MapIdentity, RestoreProgress, read_restore_progress};
use sealblk_volume::{DataKeyId, KeyReference, SourceEncryption, VolumeDirectory, VolumeRecord};
use serde::Serialize;

use crate::offline;

/// The restoration of a volume that is not whole yet.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RestoringDescription {
    /// How much of it is here, `NN%`: as far as that was made durable. Unknown if the map cannot be read now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Blocks of 512 KiB that are here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_blocks: Option<u64>,
    /// Blocks that the snapshot has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_blocks: Option<u64>,
    /// The snapshot's key, which an attach needs too until the volume is restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_kms_key_id: Option<KeyReference>,
    /// What the snapshot's data key is known by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_data_encryption_key_id: Option<DataKeyId>,
    /// Where the snapshot is, if not in the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// What is known of the restoration of the volume in `directory`; `None`: it is not being restored.
pub(crate) fn describe(directory: &VolumeDirectory, record: &VolumeRecord) -> Option<RestoringDescription> {
    let restoring = record.restoring.as_ref()?;
    // While the keeper writes, a page may be half new. It is looked at again the next time.
    let blocks = read(directory, record);
    let source = match &restoring.encrypt_anew {
        Some(SourceEncryption::Aes256Xts(source)) => Some(source),
        _ => None,
    };
    Some(RestoringDescription {
        progress: blocks.map(|at| format!("{}%", percent(at))),
        restored_blocks: blocks.map(|at| at.restored_blocks),
        total_blocks: blocks.map(|at| at.total_blocks),
        source_kms_key_id: source.map(|source| source.kms_key_id.clone()),
        source_data_encryption_key_id: source.map(|source| source.data_key_id()),
        repository: restoring.snapshot_repository.as_ref().map(|repository| repository.location.clone()),
    })
}

fn read(directory: &VolumeDirectory, record: &VolumeRecord) -> Option<RestoreProgress> {
    let options = FileOptions { read_only: true, ..FileOptions::default() };
    let map = FileDevice::open(&directory.map_path(), &options).ok()?;
    let identity = MapIdentity { volume_id: record.volume_id, size: record.size_bytes };
    let progress = offline::run(read_restore_progress(&map, identity)).ok()?.ok()?;
    // Whole: only what is left to be said is missing.
    Some(progress.unwrap_or(RestoreProgress { restored_blocks: 1, total_blocks: 1 }))
}

/// Rounded down: 100 is all.
fn percent(at: RestoreProgress) -> u64 {
    at.restored_blocks.saturating_mul(100).checked_div(at.total_blocks).unwrap_or(100)
}
