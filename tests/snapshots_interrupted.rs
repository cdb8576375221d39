//! Snapshots that are not completed: their maker is killed, told to stop, detached from, stopped or kept waiting by a store
//! that hangs. Each of these happens in the middle for certain: the store hangs there.

mod support;

use std::fs;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::hanging::{HeldRecords, HungPage, has_spool, leaf_page, spool, wait_until};
use support::snapshots::{BLOCK, objects, snapshot_bytes};
use support::{Attachment, Pool, STEPS, exit, killed_at, noise, wait_within};

/// Nothing that is waited for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds without progress after which a snapshot is given up: none that goes on is as slow as that.
const STALL: &str = "10";
/// Blocks that are written in each of the two leaves.
const BLOCKS: usize = 6;

/// A volume with data at its beginning and in its middle, all of it changed since its one snapshot. If it has 1 GiB, these are under
/// two leaves of the index.
struct Scene {
    pool: Pool,
    volume: String,
    parent: String,
    attachment: Option<Attachment>,
}

impl Scene {
    fn new(encryption: &str, attach: &[&str]) -> Self {
        Self::of("1GiB", encryption, attach)
    }

    fn of(size: &str, encryption: &str, attach: &[&str]) -> Self {
        let pool = Pool::new();
        let volume = pool.create(&["--size", size, encryption]);
        let attachment = pool.attach(&volume, attach);
        write(&attachment, 1);
        let parent = create(&pool, &volume);
        write(&attachment, 2);
        Self { pool, volume, parent, attachment: Some(attachment) }
    }

    fn attachment(&self) -> &Attachment {
        self.attachment.as_ref().expect("it is attached")
    }

    fn detach(&mut self) {
        self.attachment.take().expect("it is attached").terminate();
    }

    /// A `snapshot create` that has saved what is under the first leaf, and hangs at the second; and its snapshot.
    fn halfway(&self) -> (Child, String, HungPage) {
        let hung = HungPage::of(&self.pool, &self.parent, 1);
        let child = begin(&self.pool, &[&self.volume]);
        let mut id = None;
        wait_until("the first leaf is saved", || {
            id = self.others().into_iter().next();
            id.as_ref().is_some_and(|id| leaf_page(&self.pool, id, 0).is_some())
        });
        let id = id.expect("a snapshot");
        assert_eq!(self.state(&id), "pending");
        (child, id, hung)
    }

    /// The records of snapshots but the parent's, as the directory has them.
    fn others(&self) -> Vec<String> {
        let records = objects(&self.pool, "snapshots").into_iter();
        let ids = records.map(|record| record.file_stem().expect("a name").to_string_lossy().into_owned());
        ids.filter(|id| *id != self.parent).collect()
    }

    fn state(&self, snapshot: &str) -> String {
        let described = self.pool.json(&["snapshot", "describe", snapshot]);
        described["State"].as_str().expect("a state").to_owned()
    }

    #[track_caller]
    fn resume(&self, snapshot: &str) {
        let resumed = self.pool.run(&["snapshot", "create", &self.volume, "--resume", snapshot]).ok();
        assert_eq!(resumed.trim(), snapshot);
        assert_eq!(self.state(snapshot), "completed");
    }

    /// The snapshot holds what the volume's data file holds, and the repository nothing in vain.
    #[track_caller]
    fn assert_holds(&self, snapshot: &str) {
        let data = fs::read(self.pool.data(&self.volume)).expect("the data");
        assert!(snapshot_bytes(&self.pool, snapshot) == data, "{snapshot}");
        let report = self.pool.json(&["snapshot", "verify", "--all", "--deep"]);
        let none = Value::Array(vec![]);
        assert_eq!((&report["Flaws"], &report["Unreferenced"]), (&none, &none));
    }
}

/// Noise in both places, durably.
#[track_caller]
fn write(attachment: &Attachment, seed: u64) {
    let mut client = attachment.client();
    let middle = client.size() / 2;
    for (place, start) in [(1, 0), (2, middle)] {
        for (number, block) in (0_u64..).zip(noise(seed << 8 | place, BLOCKS * BLOCK).chunks(BLOCK)) {
            client.write(start + number * BLOCK as u64, block).expect("written");
        }
    }
    client.flush().expect("flushed");
}

#[track_caller]
fn create(pool: &Pool, volume: &str) -> String {
    pool.run(&["snapshot", "create", volume]).ok().trim().to_owned()
}

