//! CopySnapshot: a snapshot made of another one, in this pool's repository or from another's, under the key that the
//! outcome rule says (ebs.md A.4, B.2).
//!
//! What can be refused is refused before anything is stored. From the pending record on, which carries the copy's wrapped data
//! key, the copy can be taken up again by anybody who may use the keys; it is complete when its record says so. An
//! encrypted copy has a data key of its own, also under its source's key; only a later copy of the same lineage under the
//! same key shares that of the earlier one, and moves only what changed since.

mod error;
mod explain;
mod grants;
mod plan;
mod unlock;

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use sealblk_snapshot::{
    BLOCK_BYTES, Cause, EarlierCopy, NewCopy, NewSnapshot, Progress, Repository, SnapshotError,
    SnapshotRecord, State, Stop, Transform, Unchanged, UploadOptions,
};
use sealblk_volume::SnapshotId;
use serde::Serialize;

pub use self::error::CopyError;
pub use self::explain::CopyExplanation;
pub(crate) use self::grants::retire_left_grants;
use self::plan::Plan;
use super::describe::SnapshotDescription;
use super::metadata::SnapshotMetadata;
use super::place::{RepositoryName, RepositoryPlace};
use super::reencrypt::Reencryption;
use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;

/// Blocks read, re-encrypted and written at the same time: 512 KiB of memory each.
const PARALLEL: usize = 8;

/// What CopySnapshot is asked for.
#[derive(Clone, Debug)]
pub struct CopySnapshot {
    /// The snapshot to copy.
    pub source: SnapshotId,
    /// `Encrypted`, if given.
    pub encrypted: Option<bool>,
    /// `KmsKeyId`, if given: id, ARN or alias, of the pool that the copy is made in.
    pub kms_key_id: Option<String>,
    /// What is to be said of the copy; it does not take over its source's.
    pub description: String,
}

/// What the caller of a long copy hears of it, and how it asks it to stop.
pub struct CopyRun<'a> {
    /// Told the copy's id as soon as there is something to take up again.
    pub begun: &'a dyn Fn(SnapshotId),
    /// Told how many of how many bytes are done.
    pub progress: &'a dyn Fn(u64, u64),
    /// Asks it to stop: it ends with an error, and is pending.
    pub stop: &'a Stop,
}

/// A copy that is complete.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CopiedSnapshot {
    /// The copy.
    #[serde(flatten)]
    pub snapshot: SnapshotDescription,
    /// Bytes of blocks that were written for it, by this call.
    pub transferred_bytes: u64,
    /// Whether it builds on something that was there: an earlier copy, or in one repository an unencrypted source.
    pub incremental: bool,
}

impl Pool {
    /// Copies a snapshot of `from` (this pool, or another with the key service that the source's key is of) into this
    /// pool's repository. The source is held while it is copied, and not changed.
    ///
    /// Blocks. On an error before [`CopyRun::begun`] is called nothing is stored, afterwards the copy is pending and
    /// [`Self::resume_copy`] goes on, unless its source is gone: then there is no copy either.
    pub fn copy_snapshot(
        &self,
        from: &Self,
        request: &CopySnapshot,
        run: &CopyRun<'_>,
    ) -> Result<CopiedSnapshot, ControlError> {
        [self, from].into_iter().try_for_each(retire_left_grants)?;
        offline::run(async {
            let sites = Sites::open(self, from, &from.repository).await?;
            let plan = sites.plan(request).await?;
            sites.begin(&plan).await?;
            (run.begun)(plan.id);
            match sites.make(&plan, run).await {
                Err(ControlError::Snapshot(error)) if is_gone(&error, plan.source) => {
                    // Deleted between the look at it and the hold on it.
                    sites.destination.delete(plan.id).await?;
                    Err(ControlError::Snapshot(error))
                }
                made => made,
            }
        })?
    }

