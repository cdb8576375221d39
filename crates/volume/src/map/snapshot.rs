//! A snapshot while it is made: the volume's content at one instant, readable from any thread while clients go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, Operation, SectorRange,
    ZeroMode,
};

use super::bits::Bits;
use super::block::{covered, sectors_of, touched};
use super::desk::Work;
use super::device::{MappedDevice, Plan, Shared, block_bytes};
use super::freeze::Freeze;
use super::job::Trouble;
use crate::id::SnapshotId;

/// Why a snapshot was not begun, or not completed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Another one is in progress, or the volume grows: one at a time.
    #[error("a snapshot of this volume is in progress already")]
    InProgress,
    /// The volume has grown since the spool was made.
    #[error("the snapshot's spool is smaller than the volume, which has grown: try again")]
    SmallSpool,
    /// The frozen content was lost: a block could not be put aside before a client changed it. The
    /// volume itself is as it should be.
    #[error("the content of the volume at the snapshot's instant is lost: a block could not be put aside")]
    Broken(#[source] std::io::Error),
}

/// A volume's content at the instant at which [`MappedDevice::begin_snapshot`] returned. Dropped, it is abandoned, and
/// what is known of changes stays what it was.
#[derive(Debug)]
pub struct LiveSnapshot<D, S> {
    of: MappedDevice<D, S>,
    spool: Arc<S>,
    freeze: Arc<Freeze>,
    /// The blocks that differ from `base`; without one all are wanted.
    needed: Option<Arc<Bits>>,
    base: Option<SnapshotId>,
    /// What was known of changes before, should this come to nothing.
    before: Option<Arc<Bits>>,
    completed: bool,
}

/// Blocks that are to be looked at, all of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrozenRun {
    /// Which; not empty.
    pub blocks: std::ops::Range<u64>,
    /// They were missing at the snapshot's instant: they hold what the snapshot that the volume was made from holds.
    pub in_origin: bool,
}

/// One thread's way to the frozen content.
pub struct FrozenReader<D, S> {
    device: D,
    spool: S,
    freeze: Arc<Freeze>,
    needed: Option<Arc<Bits>>,
    map: Arc<Shared>,
}

impl<D: BlockDevice, S: BlockDevice> MappedDevice<D, S> {
    /// Freezes the content of now: every change acknowledged before the call is in, none that is asked for after
    /// the return, and of those between each wholly or not at all. Changes wait while those on their way
    /// finish; reads do not.
    ///
    /// `spool` is where blocks are put aside that change before they are read: zeros throughout, as large as
    /// the volume (a sparse file), of no use afterwards. A keeper must be running while changes may come.
    ///
    /// `onto` is the snapshot that this one could be built upon, if there is one. Where it is not the one since
    /// which changes are known, the snapshot is of all blocks.
    pub async fn begin_snapshot(
        &self,
        spool: S,
        onto: Option<SnapshotId>,
    ) -> Result<LiveSnapshot<D, S>, FreezeError> {
        let exclusive = Exclusive::take(&self.map).ok_or(FreezeError::InProgress)?;
        if spool.geometry().sectors < self.map.sectors() {
            return Err(FreezeError::SmallSpool);
        }
        let spool = Arc::new(spool);
        // All that takes time for a large volume is made before the gate is closed, but one copy.
        let known = *self.map.base();
        let base = known.filter(|known| onto == Some(*known));
        let fresh = Arc::new(Bits::new(self.map.blocks()));
        let all = base.is_none().then(|| Bits::full(self.map.blocks()));
        let mut begun = None;
        self.map
            .gate
            .exchange(|plan| {
                let before = known.and(plan.changed.clone());
                let needed = base.and(before.clone());
                let wanted = all.or_else(|| needed.as_ref().map(|needed| needed.copy()));
                let wanted = wanted.expect("what changed is known, or all is wanted");
                let freeze = Arc::new(Freeze::new(wanted, self.map.desk.clone()));
                *self.spool() = Some((Arc::clone(&freeze), Arc::clone(&spool)));
                begun = Some((Arc::clone(&freeze), needed, before));
                Plan { changed: Some(fresh), freeze: Some(freeze) }
            })
            .await;
        // The snapshot gives it back when it is over.
        std::mem::forget(exclusive);
        let (freeze, needed, before) = begun.expect("an exchange that returned has called its function");
        Ok(LiveSnapshot { of: self.clone(), spool, freeze, needed, base, before, completed: false })
    }
}

