//! What must be found nowhere: plaintext in the store (r6), the data key on disk (r12) or in the serving process
//! outside its locked pages; each search with a control that finds something. And who is asked for the key, when
//! (r14, r16, r19).

#[path = "secrets/round_keys.rs"]
mod round_keys;
mod support;

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use round_keys::round_keys;
use serde_json::Value;
use support::{Attachment, Pool, data_key, exit, found, in_memory, noise};

/// Files of the pool, its sockets' directory, its logs and its temporary files that hold one of `needles`.
fn holders(pool: &Pool, needles: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut files = pool.files();
    files.retain(|path| {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        !found(&bytes, needles).is_empty()
    });
    files
}

/// Every sixteenth byte begins a piece, so that a copy is found wherever it is cut.
fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes.chunks_exact(16).map(<[u8]>::to_vec).collect()
}

/// Writes the marker in every way a client can: whole blocks, odd ranges, across sectors, again over itself.
fn write_marker(attachment: &Attachment, marker: &[u8]) {
    let mut client = attachment.client();
    for at in [0, 4096, 70_001, 1 << 20, (1 << 20) + 511] {
        client.write(at, marker).expect("the marker is written");
    }
    client.flush().expect("the marker is flushed");
    assert!(client.read(70_001, marker.len()).expect("it is read back") == marker);
}

#[test]
fn r6_a_marker_written_through_an_encrypted_volume_is_nowhere_on_disk() {
    let marker = noise(6, 4096);
    for (encryption, expected) in [("--encrypted", false), ("--no-encrypted", true)] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "4MiB"]);
        let attachment = pool.attach(&volume, &[]);
        write_marker(&attachment, &marker);
        let attached = holders(&pool, &pieces(&marker));
        attachment.terminate();
        let detached = holders(&pool, &pieces(&marker));
        // The control: without encryption it is in the data file, and nowhere else.
        let wanted = if expected { vec![pool.data(&volume)] } else { Vec::new() };
        assert_eq!((&attached, &detached), (&wanted, &wanted), "{encryption}");
    }
}

/// The ways in which a key could be written down.
fn spellings(key: &[u8; 64]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for part in [&key[..], &key[..32], &key[32..]] {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        all.extend([part.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()]);
        all.extend(
            [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD].map(|engine| engine.encode(part).into_bytes()),
        );
    }
    all
}

#[test]
fn r12_the_data_key_is_nowhere_on_disk() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB"]);
    let attachment = pool.attach(&volume, &[]);
    write_marker(&attachment, &noise(12, 4096));
    let key = data_key(&pool, &volume);
    assert_ne!(key[..32], key[32..], "the halves are two keys");
    let needles = spellings(&key);
    assert_eq!(holders(&pool, &needles), Vec::<PathBuf>::new(), "while attached");
    attachment.terminate();
    assert_eq!(holders(&pool, &needles), Vec::<PathBuf>::new(), "after the detach");

    // The control: each spelling is found where it is.
    for (number, needle) in needles.iter().enumerate() {
        let path = pool.root().join(format!("control-{number}"));
        fs::write(&path, [b"before".as_slice(), needle, b"after"].concat()).expect("a file is written");
        assert_eq!(holders(&pool, &needles), std::slice::from_ref(&path), "spelling {number}");
        fs::remove_file(&path).expect("it is removed");
    }
}

#[test]
fn r12_a_serving_process_leaves_no_core_dump() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", attachment.pid())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    attachment.terminate();
}

#[test]
fn r17_no_argument_and_no_variable_of_a_serving_process_holds_the_key() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let needles = spellings(&data_key(&pool, &volume));
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", attachment.pid())).expect("a file of /proc");
        assert!(found(&bytes, &needles).is_empty(), "{file}");
        let id = [volume.clone().into_bytes()];
        assert!(file == "environ" || !found(&bytes, &id).is_empty(), "the right process");
    }
    attachment.terminate();
}

