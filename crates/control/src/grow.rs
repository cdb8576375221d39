//! Growth of an attached volume, on a thread beside that of the control socket: the serving side of `modify.rs`.
//!
//! In this order, so that killed at any moment the volume has the old size or the new one: (1) the backing gets the room, and
//! the map's file; (2) what is behind the old end is seen to be zeros; (3) the record says the new size, sealed again; (4) the map
//! says it; (5) lanes that are opened from then on see it. A map that is of the smaller volume is made longer when it is
//! opened, so a crash between (3) and (4) needs no repair.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sealblk_block::{BlockDevice, Lba};
use sealblk_volume::map::map_bytes;
use sealblk_volume::{
    OpenError, SealError, VolumeDirectory, VolumeGrowth, VolumeId, VolumeRecord, VolumeSize, first_data,
};

use crate::backing::{self, BackingError};
use crate::error::ControlError;
use crate::keep::StoredVolume;
use crate::modify::refuse_smaller;
use crate::offline;
use crate::place::BackingPlace;
use crate::pool::{change_record, load_record};
use crate::store::StoreDevice;

/// How long writes that are on their way may take: storage that hangs does not keep the control socket for ever.
const WRITES_TIME: Duration = Duration::from_secs(30);

/// What an attached volume is grown by. Holds what seals its record.
pub(crate) struct Grower {
    pub(crate) id: VolumeId,
    pub(crate) directory: VolumeDirectory,
    pub(crate) stored: StoredVolume,
    pub(crate) growth: VolumeGrowth,
}

/// A [`Grower`] for as long as the volume is served; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Growing(Arc<Mutex<Option<Grower>>>);

impl Growing {
    pub(crate) fn new(grower: Grower) -> Self {
        Self(Arc::new(Mutex::new(Some(grower))))
    }

    /// Grows the volume; a size that it has already changes nothing.
    pub(crate) fn grow(&self, size: VolumeSize) -> Result<(), ControlError> {
        let grower = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grower.as_ref().ok_or(ControlError::Detaching)?.grow(size)
    }

    /// As if the volume were growing, until what is returned is dropped.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> impl Drop + use<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a growth in progress first, and then wipes what seals the record.
    pub(crate) fn end(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Grower {
    fn grow(&self, size: VolumeSize) -> Result<(), ControlError> {
        let id = self.id;
        let record = load_record(&self.directory)?;
        refuse_smaller(&record, size)?;
        if size.sectors() <= self.growth.sectors() {
            return Ok(());
        }
        self.require_whole_units(size)?;
        if self.stored.is_freezing() {
            return Err(ControlError::SnapshotInProgress { id });
        }
        let failed = |source: SealError| ControlError::Open { id, source: source.into() };
        self.growth.resized(&record, size).map_err(failed)?;

        make_room(&self.directory, self.stored.device(), &record, size)?;
        if let Some(map) = self.stored.store() {
            map.grow(map_bytes(size)).map_err(BackingError::from)?;
        }
        change_record(&self.directory, |record| self.growth.resized(&record, size).map_err(failed))?;
        let grown = offline::run(async { tokio::time::timeout(WRITES_TIME, self.stored.grow(size)).await })?;
        match grown {
            Err(_) => return Err(ControlError::SlowWrites { id }),
            Ok(grown) => grown.map_err(|source| ControlError::Grow { id, source })?,
        }
        self.growth.show(size);
        Ok(())
    }

    /// Before anything is changed: the device that is open must be able to have this size.
    fn require_whole_units(&self, size: VolumeSize) -> Result<(), ControlError> {
        let unit_bytes = self.stored.geometry().unit_bytes;
        if size.bytes().is_multiple_of(unit_bytes.into()) {
            return Ok(());
        }
        let source = OpenError::PartialUnit { size_bytes: size.bytes(), unit_bytes };
        Err(ControlError::Open { id: self.id, source })
    }
}

/// Gives the volume's backing, which is open as `device`, and its map's file the room for `size`. Refuses to make part of
/// the volume what somebody has written behind its end: a file that was lengthened is not read for that, a block
/// device or an export that does not know its holes is.
pub(crate) fn make_room(
    directory: &VolumeDirectory,
    device: &StoreDevice,
    record: &VolumeRecord,
    size: VolumeSize,
) -> Result<(), ControlError> {
    let place = BackingPlace::of(directory, &record.backing)?;
    if let (StoreDevice::File(file), Some(path)) = (device, place.path()) {
        backing::lengthen(path, size)?;
        file.grow(size.bytes()).map_err(BackingError::from)?;
    }
    let found_bytes = Lba(device.geometry().sectors).byte_offset();
    if found_bytes < size.bytes() {
        return Err(BackingError::TooSmall { place, found_bytes, needed_bytes: size.bytes() }.into());
    }
    let id = record.volume_id;
    let failed = |source| ControlError::Device { id, doing: "looking behind the volume's end", source };
    // The record may say the new size already, of a growth that did not come to its end.
    let behind = record.size_bytes.sectors()..size.sectors();
    match offline::run(first_data(device, behind))?.map_err(failed)? {
        None => Ok(directory.lengthen_map(size).map_err(BackingError::from)?),
        Some(at) => Err(BackingError::DataBehindEnd { place, at: at.byte_offset() }.into()),
    }
}
