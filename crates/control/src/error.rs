//! What can go wrong with an operation on the pool, each with the code that EC2 or KMS has for it.
//!
//! One match gives code and class; the command line turns the class into an exit code, a later EC2 endpoint
//! would put the code on the wire.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use sealblk_block::BlockError;
use sealblk_keymem::KeyMemError;
use sealblk_kms::{KeyState, KmsError, KmsErrorKind};
use sealblk_nbd::TlsError;
use sealblk_record::RecordError;
use sealblk_snapshot::{SnapshotError, StoreFault};
use sealblk_volume::map::{GrowError, MapError};
use sealblk_volume::{
    IdKind, MalformedAccountId, MalformedId, OpenError, SealError, SizeError, SnapshotKind, VolumeId,
};
use serde::{Deserialize, Serialize};

use crate::backing::BackingError;
use crate::image::ImageError;
use crate::key_users::KeyUsers;
use crate::outcome::OutcomeError;
use crate::restore::RestoreError;
use crate::runtime::SocketError;
use crate::snapshot::{CopyError, ShareError, SnapshotOperationError};

/// What kind of trouble it is; decides the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Something broke, here or below.
    Failed,
    /// What was asked for makes no sense.
    Usage,
    /// It does not exist.
    NotFound,
    /// It is in use, or in no state for this.
    State,
    /// Not permitted, or the key cannot be used.
    Denied,
    /// The key service or the store did not answer.
    Unreachable,
}

