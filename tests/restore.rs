//! Volumes made from snapshots: what they are encrypted under, what is in them, and what is refused. How they are filled:
//! restore_running.rs; killed: restore_crash.rs.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use support::restoring::{
    BLOCK, code, complete, content, filled, from_snapshot, image, new_key, refused, write_data,
};
use support::{MIB, Pool, Snapshots, data_key, exit, found, noise};

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
