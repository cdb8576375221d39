//! The files of the embedded store: modes, damage, a missing root key, several writers at once, death in between.

mod store;

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use sealblk_kms::local::{LocalKms, Scope};
use sealblk_kms::{KeyState, Kms, KmsError, KmsErrorKind};
use store::{TestStore, VOLUME, attachment_grant, context, decrypt, default_key, owner, volume_key};

/// Names the store's directory for the process that is killed.
const CHURN_DIR: &str = "SEALBLK_TEST_CHURN_DIR";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("exists").permissions().mode() & 0o7777
}

fn misconfigured(outcome: Result<LocalKms, KmsError>, parts: [&str; 2]) {
    let error = outcome.expect_err("refused");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(parts.iter().all(|part| error.message.contains(part)), "{error}");
}

#[test]
fn secrets_are_created_for_the_owner_alone() {
    let store = TestStore::new();
    volume_key(&store.open());
    assert_eq!(mode(&store.dir()), 0o700);
    assert_eq!(mode(&store.dir().join("root.key")), 0o600);
    assert_eq!(mode(&store.dir().join("audit.log")), 0o600);
    assert_eq!(fs::metadata(store.dir().join("root.key")).expect("exists").len(), 32);
}

#[test]
fn a_root_key_that_others_may_read_is_refused() {
    let store = TestStore::new();
    volume_key(&store.open());
    let path = store.dir().join("root.key");
    for mode in [0o640, 0o604, 0o660, 0o602] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("mode changed");
        misconfigured(store.open_as(&owner()), ["root.key", &format!("{mode:o}")]);
    }
    fs::set_permissions(&path, Permissions::from_mode(0o400)).expect("mode changed");
    default_key(&store.open());
}

#[test]
fn a_root_key_of_another_length_is_refused() {
    let store = TestStore::new();
    volume_key(&store.open());
    let path = store.dir().join("root.key");
    for length in [0, 31, 33] {
        fs::File::options().write(true).open(&path).and_then(|f| f.set_len(length)).expect("length changed");
        misconfigured(store.open_as(&owner()), ["root.key", &format!("{length} bytes")]);
    }
}

#[test]
fn a_root_key_that_is_missing_while_keys_exist_is_not_made_anew() {
    let store = TestStore::new();
    volume_key(&store.open());
    let path = store.dir().join("root.key");
    let kms = store.open();
    fs::remove_file(&path).expect("removed");
    misconfigured(store.open_as(&owner()), ["root.key", "missing"]);
    assert_eq!(kms.create_key("").expect_err("no root key").kind, KmsErrorKind::Misconfigured);
    assert!(!path.exists());
}

#[test]
fn another_root_key_opens_nothing() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    fs::write(store.dir().join("root.key"), [7; 32]).expect("replaced");
    let error = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect_err("another root key");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{error}");
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let store = TestStore::new();
    store.open();
    fs::set_permissions(store.dir(), Permissions::from_mode(0o770)).expect("mode changed");
    misconfigured(store.open_as(&owner()), ["kms", "770"]);
}

#[test]
fn a_damaged_key_record_is_an_error_that_names_it() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let path = store.dir().join("keys").join(format!("{}.json", default_key(&store.open()).key_id));
    let text = fs::read_to_string(&path).expect("the record").replace("ENCRYPT_DECRYPT", "SIGN_VERIFY");
    fs::write(&path, text).expect("damaged");
    let error = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect_err("damaged");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains(&path.display().to_string()), "{error}");
}

#[test]
fn the_record_of_one_key_does_not_pass_for_another() {
    let store = TestStore::new();
    let kms = store.open();
    let (first, second) = (kms.create_key("").expect("created"), kms.create_key("").expect("created"));
    let file = |id: &str| store.dir().join("keys").join(format!("{id}.json"));
    fs::copy(file(&second.key_id), file(&first.key_id)).expect("copied over");
    let error = kms.describe_key(&first.arn).expect_err("another key's record");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains(&second.key_id), "{error}");
}

