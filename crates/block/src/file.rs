//! A device in a regular file or on a block device, through the page cache or around it.
//!
//! What goes where: a **direct** (O_DIRECT) transfer always goes through the lane's ring. A **buffered**
//! read is first tried inline with `RWF_NOWAIT`, which copies what the page cache holds and never waits;
//! the rest goes through the ring. A buffered write is tried likewise where the file system knows how
//! (XFS, btrfs); elsewhere (ext4) see [`FileOptions::inline_writes`]. On **tmpfs** every transfer is a plain
//! inline call, a copy in memory. Durable writes, syncs and `fallocate` wait for the disk, so they always
//! go through the ring. Of **large** buffered transfers that overlap, some are left to a thread of the kernel's, by
//! way of the ring ([`aside`]).
//!
//! Not here: byte granularity ([`crate::ByteDevice`]), and creating files or making them longer.

mod aside;
mod lane;
mod zero;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use lane::FileLane;

use crate::device::{BlockDevice, Geometry};
use crate::error::{BlockError, Operation};
use crate::ring::Ring;
use crate::sector::{Lba, SECTOR_BYTES};
use crate::store::{Access, Kind, Store, StoreError};
use crate::sync_gate::SyncGate;

/// Whether the page cache stands between a device and its store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// Reads and writes go through the kernel's page cache.
    Buffered,
    /// O_DIRECT: reads and writes go to the store; units may be larger than a sector.
    Direct,
}

/// How to open a [`FileDevice`].
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// Refuse writes, and open the path for reading only.
    pub read_only: bool,
    /// `None`: files buffered, block devices direct.
    pub caching: Option<Caching>,
    /// The size that the device must have, in bytes: what is larger is not shown, what is smaller is
    /// refused. `None`: the size of what is found.
    pub expected_bytes: Option<u64>,
    /// Operations that one lane's ring holds at once, 1 to 4096; more wait in order.
    pub ring_depth: u32,
    /// Where `RWF_NOWAIT` writes are not supported (ext4 before any that does): whether a buffered write
    /// is a plain inline `pwrite` instead of a trip through the ring.
    ///
    /// Inline is the default, because the ring hands such a write to a kernel thread: on ext4 inline did
    /// 1.1 to 1.9 times the IOPS at 4 KiB 32 deep and 1.9 to 2.1 times at 128 KiB 16 deep
    /// (`examples/lane_iops.rs`, two runs on a busy machine with 2 cores). It may stall the lane: while the kernel throttles writers that dirty pages faster than the disk takes them, and
    /// while a page that is written in part is read in first.
    pub inline_writes: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { read_only: false, caching: None, expected_bytes: None, ring_depth: 128, inline_writes: true }
    }
}

/// A regular file or block device as a [`BlockDevice`]; clones share it.
#[derive(Clone, Debug)]
pub struct FileDevice {
    inner: Arc<Inner>,
}

/// What all lanes of the device share.
#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Arc<File>,
    /// All but the size, which may have grown since.
    opened: Geometry,
    sectors: AtomicU64,
    kind: Kind,
    caching: Caching,
    logical_block_bytes: u32,
    ring_depth: u32,
    inline_writes: bool,
    gate: Arc<SyncGate>,
    learned: Learned,
}

impl Inner {
    fn geometry(&self) -> Geometry {
        Geometry { sectors: self.sectors.load(Ordering::Acquire), ..self.opened }
    }
}

/// What the file system turned out not to do: asked once, not again.
#[derive(Debug, Default)]
struct Learned {
    no_nowait_read: AtomicBool,
    no_nowait_write: AtomicBool,
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
}

impl FileDevice {
    /// Opens the regular file or block device at `path`. Its size must be whole units: 512 bytes, or what
    /// direct I/O demands. A block device that is to be written to is opened exclusively: one that is
    /// mounted is refused, and it cannot be mounted, or opened here again, while it is open.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Self, StoreError> {
        let access = if options.read_only { Access::Read } else { Access::ReadWrite };
        let store = Store::open(path, access, !options.read_only)?;
        let by_kind = match store.kind {
            Kind::File { .. } => Caching::Buffered,
            Kind::BlockDevice { .. } => Caching::Direct,
        };
        let caching = options.caching.unwrap_or(by_kind);
        let unit_bytes = match caching {
            Caching::Buffered => SECTOR_BYTES as u32,
            Caching::Direct => store.set_direct().map_err(|source| StoreError::Io {
                path: path.to_owned(),
                operation: Operation::Open,
                source,
            })?,
        };
        let bytes = checked_size(path.to_owned(), store.bytes, options.expected_bytes, unit_bytes)?;
        let geometry = Geometry {
            sectors: bytes / SECTOR_BYTES as u64,
            unit_bytes,
            preferred_bytes: unit_bytes.max(4096),
            read_only: options.read_only,
        };
        let inner = Inner {
            path: path.to_owned(),
            file: Arc::new(store.file),
            opened: geometry,
            sectors: AtomicU64::new(geometry.sectors),
            kind: store.kind,
            caching,
            logical_block_bytes: store.logical_block_bytes,
            ring_depth: options.ring_depth,
            inline_writes: options.inline_writes,
            gate: Arc::default(),
            learned: Learned::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Shows at least `bytes` bytes from now on, to lanes that are open too. The file or block device has grown
    /// already, and to whole units: both are checked.
    pub fn grow(&self, bytes: u64) -> Result<(), StoreError> {
        let path = || self.inner.path.clone();
        // No lane uses the file's own position.
        let found = (&*self.inner.file).seek(SeekFrom::End(0)).map_err(|source| StoreError::Io {
            path: path(),
            operation: Operation::Open,
            source,
        })?;
        let bytes = checked_size(path(), found, Some(bytes), self.inner.opened.unit_bytes)?;
        self.inner.sectors.fetch_max(bytes / SECTOR_BYTES as u64, Ordering::AcqRel);
        Ok(())
    }

    /// How it was opened.
    pub fn caching(&self) -> Caching {
        self.inner.caching
    }

    /// How many times the store was synced so far, for flushes: fewer than the flushes where they shared.
    pub fn syncs(&self) -> u64 {
        self.inner.gate.syncs()
    }
}

/// The device's size, if the store has it.
fn checked_size(
    path: PathBuf,
    found: u64,
    expected: Option<u64>,
    unit_bytes: u32,
) -> Result<u64, StoreError> {
    let bytes = expected.unwrap_or(found);
    if found < bytes {
        return Err(StoreError::Truncated { path, found_bytes: found, expected_bytes: bytes });
    }
    if !bytes.is_multiple_of(u64::from(unit_bytes)) {
        return Err(StoreError::NotWholeUnits { path, bytes, unit_bytes });
    }
    Ok(bytes)
}

impl BlockDevice for FileDevice {
    type Lane = FileLane;

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_lane(&self) -> Result<FileLane, BlockError> {
        let inner = Arc::clone(&self.inner);
        let unit_bytes = inner.opened.unit_bytes;
        let ring = Ring::new(Arc::clone(&inner.file), inner.ring_depth, unit_bytes, Arc::clone(&inner.gate));
        let ring =
            ring.map_err(|source| BlockError::Io { operation: Operation::Open, at: Lba(0), source })?;
        Ok(FileLane::new(inner, ring))
    }
}

/// Whether a thing was learned not to work.
fn known(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Learns that a thing does not work. Relaxed: learning it twice does no harm.
fn learn(flag: &AtomicBool) {
    flag.store(true, Ordering::Relaxed);
}
