//! Restoring a volume that nobody uses, to the end: `volume restore`, and `volume create --no-lazy`.

use std::time::Duration;

use sealblk_snapshot::Stop;
use sealblk_volume::VolumeId;

use super::error::RestoreError;
use crate::describe::VolumeDescription;
use crate::error::ControlError;
use crate::keep::{Keeping, StoredVolume};
use crate::offline;
use crate::open::OpenVolume;
use crate::pool::Pool;

/// How often progress is told, and it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

impl Pool {
    /// Brings every block of a volume that is not attached, and returns when nothing of it depends on its snapshot any
    /// more. Needs the keys that an attach would need.
    ///
    /// `progress` is told how many of how many bytes are here. Stopped or failed halfway, the volume is as good as
    /// before: an attach, or another call, goes on.
    pub fn restore_volume(
        &self,
        id: VolumeId,
        progress: &mut dyn FnMut(u64, u64),
        stop: &Stop,
    ) -> Result<VolumeDescription, ControlError> {
        let mut held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        let (_, record) = self.load(id)?;
        if record.restoring.is_none() {
            drop(held);
            return self.describe_volume(id);
        }
        let (work, volume, plan) = self.begin_offline_work(&mut held, &record)?;
        let stored = volume.stored().clone();
        let keeping = Keeping::start(id, stored.clone(), plan)?;
        let brought = offline::run(async {
            let brought = bring_all(id, &stored, progress, stop).await;
            // What is here stays, whatever kept the rest from coming.
            let closed = keeping.close().await;
            brought.and(closed)
        })?;
        drop(stored);
        let grant = match volume {
            OpenVolume::Plain(_) => None,
            OpenVolume::Encrypted(_, grant, _) => Some(grant),
        };
        work.end(brought, grant)?;
        drop(held);
        self.describe_volume(id)
    }
}

/// Waits until every block of `stored`, whose keeper runs, is here.
pub(crate) async fn bring_all(
    id: VolumeId,
    stored: &StoredVolume,
    progress: &mut dyn FnMut(u64, u64),
    stop: &Stop,
) -> Result<(), ControlError> {
    let mut tell = || {
        let at = stored.restore_progress()?;
        let bytes = |blocks: u64| blocks.saturating_mul(sealblk_snapshot::BLOCK_BYTES);
        progress(bytes(at.restored_blocks), bytes(at.total_blocks));
        Some(at)
    };
    loop {
        tell();
        match tokio::time::timeout(LOOK, stored.restored()).await {
            Ok(Ok(())) => {
                tell();
                return Ok(());
            }
            Ok(Err(source)) => return Err(RestoreError::Block { id, source }.into()),
            Err(_) if stop.is_requested() => return Err(RestoreError::Stopped { id }.into()),
            Err(_) => {}
        }
    }
}
