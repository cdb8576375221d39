//! Which snapshots a deletion must leave alone: a picture of all records that cannot miss one that matters.
//!
//! Records are read one by one while others change them. What a deletion must not miss is a snapshot R that shares an
//! object with the deleted snapshot S. Let `r` be the latest of R, its parent, its parent's parent… that existed, not
//! yet being deleted, when the reading began; what R shares with S, it has from `r` (S was marked before, so what was made
//! later took nothing from S directly). So it is enough to see `r`, or to notice that `r` was deleted during the reading.
//! Each deletion marks its record, then counts itself in `deletions.json`, and only then goes on, to remove the record in
//! the end. If `r` is marked before it is read here, then either the count changes during the reading, or the record is
//! still there and is seen marked, which it was not before. In both cases the reading is repeated.

use std::collections::BTreeSet;

use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::error::SnapshotError;
use crate::names;
use crate::record::{DeletionsRecord, SnapshotRecord, State};
use crate::repository::Repository;

impl Repository {
    /// The records of all snapshots whose objects must stay: all but those being deleted that nobody holds.
    pub(crate) async fn living(&self) -> Result<Vec<SnapshotRecord>, SnapshotError> {
        let mut marked_before: BTreeSet<SnapshotId> = BTreeSet::new();
        loop {
            let count = self.deletions().await?;
            let records = self.snapshots().await?;
            let marked: BTreeSet<SnapshotId> = records
                .iter()
                .filter(|record| record.state == State::Deleting)
                .map(|record| record.snapshot_id)
                .collect();
            if marked.is_subset(&marked_before) && self.deletions().await? == count {
                // Read after the marks were seen: who is marked gets no new hold.
                let held: BTreeSet<SnapshotId> =
                    self.all_holds().await?.into_iter().map(|(id, _)| id).collect();
                let lives = |record: &SnapshotRecord| {
                    record.state != State::Deleting || held.contains(&record.snapshot_id)
                };
                return Ok(records.into_iter().filter(lives).collect());
            }
            marked_before = marked;
        }
    }

    /// Counts a deletion, after its snapshot was marked and before anything of it is removed.
    pub(crate) async fn count_deletion(&self) -> Result<(), SnapshotError> {
        let path = Path::from(names::DELETIONS);
        loop {
            let Some(stored) = self.records.load::<DeletionsRecord>(&path).await? else {
                // Not created: somebody else's first count, which is not ours.
                if self.records.create(&path, &DeletionsRecord { count: 1 }).await? {
                    return Ok(());
                }
                continue;
            };
            let counted = DeletionsRecord { count: stored.value.count.wrapping_add(1) };
            if self.records.replace(&path, &stored, counted).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn deletions(&self) -> Result<u64, SnapshotError> {
        let stored = self.records.load::<DeletionsRecord>(&Path::from(names::DELETIONS)).await?;
        Ok(stored.map_or(0, |stored| stored.value.count))
    }
}
