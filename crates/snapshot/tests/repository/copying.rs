//! Copies: complete or incremental, as they are or transformed, within a repository or between two.

use std::cell::Cell;

use crate::rig::*;
use bytes::Bytes;
use sealblk_snapshot::{
    Cause, Changed, Deletion, EarlierCopy, NewCopy, Progress, Repository, SnapshotError, Stop, Transform,
    Unchanged, UploadOptions,
};

/// Stands for re-encryption: another byte for each byte.
struct Add(u8, Cell<u64>);

impl Transform for Add {
    async fn transform(&self, _: u64, content: Bytes) -> Result<Bytes, Cause> {
        self.1.set(self.1.get() + 1);
        Ok(content.iter().map(|byte| byte.wrapping_add(self.0)).collect())
    }
}

fn added(volume: &Volume, by: u8) -> Volume {
    let blocks = volume.blocks.iter().map(|(&index, &byte)| (index, byte + by));
    Volume::new(volume.size_bytes, blocks)
}

async fn copy<T: Transform>(
    to: &Repository,
    from: &Repository,
    copy: NewCopy<'_, (), T>,
    stop: &Stop,
    stop_at: u64,
) -> Result<sealblk_snapshot::SnapshotRecord, SnapshotError> {
    let progress = |progress: Progress| {
        if progress.done == stop_at {
            stop.request();
        }
    };
    let options = UploadOptions { parallel: 1, same_source: false, progress: &progress, stop };
    to.copy(from, copy, options).await
}

fn new<'a, T>(source: u64, id: u64, transform: &'a T, earlier: Option<(u64, u64)>) -> NewCopy<'a, (), T> {
    let earlier =
        earlier.map(|(source, copy)| EarlierCopy { source: snapshot_id(source), copy: snapshot_id(copy) });
    NewCopy { source: snapshot_id(source), id: snapshot_id(id), transform, earlier, metadata: &() }
}

#[tokio::test]
async fn a_copy_is_complete_the_first_time_and_incremental_after_that() {
    let ((source, _), (destination, store)) = (in_memory().await, in_memory().await);
    let mut volume = Volume::new(blocks(3000) + 512, (0..30).map(|index| (index * 100, 1)));
    volume.blocks.insert(3000, 7);
    create(&source, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let add = Add(100, Cell::new(0));
    let never = Stop::default();
    copy(&destination, &source, new(1, 11, &add, None), &never, u64::MAX).await.expect("a copy");
    assert_is(&destination.snapshot(snapshot_id(11)).await.expect("completed"), &added(&volume, 100)).await;
    assert_eq!(add.1.replace(0), 31);
    let before = objects(&*store).await.0;
    volume.blocks.insert(5, 5);
    volume.blocks.remove(&100);
    create(&source, 2, Some(1), &volume, &Changed::Unknown).await.expect("a snapshot");
    let again = new(2, 12, &add, Some((1, 11)));
    copy(&destination, &source, again, &never, u64::MAX).await.expect("a copy");
    assert_is(&destination.snapshot(snapshot_id(12)).await.expect("completed"), &added(&volume, 100)).await;
    assert_eq!((add.1.get(), objects(&*store).await.0 - before), (1, 1), "only what changed");
    assert!(source.holders(snapshot_id(1)).await.expect("listed").is_empty());
    assert!(source.holders(snapshot_id(2)).await.expect("listed").is_empty());
}

#[tokio::test]
async fn a_copy_under_the_same_key_moves_nothing() {
    let (repository, store) = in_memory().await;
    let volume = Volume::new(blocks(3000), [(0, 1), (2999, 2)]);
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let before = objects(&*store).await;
    let record = repository.duplicate(snapshot_id(1), snapshot_id(2), &"copy").await.expect("a copy");
    assert_eq!(record.metadata::<String>().expect("text"), "copy");
    assert_eq!(objects(&*store).await, before);
    repository.delete(snapshot_id(1)).await.expect("deleted");
    assert_eq!(objects(&*store).await, before, "the copy needs all of it");
    assert_is(&repository.snapshot(snapshot_id(2)).await.expect("completed"), &volume).await;
}

#[tokio::test]
async fn a_copy_that_was_stopped_is_taken_up_again_though_its_source_was_deleted_meanwhile() {
    let ((source, store), (destination, _)) = (in_memory().await, in_memory().await);
    let volume = Volume::new(blocks(5000), (0..50).map(|index| (index * 100, 1)));
    create(&source, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let stop = Stop::default();
    let stopped = copy(&destination, &source, new(1, 11, &Unchanged, None), &stop, 25).await;
    assert!(matches!(stopped, Err(SnapshotError::Stopped)), "{stopped:?}");
    let deleted = source.delete(snapshot_id(1)).await.expect("marked");
    assert_eq!(deleted, Deletion::Held { holders: vec![snapshot_id(11).to_string()] });
    let refused = copy(&destination, &source, new(1, 12, &Unchanged, None), &Stop::default(), u64::MAX).await;
    assert!(matches!(refused, Err(SnapshotError::WrongState { .. })), "{refused:?}");
    let never = Stop::default();
    copy(&destination, &source, new(1, 11, &Unchanged, None), &never, u64::MAX).await.expect("taken up");
    assert_is(&destination.snapshot(snapshot_id(11)).await.expect("completed"), &volume).await;
    assert_eq!(objects(&*store).await, (0, 0), "the source is gone as soon as the copy is complete");
}

#[tokio::test]
async fn a_copy_that_is_given_up_holds_nothing() {
    let ((source, _), (destination, store)) = (in_memory().await, in_memory().await);
    let volume = Volume::new(blocks(5000), (0..50).map(|index| (index * 100, 1)));
    create(&source, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    let stop = Stop::default();
    copy(&destination, &source, new(1, 11, &Unchanged, None), &stop, 25).await.expect_err("stopped");
    destination.delete(snapshot_id(11)).await.expect("deleted");
    source.end_copy(snapshot_id(11), snapshot_id(1), None).await.expect("released");
    assert_eq!(objects(&*store).await, (0, 0));
    assert!(matches!(source.delete(snapshot_id(1)).await, Ok(Deletion::Removed(_))));
}
