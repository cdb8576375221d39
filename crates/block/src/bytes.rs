//! Any byte range over a device of whole units (design §4.4): what an NBD export asks for.
//!
//! Requests of whole units go straight through, without a copy and without a shared lock. Others are read
//! in larger pieces and shifted into place, or read, merged and written back under [`crate::range_lock`].
//!
//! A read-modify-write runs as a local task of its own: once it has begun, it ends, even if the caller's
//! future is dropped. Otherwise a write that was given up could still be on its way to the store after its
//! range was released, and put old bytes over a neighbour's newer ones.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::device::{Allocation, BlockDevice, BlockLane, Completion, Durability, Extent, Geometry, ZeroMode};
use crate::error::{BlockError, Operation};
use crate::range_lock::{LaneRanges, RangeLock};
use crate::sector::{Lba, SECTOR_BYTES, SectorRange};

/// A device, addressed in bytes; clones share it.
#[derive(Debug)]
pub struct ByteDevice<D> {
    device: Arc<D>,
    lock: Arc<RangeLock>,
}

/// One thread's way to a [`ByteDevice`].
pub struct ByteLane<L> {
    core: Rc<Core<L>>,
}

struct Core<L> {
    lane: L,
    geometry: Geometry,
    ranges: LaneRanges,
    /// For [`ByteLane::extents`], so that it need not allocate.
    extents: RefCell<Vec<Extent>>,
}

/// How much is zeroed or discarded under one hold of its range: what has to be written of it takes a fraction of a second.
const PIECE_BYTES: u64 = 64 << 20;

/// An extent of nothing.
const NOTHING: Extent = Extent { count: 0, allocation: Allocation { hole: false, zero: false } };

/// A run of bytes with one [`Allocation`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteExtent {
    /// How many bytes.
    pub bytes: u64,
    /// What is known of them.
    pub allocation: Allocation,
}

impl<D> Clone for ByteDevice<D> {
    fn clone(&self) -> Self {
        Self { device: Arc::clone(&self.device), lock: Arc::clone(&self.lock) }
    }
}

impl<D: BlockDevice> ByteDevice<D> {
    /// Takes the device over: byte ranges and whole units are only safe together if all writes come
    /// through the lanes of this one `ByteDevice` or its clones.
    pub fn new(device: D) -> Self {
        Self { device: Arc::new(device), lock: Arc::default() }
    }

    /// The device beneath.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The shape of the device beneath.
    pub fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        Lba(self.geometry().sectors).byte_offset()
    }

    /// Opens a lane for up to `depth` concurrent requests; more are correct, and slower. As for
    /// [`BlockDevice::open_lane`], called on the thread that will use it, inside a `LocalSet`.
    pub fn open_lane(&self, depth: usize) -> Result<ByteLane<D::Lane>, BlockError> {
        let core = Core {
            lane: self.device.open_lane()?,
            geometry: self.geometry(),
            ranges: self.lock.lane(depth),
            extents: RefCell::default(),
        };
        Ok(ByteLane { core: Rc::new(core) })
    }
}

/// Offsets and lengths are any bytes inside the device; that was checked at the border and is asserted
/// here. Otherwise the contracts are those of [`BlockLane`]; a length of zero succeeds and does nothing.
///
/// A buffer's length is the request's. A request that is not whole units needs no other memory if the
/// buffer's *capacity* is at least its length plus two units less two bytes.
impl<L: BlockLane> ByteLane<L> {
    /// Fills all of `buffer` from byte `offset`.
    pub async fn read(&self, offset: u64, mut buffer: Buffer) -> Completion {
        let core = &*self.core;
        let len = buffer.len();
        let request = core.checked(offset, len as u64);
        if request.is_empty() {
            return (Ok(()), buffer);
        }
        let outer = core.outward(&request);
        if outer == request {
            return core.lane.read(lba(offset), buffer).await;
        }
        let head = (request.start - outer.start) as usize;
        let outer_len = (outer.end - outer.start) as usize;
        if buffer.capacity() >= outer_len {
            buffer.set_len(outer_len);
            let outcome;
            (outcome, buffer) = core.lane.read(lba(outer.start), buffer).await;
            buffer.copy_within(head..head + len, 0);
            buffer.set_len(len);
            return (outcome, buffer);
        }
        let (outcome, larger) = core.lane.read(lba(outer.start), Buffer::new(outer_len)).await;
        buffer.copy_from_slice(&larger[head..head + len]);
        (outcome, buffer)
    }

