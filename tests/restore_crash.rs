//! Volumes made from snapshots, killed: at every durable step of the creation, and of the restoration, the process dies. Then the next
//! command finds nothing half done, and no plaintext was anywhere.

mod support;

use std::fs;

use serde_json::Value;
use support::{MIB, Pool, STEPS, Snapshots, found, killed_at, noise};

/// A pool with a snapshot of an unencrypted volume of 2 MiB; the content, and a piece of it that is not to be found.
struct Scene {
    pool: Pool,
    snapshot: String,
    image: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let pool = Pool::new();
        let image = noise(7, 2 << 20);
        let volume = pool.create(&["--size", "2MiB", "--no-encrypted"]);
        let attachment = pool.attach(&volume, &[]);
        attachment.client().write(0, &image).expect("written");
        attachment.terminate();
        let snapshot = Snapshots::of(&pool).create(&volume);
        pool.run(&["volume", "delete", &volume]).ok();
        Self { pool, snapshot, image }
    }

    fn volumes(&self) -> Vec<String> {
        let listed = self.pool.json(&["volume", "list"]);
        let volumes = listed["Volumes"].as_array().expect("a list").iter();
        volumes.map(|volume| volume["VolumeId"].as_str().expect("an id").to_owned()).collect()
    }

    /// Names in `volumes/` of what is no volume.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.pool.path().join("volumes")).expect("listed");
        let names = names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(".new-") || name.starts_with(".deleted-")).collect()
    }

    /// r47: the plaintext is in no file but the snapshot's.
    fn assert_no_plaintext(&self, what: &str) {
        let markers: Vec<Vec<u8>> = (0..4).map(|block| self.image[block << 19..][..64].to_vec()).collect();
        let snapshots = self.pool.path().join("snapshots");
        for file in self.pool.files().into_iter().filter(|file| !file.starts_with(&snapshots)) {
            let bytes = fs::read(&file).expect("a file");
            assert!(found(&bytes, &markers).is_empty(), "{what}: {}", file.display());
        }
    }

    fn assert_content(&self, volume: &str, what: &str) {
        let attachment = self.pool.attach(volume, &["--read-only"]);
        let content = attachment.client().read(0, 2 * MIB as usize);
        assert!(content.expect("read") == self.image, "{what}");
        attachment.terminate();
    }
}

#[test]
fn r47_a_creation_that_is_killed_at_any_step_leaves_a_volume_or_nothing() {
    let scene = Scene::new();
    let snapshots = Snapshots::of(&scene.pool);
    let create = ["volume", "create", "--encrypted", "--snapshot-id", &scene.snapshot];
    let mut step = 1;
    while !killed_at(&scene.pool, STEPS, step, &create) {
        let what = format!("killed at step {step}");
        scene.assert_no_plaintext(&what);
        let there = scene.volumes();
        assert!(there.len() <= 1, "{what}: {there:?}");
        // The next command that makes or deletes a volume clears up.
        let other = scene.pool.create(&["--size", "1MiB", "--no-encrypted"]);
        assert_eq!(scene.leftovers(), [""; 0], "{what}");
        assert_eq!(snapshots.holders(&scene.snapshot), there, "{what}");
        for volume in &there {
            scene.assert_content(volume, &what);
            scene.pool.run(&["volume", "delete", volume]).ok();
        }
        scene.pool.run(&["volume", "delete", &other]).ok();
        assert!(snapshots.holders(&scene.snapshot).is_empty(), "{what}");
        step += 1;
        assert!(step < 100, "it never gets through");
    }
    assert!(step > 5, "{step} steps");
    let [volume] = &scene.volumes()[..] else { panic!("one volume") };
    scene.assert_content(volume, "in the end");
    scene.assert_no_plaintext("in the end");
}

#[test]
fn r47_a_deletion_that_is_killed_at_any_step_leaves_the_volume_or_no_hold() {
    let scene = Scene::new();
    let snapshots = Snapshots::of(&scene.pool);
    for step in 1..100 {
        let volume = scene.pool.create(&["--encrypted", "--snapshot-id", &scene.snapshot]);
        let through = killed_at(&scene.pool, STEPS, step, &["volume", "delete", &volume]);
        let what = format!("killed at step {step}");
        if scene.volumes() == [volume.clone()] {
            scene.assert_content(&volume, &what);
            scene.pool.run(&["volume", "delete", &volume]).ok();
        }
        let other = scene.pool.create(&["--size", "1MiB", "--no-encrypted"]);
        assert!(snapshots.holders(&scene.snapshot).is_empty(), "{what}");
        assert_eq!(scene.leftovers(), [""; 0], "{what}");
        scene.pool.run(&["volume", "delete", &other]).ok();
        if through {
            assert!(step > 2, "{step} steps");
            return;
        }
    }
    panic!("it never gets through");
}

#[test]
fn r47_a_restoration_that_is_killed_at_any_step_goes_on_and_shows_no_plaintext() {
    let scene = Scene::new();
    let snapshots = Snapshots::of(&scene.pool);
    let calls = format!("{STEPS},pwrite64,pwritev2,io_uring_enter,execve");
    let mut killed = 0;
    let mut step = 1;
    loop {
        let volume = scene.pool.create(&["--encrypted", "--snapshot-id", &scene.snapshot]);
        let through = killed_at(&scene.pool, &calls, step, &["volume", "restore", &volume]);
        let what = format!("killed at step {step}");
        scene.assert_no_plaintext(&what);
        if !through {
            killed += 1;
            scene.assert_content(&volume, &what);
        }
        let restored = scene.pool.json(&["volume", "restore", &volume]);
        assert_eq!(restored["Restoring"], Value::Null, "{what}: {restored}");
        assert!(snapshots.holders(&scene.snapshot).is_empty(), "{what}");
        scene.assert_content(&volume, &what);
        scene.pool.run(&["volume", "delete", &volume]).ok();
        if through {
            break;
        }
        step += 1;
        assert!(step < 200, "it never gets through");
    }
    assert!(killed > 3, "{killed} kills");
}
