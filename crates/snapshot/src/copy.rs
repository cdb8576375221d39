//! Copies: a snapshot made of another one, in the same repository or in another, each block as it is or transformed.

use std::ops::Range;

use bytes::Bytes;
use sealblk_record::SnapshotId;
use serde::Serialize;

use crate::block_set::BlockSet;
use crate::create::{NewSnapshot, UploadOptions};
use crate::error::{Cause, SnapshotError};
use crate::record::{SnapshotRecord, State};
use crate::repository::Repository;
use crate::snapshot::{Block, Snapshot};
use crate::source::{BlockSource, Changed};

/// What happens to a block on its way into a copy: re-encryption, which is the caller's.
#[allow(async_fn_in_trait, reason = "futures need not be Send, on purpose")]
pub trait Transform {
    /// What is stored in the place of block `index`: as many bytes, the same for the same bytes. Blocks of zeros are not
    /// given; they stay zeros. Up to [`UploadOptions::parallel`] calls are in progress at once.
    ///
    /// # Errors
    /// Any: the copy stops with [`SnapshotError::Caller`] and can be taken up again.
    async fn transform(&self, index: u64, content: Bytes) -> Result<Bytes, Cause>;
}

/// Blocks are copied as they are.
#[derive(Clone, Copy, Debug)]
pub struct Unchanged;

impl Transform for Unchanged {
    async fn transform(&self, _: u64, content: Bytes) -> Result<Bytes, Cause> {
        Ok(content)
    }
}

/// An earlier copy to build on: same lineage, same transform, both ends still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlierCopy {
    /// What was copied then, in the source repository.
    pub source: SnapshotId,
    /// The completed copy of it, in the destination.
    pub copy: SnapshotId,
}

/// A copy to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewCopy<'a, M, T> {
    /// The completed snapshot to copy.
    pub source: SnapshotId,
    /// The copy's identifier; taken up again if that copy is pending.
    pub id: SnapshotId,
    /// What happens to each block.
    pub transform: &'a T,
    /// Only what changed since then is read and written.
    pub earlier: Option<EarlierCopy>,
    /// What the caller wants to be known of the copy. Kept from the first time if the copy is taken up again.
    pub metadata: &'a M,
}

impl Repository {
    /// Makes a copy, in this repository, of a snapshot of `from`: complete, or with [`NewCopy::earlier`] incremental. A pending
    /// copy of the same identifier is taken up again; leaves it finished are not read again.
    ///
    /// The source, and the earlier source, are held under the copy's identifier while it is made, and released when it is
    /// complete. Whoever gives a copy up for good releases them: [`end_copy`](Self::end_copy).
    ///
    /// # Errors
    /// Those of [`begin`](Self::begin) and [`upload`](Self::upload) of the copy, of [`hold`](Self::hold) and of reading the source.
    pub async fn copy<M: Serialize, T: Transform>(
        &self,
        from: &Self,
        copy: NewCopy<'_, M, T>,
        options: UploadOptions<'_>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let earlier = copy.earlier.map(|earlier| earlier.source);
        match self.record(copy.id).await {
            Ok(record) if record.state == State::Completed => {
                from.end_copy(copy.id, copy.source, earlier).await?;
                return Ok(record);
            }
            Ok(_) | Err(SnapshotError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let holder = copy.id.to_string();
        let source = from.hold(copy.source, &holder).await?;
        let changed = match copy.earlier {
            None => Changed::Unknown,
            Some(earlier) => {
                let before = from.hold(earlier.source, &holder).await?;
                Changed::Only(source.changed_blocks(&before).await?)
            }
        };
        let new = NewSnapshot {
            id: copy.id,
            volume_size_bytes: source.record().volume_size_bytes,
            parent: copy.earlier.map(|earlier| earlier.copy),
            metadata: copy.metadata,
        };
        match self.begin(new).await {
            Ok(_) | Err(SnapshotError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        let data = source.data_blocks().await?;
        let blocks = Transformed { source, data, transform: copy.transform };
        let options = UploadOptions { same_source: true, ..options };
        let record = self.upload(copy.id, &blocks, &changed, options).await?;
        from.end_copy(copy.id, copy.source, earlier).await?;
        Ok(record)
    }

    /// Makes a snapshot of this repository that is another one under a new name: same blocks, nothing moved.
    ///
    /// # Errors
    /// Those of [`begin`](Self::begin) and [`upload`](Self::upload).
    pub async fn duplicate<M: Serialize>(
        &self,
        source: SnapshotId,
        id: SnapshotId,
        metadata: &M,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let volume_size_bytes = self.snapshot(source).await?.record().volume_size_bytes;
        match self.begin(NewSnapshot { id, volume_size_bytes, parent: Some(source), metadata }).await {
            Ok(_) | Err(SnapshotError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        let stop = crate::task::Stop::default();
        let options = UploadOptions { parallel: 1, same_source: true, progress: &|_| {}, stop: &stop };
        self.upload(id, &Nothing, &Changed::Only(BlockSet::new()), options).await
    }

    /// Releases what a copy holds of its sources, in their repository: after the copy was given up and deleted.
    ///
    /// # Errors
    /// As of [`release`](Self::release).
    pub async fn end_copy(
        &self,
        copy: SnapshotId,
        source: SnapshotId,
        earlier: Option<SnapshotId>,
    ) -> Result<(), SnapshotError> {
        let holder = copy.to_string();
        for held in std::iter::once(source).chain(earlier) {
            self.release(held, &holder).await?;
        }
        Ok(())
    }
}

/// A snapshot as the source of another one.
struct Transformed<'a, T> {
    source: Snapshot,
    data: BlockSet,
    transform: &'a T,
}

impl<T: Transform> BlockSource for Transformed<'_, T> {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        match self.source.read_block(index).await? {
            Block::Zero => Ok(vec![0; length].into()),
            Block::Data(content) => self.transform.transform(index, content).await,
        }
    }

    async fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Cause> {
        Ok(self.data.next_run(from))
    }
}

/// A source that nothing is read of.
struct Nothing;

impl BlockSource for Nothing {
    async fn read_block(&self, index: u64, _: usize) -> Result<Bytes, Cause> {
        Err(format!("block {index} is the parent's").into())
    }

    async fn next_data(&self, _: u64) -> Result<Option<Range<u64>>, Cause> {
        Ok(None)
    }
}
