//! An upload that fails anywhere is taken up again; what is there already is not written again, and nobody else's attempt
//! gets in the way.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::rig::faulty::Faulty;
use crate::rig::*;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use sealblk_snapshot::{
    BlockSource, Cause, Changed, Depth, NewSnapshot, Progress, Repository, SnapshotError, Stop, UploadOptions,
};

fn volume() -> Volume {
    Volume::new(blocks(5000), (0..50).map(|index| (index * 100, 1 + index as u8)))
}

fn new(number: u64, volume: &Volume) -> NewSnapshot<'static, ()> {
    NewSnapshot { id: snapshot_id(number), volume_size_bytes: volume.size_bytes, parent: None, metadata: &() }
}

#[tokio::test]
async fn a_lost_store_is_taken_up_again_and_no_block_is_written_twice() {
    let volume = volume();
    for lose_reply in [false, true] {
        for at in (8..70).step_by(7) {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let failing = Faulty::failing(Arc::clone(&inner), at..u64::MAX, lose_reply);
            let broken = Repository::with_store(failing).await.expect("fit so far");
            let lost = create(&broken, 1, None, &volume, &Changed::Unknown).await;
            assert!(matches!(lost, Err(SnapshotError::Store { .. })), "{lost:?}");
            let there = objects(&*inner).await.0 as u64;
            let counting = Faulty::new(Arc::clone(&inner));
            let repository = Repository::with_store(counting.clone()).await.expect("fit");
            upload(&repository, snapshot_id(1), &volume, &Changed::Unknown).await.expect("taken up");
            let bytes = counting.written_bytes.load(Ordering::Relaxed);
            assert!(bytes < blocks(50 - there + 1), "{there} blocks were there, {bytes} bytes written");
            assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &volume).await;
            let report = repository.verify_all(Depth::Contents).await.expect("verified");
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

/// A volume that counts how often it is read.
struct Counted(Volume, Cell<u64>);

impl BlockSource for Counted {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        self.1.set(self.1.get() + 1);
        self.0.read_block(index, length).await
    }

    async fn next_data(&self, from: u64) -> Result<Option<std::ops::Range<u64>>, Cause> {
        self.0.next_data(from).await
    }
}

#[tokio::test]
async fn stopped_and_taken_up_with_the_same_source_reads_only_what_is_left() {
    let (repository, _) = in_memory().await;
    let source = Counted(volume(), Cell::new(0));
    repository.begin(new(1, &source.0)).await.expect("begun");
    let stop = Stop::default();
    let progress = |progress: Progress| {
        if progress.done == 25 {
            stop.request();
        }
    };
    let options = UploadOptions { parallel: 1, same_source: true, progress: &progress, stop: &stop };
    let stopped = repository.upload(snapshot_id(1), &source, &Changed::Unknown, options).await;
    assert!(matches!(stopped, Err(SnapshotError::Stopped)), "{stopped:?}");
    assert_eq!(source.1.replace(0), 25);
    let record = upload(&repository, snapshot_id(1), &source, &Changed::Unknown).await.expect("taken up");
    // Two leaves of some ten blocks were finished.
    assert!(source.1.get() <= 30, "{} blocks read again", source.1.get());
    assert_eq!((record.changed_blocks, record.attempt), (50, 2));
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &source.0).await;
}

#[tokio::test]
async fn an_attempt_with_other_content_leaves_nothing_of_the_first() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let failing = Faulty::failing(Arc::clone(&inner), 50..u64::MAX, false);
    let broken = Repository::with_store(failing).await.expect("fit so far");
    create(&broken, 1, None, &volume(), &Changed::Unknown).await.expect_err("lost");
    let mut other = volume();
    other.blocks.values_mut().for_each(|byte| *byte += 100);
    let repository = Repository::with_store(Arc::clone(&inner)).await.expect("fit");
    let stop = Stop::default();
    let options = UploadOptions { parallel: 4, same_source: false, progress: &|_| {}, stop: &stop };
    repository.upload(snapshot_id(1), &other, &Changed::Unknown, options).await.expect("taken up");
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &other).await;
    assert_eq!(objects(&*inner).await, (50, 5 + 1 + 1));
}

/// A volume of whose blocks one is given only when somebody says so.
struct Gated(Volume, tokio::sync::Semaphore);

impl BlockSource for Gated {
    async fn read_block(&self, index: u64, length: usize) -> Result<Bytes, Cause> {
        if index == 300 {
            self.1.acquire().await?.forget();
        }
        self.0.read_block(index, length).await
    }
}

#[tokio::test]
async fn whoever_takes_over_wins_and_the_earlier_one_stops() {
    let (repository, _) = in_memory().await;
    let small = Volume::new(blocks(400), [(0, 1), (300, 2)]);
    repository.begin(new(1, &small)).await.expect("begun");
    let slow = Gated(small.clone(), tokio::sync::Semaphore::new(0));
    let earlier = upload(&repository, snapshot_id(1), &slow, &Changed::Unknown);
    let later = async {
        // The earlier one has claimed the snapshot and waits for a block.
        while repository.record(snapshot_id(1)).await.expect("a record").attempt == 0 {
            tokio::task::yield_now().await;
        }
        let done = upload(&repository, snapshot_id(1), &small, &Changed::Unknown).await;
        slow.1.add_permits(1);
        done
    };
    let (earlier, later) = tokio::join!(earlier, later);
    assert_eq!(later.expect("completed").attempt, 2);
    assert!(matches!(earlier, Err(SnapshotError::Superseded { .. })), "{earlier:?}");
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &small).await;
}

#[tokio::test]
async fn completing_again_changes_nothing() {
    let (repository, _) = in_memory().await;
    let first = create(&repository, 1, None, &volume(), &Changed::Unknown).await.expect("a snapshot");
    let other = Volume::new(blocks(5000), [(0, 99)]);
    let again = upload(&repository, snapshot_id(1), &other, &Changed::Unknown).await.expect("completed");
    assert_eq!(again, first);
}
