//! Who depends on a key: every volume that has its data key under it, first or for recovery, attached or not. What is
//! disabled or destroyed with the key is known before.

use sealblk_kms::wrapped_under;
use sealblk_volume::{Encryption, KeyReference, SourceKey, VolumeId, WrappedDataKey};
use serde::Serialize;

use crate::describe::VolumeState;
use crate::error::ControlError;
use crate::pool::Pool;

/// How a volume depends on a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    /// It is the first key that an attach tries.
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
}

impl KeyUsers {
    /// Whether nothing depends on it, for certain.
    pub fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.unreadable_volumes.is_empty()
    }

    /// How many volumes depend on it, or may.
    pub fn count(&self) -> usize {
        self.volumes.len() + self.unreadable_volumes.len()
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
        let mut users = KeyUsers { kms_key_id, volumes: Vec::new(), unreadable_volumes: Vec::new() };
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
        let under = |wrappings: &[(&KeyReference, &WrappedDataKey)]| {
            wrappings.iter().position(|(reference, _)| reference.as_str() == key)
        };
        let (role, wrappings, place) = match (under(&own), under(&source)) {
            (Some(0), _) => (KeyRole::Primary, &own, 0),
            (Some(place), _) => (KeyRole::Recovery, &own, place),
            (None, Some(place)) => (KeyRole::Source, &source, place),
            (None, None) => return Ok(None),
        };
        let wrapped = wrappings.get(place).map(|(_, wrapped)| wrapped.as_bytes());
        Ok(Some(KeyUser {
            volume_id: id,
            state: self.describe_any(&directory, &record)?.state,
            role,
            has_other_keys: wrappings.iter().any(|(reference, _)| reference.as_str() != key),
            key_material_id: wrapped.and_then(wrapped_under),
        }))
    }
}
