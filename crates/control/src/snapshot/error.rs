//! What can go wrong with an operation on snapshots beside the repository itself.

use std::io;

use sealblk_volume::map::FreezeError;
use sealblk_volume::{SnapshotId, VolumeId};

use crate::error::{ControlError, ErrorClass};

/// Why an operation on snapshots was not done.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum SnapshotOperationError {
    /// The volume's content cannot be frozen.
    #[error("no snapshot of {volume} was begun")]
    Freeze { volume: VolumeId, source: FreezeError },
    /// The process that serves the volume makes a snapshot of it already.
    #[error("a snapshot of the volume {volume} is in progress already")]
    InProgress { volume: VolumeId },
    /// Nobody serves the volume, and a process that makes a snapshot of it has it.
    #[error(
        "the volume {volume} is in use by process {pid}, which makes the snapshot {snapshot} of it: wait until that is \
         completed, or interrupt it (kill -INT {pid}), attach the volume, and go on with the snapshot then: sealblk \
         snapshot create {volume} --resume {snapshot}"
    )]
    Saving { volume: VolumeId, snapshot: SnapshotId, pid: u32 },
    /// The process that serves the volume does not freeze it.
    #[error("no snapshot of {volume} was begun: the process that serves it reported: {message}")]
    Refused { volume: VolumeId, message: String },
    /// The process that has the volume's blocks is gone, or does not answer.
    #[error("the content of {volume} cannot be read")]
    Stream { volume: VolumeId, source: io::Error },
    /// The snapshot's record is there, and it is not complete.
    #[error(
        "the snapshot {id} is not complete; to go on with it: sealblk snapshot create {volume} --resume {id}"
    )]
    Interrupted { id: SnapshotId, volume: VolumeId, source: Box<ControlError> },
    /// It was begun of another volume.
    #[error("the snapshot {id} is of {found}, not of {volume}")]
    OtherVolume { id: SnapshotId, volume: VolumeId, found: VolumeId },
    /// It was begun when the volume was smaller, or under another data key.
    #[error(
        "the volume {volume} has changed its size or its data key since the snapshot {id} was begun; delete that, and make another"
    )]
    Outdated { id: SnapshotId, volume: VolumeId },
    /// Nobody serves the volume, so that nobody can bring the blocks that are not here.
    #[error(
        "the volume {volume} is not restored from its snapshot yet: attach it, and make the snapshot while it is attached"
    )]
    NotRestored { volume: VolumeId },
}

impl SnapshotOperationError {
    /// EC2's code, and what it means for the caller.
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::InProgress { .. } | Self::Freeze { source: FreezeError::InProgress, .. } => {
                ("ConcurrentSnapshotLimitExceeded", ErrorClass::State)
            }
            Self::Saving { .. } => ("VolumeInUse", ErrorClass::State),
            Self::OtherVolume { .. } => ("InvalidParameterValue", ErrorClass::Usage),
            Self::Outdated { .. } | Self::NotRestored { .. } => ("IncorrectState", ErrorClass::State),
            Self::Interrupted { source, .. } => (source.code(), source.class()),
            Self::Freeze { .. } | Self::Refused { .. } | Self::Stream { .. } => {
                ("InternalError", ErrorClass::Failed)
            }
        }
    }
}
