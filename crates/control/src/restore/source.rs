//! The snapshot that a volume is to be made from: looked up, and found fit for it.

use sealblk_kms::{DecryptRequest, EncryptionContext, ReEncryptRequest, WrappedKey};
use sealblk_snapshot::{SnapshotError, SnapshotRecord, State};
use sealblk_volume::{
    Encryption, KeyReference, RecoveryKey, Restoring, SnapshotId, SourceEncryption, SourceKey, VolumeId,
    VolumeSize, WrappedDataKey, XtsEncryption,
};

use super::error::RestoreError;
use crate::create::storable;
use crate::error::ControlError;
use crate::offline;
use crate::outcome::Source;
use crate::pool::Pool;
use crate::snapshot::{SnapshotEncryption, SnapshotMetadata, XtsSnapshot};

/// A completed snapshot that the caller may make volumes of.
pub(crate) struct SnapshotSource {
    record: SnapshotRecord,
    metadata: SnapshotMetadata,
    shared: bool,
}

impl SnapshotSource {
    /// Looks it up, in the pool's repository.
    pub(crate) fn find(pool: &Pool, id: SnapshotId) -> Result<Self, ControlError> {
        let read = async { Ok::<_, ControlError>(pool.repository.open().await?.record(id).await?) };
        let record = offline::run(read)??;
        let metadata: SnapshotMetadata = record.metadata()?;
        pool.require_visible(id, &metadata)?;
        if record.state != State::Completed {
            return Err(SnapshotError::WrongState { id, state: record.state }.into());
        }
        let shared = !pool.owns(&metadata);
        Ok(Self { record, metadata, shared })
    }

    pub(crate) fn id(&self) -> SnapshotId {
        self.record.snapshot_id
    }

