//! A device chosen at run time, without boxing futures: what callers hold who learn only from a record or
//! an option where the bytes are.

use crate::buffer::Buffer;
use crate::device::{BlockDevice, BlockLane, Completion, Durability, Extent, Geometry, ZeroMode};
use crate::error::BlockError;
use crate::file::{FileDevice, FileLane};
use crate::memory::{MemoryDevice, MemoryLane};
use crate::sector::{Lba, SectorRange};

/// One of the devices of this crate.
#[derive(Clone, Debug)]
pub enum Backing {
    /// A regular file or a block device.
    File(FileDevice),
    /// Memory.
    Memory(MemoryDevice),
}

/// A lane on a [`Backing`].
pub enum BackingLane {
    /// Of a regular file or a block device.
    File(FileLane),
    /// Of memory.
    Memory(MemoryLane),
}

impl From<FileDevice> for Backing {
    fn from(device: FileDevice) -> Self {
        Self::File(device)
    }
}

impl From<MemoryDevice> for Backing {
    fn from(device: MemoryDevice) -> Self {
        Self::Memory(device)
    }
}

impl BlockDevice for Backing {
    type Lane = BackingLane;

    fn geometry(&self) -> Geometry {
        match self {
            Self::File(device) => device.geometry(),
            Self::Memory(device) => device.geometry(),
        }
    }

    fn open_lane(&self) -> Result<BackingLane, BlockError> {
        match self {
            Self::File(device) => device.open_lane().map(BackingLane::File),
            Self::Memory(device) => device.open_lane().map(BackingLane::Memory),
        }
    }
}

impl BlockLane for BackingLane {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        match self {
            Self::File(lane) => lane.read(at, buffer).await,
            Self::Memory(lane) => lane.read(at, buffer).await,
        }
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        match self {
            Self::File(lane) => lane.write(at, buffer, durability).await,
            Self::Memory(lane) => lane.write(at, buffer, durability).await,
        }
    }

    async fn zero(
        &self,
        range: SectorRange,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.zero(range, mode, durability).await,
            Self::Memory(lane) => lane.zero(range, mode, durability).await,
        }
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.discard(range, durability).await,
            Self::Memory(lane) => lane.discard(range, durability).await,
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.flush().await,
            Self::Memory(lane) => lane.flush().await,
        }
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.extents(range, extents).await,
            Self::Memory(lane) => lane.extents(range, extents).await,
        }
    }
}
