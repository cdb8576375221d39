//! Damage is found: at every read, with a name for what is damaged, and by verifying.

use std::sync::Arc;

use crate::rig::*;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use sealblk_snapshot::{Changed, Depth, Fault, Part, Repository, SnapshotError};

/// Two snapshots that share block 0; block 5 is the second's.
async fn two() -> (Repository, Arc<dyn ObjectStore>) {
    let (repository, store) = in_memory().await;
    let mut volume = Volume::new(blocks(10), [(0, 1), (5, 1)]);
    create(&repository, 1, None, &volume, &Changed::Unknown).await.expect("a snapshot");
    volume.blocks.insert(5, 2);
    create(&repository, 2, Some(1), &volume, &Changed::Unknown).await.expect("a snapshot");
    // Another one, which remembers no page.
    (Repository::with_store(Arc::clone(&store)).await.expect("fit"), store)
}

/// The one object whose path has these parts.
async fn object(store: &dyn ObjectStore, prefix: &str, part: &str) -> Path {
    let listed: Vec<_> = store.list(Some(&Path::from(prefix))).try_collect().await.expect("a listing");
    let mut paths = listed.into_iter().map(|object| object.location);
    paths.find(|path| path.as_ref().contains(part)).expect("there is one")
}

#[tokio::test]
async fn a_damaged_block_is_an_error_that_names_it() {
    let (repository, store) = two().await;
    let path = object(&*store, "blocks", "/000-").await;
    let mut content = store.get(&path).await.expect("there").bytes().await.expect("read").to_vec();
    content[77] ^= 1;
    store.put(&path, content.into()).await.expect("damaged");
    let snapshot = repository.snapshot(snapshot_id(2)).await.expect("completed");
    match snapshot.read_block(0).await {
        Err(SnapshotError::Damaged { snapshot, part: Part::Block(0), object, fault: Fault::Damaged(_) }) => {
            assert_eq!((snapshot, object), (snapshot_id(2), path.to_string()));
        }
        other => panic!("{other:?}"),
    }
    let quick = repository.verify_all(Depth::Existence).await.expect("verified");
    assert!(quick.is_clean(), "it is there, and as long as it was: {quick:?}");
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert_eq!(
        (report.snapshots, report.blocks, report.flaws.len()),
        (2, 3, 1),
        "a shared block counts once"
    );
    assert_eq!(report.flaws[0].snapshots, [snapshot_id(1), snapshot_id(2)]);
    assert_eq!(report.flaws[0].part, Part::Block(0));
}

#[tokio::test]
async fn a_missing_block_is_found_without_reading_blocks() {
    let (repository, store) = two().await;
    let path = object(&*store, &format!("blocks/{}", snapshot_id(2)), "/005-").await;
    store.delete(&path).await.expect("lost");
    let report = repository.verify_all(Depth::Existence).await.expect("verified");
    assert_eq!(report.flaws.len(), 1, "{report:?}");
    assert_eq!((&report.flaws[0].fault, report.flaws[0].part), (&Fault::Missing, Part::Block(5)));
    assert_eq!(report.flaws[0].snapshots, [snapshot_id(2)]);
    assert!(repository.verify(snapshot_id(1), Depth::Contents).await.expect("verified").is_clean());
    assert!(!repository.verify(snapshot_id(2), Depth::Contents).await.expect("verified").is_clean());
}

#[tokio::test]
async fn a_damaged_page_is_found_and_nothing_below_it_is_called_unreferenced() {
    let (repository, store) = two().await;
    let path = object(&*store, &format!("pages/{}", snapshot_id(2)), "/0-").await;
    store.put(&path, "x".into()).await.expect("damaged");
    let report = repository.verify_all(Depth::Existence).await.expect("verified");
    assert_eq!(report.flaws.len(), 1, "{report:?}");
    assert_eq!(report.flaws[0].part, Part::Page { level: 0, position: 0 });
    assert_eq!(report.unreferenced, Vec::<String>::new());
    let refused = repository.remove_unreferenced().await;
    assert!(matches!(refused, Err(SnapshotError::Damaged { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_nobody_needs_is_found_and_removed() {
    let (repository, store) = two().await;
    let path = object(&*store, "blocks", "/000-").await;
    let stray = path.as_ref().replace("/000-", "/00a-");
    store.put(&stray.as_str().into(), "x".into()).await.expect("written");
    let gone = format!("blocks/{}/000000/000-{}", snapshot_id(77), "0".repeat(64));
    store.put(&gone.as_str().into(), "x".into()).await.expect("written");
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert!(report.flaws.is_empty());
    assert_eq!(report.unreferenced, [stray, gone]);
    assert_eq!(repository.remove_unreferenced().await.expect("removed"), 2);
    assert!(repository.verify_all(Depth::Contents).await.expect("verified").is_clean());
}
