//! Volumes made from snapshots: CreateVolume with a snapshot, and bringing the blocks while the volume is used.
//!
//! A volume is there at once; its block map (`sealblk-volume`) says which blocks are missing, and its record
//! (`Restoring`) where they come from. Until all are here the volume holds its snapshot (`held.rs`). The blocks come
//! through a child process (`helper.rs`) to the keeper of the block map (`fetch.rs`), encrypted anew on the way if the
//! volume's data key is not the snapshot's. When all are here, what the restoration needed goes (`running.rs`).

mod complete;
mod error;
mod fetch;
mod held;
mod helper;
mod opening;
mod progress;
mod running;
mod source;

pub(crate) use complete::bring_all;
pub use error::RestoreError;
pub(crate) use fetch::{FetchPlan, RestoreFetch};
pub(crate) use held::{SnapshotHold, release_leftover};
pub use helper::{RestoreProgram, serve_restore_helper};
pub(crate) use opening::Restoration;
pub use progress::RestoringDescription;
pub(crate) use progress::describe;
pub(crate) use running::RunningRestoration;
pub use running::{RestoreEvent, RestoreEvents};
pub(crate) use source::SnapshotSource;