/// Why an operation on the pool was not done.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum ControlError {
    /// A directory of the pool cannot be made, read or changed.
    #[error("cannot use the pool at {}", path.display())]
    Pool { path: PathBuf, source: io::Error },
    /// `init` where a pool is already.
    #[error("there is a pool at {} already", path.display())]
    PoolExists { path: PathBuf },
    /// A record is damaged, of another version, or cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Not the id of a volume, or of a snapshot.
    #[error(transparent)]
    MalformedId(#[from] MalformedId),
    /// Not an account.
    #[error(transparent)]
    MalformedAccountId(#[from] MalformedAccountId),
    /// Not a name that a region can have.
    #[error("invalid region \"{given}\": expected 1 to 63 lower-case letters, digits and dashes")]
    Region { given: String },
    /// Not a size that a volume can have.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A combination of encryption parameters that EC2 refuses.
    #[error(transparent)]
    Outcome(#[from] OutcomeError),
    /// The kernel gave no random bytes.
    #[error("no random bytes for a volume's id")]
    Random(#[source] io::Error),

    /// No volume has this id.
    #[error("the volume {id} does not exist")]
    VolumeNotFound { id: VolumeId },
    /// Somebody copied a record into another volume's directory.
    #[error("the directory of {id} holds the record of {found}")]
    Misplaced { id: VolumeId, found: VolumeId },
    /// Somebody attaches it, deletes it or works on it.
    #[error("the volume {id} is in use{}", by(*pid))]
    VolumeInUse { id: VolumeId, pid: Option<u32> },
    /// There is no data key to wrap anew.
    #[error("the volume {id} is not encrypted")]
    NotEncrypted { id: VolumeId },
    /// Disabling or destroying a key that volumes or snapshots depend on, without saying that this is meant.
    #[error("the key {} {} (sealblk key users); --force does it all the same", users.kms_key_id, use_of(users))]
    KeyInUse { users: Box<KeyUsers> },
    /// Nobody serves it.
    #[error("the volume {id} is not attached")]
    NotAttached { id: VolumeId },
    /// The process that serves it does not say what it counted.
    #[error("the volume {id} is attached, but process {pid} does not tell its statistics")]
    NoStatistics { id: VolumeId, pid: u32, source: io::Error },
    /// The process that serves it has not ended in time; it goes on ending.
    #[error("the volume {id} is still in use{} after {} seconds", by(*pid), after.as_secs())]
    StillInUse { id: VolumeId, pid: Option<u32>, after: Duration },
    /// The process that served it has ended, and not all went well.
    #[error("the process that served {id} reported: {message}")]
    DetachFailed { id: VolumeId, message: String },

    /// A volume that is made from a snapshot.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A snapshot, or the repository that holds it.
    #[error(transparent)]
    Snapshot(Box<SnapshotError>),
    /// An operation on snapshots that is more than the repository's.
    #[error(transparent)]
    SnapshotOperation(#[from] SnapshotOperationError),

    /// ModifyVolume without a parameter.
    #[error("Must specify at least one of size or name.")]
    NothingToModify,
    /// Volumes only grow.
    #[error("New size cannot be smaller than existing size")]
    Shrink { id: VolumeId },
    /// What the process that serves the volume said about its growth.
    #[error("{message}")]
    GrowFailed { id: VolumeId, class: ErrorClass, message: String },
    /// The volume is about to be detached; it can be grown then.
    #[error("the volume is being detached")]
    Detaching,
    /// The record says the new size; the attachment does not show it.
    #[error(
        "writes to {id} do not come to an end: its new size is recorded, and seen from the next attachment on, or after the same command again"
    )]
    SlowWrites { id: VolumeId },
    /// A snapshot knows one size; nothing was changed.
    #[error("a snapshot of {id} is in progress: the volume can grow when it is done")]
    SnapshotInProgress { id: VolumeId },
    /// The open volume did not grow; its record says the new size.
    #[error("the volume {id} does not show its new size yet: the same command again completes it")]
    Grow { id: VolumeId, source: GrowError },

    /// A snapshot is another account's, or cannot be shared so.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A copy of a snapshot.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A disk image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file or device for the bytes cannot be used.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// A call of the key service failed.
    #[error(transparent)]
    Kms(Box<KmsError>),
    /// The key is disabled or about to be deleted.
    #[error("the key {key} cannot be used for volumes: it is {in_words}")]
    KeyState { key: String, state: KeyState, in_words: String },
    /// The key is asymmetric, or for something else (requirement 33).
    #[error(
        "the key {key} cannot be used for volumes: only symmetric encryption keys can (it is {spec}, {usage})"
    )]
    KeyKind { key: String, spec: String, usage: String },
    /// The key service does not keep to its own formats.
    #[error("the key service answered with something that is not a key: {reason}")]
    KeyAnswer { reason: &'static str },
    /// Attach: the key service did not unwrap the data key.
    #[error("the volume {id} cannot be attached: it was unable to use the key {key}")]
    KeyUnusable { id: VolumeId, key: String, source: Box<KmsError> },
    /// The volume is not what its record says, or the key is not its key.
    #[error("the volume {id} cannot be opened")]
    Open { id: VolumeId, source: OpenError },
    /// The volume's block map is not what it should be.
    #[error("the block map of {id} cannot be used")]
    Map { id: VolumeId, source: MapError },

    /// A Unix socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address that others could reach.
    #[error(
        "{address} is not a loopback address, and TCP there needs TLS: give certificates (--tls-certificates), or let everybody on the network read and write the volume (--danger-plaintext-tcp)"
    )]
    NotLoopback { address: SocketAddr },
    /// What a service manager passed is not what clients can connect to.
    #[error("a socket passed by the service manager cannot be served: {reason}")]
    InheritedSocket { reason: &'static str },
    /// Standard input and output are no connection to a client.
    #[error("standard input and output are neither one stream socket nor two pipes: there is no client")]
    InheritedClient,
    /// The certificates cannot be used.
    #[error("TLS")]
    Tls(#[from] TlsError),
    /// An address for metrics that others could reach.
    #[error("{address} is not a loopback address; metrics are served on loopback or a Unix socket only")]
    MetricsNotLoopback { address: SocketAddr },
    /// A TCP socket cannot be made.
    #[error("cannot listen at {address}")]
    Listen { address: SocketAddr, source: io::Error },
    /// Clients cannot be served, or have not ended.
    #[error("serving {id} failed")]
    Serve { id: VolumeId, source: io::Error },
    /// Detach: data may be lost.
    #[error("the last flush of {id} failed: what was written since the flush before may be lost")]
    LastFlush { id: VolumeId, source: BlockError },
    /// The backing failed during offline work.
    #[error("{id}: {doing} failed")]
    Device { id: VolumeId, doing: &'static str, source: BlockError },
    /// No locked memory, or the process cannot be hardened.
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
    /// A thread, process or runtime cannot be had.
    #[error("cannot start {what}")]
    Start { what: &'static str, source: io::Error },
}

impl From<KmsError> for ControlError {
    fn from(error: KmsError) -> Self {
        Self::Kms(Box::new(error))
    }
}

impl From<SnapshotError> for ControlError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Record(error) => Self::Record(error),
            error => Self::Snapshot(Box::new(error)),
        }
    }
}

