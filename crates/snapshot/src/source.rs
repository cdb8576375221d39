//! What a snapshot is made from: the caller's blocks, and which of them changed.

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;

use crate::block_set::BlockSet;
use crate::error::Cause;

/// The blocks of a volume at one instant, as they are to be stored: ciphertext of an encrypted volume.
///
/// The future of a read need not be `Send`: everything runs on the task that called, which may be one of a current-thread
/// runtime beside an I/O lane. Up to [`UploadOptions::parallel`](crate::UploadOptions::parallel) reads are in flight at once.
#[allow(async_fn_in_trait, reason = "futures need not be Send, on purpose")]
pub trait BlockSource {
    /// Block `index` (of 512 KiB, from 0), exactly `length` bytes: less than 512 KiB only for the last block of a volume whose
    /// size is not a multiple of that. Called twice for one index it gives the same bytes.
    ///
    /// # Errors
    /// Any: the making stops with [`SnapshotError::Caller`](crate::SnapshotError::Caller) and can be taken up again.
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause>;

    /// The first run of blocks at or after `from` that may have data; `None`: all blocks from there on are zeros. What lies
    /// between runs is taken to be zeros and not read. Without an implementation every block may have data.
    ///
    /// # Errors
    /// As [`read_block`](Self::read_block).
    fn next_data(&self, from: u64) -> impl Future<Output = Result<Option<Range<u64>>, Cause>> {
        async move { Ok(Some(from..u64::MAX)) }
    }
}

impl<S: BlockSource + ?Sized> BlockSource for &S {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        (**self).read_block(index, length).await
    }

    async fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Cause> {
        (**self).next_data(from).await
    }
}

/// Which blocks may differ from the parent snapshot's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// These and no others: a dirty map that is known to be right. Others are not read; they are what they are in the parent.
    Only(BlockSet),
    /// Any: every block that may have data is read, and its hash compared with the parent's.
    Unknown,
}
