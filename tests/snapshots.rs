//! Snapshots through the binary: what is in them, what is stored, what a kill leaves. S3: snapshots_s3.rs.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::snapshots::{BLOCK, objects, snapshot_bytes};
use support::{Attachment, KIB, MIB, Pool, exit, found, noise, wait_within};

/// Nothing that is waited for takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[track_caller]
fn snapshot(pool: &Pool, volume: &str) -> String {
    pool.run(&["snapshot", "create", volume]).ok().trim().to_owned()
}

#[track_caller]
fn describe(pool: &Pool, snapshot: &str) -> Value {
    pool.json(&["snapshot", "describe", snapshot])
}

/// Every snapshot is whole, and nothing is stored in vain.
#[track_caller]
fn assert_clean(pool: &Pool) {
    let report = pool.json(&["snapshot", "verify", "--all", "--deep"]);
    assert_eq!((&report["Flaws"], &report["Unreferenced"]), (&Value::Array(vec![]), &Value::Array(vec![])));
}

/// `bytes` at `at`, durably.
#[track_caller]
fn write(attachment: &Attachment, at: u64, bytes: &[u8]) {
    let mut client = attachment.client();
    for (number, piece) in (0_u64..).zip(bytes.chunks(MIB as usize)) {
        client.write(at + number * MIB, piece).expect("written");
    }
    client.flush().expect("flushed");
}

/// A `snapshot create` that runs.
fn begin(pool: &Pool, args: &[&str]) -> Child {
    let mut command = pool.command(&[&["snapshot", "create"], args].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// How it ended: the code, what it printed, and what it said.
fn end(mut child: Child) -> (Option<i32>, String, String) {
    let status = wait_within(&mut child, PATIENCE).expect("it ends");
    let (mut out, mut said) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_string(&mut said).expect("text");
    }
    (status.code(), out, said)
}

#[test]
fn r8_r16_a_snapshot_of_an_encrypted_volume_is_encrypted_and_asks_no_key_service() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "64MiB", "--encrypted"]);
    // Whether the key may be used still is not asked meanwhile.
    let attachment = pool.attach(&volume, &["--key-check-interval", "3600"]);
    let marker = noise(1, 8 * KIB as usize);
    write(&attachment, 7 * MIB, &marker);
    let calls = || pool.json(&["audit", "list"])["Events"].as_array().expect("a list").len();
    let before = calls();
    let live = snapshot(&pool, &volume);
    attachment.terminate();
    // Detaching retires the grant.
    let after = calls();
    let offline = snapshot(&pool, &volume);
    assert_eq!((after, calls()), (before + 1, before + 1));
    let described = pool.describe(&volume);
    for id in [&live, &offline] {
        let snapshot = describe(&pool, id);
        assert_eq!((&snapshot["Encrypted"], &snapshot["State"]), (&true.into(), &"completed".into()));
        assert_eq!(snapshot["KmsKeyId"], described["KmsKeyId"], "r13");
        // Ciphertext, the volume's own: it decrypts as the volume does.
        let data = std::fs::read(pool.data(&volume)).expect("the volume's data");
        assert!(snapshot_bytes(&pool, id) == data, "{id} holds what the volume's data file holds");
    }
    for file in pool.files() {
        let content = std::fs::read(&file).expect("a file");
        assert!(found(&content, &[marker[..64].to_vec()]).is_empty(), "{} is in clear", file.display());
    }
}

#[test]
fn r13_snapshots_share_the_volumes_data_key() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "1MiB", "--encrypted"]);
    let never_attached = snapshot(&pool, &volume);
    pool.attach(&volume, &[]).terminate();
    let attached = snapshot(&pool, &volume);
    let key = |snapshot: &str| describe(&pool, snapshot)["DataEncryptionKeyId"].clone();
    assert!(key(&attached).is_string());
    assert_eq!(key(&attached), key(&never_attached));
    let other = pool.create(&["--size", "1MiB", "--encrypted"]);
    assert_ne!(key(&snapshot(&pool, &other)), key(&attached));
}

