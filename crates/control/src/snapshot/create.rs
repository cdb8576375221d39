//! CreateSnapshot: a point in time of a volume, attached or not, into the repository (ebs.md A.5, A.6). No call of a key
//! service: blocks are stored as the volume stores them, and the snapshot has the volume's wrapped key.
//!
//! In this order: (1) the snapshots that it could build upon are looked up; (2) the volume is frozen, which is the instant;
//! (3) the pending record is written; (4) blocks and index; (5) the completed record; (6) the volume's block map notes what changed
//! since. Killed before (3), nothing is left; before (5), a pending snapshot, to be taken up or deleted; before (6), the next
//! snapshot looks at more blocks than it had to.

use std::time::Duration;

use sealblk_snapshot::{
    NewSnapshot, Progress, Repository, Snapshot, SnapshotError, SnapshotRecord, State, Stop, UploadOptions,
};
use sealblk_volume::{AccountId, Encryption, SnapshotId, VolumeId, VolumeRecord};

use super::describe::SnapshotDescription;
use super::error::SnapshotOperationError;
use super::frozen_source::FrozenSource;
use super::metadata::{SnapshotEncryption, SnapshotMetadata, XtsSnapshot};
use super::survey::{StreamSource, Survey};
use crate::block_stream::BlockStream;
use crate::error::ControlError;
use crate::freezing::FreezeRequest;
use crate::offline;
use crate::pool::Pool;

/// Blocks on their way at the same time: so much memory, times 512 KiB, on either side.
const PARALLEL: usize = 16;
/// How many snapshots are named to the process that serves a volume; the newest.
const MOST_PARENTS: usize = 64;
/// How long the process that has the blocks may take for one: storage that hangs is an error in the end.
const BLOCK_TIME: Duration = Duration::from_secs(300);
/// How soon a request to stop is noticed while a store does not answer.
const LOOK_FOR_STOP: Duration = Duration::from_millis(100);

/// What CreateSnapshot is asked for.
#[derive(Clone, Debug)]
pub struct CreateSnapshot {
    /// The volume.
    pub volume: VolumeId,
    /// What is to be known of it.
    pub description: String,
    /// Go on with this one, which was interrupted; its description stays. If the volume may have changed since, what is new is
    /// the instant: that of the resumption.
    pub resume: Option<SnapshotId>,
}

/// What happens while a snapshot is made.
#[derive(Clone, Copy, Debug)]
pub enum SnapshotEvent {
    /// Its record is there: whatever happens now, it can be gone on with.
    Begun(SnapshotId),
    /// So far it is.
    Progress(Progress),
}

/// What a snapshot is to be.
struct Plan {
    id: SnapshotId,
    /// What it could build upon, the best first. Of one that was begun, what it does build upon.
    parents: Vec<SnapshotId>,
    begun: Option<SnapshotRecord>,
}

impl Pool {
    /// Makes a snapshot of a volume as it is now, and returns when it is completed. What was written and acknowledged before
    /// the call is in it, and nothing that is written after [`SnapshotEvent::Begun`] was told.
    ///
    /// Blocks, and must not be called from within a runtime. After `stop` was requested, or on an error behind `Begun`, the snapshot is
    /// pending: `SnapshotOperationError::Interrupted`.
    pub fn create_snapshot(
        &self,
        request: &CreateSnapshot,
        stop: &Stop,
        events: &dyn Fn(SnapshotEvent),
    ) -> Result<SnapshotDescription, ControlError> {
        let volume = request.volume;
        let (_, record) = self.load(volume)?;
        let plan = offline::run(self.plan(request, &record))??;
        if let Some(begun) = plan.begun.as_ref().filter(|begun| begun.state == State::Completed) {
            return Ok(self.describe(begun, begun.metadata()?));
        }
        let freeze = FreezeRequest { snapshot_id: plan.id, onto: plan.parents.clone() };
        let FrozenSource { stream, base, unchanged, own } =
            self.freeze_volume(volume, &freeze, plan.begun.is_some())?;
        let failed = |source| ControlError::from(SnapshotOperationError::Stream { volume, source });
        // A store that hangs must not keep who was asked to stop, or was given up.
        let made = offline::run_and_leave(async {
            let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
            let stream = BlockStream::open(stream.map_err(failed)?, BLOCK_TIME).await.map_err(failed)?;
            let making = Making { pool: self, request, plan, base, unchanged, attached: own.is_none() };
            making.run(stream, stop, events).await
        });
        // Of a snapshot that is complete, a map that was not written costs time and nothing else.
        let ended = own.map_or(Ok(()), |own| own.join());
        let made = made??;
        let _ = ended;
        Ok(self.describe(&made, made.metadata()?))
    }

