//! What can go wrong with a copy beyond the repository and the key service.

use sealblk_kms::{KmsError, KmsErrorKind};
use sealblk_volume::{CipherError, SealError, SnapshotId};

use crate::error::{ControlError, ErrorClass};

/// Why a snapshot was not copied.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum CopyError {
    /// The key that the copy is to be under cannot be used; found before anything is stored.
    #[error("the specified keyId {key} {}", what_is_wrong(source))]
    Key { key: String, source: Box<ControlError> },
    /// The key service did not unwrap a data key.
    #[error("the snapshot {id} cannot be read or made: it was unable to use the key {key}")]
    KeyUnusable { id: SnapshotId, key: String, source: Box<KmsError> },
    /// What was unwrapped is another data key.
    #[error("the data key of {id} is not the one that its blocks are encrypted with")]
    DataKey { id: SnapshotId, source: SealError },
    /// A data key is unfit for the cipher, or there is no locked memory.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// Only a copy can be taken up again as one.
    #[error("the snapshot {id} is not a copy")]
    NotACopy { id: SnapshotId },
}

impl CopyError {
    /// EC2's code, and what it means for the caller.
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::Key { source, .. } if is_denied(source) => ("AuthFailure", ErrorClass::Denied),
            Self::Key { source, .. } => ("InvalidParameterValue", source.class()),
            Self::KeyUnusable { source, .. } => match source.kind {
                KmsErrorKind::Unreachable => ("DependencyTimeoutException", ErrorClass::Unreachable),
                KmsErrorKind::Misconfigured => ("InternalError", ErrorClass::Failed),
                _ => ("CustomerKeyHasBeenRevoked", ErrorClass::Denied),
            },
            Self::DataKey { source: SealError::KeyMemory(_), .. } | Self::Cipher(_) => {
                ("InternalError", ErrorClass::Failed)
            }
            Self::DataKey { .. } => ("IncorrectKeyException", ErrorClass::Denied),
            Self::NotACopy { .. } => ("IncorrectState", ErrorClass::State),
        }
    }
}

fn is_denied(error: &ControlError) -> bool {
    matches!(error, ControlError::Kms(error) if error.kind == KmsErrorKind::Denied)
}

/// As EC2 words it.
fn what_is_wrong(error: &ControlError) -> &'static str {
    match error {
        ControlError::KeyState { .. } => "is disabled",
        error if is_denied(error) => "may not be used",
        _ => "is invalid",
    }
}
