//! Materialize: encrypted zeros into every hole of a detached volume's data, the documented way out (docs/FORMAT.md).

use sealblk_snapshot::Stop;
use sealblk_volume::{MaterializeProgress, Materialized, VolumeId};

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::error::ControlError;
use crate::keep::Keeping;
use crate::offline;
use crate::open::{OpenHow, OpenVolume};
use crate::pool::Pool;
use crate::restore::bring_all;

impl Pool {
    /// Writes encrypted zeros wherever the volume's data has never been written, so that a reader that does not
    /// know of holes sees zeros there. Needs the volume's key, and nobody else at the volume.
    ///
    /// `progress` is told how many of how many bytes are done. Stopped halfway, the volume is as good as before.
    pub fn materialize_volume(
        &self,
        id: VolumeId,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Materialized, ControlError> {
        let mut held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        let (_, record) = self.load(id)?;
        let holder = AttachmentRecord::of_this_process(AttachmentState::Busy, false);
        let mut announcement = Announcement::make(&held.directory, holder)?;
        let how = OpenHow { read_only: false, caching: None };
        let volume = self.open_volume(&mut held, &record, how, &mut announcement)?;
        let (directory, now) = self.load(id)?;
        let prepared = self.prepare_restoration(&directory, &now, &volume, &mut announcement)?;
        let (restoration, plan) = prepared.unzip();
        match volume {
            OpenVolume::Plain(_) => {
                announcement.withdraw()?;
                Ok(Materialized::NotEncrypted)
            }
            OpenVolume::Encrypted(volume, grant, _) => {
                let told = |at: MaterializeProgress| progress(at.done_bytes, at.total_bytes);
                let keeping = Keeping::start(id, volume.device().clone(), plan)?;
                let failed = |source| ControlError::Device { id, doing: "materialize", source };
                let done = offline::run(async {
                    // Holes that are still to be filled from a snapshot are none.
                    bring_all(id, volume.device(), &mut |_, _| {}, &Stop::default()).await?;
                    let done = volume.materialize(told).await.map_err(failed)?;
                    keeping.close().await.map(|()| done)
                });
                drop(volume);
                let done = done.flatten();
                let finished = restoration.map_or(Ok(()), |mut restoration| match &done {
                    Ok(_) => offline::run(async { restoration.finish().await })?,
                    Err(_) => restoration.abandon(),
                });
                let retired = grant.retire();
                if retired.is_err() || finished.is_err() {
                    announcement.keep_for_successor();
                }
                let done = done?;
                retired?;
                finished?;
                announcement.withdraw()?;
                Ok(done)
            }
        }
    }
}
