//! `snapshot copy` through the binary: what a volume made of a copy holds, which keys it needs, what is moved, and what a
//! killed copy leaves.

mod support;

use std::fs;

use sealblk_snapshot::State;
use support::{MIB, Pool, STEPS, Snapshots, exit, found, killed_at, killed_at_path, noise};

const BLOCK: u64 = 512 * 1024;

/// A pool with a volume of 8 MiB, of which the first 3 MiB are written.
struct Scene {
    pool: Pool,
    volume: String,
    image: Vec<u8>,
}

impl Scene {
    fn new(encryption: &[&str]) -> Self {
        let pool = Pool::new();
        let volume = pool.create(&[&["--size", "8MiB"], encryption].concat());
        let scene = Self { pool, volume, image: noise(3, 3 * MIB as usize) };
        scene.write(0, &scene.image);
        scene
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let attachment = self.pool.attach(&self.volume, &[]);
        let mut client = attachment.client();
        client.write(at, bytes).expect("written");
        client.flush().expect("flushed");
        drop(client);
        attachment.terminate();
    }

    fn key(&self) -> String {
        self.pool.json(&["key", "create"])["Arn"].as_str().expect("an ARN").to_owned()
    }

    fn copy(&self, args: &[&str]) -> serde_json::Value {
        self.pool.json(&[&["snapshot", "copy"], args].concat())
    }
}

fn id(document: &serde_json::Value) -> String {
    document["SnapshotId"].as_str().unwrap_or_else(|| panic!("no id in {document}")).to_owned()
}

/// What a volume made of a snapshot holds at its beginning.
fn restored(pool: &Pool, snapshot: &str, length: usize) -> Vec<u8> {
    let volume = pool.create(&["--snapshot-id", snapshot]);
    let attachment = pool.attach(&volume, &["--read-only"]);
    let content = attachment.client().read(0, length).expect("read");
    attachment.terminate();
    pool.run(&["volume", "delete", &volume]).ok();
    content
}

#[test]
fn r43_r61_r64_a_copy_under_another_key_needs_only_that_key() {
    let scene = Scene::new(&["--encrypted"]);
    let snapshots = Snapshots::of(&scene.pool);
    let source = snapshots.create(&scene.volume);
    let key = scene.key();
    let copied = scene.copy(&[&source, "--encrypted", "--kms-key-id", &key]);
    assert_eq!(copied["KmsKeyId"].as_str(), Some(&*key));
    assert_eq!(
        (copied["TransferredBytes"].as_u64(), copied["Incremental"].as_bool()),
        (Some(3 * MIB), Some(false))
    );
    let copy = id(&copied);
    for block in 0..3 * MIB / BLOCK {
        let (old, new) = (snapshots.block_file(&source, block), snapshots.block_file(&copy, block));
        assert!(fs::read(old).expect("a block") != fs::read(new).expect("a block"), "block {block}");
    }
    // The old key and the source are of no more use to anybody.
    scene.pool.run(&["volume", "delete", &scene.volume]).ok();
    snapshots.delete(&source);
    let other = scene.key();
    let again = id(&scene.copy(&[&copy, "--encrypted", "--kms-key-id", &other]));
    scene.pool.run(&["key", "schedule-deletion", &key, "--force"]).ok();
    assert!(restored(&scene.pool, &again, scene.image.len()) == scene.image);
    let refused = scene.pool.run(&["snapshot", "copy", &copy, "--encrypted", "--kms-key-id", &other]);
    let error = refused.refused(exit::DENIED);
    assert!(error.contains(&key), "{error}");
}

#[test]
fn r61_r62_a_later_copy_of_the_lineage_moves_only_what_changed() {
    let scene = Scene::new(&["--no-encrypted"]);
    let snapshots = Snapshots::of(&scene.pool);
    let first = snapshots.create(&scene.volume);
    assert_eq!(scene.copy(&[&first, "--encrypted"])["TransferredBytes"].as_u64(), Some(3 * MIB));
    let change = noise(8, 700);
    scene.write(2 * BLOCK + 1000, &change);
    let second = snapshots.create_upon(&scene.volume, &first);
    let explained = scene.copy(&[&second, "--encrypted", "--explain"]);
    assert!(explained["IncrementalOn"].is_string(), "{explained}");
    let copied = scene.copy(&[&second, "--encrypted"]);
    assert_eq!(
        (copied["TransferredBytes"].as_u64(), copied["Incremental"].as_bool()),
        (Some(BLOCK), Some(true))
    );
    let mut expected = scene.image.clone();
    expected[2 * BLOCK as usize + 1000..][..change.len()].copy_from_slice(&change);
    assert!(restored(&scene.pool, &id(&copied), expected.len()) == expected);
}

