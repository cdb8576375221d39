//! Snapshots in a real S3 server: conditional writes, prefixes, bulk deletes, and a server that is killed in the middle.

mod rig;

use std::cell::Cell;

use rig::seaweed::Seaweed;
use rig::*;
use sealblk_snapshot::{
    Changed, Deletion, Depth, NewSnapshot, Progress, Repository, SnapshotError, State, Stop, StoreFault,
    UploadOptions,
};

/// One server for all: starting it takes seconds.
#[tokio::test]
async fn an_s3_store_is_a_repository() {
    let mut server = Seaweed::start();
    snapshots_are_made_read_and_deleted(&server).await;
    two_repositories_in_one_bucket_do_not_meet(&server).await;
    wrong_credentials_are_refused(&server).await;
    a_killed_store_is_taken_up_again(&mut server).await;
}

async fn snapshots_are_made_read_and_deleted(server: &Seaweed) {
    let repository =
        Repository::open(&server.location("a/b"), &server.options()).await.expect("a repository");
    let mut volume = Volume::new(blocks(2000) + 512, [(0, 1), (1, 1), (1500, 2), (2000, 3)]);
    let first = volume.clone();
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    volume.blocks.insert(1, 9);
    create(&repository, 2, Some(1), &volume, &Changed::Unknown).await.expect("a snapshot");
    // Somebody else, who has read nothing yet.
    let repository =
        Repository::open(&server.location("a/b"), &server.options()).await.expect("a repository");
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &first).await;
    let again = create(&repository, 1, None, &volume, &Changed::Unknown).await;
    assert!(matches!(again, Err(SnapshotError::Exists { .. })), "If-None-Match holds: {again:?}");
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert!(report.is_clean() && report.blocks == 5, "{report:?}");
    repository.hold(snapshot_id(1), "vol-1").await.expect("held");
    let held = repository.delete(snapshot_id(1)).await.expect("marked");
    assert!(matches!(held, Deletion::Held { .. }), "{held:?}");
    repository.release(snapshot_id(1), "vol-1").await.expect("released");
    assert_is(&repository.snapshot(snapshot_id(2)).await.expect("completed"), &volume).await;
    let report = repository.verify_all(Depth::Existence).await.expect("verified");
    assert!(report.is_clean() && report.blocks == 4, "{report:?}");
    // Nobody overwrites what changed since: two changes at once are both there.
    let add = |amount: u64| {
        let repository = repository.clone();
        async move { repository.update_metadata(snapshot_id(2), |number: u64| number + amount).await }
    };
    let (one, other) = tokio::join!(add(10), add(100));
    one.and(other).expect("changed");
    let number: u64 =
        repository.record(snapshot_id(2)).await.expect("a record").metadata().expect("a number");
    assert_eq!(number, 112);
}

async fn two_repositories_in_one_bucket_do_not_meet(server: &Seaweed) {
    let other = Repository::open(&server.location("other"), &server.options()).await.expect("a repository");
    assert!(other.snapshots().await.expect("none").is_empty());
}

async fn wrong_credentials_are_refused(server: &Seaweed) {
    let mut options = server.options();
    options.set("secret_access_key", "wrong").expect("an option");
    let refused = Repository::open(&server.location("a/b"), &options).await;
    assert!(matches!(refused, Err(SnapshotError::Store { kind: StoreFault::Denied, .. })), "{refused:?}");
}

async fn a_killed_store_is_taken_up_again(server: &mut Seaweed) {
    let location = server.location("killed");
    let repository = Repository::open(&location, &server.options()).await.expect("a repository");
    let volume = Volume::new(blocks(3000), (0..40).map(|index| (index * 70, 1 + index as u8)));
    let new =
        NewSnapshot { id: snapshot_id(1), volume_size_bytes: volume.size_bytes, parent: None, metadata: &() };
    repository.begin(new).await.expect("begun");
    let server = std::cell::RefCell::new(server);
    let killed = Cell::new(false);
    let progress = |progress: Progress| {
        if progress.done >= 20 && !killed.replace(true) {
            server.borrow_mut().kill();
        }
    };
    let stop = Stop::default();
    let options = UploadOptions { parallel: 4, same_source: true, progress: &progress, stop: &stop };
    let lost = repository.upload(snapshot_id(1), &volume, &Changed::Unknown, options).await;
    assert!(matches!(lost, Err(SnapshotError::Store { kind: StoreFault::Unavailable, .. })), "{lost:?}");
    server.borrow_mut().restart();
    let options = server.borrow().options();
    let repository = Repository::open(&location, &options).await.expect("a repository");
    assert_eq!(repository.record(snapshot_id(1)).await.expect("a record").state, State::Pending);
    let written = Cell::new(0);
    let progress = |progress: Progress| written.set(progress.bytes);
    let options = UploadOptions { parallel: 4, same_source: true, progress: &progress, stop: &stop };
    let done =
        repository.upload(snapshot_id(1), &volume, &Changed::Unknown, options).await.expect("taken up");
    assert_eq!(done.state, State::Completed);
    assert!(written.get() <= blocks(25), "what was there is not written again: {} bytes", written.get());
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("completed"), &volume).await;
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert!(report.is_clean(), "{report:?}");
}
