//! A volume's content at one instant, as a block stream serves it: in the process that serves the volume, or, of one
//! that nobody serves, in the process that makes the snapshot. Needs no key: blocks are as they are stored.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::ops::Range;

use sealblk_block::{BlockDevice, Buffer, FileDevice, FileLane, FileOptions, Lba};
use sealblk_volume::map::{BLOCK_BYTES, ChangesKnown, FrozenReader, LiveSnapshot};
use sealblk_volume::{CreateDataError, SnapshotId, VolumeDirectory, VolumeId, VolumeSize};

use super::error::SnapshotOperationError;
use crate::backing::BackingError;
use crate::block_stream::{MOST_BLOCKS, Run, ServeBlocks, ServedBlock};
use crate::error::ControlError;
use crate::keep::StoredVolume;
use crate::store::{StoreDevice, StoreLane};

/// What becomes of the name of the file that blocks are put aside in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spool {
    /// It goes at once: whatever happens to the process, its space is given back.
    Unnamed,
    /// It stays until somebody opens the volume to write to it: it tells that since then nobody has.
    Kept,
}

/// A frozen volume.
pub(crate) struct FrozenVolume {
    id: SnapshotId,
    size_bytes: u64,
    base: Option<SnapshotId>,
    reader: FrozenReader<StoreLane, FileLane>,
    /// `None`: complete.
    live: RefCell<Option<LiveSnapshot<StoreDevice, FileDevice>>>,
}

impl FrozenVolume {
    /// Freezes the volume in `directory` as it is now, for the snapshot `id`, which could build upon any of `onto`. On the
    /// thread that serves it, inside the runtime that lanes need; a keeper runs.
    pub(crate) async fn begin(
        of: (VolumeId, &VolumeDirectory),
        stored: &StoredVolume,
        id: SnapshotId,
        onto: &[SnapshotId],
        spool: Spool,
    ) -> Result<Self, ControlError> {
        let (volume, directory) = of;
        let since = match stored.changes_known() {
            ChangesKnown::Exact { since, .. } => Some(since),
            ChangesKnown::Unknown => None,
        };
        let onto = onto.iter().copied().find(|onto| Some(*onto) == since);
        let size = VolumeSize::from_bytes(Lba(stored.geometry().sectors).byte_offset())?;
        let opened = open_spool(directory, id, size, spool)?;
        let failed = |source| ControlError::from(SnapshotOperationError::Freeze { volume, source });
        let live = stored.begin_snapshot(opened, onto).await.map_err(failed)?;
        let failed = |source| ControlError::Device { id: volume, doing: "reading for a snapshot", source };
        let reader = live.open_reader().map_err(failed)?;
        let size_bytes = size.bytes();
        Ok(Self { id, size_bytes, base: live.base(), reader, live: RefCell::new(Some(live)) })
    }

    /// The snapshot since which the blocks that are served have changed; `None`: all that hold data are.
    pub(crate) fn base(&self) -> Option<SnapshotId> {
        self.base
    }
}

/// Makes the file that blocks are put aside in. One that is there was left by a snapshot that is over.
fn open_spool(
    directory: &VolumeDirectory,
    id: SnapshotId,
    size: VolumeSize,
    spool: Spool,
) -> Result<FileDevice, ControlError> {
    let path = directory.spool_path(id);
    let failed = |source| ControlError::Pool { path: path.clone(), source };
    let made = match directory.create_spool(id, size) {
        Err(CreateDataError::Exists { .. }) => {
            fs::remove_file(&path).map_err(failed)?;
            directory.create_spool(id, size)
        }
        made => made,
    };
    made.map_err(BackingError::from)?;
    let options = FileOptions { expected_bytes: Some(size.bytes()), ..FileOptions::default() };
    let opened = FileDevice::open(&path, &options).map_err(BackingError::from)?;
    if spool == Spool::Unnamed {
        fs::remove_file(&path).map_err(failed)?;
    }
    Ok(opened)
}

impl ServeBlocks for FrozenVolume {
    type Data = Buffer;

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn next(&self, from: u64) -> io::Result<Option<Run>> {
        let run = self.reader.next_run(from, MOST_BLOCKS).await.map_err(io::Error::other)?;
        Ok(run.map(|run| Run { blocks: run.blocks, in_origin: run.in_origin }))
    }

    async fn read(&self, index: u64) -> io::Result<ServedBlock<Buffer>> {
        if !self.reader.may_name(index) {
            let what = format!("block {index} has not changed");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut buffer = Buffer::new(BLOCK_BYTES);
        buffer.set_len(self.reader.block_bytes(index));
        let (read, buffer) = self.reader.read(index, buffer).await;
        read.map_err(io::Error::other)?;
        let zero = buffer.iter().all(|&byte| byte == 0);
        Ok(if zero { ServedBlock::Zero } else { ServedBlock::Data(buffer) })
    }

    async fn release(&self, blocks: Range<u64>) -> io::Result<()> {
        for block in blocks {
            self.reader.release(block).await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn complete(&self) -> io::Result<()> {
        let Some(live) = self.live.take() else { return Ok(()) };
        live.complete(self.id).map_err(io::Error::other)
    }
}
