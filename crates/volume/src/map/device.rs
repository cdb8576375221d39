//! A device with a block map: what all lanes share, how it is opened, and what can be asked of it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealblk_block::{BlockDevice, BlockError, BlockLane, Geometry, SECTOR_BYTES};
use tokio::sync::mpsc::UnboundedReceiver;

use super::bits::Bits;
use super::block::{blocks_in, touched};
use super::desk::{Desk, Work};
use super::file::{self, MapFile, Stored};
use super::format::{Header, MapError, MapIdentity, Origin, Restoration, Tracking, file_bytes};
use super::freeze::Freeze;
use super::gate::WriteGate;
use super::job::Trouble;
use super::lane::MappedLane;
use super::restore::Restore;
use crate::id::SnapshotId;
use crate::size::VolumeSize;

/// A device whose blocks may be missing, tracked or frozen: between a volume's cipher and the store. Clones share
/// it. `D` holds the volume's bytes, `S` the map and what snapshots need to put aside.
///
/// With a map, a **keeper** must run ([`MappedDevice::keep`]) before a lane is used, until after the last.
#[derive(Debug)]
pub struct MappedDevice<D, S> {
    pub(crate) device: Arc<D>,
    pub(crate) store: Option<Arc<S>>,
    pub(crate) map: Arc<Shared>,
    pub(crate) inbox: Arc<Mutex<Option<Inbox>>>,
    /// Where the snapshot in progress puts blocks aside.
    pub(crate) spool: Arc<Mutex<Option<Spool<S>>>>,
}

/// What the keeper begins with.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) work: UnboundedReceiver<Work>,
    /// The missing blocks as the file has them, in words: lanes may be ahead of the keeper.
    pub(crate) missing: Vec<u64>,
}

/// A snapshot in progress, and where it puts blocks aside.
pub(crate) type Spool<S> = (Arc<Freeze>, Arc<S>);

impl<D, S> Clone for MappedDevice<D, S> {
    fn clone(&self) -> Self {
        Self {
            device: Arc::clone(&self.device),
            store: self.store.clone(),
            map: Arc::clone(&self.map),
            inbox: Arc::clone(&self.inbox),
            spool: Arc::clone(&self.spool),
        }
    }
}

/// What a write has to do besides writing.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Where it notes the blocks that it changes.
    pub(crate) changed: Option<Arc<Bits>>,
    /// The snapshot that may want what it overwrites.
    pub(crate) freeze: Option<Arc<Freeze>>,
}

/// What lanes, keeper and snapshots share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) of: Option<MapIdentity>,
    /// See [`Self::sectors`].
    pub(crate) size: AtomicU64,
    pub(crate) read_only: bool,
    pub(crate) gate: Arc<WriteGate<Plan>>,
    pub(crate) restore: Option<Arc<Restore>>,
    pub(crate) desk: Desk,
    /// What the file said when it was opened.
    pub(crate) header: Header,
    /// Whether the file says exactly what changed. Not for long: the first write has that taken back.
    pub(crate) vouched: AtomicBool,
    /// The snapshot since which the plan's `changed` is exact.
    pub(crate) base: Mutex<Option<SnapshotId>>,
    /// Whether a snapshot is in progress.
    pub(crate) freezing: AtomicBool,
}

impl Shared {
    /// The volume's size now. It grows; who needs one size in several places reads it once.
    pub(crate) fn sectors(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// How many blocks that is.
    pub(crate) fn blocks(&self) -> u64 {
        blocks_in(self.sectors())
    }

    pub(crate) fn vouched(&self) -> bool {
        self.vouched.load(Ordering::Acquire)
    }

    pub(crate) fn base(&self) -> MutexGuard<'_, Option<SnapshotId>> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to open a [`MappedDevice`].
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    /// Which volume it is.
    pub identity: MapIdentity,
    /// The snapshot that the volume's record says it was made from, with blocks that may be missing.
    pub origin: Option<SnapshotId>,
    /// Refuse changes by clients. Missing blocks are brought all the same: `device` and `store` are writable.
    pub read_only: bool,
}

/// How far a volume is restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoreProgress {
    /// Blocks that are here.
    pub restored_blocks: u64,
    /// Blocks that were to be restored when the volume was made.
    pub total_blocks: u64,
}

/// What a map knows of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangesKnown {
    /// Nothing: any block may have changed since any snapshot.
    Unknown,
    /// How many blocks changed since a snapshot, exactly.
    Exact {
        /// The snapshot.
        since: SnapshotId,
        /// Changed blocks.
        blocks: u64,
    },
}

/// What a map says, when it is opened.
struct Known {
    of: Option<MapIdentity>,
    /// What the file says from now on.
    header: Header,
    missing: Option<Bits>,
    changed: Option<Bits>,
    /// The snapshot since which `changed` is exact.
    base: Option<SnapshotId>,
}

impl Default for Known {
    fn default() -> Self {
        Self { of: None, header: Header::BLANK, missing: None, changed: None, base: None }
    }
}

