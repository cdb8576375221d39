//! Several who make, copy, hold and delete snapshots in one repository at once: as tasks in every order that seeds give, and as
//! processes, one of which is killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::rig::faulty::Faulty;
use crate::rig::*;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;
use sealblk_snapshot::{
    Changed, Depth, Location, NewSnapshot, Repository, SnapshotError, SnapshotId, State, StoreOptions,
};

const SIZE: u64 = blocks(1024 * 1024 + 10);
/// The blocks that volumes have: in three leaves of two middle pages.
const BLOCKS: [u64; 6] = [0, 1, 1023, 1024, 1025, 1024 * 1024 + 3];

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// The content of a snapshot is in its metadata, so that anybody can build on it and check it.
type Content = BTreeMap<u64, u8>;

/// Does one thing; that somebody else was faster is no error.
async fn act(repository: &Repository, random: &mut Random, id: SnapshotId) -> Result<(), SnapshotError> {
    let done = match random.below(5) {
        0 | 1 => make(repository, random, id).await,
        2 | 3 => delete_some(repository, random).await,
        _ => read_some(repository, random, &id.to_string()).await,
    };
    match done {
        Err(SnapshotError::NotFound { .. } | SnapshotError::WrongState { .. }) => Ok(()),
        done => done,
    }
}

async fn some_completed(repository: &Repository, random: &mut Random) -> Option<(SnapshotId, Content)> {
    let records = repository.snapshots().await.expect("records");
    let completed: Vec<_> = records.iter().filter(|record| record.state == State::Completed).collect();
    let record = completed.get(random.below(completed.len().max(1)))?;
    Some((record.snapshot_id, record.metadata().expect("content")))
}

async fn make(repository: &Repository, random: &mut Random, id: SnapshotId) -> Result<(), SnapshotError> {
    let parent = some_completed(repository, random).await;
    let mut volume = Volume::new(SIZE, parent.iter().flat_map(|(_, content)| content.clone()));
    let before = volume.clone();
    for _ in 0..random.below(4) {
        volume.blocks.insert(BLOCKS[random.below(BLOCKS.len())], 1 + random.below(250) as u8);
    }
    let changed = match parent {
        Some(_) => Changed::Only(difference(&before, &volume)),
        None => Changed::Unknown,
    };
    let parent = parent.map(|(id, _)| id);
    repository.begin(NewSnapshot { id, volume_size_bytes: SIZE, parent, metadata: &volume.blocks }).await?;
    upload(repository, id, &volume, &changed).await.map(drop)
}

async fn delete_some(repository: &Repository, random: &mut Random) -> Result<(), SnapshotError> {
    let Some((id, _)) = some_completed(repository, random).await else { return Ok(()) };
    repository.delete(id).await.map(drop)
}

/// A reader with a hold gets all of it, whatever others do.
async fn read_some(repository: &Repository, random: &mut Random, holder: &str) -> Result<(), SnapshotError> {
    let Some((id, content)) = some_completed(repository, random).await else { return Ok(()) };
    let snapshot = repository.hold(id, holder).await?;
    assert_is(&snapshot, &Volume::new(SIZE, content)).await;
    repository.release(id, holder).await.map(drop)
}

/// After everybody has gone: what is there is whole, and deleting it leaves nothing.
async fn settle(repository: &Repository, killed: bool) -> usize {
    repository.finish_deletions().await.expect("finished");
    for record in repository.snapshots().await.expect("records") {
        if record.state == State::Completed {
            let volume = Volume::new(SIZE, record.metadata::<Content>().expect("content"));
            assert_is(&repository.snapshot(record.snapshot_id).await.expect("completed"), &volume).await;
        } else {
            assert!(killed, "only a killed process leaves {record:?}");
            for holder in repository.holders(record.snapshot_id).await.expect("listed") {
                repository.release(record.snapshot_id, &holder).await.expect("released");
            }
            match repository.delete(record.snapshot_id).await {
                Ok(_) | Err(SnapshotError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert!(report.flaws.is_empty() && (killed || report.is_clean()), "{report:?}");
    repository.remove_unreferenced().await.expect("removed");
    let records = repository.snapshots().await.expect("records");
    for record in &records {
        for holder in repository.holders(record.snapshot_id).await.expect("listed") {
            repository.release(record.snapshot_id, &holder).await.expect("released");
        }
        repository.delete(record.snapshot_id).await.expect("deleted");
    }
    records.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_of_requests_nothing_is_lost_and_nothing_is_left(seed in 1_u64..) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let actor = |number: u64| {
                let store = Faulty::interleaving(Arc::clone(&inner), seed.wrapping_mul(number * 2 + 1));
                async move {
                    // Each with a repository of its own, as processes have.
                    let repository = Repository::with_store(store).await.expect("fit");
                    let mut random = Random(seed.rotate_left(number as u32) | 1);
                    for step in 0..8 {
                        let id = snapshot_id(number << 32 | step);
                        act(&repository, &mut random, id).await.expect("done, or somebody was faster");
                    }
                }
            };
            futures_util::future::join_all((1..=4).map(actor)).await;
            settle(&Repository::with_store(Arc::clone(&inner)).await.expect("fit"), false).await;
            assert_eq!(objects(&*inner).await, (0, 0));
        });
    }
}

const DIRECTORY: &str = "SEALBLK_TEST_REPOSITORY";
const NUMBER: &str = "SEALBLK_TEST_NUMBER";
/// The process that is killed.
const VICTIM: u64 = 1;

#[tokio::test]
#[ignore = "run by processes_share_a_directory_and_one_is_killed"]
async fn one_of_several_processes() {
    let directory = std::env::var(DIRECTORY).expect("set by the test that runs this");
    let number: u64 = std::env::var(NUMBER).expect("set").parse().expect("a number");
    let location = Location::Directory(directory.into());
    let repository = Repository::open(&location, &StoreOptions::default()).await.expect("a repository");
    let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number + 1) | 1);
    // The one that is killed does not end before; of a test that failed it does not go on for ever either.
    let steps = if number == VICTIM { 10_000 } else { 25 };
    for step in 0..steps {
        act(&repository, &mut random, snapshot_id(number << 32 | step)).await.expect("done");
    }
}

fn start(directory: &Path, number: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--ignored", "--exact", "together::one_of_several_processes"]);
    command.env(DIRECTORY, directory).env(NUMBER, number.to_string()).stdout(Stdio::piped());
    command.spawn().expect("it starts")
}

#[tokio::test]
async fn processes_share_a_directory_and_one_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut victim = start(directory.path(), VICTIM);
    let others: Vec<Child> = (2..4).map(|number| start(directory.path(), number)).collect();
    let location = Location::Directory(directory.path().to_owned());
    let repository = Repository::open(&location, &StoreOptions::default()).await.expect("a repository");
    // In the middle of its third or a later step.
    while !repository.snapshots().await.expect("records").iter().any(|record| {
        record.snapshot_id >= snapshot_id(VICTIM << 32 | 3) && record.snapshot_id < snapshot_id(2 << 32)
    }) {
        assert!(victim.try_wait().expect("a child").is_none(), "it ended by itself");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    victim.kill().expect("it runs");
    victim.wait().expect("it ended");
    for other in others {
        let output = other.wait_with_output().expect("it ended");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    settle(&repository, true).await;
    let report = repository.verify_all(Depth::Contents).await.expect("verified");
    assert!(report.is_clean() && report.snapshots == 0, "{report:?}");
}
