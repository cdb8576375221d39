//! Materialize: encrypted zeros into every hole of a detached volume's data, the documented way out (docs/FORMAT.md).

use sealblk_snapshot::Stop;
use sealblk_volume::{MaterializeProgress, Materialized, VolumeId};

use crate::error::ControlError;
use crate::keep::Keeping;
use crate::offline;
use crate::open::OpenVolume;
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
        let (work, volume, plan) = self.begin_offline_work(&mut held, &record)?;
        match volume {
            OpenVolume::Plain(_) => {
                work.end_undone()?;
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
                work.end(done.flatten(), Some(grant))
            }
        }
    }
}
