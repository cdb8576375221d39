//! The root record of a snapshot: what it is, how far it is, where its index begins. One small object each.

use std::fmt;

use jiff::Timestamp;
use sealblk_record::{Document, SnapshotId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::SnapshotError;
use crate::hash::ContentHash;
use crate::page::Reference;

/// How far a snapshot is. `pending` becomes `completed` or `error`; each of the three becomes `deleting`; nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is being made, or its making was interrupted.
    Pending,
    /// Whole, readable, and unchanged for ever.
    Completed,
    /// Its making was given up; it can only be deleted.
    Error,
    /// It will be gone as soon as nobody holds it; it can be read no more, except by who holds it.
    Deleting,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Error => "in error",
            Self::Deleting => "being deleted",
        })
    }
}

/// Where the index of a snapshot begins. No root at all: every block is zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Root {
    /// The snapshot whose making wrote the root page.
    pub generation: SnapshotId,
    /// The hash of the root page.
    pub hash: ContentHash,
    /// Blocks that have data.
    pub blocks: u64,
}

impl Root {
    pub(crate) fn reference(&self) -> Reference {
        Reference { generation: self.generation, hash: self.hash }
    }
}

/// What a snapshot builds on: the last of its lineage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Parent {
    /// The snapshot. It may be gone by now.
    pub snapshot_id: SnapshotId,
    /// Its root when this snapshot was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Its volume's size.
    pub volume_size_bytes: u64,
    /// Whether the parent was seen undeleted after this record was there: from then on no deletion can miss that this
    /// snapshot needs the parent's blocks.
    pub pinned: bool,
}

/// The root record of a snapshot (docs/FORMAT.md, "Snapshots").
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct SnapshotRecord {
    /// The snapshot.
    pub snapshot_id: SnapshotId,
    /// How far it is.
    pub state: State,
    /// Why it is in error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_message: Option<String>,
    /// When it was begun.
    pub start_time: Timestamp,
    /// When it was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Timestamp>,
    /// Size of the volume it is of, in bytes.
    pub volume_size_bytes: u64,
    /// The first snapshot of this one's line of parents: only snapshots of one family can share objects.
    pub family: SnapshotId,
    /// What it builds on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Where its index begins, once completed; none if every block is zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Blocks to look at, and how many of them are done: the progress of the last attempt, or of the whole.
    pub blocks_total: u64,
    /// See `blocks_total`.
    pub blocks_done: u64,
    /// Blocks that differ from the parent's and have data: what the snapshot itself added.
    pub changed_blocks: u64,
    /// How often its making was begun or taken up again: the latest attempt is the one that counts.
    pub attempt: u32,
    /// Tells one attempt from another of the same number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_nonce: Option<String>,
    /// What the caller wants to be known of it; not this crate's business.
    pub metadata: Value,
}

impl SnapshotRecord {
    /// Progress in percent, rounded down; 100 only when it is completed.
    pub fn progress_percent(&self) -> u8 {
        if self.completion_time.is_some() {
            return 100;
        }
        let percent = (u128::from(self.blocks_done) * 100).checked_div(u128::from(self.blocks_total));
        u8::try_from(percent.unwrap_or(0).min(99)).unwrap_or(99)
    }

    /// What the caller attached to the snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Metadata`]: it is not an `M`.
    pub fn metadata<M: DeserializeOwned>(&self) -> Result<M, SnapshotError> {
        M::deserialize(&self.metadata)
            .map_err(|source| SnapshotError::Metadata { id: self.snapshot_id, source })
    }

    /// Whether it ever was whole: then others may build on its objects.
    pub(crate) const fn was_completed(&self) -> bool {
        self.completion_time.is_some()
    }

    /// The root whose objects this record needs: its own, or while there is none the parent's.
    pub(crate) fn needed_root(&self) -> Option<Root> {
        if self.was_completed() { self.root } else { self.parent.and_then(|parent| parent.root) }
    }
}

impl Document for SnapshotRecord {
    const FORMAT: &'static str = "sealblk-snapshot";
    const VERSION: u32 = 1;
}

/// What makes a place in an object store a repository.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct RepositoryRecord {
    pub(crate) create_time: Timestamp,
    pub(crate) block_bytes: u64,
    pub(crate) page_entries: u64,
}

impl Document for RepositoryRecord {
    const FORMAT: &'static str = "sealblk-repository";
    const VERSION: u32 = 1;
}

/// How many deletions were begun: what lets one deletion notice another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct DeletionsRecord {
    pub(crate) count: u64,
}

impl Document for DeletionsRecord {
    const FORMAT: &'static str = "sealblk-deletions";
    const VERSION: u32 = 1;
}

/// Somebody reads a snapshot and must be able to finish.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct HoldRecord {
    pub(crate) snapshot_id: SnapshotId,
    pub(crate) holder: String,
    pub(crate) since: Timestamp,
}

impl Document for HoldRecord {
    const FORMAT: &'static str = "sealblk-hold";
    const VERSION: u32 = 1;
}