    /// Goes on with a copy that was interrupted; of a complete one it only sees to it that its source is held no more.
    /// `from` is the pool that it is copied from; `None`: this one, with the repository that the copy's record names.
    ///
    /// If the source is gone, the copy's state is `error` from then on.
    pub fn resume_copy(
        &self,
        from: Option<&Self>,
        copy: SnapshotId,
        run: &CopyRun<'_>,
    ) -> Result<CopiedSnapshot, ControlError> {
        [self, from.unwrap_or(self)].into_iter().try_for_each(retire_left_grants)?;
        offline::run(async {
            let recorded = self.recorded_source(copy).await?;
            let (from, place) = from.map_or((self, &recorded), |from| (from, &from.repository));
            let sites = Sites::open(self, from, place).await?;
            let record = sites.destination.record(copy).await?;
            if record.state == State::Completed {
                return sites.finished(&record).await;
            }
            let plan = sites.plan_again(record).await?;
            (run.begun)(copy);
            let made = sites.make(&plan, run).await;
            if let Err(ControlError::Snapshot(error)) = &made
                && is_gone(error, plan.source)
            {
                sites.destination.fail(copy, "Source snapshot is not found").await?;
            }
            made
        })?
    }

    /// Releases what a copy that is given up holds of its sources, and stops whoever still makes it: before its record is
    /// deleted, which nobody can take up any more then. Of what is no copy, or complete, nothing is held.
    pub fn give_up_copy(&self, copy: SnapshotId) -> Result<(), ControlError> {
        offline::run(async {
            let destination = self.repository.open().await?;
            let record = destination.record(copy).await?;
            let metadata: SnapshotMetadata = record.metadata()?;
            self.require_owned(copy, &metadata)?;
            let Some(from) = metadata.copied_from else { return Ok(()) };
            if record.state == State::Pending {
                destination.fail(copy, "the copy was given up").await?;
            }
            let origin = match &from.repository {
                None => destination.clone(),
                Some(place) => self.named(place.clone())?.open().await?,
            };
            let earlier = earlier_source(&destination, &record).await;
            Ok(origin.end_copy(copy, from.snapshot_id, earlier).await?)
        })?
    }

    /// A repository that a record names.
    fn named(&self, name: RepositoryName) -> Result<RepositoryPlace, ControlError> {
        RepositoryPlace::named(name, self.store_environment.clone())
    }

    /// Where the record of a copy says that its source is.
    async fn recorded_source(&self, copy: SnapshotId) -> Result<RepositoryPlace, ControlError> {
        let record = self.repository.open().await?.record(copy).await?;
        let metadata: SnapshotMetadata = record.metadata()?;
        let from = metadata.copied_from.ok_or(CopyError::NotACopy { id: copy })?;
        from.repository.map_or_else(|| Ok(self.repository.clone()), |name| self.named(name))
    }
}

/// What the earlier copy that `record` builds on was made of.
async fn earlier_source(destination: &Repository, record: &SnapshotRecord) -> Option<SnapshotId> {
    let parent = destination.record(record.parent?.snapshot_id).await.ok()?;
    Some(parent.metadata::<SnapshotMetadata>().ok()?.copied_from?.snapshot_id)
}

/// Whether an error says that there is no `id` to read any more.
fn is_gone(error: &SnapshotError, id: SnapshotId) -> bool {
    matches!(error, SnapshotError::NotFound { id: of } | SnapshotError::WrongState { id: of, .. } if *of == id)
}

/// Both ends of a copy.
struct Sites<'a> {
    into: &'a Pool,
    from: &'a Pool,
    /// The repository that the copy is made in.
    destination: Repository,
    /// The repository that the source is in.
    origin: Repository,
    /// Where that is, unless it is the copy's own.
    elsewhere: Option<RepositoryName>,
}

impl<'a> Sites<'a> {
    async fn open(into: &'a Pool, from: &'a Pool, place: &RepositoryPlace) -> Result<Self, ControlError> {
        let same = place.location() == into.repository.location();
        let destination = into.repository.open().await?;
        let origin = if same { destination.clone() } else { place.open().await? };
        let elsewhere = (!same).then(|| place.name_for_others());
        Ok(Self { into, from, destination, origin, elsewhere })
    }

