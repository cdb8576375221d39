//! Volumes under keys of AWS KMS, as emulators have it: moto for grants and contexts, roto for key states.

mod support;

#[path = "../crates/kms-aws/tests/emulator/mod.rs"]
mod emulator;

use std::fs;

use emulator::{Emulator, REGION};
use support::services::assert_key_only_in_locked_memory;
use support::{Pool, exit, noise};

/// A pool whose commands find credentials where AWS's standard chain looks.
fn pool(aws: &Emulator) -> Pool {
    let pool = Pool::new();
    let directory = pool.root().join(".aws");
    fs::create_dir(&directory).expect("a directory");
    let credentials = "[default]\naws_access_key_id = test\naws_secret_access_key = test\n";
    fs::write(directory.join("credentials"), credentials).expect("written");
    pool.run(&["kms", "configure", "aws", "--endpoint", &aws.url, "--region", REGION]).ok();
    pool
}

fn create(pool: &Pool, key: &str) -> String {
    pool.create(&["--encrypted", "--size", "4MiB", "--kms-key-id", &format!("aws-kms:{key}")])
}

#[test]
fn r10_r18_a_volume_under_an_aws_key_keeps_its_data_and_its_key_out_of_sight() {
    let aws = Emulator::moto();
    let pool = pool(&aws);
    let key = aws.key();
    let volume = create(&pool, &key);
    let named = pool.describe(&volume)["KmsKeyId"].as_str().expect("a key").to_owned();
    assert!(named.contains(&key), "{named}");
    assert_key_only_in_locked_memory(&pool, &volume);
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(700, 10_000).expect("a read") == noise(5, 10_000));
    attachment.terminate();
}

#[test]
fn r17_the_grant_lives_as_long_as_the_attachment() {
    let aws = Emulator::moto();
    let pool = pool(&aws);
    let key = aws.key();
    let volume = create(&pool, &key);
    let grants =
        || aws.boto3(&key, "print([g['Constraints'] for g in kms.list_grants(KeyId=key)['Grants']])");
    assert_eq!(grants(), "[]");
    let attachment = pool.attach(&volume, &[]);
    assert_eq!(grants(), format!("[{{'EncryptionContextSubset': {{'aws:ebs:id': '{volume}'}}}}]"));
    attachment.terminate();
    assert_eq!(grants(), "[]");
}

#[test]
fn r19_a_disabled_key_leaves_what_is_attached_and_refuses_what_is_not() {
    let aws = Emulator::roto();
    let pool = pool(&aws);
    let key = aws.key();
    let volume = create(&pool, &key);
    let attachment = pool.attach(&volume, &[]);
    aws.boto3(&key, "kms.disable_key(KeyId=key)");
    let mut client = attachment.client();
    client.write(0, &noise(1, 4096)).expect("a write");
    client.flush().expect("a flush");
    drop(client);
    attachment.terminate();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains(&key) && refusal.to_lowercase().contains("disabled"), "{refusal}");
    let refusal = pool.run(&[
        "volume",
        "create",
        "--size",
        "1MiB",
        "--encrypted",
        "--kms-key-id",
        &format!("aws-kms:{key}"),
    ]);
    assert!(refusal.refused(exit::DENIED).contains("disabled"));
    aws.boto3(&key, "kms.enable_key(KeyId=key)");
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(0, 4096).expect("a read") == noise(1, 4096));
    attachment.terminate();
}

#[test]
fn a_service_that_is_gone_is_exit_code_6_and_in_nobodys_way_but_attachs() {
    let aws = Emulator::roto();
    let pool = pool(&aws);
    let volume = create(&pool, &aws.key());
    let attachment = pool.attach(&volume, &[]);
    drop(aws);
    pool.run(&["kms", "configure", "patience", "--timeout", "3", "--deadline", "0"]).ok();
    pool.run(&["volume", "list"]).ok();
    pool.run(&["volume", "stats", &volume]).ok();
    attachment.terminate();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::UNREACHABLE);
    assert!(refusal.contains("Decrypt") || refusal.contains("CreateGrant"), "{refusal}");
}