#[test]
fn a_snapshot_is_copied_from_another_pool_with_that_pools_key() {
    let (paris, berlin) = (Scene::new(&["--encrypted"]), Pool::new());
    let source = Snapshots::of(&paris.pool).create(&paris.volume);
    let from = paris.pool.path();
    let from = from.to_str().expect("temporary paths are text");
    let copied = berlin.json(&["snapshot", "copy", &source, "--source-pool", from]);
    assert_ne!(copied["KmsKeyId"], paris.pool.describe(&paris.volume)["KmsKeyId"]);
    assert!(restored(&berlin, &id(&copied), paris.image.len()) == paris.image);
    let nowhere = berlin.root().join("nowhere");
    let nowhere = nowhere.to_str().expect("temporary paths are text");
    berlin.run(&["snapshot", "copy", &source, "--source-pool", nowhere]).refused(exit::USAGE);
    assert!(!berlin.root().join("nowhere").exists(), "a mistyped name makes no pool");
}

#[test]
fn r33_a_key_that_cannot_be_used_is_refused_before_anything_is_stored() {
    let scene = Scene::new(&["--encrypted"]);
    let snapshots = Snapshots::of(&scene.pool);
    let source = snapshots.create(&scene.volume);
    let key = scene.key();
    scene.pool.run(&["key", "disable", &key]).ok();
    for (key, code) in [(key.as_str(), exit::DENIED), ("alias/none", exit::NOT_FOUND)] {
        let arguments = ["--output", "json", "snapshot", "copy", &source, "--encrypted", "--kms-key-id", key];
        let error = scene.pool.run(&arguments).refused(code);
        assert!(error.contains("InvalidParameterValue"), "{error}");
    }
    let error = scene.pool.run(&["snapshot", "copy", &source, "--kms-key-id", &key]).refused(exit::USAGE);
    assert!(error.contains("--encrypted"), "{error}");
    assert_eq!(ids(&scene.pool), std::slice::from_ref(&source));
    assert!(snapshots.holders(&source).is_empty());
    scene.pool.run(&["snapshot", "copy", "snap-00000000000000000"]).refused(exit::NOT_FOUND);
    scene.pool.run(&["snapshot", "copy", "--resume", &source]).refused(exit::WRONG_STATE);
}

