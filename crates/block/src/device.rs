//! The two traits of the storage seam.

use std::future::Future;

use crate::buffer::Buffer;
use crate::error::BlockError;
use crate::sector::{Lba, SectorRange};

/// Shape of a device. Its size may grow; a lane serves at least what the device showed before the lane was opened, and all
/// else is constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in 512-byte sectors.
    pub sectors: u64,
    /// Reads and writes start at, and are, multiples of this many bytes: 512, or the logical block of
    /// a device opened with O_DIRECT. A power of two, a multiple of 512, at most 65536.
    pub unit_bytes: u32,
    /// The request size at which the device works best, in bytes. A power of two, at least 4096.
    pub preferred_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// When a write may be acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Once every later read sees it; durable after the next flush.
    Volatile,
    /// Once it is on stable storage (force unit access).
    Durable,
}

/// How a range may be made to read as zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroMode {
    /// Space may be given back to the store.
    MayUnmap,
    /// Space stays allocated, so that a later write cannot fail for want of it (NBD NO_HOLE).
    KeepAllocated,
    /// As `MayUnmap`, but only if that is faster than writing; else [`BlockError::Unsupported`] at
    /// once, with nothing changed (NBD FAST_ZERO).
    FastOnly,
    /// As `KeepAllocated`, under the rule of `FastOnly`.
    FastKeepAllocated,
}

/// What a device knows about an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allocation {
    /// The store holds no space for it.
    pub hole: bool,
    /// It certainly reads as zeros.
    pub zero: bool,
}

/// A run of sectors with one [`Allocation`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// How many sectors.
    pub count: u64,
    /// What is known of them.
    pub allocation: Allocation,
}

/// A finished transfer: the outcome, and the buffer back, whatever the outcome.
pub type Completion = (Result<(), BlockError>, Buffer);

/// A fixed-size array of 512-byte sectors, shared by every connection.
pub trait BlockDevice: Send + Sync + 'static {
    /// What one thread does its I/O through.
    type Lane: BlockLane;

    /// The device's shape.
    fn geometry(&self) -> Geometry;

    /// Opens a lane. Called on the thread that will use it, inside a tokio `LocalSet` of a
    /// current-thread runtime with I/O enabled: the lane may spawn local tasks.
    fn open_lane(&self) -> Result<Self::Lane, BlockError>;
}

/// One thread's way to a device. All lanes of a device see the same sectors: a read that starts after
/// a write was acknowledged, on any lane, sees it; a flush covers every write acknowledged, on any
/// lane, before it was called.
///
/// Ranges and lengths are whole units (`unit_bytes`) inside the device; that was checked at the border
/// and is asserted here. Every operation is all or error; a short completion is never success. Futures
/// are not `Send`. Operations on one lane run concurrently and complete in any order. Dropping a
/// future abandons its result, not the operation: its buffer lives until the kernel is done with it.
/// Dropping the lane returns once no operation that was abandoned on it is in flight any more.
pub trait BlockLane: 'static {
    /// Fills all of `buffer` from `at`. On error the buffer's bytes are unspecified.
    fn read(&self, at: Lba, buffer: Buffer) -> impl Future<Output = Completion>;

    /// Writes all of `buffer` at `at`. The implementation may change the buffer's bytes (encrypt them
    /// in place): it is scratch when it comes back.
    fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> impl Future<Output = Completion>;

    /// Makes `range` read as zeros. Any length up to the device's size.
    fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Tells that the content of `range` is no longer needed: each sector reads afterwards as before or
    /// as zeros. Any length up to the device's size; may do nothing.
    fn discard(
        &self,
        range: SectorRange,
        durability: Durability,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes every write acknowledged before the call durable. A failure is latched:
    /// [`BlockError::Latched`] from then on (design §4.5).
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Appends to `extents` what is known of `range`, from its start, consecutive, none empty, covering
    /// at least the first sector and at most the range; stops early at `extents.capacity()`.
    fn extents(
        &self,
        range: SectorRange,
        extents: &mut Vec<Extent>,
    ) -> impl Future<Output = Result<(), BlockError>>;
}
