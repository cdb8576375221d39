//! Volumes made from snapshots while they are filled: blocks that cannot be had, clients that write meanwhile, helpers that die,
//! commands that are stopped, snapshots and repositories that go.

mod support;

use std::fs;

use serde_json::Value;
use support::hanging::wait_until;
use support::restoring::{
    BLOCK, MissingBlock, complete, content, filled, from_snapshot, image, new_key, refused, snapshotted,
};
use support::{Attachment, Pool, Snapshots, exit, noise};

#[test]
fn a_block_that_cannot_be_read_is_an_error_for_what_needs_it_and_is_named() {
    let (pool, image, snapshot) = snapshotted(90);
    let snapshots = Snapshots::of(&pool);
    let gone = MissingBlock::of(&snapshots, &snapshot, 5);
    let damaged = snapshots.block_file(&snapshot, 6);
    let whole = fs::read(&damaged).expect("a block");
    fs::write(&damaged, noise(1, BLOCK)).expect("written");

    let second = from_snapshot(&pool, &snapshot, &[]);
    let attachment = pool.attach(&second, &[]);
    let mut client = attachment.client();
    for block in 0..16 {
        let read = client.read((block * BLOCK) as u64, BLOCK);
        match block {
            5 | 6 => drop(read.expect_err("not to be had")),
            _ => assert!(read.expect("read") == image[block * BLOCK..][..BLOCK], "block {block}"),
        }
    }
    // What replaces a block needs nothing of the snapshot.
    client.write(6 * BLOCK as u64, &noise(2, BLOCK)).expect("written");
    assert!(client.read(6 * BLOCK as u64, BLOCK).expect("read") == noise(2, BLOCK));
    drop(client);
    attachment.terminate();
    assert_eq!(pool.describe(&second)["Restoring"]["RestoredBlocks"], 6);
    let log = fs::read_to_string(pool.root().join(format!("{second}.log"))).expect("the log");
    assert!(log.contains("block 5: ") && !log.contains("block 7: "), "{log}");

    gone.put_back();
    fs::write(&damaged, whole).expect("as it was");
    complete(&pool, &second);
    let mut image = image;
    image[6 * BLOCK..][..BLOCK].copy_from_slice(&noise(2, BLOCK));
    assert!(content(&pool, &second, image.len()) == image);
}

/// Writes, reads and trims at random, beside a model of the content.
fn exercise(attachment: &Attachment, model: &mut [u8], seed: u64, rounds: usize) {
    let mut client = attachment.client();
    for (round, random) in noise(seed, rounds * 8).chunks_exact(8).enumerate() {
        let random = u64::from_le_bytes(random.try_into().expect("eight bytes"));
        let length = 512 + (random >> 8) as usize % (3 * BLOCK / 2);
        let at = (random >> 32) as usize % (model.len() - length);
        // Whole sectors now and then, so that blocks are replaced too.
        let (at, length) =
            if random & 8 == 0 { (at / BLOCK * BLOCK, length.next_multiple_of(BLOCK)) } else { (at, length) };
        let length = length.min(model.len() - at);
        match random % 4 {
            0 => {
                let bytes = noise(seed + round as u64, length);
                client.write(at as u64, &bytes).expect("written");
                model[at..at + length].copy_from_slice(&bytes);
            }
            1 if round % 5 == 0 => {
                client.write(at as u64, &vec![0; length]).expect("written");
                model[at..at + length].fill(0);
            }
            _ => assert!(client.read(at as u64, length).expect("read") == model[at..at + length], "{at}"),
        }
    }
    client.flush().expect("flushed");
}

