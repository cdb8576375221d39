//! What grows an open volume, for who is not the one that serves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::VolumeRecord;
use crate::seal::{SealError, Sealer};
use crate::size::VolumeSize;

/// An open volume's size, and what seals a record that says another. Clones are of the same volume.
#[derive(Clone, Debug)]
pub struct VolumeGrowth {
    sectors: Arc<AtomicU64>,
    sealer: Option<Arc<Sealer>>,
}

impl VolumeGrowth {
    pub(crate) fn new(size: VolumeSize, sealer: Option<Sealer>) -> Self {
        Self { sectors: Arc::new(AtomicU64::new(size.sectors())), sealer: sealer.map(Arc::new) }
    }

    /// The size that lanes see that are opened now.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// `record`, which must be this volume's as it was sealed, with another size: as [`VolumeRecord::resized`].
    pub fn resized(&self, record: &VolumeRecord, size: VolumeSize) -> Result<VolumeRecord, SealError> {
        record.resized(size, self.sealer.as_deref())
    }

    /// Shows `size` to lanes that are opened from now on; a size that is not larger changes nothing. The device beneath
    /// shows it already, and is zeros there.
    pub fn show(&self, size: VolumeSize) {
        self.sectors.fetch_max(size.sectors(), Ordering::AcqRel);
    }
}