/// The time in which nobody else begins a snapshot, or grows the volume.
pub(crate) struct Exclusive<'a>(&'a Shared);

impl<'a> Exclusive<'a> {
    /// `None`: a snapshot is in progress, or the volume grows.
    pub(crate) fn take(map: &'a Shared) -> Option<Self> {
        (!map.freezing.swap(true, Ordering::AcqRel)).then_some(Self(map))
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.0.freezing.store(false, Ordering::Release);
    }
}

impl<D: BlockDevice, S: BlockDevice> LiveSnapshot<D, S> {
    /// The snapshot since which it is known exactly what changed: blocks that [`FrozenReader::next`] does not
    /// name hold what they held in it. `None`: not known of any; blocks that are not named are zeros.
    pub fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// How many blocks changed since the base; `None` without one.
    pub fn changed_blocks(&self) -> Option<u64> {
        self.needed.as_ref().map(|needed| needed.count())
    }

    /// How many blocks the volume has.
    pub fn blocks(&self) -> u64 {
        self.of.map.blocks()
    }

    /// Opens a way to the content, on the thread that will use it, inside the runtime that lanes need.
    pub fn open_reader(&self) -> Result<FrozenReader<D::Lane, S::Lane>, BlockError> {
        Ok(FrozenReader {
            device: self.of.device.open_lane()?,
            spool: self.spool.open_lane()?,
            freeze: Arc::clone(&self.freeze),
            needed: self.needed.clone(),
            map: Arc::clone(&self.of.map),
        })
    }

    /// The snapshot is stored, as `id`: from now on changes are known since its instant. Fails if the content was
    /// lost, and is then abandoned: whatever was stored is no snapshot.
    pub fn complete(mut self, id: SnapshotId) -> Result<(), FreezeError> {
        if let Some(trouble) = self.freeze.broken() {
            return Err(FreezeError::Broken(trouble.into()));
        }
        self.completed = true;
        *self.of.map.base() = Some(id);
        Ok(())
    }
}

impl<D, S> Drop for LiveSnapshot<D, S> {
    fn drop(&mut self) {
        let map = &self.of.map;
        // Of a snapshot that was abandoned, what changed before it counts as well as what changed since; if
        // the former was not known, nothing is.
        map.gate.replace(|plan| {
            let changed = plan.changed.clone().filter(|_| self.completed || self.before.is_some());
            if let (false, Some(changed), Some(before)) = (self.completed, &changed, &self.before) {
                changed.add(before);
            }
            Plan { changed, freeze: None }
        });
        self.freeze.finish();
        *self.of.spool() = None;
        // A keeper that has ended has let it go.
        let _ = map.desk.put(Work::LetSpoolGo);
        map.freezing.store(false, Ordering::Release);
    }
}

impl<D: BlockLane, S: BlockLane> FrozenReader<D, S> {
    /// The first block at or after `from` that is to be looked at. With a base: that changed since. Without: that
    /// may hold anything but zeros.
    pub async fn next(&self, from: u64) -> Result<Option<u64>, BlockError> {
        Ok(self.next_run(from, 1).await?.map(|run| run.blocks.start))
    }

    /// The first run of blocks at or after `from` that are to be looked at, as far as that is easily told, and at
    /// most `most` blocks. An error if the frozen content is lost: then nobody can say any more what held data.
    pub async fn next_run(&self, from: u64, most: u64) -> Result<Option<FrozenRun>, BlockError> {
        let run = match &self.needed {
            Some(needed) => needed.next_set(from).map(|start| {
                let end = needed.next_clear(start).unwrap_or(needed.len());
                FrozenRun { blocks: start..end, in_origin: false }
            }),
            None => self.next_data(from).await?,
        };
        // Looked at last: what a client has cleared was saved before, unless it could not be.
        if let Some(trouble) = self.freeze.broken() {
            return Err(trouble.answer(Operation::Read, sectors_of(from..from + 1, self.map.sectors()).start));
        }
        Ok(run.map(|FrozenRun { blocks, in_origin }| {
            let end = blocks.end.min(blocks.start.saturating_add(most.max(1)));
            FrozenRun { blocks: blocks.start..end, in_origin }
        }))
    }

