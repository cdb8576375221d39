//! What can go wrong with a volume that is made from a snapshot, each with EC2's code.

use std::io;

use sealblk_kms::{KmsError, KmsErrorKind};
use sealblk_volume::{SnapshotId, VolumeId};

use crate::error::{ControlError, ErrorClass};

/// Why a volume is not made from a snapshot, or not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Neither a size nor a snapshot was given.
    #[error("the request must contain the parameter size/snapshot (--size, --snapshot-id)")]
    NoSize,
    /// A volume is never smaller than its snapshot.
    #[error("the size of {asked_bytes} bytes is smaller than that of {snapshot}: {snapshot_bytes} bytes")]
    TooSmall {
        /// The snapshot.
        snapshot: SnapshotId,
        /// Its volume's size.
        snapshot_bytes: u64,
        /// What was asked for.
        asked_bytes: u64,
    },
    /// The snapshot's metadata contradicts itself.
    #[error("{snapshot} cannot be restored: {reason}")]
    Unfit {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is wrong.
        reason: &'static str,
    },
    /// While a volume under another key is restored, the snapshot's key is needed too.
    #[error("the volume {id} is not restored yet, and was unable to use its snapshot's key {key}")]
    SourceKey {
        /// The volume.
        id: VolumeId,
        /// The key.
        key: String,
        /// What the key service said.
        source: Box<KmsError>,
    },
    /// What the volume's record says of its restoration is not so.
    #[error("the volume {id} cannot be restored: {reason}")]
    Record {
        /// The volume.
        id: VolumeId,
        /// What is wrong.
        reason: &'static str,
    },
    /// The restore helper has no parent, or one that does not keep to the protocol.
    #[error("the restore helper cannot talk to its parent")]
    Helper(#[source] io::Error),
    /// A block could not be brought.
    #[error("the volume {id} is not restored yet; `sealblk volume restore` or an attach goes on with it")]
    Block {
        /// The volume.
        id: VolumeId,
        /// Which block, and why.
        source: io::Error,
    },
    /// Somebody asked to stop.
    #[error(
        "stopped: the volume {id} is not restored yet; `sealblk volume restore` or an attach goes on with it"
    )]
    Stopped {
        /// The volume.
        id: VolumeId,
    },
    /// Every block is here, but what keeps the snapshot from being deleted is still there.
    #[error("the volume {id} is restored, but its snapshot is still held for it")]
    NotReleased {
        /// The volume.
        id: VolumeId,
        /// What the helper said.
        source: io::Error,
    },
    /// The volume is deleted, but what keeps its snapshot from being deleted is still there.
    #[error(
        "the volume {id} is deleted, but {snapshot} is still held for it; the next create or delete tries again"
    )]
    HoldLeft {
        /// The volume.
        id: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
        /// Why.
        source: Box<ControlError>,
    },
}

impl RestoreError {
    /// EC2's code, and what kind of trouble it is.
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::NoSize => ("MissingParameter", ErrorClass::Usage),
            Self::TooSmall { .. } => ("InvalidParameterValue", ErrorClass::Usage),
            Self::SourceKey { source, .. } => match source.kind {
                KmsErrorKind::Unreachable => (source.kind.code(), ErrorClass::Unreachable),
                KmsErrorKind::Misconfigured => (source.kind.code(), ErrorClass::Failed),
                _ => ("CustomerKeyHasBeenRevoked", ErrorClass::Denied),
            },
            Self::Block { source, .. } => match source.kind() {
                io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => {
                    ("Unavailable", ErrorClass::Unreachable)
                }
                _ => ("InternalError", ErrorClass::Failed),
            },
            Self::Stopped { .. } | Self::Helper(_) => ("InternalError", ErrorClass::Failed),
            Self::NotReleased { .. } => ("Unavailable", ErrorClass::Unreachable),
            Self::Unfit { .. } | Self::Record { .. } => ("InternalError", ErrorClass::Failed),
            Self::HoldLeft { source, .. } => (source.code(), source.class()),
        }
    }
}
