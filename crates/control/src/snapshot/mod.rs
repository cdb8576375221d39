//! Snapshots as EC2 knows them: what `sealblk-snapshot` stores, with an owner, a volume, and a key.
//!
//! The repository (`sealblk-snapshot`) knows blocks and nothing of what they mean; [`SnapshotMetadata`] says that, in the part of
//! a snapshot's record that is its caller's. Where the repository is, is the caller's choice: [`RepositoryPlace`].

mod copy;
mod create;
mod delete;
mod describe;
mod error;
mod frozen;
mod frozen_source;
mod metadata;
mod place;
mod reencrypt;
mod share;
mod survey;
mod verify;

pub use copy::{CopiedSnapshot, CopyError, CopyExplanation, CopyRun, CopySnapshot};
pub use create::{CreateSnapshot, SnapshotEvent};
pub use delete::DeletedSnapshot;
pub use describe::{Group, Permission, SnapshotDescription};
pub use error::SnapshotOperationError;
pub(crate) use frozen::{FrozenVolume, Spool};
pub use metadata::{CopiedFrom, SnapshotEncryption, SnapshotMetadata, XtsSnapshot};
pub use place::{RepositoryName, RepositoryPlace};
pub(crate) use reencrypt::reencrypt_in_place;
pub use reencrypt::{MisshapenBlock, Reencryption};
pub use share::{ShareError, ShareWith};
pub use verify::VerifySnapshots;
