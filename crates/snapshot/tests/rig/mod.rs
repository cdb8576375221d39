//! What the tests of this crate share: a volume in memory, a repository over a store that can fail, a count of what is in it.
#![allow(dead_code, reason = "each test file uses its own part of it")]

pub(crate) mod faulty;
pub(crate) mod seaweed;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use sealblk_snapshot::{
    BLOCK_BYTES, Block, BlockSet, BlockSource, Cause, Changed, NewSnapshot, Progress, Repository, Snapshot,
    SnapshotError, SnapshotId, SnapshotRecord, Stop, UploadOptions,
};

/// A volume: the blocks that have data, each filled with one byte.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Volume {
    pub(crate) size_bytes: u64,
    pub(crate) blocks: BTreeMap<u64, u8>,
}

impl Volume {
    pub(crate) fn new(size_bytes: u64, blocks: impl IntoIterator<Item = (u64, u8)>) -> Self {
        Self { size_bytes, blocks: blocks.into_iter().collect() }
    }

    /// What block `index` has, `length` bytes of it.
    pub(crate) fn content(&self, index: u64, length: usize) -> Option<Bytes> {
        self.blocks.get(&index).map(|byte| vec![*byte; length].into())
    }
}

impl BlockSource for Volume {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        Ok(self.content(index, length).unwrap_or_else(|| vec![0; length].into()))
    }

    async fn next_data(&self, from: u64) -> Result<Option<Range<u64>>, Cause> {
        Ok(self.blocks.range(from..).next().map(|(&block, _)| block..block + 1))
    }
}

pub(crate) fn snapshot_id(number: u64) -> SnapshotId {
    format!("snap-{number:017x}").parse().expect("17 digits")
}

pub(crate) async fn in_memory() -> (Repository, Arc<dyn ObjectStore>) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    (Repository::with_store(Arc::clone(&store)).await.expect("fit"), store)
}

/// Uploads with ordinary options.
pub(crate) async fn upload<S: BlockSource>(
    repository: &Repository,
    id: SnapshotId,
    source: &S,
    changed: &Changed,
) -> Result<SnapshotRecord, SnapshotError> {
    let options =
        UploadOptions { parallel: 4, same_source: true, progress: &|_: Progress| {}, stop: &Stop::default() };
    repository.upload(id, source, changed, options).await
}

/// Begins and uploads.
pub(crate) async fn create(
    repository: &Repository,
    number: u64,
    parent: Option<u64>,
    volume: &Volume,
    changed: &Changed,
) -> Result<SnapshotRecord, SnapshotError> {
    let id = snapshot_id(number);
    let parent = parent.map(snapshot_id);
    repository
        .begin(NewSnapshot { id, volume_size_bytes: volume.size_bytes, parent, metadata: &number })
        .await?;
    upload(repository, id, volume, changed).await
}

/// Reads a snapshot whole and compares it with the volume it was made of.
pub(crate) async fn assert_is(snapshot: &Snapshot, volume: &Volume) {
    assert_eq!(snapshot.record().volume_size_bytes, volume.size_bytes);
    let data = snapshot.data_blocks().await.expect("an index");
    assert!(data.iter().eq(volume.blocks.keys().copied()), "{data:?} {:?}", volume.blocks.keys());
    for index in data.iter() {
        let length = sealblk_snapshot::block_bytes(volume.size_bytes, index) as usize;
        let expected = volume.content(index, length).expect("it has data");
        assert_eq!(
            snapshot.read_block(index).await.expect("a block"),
            Block::Data(expected),
            "block {index}"
        );
    }
}

/// How many blocks and pages are in a store.
pub(crate) async fn objects(store: &dyn ObjectStore) -> (usize, usize) {
    let count = async |prefix: &str| {
        let listed = store.list(Some(&object_store::path::Path::from(prefix)));
        listed.try_collect::<Vec<_>>().await.expect("a listing").len()
    };
    (count("blocks").await, count("pages").await)
}

/// The blocks in which two volumes differ.
pub(crate) fn difference(one: &Volume, other: &Volume) -> BlockSet {
    let all = one.blocks.keys().chain(other.blocks.keys());
    all.copied().filter(|index| one.blocks.get(index) != other.blocks.get(index)).collect()
}

pub(crate) const MIB: u64 = 1024 * 1024;
pub(crate) const TIB: u64 = 1024 * 1024 * MIB;

/// A volume's size of so many whole blocks.
pub(crate) const fn blocks(count: u64) -> u64 {
    count * BLOCK_BYTES
}