#[test]
fn r19_the_key_is_in_no_memory_that_can_be_read_while_it_is_used() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "8MiB"]);
    let attachment = pool.attach(&volume, &["--listen", "127.0.0.1:0"]);
    let key = data_key(&pool, &volume);
    let schedule = |half: &[u8]| round_keys(half.try_into().expect("a half is 32 bytes"));
    let round_keys = [schedule(&key[..32]), schedule(&key[32..])].concat();
    let needles: Vec<Vec<u8>> = round_keys.iter().map(|key| key.to_vec()).collect();
    let mut client = attachment.client();
    for round in 0..200_u64 {
        client.write(round * 4096, &noise(round, 10_000)).expect("a write");
        client.read(round * 4096 + 77, 10_000).expect("a read");
    }
    client.flush().expect("a flush");
    assert_eq!(in_memory(attachment.pid(), &needles), [], "with a connection open and idle");
    drop(client);
    assert_eq!(in_memory(attachment.pid(), &needles), Vec::new(), "with the connection closed");
    // The control: the same search finds what is there.
    assert!(
        !in_memory(attachment.pid(), &[volume.into_bytes()]).is_empty(),
        "the search finds the volume's id"
    );
    attachment.terminate();
}

/// The names of the calls in the audit log that failed or not, in order.
fn audited(pool: &Pool) -> Vec<String> {
    let log = fs::read_to_string(pool.path().join("kms/audit.log")).expect("the audit log");
    let event = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON");
    log.lines().map(|line| event(line)["eventName"].as_str().expect("a name").to_owned()).collect()
}

fn count(events: &[String], name: &str) -> usize {
    events.iter().filter(|event| *event == name).count()
}

#[test]
fn r14_r16_one_data_key_at_creation_and_one_decrypt_at_each_attach() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "4MiB"]);
    let events = audited(&pool);
    assert_eq!(
        (count(&events, "GenerateDataKeyWithoutPlaintext"), count(&events, "Decrypt")),
        (1, 0),
        "{events:?}"
    );
    for attach in 1..=2 {
        let attachment = pool.attach(&volume, &[]);
        let events = audited(&pool);
        assert_eq!(
            (count(&events, "Decrypt"), count(&events, "CreateGrant")),
            (attach, attach),
            "{events:?}"
        );
        write_marker(&attachment, &noise(16, 4096));
        assert_eq!(audited(&pool), events, "I/O asks for nothing");
        attachment.terminate();
        let events = audited(&pool);
        assert_eq!(
            (count(&events, "Decrypt"), count(&events, "RetireGrant")),
            (attach, attach),
            "{events:?}"
        );
    }
    assert_eq!(count(&audited(&pool), "GenerateDataKeyWithoutPlaintext"), 1);
}

#[test]
fn r19_disabling_the_key_stops_attaches_and_not_what_is_attached() {
    let pool = Pool::new();
    let key = pool.json(&["key", "create", "--description", "to be disabled"]);
    let key = key["Arn"].as_str().unwrap_or_else(|| panic!("no Arn in {key}")).to_owned();
    let volume = pool.create(&["--encrypted", "--kms-key-id", &key, "--size", "4MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    client.write(0, &noise(1, 5000)).expect("a write");

    pool.run(&["key", "disable", &key, "--force"]).ok();
    client.write(9000, &noise(2, 5000)).expect("a write goes on");
    assert!(client.read(0, 5000).expect("a read goes on") == noise(1, 5000));
    client.flush().expect("a flush goes on");
    assert!(attachment.client().read(9000, 5000).expect("a new connection, too") == noise(2, 5000));
    attachment.terminate();

    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains(&key) && refusal.contains("isabled"), "it names the key and why: {refusal}");
    pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &key])
        .refused(exit::DENIED);
    pool.run(&["key", "enable", &key]).ok();
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    assert!(client.read(0, 5000).expect("a read") == noise(1, 5000));
    assert!(client.read(9000, 5000).expect("a read") == noise(2, 5000));

    // A server that is killed while the key is disabled must not come back.
    pool.run(&["key", "disable", &key, "--force"]).ok();
    attachment.kill();
    pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    pool.run(&["key", "enable", &key]).ok();
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(9000, 5000).expect("a read") == noise(2, 5000));
    attachment.terminate();
}