    /// Writes all of `buffer` at byte `offset`. The buffer is scratch when it comes back, its length kept.
    pub async fn write(&self, offset: u64, buffer: Buffer, durability: Durability) -> Completion {
        let core = &*self.core;
        let len = buffer.len();
        let request = core.checked(offset, len as u64);
        if request.is_empty() {
            return (Ok(()), buffer);
        }
        if core.outward(&request) == request {
            let _held = core.ranges.plain(request).await;
            return core.lane.write(lba(offset), buffer, durability).await;
        }
        if core.geometry.read_only {
            return (Err(BlockError::ReadOnly { operation: Operation::Write }), buffer);
        }
        let core = Rc::clone(&self.core);
        to_the_end(async move {
            let (outcome, mut buffer) = core.merge(request, buffer, durability).await;
            buffer.set_len(len);
            (outcome, buffer)
        })
        .await
    }

    /// Makes `len` bytes from `offset` read as zeros. A fast mode ([`ZeroMode::FastOnly`]) fails as
    /// unsupported, with nothing changed, also where no whole unit is in the range.
    pub async fn zero(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        const OPERATION: Operation = Operation::Zero;
        let core = &*self.core;
        let request = core.checked(offset, len);
        if request.is_empty() {
            return Ok(());
        }
        if core.outward(&request) == request {
            return core.zero_whole(request, mode, durability).await;
        }
        if core.geometry.read_only {
            return Err(BlockError::ReadOnly { operation: OPERATION });
        }
        let fast = matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated);
        if fast && core.inward(&request).is_empty() {
            return Err(BlockError::Unsupported { operation: OPERATION });
        }
        let core = Rc::clone(&self.core);
        to_the_end(async move { core.zero_unaligned(request, mode, durability).await }).await
    }

    /// Tells that `len` bytes from `offset` are no longer needed; bytes of units that are not wholly in the
    /// range keep their values.
    pub async fn discard(&self, offset: u64, len: u64, durability: Durability) -> Result<(), BlockError> {
        let core = &*self.core;
        let whole = core.inward(&core.checked(offset, len));
        if whole.is_empty() {
            return if core.geometry.read_only {
                Err(BlockError::ReadOnly { operation: Operation::Discard })
            } else {
                Ok(())
            };
        }
        let discard = async |piece, durability| core.lane.discard(piece, durability).await;
        core.in_pieces(whole, durability, discard).await
    }

    /// As [`BlockLane::flush`].
    pub async fn flush(&self) -> Result<(), BlockError> {
        self.core.lane.flush().await
    }

    /// As [`BlockLane::extents`], in bytes from `offset`, nothing before it, nothing after its end.
    pub async fn extents(
        &self,
        offset: u64,
        len: u64,
        extents: &mut Vec<ByteExtent>,
    ) -> Result<(), BlockError> {
        let core = &*self.core;
        let request = core.checked(offset, len);
        let room = extents.capacity() - extents.len();
        if request.is_empty() || room == 0 {
            return Ok(());
        }
        let outer = core.outward(&request);
        let mut found = core.extents.take();
        found.clear();
        found.reserve_exact(room);
        // A lane stops where there is no room; what an earlier, larger question left of it is filled.
        let skipped = found.capacity() - room;
        found.resize(skipped, NOTHING);
        let outcome = core.lane.extents(sectors(&outer), &mut found).await;
        let mut at = outer.start;
        for extent in found.iter().skip(skipped) {
            let from = at.max(request.start);
            at += extent.count * SECTOR_BYTES as u64;
            let to = at.min(request.end);
            if from < to {
                extents.push(ByteExtent { bytes: to - from, allocation: extent.allocation });
            }
        }
        core.extents.replace(found);
        outcome
    }
}

impl<L: BlockLane> Core<L> {
    fn unit_bytes(&self) -> u64 {
        u64::from(self.geometry.unit_bytes)
    }

    /// The request's bytes, inside the device.
    fn checked(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.checked_add(len).expect("checked at the border");
        assert!(end <= Lba(self.geometry.sectors).byte_offset(), "checked at the border");
        offset..end
    }

    /// The units that the range touches.
    fn outward(&self, range: &Range<u64>) -> Range<u64> {
        let unit = self.unit_bytes();
        range.start / unit * unit..range.end.next_multiple_of(unit)
    }

    /// The units that lie wholly in the range; may be empty.
    fn inward(&self, range: &Range<u64>) -> Range<u64> {
        let unit = self.unit_bytes();
        range.start.next_multiple_of(unit)..range.end / unit * unit
    }

    /// Writes the payload of `request` into the middle of its units.
    async fn merge(&self, request: Range<u64>, mut buffer: Buffer, durability: Durability) -> Completion {
        let outer = self.outward(&request);
        let _held = self.ranges.exclusive(outer.clone()).await;
        let head = (request.start - outer.start) as usize;
        let len = buffer.len();
        let outer_len = (outer.end - outer.start) as usize;
        if buffer.capacity() < outer_len {
            let mut larger = Buffer::new(outer_len);
            larger[head..head + len].copy_from_slice(&buffer);
            let (outcome, _) = self.merge_edges(&request, larger, durability).await;
            return (outcome, buffer);
        }
        buffer.set_len(outer_len);
        buffer.copy_within(..len, head);
        self.merge_edges(&request, buffer, durability).await
    }

