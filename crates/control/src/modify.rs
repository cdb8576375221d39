//! ModifyVolume: a larger size, another name. There is no parameter for the key: a volume's key cannot change.
//!
//! Of a volume that nobody has, the record is changed here, under the volume's lock and with its key if the record
//! is sealed. The size of an attached one is changed by the process that serves it, which has what seals the record
//! (`grow.rs`). The order is the same: first the room, durably, then the record, then what may be behind the record.

use std::path::Path;
use std::time::Duration;

use sealblk_volume::{Access, EncryptedVolume, Sealer, VolumeId, VolumeName, VolumeRecord, VolumeSize};

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::conversation::ask_to_grow;
use crate::describe::VolumeDescription;
use crate::error::ControlError;
use crate::grant::HeldGrant;
use crate::grow;
use crate::open::OpenHow;
use crate::pool::{Pool, change_record};
use crate::store::StoreDevice;

/// What the process that serves the volume may take: it may have to read what is behind the old end.
const GROWING_TIME: Duration = Duration::from_secs(600);

/// What ModifyVolume is asked for; something at least.
#[derive(Clone, Debug)]
pub struct ModifyVolume {
    /// The volume.
    pub volume: VolumeId,
    /// Its new size in bytes, if that changes: as [`crate::CreateVolume::size_bytes`], and not smaller than it is.
    pub size_bytes: Option<u64>,
    /// Its new name; `Some(None)`: it has none any more.
    pub name: Option<Option<VolumeName>>,
}

impl Pool {
    /// Changes a volume; attached or not. When it returns, connections to an attached volume that are made from then on
    /// see the new size; those that are open keep the old one. An attachment keeps the export names it began with.
    ///
    /// Killed at any moment, the volume has its old size or the new one. New bytes are zeros.
    pub fn modify_volume(&self, request: &ModifyVolume) -> Result<VolumeDescription, ControlError> {
        let id = request.volume;
        if request.size_bytes.is_none() && request.name.is_none() {
            return Err(ControlError::NothingToModify);
        }
        let size = request.size_bytes.map(VolumeSize::from_bytes).transpose()?;
        let (directory, record) = self.load(id)?;
        if let Some(size) = size {
            refuse_smaller(&record, size)?;
            self.grow_volume(id, size)?;
        }
        if let Some(name) = &request.name {
            change_record(&directory, |record| Ok(VolumeRecord { name: name.clone(), ..record }))?;
        }
        self.describe_volume(id)
    }

    fn grow_volume(&self, id: VolumeId, size: VolumeSize) -> Result<(), ControlError> {
        let there = |socket: &Path| {
            let answer = ask_to_grow(socket, size, GROWING_TIME).ok().flatten()?;
            Some(answer.map_err(|(class, message)| ControlError::GrowFailed { id, class, message }))
        };
        self.wherever_it_is(id, || self.grow_detached(id, size), there)
    }

    fn grow_detached(&self, id: VolumeId, size: VolumeSize) -> Result<(), ControlError> {
        let mut held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        let (directory, record) = self.load(id)?;
        refuse_smaller(&record, size)?;
        if size == record.size_bytes {
            return Ok(());
        }
        let device = StoreDevice::open(&mut held, &record, OpenHow { read_only: false, caching: None })?;
        let sealer = match record.access() {
            Access::Encrypted(volume) if volume.is_sealed() => Some(self.sealer(&held.directory, &volume)?),
            _ => None,
        };
        // Before anything is changed: the key is the volume's, and the record is as it was sealed.
        let failed = |source: sealblk_volume::SealError| ControlError::Open { id, source: source.into() };
        record.resized(size, sealer.as_ref()).map_err(failed)?;
        grow::make_room(&directory, &device, &record, size)?;
        change_record(&directory, |record| record.resized(size, sealer.as_ref()).map_err(failed))?;
        Ok(())
    }

    /// What seals the volume's record, with its key unwrapped as for an attachment; the key itself is wiped, and its
    /// grant retired, on return.
    fn sealer(
        &self,
        directory: &sealblk_volume::VolumeDirectory,
        volume: &EncryptedVolume<'_>,
    ) -> Result<Sealer, ControlError> {
        let holder = AttachmentRecord::of_this_process(AttachmentState::Busy, false);
        let mut announcement = Announcement::make(directory, holder)?;
        let (grant, key) = HeldGrant::unlock(self, volume, &mut announcement)?;
        let sealer = Sealer::new(&key);
        drop(key);
        let retired = grant.retire();
        if retired.is_err() {
            announcement.keep_for_successor();
        }
        retired?;
        announcement.withdraw()?;
        Ok(sealer?)
    }
}

/// Volumes only grow.
pub(crate) fn refuse_smaller(record: &VolumeRecord, size: VolumeSize) -> Result<(), ControlError> {
    if size < record.size_bytes { Err(ControlError::Shrink { id: record.volume_id }) } else { Ok(()) }
}
