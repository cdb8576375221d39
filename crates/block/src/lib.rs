//! The storage seam: what a volume's ciphertext lives on, and what an NBD export is made of.
//!
//! A [`BlockDevice`] is shared by all connections; each connection's thread opens its own
//! [`BlockLane`] on it and does its I/O there. A [`ByteDevice`] over any of them takes every byte range.
//! This crate knows nothing of encryption or NBD.
#![deny(unsafe_code)]

pub mod blank;
mod buffer;
mod bytes;
mod device;
mod error;
mod file;
mod memory;
mod range_lock;
mod ring;
mod sector;
mod store;
mod sync_gate;

pub use buffer::Buffer;
pub use bytes::{ByteDevice, ByteExtent, ByteLane};
pub use device::{Allocation, BlockDevice, BlockLane, Completion, Durability, Extent, Geometry, ZeroMode};
pub use error::{BlockError, Operation};
pub use file::{Caching, FileDevice, FileLane, FileOptions};
pub use memory::{MemoryDevice, MemoryLane};
pub use sector::{Lba, SECTOR_BYTES, SectorRange};
pub use store::StoreError;
