//! Snapshots made and read: what is in them is what was in the volume, and what is stored is only what changed.

use crate::rig::*;
use sealblk_snapshot::{Block, BlockSet, Changed, Location, Repository, SnapshotError, State, StoreOptions};

fn only(blocks: impl IntoIterator<Item = u64>) -> Changed {
    Changed::Only(blocks.into_iter().collect())
}

#[tokio::test]
async fn a_snapshot_has_what_the_volume_had() {
    let (repository, store) = in_memory().await;
    let volume = Volume::new(blocks(3000), [(0, 1), (1023, 2), (1024, 3), (2999, 4)]);
    let record = create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    assert_eq!((record.state, record.changed_blocks, record.progress_percent()), (State::Completed, 4, 100));
    assert_eq!(record.metadata::<u64>().expect("a number"), 1);
    assert_eq!(record.root.expect("data").blocks, 4);
    let snapshot = repository.snapshot(snapshot_id(1)).await.expect("completed");
    assert_is(&snapshot, &volume).await;
    assert_eq!(snapshot.read_block(5).await.expect("zeros"), Block::Zero);
    assert_eq!(snapshot.read_block(3000).await.expect("behind the end"), Block::Zero);
    // Three leaves, one middle page, the root page.
    assert_eq!(objects(&*store).await, (4, 5));
}

#[tokio::test]
async fn an_empty_volume_needs_no_object_but_its_record() {
    let (repository, store) = in_memory().await;
    let volume = Volume::new(16 * TIB, []);
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    assert_eq!(objects(&*store).await, (0, 0));
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &volume).await;
}

#[tokio::test]
async fn the_odd_last_block_has_exactly_its_bytes() {
    let (repository, _) = in_memory().await;
    let mut volume = Volume::new(blocks(2) + 1536, [(1, 1), (2, 9)]);
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let first = repository.snapshot(snapshot_id(1)).await.expect("completed");
    assert_eq!(first.read_block(2).await.expect("a block"), Block::Data(vec![9; 1536].into()));
    // The volume grows: the block has more bytes, though nobody says that it changed.
    volume.size_bytes = blocks(2) + 4096;
    create(&repository, 2, Some(1), &volume, &only([])).await.expect("a snapshot");
    let second = repository.snapshot(snapshot_id(2)).await.expect("completed");
    assert_is(&second, &volume).await;
    assert_eq!(second.changed_blocks(&first).await.expect("indexes"), [2].into_iter().collect());
}

#[tokio::test]
async fn an_increment_stores_only_what_changed() {
    let (repository, store) = in_memory().await;
    let mut volume = Volume::new(blocks(4000), (0..40).map(|index| (index * 100, 1)));
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let before = objects(&*store).await;
    let earlier = volume.clone();
    volume.blocks.insert(100, 7);
    volume.blocks.insert(101, 8);
    volume.blocks.remove(&200);
    let changed = only([100, 101, 200, 300]);
    let record = create(&repository, 2, Some(1), &volume, &changed).await.expect("a snapshot");
    assert_eq!(record.changed_blocks, 2, "block 300 is what it was, block 200 is zeros");
    let after = objects(&*store).await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (2, 3));
    let first = repository.snapshot(snapshot_id(1)).await.expect("completed");
    let second = repository.snapshot(snapshot_id(2)).await.expect("completed");
    assert_is(&first, &earlier).await;
    assert_is(&second, &volume).await;
    let expected: BlockSet = [100, 101, 200].into_iter().collect();
    assert_eq!(second.changed_blocks(&first).await.expect("indexes"), expected);
    assert_eq!(first.changed_blocks(&second).await.expect("indexes"), expected);
}

#[tokio::test]
async fn hashes_find_what_changed_when_no_map_is_to_be_trusted() {
    let (repository, store) = in_memory().await;
    let mut volume = Volume::new(blocks(4000), (0..40).map(|index| (index * 100, 1)));
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let before = objects(&*store).await;
    volume.blocks.insert(3999, 7);
    volume.blocks.remove(&0);
    let record = create(&repository, 2, Some(1), &volume, &Changed::Unknown).await.expect("a snapshot");
    assert_eq!(record.changed_blocks, 1);
    let after = objects(&*store).await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 4));
    assert_is(&repository.snapshot(snapshot_id(2)).await.expect("completed"), &volume).await;
}

#[tokio::test]
async fn an_unchanged_volume_shares_everything() {
    let (repository, store) = in_memory().await;
    let volume = Volume::new(blocks(4000), [(0, 1), (2000, 2)]);
    let first = create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let before = objects(&*store).await;
    let second = create(&repository, 2, Some(1), &volume, &Changed::Unknown).await.expect("a snapshot");
    assert_eq!((second.root, objects(&*store).await), (first.root, before));
}

#[tokio::test]
async fn a_local_directory_is_a_repository() {
    let directory = tempfile::tempdir().expect("a directory");
    let location = Location::Directory(directory.path().join("deep/snapshots"));
    let volume = Volume::new(blocks(2000), [(0, 1), (1999, 2)]);
    {
        let repository = Repository::open(&location, &StoreOptions::default()).await.expect("a repository");
        create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    }
    let repository = Repository::open(&location, &StoreOptions::default()).await.expect("a repository");
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &volume).await;
    let again = create(&repository, 1, None, &volume, &Changed::Unknown).await;
    assert!(matches!(again, Err(SnapshotError::Exists { .. })), "{again:?}");
    assert_eq!(repository.snapshots().await.expect("records").len(), 1);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(directory.path().join("deep/snapshots")).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o700, "snapshots of unencrypted volumes are plaintext");
}

#[tokio::test]
async fn metadata_is_the_callers() {
    let (repository, _) = in_memory().await;
    create(&repository, 1, None, &Volume::new(MIB, []), &Changed::Unknown).await.expect("a snapshot");
    let record =
        repository.update_metadata(snapshot_id(1), |number: u64| number + 41).await.expect("updated");
    assert_eq!(record.metadata::<u64>().expect("a number"), 42);
    let wrong = repository.record(snapshot_id(1)).await.expect("a record").metadata::<String>();
    assert!(matches!(wrong, Err(SnapshotError::Metadata { .. })));
}

#[tokio::test]
async fn only_a_completed_snapshot_is_read_or_built_upon() {
    let (repository, _) = in_memory().await;
    let volume = Volume::new(MIB, [(0, 1)]);
    let new = sealblk_snapshot::NewSnapshot {
        id: snapshot_id(1),
        volume_size_bytes: MIB,
        parent: None,
        metadata: &(),
    };
    repository.begin(new).await.expect("begun");
    let read = repository.snapshot(snapshot_id(1)).await;
    assert!(matches!(read, Err(SnapshotError::WrongState { state: State::Pending, .. })), "{read:?}");
    let child = create(&repository, 2, Some(1), &volume, &Changed::Unknown).await;
    assert!(matches!(child, Err(SnapshotError::WrongState { state: State::Pending, .. })), "{child:?}");
    repository.fail(snapshot_id(1), "nobody wants it").await.expect("given up");
    let upload = upload(&repository, snapshot_id(1), &volume, &Changed::Unknown).await;
    assert!(matches!(upload, Err(SnapshotError::WrongState { state: State::Error, .. })), "{upload:?}");
    let absent = repository.snapshot(snapshot_id(9)).await;
    assert!(matches!(absent, Err(SnapshotError::NotFound { .. })), "{absent:?}");
}