    /// Whether `block` is one that [`FrozenReader::next`] may name, and so one that can be read.
    pub fn may_name(&self, block: u64) -> bool {
        block < self.map.blocks() && self.needed.as_ref().is_none_or(|needed| needed.get(block))
    }

    async fn next_data(&self, from: u64) -> Result<Option<FrozenRun>, BlockError> {
        let here = |blocks| Ok(Some(FrozenRun { blocks, in_origin: false }));
        let mut known: Vec<Extent> = Vec::with_capacity(1);
        let mut block = from;
        while block < self.map.blocks() {
            let missing = self.map.restore.as_ref().and_then(|all| {
                let all = all.missing();
                let start = all.next_set(block)?;
                Some(start..all.next_clear(start).unwrap_or(self.map.blocks()))
            });
            if let Some(blocks) = missing.clone().filter(|missing| missing.start == block) {
                return Ok(Some(FrozenRun { blocks, in_origin: true }));
            }
            if self.freeze.is_spooled(block) {
                return here(block..block + 1);
            }
            // As far as nothing is missing, the device tells; what a client has since cleared is in the spool.
            let until = missing.map_or(self.map.blocks(), |missing| missing.start);
            let range = sectors_of(block..until, self.map.sectors());
            known.clear();
            self.device.extents(range, &mut known).await?;
            let extent = known.first().expect("a device knows something of the first sector");
            let same = SectorRange { start: range.start, count: extent.count };
            if !extent.allocation.zero {
                return here(touched(same));
            }
            let end = covered(same, self.map.sectors()).end;
            if end == block {
                return here(block..block + 1); // Zeros at its beginning only.
            }
            if let Some(spooled) = self.freeze.next_spooled(block).filter(|&spooled| spooled < end) {
                return here(spooled..spooled + 1);
            }
            block = end;
        }
        Ok(None)
    }

    /// The length of a block in bytes: 512 KiB, or less for the volume's last.
    pub fn block_bytes(&self, block: u64) -> usize {
        block_bytes(block, self.map.sectors())
    }

    /// Fills `buffer` (its length is the block's) with what `block` held, as it is stored: ciphertext on an encrypted
    /// volume. A missing block is brought first. Only of blocks that [`FrozenReader::next`] may name: with a base, others may
    /// have changed since. Not after [`FrozenReader::release`].
    pub async fn read(&self, block: u64, mut buffer: Buffer) -> Completion {
        let range = sectors_of(block..block + 1, self.map.sectors());
        assert_eq!(range.bytes(), buffer.len() as u64, "a buffer for this block");
        assert!(self.needed.as_ref().is_none_or(|needed| needed.get(block)), "a block that was frozen");
        let lost = |trouble: Trouble| trouble.answer(Operation::Read, range.start);
        if let Some(restore) = &self.map.restore
            && let Err(trouble) = restore.need(block).await
        {
            return (Err(lost(trouble)), buffer);
        }
        let mut result = Ok(());
        if !self.freeze.is_spooled(block) {
            (result, buffer) = self.device.read(range.start, buffer).await;
        }
        // Looked at after the read: a block that a client was let to change meanwhile is in the spool.
        if let Some(trouble) = self.freeze.broken() {
            return (Err(lost(trouble)), buffer);
        }
        if self.freeze.is_spooled(block) {
            (result, buffer) = self.spool.read(range.start, buffer).await;
            // And after that one: of a snapshot that is lost the spool is emptied.
            if let Some(trouble) = self.freeze.broken() {
                return (Err(lost(trouble)), buffer);
            }
        }
        (result, buffer)
    }

    /// `block` was read, and will not be again: it may change without being put aside, and what was put aside
    /// is given back.
    pub async fn release(&self, block: u64) -> Result<(), BlockError> {
        self.freeze.release(block);
        if !self.freeze.is_spooled(block) {
            return Ok(());
        }
        let range = sectors_of(block..block + 1, self.map.sectors());
        self.spool.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await
    }
}
