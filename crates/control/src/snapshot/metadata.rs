//! What is known of a snapshot beside its blocks (docs/FORMAT.md, "Snapshots"): the `Metadata` of its record.

use sealblk_volume::{
    AccountId, DataKeyId, KeyCheck, KeyReference, RecoveryKey, SnapshotId, VolumeId, WrappedDataKey,
};
use serde::{Deserialize, Serialize};

use super::place::RepositoryName;

/// What a snapshot is of, whose it is, and how its blocks are encrypted. A field that this version does not know
/// makes the snapshot unreadable: it may change what the bytes mean.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct SnapshotMetadata {
    /// The account that it belongs to.
    pub owner_id: AccountId,
    /// The volume that it was made of; of a copy, that of its source.
    pub volume_id: VolumeId,
    /// What its maker wrote about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// How its blocks are stored.
    pub encryption: SnapshotEncryption,
    /// Of a copy: what it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<CopiedFrom>,
    /// Accounts that may make volumes and copies of it (EC2: `createVolumePermission`), sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<AccountId>,
    /// Whether every account may. Never of an encrypted one (r50).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
}

/// How a snapshot's blocks are stored: as those of its volume were. There is no third state, and no default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "Cipher", deny_unknown_fields)]
pub enum SnapshotEncryption {
    /// As clients wrote them.
    #[serde(rename = "none")]
    Plain {},
    /// AES-256-XTS over 512-byte sectors, the tweak counting from the volume's first.
    #[serde(rename = "aes-256-xts")]
    Aes256Xts(Box<XtsSnapshot>),
}

/// How an encrypted snapshot's blocks are stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct XtsSnapshot {
    /// The KMS key that wraps the data key.
    pub kms_key_id: KeyReference,
    /// The data key, wrapped.
    pub wrapped_key: WrappedDataKey,
    /// The same data key under further keys; tried in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<RecoveryKey>,
    /// The value of `aws:ebs:id` in the encryption context of all these wrapped keys. Making a snapshot calls no KMS
    /// (ebs.md A.6), so it is the volume's id; of a copy with a data key of its own, the copy's.
    pub encryption_context_id: String,
    /// Which volume's creation, or which copy's, generated the data key.
    pub lineage: VolumeId,
    /// What the data key derives to; unknown of a volume that was never attached, which holds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<Box<KeyCheck>>,
}

impl XtsSnapshot {
    /// The data key under each of its keys, in the order in which they are tried.
    pub fn wrappings(&self) -> impl Iterator<Item = (&KeyReference, &WrappedDataKey)> {
        let recovery = self.recovery_keys.iter().map(|key| (&key.kms_key_id, &key.wrapped_key));
        std::iter::once((&self.kms_key_id, &self.wrapped_key)).chain(recovery)
    }

    /// What the data key is known by: equal for volumes and snapshots that share it (EC2: `DataEncryptionKeyId`).
    pub fn data_key_id(&self) -> DataKeyId {
        DataKeyId::of_lineage(self.lineage)
    }
}

/// What a copy was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CopiedFrom {
    /// The region that the source's pool plays.
    pub source_region: String,
    /// The source.
    pub snapshot_id: SnapshotId,
    /// The repository that the source is in; `None`: the copy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryName>,
}

impl SnapshotMetadata {
    /// The key that it is encrypted under, if it is.
    pub fn kms_key_id(&self) -> Option<&KeyReference> {
        match &self.encryption {
            SnapshotEncryption::Plain {} => None,
            SnapshotEncryption::Aes256Xts(xts) => Some(&xts.kms_key_id),
        }
    }

    /// Whether `account` may make volumes and copies of it: its owner, and those that it is shared with.
    pub fn is_usable_by(&self, account: &AccountId) -> bool {
        self.public || self.owner_id == *account || self.shared_with.contains(account)
    }
}
