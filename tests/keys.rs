//! What happens to volumes when their keys do (issue 5, "Behaviour"): rewrap, who uses a key, a key that is lost while a
//! volume is attached, a key service that hangs.

#[path = "secrets/round_keys.rs"]
mod round_keys;
mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use round_keys::round_keys;
use support::Client;
use support::services::{openssl_program, program};
use support::{Attachment, Pool, data_key, exit, in_memory, noise};

const BLOCK: usize = 4096;
/// Longer than any wait here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn create_key(pool: &Pool) -> String {
    let key = pool.json(&["key", "create"]);
    key["Arn"].as_str().unwrap_or_else(|| panic!("no Arn in {key}")).to_owned()
}

fn under(pool: &Pool, key: &str) -> String {
    pool.create(&["--encrypted", "--kms-key-id", key, "--size", "8MiB"])
}

fn text(document: &serde_json::Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

#[test]
fn r42_a_rewrap_moves_the_data_key_to_another_key_and_touches_no_data() {
    let pool = Pool::new();
    let (old, new) = (create_key(&pool), create_key(&pool));
    let volume = under(&pool, &old);
    let attachment = pool.attach(&volume, &[]);
    attachment.client().write(5000, &noise(1, 9000)).expect("a write");
    let before = pool.describe(&volume);
    // Attached: what is served goes on.
    let after = pool.json(&["volume", "rewrap", &volume, "--kms-key-id", &new]);
    assert_eq!(text(&after, "KmsKeyId"), new);
    assert_ne!(text(&before, "KeyMaterialId"), text(&after, "KeyMaterialId"));
    assert!(attachment.client().read(5000, 9000).expect("a read") == noise(1, 9000));
    attachment.terminate();
    let data = fs::read(pool.data(&volume)).expect("the data");

    // The old key is of no use any more, and needs no more care.
    pool.run(&["key", "disable", &old]).ok();
    assert_eq!(data_key(&pool, &volume).len(), 64);
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(5000, 9000).expect("a read") == noise(1, 9000));
    attachment.terminate();
    assert!(fs::read(pool.data(&volume)).expect("the data") == data, "the same ciphertext");
    let log = fs::read_to_string(pool.path().join("kms/audit.log")).expect("the audit log");
    assert_eq!(log.matches("\"eventName\":\"ReEncrypt\"").count(), 1, "it is audited");
}

