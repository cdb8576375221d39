//! Deleting frees exactly what no other snapshot needs, with others at work and killed anywhere.

use std::sync::Arc;

use crate::rig::faulty::Faulty;
use crate::rig::*;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;
use sealblk_snapshot::{Changed, Deletion, Freed, NewSnapshot, Repository, SnapshotError, State};

async fn chain(repository: &Repository) -> [Volume; 3] {
    let first = Volume::new(blocks(3000), [(0, 1), (1, 1), (1024, 1), (2999, 1)]);
    let mut second = first.clone();
    second.blocks.extend([(0, 2), (5, 2)]);
    let mut third = second.clone();
    third.blocks.extend([(1024, 3)]);
    for (number, volume) in (1..).zip([&first, &second, &third]) {
        let parent = (number > 1).then(|| number - 1);
        create(repository, number, parent, volume, &Changed::Unknown).await.expect("a snapshot");
    }
    [first, second, third]
}

#[tokio::test]
async fn the_middle_of_a_chain_gives_back_what_only_it_had() {
    let (repository, store) = in_memory().await;
    let [first, _, third] = chain(&repository).await;
    let before = objects(&*store).await;
    // The second's own: its root and middle page; block 0 and block 5 and their leaf are the third's as well.
    let deleted = repository.delete(snapshot_id(2)).await.expect("deleted");
    assert_eq!(deleted, Deletion::Removed(Freed { blocks: 0, pages: 2 }));
    assert_eq!(objects(&*store).await, (before.0, before.1 - 2));
    assert_is(&repository.snapshot(snapshot_id(1)).await.expect("there"), &first).await;
    assert_is(&repository.snapshot(snapshot_id(3)).await.expect("there"), &third).await;
    // The first: its block 0, its leaf 0 with it, block 1024 and its leaf, the two pages above.
    let deleted = repository.delete(snapshot_id(1)).await.expect("deleted");
    assert_eq!(deleted, Deletion::Removed(Freed { blocks: 2, pages: 4 }));
    assert_is(&repository.snapshot(snapshot_id(3)).await.expect("there"), &third).await;
    repository.delete(snapshot_id(3)).await.expect("deleted");
    assert_eq!(objects(&*store).await, (0, 0), "nothing is left of any");
    let gone = repository.delete(snapshot_id(3)).await;
    assert!(matches!(gone, Err(SnapshotError::NotFound { .. })));
}

#[tokio::test]
async fn a_parent_deleted_while_its_child_is_made_keeps_what_the_child_needs() {
    let (repository, store) = in_memory().await;
    let [_, _, third] = chain(&repository).await;
    let new = NewSnapshot {
        id: snapshot_id(4),
        volume_size_bytes: third.size_bytes,
        parent: Some(snapshot_id(3)),
        metadata: &(),
    };
    repository.begin(new).await.expect("begun");
    for number in 1..=2 {
        repository.delete(snapshot_id(number)).await.expect("deleted");
    }
    let deleted = repository.delete(snapshot_id(3)).await.expect("marked");
    assert_eq!(deleted, Deletion::Held { holders: vec![snapshot_id(4).to_string()] });
    let mut volume = third;
    volume.blocks.insert(7, 7);
    upload(&repository, snapshot_id(4), &volume, &Changed::Only([7].into_iter().collect()))
        .await
        .expect("made");
    assert_is(&repository.snapshot(snapshot_id(4)).await.expect("completed"), &volume).await;
    let gone = repository.record(snapshot_id(3)).await;
    assert!(matches!(gone, Err(SnapshotError::NotFound { .. })), "{gone:?}");
    repository.delete(snapshot_id(4)).await.expect("deleted");
    assert_eq!(objects(&*store).await, (0, 0));
}

#[tokio::test]
async fn a_pending_snapshot_that_is_deleted_takes_all_it_wrote_with_it_and_cannot_be_completed() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let repository = Repository::with_store(Arc::clone(&inner)).await.expect("fit");
    let volume = Volume::new(blocks(3000), (0..30).map(|index| (index * 100, 1)));
    let failing = Faulty::failing(Arc::clone(&inner), 20..u64::MAX, false);
    let broken = Repository::with_store(failing).await.expect("fit so far");
    create(&broken, 1, None, &volume, &Changed::Unknown).await.expect_err("the store was lost");
    assert_ne!(objects(&*inner).await, (0, 0));
    repository.delete(snapshot_id(1)).await.expect("deleted");
    assert_eq!(objects(&*inner).await, (0, 0));
    let upload = upload(&repository, snapshot_id(1), &volume, &Changed::Unknown).await;
    assert!(matches!(upload, Err(SnapshotError::NotFound { .. })), "{upload:?}");
}