#[test]
fn writers_at_once_lose_nothing_and_make_one_default_key() {
    const THREADS: usize = 8;
    const GRANTS_EACH: usize = 6;
    let store = TestStore::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                let kms = store.open();
                let arn = default_key(&kms).arn;
                for index in 0..GRANTS_EACH {
                    let mut request = attachment_grant(&arn, VOLUME);
                    request.name = Some(format!("{thread}-{index}"));
                    kms.create_grant(&request).expect("granted");
                }
            });
        }
    });
    let kms = store.open();
    assert_eq!(kms.list_keys().expect("listed").len(), 1);
    let grants = kms.list_grants(&default_key(&kms).arn).expect("listed");
    assert_eq!(grants.len(), THREADS * GRANTS_EACH);
    assert_eq!(store.audit_of("CreateGrant").len(), THREADS * GRANTS_EACH);
}

#[test]
fn a_store_whose_writer_is_killed_at_any_moment_works_on() {
    for calls_before_death in 0..12 {
        let store = TestStore::new();
        let mut child = Command::new("/bin/sh")
            .args([
                "-c",
                "exec \"$0\" --exact churn_until_killed --ignored --quiet 2>/dev/null 3>&1 >/dev/null",
            ])
            .arg(std::env::current_exe().expect("this test's binary"))
            .env(CHURN_DIR, store.dir())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut calls = vec![0; calls_before_death];
        child.stdout.take().expect("a pipe").read_exact(&mut calls).expect("one byte for each call");
        child.kill().expect("killed");
        child.wait().expect("reaped");

        let kms = store.open();
        let (arn, wrapped) = volume_key(&kms);
        decrypt(&kms, &arn, &wrapped, VOLUME).expect("decrypted");
        for key in kms.list_keys().expect("every record is whole") {
            if key.key_state == KeyState::PendingDeletion {
                kms.cancel_key_deletion(&key.arn).expect("cancelled");
            }
            if key.key_manager == "CUSTOMER" {
                kms.enable_key(&key.arn).expect("enabled");
            }
            let wrapped =
                kms.generate_data_key_without_plaintext(&key.arn, &context(VOLUME)).expect("usable");
            decrypt(&kms, &key.arn, &wrapped, VOLUME).expect("decrypted");
            kms.list_grants(&key.arn).expect("every list of grants is whole");
        }
        let report = kms.verify_audit(1, true).expect("the log is readable");
        assert!(report.is_clean(), "{:?}", report.findings);
    }
}

/// Not a test: the process that the test above kills.
#[test]
#[ignore = "run by a_store_whose_writer_is_killed_at_any_moment_works_on"]
fn churn_until_killed() {
    let Some(dir) = std::env::var_os(CHURN_DIR) else { return };
    let told = fs::File::options().write(true).open("/proc/self/fd/3").expect("the parent's pipe");
    let tell = || rustix::io::write(&told, b".");
    loop {
        let kms = LocalKms::open(Path::new(&dir), Scope::default(), owner()).expect("opened").via_service();
        let arn = default_key(&kms).arn;
        let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
        let told_twice =
            tell().and_then(|_| churn_a_key(&kms).map(|()| tell()).expect("created and changed"));
        kms.retire_grant(&arn, &grant).expect("retired");
        if told_twice.is_err() {
            return;
        }
    }
}

/// A key's life but for its end, under a new alias.
fn churn_a_key(kms: &LocalKms) -> Result<(), KmsError> {
    let key = kms.create_key("")?;
    let alias = format!("alias/{}", key.key_id);
    kms.create_alias(&alias, &key.arn)?;
    kms.rotate_key_on_demand(&key.arn)?;
    kms.enable_key_rotation(&key.arn, Some(90))?;
    kms.put_key_policy(&key.arn, &kms.get_key_policy(&key.arn)?)?;
    kms.schedule_key_deletion(&key.arn, Some(7))?;
    kms.cancel_key_deletion(&key.arn)?;
    kms.enable_key(&key.arn)?;
    kms.delete_alias(&alias)
}