/// The snapshots that have a record in the pool's repository.
fn ids(pool: &Pool) -> Vec<String> {
    let records = fs::read_dir(pool.path().join("snapshots/snapshots"));
    let names = records.into_iter().flatten().map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let mut ids: Vec<String> = names
        // With a '#' it is what a killed process had not yet given its name: no record.
        .filter(|name| name.starts_with("snap-") && !name.contains('#'))
        .filter_map(|name| Some(name.get(..22)?.to_owned()))
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

#[test]
fn r47_a_copy_that_is_killed_at_any_step_goes_on_and_shows_no_plaintext() {
    let scene = Scene::new(&["--no-encrypted"]);
    let elsewhere = scene.pool.root().join("elsewhere");
    let origin = Snapshots::at(&scene.pool, elsewhere.clone());
    let source = origin.create(&scene.volume);
    scene.pool.run(&["volume", "delete", &scene.volume]).ok();
    let from = elsewhere.to_str().expect("temporary paths are text").to_owned();
    let copy = ["snapshot", "copy", &source, "--source-repository", &from, "--encrypted"];
    let markers: Vec<Vec<u8>> = (0..6).map(|block| scene.image[block << 19..][..64].to_vec()).collect();
    // Blocks are written by many threads, each of which makes few durable steps of its own.
    let calls = format!("{STEPS},write");
    let (mut step, mut resumed) = (1, 0);
    loop {
        let before = ids(&scene.pool);
        let through = killed_at(&scene.pool, &calls, step, &copy);
        let what = format!("killed at step {step}");
        for file in scene.pool.files().into_iter().filter(|file| file.starts_with(scene.pool.path())) {
            // What a dying process was just replacing may be gone.
            let Ok(bytes) = fs::read(&file) else { continue };
            assert!(found(&bytes, &markers).is_empty(), "{what}: {}", file.display());
        }
        let new: Vec<String> = ids(&scene.pool).into_iter().filter(|id| !before.contains(id)).collect();
        assert!(new.len() <= 1, "{what}: {new:?}");
        for copy in &new {
            // Complete or pending, it ends complete, and its source held no more.
            scene.pool.run(&["snapshot", "copy", "--resume", copy]).ok();
            assert!(origin.holders(&source).is_empty(), "{what}");
            if !through {
                resumed += 1;
            }
            if through || resumed % 4 == 1 {
                assert!(restored(&scene.pool, copy, scene.image.len()) == scene.image, "{what}");
            }
            // The next one is a copy from the beginning again.
            Snapshots::of(&scene.pool).delete(copy);
        }
        if through {
            break;
        }
        step += 1;
        assert!(step < 150, "it never gets through");
    }
    assert!(resumed > 2, "{resumed} of {step}");
}

#[test]
fn r17_a_copy_that_is_killed_at_any_step_leaves_no_grant_behind_the_next_command() {
    let scene = Scene::new(&["--encrypted"]);
    let (one, snapshots) = (scene.key(), Snapshots::of(&scene.pool));
    let source = snapshots.create(&scene.volume);
    let own = scene.pool.describe(&scene.volume)["KmsKeyId"].as_str().expect("a key").to_owned();
    let left = || {
        let on = |key: &str| support::key_store(&scene.pool).list_grants(key).expect("the grants").len();
        on(&one) + on(&own)
    };
    let copy = ["snapshot", "copy", &source, "--encrypted", "--kms-key-id", &one];
    // For certain while there is a grant: it was noted before it was asked for, and that note is being kept as the
    // previous one, for the grant has got an id.
    assert!(!killed_at_path(&scene.pool, "/link", &scene.pool.path().join("copying.json"), 1, &copy));
    assert_eq!(left(), 1);
    drop(scene.pool.run(&["snapshot", "delete", &id(&scene.copy(&copy[2..]))]).ok());
    assert_eq!(left(), 0);
    // Blocks are written by many threads, each of which makes few durable steps of its own.
    let calls = format!("{STEPS},write");
    let (mut step, mut found_left, mut resumed, mut deleted) = (1, 0, 0, 0);
    loop {
        let before = ids(&scene.pool);
        let through = killed_at(&scene.pool, &calls, step, &copy);
        let was_left = left();
        found_left += was_left;
        let what = format!("killed at step {step}, {was_left} grants were left");
        // Whatever comes next: going on with the copy, giving it up, or, if it had not come to be, another one.
        let new = ids(&scene.pool).into_iter().find(|id| !before.contains(id));
        match &new {
            Some(copy) if resumed <= deleted => {
                scene.pool.run(&["snapshot", "copy", "--resume", copy]).ok();
                resumed += 1;
            }
            Some(_) => deleted += 1,
            None => drop(scene.pool.run(&["snapshot", "delete", &id(&scene.copy(&copy[2..]))]).ok()),
        }
        if let Some(copy) = new {
            scene.pool.run(&["snapshot", "delete", &copy]).ok();
        }
        assert_eq!(left(), 0, "{what}");
        if through {
            break;
        }
        step += 1;
        assert!(step < 150, "it never gets through");
    }
    assert!(resumed > 0 && deleted > 0, "{found_left} {resumed} {deleted} of {step}");
    assert!(!scene.pool.path().join("copying.json").exists());
}

#[test]
fn a_pending_copy_is_given_up_by_deleting_it() {
    let scene = Scene::new(&["--encrypted"]);
    let snapshots = Snapshots::of(&scene.pool);
    let source = snapshots.create(&scene.volume);
    let calls = format!("{STEPS},write");
    let pending = (1..200).find_map(|step| {
        killed_at(&scene.pool, &calls, step, &["snapshot", "copy", &source, "--encrypted"]);
        ids(&scene.pool).into_iter().find(|id| snapshots.state(id) == Some(State::Pending))
    });
    let pending = pending.expect("one of the kills leaves a pending copy");
    scene.pool.run(&["snapshot", "delete", &pending]).ok();
    assert_eq!(snapshots.state(&pending), None);
    assert!(!snapshots.holders(&source).contains(&pending));
    scene.pool.run(&["snapshot", "copy", "--resume", &pending]).refused(exit::NOT_FOUND);
    // Nothing but copies that were killed later than this one, and are complete, stands in the way of another copy.
    assert!(
        restored(&scene.pool, &id(&scene.copy(&[&source, "--encrypted"])), scene.image.len()) == scene.image
    );
}