/// A `snapshot create` that runs.
fn begin(pool: &Pool, args: &[&str]) -> Child {
    let mut command = pool.command(&[&["snapshot", "create"], args].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it lives");
}

/// How it ended: the code, what it printed, and what it said.
#[track_caller]
fn end(mut child: Child) -> (Option<i32>, String, String) {
    let status = wait_within(&mut child, PATIENCE).expect("it ends");
    let (mut out, mut said) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    (status.code(), out, said)
}

fn kill(mut child: Child) {
    child.kill().expect("it lives");
    child.wait().expect("it ends");
}

#[test]
fn a_snapshot_that_is_killed_at_any_step_is_gone_or_can_be_gone_on_with_or_deleted() {
    // Durable steps are those of many threads, each of which makes few; blocks are asked for by one.
    let calls = format!("{STEPS},sendto");
    for attached in [false, true] {
        let mut scene = Scene::of("64MiB", "--encrypted", &[]);
        if !attached {
            scene.detach();
        }
        // Every one is a snapshot from the beginning.
        scene.pool.run(&["snapshot", "delete", &scene.parent]).ok();
        let (mut step, mut pending) = (1, 0);
        loop {
            let through = killed_at(&scene.pool, &calls, step, &["snapshot", "create", &scene.volume]);
            let left = scene.others();
            assert!(left.len() <= 1, "killed at step {step}: {left:?}");
            for id in left {
                pending += usize::from(scene.state(&id) == "pending");
                if through || pending % 4 == 1 {
                    scene.resume(&id);
                    scene.assert_holds(&id);
                }
                scene.pool.run(&["snapshot", "delete", &id]).ok();
                assert_eq!(objects(&scene.pool, "blocks").len() + objects(&scene.pool, "pages").len(), 0);
            }
            if through {
                break;
            }
            step += 1;
            assert!(step < 200, "it never gets through");
        }
        assert!(pending > 10, "{pending} of {step}");
        if !attached {
            scene.attachment = Some(scene.pool.attach(&scene.volume, &[]));
        }
        scene.detach();
        assert!(!has_spool(&scene.pool, &scene.volume), "an attachment removes them at the latest");
    }
}

#[test]
fn a_volume_that_nobody_wrote_to_is_not_read_again_when_its_snapshot_goes_on() {
    let mut scene = Scene::new("--no-encrypted", &[]);
    scene.detach();
    let (child, id, hung) = scene.halfway();
    kill(child);
    drop(hung);
    let spool = scene.pool.volume_dir(&scene.volume).join(format!("snapshot-{id}.cow"));
    assert!(spool.exists());
    // Read-only, nothing changes: the snapshot is of the instant it was begun at.
    scene.pool.attach(&scene.volume, &["--read-only"]).terminate();
    let data = fs::read(scene.pool.data(&scene.volume)).expect("the data");
    // What is under the finished leaf is not looked at: not that somebody has changed it either.
    let file = fs::File::options().write(true).open(scene.pool.data(&scene.volume)).expect("the data");
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; BLOCK], 0).expect("written");
    scene.resume(&id);
    assert!(!spool.exists());
    assert!(snapshot_bytes(&scene.pool, &id) == data);
}

#[test]
fn a_resumed_snapshot_of_a_volume_that_has_changed_is_of_the_instant_of_the_resumption() {
    let mut scene = Scene::new("--no-encrypted", &[]);
    scene.detach();
    let (child, id, hung) = scene.halfway();
    kill(child);
    drop(hung);
    let attachment = scene.pool.attach(&scene.volume, &[]);
    write(&attachment, 3);
    attachment.terminate();
    scene.resume(&id);
    scene.assert_holds(&id);
    let other = scene.pool.create(&["--size", "1GiB", "--no-encrypted"]);
    let refused = scene.pool.run(&["snapshot", "create", &other, "--resume", &id]).refused(exit::USAGE);
    assert!(refused.contains(&scene.volume) && refused.contains(&other), "{refused}");
}

#[test]
fn an_interrupt_stops_it_though_the_store_hangs_and_says_how_to_go_on() {
    for attached in [true, false] {
        let mut scene = Scene::new("--no-encrypted", &[]);
        if !attached {
            scene.detach();
        }
        let (child, id, hung) = scene.halfway();
        signal(&child, Signal::INT);
        let (code, out, said) = end(child);
        assert_eq!((code, out.as_str()), (Some(exit::FAILED), ""), "{said}");
        drop(hung);
        let resume = said.split("to go on with it: sealblk ").nth(1).expect("how to go on");
        let words: Vec<&str> = resume.split([' ', ':', '\n']).take(5).collect();
        assert_eq!(scene.pool.run(&words).ok().trim(), id);
        if attached {
            scene.detach();
        }
        scene.assert_holds(&id);
    }
}