impl Known {
    /// What `stored` says. A map that is of the volume before it grew to `identity` is made longer.
    async fn of<L: BlockLane>(stored: Stored, identity: MapIdentity, lane: L) -> Result<Self, MapError> {
        let Stored { of, mut header, missing, mut changed } = stored;
        let base = match header.tracking {
            Tracking::Exact(base) => Some(base),
            Tracking::Unknown => None,
        };
        if of.size < identity.size {
            let mut file =
                MapFile::new(lane, of, header, missing.as_ref().map(Bits::to_words).unwrap_or_default());
            file.grow(identity).await?;
            header = *file.header();
            changed = changed.map(|changed| grown_changes(&changed, blocks_in(identity.size.sectors())));
        }
        Ok(Self { of: Some(identity), header, missing, changed, base })
    }
}

/// What changed, on a volume that has grown to `blocks` blocks: its last block, which may be longer now, and what is
/// new are among it.
pub(crate) fn grown_changes(changed: &Bits, blocks: u64) -> Bits {
    let grown = changed.longer(blocks);
    grown.set_range(changed.len().saturating_sub(1)..blocks);
    grown
}

/// The size in bytes that the file `map` of a volume must have. A new one is zeros throughout (a sparse file), or made
/// by [`write_restoring_map`].
pub fn map_bytes(size: VolumeSize) -> u64 {
    file_bytes(blocks_in(size.sectors()))
}

/// Writes, durably, the map of a new volume that is to be restored from a snapshot into `store`, which has
/// [`map_bytes`] bytes. `missing`: the blocks that the snapshot has; all others are zeros and here. A range that ends
/// behind the volume's end is cut. `same_data_key`: the ciphertext will be the snapshot's, so that the next
/// snapshot of the volume needs only what changed since. Call inside the runtime that lanes need.
pub async fn write_restoring_map<S: BlockDevice>(
    store: &S,
    identity: MapIdentity,
    snapshot: SnapshotId,
    missing: impl IntoIterator<Item = std::ops::Range<u64>>,
    same_data_key: bool,
) -> Result<(), MapError> {
    let blocks = blocks_in(identity.size.sectors());
    file::check_size(store, blocks)?;
    let bits = Bits::new(blocks);
    for range in missing {
        bits.set_range(range.start.min(blocks)..range.end.min(blocks));
    }
    let origin = Origin { snapshot, blocks: bits.count() };
    let lane = store.open_lane()?;
    Ok(file::write_new(&lane, identity, origin, &bits, same_data_key).await?)
}

/// How far the map in `store` says that the volume is restored; `None`: it did not come from a snapshot, or is whole. For
/// who looks from outside: a keeper may be writing it. Call inside the runtime that lanes need.
pub async fn read_restore_progress<S: BlockDevice>(
    store: &S,
    identity: MapIdentity,
) -> Result<Option<RestoreProgress>, MapError> {
    file::check_size(store, blocks_in(identity.size.sectors()))?;
    let stored = file::read(&store.open_lane()?, identity).await?;
    Ok(match (stored.header.restoration, stored.missing) {
        (Restoration::Pending(origin), Some(missing)) => {
            let total_blocks = origin.blocks;
            let restored_blocks = total_blocks.saturating_sub(missing.count());
            Some(RestoreProgress { restored_blocks, total_blocks })
        }
        _ => None,
    })
}

impl<D: BlockDevice, S: BlockDevice> MappedDevice<D, S> {
    /// A device without a map: every block is here, and nothing is tracked. Snapshots of it can be made, each of
    /// them whole. `size` of `device` is shown; it must have it.
    pub fn without_map(device: D, size: VolumeSize, read_only: bool) -> Self {
        Self::new(device, None, size, Known::default(), read_only)
    }

    /// A device with the map in `store`, read and checked. Call inside the runtime that lanes need.
    pub async fn open(device: D, store: S, options: MapOptions) -> Result<Self, MapError> {
        let MapOptions { identity, origin, read_only } = options;
        let blocks = blocks_in(identity.size.sectors());
        file::check_size(&store, blocks)?;
        let lane = store.open_lane()?;
        let stored = file::read(&lane, identity).await?;
        match (stored.header.restoration, origin) {
            (Restoration::None, None) => {}
            (Restoration::None, Some(_)) => return Err(MapError::Lost),
            (Restoration::Pending(found) | Restoration::Complete(found), _)
                if origin != Some(found.snapshot) =>
            {
                return Err(MapError::OtherOrigin { found: found.snapshot });
            }
            (Restoration::Pending(_) | Restoration::Complete(_), _) => {}
        }
        let known = Known::of(stored, identity, lane).await?;
        Ok(Self::new(device, Some(store), identity.size, known, read_only))
    }