#[test]
fn r42_without_a_key_a_rewrap_takes_the_newest_material() {
    let pool = Pool::new();
    let key = create_key(&pool);
    let volume = under(&pool, &key);
    let before = text(&pool.describe(&volume), "KeyMaterialId");
    let current = text(&pool.json(&["key", "rotate", &key]), "CurrentKeyMaterialId");
    assert_eq!(text(&pool.describe(&volume), "KeyMaterialId"), before, "a rotation changes no volume");
    assert_eq!(text(&pool.json(&["volume", "rewrap", &volume]), "KeyMaterialId"), current);
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn a_recovery_key_moves_a_volume_away_from_a_lost_one() {
    let pool = Pool::new();
    let (lost, recovery, new) = (create_key(&pool), create_key(&pool), create_key(&pool));
    let volume = pool.create(&[
        "--encrypted",
        "--size",
        "4MiB",
        "--kms-key-id",
        &lost,
        "--recovery-kms-key-id",
        &recovery,
    ]);
    pool.run(&["key", "disable", &lost, "--force"]).ok();
    let refusal = pool.run(&["volume", "rewrap", &volume]).refused(exit::DENIED);
    assert!(refusal.contains(&lost), "{refusal}");
    pool.json(&["volume", "rewrap", &volume, "--kms-key-id", &new]);
    let described = pool.describe(&volume);
    assert_eq!(text(&described, "KmsKeyId"), new);
    assert_eq!(text(&described["RecoveryKeys"][0], "KmsKeyId"), recovery);
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn a_rewrap_of_all_goes_on_after_a_failure_and_ends_with_the_worst_code() {
    let pool = Pool::new();
    let (good, bad, new) = (create_key(&pool), create_key(&pool), create_key(&pool));
    let volumes = [under(&pool, &good), under(&pool, &bad), under(&pool, &good)];
    pool.create(&["--no-encrypted", "--size", "1MiB"]);
    pool.run(&["key", "disable", &bad, "--force"]).ok();
    let run = pool.run(&["volume", "rewrap", "--all", "--kms-key-id", &new, "--output", "json"]);
    run.refused(exit::DENIED);
    let keys: Vec<String> = volumes.iter().map(|volume| text(&pool.describe(volume), "KmsKeyId")).collect();
    assert_eq!(keys, [new.clone(), bad, new]);
    let plain = pool.create(&["--no-encrypted", "--size", "1MiB"]);
    pool.run(&["volume", "rewrap", &plain]).refused(exit::WRONG_STATE);
}

#[test]
fn a_rewrap_that_is_killed_leaves_the_old_wrapping_or_the_new_one() {
    let pool = Pool::new();
    let keys = [create_key(&pool), create_key(&pool)];
    let volume = under(&pool, &keys[0]);
    let started = Instant::now();
    pool.json(&["volume", "rewrap", &volume, "--kms-key-id", &keys[1]]);
    let whole = started.elapsed();
    for round in 0..12_u32 {
        let key = &keys[(round % 2) as usize];
        let mut command = pool.command(&["volume", "rewrap", &volume, "--kms-key-id", key]);
        let mut child = command.process_group(0).spawn().expect("it starts");
        // From its start to its end.
        thread::sleep(whole * round / 11);
        let _ = child.kill();
        child.wait().expect("it ends");
        let now = text(&pool.describe(&volume), "KmsKeyId");
        assert!(keys.contains(&now), "round {round}: {now}");
        assert_eq!(data_key(&pool, &volume).len(), 64, "round {round}: it can be unwrapped");
    }
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn a_key_in_use_is_disabled_or_destroyed_by_force_only_and_its_users_are_listed() {
    let pool = Pool::new();
    let (key, other) = (create_key(&pool), create_key(&pool));
    let first = under(&pool, &key);
    let second = pool.create(&[
        "--encrypted",
        "--size",
        "4MiB",
        "--kms-key-id",
        &other,
        "--recovery-kms-key-id",
        &key,
    ]);
    let attachment = pool.attach(&first, &[]);
    let users = pool.json(&["key", "users", &key]);
    let found = users["Volumes"].as_array().expect("a list");
    let of = |volume: &str| {
        found.iter().find(|user| user["VolumeId"] == volume).unwrap_or_else(|| panic!("{volume} in {users}"))
    };
    assert_eq!(found.len(), 2);
    assert_eq!((text(of(&first), "Role"), text(of(&first), "State")), ("primary".into(), "in-use".into()));
    assert_eq!(
        (text(of(&second), "Role"), text(of(&second), "State")),
        ("recovery".into(), "available".into())
    );
    let listed = pool.run(&["key", "users", &key]).ok();
    assert!(listed.contains(&first) && listed.contains(&second), "{listed}");

    for verb in [["key", "disable"], ["key", "schedule-deletion"]] {
        let refusal = pool.run(&[&verb[..], &[&key]].concat()).refused(exit::WRONG_STATE);
        for part in [first.as_str(), &second, &key, "--force"] {
            assert!(refusal.contains(part), "{part} in {refusal}");
        }
    }
    assert_eq!(text(&pool.json(&["key", "describe", &key]), "KeyState"), "Enabled");
    pool.run(&["key", "schedule-deletion", &key, "--force"]).ok();
    attachment.terminate();
    assert!(
        pool.json(&["key", "users", &create_key(&pool)])["Volumes"].as_array().expect("a list").is_empty()
    );
}

/// Writes blocks of its own, each with its round's noise, and reads each back, until told to stop; how many rounds were
/// acknowledged, or the error.
fn load(mut connection: Client<UnixStream>, stop: &AtomicBool, client: u64) -> Result<u64, std::io::Error> {
    const BLOCKS: u64 = 64;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = (client * BLOCKS + round % BLOCKS) * BLOCK as u64;
        connection.write(at, &noise(round, BLOCK))?;
        assert!(connection.read(at, BLOCK)? == noise(round, BLOCK), "round {round} reads back");
        round += 1;
    }
    connection.flush()?;
    Ok(round)
}

/// What of a volume's key would be in memory if it were neither hidden nor wiped.
fn round_key_bytes(pool: &Pool, volume: &str) -> Vec<Vec<u8>> {
    let key = data_key(pool, volume);
    let schedule = |half: &[u8]| round_keys(half.try_into().expect("a half is 32 bytes"));
    let round_keys = [schedule(&key[..32]), schedule(&key[32..])].concat();
    round_keys.iter().map(|key| key.to_vec()).collect()
}

/// How much locked memory a process has, in KiB: keys, and nothing else that comes and goes.
fn locked_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Waits for more of the server's standard error than `already` bytes.
#[track_caller]
fn wait_for_more(attachment: &Attachment, already: usize, said: &str) {
    let started = Instant::now();
    while !attachment.log().get(already..).unwrap_or_default().contains(said) {
        assert!(started.elapsed() < PATIENCE, "{said:?} was not said: {}", attachment.log());
        thread::sleep(Duration::from_millis(20));
    }
}

const LOST: &str = "the key is lost: wiped";
const FREEZE: &[&str] = &["--on-key-loss", "freeze", "--key-check-interval", "1"];
const FAIL: &[&str] = &["--on-key-loss", "fail", "--key-check-interval", "1"];

#[test]
fn r19_a_frozen_volume_holds_its_requests_and_loses_nothing() {
    let pool = Pool::new();
    let key = create_key(&pool);
    let volume = under(&pool, &key);
    let needles = round_key_bytes(&pool, &volume);
    let attachment = pool.attach(&volume, FREEZE);
    let stop = AtomicBool::new(false);
    let with_key = locked_kib(attachment.pid());
    let rounds = thread::scope(|scope| {
        let (attachment, stop) = (&attachment, &stop);
        let clients = [0, 1].map(|client| {
            let connection = attachment.client();
            scope.spawn(move || load(connection, stop, client))
        });
        for _ in 0..2 {
            let said = attachment.log().len();
            pool.run(&["key", "disable", &key, "--force"]).ok();
            wait_for_more(attachment, said, LOST);
            assert_eq!(in_memory(attachment.pid(), &needles), [], "no round key in memory");
            assert!(locked_kib(attachment.pid()) < with_key, "the pages of the key are gone");
            assert!(clients.iter().all(|client| !client.is_finished()), "requests wait, none fails");
            let said = attachment.log().len();
            pool.run(&["key", "enable", &key]).ok();
            wait_for_more(attachment, said, "the key is back");
            assert_eq!(locked_kib(attachment.pid()), with_key, "the control: the key is there again");
        }
        stop.store(true, Ordering::Relaxed);
        clients.map(|client| client.join().expect("no mismatch").expect("nothing failed"))
    });
    assert!(rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");
    // The other control: the search finds what is there.
    assert!(!in_memory(attachment.pid(), &[volume.clone().into_bytes()]).is_empty());
    attachment.terminate();
}

#[test]
fn r19_a_frozen_volume_can_be_detached_and_keeps_what_was_flushed() {
    let pool = Pool::new();
    let key = create_key(&pool);
    let volume = under(&pool, &key);
    let mut attachment = pool.attach(&volume, FREEZE);
    let mut client = attachment.client();
    client.write(0, &noise(1, BLOCK)).expect("a write");
    client.flush().expect("a flush");
    pool.run(&["key", "disable", &key, "--force"]).ok();
    wait_for_more(&attachment, 0, LOST);
    thread::scope(|scope| {
        let held = scope.spawn(move || client.write(0, &noise(2, BLOCK)));
        let started = Instant::now();
        pool.run(&["volume", "detach", &volume]).ok();
        assert!(started.elapsed() < Duration::from_secs(9), "it does not wait for a drain's end");
        held.join().expect("no panic").expect_err("what was held fails");
    });
    let status = attachment.wait();
    attachment.must_have_ended_well(status);
    pool.run(&["key", "enable", &key]).ok();
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(0, BLOCK).expect("a read") == noise(1, BLOCK));
    attachment.terminate();
}

#[test]
fn r19_a_failing_volume_answers_with_errors_until_it_is_detached() {
    let pool = Pool::new();
    let key = create_key(&pool);
    let volume = under(&pool, &key);
    let needles = round_key_bytes(&pool, &volume);
    let attachment = pool.attach(&volume, FAIL);
    let stop = AtomicBool::new(false);
    let with_key = locked_kib(attachment.pid());
    thread::scope(|scope| {
        let (attachment, stop) = (&attachment, &stop);
        let clients = [0, 1].map(|client| {
            let connection = attachment.client();
            scope.spawn(move || load(connection, stop, client))
        });
        pool.run(&["key", "disable", &key, "--force"]).ok();
        for client in clients {
            client.join().expect("no mismatch").expect_err("the load ends with an error");
        }
    });
    wait_for_more(&attachment, 0, LOST);
    assert_eq!(in_memory(attachment.pid(), &needles), [], "no round key in memory");
    assert!(locked_kib(attachment.pid()) < with_key, "the pages of the key are gone");
    pool.run(&["key", "enable", &key]).ok();
    attachment.client().read(0, BLOCK).expect_err("gone is gone, until a detach");
    attachment.terminate();
    let attachment = pool.attach(&volume, FAIL);
    attachment.client().read(0, BLOCK).expect("a read");
    attachment.terminate();
}

#[test]
fn a_key_service_that_does_not_answer_is_no_loss_and_holds_up_neither_detach_nor_list_nor_stats() {
    let pool = Pool::new();
    let key = openssl_program(&pool) + "main";
    pool.run(&["kms", "configure", "patience", "--timeout", "2", "--deadline", "2"]).ok();
    let volume = pool.create(&["--encrypted", "--size", "4MiB", "--kms-key-id", &key]);
    let attachment = pool.attach(&volume, FREEZE);
    let mut client = attachment.client();
    client.write(0, &noise(1, BLOCK)).expect("a write");
    // From now on the program hangs.
    let path = key.trim_start_matches("exec:").split('?').next().expect("a path").to_owned();
    let text = fs::read(&path).expect("the program");
    fs::remove_file(&path).expect("removed");
    let hanging = program(&pool, "hanging", "#!/bin/sh\nexec sleep 1000\n");
    fs::rename(hanging, &path).expect("renamed");
    wait_for_more(&attachment, 0, "nobody says whether the key may be used");
    assert!(client.read(0, BLOCK).expect("it goes on") == noise(1, BLOCK));
    for command in [&["volume", "list"][..], &["volume", "describe", &volume], &["volume", "stats", &volume]]
    {
        let started = Instant::now();
        pool.run(command).ok();
        assert!(started.elapsed() < PATIENCE, "{command:?} took {:?}", started.elapsed());
    }
    drop(client);
    let started = Instant::now();
    attachment.terminate();
    assert!(started.elapsed() < PATIENCE, "the end took {:?}", started.elapsed());
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::UNREACHABLE);
    for part in [volume.as_str(), &key, "Decrypt"] {
        assert!(refusal.contains(part), "{part} in {refusal}");
    }
    fs::write(&path, text).expect("the program is back");
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(0, BLOCK).expect("a read") == noise(1, BLOCK));
    attachment.terminate();
}

#[test]
fn a_volume_that_is_moved_to_another_key_is_watched_under_that_key() {
    let pool = Pool::new();
    let (old, new) = (create_key(&pool), create_key(&pool));
    let volume = under(&pool, &old);
    let attachment = pool.attach(&volume, FREEZE);
    pool.json(&["volume", "rewrap", &volume, "--kms-key-id", &new]);
    pool.run(&["key", "disable", &old]).ok();
    pool.run(&["key", "disable", &new, "--force"]).ok();
    wait_for_more(&attachment, 0, LOST);
    assert!(!attachment.log().contains(&old) && attachment.log().contains(&new), "{}", attachment.log());
    pool.run(&["key", "enable", &new]).ok();
    wait_for_more(&attachment, 0, "the key is back");
    attachment.client().write(0, &noise(1, BLOCK)).expect("a write");
    attachment.terminate();
}