#[test]
fn what_was_acknowledged_before_is_in_a_snapshot_and_what_began_after_is_not() {
    const SLOTS: u64 = 96;
    let pool = Pool::new();
    let volume = pool.create(&["--size", "64MiB", "--no-encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    let (begun, acknowledged, over) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut client = attachment.client();
    let writer = std::thread::spawn({
        let (begun, acknowledged, over) = (Arc::clone(&begun), Arc::clone(&acknowledged), Arc::clone(&over));
        move || {
            while !over.load(Ordering::SeqCst) {
                let number = begun.fetch_add(1, Ordering::SeqCst);
                let at = number % SLOTS * (BLOCK as u64 + 4096);
                client.write(at, &(number + 1).to_le_bytes().repeat(512)).expect("written");
                if number % 7 == 0 {
                    client.flush().expect("flushed");
                }
                acknowledged.store(number + 1, Ordering::SeqCst);
            }
        }
    });
    let started = Instant::now();
    while acknowledged.load(Ordering::SeqCst) < 2 * SLOTS {
        assert!(started.elapsed() < PATIENCE, "the writer does not get on");
        std::thread::yield_now();
    }
    let mut instants = Vec::new();
    for _ in 0..3 {
        let before = acknowledged.load(Ordering::SeqCst);
        let mut child = begin(&pool, &[&volume]);
        let mut note = String::new();
        let mut errors = BufReader::new(child.stderr.take().expect("piped"));
        errors.read_line(&mut note).expect("a note");
        let after = begun.load(Ordering::SeqCst);
        assert!(note.contains("begun"), "{note}");
        let (code, id, _) = end(child);
        assert_eq!(code, Some(0));
        instants.push((before, after, id.trim().to_owned()));
    }
    over.store(true, Ordering::SeqCst);
    writer.join().expect("no panic");
    attachment.terminate();
    for (before, after, id) in instants {
        let bytes = snapshot_bytes(&pool, &id);
        let slot = |slot: u64| {
            let at = usize::try_from(slot).expect("small") * (BLOCK + 4096);
            let numbers: BTreeSet<&[u8]> = bytes[at..at + 4096].chunks(8).collect();
            assert_eq!(numbers.len(), 1, "{id}: a write is in whole or not at all");
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
        };
        // The writes were one after the other: those in it are all up to the last.
        let last = (0..SLOTS).map(slot).max().expect("slots");
        assert!((before..=after).contains(&last), "{id}: {last} writes of {before} to {after}");
        for number in last - SLOTS + 1..=last {
            assert_eq!(slot((number - 1) % SLOTS), number, "{id}: of {last} writes one is missing");
        }
    }
    assert_clean(&pool);
}

#[test]
fn a_later_snapshot_stores_only_what_has_changed_and_zeros_never() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "1GiB", "--no-encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    assert_eq!(describe(&pool, &snapshot(&pool, &volume))["FullSnapshotSizeInBytes"], 0);
    assert_eq!(objects(&pool, "blocks").len(), 0);
    write(&attachment, 0, &noise(1, 8 * BLOCK));
    write(&attachment, 512 * MIB, &vec![0; 2 * BLOCK]);
    let first = snapshot(&pool, &volume);
    assert_eq!(objects(&pool, "blocks").len(), 8, "zeros are not stored, written or not");
    write(&attachment, 3 * BLOCK as u64 + 100, &[7; 100]);
    write(&attachment, 900 * MIB, &[8; 100]);
    attachment.client().trim(0, BLOCK).expect("trimmed");
    let second = snapshot(&pool, &volume);
    assert_eq!(objects(&pool, "blocks").len(), 10);
    assert_eq!(describe(&pool, &second)["FullSnapshotSizeInBytes"], 8 * BLOCK as u64);
    assert_eq!(describe(&pool, &first)["FullSnapshotSizeInBytes"], 8 * BLOCK as u64);
    attachment.terminate();
    let data = std::fs::read(pool.data(&volume)).expect("the data");
    assert!(snapshot_bytes(&pool, &second) == data);
    // Detached cleanly: the map tells that nothing has changed.
    let third = snapshot(&pool, &volume);
    assert_eq!(objects(&pool, "blocks").len(), 10);
    assert!(snapshot_bytes(&pool, &third) == data);
    assert_clean(&pool);
}

#[test]
fn after_a_kill_the_next_snapshot_is_right_and_stores_what_has_changed() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "64MiB", "--encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    write(&attachment, 0, &noise(1, 8 * BLOCK));
    snapshot(&pool, &volume);
    write(&attachment, 5 * BLOCK as u64, &[7; 100]);
    let grants = support::grants(&pool, &volume).len();
    attachment.kill();
    let detached = snapshot(&pool, &volume);
    assert_eq!(objects(&pool, "blocks").len(), 9, "nobody knew what had changed, and yet");
    assert!(snapshot_bytes(&pool, &detached) == std::fs::read(pool.data(&volume)).expect("the data"));
    assert_eq!(
        support::grants(&pool, &volume).len(),
        grants,
        "no key service was asked, not to clean up either"
    );
    let attachment = pool.attach(&volume, &[]);
    assert_eq!(support::grants(&pool, &volume).len(), 1, "the next attachment cleans up");
    write(&attachment, 6 * BLOCK as u64, &[7; 100]);
    attachment.kill();
    let attachment = pool.attach(&volume, &[]);
    let attached = snapshot(&pool, &volume);
    attachment.terminate();
    assert_eq!(objects(&pool, "blocks").len(), 10);
    assert!(snapshot_bytes(&pool, &attached) == std::fs::read(pool.data(&volume)).expect("the data"));
    assert_clean(&pool);
}