    /// Writes the pending record, before anything is held: a hold then always has a copy that can be given up.
    async fn begin(&self, plan: &Plan) -> Result<(), ControlError> {
        let earlier = plan.earlier.map(|earlier| earlier.copy);
        let parent = if self.duplicates(plan) { Some(plan.source) } else { earlier };
        let (id, metadata) = (plan.id, &plan.metadata);
        let volume_size_bytes = plan.volume_size_bytes;
        let begin = |parent| self.destination.begin(NewSnapshot { id, volume_size_bytes, parent, metadata });
        match begin(parent).await {
            Err(error) if earlier.is_some_and(|earlier| is_gone(&error, earlier)) => {
                begin(None).await?;
            }
            begun => drop(begun?),
        }
        Ok(())
    }

    /// Whether all there is to do is to give the same blocks a second name.
    fn duplicates(&self, plan: &Plan) -> bool {
        plan.work.is_none() && self.elsewhere.is_none()
    }

    /// Sees to it that a complete copy holds nothing.
    async fn finished(&self, record: &SnapshotRecord) -> Result<CopiedSnapshot, ControlError> {
        let metadata: SnapshotMetadata = record.metadata()?;
        self.into.require_owned(record.snapshot_id, &metadata)?;
        if let Some(from) = &metadata.copied_from {
            let earlier = earlier_source(&self.destination, record).await;
            self.origin.end_copy(record.snapshot_id, from.snapshot_id, earlier).await?;
        }
        let incremental = record.parent.is_some();
        Ok(CopiedSnapshot {
            snapshot: self.into.describe(record, metadata),
            transferred_bytes: 0,
            incremental,
        })
    }

    async fn make(&self, plan: &Plan, run: &CopyRun<'_>) -> Result<CopiedSnapshot, ControlError> {
        let written = Cell::new(0);
        let progress = |at: Progress| {
            written.set(at.bytes);
            (run.progress)(at.done.saturating_mul(BLOCK_BYTES), at.total.saturating_mul(BLOCK_BYTES));
        };
        let record = if self.duplicates(plan) {
            self.destination.duplicate(plan.source, plan.id, &plan.metadata).await?
        } else {
            let options =
                UploadOptions { parallel: PARALLEL, same_source: true, progress: &progress, stop: run.stop };
            match &plan.work {
                None => self.copy(plan, &Unchanged, options).await?,
                Some(work) => self.copy(plan, &Reencrypting(Arc::clone(work)), options).await?,
            }
        };
        Ok(CopiedSnapshot {
            snapshot: self.into.describe(&record, record.metadata()?),
            transferred_bytes: written.get(),
            incremental: record.parent.is_some(),
        })
    }

    /// Without the earlier copy if its source is gone by now: all is read then, and what is the same is still shared.
    async fn copy<T: Transform>(
        &self,
        plan: &Plan,
        transform: &T,
        options: UploadOptions<'_>,
    ) -> Result<SnapshotRecord, ControlError> {
        let copy = |earlier: Option<EarlierCopy>| {
            let (source, id, metadata) = (plan.source, plan.id, &plan.metadata);
            self.destination.copy(&self.origin, NewCopy { source, id, transform, earlier, metadata }, options)
        };
        match copy(plan.earlier).await {
            Err(error) if plan.earlier.is_some_and(|earlier| is_gone(&error, earlier.source)) => {
                Ok(copy(None).await?)
            }
            made => Ok(made?),
        }
    }
}

/// Re-encryption of each block, on threads where it holds up nothing.
struct Reencrypting(Arc<Reencryption>);

impl Transform for Reencrypting {
    async fn transform(&self, index: u64, content: Bytes) -> Result<Bytes, Cause> {
        let work = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work.block(index, content)).await;
        Ok(done.expect("re-encryption does not panic")?)
    }
}