#[test]
fn what_clients_write_while_it_is_restored_stays_whatever_is_killed() {
    let pool = Pool::new();
    let (image, old, new) = (image(100), new_key(&pool), new_key(&pool));
    let encrypted = filled(&pool, &["--encrypted", "--kms-key-id", &old], &image);
    let plain = filled(&pool, &["--no-encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let (encrypted, plain) = (snapshots.create(&encrypted), snapshots.create(&plain));
    let cases: [(&str, &[&str]); 3] =
        [(&encrypted, &[]), (&encrypted, &["--encrypted", "--kms-key-id", &new]), (&plain, &["--encrypted"])];
    for (case, (snapshot, args)) in cases.into_iter().enumerate() {
        let volume = from_snapshot(&pool, snapshot, args);
        let mut model = image.clone();
        // Some blocks do not come before the end.
        let held = [7, 15].map(|block| MissingBlock::of(&snapshots, snapshot, block));
        for round in 0..3 {
            let attachment = pool.attach(&volume, &[]);
            // The last megabyte and a half is what is held back.
            exercise(&attachment, &mut model[..7 * BLOCK], (case * 10 + round) as u64, 60);
            attachment.kill();
        }
        assert!(snapshots.holders(snapshot) == [&*volume]);
        held.into_iter().for_each(MissingBlock::put_back);
        let attachment = pool.attach(&volume, &[]);
        exercise(&attachment, &mut model, 50 + case as u64, 60);
        attachment.terminate();
        assert!(content(&pool, &volume, model.len()) == model, "case {case}");
        complete(&pool, &volume);
        assert!(content(&pool, &volume, model.len()) == model, "case {case}");
        assert!(snapshots.holders(snapshot).is_empty());
    }
}

#[test]
fn a_snapshot_that_is_deleted_stays_until_its_volumes_are_restored_or_deleted() {
    let (pool, image, snapshot) = snapshotted(140);
    let snapshots = Snapshots::of(&pool);
    let volumes = [(); 3].map(|()| from_snapshot(&pool, &snapshot, &[]));
    snapshots.delete(&snapshot);
    assert_eq!(
        refused(&pool, &["volume", "create", "--snapshot-id", &snapshot], exit::WRONG_STATE),
        "IncorrectState"
    );
    assert!(content(&pool, &volumes[0], image.len()) == image);
    complete(&pool, &volumes[0]);
    pool.run(&["volume", "delete", &volumes[1]]).ok();
    assert_eq!(snapshots.holders(&snapshot), [volumes[2].clone()]);
    let done = pool.json(&["volume", "materialize", &volumes[2]]);
    assert!(done["WrittenBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{done}");
    assert_eq!(snapshots.state(&snapshot), None);
    assert!(content(&pool, &volumes[2], image.len()) == image);
}

#[test]
fn a_restored_volume_says_so_while_it_is_attached_and_lets_the_old_key_go() {
    let pool = Pool::new();
    let (image, old) = (image(150), new_key(&pool));
    let first = filled(&pool, &["--encrypted", "--kms-key-id", &old], &image);
    let snapshots = Snapshots::at(&pool, pool.root().join("elsewhere"));
    let snapshot = snapshots.create(&first);
    let elsewhere = pool.root().join("elsewhere");
    let repository = ["--repository", elsewhere.to_str().expect("text")];
    let volume = from_snapshot(
        &pool,
        &snapshot,
        &[&["--encrypted", "--kms-key-id", "alias/aws/ebs"], &repository[..]].concat(),
    );
    assert_eq!(pool.describe(&volume)["Restoring"]["Repository"], repository[1]);
    let listed = pool.run(&["volume", "list"]).ok();
    assert!(listed.contains("available, 0% restored"), "{listed}");
    let attachment = pool.attach(&volume, &[]);
    wait_until("it is restored", || attachment.log().contains("is not needed any more"));
    assert_eq!(pool.describe(&volume)["Restoring"], Value::Null);
    assert!(snapshots.holders(&snapshot).is_empty());
    assert!(support::key_store(&pool).list_grants(&old).expect("the grants").is_empty());
    attachment.terminate();
    pool.run(&["key", "disable", &old, "--force"]).ok();
    assert!(content(&pool, &volume, image.len()) == image);
}

/// The restore helper of a serving process.
fn helper_of(server: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).ok()?;
    let mut threads = fs::read_dir(format!("/proc/{server}/task")).ok()?.flatten();
    let all = threads.by_ref().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let all: Vec<String> = std::iter::once(children).chain(all).collect();
    let pids = all.iter().flat_map(|line| line.split_whitespace()).filter_map(|pid| pid.parse().ok());
    let is_helper = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"restore-helper\0"))
    };
    pids.into_iter().find(is_helper)
}

