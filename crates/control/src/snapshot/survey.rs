//! What a frozen volume has to say before its blocks are read: which hold data, which have changed, and which are still to be
//! taken from the snapshot that the volume was made from. And the blocks, as the upload asks for them.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use sealblk_snapshot::{Block, BlockSet, BlockSource, Changed, Snapshot, block_count};
use sealblk_volume::{SnapshotId, VolumeId};

use super::error::SnapshotOperationError;
use crate::block_stream::{BlockStream, StreamedBlock};

/// What a block source may fail with.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// See the module's header.
pub(super) struct Survey {
    /// The blocks that may hold data, and are not taken over from the parent unread.
    data: BlockSet,
    /// Of these, the ones that are not restored.
    in_origin: BlockSet,
    /// Which blocks may differ from the parent's.
    pub(super) changed: Changed,
}

impl Survey {
    /// Asks for all runs. `base`: they are of what changed since, and the parent is that; else they are of all that holds data.
    ///
    /// Blocks that are not restored hold what the volume's origin held, and so what every snapshot of the volume under its
    /// data key holds there: with a parent they are taken over from it, unread.
    pub(super) async fn take(
        stream: &BlockStream,
        base: Option<SnapshotId>,
        parent: Option<SnapshotId>,
    ) -> io::Result<Self> {
        let (mut data, mut in_origin, mut taken_over) = (BlockSet::new(), BlockSet::new(), Vec::new());
        let mut from = 0;
        while let Some(run) = stream.next(from).await? {
            from = run.blocks.end;
            if run.in_origin && parent.is_some() {
                taken_over.push(run.blocks.clone());
                release(stream, run.blocks).await?;
                continue;
            }
            if run.in_origin {
                in_origin.insert_range(run.blocks.clone());
            }
            data.insert_range(run.blocks);
        }
        let changed = match (base, taken_over.is_empty()) {
            (Some(_), _) => Changed::Only(data.clone()),
            (None, true) => Changed::Unknown,
            (None, false) => Changed::Only(all_but(&taken_over, block_count(stream.size_bytes()))),
        };
        Ok(Self { data, in_origin, changed })
    }
}

/// Lets the volume change blocks that will not be read, as many at a time as the stream takes.
async fn release(stream: &BlockStream, blocks: Range<u64>) -> io::Result<()> {
    let mut from = blocks.start;
    while from < blocks.end {
        let end = blocks.end.min(from.saturating_add(crate::block_stream::MOST_BLOCKS));
        stream.release(from..end).await?;
        from = end;
    }
    Ok(())
}

/// The blocks below `count` outside `runs`, which are ascending.
fn all_but(runs: &[Range<u64>], count: u64) -> BlockSet {
    let mut blocks = BlockSet::new();
    let mut from = 0;
    for run in runs {
        blocks.insert_range(from..run.start);
        from = run.end;
    }
    blocks.insert_range(from..count);
    blocks
}

/// The blocks, as the upload asks for them: each once, and released at once.
pub(super) struct StreamSource<'a> {
    pub(super) stream: &'a BlockStream,
    pub(super) survey: &'a Survey,
    /// Where blocks are that are not restored, if that is at hand.
    pub(super) origin: Option<Snapshot>,
    /// Whether somebody serves the volume, who can bring blocks that are not restored.
    pub(super) attached: bool,
    pub(super) volume: VolumeId,
}

impl BlockSource for StreamSource<'_> {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        let in_origin = self.survey.in_origin.contains(index);
        if let Some(origin) = self.origin.as_ref().filter(|_| in_origin) {
            return self.read_in_origin(origin, index, length).await;
        }
        if in_origin && !self.attached {
            return Err(SnapshotOperationError::NotRestored { volume: self.volume }.into());
        }
        let volume = self.volume;
        let failed = |source| Cause::from(SnapshotOperationError::Stream { volume, source });
        let block = self.stream.read(index).await.map_err(failed)?;
        self.stream.release(index..index + 1).await.map_err(failed)?;
        Ok(match block {
            StreamedBlock::Zero => Bytes::from(vec![0; length]),
            StreamedBlock::Data(data) => Bytes::from(data),
        })
    }

    async fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Cause> {
        Ok(self.survey.data.next_run(from))
    }
}

impl StreamSource<'_> {
    /// A block of the snapshot that the volume was made from; the volume may be larger, and zeros follow.
    async fn read_in_origin(&self, origin: &Snapshot, index: u64, length: usize) -> Result<Bytes, Cause> {
        let mut bytes = match origin.read_block(index).await? {
            Block::Zero => Vec::new(),
            Block::Data(data) => data.to_vec(),
        };
        bytes.resize(length, 0);
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_over_is_looked_at() {
        let blocks: Vec<u64> = all_but(&[1..3, 5..6], 8).iter().collect();
        assert_eq!(blocks, [0, 3, 4, 6, 7]);
        assert!(all_but(&[0..4, 4..8], 8).is_empty());
    }
}
