//! Looking whether snapshots are as they were made. Not of EC2. Calls no key service: hashes are of what is stored.

use sealblk_snapshot::{Depth, Report};
use sealblk_volume::SnapshotId;

use crate::error::ControlError;
use crate::offline;
use crate::pool::Pool;

/// Which snapshots are looked at, and how closely.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifySnapshots {
    /// One, completed; `None`: all there are, whosever they are.
    pub snapshot: Option<SnapshotId>,
    /// Whether blocks are read and hashed, or only looked for.
    pub deep: bool,
    /// Whether objects that no snapshot needs are removed; only of all.
    pub remove_unreferenced: bool,
}

impl Pool {
    /// Looks at snapshots; what is wrong with them is in the report. The number is that of objects that were removed.
    pub fn verify_snapshots(&self, request: &VerifySnapshots) -> Result<(Report, u64), ControlError> {
        let depth = if request.deep { Depth::Contents } else { Depth::Existence };
        offline::run(async {
            let repository = self.repository.open().await?;
            let Some(id) = request.snapshot else {
                // An error of a deletion shows in what is found.
                let _ = repository.finish_deletions().await;
                let report = repository.verify_all(depth).await?;
                let unreferenced = request.remove_unreferenced && !report.unreferenced.is_empty();
                let removed = if unreferenced { repository.remove_unreferenced().await? } else { 0 };
                return Ok((report, removed));
            };
            self.require_visible(id, &repository.record(id).await?.metadata()?)?;
            Ok((repository.verify(id, depth).await?, 0))
        })?
    }
}
