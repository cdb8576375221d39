//! Materialize: encrypted zeros into every hole of a detached volume's data, the documented way out (docs/FORMAT.md).

use sealblk_volume::{MaterializeProgress, Materialized, VolumeId};

use crate::attachment::{Announcement, AttachmentRecord, AttachmentState};
use crate::error::ControlError;
use crate::keep::Keeping;
use crate::offline;
use crate::open::{OpenHow, OpenVolume};
use crate::pool::Pool;

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
        match self.open_volume(&mut held, &record, how, &mut announcement)? {
            OpenVolume::Plain(_) => {
                announcement.withdraw()?;
                Ok(Materialized::NotEncrypted)
            }
            OpenVolume::Encrypted(volume, grant, _) => {
                let told = |at: MaterializeProgress| progress(at.done_bytes, at.total_bytes);
                let keeping = Keeping::start(id, volume.device().clone())?;
                let done = offline::run(async {
                    let done = volume.materialize(told).await;
                    let closed = if done.is_ok() { keeping.close().await } else { Ok(()) };
                    (done, closed)
                });
                drop(volume);
                let (done, closed) = done?;
                let retired = grant.retire();
                if retired.is_err() {
                    announcement.keep_for_successor();
                }
                let done =
                    done.map_err(|source| ControlError::Device { id, doing: "materialize", source })?;
                retired?;
                closed?;
                announcement.withdraw()?;
                Ok(done)
            }
        }
    }
}
