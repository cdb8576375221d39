//! Accounts of one pool (requirements 28, 38, 51, 68): what each sees, whose defaults and keys count, and what one may do
//! with the keys of another.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Pool, exit};

/// The account that the pools of these tests belong to.
const HOME: &str = "000000000000";
const OTHER: &str = "222222222222";

/// A command on behalf of the other account.
fn other<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--account", OTHER], args].concat()
}

#[track_caller]
fn refused(pool: &Pool, args: &[&str], code: i32, name: &str) -> String {
    let error = pool.run(&[&["--output", "json"], args].concat()).refused(code);
    let document: Value = serde_json::from_str(error.trim()).unwrap_or_else(|e| panic!("{error}: {e}"));
    assert_eq!(document["Error"]["Code"], name, "{args:?}: {error}");
    document["Error"]["Message"].as_str().expect("a message").to_owned()
}

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

/// Lets the other account's root use a key for volumes and snapshots.
fn let_other_use(pool: &Pool, key: &str) {
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{HOME}:root") }, "Action": "kms:*", "Resource": "*" },
        { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{OTHER}:root") }, "Resource": "*", "Action":
            ["kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:Decrypt", "kms:ReEncrypt*", "kms:CreateGrant"] },
    ] });
    let path = pool.root().join("policy.json");
    fs::write(&path, policy.to_string()).expect("the policy is written");
    pool.run(&["key", "policy", "put", key, path.to_str().expect("UTF-8")]).ok();
}

#[test]
fn a_volume_of_another_account_is_as_if_it_did_not_exist() {
    let pool = Pool::new();
    let own = pool.create(&["--size", "4MiB"]);
    let theirs = text(&pool.json(&other(&["volume", "create", "--size", "4MiB"])), "VolumeId");
    let listed = |args: &[&str]| -> Vec<String> {
        let list = pool.json(args);
        let volumes = list["Volumes"].as_array().expect("a list");
        volumes.iter().map(|volume| text(volume, "VolumeId")).collect()
    };
    assert_eq!(listed(&["volume", "list"]), [own.as_str()]);
    assert_eq!(listed(&other(&["volume", "list"])), [theirs.as_str()]);
    assert_eq!(text(&pool.describe(&own), "OwnerId"), HOME);
    assert_eq!(text(&pool.json(&other(&["volume", "describe", &theirs])), "OwnerId"), OTHER);
    for verb in ["describe", "delete", "detach", "stats", "attach", "materialize", "rewrap"] {
        let (hidden, also) = (["volume", verb, &own], ["volume", verb, &theirs]);
        refused(&pool, &other(&hidden), exit::NOT_FOUND, "InvalidVolume.NotFound");
        refused(&pool, &also, exit::NOT_FOUND, "InvalidVolume.NotFound");
    }
    pool.run(&other(&["volume", "delete", &theirs])).ok();
    pool.run(&["volume", "delete", &own]).ok();
}

#[test]
fn r28_r38_each_account_has_defaults_and_a_default_key_of_its_own() {
    let pool = Pool::new();
    pool.run(&other(&["settings", "encryption-by-default", "enable"])).ok();
    let plain = pool.json(&["volume", "create", "--size", "4MiB"]);
    let encrypted = pool.json(&other(&["volume", "create", "--size", "4MiB"]));
    assert_eq!((&plain["Encrypted"], &encrypted["Encrypted"]), (&json!(false), &json!(true)));
    let key = text(&encrypted, "KmsKeyId");
    assert!(key.starts_with(&format!("arn:aws:kms:local:{OTHER}:key/")), "{key}");
    let own = pool.json(&["key", "describe", "alias/aws/ebs"]);
    assert_ne!(text(&own, "Arn"), key);
    assert_eq!(text(&own, "AWSAccountId"), HOME);
    let described = pool.json(&other(&["key", "describe", "alias/aws/ebs"]));
    assert_eq!((text(&described, "Arn"), text(&described, "AWSAccountId")), (key, OTHER.to_owned()));
    // A choice of one account is no choice of another.
    let chosen = text(&pool.json(&["key", "create"]), "Arn");
    pool.run(&["settings", "default-kms-key", "modify", &chosen]).ok();
    assert_eq!(text(&pool.json(&["settings", "default-kms-key", "get"]), "KmsKeyId"), chosen);
    assert_eq!(
        text(&pool.json(&other(&["settings", "default-kms-key", "get"])), "KmsKeyId"),
        "alias/aws/ebs"
    );
}

