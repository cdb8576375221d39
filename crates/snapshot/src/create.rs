//! Making a snapshot: begin, upload, complete.
//!
//! [`Repository::begin`] writes a pending record; [`Repository::upload`] writes blocks, then the leaf pages over them, then
//! the pages above, then the completed record: each is durable before what refers to it, so a snapshot is whole or
//! pending. A pending one is taken up again by calling `upload` again; what is there already is not written again.

use jiff::Timestamp;
use sealblk_record::SnapshotId;
use serde::Serialize;

use crate::error::SnapshotError;
use crate::exclusion::Stored;
use crate::geometry::MAX_VOLUME_BYTES;
use crate::names;
use crate::record::{Parent, SnapshotRecord, State};
use crate::repository::{Repository, to_value};
use crate::source::{BlockSource, Changed};
use crate::task::{Progress, Stop};
use crate::upload::Upload;

/// A snapshot to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewSnapshot<'a, M> {
    /// Its identifier: a new one.
    pub id: SnapshotId,
    /// Size of its volume, at most [`MAX_VOLUME_BYTES`]. Not less than the parent's.
    pub volume_size_bytes: u64,
    /// The completed snapshot whose blocks it shares where they are the same: the last of the lineage, under the same
    /// data key.
    pub parent: Option<SnapshotId>,
    /// What the caller wants to be known of it.
    pub metadata: &'a M,
}

/// How a snapshot is uploaded.
#[derive(Clone, Copy)]
pub struct UploadOptions<'a> {
    /// Blocks read, hashed and written at the same time: the bound of memory, 512 KiB each.
    pub parallel: usize,
    /// An earlier attempt, if there was one, had a source of the same content: then leaves it finished are not read again.
    /// Else everything is read again, and only what is there already is not written again.
    pub same_source: bool,
    /// Called after each block.
    pub progress: &'a dyn Fn(Progress),
    /// Asks it to stop.
    pub stop: &'a Stop,
}

impl std::fmt::Debug for UploadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadOptions")
            .field("parallel", &self.parallel)
            .field("same_source", &self.same_source)
            .finish_non_exhaustive()
    }
}

impl Repository {
    /// Writes the record of a new snapshot, `pending`. From here on the parent's blocks stay: if it is deleted, it is closed
    /// at once and gone when this snapshot is completed or deleted.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`]; [`SnapshotError::NotFound`], [`SnapshotError::WrongState`]: of the parent;
    /// [`SnapshotError::InvalidRequest`]: the sizes; [`SnapshotError::Metadata`], [`SnapshotError::Store`]. There is no record
    /// then, or (after a failure of the store) one that holds nothing and can be deleted.
    pub async fn begin<M: Serialize>(
        &self,
        new: NewSnapshot<'_, M>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let record = self.new_record(&new).await?;
        let path = names::record(new.id);
        if !self.records.create(&path, &record).await? {
            return Err(SnapshotError::Exists { id: new.id });
        }
        if record.parent.is_none() {
            return Ok(record);
        }
        // A deletion of the parent that began before the record was there may not have seen it.
        let pinned = self.pin(self.stored(new.id).await?).await;
        if let Err(SnapshotError::NotFound { .. } | SnapshotError::WrongState { .. }) = &pinned {
            self.records.remove(&path).await?;
            self.let_parent_go(&record).await?;
        }
        Ok(pinned?.value)
    }

    async fn new_record<M: Serialize>(
        &self,
        new: &NewSnapshot<'_, M>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let invalid = |reason: String| Err(SnapshotError::InvalidRequest { reason });
        let size = new.volume_size_bytes;
        if size == 0 || size > MAX_VOLUME_BYTES {
            return invalid(format!("a snapshot cannot be of a volume of {size} bytes"));
        }
        let mut parent = None;
        let mut family = new.id;
        if let Some(id) = new.parent {
            let found = self.record(id).await?;
            if found.state != State::Completed {
                return Err(SnapshotError::WrongState { id, state: found.state });
            }
            if found.volume_size_bytes > size {
                let parent_size = found.volume_size_bytes;
                return invalid(format!("{id} is of a larger volume: {parent_size} bytes, not {size}"));
            }
            family = found.family;
            let (root, volume_size_bytes) = (found.root, found.volume_size_bytes);
            parent = Some(Parent { snapshot_id: id, root, volume_size_bytes, pinned: false });
        }
        Ok(SnapshotRecord {
            snapshot_id: new.id,
            state: State::Pending,
            state_message: None,
            start_time: Timestamp::now(),
            completion_time: None,
            volume_size_bytes: size,
            family,
            parent,
            root: None,
            blocks_total: 0,
            blocks_done: 0,
            changed_blocks: 0,
            attempt: 0,
            attempt_nonce: None,
            metadata: to_value(new.id, new.metadata)?,
        })
    }

    /// Makes sure that no deletion misses that a pending snapshot needs its parent: the parent is seen undeleted while
    /// the record is there.
    pub(crate) async fn pin(
        &self,
        stored: Stored<SnapshotRecord>,
    ) -> Result<Stored<SnapshotRecord>, SnapshotError> {
        let Some(parent) = stored.value.parent.filter(|parent| !parent.pinned) else { return Ok(stored) };
        let id = parent.snapshot_id;
        match self.record(id).await?.state {
            State::Completed => {
                self.update(stored.value.snapshot_id, |record| {
                    if let Some(parent) = &mut record.parent {
                        parent.pinned = true;
                    }
                    Ok(())
                })
                .await
            }
            state => Err(SnapshotError::WrongState { id, state }),
        }
    }

    /// Uploads what a pending snapshot needs of `source` and completes it. A completed one is returned as it is.
    ///
    /// Memory: 512 KiB for each of [`UploadOptions::parallel`], some 150 bytes for each run of 1024 blocks that has changed or
    /// has data, a few MiB of index pages. Only one process may do it at a time: whoever comes later takes over, and
    /// the earlier stops with [`SnapshotError::Superseded`].
    ///
    /// # Errors
    /// [`SnapshotError::Caller`]: the source failed; [`SnapshotError::Stopped`], [`SnapshotError::Store`],
    /// [`SnapshotError::Superseded`]: the snapshot is pending still and `upload` may be called again.
    /// [`SnapshotError::WrongState`], [`SnapshotError::NotFound`]: it was given up or is being deleted.
    pub async fn upload<S: BlockSource>(
        &self,
        id: SnapshotId,
        source: &S,
        changed: &Changed,
        options: UploadOptions<'_>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let stored = self.stored(id).await?;
        if stored.value.state == State::Completed {
            return Ok(stored.value);
        }
        self.pin(stored).await?;
        let claimed = self.claim(id).await?;
        Upload::new(self, claimed, source, options).run(changed).await
    }

    /// Begins an attempt: any earlier one can no longer complete the snapshot.
    async fn claim(&self, id: SnapshotId) -> Result<Stored<SnapshotRecord>, SnapshotError> {
        // The kernel's random source does not fail after boot; a nonce of zeros only weakens telling attempts apart.
        let mut nonce = [0; 8];
        let _ = getrandom::fill(&mut nonce);
        let nonce = format!("{:016x}", u64::from_be_bytes(nonce));
        self.update(id, |record| match record.state {
            State::Pending => {
                record.attempt = record.attempt.saturating_add(1);
                record.attempt_nonce = Some(nonce.clone());
                Ok(())
            }
            state => Err(SnapshotError::WrongState { id, state }),
        })
        .await
    }
}
