//! The volume format: where plaintext meets ciphertext (docs/FORMAT.md).
//!
//! A [`VolumeRecord`] says what a volume is; its [`Access`] opens it on a device, with the data key if it
//! is encrypted, and gives a [`Volume`], a `BlockDevice` of plaintext sectors. This crate never talks to a
//! KMS: it is handed an unwrapped key in locked memory. Which volumes exist, who may attach them and when,
//! is `sealblk-control`'s matter.
#![forbid(unsafe_code)]

mod cipher;
mod custody;
mod data_key_id;
mod directory;
mod growth;
pub mod map;
mod materialize;
mod meter;
mod name;
mod open;
mod piece;
mod record;
mod restoring;
mod seal;
mod size;
mod volume;
mod wrapped;

pub use cipher::{Cipher, NullCipher};
pub use custody::{CipherLoan, KeyHold};
pub use data_key_id::DataKeyId;
pub use directory::{CreateDataError, VolumeDirectory};
pub use growth::VolumeGrowth;
pub use materialize::{MaterializeProgress, Materialized};
pub use meter::CipherStatistics;
pub use name::{InvalidName, VolumeName};
pub use open::{Access, EncryptedVolume, OpenError, PlainVolume, first_data};
pub use record::{Backing, Encryption, RecoveryKey, VolumeRecord, XtsEncryption};
pub use restoring::{Restoring, SnapshotRepository, SourceEncryption, SourceKey};
pub use seal::{KeyCheck, Seal, SealError, Sealer};
pub use size::{SizeError, VolumeSize};
pub use volume::{Volume, VolumeLane};
// Identifiers are part of a volume's records; `crate::id` is where the modules here look for them.
use sealblk_record as id;
pub use sealblk_record::{
    AccountId, IdKind, MalformedAccountId, MalformedId, ResourceId, SnapshotId, SnapshotKind, VolumeId,
    VolumeKind,
};
// The type of an encrypted volume's cipher, for callers that have no other business with the crate.
pub use sealblk_xts::{CipherError, SectorCipher};
pub use wrapped::{InvalidWrap, KeyReference, WrappedDataKey};