#[test]
fn a_parent_is_deleted_and_its_child_stays_whole() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "64MiB", "--no-encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    write(&attachment, 0, &noise(1, 8 * BLOCK));
    let first = snapshot(&pool, &volume);
    write(&attachment, 0, &noise(2, 2 * BLOCK));
    let second = snapshot(&pool, &volume);
    let bytes = snapshot_bytes(&pool, &second);
    let deleted = pool.json(&["snapshot", "delete", &first]);
    assert_eq!((&deleted["State"], &deleted["FreedBlocks"]), (&"deleted".into(), &2.into()));
    assert!(snapshot_bytes(&pool, &second) == bytes);
    pool.run(&["snapshot", "describe", &first]).refused(exit::NOT_FOUND);
    // The next builds upon what is left.
    write(&attachment, 4 * MIB, &[1; 10]);
    let third = snapshot(&pool, &volume);
    assert_eq!(objects(&pool, "blocks").len(), 9);
    pool.run(&["snapshot", "delete", &second]).ok();
    pool.run(&["snapshot", "delete", &third]).ok();
    assert_eq!(objects(&pool, "blocks").len() + objects(&pool, "pages").len(), 0);
    // The map names a snapshot that is gone.
    let fourth = snapshot(&pool, &volume);
    attachment.terminate();
    assert!(snapshot_bytes(&pool, &fourth) == std::fs::read(pool.data(&volume)).expect("the data"));
    assert_clean(&pool);
}

#[test]
fn two_volumes_share_a_repository_and_nothing_in_it() {
    let pool = Pool::new();
    let volumes: Vec<String> = (0..2).map(|_| pool.create(&["--size", "16MiB", "--encrypted"])).collect();
    let attachments: Vec<Attachment> = volumes.iter().map(|volume| pool.attach(volume, &[])).collect();
    attachments.iter().for_each(|attachment| write(attachment, 0, &noise(1, 4 * BLOCK)));
    let children: Vec<Child> = volumes.iter().map(|volume| begin(&pool, &[volume])).collect();
    let ids: Vec<String> = children.into_iter().map(|child| end(child).1.trim().to_owned()).collect();
    attachments.into_iter().for_each(Attachment::terminate);
    assert_eq!(objects(&pool, "blocks").len(), 8);
    for (volume, id) in volumes.iter().zip(&ids) {
        let listed = pool.json(&["snapshot", "list", "--volume", volume]);
        assert_eq!(listed["Snapshots"].as_array().map(Vec::len), Some(1));
        assert_eq!(listed["Snapshots"][0]["SnapshotId"], **id);
        assert!(snapshot_bytes(&pool, id) == std::fs::read(pool.data(volume)).expect("the data"));
    }
    pool.run(&["snapshot", "delete", &ids[0]]).ok();
    assert_eq!(objects(&pool, "blocks").len(), 4);
    assert_clean(&pool);
}

#[test]
fn r13_a_snapshot_of_a_volume_that_is_not_restored_yet_takes_over_what_its_own_snapshot_holds() {
    for attached in [false, true] {
        let pool = Pool::new();
        let volume = pool.create(&["--size", "64MiB", "--encrypted"]);
        let attachment = pool.attach(&volume, &[]);
        write(&attachment, 0, &noise(1, 16 * BLOCK));
        let origin = snapshot(&pool, &volume);
        attachment.terminate();
        let restored = pool.create(&["--snapshot-id", &origin, "--encrypted"]);
        if attached {
            let attachment = pool.attach(&restored, &[]);
            write(&attachment, 3 * BLOCK as u64, &[7; 512]);
            // Nobody knows any more what has changed.
            attachment.kill();
        }
        let again = snapshot(&pool, &restored);
        assert_eq!(objects(&pool, "blocks").len(), if attached { 17 } else { 16 });
        assert_eq!(
            describe(&pool, &again)["DataEncryptionKeyId"],
            describe(&pool, &origin)["DataEncryptionKeyId"]
        );
        if !attached {
            assert!(snapshot_bytes(&pool, &again) == snapshot_bytes(&pool, &origin));
        }
        assert_clean(&pool);
    }
}

#[test]
fn a_flaw_is_found_and_named_and_exits_with_1() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "16MiB", "--no-encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    write(&attachment, 0, &noise(1, 4 * BLOCK));
    let id = snapshot(&pool, &volume);
    attachment.terminate();
    let block = objects(&pool, "blocks").remove(0);
    let mut bytes = std::fs::read(&block).expect("a block");
    bytes[9] ^= 1;
    std::fs::write(&block, bytes).expect("damaged");
    pool.run(&["snapshot", "verify", &id]).ok();
    let deep = pool.run(&["snapshot", "verify", &id, "--deep"]);
    assert!(deep.stdout.contains(&id) && deep.stdout.contains("damaged"), "{deep}");
    deep.refused(exit::FAILED);
    std::fs::remove_file(&block).expect("lost");
    let shallow = pool.run(&["snapshot", "verify", "--all"]);
    assert!(shallow.stdout.contains("missing"), "{shallow}");
    shallow.refused(exit::FAILED);
}