    fn new(device: D, store: Option<S>, size: VolumeSize, known: Known, read_only: bool) -> Self {
        assert!(size.sectors() <= device.geometry().sectors, "a volume lies within its device");
        let (desk, work) = Desk::new();
        let Known { of, header, missing, changed, base } = known;
        let words = missing.as_ref().map(Bits::to_words).unwrap_or_default();
        let restore = match (header.restoration, missing) {
            (Restoration::Pending(origin), Some(missing)) => {
                Some(Arc::new(Restore::new(missing, origin.blocks, desk.clone())))
            }
            _ => None,
        };
        let plan = Plan { changed: changed.map(Arc::new), freeze: None };
        let map = Shared {
            of,
            size: AtomicU64::new(size.sectors()),
            read_only: read_only || device.geometry().read_only,
            gate: Arc::new(WriteGate::new(plan)),
            restore,
            desk,
            header,
            vouched: AtomicBool::new(matches!(header.tracking, Tracking::Exact(_))),
            base: Mutex::new(base),
            freezing: AtomicBool::new(false),
        };
        Self {
            device: Arc::new(device),
            store: store.map(Arc::new),
            map: Arc::new(map),
            inbox: Arc::new(Mutex::new(Some(Inbox { work, missing: words }))),
            spool: Arc::default(),
        }
    }
}

impl<D, S> MappedDevice<D, S> {
    pub(crate) fn spool(&self) -> MutexGuard<'_, Option<Spool<S>>> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device beneath.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Where the map is, if there is one.
    pub fn store(&self) -> Option<&S> {
        self.store.as_deref()
    }

    /// Whether a snapshot is in progress at the moment, or the volume grows.
    pub fn is_freezing(&self) -> bool {
        self.map.freezing.load(Ordering::Acquire)
    }

    /// How many blocks the volume has.
    pub fn blocks(&self) -> u64 {
        self.map.blocks()
    }

    /// How far the volume is restored; `None`: it did not come from a snapshot, or was whole when it was opened.
    pub fn restore_progress(&self) -> Option<RestoreProgress> {
        let restore = self.map.restore.as_ref()?;
        let total_blocks = restore.total();
        let restored_blocks = total_blocks.saturating_sub(restore.missing_count());
        Some(RestoreProgress { restored_blocks, total_blocks })
    }

    /// Whether block `index` is here. Blocks outside the volume are not.
    pub fn is_restored(&self, index: u64) -> bool {
        index < self.map.blocks() && self.map.restore.as_ref().is_none_or(|all| !all.is_missing(index))
    }

    /// How many sectors from the start of `range` are alike: all restored, or none.
    pub fn restored_run(&self, range: sealblk_block::SectorRange) -> (u64, bool) {
        let Some(restore) = &self.map.restore else { return (range.count, true) };
        let first = touched(range).start;
        let here = !restore.is_missing(first);
        let end = restore.end_of_run(first).saturating_mul(super::block::BLOCK_SECTORS);
        (end.min(range.end().0) - range.start.0, here)
    }

    /// What is known of changes now, while no snapshot is in progress.
    pub fn changes_known(&self) -> ChangesKnown {
        let plan = self.map.gate.plan();
        let since = *self.map.base();
        match (since, &plan.changed) {
            (Some(since), Some(changed)) => ChangesKnown::Exact { since, blocks: changed.count() },
            _ => ChangesKnown::Unknown,
        }
    }

    /// Returns once every block is here, durably; an error if one cannot be brought. A keeper must be
    /// running, with [`super::Background::Restore`].
    pub async fn restored(&self) -> std::io::Result<()> {
        let Some(restore) = &self.map.restore else { return Ok(()) };
        loop {
            let mut progress = pin!(restore.progress().notified());
            progress.as_mut().enable(); // From here on progress is noticed, so look only now.
            if restore.missing_count() == 0 && !restore.is_unsettled() {
                return Ok(());
            }
            if let Some(trouble) = restore.take_failure() {
                return Err(trouble.into());
            }
            progress.await;
        }
    }

    /// The clean end: makes everything durable, has the map say exactly what changed, and ends the keeper. No lane
    /// may be used afterwards, and no snapshot may be in progress if the changes are to be known.
    pub async fn close(&self) -> Result<(), BlockError> {
        let closed = self.map.desk.ask(Work::Close).await;
        closed.map_err(|trouble| trouble.answer(sealblk_block::Operation::Flush, sealblk_block::Lba(0)))
    }

    /// Ends the keeper where it is. What the map says stays true; what changed is not known afterwards if
    /// anything was written.
    pub fn stop(&self) {
        // It has ended already, or ends now.
        let _ = self.map.desk.put(Work::Stop);
    }
}

impl<D: BlockDevice, S: BlockDevice> BlockDevice for MappedDevice<D, S> {
    type Lane = MappedLane<D::Lane>;

    fn geometry(&self) -> Geometry {
        let below = self.device.geometry();
        Geometry { sectors: self.map.sectors(), read_only: self.map.read_only, ..below }
    }

    fn open_lane(&self) -> Result<Self::Lane, BlockError> {
        Ok(MappedLane::new(self.device.open_lane()?, Arc::clone(&self.map)))
    }
}

/// The length in bytes of block `index` on a volume of `sectors` sectors.
pub(crate) fn block_bytes(index: u64, sectors: u64) -> usize {
    let range = super::block::sectors_of(index..index + 1, sectors);
    usize::try_from(range.count).expect("at most a block") * SECTOR_BYTES
}

/// What a job of the keeper failed with, for the one who keeps.
impl From<MapError> for Trouble {
    fn from(error: MapError) -> Self {
        Self::from(std::io::Error::other(error))
    }
}
