//! The volume's record, `volume.json` (docs/FORMAT.md): what a volume is, and how its bytes are read.
//! Storing it is `sealblk-record`'s part; opening what it describes is `open.rs`'s.

use std::path::PathBuf;

use jiff::Timestamp;
use sealblk_record::{AccountId, Document, Fields};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::data_key_id::DataKeyId;
use crate::id::{SnapshotId, VolumeId};
use crate::name::VolumeName;
use crate::open::{Access, EncryptedVolume, PlainVolume};
use crate::restoring::{Restoring, SourceEncryption, SourceKey};
use crate::seal::{KeyCheck, Seal, SealError, SealedFields, Sealer};
use crate::size::VolumeSize;
use crate::wrapped::{KeyReference, WrappedDataKey};

/// The cipher's data unit: a sector.
const DATA_UNIT_BYTES: u32 = 512;
/// The tweak of sector 0.
const TWEAK_ORIGIN: u64 = 0;

/// What is known of one volume. A field that this version does not know makes the record unreadable: it
/// may change what the bytes mean.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct VolumeRecord {
    /// The volume's identifier, also its directory's name and its data key's encryption context.
    pub volume_id: VolumeId,
    /// Size as a client sees it. The backing may be longer.
    pub size_bytes: VolumeSize,
    /// When it was created.
    pub create_time: Timestamp,
    /// The account that it belongs to; `None`: the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<AccountId>,
    /// Where the bytes are.
    pub backing: Backing,
    /// What they are.
    pub encryption: Encryption,
    /// Whether TRIM and WRITE_ZEROES may give space back to the store (`false`: `--no-discard`).
    pub discard: bool,
    /// What people call it; EC2's tag `Name`. Changed at any time, and not sealed: it says nothing of the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VolumeName>,
    /// The snapshot that the data came from, or is coming from: then the volume has a block map that says which
    /// blocks are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<SnapshotId>,
    /// Of a volume that is being restored: where its missing blocks come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<Box<Restoring>>,
}

impl Document for VolumeRecord {
    const FORMAT: &'static str = "sealblk-volume";
    const VERSION: u32 = 2;

    /// Version 1 has the same members, but those that only volumes made from snapshots have. What changed is that
    /// a volume may have a block map, which who writes to the volume must keep.
    fn migrate(version: u32, fields: Fields) -> Option<Fields> {
        (version == 1).then_some(fields)
    }
}

/// Where a volume's bytes are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "Type", deny_unknown_fields)]
pub enum Backing {
    /// The sparse file `data` in the volume's directory, which is deleted with the volume.
    File {},
    /// A file or block device elsewhere, which is not.
    Path {
        /// Absolute.
        #[serde(rename = "Path", deserialize_with = "absolute_path")]
        path: PathBuf,
    },
    /// An export of an NBD server, which is not.
    #[serde(rename = "Nbd")]
    Export {
        /// Its URI, in canonical form. Read and understood by who opens it; no secret is in it.
        #[serde(rename = "Uri")]
        uri: String,
    },
}

/// How a volume's bytes are stored. There is no third state, and no default.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "Cipher", deny_unknown_fields)]
pub enum Encryption {
    /// As the client wrote them.
    #[serde(rename = "none")]
    Plain {},
    /// AES-256-XTS over 512-byte sectors.
    #[serde(rename = "aes-256-xts")]
    Aes256Xts(XtsEncryption),
}

/// How an encrypted volume's bytes are stored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct XtsEncryption {
    /// The KMS key that wraps the data key.
    pub kms_key_id: KeyReference,
    /// The data key, wrapped, with `{"aws:ebs:id": VolumeId}` as encryption context.
    pub wrapped_key: WrappedDataKey,
    /// The same data key under further keys, for when the first cannot be used; tried in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recovery_keys: Vec<RecoveryKey>,
    /// Which volume's creation generated the data key: this volume's own, or for one restored from a
    /// snapshot under the same key, its ancestor's.
    pub lineage: VolumeId,
    #[serde(deserialize_with = "only_512")]
    data_unit_bytes: u32,
    #[serde(deserialize_with = "only_0")]
    tweak_origin: u64,
    /// Of a volume whose data key is its snapshot's: what that key must derive to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected_key_check: Option<Box<KeyCheck>>,
    /// Written at the first attach, when the data key is first at hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<Seal>,
}

/// A volume's data key under a key other than its first.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RecoveryKey {
    /// The KMS key that wraps it.
    pub kms_key_id: KeyReference,
    /// The data key, wrapped, with the same encryption context.
    pub wrapped_key: WrappedDataKey,
}

impl XtsEncryption {
    /// A new volume's, not sealed yet.
    pub fn new(kms_key_id: KeyReference, wrapped_key: WrappedDataKey, lineage: VolumeId) -> Self {
        Self {
            kms_key_id,
            wrapped_key,
            recovery_keys: Vec::new(),
            lineage,
            data_unit_bytes: DATA_UNIT_BYTES,
            tweak_origin: TWEAK_ORIGIN,
            expected_key_check: None,
            seal: None,
        }
    }