#[tokio::test]
async fn a_held_snapshot_is_closed_and_stays_whole_until_it_is_released() {
    let (repository, store) = in_memory().await;
    let [_, _, third] = chain(&repository).await;
    repository.hold(snapshot_id(3), "vol-1").await.expect("held");
    let reader = repository.snapshot(snapshot_id(3)).await.expect("completed");
    let deleted = repository.delete(snapshot_id(3)).await.expect("marked");
    assert_eq!(deleted, Deletion::Held { holders: vec!["vol-1".to_owned()] });
    // Others that are deleted meanwhile take nothing of it.
    repository.delete(snapshot_id(2)).await.expect("deleted");
    repository.delete(snapshot_id(1)).await.expect("deleted");
    assert_is(&reader, &third).await;
    let late = repository.hold(snapshot_id(3), "vol-2").await;
    assert!(matches!(late, Err(SnapshotError::WrongState { state: State::Deleting, .. })), "{late:?}");
    repository.hold(snapshot_id(3), "vol-1").await.expect("it comes back after a crash");
    assert!(repository.finish_deletions().await.expect("nothing to do").is_empty());
    let released = repository.release(snapshot_id(3), "vol-1").await.expect("released");
    assert!(matches!(released, Some(Deletion::Removed(_))), "{released:?}");
    assert_eq!(objects(&*store).await, (0, 0));
}

#[tokio::test]
async fn nothing_is_deleted_below_a_page_that_cannot_be_read() {
    let (repository, store) = in_memory().await;
    chain(&repository).await;
    let root = repository.record(snapshot_id(1)).await.expect("a record").root.expect("data");
    let path = format!("pages/{}/2-000000-{}", root.generation, root.hash);
    use object_store::ObjectStoreExt as _;
    store.put(&path.into(), "damaged".into()).await.expect("damaged");
    // Another one, which remembers no page.
    let repository = Repository::with_store(Arc::clone(&store)).await.expect("fit");
    let before = objects(&*store).await;
    let refused = repository.delete(snapshot_id(2)).await;
    assert!(matches!(refused, Err(SnapshotError::Damaged { snapshot, .. }) if snapshot == snapshot_id(1)));
    assert_eq!(objects(&*store).await, before);
}

/// What a step of the model does.
#[derive(Clone, Debug)]
enum Step {
    Create { parent: Option<prop::sample::Index>, changes: Vec<(u64, u8)>, trust_map: bool },
    Delete(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few blocks, in three leaves of two middle pages, so that snapshots meet.
    let block = prop::sample::select(vec![0_u64, 1, 1023, 1024, 1025, 1024 * 1024 + 3]);
    let changes = prop::collection::vec((block, 0_u8..4), 0..5);
    let create = (prop::option::weighted(0.8, any::<prop::sample::Index>()), changes, any::<bool>())
        .prop_map(|(parent, changes, trust_map)| Step::Create { parent, changes, trust_map });
    let delete = any::<prop::sample::Index>().prop_map(Step::Delete);
    prop::collection::vec(prop_oneof![3 => create, 2 => delete], 1..12)
}

/// Performs a step on the repository; the model is changed by the caller when it succeeds.
async fn perform(
    repository: &Repository,
    model: &mut Vec<(u64, Volume)>,
    number: u64,
    step: &Step,
) -> Result<(), SnapshotError> {
    match step {
        Step::Create { parent, changes, trust_map } => {
            let parent =
                parent.filter(|_| !model.is_empty()).map(|index| model[index.index(model.len())].clone());
            let size = blocks(1024 * 1024 + 10);
            let before = parent.as_ref().map_or(Volume::new(size, []), |(_, volume)| volume.clone());
            let mut volume = before.clone();
            for (block, byte) in changes {
                match byte {
                    0 => volume.blocks.remove(block),
                    byte => volume.blocks.insert(*block, *byte),
                };
            }
            let changed = match (trust_map, &parent) {
                (true, Some(_)) => Changed::Only(difference(&before, &volume)),
                _ => Changed::Unknown,
            };
            create(repository, number, parent.map(|(number, _)| number), &volume, &changed).await?;
            model.push((number, volume));
        }
        Step::Delete(index) if !model.is_empty() => {
            let at = index.index(model.len());
            repository.delete(snapshot_id(model[at].0)).await?;
            model.remove(at);
        }
        Step::Delete(_) => {}
    }
    Ok(())
}

/// Every snapshot of the model is whole, and with all of them deleted the store is empty.
async fn settle(store: &Arc<dyn ObjectStore>, model: &[(u64, Volume)]) {
    let repository = Repository::with_store(Arc::clone(store)).await.expect("fit");
    for (number, volume) in model {
        assert_is(&repository.snapshot(snapshot_id(*number)).await.expect("completed"), volume).await;
    }
    let needed = objects(&**store).await;
    let report = repository.verify_all(sealblk_snapshot::Depth::Contents).await.expect("verified");
    assert!(report.is_clean(), "{report:?} {needed:?}");
    for (number, _) in model {
        repository.delete(snapshot_id(*number)).await.expect("deleted");
    }
    assert_eq!(objects(&**store).await, (0, 0), "exactly what was needed is gone");
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_what_is_needed_and_nothing_else(steps in steps()) {
        run(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let repository = Repository::with_store(Arc::clone(&store)).await.expect("fit");
            let mut model = Vec::new();
            for (number, step) in (1..).zip(&steps) {
                perform(&repository, &mut model, number, step).await.expect("a step");
            }
            settle(&store, &model).await;
        });
    }

