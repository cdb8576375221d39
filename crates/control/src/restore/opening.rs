//! What an open volume needs to be restored while it is used: from its record, and from the key service if its
//! snapshot's blocks are under another data key.

use std::sync::Arc;

use sealblk_keymem::DataKey;
use sealblk_kms::{DecryptRequest, EncryptionContext, Kms, KmsError, WrappedKey};
use sealblk_volume::{
    KeyReference, SectorCipher, SourceEncryption, SourceKey, VolumeDirectory, VolumeId, VolumeRecord,
    WrappedDataKey,
};

use super::error::RestoreError;
use super::fetch::{Anew, FetchPlan, SourceCipher};
use super::held::SnapshotHold;
use super::helper::{HelperSlot, Task};
use crate::attachment::{Announcement, GrantRecord};
use crate::error::ControlError;
use crate::grant::{create_grant_for, grantee};
use crate::open::OpenVolume;
use crate::pool::Pool;

/// The restoration of an open volume: what its blocks come from, and what is left to be done when all are here.
pub(crate) struct Restoration {
    pub(crate) directory: VolumeDirectory,
    /// For the process that releases the snapshot.
    pub(crate) task: Task,
    pub(crate) program: super::RestoreProgram,
    pub(crate) slot: HelperSlot,
    /// The snapshot's key, where it is another than the volume's.
    pub(crate) source: Option<SourceCipher>,
    pub(crate) grant: SourceGrant,
}

/// The grant that the snapshot's key was unwrapped under, if there is one. Retired when dropped.
pub(crate) struct SourceGrant {
    kms: Arc<dyn Kms + Send + Sync>,
    record: Option<GrantRecord>,
}

impl SourceGrant {
    /// Ends it; again after an error.
    pub(crate) fn retire(&mut self) -> Result<(), ControlError> {
        if let Some(grant) = &self.record {
            crate::hold::retire(&*self.kms, grant)?;
            self.record = None;
        }
        Ok(())
    }
}

impl Drop for SourceGrant {
    fn drop(&mut self) {
        // There is an error to tell already; the next attachment is given the same grant and retires it.
        let _ = self.retire();
    }
}

impl Pool {
    /// Prepares the restoration of `volume`, which was opened by `record`; `None`: it is whole, and its record says so. If
    /// blocks are to be decrypted, the snapshot's key is unwrapped, under a grant that is noted in `announcement`.
    pub(crate) fn prepare_restoration(
        &self,
        directory: &VolumeDirectory,
        record: &VolumeRecord,
        volume: &OpenVolume<'_>,
        announcement: &mut Announcement,
    ) -> Result<Option<(Restoration, FetchPlan)>, ControlError> {
        let id = record.volume_id;
        let missing = volume
            .stored()
            .restore_progress()
            .is_some_and(|progress| progress.restored_blocks < progress.total_blocks);
        let (Some(restoring), Some(hold)) = (&record.restoring, SnapshotHold::of(self, record)?) else {
            let reason = "blocks are missing, and its record does not say where they are";
            return if missing { Err(RestoreError::Record { id, reason }.into()) } else { Ok(None) };
        };
        let mut grant = SourceGrant { kms: Arc::clone(&self.kms), record: None };
        let mut source = None;
        let anew = match (&restoring.encrypt_anew, volume) {
            (None, _) => None,
            (Some(_), OpenVolume::Plain(_)) => {
                let reason = "its record says to encrypt what an unencrypted volume stores";
                return Err(RestoreError::Record { id, reason }.into());
            }
            (Some(SourceEncryption::Plain {}), OpenVolume::Encrypted(_, _, key)) => {
                Some(Anew { from: None, to: key.loan() })
            }
            // Whole already: only what is left to be said and released is missing.
            (Some(SourceEncryption::Aes256Xts(_)), _) if !missing => None,
            (Some(SourceEncryption::Aes256Xts(wrapped)), OpenVolume::Encrypted(_, _, key)) => {
                let cipher = SourceCipher::new(self.unlock_source(id, wrapped, &mut grant, announcement)?);
                source = Some(cipher.clone());
                Some(Anew { from: Some(cipher), to: key.loan() })
            }
        };
        let program = self.restore_program.clone().ok_or_else(|| {
            let source = std::io::Error::other("there is no program for it");
            ControlError::Start { what: "the restore helper", source }
        })?;
        let task = hold.task();
        let slot = HelperSlot::default();
        let plan = FetchPlan { program: program.clone(), task: task.clone(), slot: slot.clone(), anew };
        let directory = directory.clone();
        Ok(Some((Restoration { directory, task, program, slot, source, grant }, plan)))
    }

    /// Has the snapshot's data key unwrapped by the first of its keys that can be used. If none can, the error is the first
    /// key's.
    fn unlock_source(
        &self,
        id: VolumeId,
        source: &SourceKey,
        grant: &mut SourceGrant,
        announcement: &mut Announcement,
    ) -> Result<SectorCipher, ControlError> {
        let mut first_error = None;
        for (key, wrapped) in source.wrappings() {
            let context_id = &source.encryption_context_id;
            let made = create_grant_for(&*self.kms, id, key.as_str(), context_id);
            let unwrapped = match made {
                Ok(made) => {
                    grant.record = made;
                    announcement.update(|holder| holder.restore_grant.clone_from(&grant.record))?;
                    self.decrypt_source(id, key, wrapped, context_id, grant)
                }
                Err(error) => Err(error),
            };
            match unwrapped {
                Ok(data_key) => {
                    let failed = |error: sealblk_volume::OpenError| ControlError::Open { id, source: error };
                    source.key_check.verify(&data_key).map_err(|error| failed(error.into()))?;
                    return SectorCipher::new(&data_key).map_err(|error| failed(error.into()));
                }
                Err(error) => {
                    // One that stays is given again to the next attachment.
                    let _ = grant.retire();
                    let (key, source) = (key.to_string(), Box::new(error));
                    first_error.get_or_insert(RestoreError::SourceKey { id, key, source });
                }
            }
        }
        Err(first_error.expect("an encrypted snapshot has one key at least").into())
    }

    fn decrypt_source(
        &self,
        id: VolumeId,
        key: &KeyReference,
        wrapped: &WrappedDataKey,
        context_id: &str,
        grant: &SourceGrant,
    ) -> Result<DataKey, KmsError> {
        let wrapped = WrappedKey(wrapped.as_bytes().to_vec());
        let context = EncryptionContext::for_resource(context_id);
        let grantee = grantee(id);
        let grant = grant.record.as_ref().map(|grant| (&grant.grant_id, &grantee));
        self.kms.decrypt(&DecryptRequest { wrapped: &wrapped, key: key.as_str(), context: &context, grant })
    }
}