/// An error's message and those of its causes, from the outermost in.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Who uses a key, by name, as far as a line takes them, and what is not known about that.
fn use_of(users: &KeyUsers) -> String {
    const NAMED: usize = 5;
    let unknown = users.unreadable_snapshots.as_deref();
    let unknown =
        unknown.map(|reason| format!("the snapshots that may depend on it cannot be listed: {reason}"));
    let mut names: Vec<String> = users.users().take(NAMED).collect();
    let more = users.users().count().saturating_sub(NAMED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let used = names.pop().map(|last| match names.as_slice() {
        [] => format!("is in use: {last} depends on it"),
        others => format!("is in use: {} and {last} depend on it", others.join(", ")),
    });
    match (used, unknown) {
        (Some(used), Some(unknown)) => format!("{used}, and {unknown}"),
        (Some(used), None) => used,
        (None, unknown) => format!("may be in use: {}", unknown.unwrap_or_default()),
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}")).unwrap_or_default()
}

impl ControlError {
    /// The error code as EC2 or KMS spells it; stable.
    pub fn code(&self) -> &'static str {
        self.verdict().0
    }

    /// What kind of trouble it is.
    pub fn class(&self) -> ErrorClass {
        self.verdict().1
    }

    /// The message and those of its causes, from the outermost in.
    pub(crate) fn with_causes(&self) -> String {
        with_causes(self)
    }

    fn verdict(&self) -> (&'static str, ErrorClass) {
        use ErrorClass::{Denied, Failed, NotFound, State, Usage};
        match self {
            Self::Pool { source, .. } | Self::Record(RecordError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                ("UnauthorizedOperation", Denied)
            }
            Self::MalformedId(error) if error.noun == SnapshotKind::NOUN => {
                ("InvalidSnapshotID.Malformed", Usage)
            }
            Self::MalformedId(_) => ("InvalidVolumeID.Malformed", Usage),
            Self::MalformedAccountId(_) => ("InvalidUserID.Malformed", Usage),
            Self::Restore(error) => error.verdict(),
            Self::Size(_)
            | Self::Region { .. }
            | Self::NothingToModify
            | Self::Shrink { .. }
            | Self::Open { source: OpenError::PartialUnit { .. }, .. }
            | Self::NotLoopback { .. }
            | Self::MetricsNotLoopback { .. }
            | Self::InheritedSocket { .. }
            | Self::InheritedClient
            | Self::Tls(_) => ("InvalidParameterValue", Usage),
            Self::Outcome(error) => (error.code(), Usage),
            Self::VolumeNotFound { .. } => ("InvalidVolume.NotFound", NotFound),
            Self::VolumeInUse { .. } => ("VolumeInUse", State),
            Self::PoolExists { .. } => ("IncorrectState", State),
            Self::NotAttached { .. } | Self::StillInUse { .. } | Self::NotEncrypted { .. } => {
                ("IncorrectState", State)
            }
            Self::KeyInUse { .. } => ("KeyInUse", State),
            Self::Detaching | Self::SlowWrites { .. } | Self::SnapshotInProgress { .. } => {
                ("IncorrectState", State)
            }
            Self::Grow { source: GrowError::SnapshotInProgress, .. } => ("IncorrectState", State),
            Self::GrowFailed { class, .. } => match class {
                Usage => ("InvalidParameterValue", Usage),
                State => ("IncorrectState", State),
                other => ("InternalError", *other),
            },
            Self::Backing(error) => error.verdict(),
            Self::Share(error) => error.verdict(),
            Self::Snapshot(error) => snapshot_verdict(error),
            Self::Copy(error) => error.verdict(),
            Self::Image(error) => error.verdict(),
            Self::SnapshotOperation(error) => error.verdict(),
            Self::Kms(error) => kms_verdict(error.kind),
            Self::KeyState { state: KeyState::PendingDeletion, .. } => ("KMSInvalidStateException", Denied),
            Self::KeyState { .. } => ("DisabledException", Denied),
            Self::KeyKind { .. } => ("InvalidKeyUsageException", Denied),
            Self::KeyUnusable { source, .. } => match source.kind {
                KmsErrorKind::Unreachable | KmsErrorKind::Misconfigured => kms_verdict(source.kind),
                _ => ("CustomerKeyHasBeenRevoked", Denied),
            },
            Self::Open { source: OpenError::Seal(SealError::WrongKey), .. } => {
                ("IncorrectKeyException", Denied)
            }
            Self::Socket(SocketError::TooLong { .. } | SocketError::NotASocket { .. }) => {
                ("InvalidParameterValue", Usage)
            }
            Self::Socket(SocketError::InUse { .. }) => ("IncorrectState", State),
            Self::Pool { .. }
            | Self::Record(_)
            | Self::Random(_)
            | Self::Misplaced { .. }
            | Self::DetachFailed { .. }
            | Self::NoStatistics { .. }
            | Self::KeyAnswer { .. }
            | Self::Open { .. }
            | Self::Map { .. }
            | Self::Grow { .. }
            | Self::Socket(SocketError::Io { .. })
            | Self::Listen { .. }
            | Self::Serve { .. }
            | Self::LastFlush { .. }
            | Self::Device { .. }
            | Self::KeyMemory(_)
            | Self::Start { .. } => ("InternalError", Failed),
        }
    }
}

