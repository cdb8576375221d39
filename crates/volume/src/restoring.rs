//! The part of a volume's record that says where its missing blocks come from, for as long as some are missing
//! (docs/FORMAT.md, `Restoring`). Bringing them is `sealblk-control`'s part; which are missing is in the block map.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data_key_id::DataKeyId;
use crate::id::VolumeId;
use crate::record::RecoveryKey;
use crate::seal::KeyCheck;
use crate::wrapped::{KeyReference, WrappedDataKey};

/// Where a volume's missing blocks come from. While a record has it, the volume holds its snapshot.
#[derive(Clone, Default, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Restoring {
    /// The repository that the snapshot is in; absent: the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_repository: Option<SnapshotRepository>,
    /// How the snapshot's blocks are stored, if they are not stored as the volume's are; absent: they are taken as
    /// they are. Absent also once no block is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypt_anew: Option<SourceEncryption>,
}

/// A repository other than the pool's own. Credentials are never in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct SnapshotRepository {
    /// An absolute path, or `s3://BUCKET/PREFIX`.
    pub location: String,
    /// How the store is reached, by name: nothing secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// How the blocks of a snapshot are stored, of an encrypted volume whose own data key is another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "Cipher", deny_unknown_fields)]
pub enum SourceEncryption {
    /// As clients wrote them.
    #[serde(rename = "none")]
    Plain {},
    /// AES-256-XTS under the snapshot's data key.
    #[serde(rename = "aes-256-xts")]
    Aes256Xts(Box<SourceKey>),
}

/// The data key of a snapshot, as the snapshot has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct SourceKey {
    /// The KMS key that wraps the data key.
    pub kms_key_id: KeyReference,
    /// The data key, wrapped.
    pub wrapped_key: WrappedDataKey,
    /// The same data key under further keys; tried in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<RecoveryKey>,
    /// The value of `aws:ebs:id` in the encryption context of all these wrapped keys.
    pub encryption_context_id: String,
    /// Which volume's creation, or which copy's, generated the data key.
    pub lineage: VolumeId,
    /// What the data key derives to.
    pub key_check: KeyCheck,
}

impl SourceKey {
    /// Every key that the data key is wrapped under, with the wrapped key, in the order in which to try them.
    pub fn wrappings(&self) -> impl Iterator<Item = (&KeyReference, &WrappedDataKey)> {
        let recovery = self.recovery_keys.iter().map(|key| (&key.kms_key_id, &key.wrapped_key));
        std::iter::once((&self.kms_key_id, &self.wrapped_key)).chain(recovery)
    }

    /// What the data key is known by.
    pub fn data_key_id(&self) -> DataKeyId {
        DataKeyId::of_lineage(self.lineage)
    }
}