    /// Looks up what the snapshot could build upon, or what was begun of it.
    async fn plan(&self, request: &CreateSnapshot, volume: &VolumeRecord) -> Result<Plan, ControlError> {
        let repository = self.repository.open().await?;
        // What an interrupted deletion left is not this snapshot's business if it cannot be removed now.
        let _ = repository.finish_deletions().await;
        if let Some(id) = request.resume {
            let begun = repository.record(id).await?;
            self.require_owned(id, &begun.metadata()?)?;
            let begun = resumable(begun, volume)?;
            let parents = begun.parent.iter().map(|parent| parent.snapshot_id).collect();
            return Ok(Plan { id, parents, begun: Some(begun) });
        }
        let id = SnapshotId::generate().map_err(|error| ControlError::Random(error.into()))?;
        let mut found: Vec<SnapshotRecord> = repository.snapshots().await?;
        found.retain(|snapshot| can_build_upon(snapshot, volume));
        // The newest of the volume itself, and last the one that it was made from.
        let own = |snapshot: &SnapshotRecord| Some(snapshot.snapshot_id) != volume.snapshot_id;
        found.sort_by_key(|snapshot| std::cmp::Reverse((own(snapshot), snapshot.start_time)));
        let parents = found.iter().map(|snapshot| snapshot.snapshot_id).take(MOST_PARENTS).collect();
        Ok(Plan { id, parents, begun: None })
    }
}

/// Whether a snapshot shares the volume's blocks: it is of this volume, or the one that this was made from, and under the same
/// data key, or both are not encrypted. Their hashes decide about each block; this only chooses where to look.
fn can_build_upon(snapshot: &SnapshotRecord, volume: &VolumeRecord) -> bool {
    let Ok(metadata) = snapshot.metadata::<SnapshotMetadata>() else { return false };
    let of_volume = metadata.volume_id == volume.volume_id && metadata.copied_from.is_none();
    snapshot.state == State::Completed
        && (of_volume || Some(snapshot.snapshot_id) == volume.snapshot_id)
        && snapshot.volume_size_bytes <= volume.size_bytes.bytes()
        && is_stored_alike(&metadata.encryption, &volume.encryption)
}

fn is_stored_alike(snapshot: &SnapshotEncryption, volume: &Encryption) -> bool {
    match (snapshot, volume) {
        (SnapshotEncryption::Plain {}, Encryption::Plain {}) => true,
        (SnapshotEncryption::Aes256Xts(snapshot), Encryption::Aes256Xts(volume)) => {
            let checks = snapshot.key_check.as_deref().zip(volume.key_check());
            snapshot.lineage == volume.lineage && checks.is_none_or(|(one, other)| one == other)
        }
        _ => false,
    }
}

/// A snapshot that was begun of this volume.
fn resumable(begun: SnapshotRecord, volume: &VolumeRecord) -> Result<SnapshotRecord, ControlError> {
    let (id, of) = (begun.snapshot_id, volume.volume_id);
    let metadata: SnapshotMetadata = begun.metadata()?;
    if metadata.volume_id != of {
        return Err(SnapshotOperationError::OtherVolume { id, volume: of, found: metadata.volume_id }.into());
    }
    if !is_stored_alike(&metadata.encryption, &volume.encryption) || metadata.copied_from.is_some() {
        return Err(SnapshotOperationError::Outdated { id, volume: of }.into());
    }
    match begun.state {
        State::Pending | State::Completed => Ok(begun),
        state => Err(SnapshotError::WrongState { id, state }.into()),
    }
}

/// A snapshot's metadata: the volume's encryption as it is, its wrapped keys with it. There is no other.
fn metadata_of(volume: &VolumeRecord, owner: &AccountId, description: &str) -> SnapshotMetadata {
    let encryption = match &volume.encryption {
        Encryption::Plain {} => SnapshotEncryption::Plain {},
        Encryption::Aes256Xts(xts) => SnapshotEncryption::Aes256Xts(Box::new(XtsSnapshot {
            kms_key_id: xts.kms_key_id.clone(),
            wrapped_key: xts.wrapped_key.clone(),
            recovery_keys: xts.recovery_keys.clone(),
            encryption_context_id: volume.volume_id.to_string(),
            lineage: xts.lineage,
            key_check: xts.key_check().cloned().map(Box::new),
        })),
    };
    SnapshotMetadata {
        owner_id: owner.clone(),
        volume_id: volume.volume_id,
        description: description.to_owned(),
        encryption,
        copied_from: None,
        shared_with: Vec::new(),
        public: false,
    }
}

