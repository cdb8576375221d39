//! Work on a volume that nobody serves, which needs its keys: what comes before and after it, whatever it is.

use sealblk_volume::VolumeRecord;

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::error::ControlError;
use crate::grant::HeldGrant;
use crate::hold::HeldVolume;
use crate::offline;
use crate::open::{OpenHow, OpenVolume};
use crate::pool::Pool;
use crate::restore::{FetchPlan, Restoration};

/// Work that has begun.
pub(crate) struct OfflineWork {
    restoration: Option<Restoration>,
    announcement: Announcement,
}

impl Pool {
    /// Says that this process works on the volume, which it holds, and unlocks it; where missing blocks come from is the
    /// last that is returned.
    pub(crate) fn begin_offline_work(
        &self,
        held: &mut HeldVolume,
        record: &VolumeRecord,
    ) -> Result<(OfflineWork, OpenVolume<'_>, Option<FetchPlan>), ControlError> {
        let holder = AttachmentRecord::of_this_process(AttachmentState::Busy, false);
        let mut announcement = Announcement::make(&held.directory, holder)?;
        let how = OpenHow { read_only: false, caching: None };
        let volume = self.open_volume(held, record, how, &mut announcement)?;
        // Of the record as it is now: it may have been re-wrapped since it was read.
        let (directory, now) = self.load(held.id)?;
        let prepared = self.prepare_restoration(&directory, &now, &volume, &mut announcement)?;
        let (restoration, plan) = prepared.unzip();
        Ok((OfflineWork { restoration, announcement }, volume, plan))
    }
}

impl OfflineWork {
    /// Ends it, as `done` says that it went; the volume is closed. A restoration is over if it went well, and goes on the next time
    /// if not; what of the end does not work is left to the next holder.
    pub(crate) fn end<T>(
        self,
        done: Result<T, ControlError>,
        grant: Option<HeldGrant<'_>>,
    ) -> Result<T, ControlError> {
        let Self { restoration, mut announcement } = self;
        let finished = restoration.map_or(Ok(()), |mut restoration| match &done {
            Ok(_) => offline::run(async { restoration.finish().await })?,
            Err(_) => restoration.abandon(),
        });
        let retired = grant.map_or(Ok(()), HeldGrant::retire);
        if finished.is_err() || retired.is_err() {
            announcement.keep_for_successor();
        }
        let done = done?;
        finished?;
        retired?;
        announcement.withdraw()?;
        Ok(done)
    }

    /// Ends it: there was nothing to do.
    pub(crate) fn end_undone(self) -> Result<(), ControlError> {
        self.announcement.withdraw()
    }
}