#[test]
fn detaching_during_a_snapshot_waits_for_nobody_and_the_snapshot_can_be_gone_on_with() {
    let mut scene = Scene::new("--encrypted", &[]);
    let held = HeldRecords::of(&scene.pool);
    let child = begin(&scene.pool, &[&scene.volume]);
    wait_until("the volume is frozen", || spool(scene.attachment()).is_some());
    scene.detach();
    drop(held);
    let (code, _, said) = end(child);
    assert_eq!(code, Some(exit::FAILED), "{said}");
    let [id] = &scene.others()[..] else { panic!("one snapshot") };
    assert!(said.contains(&format!("--resume {id}")), "{said}");
    assert_eq!(scene.state(id), "pending");
    scene.resume(id);
    scene.assert_holds(id);
    // What was abandoned has not made the map forget: the next one is small.
    let attachment = scene.pool.attach(&scene.volume, &[]);
    attachment.client().write(0, &[9; 512]).expect("written");
    let before = objects(&scene.pool, "blocks").len();
    create(&scene.pool, &scene.volume);
    assert_eq!(objects(&scene.pool, "blocks").len(), before + 1);
    attachment.terminate();
}

#[test]
fn a_detached_volume_cannot_be_attached_while_its_snapshot_is_made_and_the_error_says_what_to_do() {
    let mut scene = Scene::new("--encrypted", &[]);
    scene.detach();
    let (child, id, hung) = scene.halfway();
    for command in [&["volume", "attach", &scene.volume][..], &["snapshot", "create", &scene.volume]] {
        let refused = scene.pool.run(&[&["--output", "json"], command].concat()).refused(exit::WRONG_STATE);
        assert!(refused.contains("\"VolumeInUse\"") && refused.contains(&id), "{refused}");
        assert!(refused.contains(&format!("kill -INT {}", child.id())), "{refused}");
        assert!(refused.contains(&format!("snapshot create {} --resume {id}", scene.volume)), "{refused}");
    }
    signal(&child, Signal::INT);
    assert_eq!(end(child).0, Some(exit::FAILED));
    drop(hung);
    let attachment = scene.pool.attach(&scene.volume, &[]);
    scene.resume(&id);
    attachment.terminate();
    scene.assert_holds(&id);
    // Of a killed one, nobody has it.
    let child = begin(&scene.pool, &[&scene.volume]);
    kill(child);
    scene.pool.attach(&scene.volume, &[]).terminate();
}

#[test]
fn one_snapshot_of_a_volume_at_a_time() {
    let mut scene = Scene::new("--no-encrypted", &[]);
    let held = HeldRecords::of(&scene.pool);
    let child = begin(&scene.pool, &[&scene.volume]);
    wait_until("the volume is frozen", || spool(scene.attachment()).is_some());
    let second = scene.pool.run(&["--output", "json", "snapshot", "create", &scene.volume]);
    let refused = second.refused(exit::WRONG_STATE);
    assert!(refused.contains("ConcurrentSnapshotLimitExceeded"), "{refused}");
    drop(held);
    let (code, id, said) = end(child);
    assert_eq!(code, Some(0), "{said}");
    scene.detach();
    scene.assert_holds(id.trim());
}

#[test]
fn a_stopped_snapshot_does_not_keep_a_volume_frozen_and_its_guest_loses_nothing() {
    let mut scene = Scene::new("--encrypted", &["--snapshot-stall-timeout", STALL]);
    let held = HeldRecords::of(&scene.pool);
    let child = begin(&scene.pool, &[&scene.volume]);
    let given_up = |attachment: &Attachment| attachment.log().contains("is not made any further");
    wait_until("the volume is frozen", || spool(scene.attachment()).is_some());
    signal(&child, Signal::STOP);
    // Whether it is frozen still or not any more: a guest notices neither.
    write(scene.attachment(), 3);
    wait_until("the snapshot is given up", || given_up(scene.attachment()));
    wait_until("the spool is given back", || spool(scene.attachment()).is_none());
    write(scene.attachment(), 4);
    // Another one can be made, by somebody who is not stopped.
    drop(held);
    let next = create(&scene.pool, &scene.volume);
    signal(&child, Signal::CONT);
    let (code, out, said) = end(child);
    assert_eq!((code, out.as_str()), (Some(exit::FAILED), ""), "{said}");
    assert!(said.contains("given up"), "{said}");
    let others = scene.others();
    let [id] = &others.iter().filter(|id| **id != next).collect::<Vec<_>>()[..] else { panic!("{others:?}") };
    assert!(said.contains(&format!("--resume {id}")), "{said}");
    assert!(scene.attachment().log().contains(&format!("--resume {id}")));
    scene.resume(id);
    scene.detach();
    scene.assert_holds(id);
    scene.assert_holds(&next);
}

#[test]
fn a_store_that_hangs_does_not_keep_a_volume_frozen() {
    let mut scene = Scene::new("--no-encrypted", &["--snapshot-stall-timeout", STALL]);
    let (child, id, hung) = scene.halfway();
    wait_until("the snapshot is given up", || scene.attachment().log().contains(&format!("--resume {id}")));
    wait_until("the spool is given back", || spool(scene.attachment()).is_none());
    signal(&child, Signal::INT);
    assert_eq!(end(child).0, Some(exit::FAILED));
    drop(hung);
    write(scene.attachment(), 3);
    scene.resume(&id);
    scene.detach();
    scene.assert_holds(&id);
}
