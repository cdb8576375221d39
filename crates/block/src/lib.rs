//! The storage seam: what a volume's ciphertext lives on, and what an NBD export is made of.
//!
//! A [`BlockDevice`] is shared by all connections; each connection's thread opens its own
//! [`BlockLane`] on it and does its I/O there. This crate knows nothing of encryption or NBD.

mod buffer;
mod device;
mod error;
mod sector;

pub use buffer::Buffer;
pub use device::{Allocation, BlockDevice, BlockLane, Completion, Durability, Extent, Geometry, ZeroMode};
pub use error::{BlockError, Operation};
pub use sector::{Lba, SECTOR_BYTES, SectorRange};
