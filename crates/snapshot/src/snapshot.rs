//! A completed snapshot, read: blocks by number, which blocks have data, what changed since another one.

use std::future::Future;

use bytes::Bytes;
use futures_util::StreamExt as _;
use sealblk_record::SnapshotId;

use crate::block_set::BlockSet;
use crate::error::{Cause, SnapshotError};
use crate::geometry::{block_bytes, block_count};
use crate::record::SnapshotRecord;
use crate::task::Stop;
use crate::tree::Tree;

/// A block of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Block {
    /// All bytes are zero; nothing is stored.
    Zero,
    /// The bytes: as many as the block has in the snapshot's volume (512 KiB, fewer in an odd last block).
    Data(Bytes),
}

/// A completed snapshot, open for reading. Cheap to clone; its future calls may run in parallel.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(crate) tree: Tree,
    record: SnapshotRecord,
}

impl Snapshot {
    pub(crate) fn new(tree: Tree, record: SnapshotRecord) -> Self {
        Self { tree, record }
    }

    /// The snapshot's identifier.
    pub fn id(&self) -> SnapshotId {
        self.record.snapshot_id
    }

    /// Its record, as it was when the snapshot was opened.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// Blocks of its volume, with data or not.
    pub fn block_count(&self) -> u64 {
        block_count(self.record.volume_size_bytes)
    }

    /// Block `index`, checked against its hash. A block behind the volume's end is zeros: a larger volume may be made of a
    /// snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`]: the block or an index page above it is gone or not what was written; it names snapshot,
    /// block and object. [`SnapshotError::Store`].
    pub async fn read_block(&self, index: u64) -> Result<Block, SnapshotError> {
        let length = block_bytes(self.record.volume_size_bytes, index);
        if length == 0 {
            return Ok(Block::Zero);
        }
        match self.tree.block(index).await? {
            None => Ok(Block::Zero),
            Some(reference) => {
                let objects = &self.tree.objects;
                objects.block(self.id(), index, length, &reference).await.map(Block::Data)
            }
        }
    }

    /// The blocks that have data; [`BlockSet::iter`] gives them in order. Reads the whole index, no block.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    pub async fn data_blocks(&self) -> Result<BlockSet, SnapshotError> {
        self.tree.data().await
    }

    /// The blocks in which this snapshot and `other` differ; of two of one lineage it reads only the index pages that they
    /// do not share, no block.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block); of either snapshot.
    pub async fn changed_blocks(&self, other: &Self) -> Result<BlockSet, SnapshotError> {
        let mut blocks = self.tree.difference(&other.tree).await?;
        let (ours, theirs) = (self.record.volume_size_bytes, other.record.volume_size_bytes);
        if ours != theirs {
            // The last block of the smaller one has fewer bytes there: zeros may follow, and a block of zeros has no hash.
            blocks.extend(block_count(ours.min(theirs)).checked_sub(1));
        }
        Ok(blocks)
    }

    /// Reads `blocks` in ascending order, `parallel` at once, and hands each that has data to `sink` as it comes: not
    /// necessarily in order. Memory: 512 KiB for each of `parallel`.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block); [`SnapshotError::Caller`]: the sink failed; [`SnapshotError::Stopped`].
    pub async fn fetch<F>(
        &self,
        blocks: &BlockSet,
        parallel: usize,
        stop: &Stop,
        sink: impl Fn(u64, Bytes) -> F,
    ) -> Result<(), SnapshotError>
    where
        F: Future<Output = Result<(), Cause>>,
    {
        let sink = &sink;
        let reads = blocks.iter().map(|index| async move {
            stop.check()?;
            match self.read_block(index).await? {
                Block::Zero => Ok(()),
                Block::Data(bytes) => {
                    let written = sink(index, bytes).await;
                    written.map_err(|source| SnapshotError::of_caller("writing", index, source))
                }
            }
        });
        let mut done = futures_util::stream::iter(reads).buffer_unordered(parallel.max(1));
        while let Some(result) = done.next().await {
            result?;
        }
        Ok(())
    }
}
