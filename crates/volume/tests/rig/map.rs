//! Devices with a block map, kept while a test runs.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::rc::Rc;

use sealblk_block::{BlockDevice, Lba, MemoryDevice, SECTOR_BYTES, SectorRange};
use sealblk_volume::map::{
    BLOCK_BYTES, Background, BlockFetch, FetchedBlock, MapError, MapIdentity, MapOptions, MappedDevice,
    map_bytes, write_restoring_map,
};
use sealblk_volume::{SnapshotId, VolumeSize};

use super::{pattern, run, volume_id};

pub const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

pub fn snapshot_id(number: u8) -> SnapshotId {
    SnapshotId::from_random([number, 0, 0, 0, 0, 0, 0, 0, 0])
}

pub fn identity(sectors: u64) -> MapIdentity {
    let size = VolumeSize::from_bytes(sectors * SECTOR_BYTES as u64).expect("a size");
    MapIdentity { volume_id: volume_id(1), size }
}

pub fn map_sectors(sectors: u64) -> u64 {
    map_bytes(identity(sectors).size) / SECTOR_BYTES as u64
}

/// A map of zeros: of a volume of which nothing is known.
pub fn blank_map(sectors: u64) -> MemoryDevice {
    MemoryDevice::new(map_sectors(sectors))
}

/// Where tests fetch blocks: a snapshot in memory, which can be out of reach.
#[derive(Clone, Default)]
pub struct TestSource {
    pub image: Rc<Vec<u8>>,
    pub fetched: Rc<RefCell<Vec<u64>>>,
    pub unreachable: Rc<Cell<bool>>,
    /// Blocks whose fetch waits until they are taken from here.
    pub held: Rc<RefCell<HashSet<u64>>>,
}

impl TestSource {
    /// A snapshot of `blocks` blocks of 512 KiB.
    pub fn new(seed: u64, blocks: u64) -> Self {
        let sectors = usize::try_from(blocks * BLOCK_SECTORS).expect("small");
        Self { image: Rc::new(pattern(seed, sectors)), ..Self::default() }
    }

    pub fn block(&self, index: u64) -> &[u8] {
        let from = usize::try_from(index).expect("small") * BLOCK_BYTES;
        &self.image[from..self.image.len().min(from + BLOCK_BYTES)]
    }
}

impl BlockFetch for TestSource {
    async fn fetch(&self, index: u64) -> io::Result<FetchedBlock> {
        self.fetched.borrow_mut().push(index);
        tokio::task::yield_now().await;
        while self.held.borrow().contains(&index) {
            tokio::task::yield_now().await;
        }
        if self.unreachable.get() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the snapshot is out of reach"));
        }
        let block = self.block(index);
        Ok(if block.iter().all(|&byte| byte == 0) {
            FetchedBlock::Zero
        } else {
            FetchedBlock::Data(block.to_vec())
        })
    }
}

pub fn options(sectors: u64, origin: Option<SnapshotId>) -> MapOptions {
    MapOptions { identity: identity(sectors), origin, read_only: false }
}

/// The map of a new volume that is to be restored from snapshot 1.
pub async fn write_map<S: BlockDevice>(store: &S, sectors: u64, missing: &[u64], same_key: bool) {
    let missing = missing.iter().map(|&block| block..block + 1);
    write_restoring_map(store, identity(sectors), snapshot_id(1), missing, same_key).await.expect("a map");
}

pub async fn open<D: BlockDevice, S: BlockDevice>(
    device: D,
    store: S,
    sectors: u64,
    origin: Option<SnapshotId>,
) -> Result<MappedDevice<D, S>, MapError> {
    MappedDevice::open(device, store, options(sectors, origin)).await
}

/// Runs `test` while a keeper runs, which is stopped afterwards if the test has not closed the device.
pub async fn kept<D: BlockDevice, S: BlockDevice, T>(
    device: &MappedDevice<D, S>,
    source: TestSource,
    background: Background,
    test: impl Future<Output = T>,
) -> T {
    let keeping = tokio::task::spawn_local({
        let device = device.clone();
        async move { device.keep(source, background).await }
    });
    let outcome = test.await;
    device.stop();
    keeping.await.expect("the keeper ends").expect("the keeper begins");
    outcome
}

/// As [`kept`], from outside a runtime.
pub fn run_kept<D: BlockDevice, S: BlockDevice, T>(
    device: &MappedDevice<D, S>,
    source: TestSource,
    test: impl Future<Output = T>,
) -> T {
    run(kept(device, source, Background::Idle, test))
}

pub fn block_range(index: u64) -> SectorRange {
    SectorRange { start: Lba(index * BLOCK_SECTORS), count: BLOCK_SECTORS }
}