    /// This with the same data key under further keys.
    pub fn with_recovery_keys(self, recovery_keys: Vec<RecoveryKey>) -> Self {
        Self { recovery_keys, ..self }
    }

    /// The same, of a volume made from a snapshot under the snapshot's own data key: the first attach takes no
    /// other key. `lineage` is then the snapshot's too.
    #[must_use]
    pub fn expecting(self, key_check: KeyCheck) -> Self {
        Self { expected_key_check: Some(Box::new(key_check)), ..self }
    }

    /// What the data key is known by: equal for volumes and snapshots that share it (EC2:
    /// `DataEncryptionKeyId`).
    pub fn data_key_id(&self) -> DataKeyId {
        DataKeyId::of_lineage(self.lineage)
    }

    /// What the data key derives to, if that is known: since the first attach, or from the snapshot.
    pub fn key_check(&self) -> Option<&KeyCheck> {
        self.seal.as_ref().map(Seal::key_check).or(self.expected_key_check.as_deref())
    }

    /// What the first attach must find.
    pub(crate) fn expected_key_check(&self) -> Option<&KeyCheck> {
        self.expected_key_check.as_deref()
    }

    /// Every key that the data key is wrapped under, with the wrapped key, in the order in which to try them.
    pub fn wrappings(&self) -> impl Iterator<Item = (&KeyReference, &WrappedDataKey)> {
        let recovery = self.recovery_keys.iter().map(|key| (&key.kms_key_id, &key.wrapped_key));
        std::iter::once((&self.kms_key_id, &self.wrapped_key)).chain(recovery)
    }

    /// The seal, once the volume was attached.
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }
}

impl VolumeRecord {
    /// The two kinds of volume, each with its own way to open it: an encrypted one has no way without a
    /// data key.
    pub fn access(&self) -> Access<'_> {
        match &self.encryption {
            Encryption::Plain {} => Access::Plain(PlainVolume::new(self)),
            Encryption::Aes256Xts(encryption) => Access::Encrypted(EncryptedVolume::new(self, encryption)),
        }
    }

    /// What EC2 calls `KmsKeyId`: the key's ARN, for an encrypted volume.
    pub fn kms_key_id(&self) -> Option<&KeyReference> {
        match &self.encryption {
            Encryption::Plain {} => None,
            Encryption::Aes256Xts(encryption) => Some(&encryption.kms_key_id),
        }
    }

    /// The record of the same volume with another size, sealed again if it was: after the present seal was verified, so
    /// that nothing is sealed that was not before. `sealer`: the volume's own; a record without a seal needs none.
    pub fn resized(&self, size: VolumeSize, sealer: Option<&Sealer>) -> Result<Self, SealError> {
        let resized = Self { size_bytes: size, ..self.clone() };
        let Encryption::Aes256Xts(encryption) = &self.encryption else { return Ok(resized) };
        let Some(seal) = encryption.seal() else { return Ok(resized) };
        let sealer = sealer.ok_or(SealError::KeyNeeded)?;
        sealer.verify(seal, &self.sealed_fields(encryption))?;
        let seal = sealer.seal(&resized.sealed_fields(encryption))?;
        Ok(resized.with_seal(encryption, seal))
    }

    /// The snapshot's data key, which it takes to bring the blocks that are missing, if that is another than the volume's.
    pub fn source_key(&self) -> Option<&SourceKey> {
        match self.restoring.as_ref()?.encrypt_anew.as_ref()? {
            SourceEncryption::Aes256Xts(source) => Some(source),
            SourceEncryption::Plain {} => None,
        }
    }

    /// What this record's seal covers, if it is `encryption`'s record.
    pub(crate) fn sealed_fields(&self, encryption: &XtsEncryption) -> SealedFields {
        SealedFields {
            volume_id: self.volume_id,
            size: self.size_bytes,
            data_unit_bytes: encryption.data_unit_bytes,
            tweak_origin: encryption.tweak_origin,
            discard: self.discard,
            lineage: encryption.lineage,
        }
    }

    /// This record with `encryption` sealed by `seal`.
    pub(crate) fn with_seal(&self, encryption: &XtsEncryption, seal: Seal) -> Self {
        let sealed = XtsEncryption { seal: Some(seal), ..encryption.clone() };
        Self { encryption: Encryption::Aes256Xts(sealed), ..self.clone() }
    }
}

/// Relative paths would depend on who reads the record.
fn absolute_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() { Ok(path) } else { Err(D::Error::custom("a backing's Path is absolute")) }
}

fn only_512<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        DATA_UNIT_BYTES => Ok(DATA_UNIT_BYTES),
        other => Err(D::Error::custom(format_args!("DataUnitBytes is {other}; this version reads only 512"))),
    }
}

fn only_0<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        TWEAK_ORIGIN => Ok(TWEAK_ORIGIN),
        other => Err(D::Error::custom(format_args!("TweakOrigin is {other}; this version reads only 0"))),
    }
}
