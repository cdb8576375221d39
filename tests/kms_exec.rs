//! Volumes under keys of an external program (the example that wraps with OpenSSL), programs that misbehave, and volumes
//! with recovery keys.

mod support;

use std::time::{Duration, Instant};

use support::services::{
    SoftHsm, assert_key_only_in_locked_memory, openssl_program, program, recovery_keys, unwrap, volume_key,
};
use support::{Pool, exit, noise};

fn refused(pool: &Pool, key: &str, code: i32) -> String {
    pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", key]).refused(code)
}

#[test]
fn r10_a_volume_under_a_programs_key_keeps_its_data_and_its_key_out_of_sight() {
    let pool = Pool::new();
    let key = openssl_program(&pool) + "main";
    let volume = pool.create(&["--encrypted", "--size", "4MiB", "--kms-key-id", &key]);
    assert_eq!(pool.describe(&volume)["KmsKeyId"].as_str(), Some(key.as_str()));
    assert_key_only_in_locked_memory(&pool, &volume);
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(700, 10_000).expect("a read") == noise(5, 10_000));
    attachment.terminate();
}

#[test]
fn a_programs_exit_status_says_what_is_wrong() {
    let pool = Pool::new();
    let keys = openssl_program(&pool);
    refused(&pool, &format!("{keys}nope"), exit::NOT_FOUND);
    let key = keys + "main";
    let create = || pool.create(&["--encrypted", "--size", "1MiB", "--kms-key-id", &key]);
    let (one, other) = (create(), create());
    let wrapped = pool.describe(&other)["WrappedKey"].as_str().expect("base64").to_owned();
    let error = unwrap(&pool, &one, &key, &wrapped).expect_err("another context");
    assert_eq!(error.kind, sealblk_kms::KmsErrorKind::InvalidCiphertext, "{error}");
    assert!(error.to_string().contains("wrapped for another encryption context"), "{error}");
    std::fs::remove_file(pool.root().join("keys/main.key")).expect("removed");
    let refusal = pool.run(&["volume", "attach", &one]).refused(exit::DENIED);
    assert!(refusal.contains("no private key"), "{refusal}");
}

/// A program whose `decrypt` does `action`, with the descriptor in `$2`; its other operations work.
fn misbehaving(pool: &Pool, action: &str) -> String {
    let text = format!(
        "#!/bin/sh\ncat >/dev/null\ncase $1 in\n\
         describe) echo '{{\"Version\":1}}' ;;\n\
         encrypt) echo '{{\"Version\":1,\"Ciphertext\":\"AAAA\"}}' ;;\n\
         decrypt) {action} ;;\nesac\n"
    );
    let path = program(pool, "misbehaving", &text);
    pool.run(&["kms", "configure", "exec", "--program", &path]).ok();
    path
}

#[test]
fn a_program_that_hangs_dies_or_writes_another_number_of_bytes_is_an_error_that_names_it() {
    let pool = Pool::new();
    let patience = |seconds| {
        pool.run(&["kms", "configure", "patience", "--timeout", seconds, "--deadline", "0"]).ok();
    };
    patience("60");
    let path = misbehaving(&pool, "true");
    let key = format!("exec:{path}?key=k");
    let volume = pool.create(&["--encrypted", "--size", "1MiB", "--kms-key-id", &key]);
    let good = "echo '{\"Version\":1}'";
    for (action, code, wanted) in [
        (
            format!("head -c 63 /dev/urandom >&\"$2\"; {good}"),
            exit::FAILED,
            "wrote 63 bytes of key instead of 64",
        ),
        (
            format!("head -c 65 /dev/urandom >&\"$2\"; {good}"),
            exit::FAILED,
            "wrote more than 64 bytes of key",
        ),
        (format!("head -c 64 /dev/zero >&\"$2\"; {good}"), exit::FAILED, "two halves are equal"),
        (good.to_owned(), exit::FAILED, "wrote 0 bytes of key instead of 64"),
        ("echo 'HSM\\033[2J gone' >&2; kill -9 $$".to_owned(), exit::FAILED, "killed by signal 9"),
        ("echo 'no such slot' >&2; exit 1".to_owned(), exit::FAILED, "exit status 1, saying: no such slot"),
        ("echo 'not on this host' >&2; exit 5".to_owned(), exit::DENIED, "not on this host"),
        ("exit 6".to_owned(), exit::UNREACHABLE, "exit status 6"),
        ("sleep 600".to_owned(), exit::UNREACHABLE, "did not finish within 1600 ms and was killed"),
        ("head -c 100000 /dev/zero >&\"$2\"".to_owned(), exit::UNREACHABLE, "did not finish within 1600 ms"),
        ("echo SECRET".to_owned(), exit::FAILED, "wrote something that is not a reply"),
        ("echo '{\"Version\":2}'".to_owned(), exit::FAILED, "speaks version 2"),
        ("echo '{\"Version\":1,\"SECRET\":2}'".to_owned(), exit::FAILED, "is not a reply"),
        ("head -c 70000 /dev/zero".to_owned(), exit::FAILED, "wrote more than 64 KiB"),
    ] {
        misbehaving(&pool, &action);
        // Only of what does not end it matters.
        patience(if wanted.starts_with("did not finish") { "2" } else { "60" });
        let started = Instant::now();
        let refusal = pool.run(&["volume", "attach", &volume]).refused(code);
        assert!(refusal.contains(wanted) && refusal.contains(&path), "{action}: {refusal}");
        assert!(!refusal.contains("SECRET") && !refusal.contains('\u{1b}'), "{action}: {refusal}");
        assert!(started.elapsed() < Duration::from_secs(60), "{action}");
    }
}

