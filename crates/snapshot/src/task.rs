//! A long operation while it runs: how far it is, and asking it to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::SnapshotError;

/// How far an operation is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Blocks that are done.
    pub done: u64,
    /// Blocks there are to do.
    pub total: u64,
    /// Bytes moved to or from the store so far, blocks only.
    pub bytes: u64,
}

/// Asks an operation to stop at the next block. Clones are the same request; it cannot be taken back.
///
/// The operation then ends with [`SnapshotError::Stopped`], what it did so far is kept, and it can be taken up again. Dropping
/// its future does the same less politely.
#[derive(Clone, Default, Debug)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), SnapshotError> {
        if self.is_requested() { Err(SnapshotError::Stopped) } else { Ok(()) }
    }
}