/// The same as soon as there is one.
#[track_caller]
fn wait_for_helper(server: u32) -> u32 {
    let mut helper = None;
    wait_until("a helper runs", || {
        helper = helper_of(server);
        helper.is_some()
    });
    helper.expect("waited for")
}

#[test]
fn a_helper_that_dies_is_started_again() {
    let (pool, image, snapshot) = snapshotted(160);
    let held = MissingBlock::of(&Snapshots::of(&pool), &snapshot, 7);
    let volume = from_snapshot(&pool, &snapshot, &[]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    assert!(client.read(0, BLOCK).expect("read") == image[..BLOCK]);
    for _ in 0..3 {
        // A block is missing still, so there is one, or will be.
        let helper = wait_for_helper(attachment.pid());
        let pid = rustix::process::Pid::from_raw(i32::try_from(helper).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        // Another helper says that the block cannot be read.
        client.read(7 * BLOCK as u64, 512).expect_err("not to be had");
    }
    held.put_back();
    assert!(client.read(7 * BLOCK as u64, BLOCK).expect("read") == image[7 * BLOCK..][..BLOCK]);
    drop(client);
    let server = attachment.pid();
    attachment.kill();
    assert_eq!(helper_of(server), None);
    assert!(content(&pool, &volume, image.len()) == image);
}

#[test]
fn waiting_for_all_blocks_can_be_stopped_and_gone_on_with() {
    let (pool, image, snapshot) = snapshotted(190);
    let snapshots = Snapshots::of(&pool);
    let held = MissingBlock::hanging(&snapshots, &snapshot, 7);
    let mut command = pool.command(&["volume", "create", "--snapshot-id", &snapshot, "--no-lazy"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    // By then the volume is there, and an interrupt is awaited.
    wait_for_helper(child.id());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("told");
    let status = support::wait_within(&mut child, std::time::Duration::from_secs(60)).expect("it ends");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("read");
    assert!(status.code() == Some(exit::FAILED) && said.contains("volume restore"), "{status}: {said}");
    let holders = snapshots.holders(&snapshot);
    let [volume] = &holders[..] else { panic!("one volume: {holders:?}") };
    assert!(said.contains(volume.as_str()), "{said}");
    held.put_back();
    complete(&pool, volume);
    assert!(content(&pool, volume, image.len()) == image);
}

#[test]
fn a_volume_is_deleted_though_its_repository_is_out_of_reach_and_lets_go_later() {
    let pool = Pool::new();
    let first = filled(&pool, &["--encrypted"], &image(210));
    let elsewhere = pool.root().join("elsewhere");
    let snapshots = Snapshots::at(&pool, elsewhere.clone());
    let snapshot = snapshots.create(&first);
    let volume = from_snapshot(&pool, &snapshot, &["--repository", elsewhere.to_str().expect("text")]);
    let aside = pool.root().join("aside");
    fs::rename(&elsewhere, &aside).expect("moved");
    fs::write(&elsewhere, "no directory").expect("written");
    let error = pool.run(&["volume", "delete", &volume]).failed();
    assert!(error.contains("is deleted") && error.contains(&snapshot), "{error}");
    pool.run(&["volume", "describe", &volume]).refused(exit::NOT_FOUND);
    assert!(!pool.files().iter().any(|file| file.ends_with(format!(".deleted-{volume}/data"))));
    // Nor does it stand in anybody's way.
    let other = pool.create(&["--size", "1MiB"]);
    fs::remove_file(&elsewhere).expect("removed");
    fs::rename(&aside, &elsewhere).expect("moved back");
    assert!(snapshots.holders(&snapshot) == [&*volume]);
    pool.run(&["volume", "delete", &other]).ok();
    assert!(snapshots.holders(&snapshot).is_empty());
}
