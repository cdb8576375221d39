//! The block map of a volume (design §4.5, §4.9): which blocks are here, which changed, which a snapshot wants.
//!
//! A [`MappedDevice`] stands between a volume's cipher and its store, so all it sees is what is stored.
//!
//! - **Lazy restore.** A volume made from a snapshot is usable at once: blocks are fetched on first access
//!   ([`BlockFetch`]), the rest in the background. docs/FORMAT.md has the order of writes and why no crash can lay
//!   an old block over a newer write.
//! - **Snapshots.** [`MappedDevice::begin_snapshot`] freezes the content of one instant. Clients go on; the first change of a
//!   block that the snapshot has not read yet waits until the block's old content was put aside.
//! - **Changes.** Since the last snapshot, so that the next one reads only those blocks: exact if the last detach was
//!   clean, else unknown, never wrong.
//!
//! A volume that came from no snapshot pays, per change, for a count in a cache line of its lane; reads pay nothing.
//!
//! A volume grows while it is in use: lanes opened from then on see the new blocks, which are here and zero.
//!
//! Not here: where snapshots are kept, what they are called, and keys.

mod bits;
mod block;
mod desk;
mod device;
mod file;
mod format;
mod freeze;
mod gate;
mod grow;
mod job;
mod keeper;
mod lane;
mod restore;
mod snapshot;

pub use block::BLOCK_BYTES;
pub use device::{
    ChangesKnown, MapOptions, MappedDevice, RestoreProgress, map_bytes, read_restore_progress,
    write_restoring_map,
};
pub use format::{MapError, MapIdentity};
pub use grow::GrowError;
pub use keeper::{Background, BlockFetch, FetchedBlock, NoSource};
pub use lane::MappedLane;
pub use snapshot::{FreezeError, FrozenReader, FrozenRun, LiveSnapshot};