/// A snapshot of a volume that is frozen.
struct Making<'a> {
    pool: &'a Pool,
    request: &'a CreateSnapshot,
    plan: Plan,
    base: Option<SnapshotId>,
    unchanged: bool,
    attached: bool,
}

impl Making<'_> {
    async fn run(
        self,
        stream: BlockStream,
        stop: &Stop,
        events: &dyn Fn(SnapshotEvent),
    ) -> Result<SnapshotRecord, ControlError> {
        let (id, volume) = (self.plan.id, self.request.volume);
        let repository = self.pool.repository.open().await?;
        // As it was when the volume was frozen, or later: what of it can change, a snapshot may have in either way.
        let (_, record) = self.pool.load(volume)?;
        let parent = self.begin(&repository, &record, stream.size_bytes()).await?;
        events(SnapshotEvent::Begun(id));
        let upload = self.upload(&repository, &record, &stream, parent, stop, events);
        let made = tokio::select! {
            made = upload => made,
            () = requested(stop) => Err(SnapshotError::Stopped.into()),
        };
        let made = made.map_err(|source| SnapshotOperationError::Interrupted {
            id,
            volume,
            source: Box::new(source),
        })?;
        // The snapshot is complete. Whether the volume notes it decides what the next one has to look at.
        let _ = stream.complete().await;
        Ok(made)
    }

    /// Writes the pending record, or sees that the one there is of this volume still; the parent.
    async fn begin(
        &self,
        repository: &Repository,
        record: &VolumeRecord,
        size_bytes: u64,
    ) -> Result<Option<SnapshotId>, ControlError> {
        let (id, volume) = (self.plan.id, self.request.volume);
        if let Some(begun) = &self.plan.begun {
            if begun.volume_size_bytes != size_bytes {
                return Err(SnapshotOperationError::Outdated { id, volume }.into());
            }
            return Ok(begun.parent.map(|parent| parent.snapshot_id));
        }
        let parent = self.base.or(self.plan.parents.first().copied());
        let owner = self.pool.account();
        let metadata = metadata_of(record, owner, &self.request.description);
        let new = NewSnapshot { id, volume_size_bytes: size_bytes, parent, metadata: &metadata };
        repository.begin(new).await?;
        Ok(parent)
    }

    async fn upload(
        &self,
        repository: &Repository,
        record: &VolumeRecord,
        stream: &BlockStream,
        parent: Option<SnapshotId>,
        stop: &Stop,
        events: &dyn Fn(SnapshotEvent),
    ) -> Result<SnapshotRecord, ControlError> {
        let volume = self.request.volume;
        let failed = |source| SnapshotOperationError::Stream { volume, source };
        let survey = Survey::take(stream, self.base, parent).await.map_err(failed)?;
        let source = StreamSource {
            stream,
            survey: &survey,
            origin: self.origin(repository, record).await,
            attached: self.attached,
            volume,
        };
        let progress = |progress| events(SnapshotEvent::Progress(progress));
        let options =
            UploadOptions { parallel: PARALLEL, same_source: self.unchanged, progress: &progress, stop };
        let uploaded = repository.upload(self.plan.id, &source, &survey.changed, options).await;
        uploaded.map_err(|error| match error {
            SnapshotError::Caller { source, .. } if source.is::<SnapshotOperationError>() => {
                let source = source.downcast::<SnapshotOperationError>();
                (*source.expect("it was looked at")).into()
            }
            error => error.into(),
        })
    }

    /// The snapshot that the volume was made from, if it is here and holds what the volume's blocks hold that are not restored.
    async fn origin(&self, repository: &Repository, record: &VolumeRecord) -> Option<Snapshot> {
        let origin = repository.snapshot(record.snapshot_id?).await.ok()?;
        let metadata: SnapshotMetadata = origin.record().metadata().ok()?;
        is_stored_alike(&metadata.encryption, &record.encryption).then_some(origin)
    }
}

/// Returns once `stop` was requested.
async fn requested(stop: &Stop) {
    while !stop.is_requested() {
        tokio::time::sleep(LOOK_FOR_STOP).await;
    }
}
