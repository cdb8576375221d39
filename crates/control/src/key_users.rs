//! Who depends on a key: every volume that has its data key under it, first or for recovery, attached or not, and every
//! snapshot in the pool's repository. What is disabled or destroyed with the key is known before.

use std::time::Duration;

use sealblk_kms::wrapped_under;
use sealblk_snapshot::{SnapshotRecord, State};
use sealblk_volume::{Encryption, KeyReference, SnapshotId, SourceKey, VolumeId, WrappedDataKey};
use serde::Serialize;

use crate::describe::VolumeState;
use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;
use crate::snapshot::{SnapshotEncryption, SnapshotMetadata};

/// How long a store that does not answer is asked which snapshots it has.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a volume or a snapshot depends on a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    /// It is the first key that is tried.
    Primary,
    /// It is tried when those before it cannot be used.
    Recovery,
    /// Its snapshot's data key is under it, and until the volume is restored that is needed too.
    Source,
}

/// One volume that depends on a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyUser {
    /// The volume.
    pub volume_id: VolumeId,
    /// Whether it is attached.
    pub state: VolumeState,
    /// How it depends on the key.
    pub role: KeyRole,
    /// Whether it has other keys too.
    pub has_other_keys: bool,
    /// The material that wraps its data key, where a wrapped key tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_material_id: Option<String>,
}

/// One snapshot that depends on a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeySnapshot {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// Whether it is completed.
    pub state: State,
    /// How it depends on the key: first or for recovery.
    pub role: KeyRole,
    /// Whether it has other keys too.
    pub has_other_keys: bool,
    /// The material that wraps its data key, where a wrapped key tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_material_id: Option<String>,
}

/// Everything that depends on a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyUsers {
    /// The key's ARN or URI.
    pub kms_key_id: String,
    /// Volumes, sorted by id.
    pub volumes: Vec<KeyUser>,
    /// Volumes whose records cannot be read: nobody knows what they depend on.
    pub unreadable_volumes: Vec<VolumeId>,
    /// Snapshots of the pool's repository, whosever they are, sorted by id.
    pub snapshots: Vec<KeySnapshot>,
    /// Why it is not known which snapshots do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable_snapshots: Option<String>,
}

impl KeyUsers {
    /// Whether nothing depends on it, for certain.
    pub fn is_empty(&self) -> bool {
        self.users().next().is_none() && self.unreadable_snapshots.is_none()
    }

    /// The ids of all that depend on it, or may.
    pub fn users(&self) -> impl Iterator<Item = String> {
        let volumes = self.volumes.iter().map(|user| user.volume_id);
        let volumes = volumes.chain(self.unreadable_volumes.iter().copied()).map(|id| id.to_string());
        volumes.chain(self.snapshots.iter().map(|user| user.snapshot_id.to_string()))
    }
}

impl Pool {
    /// What depends on `key`, whosever it is: id, ARN, alias or URI. An ARN or URI is compared with the records as it is, so that it needs no
    /// key service and no key: what depends on a key that is gone is found too.
    pub fn key_users(&self, key: &str) -> Result<KeyUsers, ControlError> {
        let kms_key_id = match KeyReference::try_from(key.to_owned()) {
            Ok(reference) => reference.as_str().to_owned(),
            Err(_) => self.kms.describe_key(key)?.arn,
        };
        let (snapshots, unreadable_snapshots) = match self.key_snapshots(&kms_key_id) {
            Ok(snapshots) => (snapshots, None),
            Err(error) => (Vec::new(), Some(error.with_causes())),
        };
        let mut users = KeyUsers {
            kms_key_id,
            volumes: Vec::new(),
            unreadable_volumes: Vec::new(),
            snapshots,
            unreadable_snapshots,
        };
        for id in self.volume_ids()? {
            match self.key_user(id, &users.kms_key_id) {
                Ok(user) => users.volumes.extend(user),
                // Deleted since it was listed.
                Err(ControlError::VolumeNotFound { .. }) => {}
                Err(_) => users.unreadable_volumes.push(id),
            }
        }
        Ok(users)
    }

    fn key_user(&self, id: VolumeId, key: &str) -> Result<Option<KeyUser>, ControlError> {
        let (directory, record) = self.load_any(id)?;
        let Encryption::Aes256Xts(encryption) = &record.encryption else { return Ok(None) };
        let own: Vec<_> = encryption.wrappings().collect();
        let source: Vec<_> = record.source_key().into_iter().flat_map(SourceKey::wrappings).collect();
        let (role, wrapping) = match (Wrapping::under(key, &own), Wrapping::under(key, &source)) {
            (Some(wrapping), _) => (wrapping.role, wrapping),
            (None, Some(wrapping)) => (KeyRole::Source, wrapping),
            (None, None) => return Ok(None),
        };
        Ok(Some(KeyUser {
            volume_id: id,
            state: self.describe_any(&directory, &record)?.state,
            role,
            has_other_keys: wrapping.has_others,
            key_material_id: wrapping.material,
        }))
    }

    /// The snapshots, of all accounts, whose data key is under `key`.
    fn key_snapshots(&self, key: &str) -> Result<Vec<KeySnapshot>, ControlError> {
        let place = self.repository.clone().within(PATIENCE);
        let records: Vec<SnapshotRecord> = offline::run(async {
            Ok::<_, ControlError>(match place.open_to_look().await? {
                None => Vec::new(),
                Some(repository) => repository.snapshots().await?,
            })
        })??;
        let mut users = Vec::new();
        // Of one that has failed or is being deleted nothing will be made any more.
        for record in records.iter().filter(|one| matches!(one.state, State::Pending | State::Completed)) {
            let metadata: SnapshotMetadata = record.metadata()?;
            let SnapshotEncryption::Aes256Xts(encryption) = &metadata.encryption else { continue };
            let wrappings: Vec<_> = encryption.wrappings().collect();
            let Some(wrapping) = Wrapping::under(key, &wrappings) else { continue };
            users.push(KeySnapshot {
                snapshot_id: record.snapshot_id,
                state: record.state,
                role: wrapping.role,
                has_other_keys: wrapping.has_others,
                key_material_id: wrapping.material,
            });
        }
        Ok(users)
    }
}

/// What a data key is to a key.
struct Wrapping {
    role: KeyRole,
    has_others: bool,
    material: Option<String>,
}

impl Wrapping {
    /// `None`: none of `wrappings` is under `key`.
    fn under(key: &str, wrappings: &[(&KeyReference, &WrappedDataKey)]) -> Option<Self> {
        let place = wrappings.iter().position(|(reference, _)| reference.as_str() == key)?;
        let (_, wrapped) = wrappings.get(place)?;
        Some(Self {
            role: if place == 0 { KeyRole::Primary } else { KeyRole::Recovery },
            has_others: wrappings.iter().any(|(reference, _)| reference.as_str() != key),
            material: wrapped_under(wrapped.as_bytes()),
        })
    }
}
