//! Immutable snapshots in an object store: full and incremental (docs/FORMAT.md, "A snapshot repository").
//!
//! A [`Repository`] is a local directory or a prefix of an S3-compatible bucket. A snapshot in it is a small root record, a
//! tree of index pages and 512 KiB blocks. Blocks and pages are named by the snapshot whose making wrote them (the
//! *generation*), their place, and the SHA-256 of their content, which every read checks; a snapshot refers to those of its
//! parents where nothing changed. Blocks of zeros are not stored.
//!
//! # Why it is safe against others, and against being killed
//!
//! * **Names never come back.** A snapshot's making writes only under its own, new, identifier; what it shares it takes over
//!   from its parent's index. So an object that no record needs will never be needed again, and a deletion that was
//!   asleep for a year removes nothing that matters: no clock, no lease and no grace period is part of the argument.
//! * **Order.** Every object is durable before what refers to it is written, and is removed after what refers to it.
//! * **A parent is pinned** by the child's pending record, and the pin counts once the parent was seen undeleted after that record was
//!   there. A deletion first marks its snapshot, then reads the records: one of the two sees the other.
//! * **A reader that must finish** puts a [hold](Repository::hold) and then looks at the state; a deletion marks and then
//!   looks for holds. With a hold there, the snapshot is closed to new readers and its objects stay until the last hold is
//!   gone.
//!
//! This crate knows no keys, no KMS, no volumes and no NBD: blocks are bytes. It runs on the caller's task, spawns
//! nothing but hashing, and reads no environment. `sealblk-control` calls it.
#![forbid(unsafe_code)]

mod block_set;
mod cache;
mod copy;
mod create;
mod delete;
mod earlier;
mod error;
mod exclusion;
mod geometry;
mod hash;
mod hold;
mod living;
mod location;
mod names;
mod objects;
mod page;
mod record;
mod repository;
mod snapshot;
mod source;
mod strays;
mod task;
mod tree;
mod upload;
mod verify;

pub use block_set::BlockSet;
pub use copy::{EarlierCopy, NewCopy, Transform, Unchanged};
pub use create::{NewSnapshot, UploadOptions};
pub use delete::{Deletion, Freed};
pub use error::{Cause, Fault, Part, SnapshotError, StoreFault};
pub use geometry::{BLOCK_BYTES, MAX_VOLUME_BYTES, block_bytes, block_count};
pub use hash::{ContentHash, MalformedHash};
pub use location::{Location, StoreOptions};
pub use record::{Parent, Root, SnapshotRecord, State};
pub use repository::Repository;
pub use sealblk_record::SnapshotId;
pub use snapshot::{Block, Snapshot};
pub use source::{BlockSource, Changed};
pub use task::{Progress, Stop};
pub use verify::{Depth, Flaw, Report};
