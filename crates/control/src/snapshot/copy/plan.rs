//! What a copy will be: of what, under which key, building on what. Decided once, and read back from the pending record
//! when the copy is taken up again.

use std::sync::Arc;

use sealblk_kms::{EncryptionContext, ReEncryptRequest, WrappedKey};
use sealblk_snapshot::{EarlierCopy, Repository, SnapshotError, SnapshotRecord, State};
use sealblk_volume::{KeyCheck, KeyReference, SnapshotId, VolumeId};

use super::unlock::{described_key, unlock};
use super::{CopyError, CopySnapshot, Sites, earlier_source};
use crate::create::storable;
use crate::error::ControlError;
use crate::outcome::{EncryptionRequest, Outcome, Source, copy_outcome};
use crate::snapshot::metadata::{CopiedFrom, SnapshotEncryption, SnapshotMetadata, XtsSnapshot};
use crate::snapshot::reencrypt::Reencryption;

/// A copy that can be begun, or gone on with.
pub(super) struct Plan {
    pub(super) source: SnapshotId,
    pub(super) id: SnapshotId,
    pub(super) volume_size_bytes: u64,
    pub(super) metadata: SnapshotMetadata,
    pub(super) earlier: Option<EarlierCopy>,
    /// What is done to blocks; `None`: both are unencrypted.
    pub(super) work: Option<Arc<Reencryption>>,
}

/// A snapshot to copy, as it was found.
pub(super) struct Original {
    pub(super) record: SnapshotRecord,
    pub(super) metadata: SnapshotMetadata,
}

/// An earlier copy that a new one can build on, and its data key.
pub(super) struct Earlier {
    pub(super) copies: EarlierCopy,
    key: Option<XtsSnapshot>,
}

