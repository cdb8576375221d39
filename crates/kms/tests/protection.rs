//! Changing what protects the root key: keys and volumes stay as they are, and a process that is killed in the middle
//! leaves the old protection or the new one.

mod store;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sealblk_kms::local::{LocalKms, NewProtection, RootKeyProtection, Scope};
use sealblk_kms::{Kms, KmsErrorKind, Passphrase, PassphraseSource, Unlock};
use store::{TestStore, VOLUME, context, decrypt, owner, volume_key};

/// Names the store's directory for the process that is killed.
const CHURN_DIR: &str = "SEALBLK_TEST_PROTECTION_DIR";
const PASSPHRASE: &str = "the passphrase of this test";

fn passphrase(text: &str) -> Passphrase {
    let made = Passphrase::init(|bytes| {
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(text.len())
    });
    made.expect("a passphrase")
}

/// Opens the store with everything that could be needed; the credential is beside it.
fn open(dir: &Path) -> LocalKms {
    let kms = LocalKms::open(dir, Scope::default(), owner()).expect("the key store opens").via_service();
    let source = PassphraseSource::holding(passphrase(PASSPHRASE));
    let credentials = dir.parent().expect("a directory").to_owned();
    kms.unlocked_by(Unlock { passphrase: Some(Arc::new(source)), credentials: Some(credentials) })
}

fn with_credential() -> TestStore {
    let store = TestStore::new();
    let beside = store.dir().parent().expect("a directory").join("credential");
    fs::write(beside, [0x5a; 32]).expect("a credential");
    store
}

#[test]
fn a_volume_s_key_unwraps_under_every_protection() {
    let store = with_credential();
    let (arn, wrapped) = volume_key(&store.open());
    let key = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect("decrypted");
    let files = |name: &str| fs::read(store.dir().join(name)).expect("a file");
    let record = format!("keys/{}.json", arn.rsplit('/').next().expect("an id"));
    let before = files(&record);
    let passphrase = passphrase(PASSPHRASE);
    for how in [
        NewProtection::Passphrase(&passphrase),
        NewProtection::Credential("credential"),
        NewProtection::KeyFile,
    ] {
        open(&store.dir()).protect_root_key(how).expect("protected");
        assert_eq!(decrypt(&open(&store.dir()), &arn, &wrapped, VOLUME).expect("decrypted"), key);
        assert_eq!(files(&record), before, "{how:?}: no key is touched");
    }
    assert_eq!(store.audit_of("UpdateRootKeyProtection").len(), 3);
    let report = open(&store.dir()).verify_audit(1, true).expect("readable");
    assert!(report.is_clean() && report.seal_checked, "{report:?}");
}

#[test]
fn a_wrong_passphrase_is_denied_and_recorded() {
    let store = TestStore::new();
    store.open().create_root_key(NewProtection::Passphrase(&passphrase(PASSPHRASE))).expect("created");
    let (arn, wrapped) = volume_key(&open(&store.dir()));
    let wrong = PassphraseSource::holding(passphrase("another"));
    let kms = store.open().unlocked_by(Unlock { passphrase: Some(Arc::new(wrong)), credentials: None });
    let error = decrypt(&kms, &arn, &wrapped, VOLUME).expect_err("wrong");
    assert_eq!(error.kind, KmsErrorKind::Denied);
    assert!(error.message.contains("the passphrase is wrong"), "{error}");
    assert!(!format!("{error:?}").contains("another"), "{error:?}");
    let record = store.audit_of("Decrypt").pop().expect("a failed call is recorded");
    assert_eq!(record["errorCode"], "AccessDeniedException");
    let error = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect_err("none");
    assert!(error.message.contains("none was given"), "{error}");
}

#[test]
fn a_root_key_that_keys_depend_on_is_not_made_anew() {
    let store = TestStore::new();
    let kms = store.open();
    kms.create_root_key(NewProtection::KeyFile).expect("created");
    kms.create_root_key(NewProtection::KeyFile).expect("made again while nothing depends on it");
    volume_key(&kms);
    let before = fs::read(store.dir().join("root.key")).expect("read");
    let error = kms.create_root_key(NewProtection::KeyFile).expect_err("refused");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{error}");
    assert_eq!(fs::read(store.dir().join("root.key")).expect("read"), before);
}

#[test]
fn a_change_of_protection_that_is_killed_leaves_the_old_or_the_new() {
    let mut found = Vec::new();
    for round in 0..12_u64 {
        let store = with_credential();
        let (arn, wrapped) = volume_key(&open(&store.dir()));
        let key = decrypt(&open(&store.dir()), &arn, &wrapped, VOLUME).expect("decrypted");
        let mut child = Command::new("/bin/sh")
            .args([
                "-c",
                "exec \"$0\" --exact change_until_killed --ignored --quiet 2>/dev/null 3>&1 >/dev/null",
            ])
            .arg(std::env::current_exe().expect("this test's binary"))
            .env(CHURN_DIR, store.dir())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut output = child.stdout.take().expect("a pipe");
        output.read_exact(&mut vec![0; 1 + usize::try_from(round % 4).expect("few")]).expect("changes");
        // Not readiness: where in the next change the process dies.
        std::thread::sleep(Duration::from_millis(round * 7));
        child.kill().expect("killed");
        child.wait().expect("reaped");

        let kms = open(&store.dir());
        assert_eq!(decrypt(&kms, &arn, &wrapped, VOLUME).expect("it opens"), key, "round {round}");
        for leftover in ["root.key.new", "root.key.old"] {
            assert!(!store.dir().join(leftover).exists(), "round {round}: {leftover}");
        }
        let report = kms.verify_audit(1, true).expect("readable");
        assert!(report.is_clean(), "round {round}: {:?}", report.findings);
        found.push(match kms.root_key_protection().expect("told").expect("there is one") {
            RootKeyProtection::KeyFile => 0,
            RootKeyProtection::Passphrase(_) => 1,
            RootKeyProtection::Credential { .. } => 2,
        });
        kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("it works on");
    }
    assert!(found.iter().any(|kind| *kind != found[0]), "deaths at different moments: {found:?}");
}

/// Not a test: the process that the test above kills.
#[test]
#[ignore = "run by a_change_of_protection_that_is_killed_leaves_the_old_or_the_new"]
fn change_until_killed() {
    let Some(dir) = std::env::var_os(CHURN_DIR) else { return };
    let told = fs::File::options().write(true).open("/proc/self/fd/3").expect("the parent's pipe");
    let passphrase = passphrase(PASSPHRASE);
    loop {
        for how in [
            NewProtection::Credential("credential"),
            NewProtection::KeyFile,
            NewProtection::Credential("credential"),
            NewProtection::Passphrase(&passphrase),
        ] {
            open(Path::new(&dir)).protect_root_key(how).expect("protected");
            if rustix::io::write(&told, b".").is_err() {
                return;
            }
        }
    }
}
