//! Why something with a repository or a snapshot failed.

use std::fmt;

use sealblk_record::{RecordError, SnapshotId};

use crate::record::State;

/// The cause of a failure of the caller's own block source, sink or transform.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation failed. Nothing is ever half done without saying so: what an operation leaves behind when it fails is
/// in its own documentation.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such snapshot (EC2: `InvalidSnapshot.NotFound`).
    #[error("snapshot {id} does not exist")]
    NotFound {
        /// The snapshot.
        id: SnapshotId,
    },
    /// There is one of this name already.
    #[error("snapshot {id} exists already")]
    Exists {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The snapshot is in a state in which this cannot be done (EC2: `IncorrectState`).
    #[error("snapshot {id} is {state}")]
    WrongState {
        /// The snapshot.
        id: SnapshotId,
        /// Its state.
        state: State,
    },
    /// Another process took over the making of the snapshot: this one stops.
    #[error("snapshot {id} is being made by another process")]
    Superseded {
        /// The snapshot.
        id: SnapshotId,
    },
    /// What was asked for contradicts itself or the snapshots there are.
    #[error("{reason}")]
    InvalidRequest {
        /// What is wrong, in words.
        reason: String,
    },
    /// A record is damaged, of another format or of an unknown version; its path is that of the object.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The description that the caller attached to a snapshot is not what the caller expects.
    #[error("the metadata of snapshot {id} cannot be used")]
    Metadata {
        /// The snapshot.
        id: SnapshotId,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// An object that a snapshot needs is gone or is not what was written. The snapshot is incomplete for ever unless the
    /// object is put back; other blocks can still be read.
    #[error("{part} of snapshot {snapshot} ({object}) {fault}")]
    Damaged {
        /// The snapshot that needs the object.
        snapshot: SnapshotId,
        /// Which part of it.
        part: Part,
        /// The object's path in the repository.
        object: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The object store did not do what it was asked.
    #[error("the object store {}: cannot {step} {object}", match kind { StoreFault::Denied => "refused", StoreFault::Unavailable => "failed" })]
    Store {
        /// What was attempted, to be read before the object: "read", "write", "list".
        step: &'static str,
        /// The object's path in the repository, or a prefix of several.
        object: String,
        /// What the caller can do about it.
        kind: StoreFault,
        /// What the store said.
        #[source]
        source: object_store::Error,
    },
    /// The store does not keep a promise that a repository rests on.
    #[error("this object store cannot hold a repository: {reason}")]
    Unfit {
        /// Which promise, in words.
        reason: &'static str,
    },
    /// The repository's name or one of its options makes no sense.
    #[error("{reason}")]
    Location {
        /// What is wrong, in words; never a secret.
        reason: String,
    },
    /// The caller's own block source, sink or transform failed.
    #[error("{doing} block {block} failed")]
    Caller {
        /// "reading", "writing" or "transforming".
        doing: &'static str,
        /// Which block.
        block: u64,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// The operation was asked to stop, and can be taken up again.
    #[error("stopped")]
    Stopped,
    /// Files of a local repository could not be prepared or locked.
    #[error("cannot {step} {path}")]
    Local {
        /// What was attempted, to be read before the path.
        step: &'static str,
        /// The file or directory.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

impl SnapshotError {
    /// The error of the caller's own part of an operation; one of this crate that comes through it, as it is.
    pub(crate) fn of_caller(doing: &'static str, block: u64, source: Cause) -> Self {
        match source.downcast::<Self>() {
            Ok(error) => *error,
            Err(source) => Self::Caller { doing, block, source },
        }
    }
}

/// What a caller can do about a failure of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreFault {
    /// Credentials are missing, wrong or do not allow it: trying again will not help.
    Denied,
    /// It did not answer, or not sensibly: trying again later may help.
    Unavailable,
}

/// What is wrong with an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is not there.
    Missing,
    /// Its content is not what was written.
    Damaged(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Damaged(reason) => write!(f, "is damaged: {reason}"),
        }
    }
}

/// A part of a snapshot that is an object of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// A block, by its number.
    Block(u64),
    /// A page of the index.
    Page {
        /// 0 for a leaf, 2 for the root page.
        level: u8,
        /// Its number among the pages of its level.
        position: u64,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(index) => write!(f, "block {index}"),
            Self::Page { level, position } => write!(f, "index page {position} of level {level}"),
        }
    }
}

/// For `map_err`: the error of `step` on `object`.
pub(crate) fn store(
    step: &'static str,
    object: &object_store::path::Path,
) -> impl FnOnce(object_store::Error) -> SnapshotError + use<> {
    let object = object.to_string();
    move |source| {
        let kind = match source {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreFault::Denied
            }
            _ => StoreFault::Unavailable,
        };
        SnapshotError::Store { step, object, kind, source }
    }
}
