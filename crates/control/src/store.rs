//! What a volume's bytes are stored on, chosen by its record, without boxing futures.

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Completion, Durability, Extent, FileDevice, FileLane,
    FileOptions, Geometry, Lba, SectorRange, ZeroMode,
};
use sealblk_upstream::{UpstreamDevice, UpstreamLane};
use sealblk_volume::VolumeRecord;

use crate::backing::BackingError;
use crate::error::ControlError;
use crate::export;
use crate::hold::HeldVolume;
use crate::open::OpenHow;
use crate::place::BackingPlace;

/// A volume's store.
#[derive(Debug)]
pub(crate) enum StoreDevice {
    File(FileDevice),
    Export(UpstreamDevice),
}

/// One thread's way to it.
pub(crate) enum StoreLane {
    File(FileLane),
    Export(UpstreamLane),
}

impl StoreDevice {
    /// Opens what `record` names, for nobody else where that can be had.
    pub(crate) fn open(
        held: &mut HeldVolume,
        record: &VolumeRecord,
        how: OpenHow,
    ) -> Result<Self, ControlError> {
        // Where blocks are missing, reading them writes them.
        let read_only = how.read_only && record.snapshot_id.is_none();
        match BackingPlace::of(&held.directory, &record.backing)? {
            BackingPlace::Path(path) => {
                held.claim_backing(&path)?;
                let options = FileOptions {
                    read_only,
                    caching: how.caching,
                    expected_bytes: Some(record.size_bytes.bytes()),
                    ..FileOptions::default()
                };
                Ok(Self::File(FileDevice::open(&path, &options).map_err(BackingError::from)?))
            }
            BackingPlace::Export(uri) => Ok(Self::Export(export::open(&uri, read_only)?)),
        }
    }
}

impl BlockDevice for StoreDevice {
    type Lane = StoreLane;

    fn geometry(&self) -> Geometry {
        match self {
            Self::File(device) => device.geometry(),
            Self::Export(device) => device.geometry(),
        }
    }

    fn open_lane(&self) -> Result<StoreLane, BlockError> {
        match self {
            Self::File(device) => device.open_lane().map(StoreLane::File),
            Self::Export(device) => device.open_lane().map(StoreLane::Export),
        }
    }
}

impl BlockLane for StoreLane {
    async fn read(&self, at: Lba, buffer: Buffer) -> Completion {
        match self {
            Self::File(lane) => lane.read(at, buffer).await,
            Self::Export(lane) => lane.read(at, buffer).await,
        }
    }

    async fn write(&self, at: Lba, buffer: Buffer, durability: Durability) -> Completion {
        match self {
            Self::File(lane) => lane.write(at, buffer, durability).await,
            Self::Export(lane) => lane.write(at, buffer, durability).await,
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
            Self::Export(lane) => lane.zero(range, mode, durability).await,
        }
    }

    async fn discard(&self, range: SectorRange, durability: Durability) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.discard(range, durability).await,
            Self::Export(lane) => lane.discard(range, durability).await,
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.flush().await,
            Self::Export(lane) => lane.flush().await,
        }
    }

    async fn extents(&self, range: SectorRange, extents: &mut Vec<Extent>) -> Result<(), BlockError> {
        match self {
            Self::File(lane) => lane.extents(range, extents).await,
            Self::Export(lane) => lane.extents(range, extents).await,
        }
    }
}