    /// `units` holds the units of `request` with its payload in place: fills in what is around the payload
    /// and writes all of it. The range is held.
    async fn merge_edges(
        &self,
        request: &Range<u64>,
        mut units: Buffer,
        durability: Durability,
    ) -> Completion {
        let outer = self.outward(request);
        let unit = self.unit_bytes();
        let last = outer.end - unit;
        let mut edge = Buffer::new(unit as usize);
        if request.start > outer.start || last == outer.start {
            let outcome;
            (outcome, edge) = self.lane.read(lba(outer.start), edge).await;
            if outcome.is_err() {
                return (outcome, units);
            }
            let head = (request.start - outer.start) as usize;
            units[..head].copy_from_slice(&edge[..head]);
        }
        if request.end < outer.end {
            if last > outer.start {
                let outcome;
                (outcome, edge) = self.lane.read(lba(last), edge).await;
                if outcome.is_err() {
                    return (outcome, units);
                }
            }
            let tail = (outer.end - request.end) as usize;
            let (edge_len, units_len) = (edge.len(), units.len());
            units[units_len - tail..].copy_from_slice(&edge[edge_len - tail..]);
        }
        self.lane.write(lba(outer.start), units, durability).await
    }

    /// The whole units first: a fast mode may yet refuse, and nothing has changed then.
    async fn zero_unaligned(
        &self,
        request: Range<u64>,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let whole = self.inward(&request);
        if !whole.is_empty() {
            self.zero_whole(whole, mode, durability).await?;
        }
        let unit = self.unit_bytes();
        let head_end = request.start.next_multiple_of(unit).min(request.end);
        if request.start < head_end {
            self.zero_edge(request.start..head_end, durability).await?;
        }
        let tail_start = (request.end / unit * unit).max(head_end);
        if tail_start < request.end {
            self.zero_edge(tail_start..request.end, durability).await?;
        }
        Ok(())
    }

    /// Does `work` on whole units, piece by piece. Where zeros have to be written it takes long, and others that write odd
    /// ranges in there wait: for a piece, not for all of it.
    async fn in_pieces(
        &self,
        whole: Range<u64>,
        durability: Durability,
        work: impl AsyncFn(SectorRange, Durability) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        if whole.end - whole.start <= PIECE_BYTES {
            let _held = self.ranges.plain(whole.clone()).await;
            return work(sectors(&whole), durability).await;
        }
        let mut start = whole.start;
        while start < whole.end {
            // Where blocks of whatever is below begin, too.
            let piece = start..whole.end.min((start / PIECE_BYTES + 1) * PIECE_BYTES);
            start = piece.end;
            let _held = self.ranges.plain(piece.clone()).await;
            work(sectors(&piece), Durability::Volatile).await?;
        }
        match durability {
            Durability::Volatile => Ok(()),
            // Once for all pieces.
            Durability::Durable => self.lane.flush().await,
        }
    }

    async fn zero_whole(
        &self,
        whole: Range<u64>,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let zero = async |piece, durability| self.lane.zero(piece, mode, durability).await;
        self.in_pieces(whole, durability, zero).await
    }

    /// Zeroes bytes of one unit.
    async fn zero_edge(&self, edge: Range<u64>, durability: Durability) -> Result<(), BlockError> {
        let _held = self.ranges.exclusive(self.outward(&edge)).await;
        let unit = Buffer::new(self.unit_bytes() as usize); // Zeros, the payload among them.
        let zeroes = |error| match error {
            BlockError::Io { at, source, .. } => BlockError::Io { operation: Operation::Zero, at, source },
            other => other,
        };
        self.merge_edges(&edge, unit, durability).await.0.map_err(zeroes)
    }
}

/// Runs `work` to its end, whether or not the caller stays.
async fn to_the_end<T: 'static>(work: impl Future<Output = T> + 'static) -> T {
    match tokio::task::spawn_local(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Never cancelled but by the end of this thread's runtime, which ends the caller too.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The sector that starts at `offset`, which is a unit's start.
fn lba(offset: u64) -> Lba {
    Lba(offset / SECTOR_BYTES as u64)
}

/// A range of whole units, in sectors.
fn sectors(range: &Range<u64>) -> SectorRange {
    let sector_bytes = SECTOR_BYTES as u64;
    SectorRange { start: lba(range.start), count: (range.end - range.start) / sector_bytes }
}
