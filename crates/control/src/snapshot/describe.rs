//! DescribeSnapshots: what is known of snapshots, with EC2's field names. Changes nothing and calls no KMS.

use jiff::Timestamp;
use sealblk_snapshot::{BLOCK_BYTES, SnapshotRecord, State};
use sealblk_volume::{AccountId, DataKeyId, KeyReference, SnapshotId, VolumeId};
use serde::Serialize;

use super::metadata::{SnapshotEncryption, SnapshotMetadata};
use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;

/// One snapshot. Serialises with EC2's field names where EC2 has the field.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnapshotDescription {
    /// The id.
    pub snapshot_id: SnapshotId,
    /// The state.
    pub state: State,
    /// Why it is in error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_message: Option<String>,
    /// How much of it is stored: `NN%`.
    pub progress: String,
    /// When it was begun.
    pub start_time: Timestamp,
    /// When it was completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    /// The volume that it was made of.
    pub volume_id: VolumeId,
    /// That volume's size in GiB, rounded up.
    pub volume_size: u64,
    /// That volume's size in bytes.
    pub volume_size_bytes: u64,
    /// Bytes of the blocks that have data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_snapshot_size_in_bytes: Option<u64>,
    /// The account that it belongs to.
    pub owner_id: AccountId,
    /// What its maker wrote about it.
    pub description: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The ARN of the key it is encrypted under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<KeyReference>,
    /// What its data key is known by: equal for volumes and snapshots that share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_encryption_key_id: Option<DataKeyId>,
    /// Who else may make volumes and copies of it; told to its owner only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_volume_permissions: Vec<Permission>,
}

/// Who else may make volumes and copies of a snapshot, as EC2 tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub enum Permission {
    /// One account.
    UserId(AccountId),
    /// Everybody.
    Group(Group),
}

/// A group of accounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// All accounts.
    All,
}

impl Pool {
    /// Everything known of one snapshot, in whatever state: the account's own, or one that is shared with it. Another
    /// one is as if it did not exist.
    pub fn describe_snapshot(&self, id: SnapshotId) -> Result<SnapshotDescription, ControlError> {
        let record =
            offline::run(async { Ok::<_, ControlError>(self.repository.open().await?.record(id).await?) })??;
        let metadata = record.metadata()?;
        self.require_visible(id, &metadata)?;
        Ok(self.describe(&record, metadata))
    }

    /// The account's own snapshots, in whatever state, the oldest first.
    pub fn list_snapshots(&self) -> Result<Vec<SnapshotDescription>, ControlError> {
        self.list(|metadata| self.owns(metadata))
    }

    /// The snapshots of other accounts that this one may use, the oldest first (EC2: `RestorableBy`).
    pub fn list_shared_snapshots(&self) -> Result<Vec<SnapshotDescription>, ControlError> {
        self.list(|metadata| !self.owns(metadata) && self.may_use(metadata))
    }

    fn list(
        &self,
        shown: impl Fn(&SnapshotMetadata) -> bool,
    ) -> Result<Vec<SnapshotDescription>, ControlError> {
        let mut records: Vec<SnapshotRecord> =
            offline::run(async { Ok::<_, ControlError>(self.repository.open().await?.snapshots().await?) })??;
        records.sort_by_key(|record| (record.start_time, record.snapshot_id));
        let mut listed = Vec::new();
        for record in &records {
            let metadata = record.metadata()?;
            if shown(&metadata) {
                listed.push(self.describe(record, metadata));
            }
        }
        Ok(listed)
    }

    /// What a record says of a snapshot that the account may see; who it is shared with, to its owner only.
    pub(crate) fn describe(
        &self,
        record: &SnapshotRecord,
        metadata: SnapshotMetadata,
    ) -> SnapshotDescription {
        let create_volume_permissions =
            if self.owns(&metadata) { permissions(&metadata) } else { Vec::new() };
        SnapshotDescription { create_volume_permissions, ..describe(record, metadata) }
    }
}

fn permissions(metadata: &SnapshotMetadata) -> Vec<Permission> {
    let everybody = metadata.public.then_some(Permission::Group(Group::All));
    everybody.into_iter().chain(metadata.shared_with.iter().cloned().map(Permission::UserId)).collect()
}

fn describe(record: &SnapshotRecord, metadata: SnapshotMetadata) -> SnapshotDescription {
    let data_key = match &metadata.encryption {
        SnapshotEncryption::Plain {} => None,
        SnapshotEncryption::Aes256Xts(xts) => Some(xts.data_key_id()),
    };
    SnapshotDescription {
        snapshot_id: record.snapshot_id,
        state: record.state,
        state_message: record.state_message.clone(),
        progress: format!("{}%", record.progress_percent()),
        start_time: record.start_time,
        completion_time: record.completion_time,
        volume_id: metadata.volume_id,
        volume_size: record.volume_size_bytes.div_ceil(1 << 30),
        volume_size_bytes: record.volume_size_bytes,
        full_snapshot_size_in_bytes: full_size_bytes(record),
        encrypted: data_key.is_some(),
        kms_key_id: metadata.kms_key_id().cloned(),
        data_encryption_key_id: data_key,
        owner_id: metadata.owner_id,
        description: metadata.description,
        create_volume_permissions: Vec::new(),
    }
}

/// Known of a snapshot that is whole; one of nothing but zeros has no index at all.
fn full_size_bytes(record: &SnapshotRecord) -> Option<u64> {
    record.completion_time?;
    Some(record.root.map_or(0, |root| root.blocks.saturating_mul(BLOCK_BYTES)))
}