impl Sites<'_> {
    /// Decides, and has all keys made and unwrapped; nothing is stored yet.
    pub(super) async fn plan(&self, request: &CopySnapshot) -> Result<Plan, ControlError> {
        let source = self.original(request.source).await?;
        self.release_what_is_over(request.source).await?;
        let key = self.key_of_outcome(request, &source)?;
        let id = SnapshotId::generate().map_err(|error| ControlError::Random(error.into()))?;
        let earlier = self.earlier(&source, key.as_ref()).await?;
        let (encryption, work) = match key {
            None => (SnapshotEncryption::Plain {}, None),
            Some(key) => {
                let shared = earlier.as_ref().and_then(|earlier| earlier.key.as_ref());
                let mut xts = self.data_key(id, key, shared)?;
                let work = self.reencryption(&source, &mut xts, id)?;
                (SnapshotEncryption::Aes256Xts(Box::new(xts)), Some(work))
            }
        };
        let metadata = SnapshotMetadata {
            owner_id: self.into.account().clone(),
            volume_id: source.metadata.volume_id,
            description: request.description.clone(),
            encryption,
            copied_from: Some(CopiedFrom {
                source_region: self.from.pool_directory().record().region.clone(),
                snapshot_id: request.source,
                repository: self.elsewhere.clone(),
            }),
            shared_with: Vec::new(),
            public: false,
        };
        let volume_size_bytes = source.record.volume_size_bytes;
        let earlier = earlier.map(|earlier| earlier.copies);
        Ok(Plan { source: request.source, id, volume_size_bytes, metadata, earlier, work })
    }

    /// The plan of a copy that was begun, and is pending.
    pub(super) async fn plan_again(&self, record: SnapshotRecord) -> Result<Plan, ControlError> {
        let id = record.snapshot_id;
        let mut metadata: SnapshotMetadata = record.metadata()?;
        self.into.require_owned(id, &metadata)?;
        if record.state != State::Pending {
            return Err(SnapshotError::WrongState { id, state: record.state }.into());
        }
        let source = metadata.copied_from.as_ref().ok_or(CopyError::NotACopy { id })?.snapshot_id;
        let earlier = earlier_source(&self.destination, &record).await.zip(record.parent);
        let earlier = earlier.map(|(source, parent)| EarlierCopy { source, copy: parent.snapshot_id });
        let work = match &mut metadata.encryption {
            SnapshotEncryption::Plain {} => None,
            SnapshotEncryption::Aes256Xts(xts) => {
                // In whatever state: the copy holds it.
                let found = self.origin.record(source).await?;
                let original = Original { metadata: found.metadata()?, record: found };
                Some(self.reencryption(&original, xts, id)?)
            }
        };
        Ok(Plan { source, id, volume_size_bytes: record.volume_size_bytes, metadata, earlier, work })
    }

    /// The source, which must be whole, and one that this account may copy.
    pub(super) async fn original(&self, id: SnapshotId) -> Result<Original, ControlError> {
        let record = self.origin.record(id).await?;
        let metadata: SnapshotMetadata = record.metadata()?;
        self.from.require_visible(id, &metadata)?;
        match record.state {
            State::Completed => Ok(Original { record, metadata }),
            state => Err(SnapshotError::WrongState { id, state }.into()),
        }
    }

    /// The key that the outcome rule says, looked up and found usable; `None`: the copy will be unencrypted.
    pub(super) fn key_of_outcome(
        &self,
        request: &CopySnapshot,
        source: &Original,
    ) -> Result<Option<KeyReference>, ControlError> {
        let asked =
            EncryptionRequest { encrypted: request.encrypted, kms_key_id: request.kms_key_id.as_deref() };
        let settings = self.into.pool_directory().settings()?;
        let source = Source::Snapshot {
            key: source.metadata.kms_key_id().map(KeyReference::as_str),
            shared: !self.into.owns(&source.metadata),
        };
        match copy_outcome(asked, settings.defaults(), source)? {
            Outcome::Unencrypted => Ok(None),
            Outcome::Encrypted { key } => described_key(self.into, key).map(Some),
        }
    }

    /// Releases the source from copies of it that are complete: whoever made them was killed before it did.
    async fn release_what_is_over(&self, source: SnapshotId) -> Result<(), ControlError> {
        for holder in self.origin.holders(source).await? {
            let Ok(copy) = holder.parse::<SnapshotId>() else { continue };
            let found = self.destination.record(copy).await;
            if found.is_ok_and(|record| record.state == State::Completed) {
                self.origin.release(source, &holder).await?;
            }
        }
        Ok(())
    }

    /// The latest copy of the same lineage under the same key whose own source is still there.
    pub(super) async fn earlier(
        &self,
        source: &Original,
        key: Option<&KeyReference>,
    ) -> Result<Option<Earlier>, ControlError> {
        if key.is_none() && self.elsewhere.is_none() {
            return Ok(None);
        }
        let mut records = match self.destination.snapshots().await {
            Ok(records) => records,
            // Somebody else's damage is no reason not to copy: a complete copy is always right.
            Err(SnapshotError::Record(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.start_time));
        for record in records.into_iter().filter(|record| record.state == State::Completed) {
            let Ok(metadata) = record.metadata::<SnapshotMetadata>() else { continue };
            let Some(from) = &metadata.copied_from else { continue };
            let alike = self.into.owns(&metadata)
                && metadata.kms_key_id() == key
                && from.repository == self.elsewhere
                && record.volume_size_bytes <= source.record.volume_size_bytes;
            if !alike || !has_lineage_of(&self.origin, from.snapshot_id, source).await {
                continue;
            }
            let copies = EarlierCopy { source: from.snapshot_id, copy: record.snapshot_id };
            let key = match metadata.encryption {
                SnapshotEncryption::Plain {} => None,
                SnapshotEncryption::Aes256Xts(xts) => Some(*xts),
            };
            return Ok(Some(Earlier { copies, key }));
        }
        Ok(None)
    }

    /// A copy's data key, wrapped under `key`: a new one, or that of the earlier copy it builds on.
    fn data_key(
        &self,
        id: SnapshotId,
        key: KeyReference,
        earlier: Option<&XtsSnapshot>,
    ) -> Result<XtsSnapshot, ControlError> {
        let context = EncryptionContext::for_resource(&id.to_string());
        let kms = &self.into.kms;
        let (wrapped, lineage, key_check) = match earlier {
            None => {
                let lineage = VolumeId::generate().map_err(|error| ControlError::Random(error.into()))?;
                (kms.generate_data_key_without_plaintext(key.as_str(), &context)?, lineage, None)
            }
            Some(earlier) => {
                let wrapped = kms.re_encrypt(&ReEncryptRequest {
                    wrapped: &WrappedKey(earlier.wrapped_key.as_bytes().to_vec()),
                    from_key: earlier.kms_key_id.as_str(),
                    from_context: &EncryptionContext::for_resource(&earlier.encryption_context_id),
                    to_key: key.as_str(),
                    to_context: &context,
                })?;
                (wrapped, earlier.lineage, earlier.key_check.clone())
            }
        };
        Ok(XtsSnapshot {
            kms_key_id: key,
            wrapped_key: storable(wrapped)?,
            recovery_keys: Vec::new(),
            encryption_context_id: id.to_string(),
            lineage,
            key_check,
        })
    }

    /// Has both data keys unwrapped, and checked or noted.
    fn reencryption(
        &self,
        source: &Original,
        copy: &mut XtsSnapshot,
        id: SnapshotId,
    ) -> Result<Arc<Reencryption>, ControlError> {
        let from = match &source.metadata.encryption {
            SnapshotEncryption::Plain {} => None,
            SnapshotEncryption::Aes256Xts(xts) => {
                Some(unlock(self.from, xts, source.record.snapshot_id, id)?)
            }
        };
        let to = unlock(self.into, copy, id, id)?;
        if copy.key_check.is_none() {
            copy.key_check = Some(Box::new(KeyCheck::of(&to)?));
        }
        Ok(Arc::new(Reencryption::new(from.as_ref(), &to).map_err(CopyError::from)?))
    }
}

/// Whether the snapshot `id` is whole, and what its blocks mean is what those of `source` mean.
async fn has_lineage_of(origin: &Repository, id: SnapshotId, source: &Original) -> bool {
    let Ok(record) = origin.record(id).await else { return false };
    let Ok(metadata) = record.metadata::<SnapshotMetadata>() else { return false };
    let same = match (&metadata.encryption, &source.metadata.encryption) {
        (SnapshotEncryption::Plain {}, SnapshotEncryption::Plain {}) => {
            metadata.volume_id == source.metadata.volume_id
        }
        (SnapshotEncryption::Aes256Xts(one), SnapshotEncryption::Aes256Xts(other)) => {
            let known = one.key_check.as_ref().zip(other.key_check.as_ref());
            one.lineage == other.lineage && known.is_none_or(|(one, other)| one == other)
        }
        _ => false,
    };
    same && record.state == State::Completed && record.volume_size_bytes <= source.record.volume_size_bytes
}
