//! Rewrap: a volume's data key under another key, or under newer material of the same one (an extension: EBS cannot).
//! The data key stays, so no data is touched and the volume may be attached meanwhile; its plaintext is only ever in
//! the key service, or in the helper process between two of them.

use sealblk_kms::{EncryptionContext, KmsError, ReEncryptRequest, WrappedKey};
use sealblk_volume::{
    Encryption, KeyReference, Restoring, SourceEncryption, VolumeId, VolumeRecord, WrappedDataKey,
    XtsEncryption,
};

use crate::create::{storable, usable_key};
use crate::describe::VolumeDescription;
use crate::error::ControlError;
use crate::pool::{Pool, change_record};

/// What one of many rewraps came to.
#[derive(Debug)]
pub struct RewrapOutcome {
    /// The volume.
    pub volume: VolumeId,
    /// What it is now, or why it is as it was.
    pub outcome: Result<VolumeDescription, ControlError>,
}

impl Pool {
    /// Wraps the volume's data key anew: under `key` (id, ARN or alias) instead of its first key, or without `key` under
    /// the keys that it has, recovery keys too, with their present material; while it is restored under another key than its
    /// snapshot's, the snapshot's data key likewise.
    ///
    /// With `key`, the first of the volume's keys that can be used opens the data key, so that a recovery key moves a
    /// volume away from a lost one; recovery keys stay as they are. The record is replaced whole: killed at any moment,
    /// the volume has the old wrapping or the new one. On an error it has the old one.
    pub fn rewrap_volume(&self, id: VolumeId, key: Option<&str>) -> Result<VolumeDescription, ControlError> {
        let (directory, _) = self.load(id)?;
        // Looked up before the record is locked, and before anything is made.
        let target = key.map(|key| usable_key(self.kms.describe_key(key)?)).transpose()?;
        change_record(&directory, |record| {
            if record.volume_id != id {
                return Err(ControlError::Misplaced { id, found: record.volume_id });
            }
            let Encryption::Aes256Xts(encryption) = &record.encryption else {
                return Err(ControlError::NotEncrypted { id });
            };
            let (encryption, restoring) = match &target {
                Some(target) => (self.moved(id, encryption, target)?, record.restoring),
                None => (self.renewed(id, encryption)?, self.source_renewed(record.restoring)?),
            };
            Ok(VolumeRecord { encryption: Encryption::Aes256Xts(encryption), restoring, ..record })
        })?;
        self.describe_volume(id)
    }

    /// Rewraps every encrypted volume; one that fails does not keep the others from it. Told of each as it is done.
    pub fn rewrap_all(
        &self,
        key: Option<&str>,
        done: &mut dyn FnMut(RewrapOutcome),
    ) -> Result<(), ControlError> {
        for volume in self.volume_ids()? {
            match self.rewrap_volume(volume, key) {
                // Unencrypted, or deleted meanwhile: nothing to do.
                Err(ControlError::NotEncrypted { .. } | ControlError::VolumeNotFound { .. }) => {}
                outcome => done(RewrapOutcome { volume, outcome }),
            }
        }
        Ok(())
    }

    /// Under `target` first. The error is the first key's: it is the one that people know.
    fn moved(
        &self,
        id: VolumeId,
        encryption: &XtsEncryption,
        target: &KeyReference,
    ) -> Result<XtsEncryption, ControlError> {
        let mut first_error = None;
        for (key, wrapped) in encryption.wrappings() {
            match self.re_encrypt(&id.to_string(), key, wrapped, target) {
                Ok(wrapped) => {
                    let mut moved = encryption.clone();
                    moved.kms_key_id = target.clone();
                    moved.wrapped_key = storable(wrapped)?;
                    return Ok(moved);
                }
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        Err(first_error.expect("an encrypted volume has one key at least").into())
    }

    /// Under the same keys.
    fn renewed(&self, id: VolumeId, encryption: &XtsEncryption) -> Result<XtsEncryption, ControlError> {
        let renew = |key: &KeyReference, wrapped: &WrappedDataKey| {
            storable(self.re_encrypt(&id.to_string(), key, wrapped, key)?)
        };
        let mut renewed = encryption.clone();
        renewed.wrapped_key = renew(&encryption.kms_key_id, &encryption.wrapped_key)?;
        for recovery in &mut renewed.recovery_keys {
            recovery.wrapped_key = renew(&recovery.kms_key_id, &recovery.wrapped_key)?;
        }
        Ok(renewed)
    }

    /// The snapshot's data key of a volume that is being restored, under the same keys with their present material.
    fn source_renewed(
        &self,
        mut restoring: Option<Box<Restoring>>,
    ) -> Result<Option<Box<Restoring>>, ControlError> {
        let anew = restoring.as_mut().and_then(|restoring| restoring.encrypt_anew.as_mut());
        if let Some(SourceEncryption::Aes256Xts(source)) = anew {
            let context_id = source.encryption_context_id.clone();
            let renew = |key: &KeyReference, wrapped: &WrappedDataKey| {
                storable(self.re_encrypt(&context_id, key, wrapped, key)?)
            };
            source.wrapped_key = renew(&source.kms_key_id, &source.wrapped_key)?;
            for recovery in &mut source.recovery_keys {
                recovery.wrapped_key = renew(&recovery.kms_key_id, &recovery.wrapped_key)?;
            }
        }
        Ok(restoring)
    }

    /// For the same context, which is that of the volume or snapshot `context_id`.
    fn re_encrypt(
        &self,
        context_id: &str,
        from: &KeyReference,
        wrapped: &WrappedDataKey,
        to: &KeyReference,
    ) -> Result<WrappedKey, KmsError> {
        let context = EncryptionContext::for_resource(context_id);
        self.kms.re_encrypt(&ReEncryptRequest {
            wrapped: &WrappedKey(wrapped.as_bytes().to_vec()),
            from_key: from.as_str(),
            from_context: &context,
            to_key: to.as_str(),
            to_context: &context,
        })
    }
}
