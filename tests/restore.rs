//! Volumes made from snapshots: what they are encrypted under, how they are filled, and that no crash leaves anything half.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use support::{Attachment, MIB, Pool, Snapshots, data_key, exit, foreign, found, noise, run};

const BLOCK: usize = 512 << 10;

/// A key of the pool's own; its ARN.
fn new_key(pool: &Pool) -> String {
    let made = pool.json(&["key", "create"]);
    made["Arn"].as_str().or(made["KeyMetadata"]["Arn"].as_str()).expect("an ARN").to_owned()
}

/// A detached volume of 8 MiB that holds `image`, which is 8 MiB; zeros in it were never written.
fn filled(pool: &Pool, args: &[&str], image: &[u8]) -> String {
    let volume = pool.create(&[&["--size", "8MiB"], args].concat());
    let attachment = pool.attach(&volume, &[]);
    write_data(&attachment, image);
    attachment.terminate();
    volume
}

fn write_data(attachment: &Attachment, image: &[u8]) {
    let mut client = attachment.client();
    for (block, bytes) in image.chunks(BLOCK).enumerate() {
        if bytes.iter().any(|&byte| byte != 0) {
            client.write((block * BLOCK) as u64, bytes).expect("written");
        }
    }
    client.flush().expect("flushed");
}

/// 8 MiB, of which blocks 0, 1, 5, 6, 7 and 15 hold noise, and block 9 ten sectors of it.
fn image(seed: u64) -> Vec<u8> {
    let mut image = vec![0; 8 << 20];
    for block in [0, 1, 5, 6, 7, 15] {
        image[block * BLOCK..][..BLOCK].copy_from_slice(&noise(seed + block as u64, BLOCK));
    }
    image[9 * BLOCK + 1024..][..5120].copy_from_slice(&noise(seed + 9, 5120));
    image
}

fn content(pool: &Pool, volume: &str, bytes: usize) -> Vec<u8> {
    let attachment = pool.attach(volume, &["--read-only"]);
    let mut client = attachment.client();
    let mut image = Vec::new();
    for at in (0..bytes).step_by(BLOCK) {
        let read = client.read(at as u64, BLOCK.min(bytes - at));
        image.extend(read.unwrap_or_else(|error| panic!("{at}: {error}: {}", attachment.log())));
    }
    drop(client);
    attachment.terminate();
    image
}

/// Brings all blocks, offline.
fn complete(pool: &Pool, volume: &str) {
    let restored = pool.json(&["volume", "restore", volume]);
    assert_eq!(restored["Restoring"], Value::Null, "{restored}");
}

fn from_snapshot(pool: &Pool, snapshot: &str, args: &[&str]) -> String {
    pool.create(&[&["--snapshot-id", snapshot], args].concat())
}

fn code(error: &str) -> String {
    let error: Value = serde_json::from_str(error.lines().last().expect("an error")).expect("JSON");
    error["Error"]["Code"].as_str().expect("a code").to_owned()
}

#[track_caller]
fn refused(pool: &Pool, args: &[&str], exit: i32) -> String {
    code(&pool.run(&[&["--output", "json"], args].concat()).refused(exit))
}

#[test]
fn r9_r13_a_volume_from_an_encrypted_snapshot_shares_its_key_and_is_there_at_once() {
    let pool = Pool::new();
    let image = image(1);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    let second = from_snapshot(&pool, &snapshot, &[]);

    let (one, two) = (pool.describe(&first), pool.describe(&second));
    assert_eq!((&two["Encrypted"], &two["KmsKeyId"]), (&one["Encrypted"], &one["KmsKeyId"]));
    assert_eq!((&two["SizeBytes"], &two["SnapshotId"]), (&one["SizeBytes"], &Value::from(snapshot.clone())));
    assert_ne!(two["WrappedKey"], one["WrappedKey"], "wrapped for the volume's own id");
    assert_eq!(data_key(&pool, &first), data_key(&pool, &second));
    let written: u64 = fs::read_dir(pool.volume_dir(&second))
        .expect("listed")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").blocks() * 512)
        .sum();
    assert!(written < 64 << 10, "{written} bytes were written");
    assert_eq!(two["Restoring"]["Progress"], "0%");
    assert!(snapshots.holders(&snapshot) == [&*second]);

    assert!(content(&pool, &second, image.len()) == image);
    complete(&pool, &second);
    assert!(snapshots.holders(&snapshot).is_empty());
    assert!(fs::read(pool.data(&first)).expect("data") == fs::read(pool.data(&second)).expect("data"));
    assert!(content(&pool, &second, image.len()) == image);
    assert!(
        !fs::read_to_string(pool.volume_dir(&second).join("volume.json"))
            .expect("text")
            .contains("Restoring")
    );
}