/// EC2's codes for what is wrong with a snapshot (ebs.md A.8), and what they mean for the caller.
fn snapshot_verdict(error: &SnapshotError) -> (&'static str, ErrorClass) {
    match error {
        SnapshotError::NotFound { .. } => ("InvalidSnapshot.NotFound", ErrorClass::NotFound),
        SnapshotError::WrongState { .. }
        | SnapshotError::Exists { .. }
        | SnapshotError::Superseded { .. } => ("IncorrectState", ErrorClass::State),
        SnapshotError::InvalidRequest { .. } | SnapshotError::Location { .. } => {
            ("InvalidParameterValue", ErrorClass::Usage)
        }
        SnapshotError::Store { kind: StoreFault::Denied, .. } => {
            ("UnauthorizedOperation", ErrorClass::Denied)
        }
        SnapshotError::Store { kind: StoreFault::Unavailable, .. } => {
            ("Unavailable", ErrorClass::Unreachable)
        }
        SnapshotError::Local { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            ("UnauthorizedOperation", ErrorClass::Denied)
        }
        SnapshotError::Record(_)
        | SnapshotError::Metadata { .. }
        | SnapshotError::Damaged { .. }
        | SnapshotError::Unfit { .. }
        | SnapshotError::Caller { .. }
        | SnapshotError::Stopped
        | SnapshotError::Local { .. } => ("InternalError", ErrorClass::Failed),
    }
}

/// KMS's own codes (ebs.md C.2), and what they mean for the caller.
fn kms_verdict(kind: KmsErrorKind) -> (&'static str, ErrorClass) {
    let class = match kind {
        KmsErrorKind::Unreachable => ErrorClass::Unreachable,
        KmsErrorKind::NotFound => ErrorClass::NotFound,
        KmsErrorKind::Denied
        | KmsErrorKind::Disabled
        | KmsErrorKind::PendingDeletion
        | KmsErrorKind::InvalidKeyUsage
        | KmsErrorKind::Unsupported
        | KmsErrorKind::IncorrectKey
        | KmsErrorKind::InvalidCiphertext => ErrorClass::Denied,
        KmsErrorKind::InvalidState | KmsErrorKind::AlreadyExists | KmsErrorKind::LimitExceeded => {
            ErrorClass::State
        }
        KmsErrorKind::InvalidRequest | KmsErrorKind::MalformedPolicy => ErrorClass::Usage,
        KmsErrorKind::NoGrants | KmsErrorKind::Misconfigured => ErrorClass::Failed,
    };
    (kind.code(), class)
}