#[test]
fn a_program_that_is_not_listed_is_not_run() {
    let pool = Pool::new();
    let witness = pool.root().join("witness");
    let path = program(&pool, "stray", &format!("#!/bin/sh\ntouch {}\n", witness.display()));
    let refusal = refused(&pool, &format!("exec:{path}?key=k"), exit::FAILED);
    assert!(refusal.contains("kms configure exec"), "{refusal}");
    assert!(!witness.exists(), "it ran");
}

#[test]
fn a_volume_is_unlocked_by_the_first_of_its_keys_that_can_be_used() {
    let pool = Pool::new();
    pool.run(&["kms", "configure", "patience", "--deadline", "0"]).ok();
    let _token = SoftHsm::start(&pool);
    let (exec, token) = (openssl_program(&pool) + "main", "pkcs11:token=t;object=ebs");
    let local = pool.json(&["key", "create"])["Arn"].as_str().expect("an ARN").to_owned();
    let keys = ["--kms-key-id", &local, "--recovery-kms-key-id", token, "--recovery-kms-key-id", &exec];
    let volume = pool.create(&[&["--encrypted", "--size", "4MiB"], &keys[..]].concat());

    let described = pool.describe(&volume);
    let recovery = recovery_keys(&described);
    assert_eq!(recovery.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), [token, &exec]);
    let data_key = volume_key(&pool, &volume);
    for (key, wrapped) in &recovery {
        assert_eq!(unwrap(&pool, &volume, key, wrapped).expect(key), data_key, "{key}");
    }

    let attachment = pool.attach(&volume, &[]);
    attachment.client().write(0, &noise(1, 5000)).expect("a write");
    assert!(!attachment.log().contains("recovery"), "{}", attachment.log());
    attachment.terminate();
    pool.run(&["key", "disable", &local, "--force"]).ok();
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(0, 5000).expect("a read") == noise(1, 5000));
    let log = attachment.log();
    assert!(log.contains(&format!("unlocked by the recovery key {token}")), "{log}");
    assert!(log.contains(&local) && log.contains("isabled"), "it says why the first was not used: {log}");
    attachment.terminate();
    pool.run(&["kms", "remove", "pkcs11", support::services::SOFTHSM]).ok();
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.log().contains(&format!("unlocked by the recovery key {exec}")));
    attachment.terminate();

    // With none left, the first key's error is the one to tell.
    std::fs::remove_file(pool.root().join("keys/main.key")).expect("removed");
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains(&local) && refusal.contains("isabled"), "{refusal}");
    refused(&pool, "alias/nope", exit::NOT_FOUND);
    let nowhere =
        ["volume", "create", "--size", "1MiB", "--encrypted", "--recovery-kms-key-id", "alias/nope"];
    pool.run(&nowhere).refused(exit::NOT_FOUND);
    let plain = ["volume", "create", "--size", "1MiB", "--no-encrypted", "--recovery-kms-key-id", &local];
    pool.run(&plain).refused(exit::USAGE);
}
