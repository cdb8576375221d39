//! Work on a volume outside an NBD lane: sealing it, filling its holes, the last flush.

use std::io;

use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::error::ControlError;

/// Runs `work` in the surroundings that a [`sealblk_block::BlockDevice`]'s lanes need: a current-thread runtime
/// with I/O, and a local task set.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> Result<T, ControlError> {
    in_runtime(work).map(|(done, _)| done)
}

/// The same; what a store that hangs holds up is left behind instead of waited for, until the process ends.
pub(crate) fn run_and_leave<T>(work: impl Future<Output = T>) -> Result<T, ControlError> {
    let (done, runtime) = in_runtime(work)?;
    runtime.shutdown_background();
    Ok(done)
}

fn in_runtime<T>(work: impl Future<Output = T>) -> Result<(T, Runtime), ControlError> {
    let failed = |source: io::Error| ControlError::Start { what: "the I/O runtime", source };
    let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let done = LocalSet::new().block_on(&runtime, work);
    Ok((done, runtime))
}