#[test]
fn r57_r58_an_unencrypted_snapshot_gives_what_was_asked_for_or_what_the_default_is() {
    let pool = Pool::new();
    let (image, key) = (image(20), new_key(&pool));
    let first = filled(&pool, &["--no-encrypted"], &image);
    let snapshot = Snapshots::of(&pool).create(&first);
    let marker = vec![image[100..164].to_vec()];
    let cases: [(&[&str], bool, Option<&str>); 4] = [
        (&[], false, None),
        (&["--encrypted"], true, None),
        (&["--encrypted", "--kms-key-id", &key], true, Some(&key)),
        (&["--no-encrypted"], false, None),
    ];
    for (args, encrypted, under) in cases {
        let volume = from_snapshot(&pool, &snapshot, args);
        let described = pool.describe(&volume);
        assert_eq!(described["Encrypted"], encrypted, "{args:?}");
        assert!(under.is_none_or(|key| described["KmsKeyId"] == key), "{described}");
        complete(&pool, &volume);
        assert_eq!(found(&fs::read(pool.data(&volume)).expect("data"), &marker).is_empty(), encrypted);
        assert!(content(&pool, &volume, image.len()) == image, "{args:?}");
    }
    assert_eq!(
        refused(&pool, &["volume", "create", "--snapshot-id", &snapshot, "--kms-key-id", &key], exit::USAGE),
        "InvalidParameterDependency"
    );
    pool.run(&["settings", "encryption-by-default", "enable"]).ok();
    for args in [&[][..], &["--no-encrypted"]] {
        let volume = from_snapshot(&pool, &snapshot, args);
        assert_eq!(pool.describe(&volume)["Encrypted"], true, "{args:?}");
        assert!(content(&pool, &volume, image.len()) == image);
    }
}

