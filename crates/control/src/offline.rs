//! Work on a volume outside an NBD lane: sealing it, filling its holes, the last flush.

use std::io;

use crate::error::ControlError;

/// Runs `work` in the surroundings that a [`sealblk_block::BlockDevice`]'s lanes need: a current-thread runtime
/// with I/O, and a local task set.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> Result<T, ControlError> {
    let failed = |source: io::Error| ControlError::Start { what: "the I/O runtime", source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, work))
}
