//! Snapshots between accounts, through the commands and with data (requirements 50, 51, 65).

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Pool, exit, noise};

const HOME: &str = "000000000000";
const OTHER: &str = "222222222222";
const THIRD: &str = "333333333333";
const BYTES: usize = 3 << 20;

fn other<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--account", OTHER], args].concat()
}

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

#[track_caller]
fn refused(pool: &Pool, args: &[&str], code: i32, name: &str) -> String {
    let error = pool.run(&[&["--output", "json"], args].concat()).refused(code);
    let document: Value = serde_json::from_str(error.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{error}: {e}"));
    assert_eq!(document["Error"]["Code"], name, "{args:?}: {error}");
    text(&document["Error"], "Message")
}

fn key(pool: &Pool) -> String {
    text(&pool.json(&["key", "create"]), "Arn")
}

/// What the owner of a key does for who a snapshot is shared with; or takes back.
fn let_other_use(pool: &Pool, key: &str, may: bool) {
    let root = |account: &str| json!({ "AWS": format!("arn:aws:iam::{account}:root") });
    let mut statements =
        vec![json!({ "Effect": "Allow", "Principal": root(HOME), "Action": "kms:*", "Resource": "*" })];
    if may {
        statements.push(json!({ "Effect": "Allow", "Principal": root(OTHER), "Resource": "*", "Action":
            ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKeyWithoutPlaintext"] }));
    }
    let path = pool.root().join("policy.json");
    let policy = json!({ "Version": "2012-10-17", "Statement": statements });
    fs::write(&path, policy.to_string()).expect("the policy is written");
    pool.run(&["key", "policy", "put", key, path.to_str().expect("UTF-8")]).ok();
}

/// A snapshot of a volume that holds noise.
fn snapshot(pool: &Pool, args: &[&str]) -> String {
    let volume = pool.create(&[&["--size", "4MiB"], args].concat());
    let attachment = pool.attach(&volume, &[]);
    attachment.client().write(0, &noise(7, BYTES)).expect("a write");
    attachment.terminate();
    text(&pool.json(&["snapshot", "create", &volume]), "SnapshotId")
}

/// Whether a volume of the other account holds that noise.
fn other_reads(pool: &Pool, volume: &str) -> bool {
    let attachment = pool.attach(volume, &["--account", OTHER]);
    let read = attachment.client().read(0, BYTES).expect("a read");
    attachment.terminate();
    read == noise(7, BYTES)
}

fn permissions(pool: &Pool, snapshot: &str) -> Value {
    pool.json(&["snapshot", "describe", snapshot])["CreateVolumePermissions"].clone()
}

fn shared_with_other(pool: &Pool) -> Vec<String> {
    let list = pool.json(&other(&["snapshot", "list", "--shared-with-me"]));
    list["Snapshots"].as_array().expect("a list").iter().map(|one| text(one, "SnapshotId")).collect()
}

#[test]
fn r51_a_snapshot_is_seen_by_its_owner_and_whom_it_is_shared_with() {
    let pool = Pool::new();
    let snap = snapshot(&pool, &[]);
    refused(&pool, &other(&["snapshot", "describe", &snap]), exit::NOT_FOUND, "InvalidSnapshot.NotFound");
    let restore = ["volume", "create", "--snapshot-id", &snap];
    refused(&pool, &other(&restore), exit::NOT_FOUND, "InvalidSnapshot.NotFound");
    refused(&pool, &other(&["snapshot", "copy", &snap]), exit::NOT_FOUND, "InvalidSnapshot.NotFound");
    refused(&pool, &other(&["snapshot", "delete", &snap]), exit::NOT_FOUND, "InvalidSnapshot.NotFound");

    let shared =
        pool.json(&["snapshot", "share", &snap, "--account-id", THIRD, "--account-id", OTHER, OTHER]);
    assert_eq!(shared["CreateVolumePermissions"], json!([{ "UserId": OTHER }, { "UserId": THIRD }]));
    assert_eq!(shared_with_other(&pool), [snap.as_str()]);
    assert_eq!(pool.json(&other(&["snapshot", "list"])), json!({ "Snapshots": [] }));
    assert_eq!(pool.json(&["snapshot", "list", "--shared-with-me"]), json!({ "Snapshots": [] }));
    let seen = pool.json(&other(&["snapshot", "describe", &snap]));
    assert_eq!(text(&seen, "OwnerId"), HOME);
    assert!(seen.get("CreateVolumePermissions").is_none(), "told to its owner only: {seen}");

    // Who may use it may use it, and no more.
    for verb in ["delete", "share", "unshare"] {
        let mut args = vec!["snapshot", verb, &snap];
        if verb != "delete" {
            args.extend(["--account-id", OTHER]);
        }
        let message = refused(&pool, &other(&args), exit::DENIED, "AuthFailure");
        assert!(message.contains(HOME), "{message}");
    }
    let volume = text(&pool.json(&other(&restore)), "VolumeId");
    let copy = pool.json(&other(&["snapshot", "copy", &snap]));
    assert_eq!(text(&copy, "OwnerId"), OTHER);

    // Taken back: nothing new, and what was made of it lives.
    pool.run(&["snapshot", "unshare", &snap, "--account-id", OTHER]).ok();
    assert_eq!(permissions(&pool, &snap), json!([{ "UserId": THIRD }]));
    refused(&pool, &other(&restore), exit::NOT_FOUND, "InvalidSnapshot.NotFound");
    assert!(other_reads(&pool, &volume));
    let of_copy = ["volume", "create", "--snapshot-id", &text(&copy, "SnapshotId")];
    let restored = text(&pool.json(&other(&of_copy)), "VolumeId");
    assert!(other_reads(&pool, &restored));
}

#[test]
fn r50_an_unencrypted_snapshot_can_be_public_and_an_encrypted_one_never() {
    let pool = Pool::new();
    let (plain, own_key) = (snapshot(&pool, &[]), key(&pool));
    let shared = pool.json(&["snapshot", "share", &plain, "--public"]);
    assert_eq!(shared["CreateVolumePermissions"], json!([{ "Group": "all" }]));
    assert_eq!(shared_with_other(&pool), [plain.as_str()]);
    pool.run(&["snapshot", "unshare", &plain, "--public"]).ok();
    assert!(shared_with_other(&pool).is_empty());

    let secret = snapshot(&pool, &["--encrypted", "--kms-key-id", &own_key]);
    pool.run(&["snapshot", "share", &secret, "--account-id", OTHER]).ok();
    let message =
        refused(&pool, &["snapshot", "share", &secret, "--public"], exit::DENIED, "OperationNotPermitted");
    assert!(message.contains(&secret), "{message}");
    assert_eq!(permissions(&pool, &secret), json!([{ "UserId": OTHER }]), "the list is unchanged");
}

#[test]
fn r50_a_snapshot_under_the_managed_key_is_not_shared_and_the_error_says_what_helps() {
    let pool = Pool::new();
    let snap = snapshot(&pool, &["--encrypted"]);
    let share = ["snapshot", "share", &snap, "--account-id", OTHER];
    let message = refused(&pool, &share, exit::DENIED, "OperationNotPermitted");
    let helps = format!("sealblk snapshot copy {snap} --encrypted --kms-key-id");
    assert!(message.contains(&helps), "{message}");
    assert!(permissions(&pool, &snap).is_null(), "the list is unchanged");
    // It does help.
    let own_key = key(&pool);
    let copied = pool.json(&["snapshot", "copy", &snap, "--encrypted", "--kms-key-id", &own_key]);
    pool.run(&["snapshot", "share", &text(&copied, "SnapshotId"), "--account-id", OTHER]).ok();
}

#[test]
fn r51_r65_an_encrypted_snapshot_needs_the_key_too_and_a_copy_outlives_both() {
    let pool = Pool::new();
    let own_key = key(&pool);
    let snap = snapshot(&pool, &["--encrypted", "--kms-key-id", &own_key]);
    pool.run(&["snapshot", "share", &snap, "--account-id", OTHER]).ok();
    let restore = ["volume", "create", "--snapshot-id", &snap];
    let copy = ["snapshot", "copy", &snap];
    for command in [&restore[..], &copy[..]] {
        let finished = pool.run(&[&["--output", "json"], &other(command)[..]].concat());
        assert_eq!(finished.status.code(), Some(exit::DENIED), "{finished}");
        assert!(finished.stderr.contains(&own_key), "it names the key: {finished}");
    }
    assert_eq!(pool.json(&other(&["volume", "list"])), json!({ "Volumes": [] }), "nothing was made");

    let_other_use(&pool, &own_key, true);
    let volume = pool.json(&other(&restore));
    assert!(text(&volume, "KmsKeyId").contains(OTHER), "under the recipient's own default key: {volume}");
    assert!(other_reads(&pool, &text(&volume, "VolumeId")));
    let copied = pool.json(&other(&copy));
    assert!(text(&copied, "KmsKeyId").contains(OTHER), "{copied}");
    assert_ne!(
        copied["DataEncryptionKeyId"],
        pool.json(&["snapshot", "describe", &snap])["DataEncryptionKeyId"]
    );
    pool.run(&other(&["volume", "restore", &text(&volume, "VolumeId")])).ok();

    // The owner takes back the share and the key, and loses the key: what is the recipient's stays whole.
    pool.run(&["snapshot", "unshare", &snap, "--account-id", OTHER]).ok();
    let_other_use(&pool, &own_key, false);
    pool.run(&["key", "disable", &own_key, "--force"]).ok();
    refused(&pool, &other(&restore), exit::NOT_FOUND, "InvalidSnapshot.NotFound");
    assert!(other_reads(&pool, &text(&volume, "VolumeId")));
    let of_copy = ["volume", "create", "--snapshot-id", &text(&copied, "SnapshotId")];
    let restored = text(&pool.json(&other(&of_copy)), "VolumeId");
    assert!(other_reads(&pool, &restored));
}

#[test]
fn r51_an_encrypted_snapshot_without_any_block_needs_the_key_too() {
    let pool = Pool::new();
    let own_key = key(&pool);
    let volume = pool.create(&["--size", "4MiB", "--encrypted", "--kms-key-id", &own_key]);
    let snap = text(&pool.json(&["snapshot", "create", &volume]), "SnapshotId");
    pool.run(&["snapshot", "share", &snap, "--account-id", OTHER]).ok();
    let restore = ["volume", "create", "--snapshot-id", &snap];
    for command in [&restore[..], &["snapshot", "copy", &snap]] {
        let finished = pool.run(&[&["--output", "json"], &other(command)[..]].concat());
        assert_eq!(finished.status.code(), Some(exit::DENIED), "{finished}");
        assert!(finished.stderr.contains(&own_key), "it names the key: {finished}");
    }
    assert_eq!(pool.json(&other(&["volume", "list"])), json!({ "Volumes": [] }), "nothing was made");
    let_other_use(&pool, &own_key, true);
    let volume = text(&pool.json(&other(&restore)), "VolumeId");
    let attachment = pool.attach(&volume, &["--account", OTHER]);
    assert_eq!(attachment.client().read(0, BYTES).expect("a read"), vec![0; BYTES]);
    attachment.terminate();
    // The owner's own, under another key: the same.
    pool.run(&["key", "disable", &own_key, "--force"]).ok();
    pool.run(&[&restore[..], &["--encrypted", "--kms-key-id", "alias/aws/ebs"]].concat())
        .refused(exit::DENIED);
}

#[test]
fn what_cannot_be_shared_with_is_refused() {
    let pool = Pool::new();
    let snap = snapshot(&pool, &[]);
    refused(
        &pool,
        &["snapshot", "share", &snap, "--account-id", "1234"],
        exit::USAGE,
        "InvalidUserID.Malformed",
    );
    let accounts: Vec<String> = (0..501).map(|n| format!("{n:012}")).collect();
    let mut args = vec!["snapshot", "share", &snap, "--account-id"];
    args.extend(accounts.iter().map(String::as_str));
    refused(&pool, &args, exit::USAGE, "InvalidParameterValue");
    refused(
        &pool,
        &["snapshot", "share", "snap-00000000000000000", "--public"],
        exit::NOT_FOUND,
        "InvalidSnapshot.NotFound",
    );
    // Its owner needs no share.
    pool.run(&["snapshot", "share", &snap, "--account-id", HOME]).ok();
    assert!(permissions(&pool, &snap).is_null());
}
