//! Volumes under keys in a PKCS#11 token (SoftHSM): what the token must be, what its refusals become, and modules that crash.

mod support;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::services::{SOFTHSM, SoftHsm, assert_key_only_in_locked_memory, unwrap};
use support::{Pool, exit, noise};

const KEY: &str = "pkcs11:token=t;object=ebs";

fn create(pool: &Pool) -> String {
    pool.create(&["--encrypted", "--size", "4MiB", "--kms-key-id", KEY])
}

fn refused(pool: &Pool, key: &str, code: i32) -> String {
    pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", key]).refused(code)
}

#[test]
fn r10_a_volume_under_a_key_in_a_token_keeps_its_data_and_its_key_out_of_sight() {
    let pool = Pool::new();
    let _token = SoftHsm::start(&pool);
    let volume = create(&pool);
    assert_eq!(pool.describe(&volume)["KmsKeyId"].as_str(), Some(KEY));
    assert_key_only_in_locked_memory(&pool, &volume);
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(700, 10_000).expect("a read") == noise(5, 10_000));
    attachment.terminate();
}

#[test]
fn r11_a_damaged_wrapped_key_and_that_of_another_volume_are_refused() {
    let pool = Pool::new();
    let _token = SoftHsm::start(&pool);
    let (one, other) = (create(&pool), create(&pool));
    let wrapped = |volume: &str| pool.describe(volume)["WrappedKey"].as_str().expect("base64").to_owned();
    let error = unwrap(&pool, &one, KEY, &wrapped(&other)).expect_err("another context");
    assert_eq!(error.kind, sealblk_kms::KmsErrorKind::InvalidCiphertext, "{error}");
    for at in [0, 7, 8, 20, 99] {
        let mut bytes = STANDARD.decode(wrapped(&one)).expect("base64");
        bytes[at] ^= 1;
        let error = unwrap(&pool, &one, KEY, &STANDARD.encode(bytes)).expect_err("damaged");
        assert_eq!(error.kind, sealblk_kms::KmsErrorKind::InvalidCiphertext, "byte {at}: {error}");
    }
    unwrap(&pool, &one, KEY, &wrapped(&one)).expect("the whole one is good");
}

#[test]
fn what_the_token_refuses_is_told_by_its_reason() {
    let pool = Pool::new();
    let token = SoftHsm::start(&pool);
    token.key(&["--key-type", "AES:16", "--label", "small", "--id", "02", "--private"]);
    token.key(&["--key-type", "AES:32", "--label", "open", "--id", "03"]);
    token.key(&["--key-type", "AES:32", "--label", "twin", "--id", "04", "--private"]);
    token.key(&["--key-type", "AES:32", "--label", "twin", "--id", "05", "--private"]);
    assert!(refused(&pool, "pkcs11:token=t;object=small", exit::DENIED).contains("256 bits"));
    assert!(refused(&pool, "pkcs11:token=t;object=open", exit::DENIED).contains("not private"));
    assert!(refused(&pool, "pkcs11:token=t;object=twin", exit::USAGE).contains("add id="));
    pool.create(&["--encrypted", "--size", "1MiB", "--kms-key-id", "pkcs11:token=t;object=twin;id=%05"]);
    assert!(refused(&pool, "pkcs11:token=t;object=nope", exit::NOT_FOUND).contains("no such secret key"));
    assert!(refused(&pool, "pkcs11:token=u;object=ebs", exit::NOT_FOUND).contains("no such token"));

    let refusal = refused(&pool, "pkcs11:token=t;object=ebs?pin-value=1234", exit::USAGE);
    assert!(refusal.contains("pin-value") && !refusal.contains("1234"), "{refusal}");
    token.configure(&pool, "4321");
    let refusal = refused(&pool, KEY, exit::DENIED);
    assert!(refusal.contains("the PIN in") && !refusal.contains("4321"), "{refusal}");
}

#[test]
fn a_module_that_is_not_listed_or_not_safe_is_not_loaded() {
    let pool = Pool::new();
    let _token = SoftHsm::start(&pool);
    let stray = pool.root().join("stray.so");
    std::fs::copy(SOFTHSM, &stray).expect("copied");
    let stray = stray.to_str().expect("text");
    let key = format!("{KEY}?module-path={stray}");
    assert!(refused(&pool, &key, exit::FAILED).contains("kms configure pkcs11"));
    pool.run(&["kms", "configure", "pkcs11", "--module", stray]).ok();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(Path::new(stray), mode).expect("its mode");
    assert!(refused(&pool, &key, exit::FAILED).contains("others than its owner may write"));
}

/// A module that is no module of anybody: what it does when it is loaded.
fn module(pool: &Pool, name: &str, action: &str) -> String {
    let (source, library) = (pool.root().join(format!("{name}.c")), pool.root().join(format!("{name}.so")));
    let code = format!(
        "#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) static void load(void) {{ {action} }}\n"
    );
    std::fs::write(&source, code).expect("written");
    let mut compiler = support::foreign("cc");
    support::run(compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source)).ok();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&library, mode).expect("its mode");
    let library = library.to_str().expect("text").to_owned();
    pool.run(&["kms", "configure", "pkcs11", "--module", &library]).ok();
    format!("{KEY}?module-path={library}")
}

#[test]
fn a_module_that_crashes_or_hangs_takes_only_the_helper_with_it() {
    let pool = Pool::new();
    let patience = |seconds| {
        pool.run(&["kms", "configure", "patience", "--timeout", seconds, "--deadline", "0"]).ok();
    };
    patience("60");
    let crashing = module(&pool, "crashing", "abort();");
    let refusal = refused(&pool, &crashing, exit::FAILED);
    assert!(refusal.contains("killed by signal 6"), "{refusal}");
    let hanging = module(&pool, "hanging", "sleep(600);");
    patience("1");
    let refusal = refused(&pool, &hanging, exit::UNREACHABLE);
    assert!(refusal.contains("did not finish within 1000 ms"), "{refusal}");
    patience("60");
    let empty = module(&pool, "empty", "");
    assert!(refused(&pool, &empty, exit::FAILED).contains("does not load"));
}