    #[test]
    fn killed_anywhere_nothing_is_lost_and_what_was_begun_can_be_finished_or_undone(
        steps in steps(),
        kill_at in 0_u64..60,
        lose_reply in any::<bool>(),
        take_up in any::<bool>(),
    ) {
        run(async {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let mut model = Vec::new();
            let whole = Repository::with_store(Arc::clone(&store)).await.expect("fit");
            let (last, before) = steps.split_last().expect("at least one");
            for (number, step) in (1..).zip(before) {
                perform(&whole, &mut model, number, step).await.expect("a step");
            }
            let number = steps.len() as u64;
            let mut after = model.clone();
            let failing = Faulty::failing(Arc::clone(&store), 2 + kill_at..u64::MAX, lose_reply);
            let killed = Repository::with_store(failing).await;
            let killed = killed.expect("opening takes two requests");
            let result = perform(&killed, &mut after, number, last).await;
            if result.is_ok() {
                return settle(&store, &after).await;
            }
            let after = take_up_or_undo(&store, &model, number, last, take_up).await;
            settle(&store, &after).await;
        });
    }
}

/// What the next process does: finishes deletions, and takes a pending snapshot up again or deletes it.
async fn take_up_or_undo(
    store: &Arc<dyn ObjectStore>,
    before: &[(u64, Volume)],
    number: u64,
    step: &Step,
    take_up: bool,
) -> Vec<(u64, Volume)> {
    let repository = Repository::with_store(Arc::clone(store)).await.expect("fit");
    let gone = repository.finish_deletions().await.expect("finished");
    let mut model = before.to_vec();
    model.retain(|(number, _)| !gone.contains(&snapshot_id(*number)));
    if let Step::Delete(index) = step {
        // The record may have been removed just before.
        let at = index.index(before.len());
        if repository.record(snapshot_id(before[at].0)).await.is_err() {
            model.retain(|(number, _)| *number != before[at].0);
        }
        return model;
    }
    let (other, mut expected) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, before.to_vec());
    let Ok(record) = repository.record(snapshot_id(number)).await else { return model };
    if !take_up && record.state == State::Pending {
        repository.delete(snapshot_id(number)).await.expect("deleted");
        return model;
    }
    // The volume that the step was about: the model's own computation, in a store of its own.
    let scratch = Repository::with_store(Arc::clone(&other)).await.expect("fit");
    for (number, volume) in before {
        create(&scratch, *number, None, volume, &Changed::Unknown).await.expect("a snapshot");
    }
    perform(&scratch, &mut expected, number, step).await.expect("a step");
    let volume = expected.last().expect("the new one").1.clone();
    let completed = upload(&repository, snapshot_id(number), &volume, &Changed::Unknown).await;
    assert_eq!(completed.expect("taken up").state, State::Completed);
    model.push((number, volume));
    model
}
