//! DescribeVolumes: what is known of volumes, with EC2's field names. Changes nothing and calls no KMS.

use std::time::Duration;

use jiff::Timestamp;
use sealblk_kms::{GrantId, wrapped_under};
use sealblk_record::wait_until_free;
use sealblk_volume::{
    AccountId, Backing, Encryption, KeyReference, RecoveryKey, SnapshotId, VolumeDirectory, VolumeId,
    VolumeName, VolumeRecord, VolumeSize, WrappedDataKey,
};
use serde::Serialize;

use crate::attachment::{AttachmentRecord, AttachmentState};
use crate::error::ControlError;
use crate::place::BackingPlace;
use crate::pool::Pool;
use crate::restore::{self, RestoringDescription};

/// A volume's state (ebs.md A.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Nobody uses it.
    Available,
    /// It is attached, or worked on.
    InUse,
    /// Its record cannot be read.
    Error,
}

impl VolumeState {
    /// As EC2 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::InUse => "in-use",
            Self::Error => "error",
        }
    }
}

/// One volume. Serialises with EC2's field names where EC2 has the field.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VolumeDescription {
    /// The id.
    pub volume_id: VolumeId,
    /// The state.
    pub state: VolumeState,
    /// The account that it belongs to.
    pub owner_id: AccountId,
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// Size in GiB, rounded up.
    pub size: u64,
    /// Size in bytes.
    pub size_bytes: VolumeSize,
    /// Bytes that the store has allocated; a block device does not say.
    pub allocated_bytes: Option<u64>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The ARN of the key it is encrypted under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<KeyReference>,
    /// The key's material that wraps it, where a wrapped key tells (`CurrentKeyMaterialId` of when it was wrapped).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_material_id: Option<String>,
    /// Its data key, wrapped under that key; base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapped_key: Option<WrappedDataKey>,
    /// The same data key under further keys, tried in this order when the first cannot be used.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<RecoveryKey>,
    /// The snapshot it came from.
    pub snapshot_id: Option<SnapshotId>,
    /// While it is being restored from that: how far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restoring: Option<RestoringDescription>,
    /// When it was created.
    pub create_time: Timestamp,
    /// Whether TRIM may give space back to the store.
    pub discard: bool,
    /// The file, device or export that holds its bytes.
    pub backing: BackingPlace,
    /// Whether the backing is the pool's own file, and goes with the volume.
    pub backing_is_own: bool,
    /// Who serves it: none or one.
    pub attachments: Vec<AttachmentDescription>,
}

/// One attachment.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachmentDescription {
    /// The volume.
    pub volume_id: VolumeId,
    /// What the serving process is doing.
    pub state: AttachmentState,
    /// When it began.
    pub attach_time: Timestamp,
    /// The serving process.
    pub pid: u32,
    /// Where clients reach it: NBD URIs.
    pub uris: Vec<String>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The grant it decrypted under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<GrantId>,
}

/// A volume whose record cannot be read. Takes the place of a description in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DamagedVolume {
    /// The id: its directory's name.
    pub volume_id: VolumeId,
    /// Always `error`.
    pub state: VolumeState,
    /// What is wrong, with its causes.
    pub status_message: String,
}

/// One line of a list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum ListedVolume {
    /// A volume.
    Whole(Box<VolumeDescription>),
    /// What is left of one.
    Damaged(DamagedVolume),
}

impl Pool {
    /// Everything known of one volume.
    pub fn describe_volume(&self, id: VolumeId) -> Result<VolumeDescription, ControlError> {
        let (directory, record) = self.load(id)?;
        self.describe_any(&directory, &record)
    }

    /// Everything known of one volume, whosever.
    pub(crate) fn describe_any(
        &self,
        directory: &VolumeDirectory,
        record: &VolumeRecord,
    ) -> Result<VolumeDescription, ControlError> {
        let in_use = !wait_until_free(directory.lock_path(), Duration::ZERO)?;
        // What a killed server left describes nothing: the lock is what counts.
        let attachment = if in_use { AttachmentRecord::read(directory)? } else { None };
        let (kms_key_id, wrapped_key) = match &record.encryption {
            Encryption::Plain {} => (None, None),
            Encryption::Aes256Xts(xts) => (Some(xts.kms_key_id.clone()), Some(xts.wrapped_key.clone())),
        };
        let recovery_keys = match &record.encryption {
            Encryption::Plain {} => Vec::new(),
            Encryption::Aes256Xts(xts) => xts.recovery_keys.clone(),
        };
        Ok(VolumeDescription {
            volume_id: record.volume_id,
            owner_id: self.owner_of(record).clone(),
            state: if in_use { VolumeState::InUse } else { VolumeState::Available },
            name: record.name.clone(),
            size: record.size_bytes.bytes().div_ceil(1 << 30),
            size_bytes: record.size_bytes,
            // A backing that is gone is found at attach, where it matters; here it is only not known.
            allocated_bytes: directory.allocated_bytes(&record.backing).ok().flatten(),
            encrypted: kms_key_id.is_some(),
            kms_key_id,
            key_material_id: wrapped_key.as_ref().and_then(|wrapped| wrapped_under(wrapped.as_bytes())),
            wrapped_key,
            recovery_keys,
            snapshot_id: record.snapshot_id,
            restoring: restore::describe(directory, record),
            create_time: record.create_time,
            discard: record.discard,
            backing: BackingPlace::of(directory, &record.backing)?,
            backing_is_own: matches!(record.backing, Backing::File {}),
            attachments: attachment
                .map(|record_of| describe_attachment(record.volume_id, record_of))
                .into_iter()
                .collect(),
        })
    }

    /// All volumes of the account, sorted by id. A damaged one does not hide the others.
    pub fn list_volumes(&self) -> Result<Vec<ListedVolume>, ControlError> {
        let mut listed = Vec::new();
        for id in self.volume_ids()? {
            match self.describe_volume(id) {
                Ok(volume) => listed.push(ListedVolume::Whole(Box::new(volume))),
                // Deleted between the listing and the look at it.
                Err(ControlError::VolumeNotFound { .. }) => {}
                Err(error) => listed.push(ListedVolume::Damaged(DamagedVolume {
                    volume_id: id,
                    state: VolumeState::Error,
                    status_message: error.with_causes(),
                })),
            }
        }
        Ok(listed)
    }
}

fn describe_attachment(volume_id: VolumeId, record: AttachmentRecord) -> AttachmentDescription {
    AttachmentDescription {
        volume_id,
        state: record.state,
        attach_time: record.attach_time,
        pid: record.pid,
        uris: record.uris,
        read_only: record.read_only,
        grant_id: record.grant.map(|grant| grant.grant_id),
    }
}
