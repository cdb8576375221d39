//! What depends on a key beside volumes: snapshots, which are there longer than the volumes they are of.

mod support;

use serde_json::{Value, json};
use support::{Pool, Snapshots, exit};

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

fn key(pool: &Pool) -> String {
    text(&pool.json(&["key", "create"]), "Arn")
}

/// A completed snapshot of a volume that is deleted then.
fn snapshot(pool: &Pool, args: &[&str]) -> String {
    let volume = pool.create(&[&["--size", "1MiB", "--encrypted"], args].concat());
    let id = text(&pool.json(&["snapshot", "create", &volume]), "SnapshotId");
    pool.run(&["volume", "delete", &volume]).ok();
    id
}

/// Both commands that would make a key unusable are refused; what they say.
#[track_caller]
fn refused(pool: &Pool, key: &str) -> String {
    let refused = ["disable", "schedule-deletion"].map(|verb| {
        let error = pool.run(&["--output", "json", "key", verb, key]).refused(exit::WRONG_STATE);
        assert!(error.contains("\"KeyInUse\""), "{error}");
        error
    });
    assert_eq!(text(&pool.json(&["key", "describe", key]), "KeyState"), "Enabled");
    refused.concat()
}

#[test]
fn a_key_that_only_snapshots_need_is_in_use_until_the_last_of_them_is_gone() {
    let pool = Pool::new();
    let (first, recovery, unused) = (key(&pool), key(&pool), key(&pool));
    let both = snapshot(&pool, &["--kms-key-id", &first, "--recovery-kms-key-id", &recovery]);
    let alone = snapshot(&pool, &["--kms-key-id", &first]);
    snapshot(&pool, &[]);
    let users = pool.json(&["key", "users", &first]);
    assert_eq!((&users["Volumes"], &users["UnreadableSnapshots"]), (&json!([]), &Value::Null));
    let mut expected = [(&both, true), (&alone, false)];
    expected.sort();
    for (user, (id, others)) in users["Snapshots"].as_array().expect("a list").iter().zip(expected) {
        assert_eq!((&user["SnapshotId"], &user["State"]), (&json!(id), &json!("completed")), "{users}");
        assert_eq!((&user["Role"], &user["HasOtherKeys"]), (&json!("primary"), &json!(others)), "{users}");
        assert!(user["KeyMaterialId"].is_string(), "{users}");
    }
    assert_eq!(pool.json(&["key", "users", &recovery])["Snapshots"][0]["Role"], "recovery");
    assert_eq!(pool.json(&["key", "users", &unused])["Snapshots"], json!([]));
    let shown = pool.run(&["key", "users", &first]).ok();
    assert!(shown.contains(&both) && shown.contains(&alone), "{shown}");

    let error = refused(&pool, &first);
    assert!(error.contains(&both) && error.contains(&alone), "{error}");
    for id in [&both, &alone] {
        pool.run(&["snapshot", "delete", id]).ok();
    }
    pool.run(&["key", "schedule-deletion", &first]).ok();
    pool.run(&["key", "disable", &unused]).ok();
}

#[test]
fn a_pending_snapshot_and_another_accounts_count_too() {
    let pool = Pool::new();
    let own = key(&pool);
    let volume = pool.create(&["--size", "1MiB", "--encrypted", "--kms-key-id", &own]);
    let pending = Snapshots::of(&pool).begin(&volume);
    pool.run(&["volume", "delete", &volume]).ok();
    assert!(refused(&pool, &own).contains(&pending));
    let user = pool.json(&["--account", "222222222222", "key", "users", &own])["Snapshots"][0].clone();
    assert_eq!((&user["SnapshotId"], &user["State"]), (&json!(pending), &json!("pending")));
}

#[test]
fn snapshots_that_cannot_be_listed_may_depend_on_any_key() {
    let pool = Pool::new();
    let own = key(&pool);
    let elsewhere = pool.root().join("not-mounted");
    let path = elsewhere.to_str().expect("temporary paths are text");
    pool.run(&["settings", "repository", "set", path]).ok();
    let users = pool.json(&["key", "users", &own]);
    assert!(text(&users, "UnreadableSnapshots").contains(path), "{users}");
    assert!(refused(&pool, &own).contains(path));
    assert!(!elsewhere.exists(), "looking makes nothing");
    pool.run(&["key", "disable", &own, "--force"]).ok();
    // One that is there, and of which one record is damaged.
    pool.run(&["settings", "repository", "reset"]).ok();
    let other = key(&pool);
    let id = snapshot(&pool, &[]);
    pool.run(&["key", "disable", &other]).ok();
    pool.run(&["key", "enable", &other]).ok();
    let record = pool.path().join(format!("snapshots/snapshots/{id}.json"));
    std::fs::write(&record, "{").expect("written");
    assert!(refused(&pool, &other).contains(&id));
}
