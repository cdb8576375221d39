//! Growing an open volume: its map first, then what is tracked, then the size that new lanes see.
//!
//! A lane that is open keeps the size it was opened with, so nothing about a request changes while it is on its way.
//! Blocks that the volume did not have when it was opened are never missing; what is behind the old end of a
//! last block that is still missing is zeros, and stays so until the block is here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sealblk_block::{BlockDevice, SECTOR_BYTES};

use super::block::blocks_in;
use super::desk::Work;
use super::device::{MappedDevice, Plan, grown_changes};
use super::format::{MapIdentity, file_bytes};
use super::snapshot::Exclusive;
use crate::size::VolumeSize;

/// Why an open volume did not grow. Its lanes go on as before.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// A snapshot in progress knows one size.
    #[error("a snapshot of this volume is in progress")]
    SnapshotInProgress,
    /// The map could not be written.
    #[error("the block map could not be made longer")]
    Map(#[source] io::Error),
}

impl<D: BlockDevice, S: BlockDevice> MappedDevice<D, S> {
    /// Shows `size` to lanes that are opened from now on; a size that is not larger changes nothing. Device and map
    /// have room for it, and the device is zeros there. Of a volume whose changes are known, the new blocks count as changed.
    ///
    /// The volume's record must say the new size, durably: a map may be of a smaller volume than its record says, never of
    /// a larger one. A keeper is running. Given up or failed, it can be called again; writes wait while those on
    /// their way finish.
    pub async fn grow(&self, size: VolumeSize) -> Result<(), GrowError> {
        let _exclusive = Exclusive::take(&self.map).ok_or(GrowError::SnapshotInProgress)?;
        let (sectors, blocks) = (size.sectors(), blocks_in(size.sectors()));
        if sectors <= self.map.sectors() {
            return Ok(());
        }
        assert!(sectors <= self.device.geometry().sectors, "a volume lies within its device");
        if let (Some(of), Some(store)) = (self.map.of, &self.store) {
            let found = store.geometry().sectors.saturating_mul(SECTOR_BYTES as u64);
            assert!(found >= file_bytes(blocks), "a map has room for every block");
            let identity = MapIdentity { size, ..of };
            let grown = self.map.desk.ask(|job| Work::Grow(identity, job)).await;
            grown.map_err(|trouble| GrowError::Map(trouble.into()))?;
        }
        self.map
            .gate
            .exchange(|plan| {
                let changed = plan.changed.as_ref().map(|changed| Arc::new(grown_changes(changed, blocks)));
                self.map.size.store(sectors, Ordering::Release);
                Plan { changed, freeze: None }
            })
            .await;
        Ok(())
    }
}
