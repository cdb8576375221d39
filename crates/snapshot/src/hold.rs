//! Holds: whoever must be able to finish reading a snapshot says so, and a deletion waits for it.

use jiff::Timestamp;
use object_store::path::Path;
use sealblk_record::SnapshotId;

use crate::delete::Deletion;
use crate::error::SnapshotError;
use crate::names;
use crate::record::{HoldRecord, State};
use crate::repository::Repository;
use crate::snapshot::Snapshot;

/// The longest name of a holder.
const MAX_HOLDER: usize = 64;

impl Repository {
    /// Opens a completed snapshot and keeps its objects until [`release`](Self::release), even if it is deleted meanwhile.
    ///
    /// A hold is a durable record and does not expire: it belongs to something that survives a crash of its process, a
    /// volume that is being restored or a copy that is being made, and has that thing's name. Holding again under the
    /// same name opens it again, also while the snapshot is being deleted: so whoever comes back after a crash goes on.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`]; [`SnapshotError::WrongState`]: it is not completed, or is being deleted and was not
    /// held; there is no hold then. [`SnapshotError::InvalidRequest`]: `holder` is not 1 to 64 of `a-z`, `0-9` and `-`.
    /// [`SnapshotError::Store`]: there may be a hold.
    pub async fn hold(&self, id: SnapshotId, holder: &str) -> Result<Snapshot, SnapshotError> {
        let usual = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if holder.is_empty() || holder.len() > MAX_HOLDER || !holder.bytes().all(usual) {
            let reason = format!("\"{}\" cannot be the name of a hold", holder.escape_debug());
            return Err(SnapshotError::InvalidRequest { reason });
        }
        let path = names::hold(id, holder);
        if self.records.load::<HoldRecord>(&path).await?.is_some() {
            match self.record(id).await {
                // What an earlier process could not take back.
                Err(SnapshotError::NotFound { .. }) => {}
                record => {
                    let record = record?;
                    if record.was_completed() {
                        return Ok(Snapshot::new(self.tree(&record), record));
                    }
                }
            }
        }
        let record = HoldRecord { snapshot_id: id, holder: holder.to_owned(), since: Timestamp::now() };
        // Not created: the same holder, twice at once.
        self.records.create(&path, &record).await?;
        // First the hold, then the look: a deletion marks first and then looks for holds, so one sees the other.
        let refused = match self.record(id).await {
            Ok(record) if record.state == State::Completed => {
                return Ok(Snapshot::new(self.tree(&record), record));
            }
            Ok(record) => SnapshotError::WrongState { id, state: record.state },
            Err(error @ SnapshotError::NotFound { .. }) => error,
            Err(error) => return Err(error),
        };
        self.records.remove(&path).await?;
        Err(refused)
    }

    /// Takes a hold back; nothing happens if there is none. If the snapshot is being deleted and this was the last hold, the
    /// deletion is finished: what it did is returned.
    ///
    /// # Errors
    /// [`SnapshotError::Store`] and those of [`delete`](Self::delete): the hold is gone or not; calling again is right.
    pub async fn release(&self, id: SnapshotId, holder: &str) -> Result<Option<Deletion>, SnapshotError> {
        self.records.remove(&names::hold(id, holder)).await?;
        match self.record(id).await {
            Ok(record) if record.state == State::Deleting => self.delete(id).await.map(Some),
            Ok(_) | Err(SnapshotError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who holds a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Store`].
    pub async fn holders(&self, id: SnapshotId) -> Result<Vec<String>, SnapshotError> {
        let mut holders = self.all_holds().await?;
        holders.retain(|(snapshot, _)| *snapshot == id);
        Ok(holders.into_iter().map(|(_, holder)| holder).collect())
    }

    /// All holds there are: few, one for each restore and copy in progress.
    pub(crate) async fn all_holds(&self) -> Result<Vec<(SnapshotId, String)>, SnapshotError> {
        let listed = self.objects.list(&Path::from(names::HOLDS)).await?;
        Ok(listed.iter().filter_map(|object| names::parse_hold(&object.location)).collect())
    }
}