#[test]
fn r63_a_volume_under_another_key_is_encrypted_anew_and_needs_that_key_alone() {
    let pool = Pool::new();
    let (image, old, new) = (image(40), new_key(&pool), new_key(&pool));
    let first = filled(&pool, &["--encrypted", "--kms-key-id", &old], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    let second = from_snapshot(&pool, &snapshot, &["--encrypted", "--kms-key-id", &new]);
    assert_eq!(pool.describe(&second)["KmsKeyId"], new.as_str());
    assert_ne!(data_key(&pool, &first), data_key(&pool, &second));

    // Until it is restored both keys are needed.
    pool.run(&["key", "disable", &old, "--force"]).ok();
    let error = pool.run(&["--output", "json", "volume", "attach", &second]).refused(exit::DENIED);
    assert!(error.contains(&old) && code(&error) == "CustomerKeyHasBeenRevoked", "{error}");
    pool.run(&["key", "enable", &old]).ok();

    let attachment = pool.attach(&second, &[]);
    let grants = support::key_store(&pool).list_grants(&old).expect("the grants");
    assert_eq!(grants.len(), 1, "one of the restoration's own");
    let mut client = attachment.client();
    assert!(client.read(0, BLOCK).expect("read") == image[..BLOCK]);
    drop(client);
    attachment.terminate();
    complete(&pool, &second);
    assert!(support::key_store(&pool).list_grants(&old).expect("the grants").is_empty());
    assert!(snapshots.holders(&snapshot).is_empty());
    for file in pool.files().into_iter().filter(|file| file.starts_with(pool.volume_dir(&second))) {
        let bytes = fs::read(&file).expect("a file");
        assert!(found(&bytes, &[old.clone().into_bytes()]).is_empty(), "{}", file.display());
    }

    let (before, after) =
        (fs::read(pool.data(&first)).expect("data"), fs::read(pool.data(&second)).expect("data"));
    for (number, (one, two)) in before.chunks(512).zip(after.chunks(512)).enumerate() {
        let unwritten = one.iter().all(|&byte| byte == 0);
        assert!(if unwritten { one == two } else { one != two }, "sector {number}");
    }
    pool.run(&["key", "disable", &old, "--force"]).ok();
    assert!(content(&pool, &second, image.len()) == image);
    pool.run(&["key", "disable", &new, "--force"]).ok();
    pool.run(&["volume", "attach", &second]).refused(exit::DENIED);
}

#[test]
fn a_volume_may_be_larger_than_its_snapshot_and_never_smaller() {
    let pool = Pool::new();
    let mut image = image(60);
    // The last block of the snapshot is an odd one.
    let first = pool.create(&["--size", &format!("{}", 8 * MIB - 1024), "--encrypted"]);
    image.truncate((8 << 20) - 1024);
    let attachment = pool.attach(&first, &[]);
    write_data(&attachment, &image);
    attachment.terminate();
    let snapshot = Snapshots::of(&pool).create(&first);
    let create = ["volume", "create", "--snapshot-id", &snapshot];
    assert_eq!(
        refused(&pool, &[&create[..], &["--size", "7MiB"]].concat(), exit::USAGE),
        "InvalidParameterValue"
    );
    image.resize(12 << 20, 0);
    let key = new_key(&pool);
    for args in [&[][..], &["--encrypted", "--kms-key-id", &key], &["--no-discard"]] {
        let second = from_snapshot(&pool, &snapshot, &[&["--size", "12MiB"], args].concat());
        assert!(content(&pool, &second, image.len()) == image, "{args:?}");
    }
}

#[test]
fn what_cannot_be_made_is_refused_with_ec2s_codes() {
    let pool = Pool::new();
    let first = filled(&pool, &["--encrypted"], &image(70));
    let snapshots = Snapshots::of(&pool);
    let of = |snapshot: &str, more: &[&str], exit| {
        refused(&pool, &[&["volume", "create", "--snapshot-id", snapshot], more].concat(), exit)
    };
    assert_eq!(refused(&pool, &["volume", "create"], exit::USAGE), "MissingParameter");
    assert_eq!(of("snap-zz", &[], exit::USAGE), "InvalidSnapshotID.Malformed");
    assert_eq!(of("snap-0123456789abcdef0", &[], exit::NOT_FOUND), "InvalidSnapshot.NotFound");
    let pending = snapshots.begin(&first);
    assert_eq!(of(&pending, &[], exit::WRONG_STATE), "IncorrectState");
    snapshots.fail(&pending);
    assert_eq!(of(&pending, &[], exit::WRONG_STATE), "IncorrectState");
    let snapshot = snapshots.create(&first);
    assert_eq!(of(&snapshot, &["--no-encrypted"], exit::USAGE), "InvalidParameterCombination");
    assert_eq!(
        of(&snapshot, &["--recovery-kms-key-id", "alias/nobody"], exit::NOT_FOUND),
        "NotFoundException"
    );
    assert!(snapshots.holders(&snapshot).is_empty());
    assert_eq!(pool.json(&["volume", "list"])["Volumes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn explain_tells_the_row_and_the_snapshots_key() {
    let pool = Pool::new();
    let (one, two) = (new_key(&pool), new_key(&pool));
    let encrypted = filled(&pool, &["--encrypted", "--kms-key-id", &one], &image(80));
    let plain = filled(&pool, &["--no-encrypted"], &image(81));
    let snapshots = Snapshots::of(&pool);
    let (encrypted, plain) = (snapshots.create(&encrypted), snapshots.create(&plain));
    let explained = |snapshot: &str, args: &[&str]| {
        let create = ["volume", "create", "--explain", "--snapshot-id", snapshot];
        let told = pool.json(&[&create[..], args].concat());
        (told["Row"].as_u64().expect("a row"), told["KmsKeyId"].as_str().map(str::to_owned))
    };
    assert_eq!(explained(&plain, &[]), (2, None));
    assert_eq!(explained(&encrypted, &[]), (3, Some(one.clone())));
    assert_eq!(explained(&encrypted, &["--encrypted"]), (8, Some(one.clone())));
    assert_eq!(explained(&encrypted, &["--encrypted", "--kms-key-id", &two]), (8, Some(two.clone())));
    assert_eq!(explained(&plain, &["--encrypted", "--kms-key-id", &two]), (7, Some(two)));
    pool.run(&["settings", "encryption-by-default", "enable"]).ok();
    assert_eq!(explained(&encrypted, &[]), (13, Some(one)));
    assert_eq!(explained(&plain, &[]).0, 12);
    assert_eq!(
        pool.json(&["volume", "list"])["Volumes"].as_array().map(Vec::len),
        Some(2),
        "nothing was made"
    );
}

#[test]
fn a_block_that_cannot_be_read_is_an_error_for_what_needs_it_and_is_named() {
    let pool = Pool::new();
    let image = image(90);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    let (gone, damaged) = (snapshots.block_file(&snapshot, 5), snapshots.block_file(&snapshot, 6));
    let (whole, aside) = (fs::read(&damaged).expect("a block"), pool.root().join("aside"));
    fs::rename(&gone, &aside).expect("moved");
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

    fs::rename(&aside, &gone).expect("moved back");
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
        let held = [7, 15].map(|block| snapshots.block_file(snapshot, block));
        let aside = |file: &std::path::Path| file.with_extension("aside");
        held.iter().for_each(|file| fs::rename(file, aside(file)).expect("moved"));
        for round in 0..3 {
            let attachment = pool.attach(&volume, &[]);
            // The last megabyte and a half is what is held back.
            exercise(&attachment, &mut model[..7 * BLOCK], (case * 10 + round) as u64, 60);
            attachment.kill();
        }
        assert!(snapshots.holders(snapshot) == [&*volume]);
        held.iter().for_each(|file| fs::rename(aside(file), file).expect("moved back"));
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
fn a_chain_of_volumes_and_snapshots_is_incremental_and_right_at_every_link() {
    let pool = Pool::new();
    let snapshots = Snapshots::of(&pool);
    let mut image = image(120);
    let first = filled(&pool, &["--encrypted"], &image);
    let mut snapshot = snapshots.create(&first);
    let key = data_key(&pool, &first);
    for link in 0..2 {
        let volume = from_snapshot(&pool, &snapshot, &[]);
        let attachment = pool.attach(&volume, &[]);
        let written = noise(130 + link, 1000);
        attachment.client().write(BLOCK as u64 + 7, &written).expect("written");
        attachment.terminate();
        image[BLOCK + 7..][..1000].copy_from_slice(&written);
        complete(&pool, &volume);
        assert!(content(&pool, &volume, image.len()) == image);
        assert_eq!(data_key(&pool, &volume), key, "one lineage, one data key");
        snapshot = snapshots.create_upon(&volume, &snapshot);
        assert_eq!(snapshots.written_blocks(&snapshot), 1, "what changed, and nothing else");
    }
    let last = from_snapshot(&pool, &snapshot, &["--no-lazy"]);
    assert_eq!(pool.describe(&last)["Restoring"], Value::Null);
    assert!(content(&pool, &last, image.len()) == image);
}

#[test]
fn a_snapshot_that_is_deleted_stays_until_its_volumes_are_restored_or_deleted() {
    let pool = Pool::new();
    let image = image(140);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
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
    while !attachment.log().contains("is not needed any more") {
        assert!(std::fs::exists(attachment.socket()).expect("known"), "{}", attachment.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
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

#[test]
fn a_helper_that_dies_is_started_again() {
    let pool = Pool::new();
    let image = image(160);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    let held = snapshots.block_file(&snapshot, 7);
    let aside = held.with_extension("aside");
    fs::rename(&held, &aside).expect("moved");
    let volume = from_snapshot(&pool, &snapshot, &[]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    assert!(client.read(0, BLOCK).expect("read") == image[..BLOCK]);
    for _ in 0..3 {
        let helper = helper_of(attachment.pid()).expect("a block is missing still");
        let pid = rustix::process::Pid::from_raw(i32::try_from(helper).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        // Another helper says that the block cannot be read.
        client.read(7 * BLOCK as u64, 512).expect_err("not to be had");
    }
    fs::rename(&aside, &held).expect("moved back");
    assert!(client.read(7 * BLOCK as u64, BLOCK).expect("read") == image[7 * BLOCK..][..BLOCK]);
    drop(client);
    let server = attachment.pid();
    attachment.kill();
    assert_eq!(helper_of(server), None);
    assert!(content(&pool, &volume, image.len()) == image);
}

#[test]
fn a_volume_with_a_backing_of_its_own_is_restored_into_that() {
    let pool = Pool::new();
    let image = image(170);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshot = Snapshots::of(&pool).create(&first);
    let backing = pool.root().join("disk.img");
    let path = backing.to_str().expect("text");
    fs::write(&backing, noise(3, 8 << 20)).expect("written");
    let args = ["volume", "create", "--snapshot-id", &snapshot, "--backing", path];
    pool.run(&args).failed();
    assert!(Snapshots::of(&pool).holders(&snapshot).is_empty());
    let volume = from_snapshot(&pool, &snapshot, &["--backing", path, "--erase", "--no-lazy"]);
    assert!(fs::read(&backing).expect("read") == fs::read(pool.data(&first)).expect("read"));
    assert!(content(&pool, &volume, image.len()) == image);
}

#[test]
fn r13_a_rewrap_while_it_is_restored_renews_both_keys_and_users_of_either_are_known() {
    let pool = Pool::new();
    let (image, old, new) = (image(180), new_key(&pool), new_key(&pool));
    let first = filled(&pool, &["--encrypted", "--kms-key-id", &old], &image);
    let snapshot = Snapshots::of(&pool).create(&first);
    let volume = from_snapshot(&pool, &snapshot, &["--encrypted", "--kms-key-id", &new]);
    let role = |key: &str| {
        let users = pool.json(&["key", "users", key]);
        let users = users["Volumes"].as_array().expect("a list").clone();
        users.iter().find(|user| user["VolumeId"] == volume.as_str()).map(|user| user["Role"].clone())
    };
    assert_eq!((role(&old), role(&new)), (Some("source".into()), Some("primary".into())));
    assert_eq!(refused(&pool, &["key", "disable", &old], exit::WRONG_STATE), "KeyInUse");
    let record = || fs::read_to_string(pool.volume_dir(&volume).join("volume.json")).expect("text");
    let before: Value = serde_json::from_str(&record()).expect("JSON");
    pool.run(&["volume", "rewrap", &volume]).ok();
    let after: Value = serde_json::from_str(&record()).expect("JSON");
    let source = |record: &Value| record["Restoring"]["EncryptAnew"]["WrappedKey"].clone();
    assert!(source(&before).is_string() && source(&before) != source(&after));
    assert_ne!(before["Encryption"]["WrappedKey"], after["Encryption"]["WrappedKey"]);
    assert!(content(&pool, &volume, image.len()) == image);
    complete(&pool, &volume);
    assert_eq!((role(&old), role(&new)), (None, Some("primary".into())));
}

#[test]
fn waiting_for_all_blocks_can_be_stopped_and_gone_on_with() {
    let pool = Pool::new();
    let image = image(190);
    let first = filled(&pool, &["--encrypted"], &image);
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    // A repository that hangs: its block is a pipe that nobody writes to.
    let held = snapshots.block_file(&snapshot, 7);
    let aside = held.with_extension("aside");
    fs::rename(&held, &aside).expect("moved");
    run(foreign("mkfifo").arg(&held)).ok();
    let mut command = pool.command(&["volume", "create", "--snapshot-id", &snapshot, "--no-lazy"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    while fs::read_dir(pool.path().join("volumes")).expect("listed").count() < 3
        || helper_of(child.id()).is_none()
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("told");
    let status = support::wait_within(&mut child, std::time::Duration::from_secs(60)).expect("it ends");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("read");
    assert!(status.code() == Some(exit::FAILED) && said.contains("volume restore"), "{status}: {said}");
    let holders = snapshots.holders(&snapshot);
    let [volume] = &holders[..] else { panic!("one volume: {holders:?}") };
    assert!(said.contains(volume.as_str()), "{said}");
    fs::remove_file(&held).expect("removed");
    fs::rename(&aside, &held).expect("moved back");
    complete(&pool, volume);
    assert!(content(&pool, volume, image.len()) == image);
}

#[test]
fn r62_r64_a_volume_of_a_copy_has_the_copys_key_and_needs_no_other() {
    let pool = Pool::new();
    let (image, old, new) = (image(200), new_key(&pool), new_key(&pool));
    let plain = filled(&pool, &["--no-encrypted"], &image);
    let under_old = filled(&pool, &["--encrypted", "--kms-key-id", &old], &image);
    let snapshots = Snapshots::of(&pool);
    let copied = |snapshot: &str, args: &[&str]| {
        let made = pool.json(&[&["snapshot", "copy", snapshot], args].concat());
        made["SnapshotId"].as_str().unwrap_or_else(|| panic!("no SnapshotId in {made}")).to_owned()
    };
    let copies = [
        copied(&snapshots.create(&plain), &["--encrypted", "--kms-key-id", &new]),
        copied(&snapshots.create(&under_old), &["--encrypted", "--kms-key-id", &new]),
    ];
    pool.run(&["key", "disable", &old, "--force"]).ok();
    let marker = vec![image[100..164].to_vec()];
    for copy in copies {
        let volume = from_snapshot(&pool, &copy, &[]);
        assert_eq!(pool.describe(&volume)["KmsKeyId"], new.as_str());
        assert!(content(&pool, &volume, image.len()) == image);
        complete(&pool, &volume);
        assert!(found(&fs::read(pool.data(&volume)).expect("data"), &marker).is_empty());
        assert!(content(&pool, &volume, image.len()) == image);
    }
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
