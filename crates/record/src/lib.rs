//! One JSON document per object, written whole or not at all, under a lock.
//!
//! Volumes, snapshots, keys and settings are each a [`Document`] in a [`RecordFile`] (design §4.7). A file is
//!
//! ```json
//! {
//!   "Format": "sealblk-example",
//!   "Version": 1,
//!   "Size": 1073741824,
//!   "Checksum": "sha256:<64 hexadecimal digits>"
//! }
//! ```
//!
//! with the document's own members between `Version` and `Checksum`. The checksum is the SHA-256 of every byte
//! before the line it stands on (`head -n -2 FILE | sha256sum`): a flipped digit of a size is found, not
//! believed. It is no protection against somebody who means it; the seal of an encrypted volume is. These three
//! members are the same in every version of every format.
//!
//! What holds: after a crash at any moment a file has its old or its new content, whole. The content before
//! the last store is beside it under the name with `.prev` appended; it is named in errors and never used
//! unasked. Damage, another format and an unknown version are errors that say what and where.
//!
//! Writers exclude each other with a [`LockFile`]; readers need none.
//!
//! Also here, because records name each other by them: the [identifiers](ResourceId) of volumes and snapshots, and [accounts](AccountId).
//!
//! Used by `kms`, `volume`, `snapshot` and `control`. It knows nothing of what the documents mean.
#![forbid(unsafe_code)]

mod account;
mod document;
mod error;
mod file;
mod id;
mod lock;

pub use account::{AccountId, MalformedAccountId};
pub use document::{Document, Fields, from_bytes, to_bytes};
pub use error::RecordError;
pub use file::{MAX_RECORD_BYTES, RecordFile};
pub use id::{IdKind, MalformedId, ResourceId, SnapshotId, SnapshotKind, VolumeId, VolumeKind};
pub use lock::{LockFile, wait_until_free};