    /// As the rule of outcomes sees it.
    pub(crate) fn as_source(&self) -> Source<'_> {
        Source::Snapshot { key: self.metadata.kms_key_id().map(KeyReference::as_str), shared: self.shared }
    }

    /// The size of a volume made of it, of which `asked` bytes are asked for.
    pub(crate) fn size(&self, asked: Option<u64>) -> Result<VolumeSize, ControlError> {
        let snapshot_bytes = self.record.volume_size_bytes;
        let size = VolumeSize::from_bytes(asked.unwrap_or(snapshot_bytes))?;
        if size.bytes() < snapshot_bytes {
            let asked_bytes = size.bytes();
            return Err(RestoreError::TooSmall { snapshot: self.id(), snapshot_bytes, asked_bytes }.into());
        }
        Ok(size)
    }

    /// How its blocks are encrypted, if that is under `key`: then a volume under `key` takes them as they are.
    pub(crate) fn under(&self, key: &KeyReference) -> Option<&XtsSnapshot> {
        self.xts().filter(|xts| xts.kms_key_id == *key)
    }

    fn xts(&self) -> Option<&XtsSnapshot> {
        match &self.metadata.encryption {
            SnapshotEncryption::Plain {} => None,
            SnapshotEncryption::Aes256Xts(xts) => Some(xts),
        }
    }

    /// What the record of a volume with `encryption` says of its restoration.
    pub(crate) fn restoring(&self, pool: &Pool, encryption: &Encryption) -> Result<Restoring, ControlError> {
        let unfit = |reason| Err(RestoreError::Unfit { snapshot: self.id(), reason }.into());
        let encrypt_anew = match (encryption, self.xts()) {
            (Encryption::Plain {}, None) => None,
            (Encryption::Plain {}, Some(_)) => return unfit("an encrypted snapshot gives encrypted volumes"),
            (Encryption::Aes256Xts(_), None) => Some(SourceEncryption::Plain {}),
            (Encryption::Aes256Xts(volume), Some(xts)) if volume.lineage == xts.lineage => None,
            // A snapshot that holds nothing: no block will be decrypted.
            (Encryption::Aes256Xts(_), Some(_)) if self.record.root.is_none() => None,
            (Encryption::Aes256Xts(_), Some(xts)) => Some(SourceEncryption::Aes256Xts(Box::new(SourceKey {
                kms_key_id: xts.kms_key_id.clone(),
                wrapped_key: xts.wrapped_key.clone(),
                recovery_keys: xts.recovery_keys.clone(),
                encryption_context_id: xts.encryption_context_id.clone(),
                lineage: xts.lineage,
                key_check: match &xts.key_check {
                    Some(key_check) => (**key_check).clone(),
                    None => return unfit("it holds data, but not what its data key derives to"),
                },
            }))),
        };
        Ok(Restoring { snapshot_repository: pool.repository.name().map(Into::into), encrypt_anew })
    }

    /// The snapshot's data key for the volume `id`: wrapped anew by the key service, under the same keys, for the
    /// volume's context. `others`: further keys to wrap it under.
    pub(crate) fn take_over_key(
        &self,
        pool: &Pool,
        id: VolumeId,
        xts: &XtsSnapshot,
        others: Vec<KeyReference>,
    ) -> Result<XtsEncryption, ControlError> {
        if xts.key_check.is_none() && self.record.root.is_some() {
            let reason = "it holds data, but not what its data key derives to";
            return Err(RestoreError::Unfit { snapshot: self.id(), reason }.into());
        }
        let from_context = EncryptionContext::for_resource(&xts.encryption_context_id);
        let to_context = EncryptionContext::for_resource(&id.to_string());
        let re_encrypt = |from: &KeyReference, wrapped: &WrappedDataKey, to: &KeyReference| {
            storable(pool.kms.re_encrypt(&ReEncryptRequest {
                wrapped: &WrappedKey(wrapped.as_bytes().to_vec()),
                from_key: from.as_str(),
                from_context: &from_context,
                to_key: to.as_str(),
                to_context: &to_context,
            })?)
        };
        let first = &xts.kms_key_id;
        let wrapped_key = re_encrypt(first, &xts.wrapped_key, first)?;
        let mut recovery = Vec::new();
        for key in &xts.recovery_keys {
            let wrapped_key = re_encrypt(&key.kms_key_id, &key.wrapped_key, &key.kms_key_id)?;
            recovery.push(RecoveryKey { kms_key_id: key.kms_key_id.clone(), wrapped_key });
        }
        for key in others {
            if key != *first && recovery.iter().all(|known| known.kms_key_id != key) {
                let wrapped_key = re_encrypt(first, &xts.wrapped_key, &key)?;
                recovery.push(RecoveryKey { kms_key_id: key, wrapped_key });
            }
        }
        let encryption =
            XtsEncryption::new(first.clone(), wrapped_key, xts.lineage).with_recovery_keys(recovery);
        Ok(match &xts.key_check {
            Some(key_check) => encryption.expecting((**key_check).clone()),
            None => encryption,
        })
    }

    /// Whether the snapshot's own data key can be unwrapped now, by one of its keys, for who asks: a volume under another key is
    /// filled with it. Asked of a snapshot without any block too: no encrypted snapshot is used without the right to its
    /// key. Nobody sees the key.
    pub(crate) fn check_key(&self, pool: &Pool, id: VolumeId) -> Result<(), ControlError> {
        let Some(xts) = self.xts() else { return Ok(()) };
        let context = EncryptionContext::for_resource(&xts.encryption_context_id);
        let mut first_error = None;
        for (key, wrapped) in xts.wrappings() {
            let wrapped = WrappedKey(wrapped.as_bytes().to_vec());
            let request =
                DecryptRequest { wrapped: &wrapped, key: key.as_str(), context: &context, grant: None };
            match pool.kms.check_decrypt(&request) {
                Ok(()) => return Ok(()),
                Err(source) => {
                    let (key, source) = (key.to_string(), Box::new(source));
                    first_error.get_or_insert(RestoreError::SourceKey { id, key, source });
                }
            }
        }
        Err(first_error.expect("an encrypted snapshot has one key at least").into())
    }
}