#[test]
fn a_key_of_another_account_serves_who_its_policy_lets() {
    let pool = Pool::new();
    let key = text(&pool.json(&["key", "create"]), "Arn");
    let create = ["volume", "create", "--size", "4MiB", "--encrypted", "--kms-key-id", &key];
    let message = refused(&pool, &other(&create), exit::DENIED, "AccessDeniedException");
    assert!(message.contains(&key) && message.contains(&format!("account:{OTHER}")), "{message}");
    let managed = text(&pool.json(&["key", "describe", "alias/aws/ebs"]), "Arn");
    let with_managed = ["volume", "create", "--size", "4MiB", "--encrypted", "--kms-key-id", &managed];
    refused(&pool, &other(&with_managed), exit::DENIED, "AccessDeniedException");
    let unknown = key.replace(HOME, "333333333333");
    let with_unknown = ["volume", "create", "--size", "4MiB", "--encrypted", "--kms-key-id", &unknown];
    refused(&pool, &with_unknown, exit::NOT_FOUND, "NotFoundException");

    let_other_use(&pool, &key);
    let volume = pool.json(&other(&create));
    assert_eq!((text(&volume, "KmsKeyId"), text(&volume, "OwnerId")), (key.clone(), OTHER.to_owned()));
    let id = text(&volume, "VolumeId");
    let attachment = pool.attach(&id, &["--account", OTHER]);
    attachment.client().write(0, b"written under a key of another account").expect("a write");
    attachment.terminate();
    // The key's account sees what depends on its key; the log of the key's store names who called.
    let users = pool.json(&["key", "users", &key]);
    assert_eq!(users["Volumes"][0]["VolumeId"], id.as_str());
    let log = pool.json(&["audit", "list", "--event", "GenerateDataKeyWithoutPlaintext", "--volume", &id]);
    let event = &log["Events"][0];
    assert_eq!(event["userIdentity"]["accountId"], OTHER, "{event}");
    assert_eq!(event["recipientAccountId"], HOME, "{event}");
}

#[test]
fn all_accounts_of_a_pool_have_their_snapshots_in_one_place() {
    let pool = Pool::new();
    let place = pool.root().join("snapshots").display().to_string();
    pool.run(&other(&["settings", "repository", "set", &place])).ok();
    for args in [vec!["settings", "repository", "get"], other(&["settings", "repository", "get"])] {
        assert_eq!(text(&pool.json(&args), "Location"), place);
    }
    pool.run(&["settings", "repository", "reset"]).ok();
    let own = pool.path().join("snapshots").display().to_string();
    assert_eq!(text(&pool.json(&other(&["settings", "repository", "get"])), "Location"), own);
}

#[test]
fn init_chooses_whose_the_pool_is_and_which_region_it_plays() {
    let pool = Pool::new();
    let made = pool.json(&["--account", "111122223333", "init", "--region", "eu-central-1"]);
    assert_eq!(
        (text(&made, "Region"), text(&made, "Account")),
        ("eu-central-1".into(), "111122223333".into())
    );
    let volume = pool.json(&["volume", "create", "--size", "4MiB", "--encrypted"]);
    assert!(text(&volume, "KmsKeyId").starts_with("arn:aws:kms:eu-central-1:111122223333:key/"));
    // Naming the pool's own account changes nothing.
    pool.run(&["--account", "111122223333", "volume", "describe", &text(&volume, "VolumeId")]).ok();
    assert!(!pool.path().join("accounts").exists());
}

#[test]
fn what_is_no_account_and_no_region_is_refused() {
    let pool = Pool::new();
    for account in ["", "1111", "11112222333x", "../../etc/pas"] {
        refused(&pool, &["--account", account, "volume", "list"], exit::USAGE, "InvalidUserID.Malformed");
    }
    for region in ["", "eu central", "EU", "a/b", &"x".repeat(64)] {
        refused(&pool, &["init", "--region", region], exit::USAGE, "InvalidParameterValue");
    }
    assert!(!pool.path().join("pool.json").exists(), "nothing was made");
}

#[test]
fn a_damaged_volume_is_the_pools_account_to_see_and_to_delete() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "4MiB"]);
    fs::write(pool.volume_dir(&volume).join("volume.json"), "{}").expect("damage");
    assert_eq!(pool.json(&other(&["volume", "list"])), json!({ "Volumes": [] }));
    refused(&pool, &other(&["volume", "delete", &volume]), exit::NOT_FOUND, "InvalidVolume.NotFound");
    assert_eq!(pool.json(&["volume", "list"])["Volumes"][0]["State"], "error");
    pool.run(&["volume", "delete", &volume]).ok();
}
