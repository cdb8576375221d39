//! The root key's forms: each opens only with what protects it, and a replacement that is cut short anywhere leaves one
//! that opens, and no other once it is cleaned up.

use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::replacement::Step;
use super::*;
use crate::passphrase::PassphraseSource;

struct Rig {
    dir: tempfile::TempDir,
    file: RootKeyFile,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let owner = fs::metadata(dir.path()).expect("exists").uid();
        let file = RootKeyFile::new(dir.path().join("root.key"), owner);
        fs::write(dir.path().join("credential"), [7; 40]).expect("written");
        fs::write(dir.path().join("another"), [8; 40]).expect("written");
        Self { dir, file }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
        let mut names: Vec<_> =
            names.filter(|name| name.starts_with("root") || name.starts_with('.')).collect();
        names.sort();
        names
    }

    fn unlock(&self, passphrase: Option<&str>) -> Unlock {
        let source = passphrase.map(|text| Arc::new(PassphraseSource::holding(self::passphrase(text))));
        Unlock { passphrase: source, credentials: Some(self.dir.path().to_owned()) }
    }

    fn protect(&self, how: NewProtection<'_>, passphrase: Option<&str>) {
        let unlock = self.unlock(passphrase);
        let key = self.file.load(&unlock).expect("it opens");
        self.file.put(&key, how, &unlock).expect("protected");
    }

    fn key(&self, passphrase: Option<&str>) -> Result<[u8; 32], RootKeyError> {
        self.file.load(&self.unlock(passphrase)).map(|key| key.expose(|bytes| *bytes))
    }
}

fn passphrase(text: &str) -> Passphrase {
    let made = Passphrase::init(|bytes| {
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(text.len())
    });
    made.expect("a passphrase")
}

#[test]
fn a_root_key_stays_the_same_through_every_protection() {
    let rig = Rig::new();
    rig.file.create(NewProtection::KeyFile, &Unlock::default()).expect("created");
    let key = rig.key(None).expect("a key file opens");
    let raw = fs::read(&rig.file.path).expect("read");
    let (old, new) = (passphrase("old"), passphrase("new"));
    let steps: [(NewProtection<'_>, Option<&str>, Option<&str>); 5] = [
        (NewProtection::Passphrase(&old), None, Some("old")),
        (NewProtection::Passphrase(&new), Some("old"), Some("new")),
        (NewProtection::Credential("credential"), Some("new"), None),
        (NewProtection::Credential("another"), None, None),
        (NewProtection::KeyFile, None, None),
    ];
    for (how, before, after) in steps {
        rig.protect(how, before);
        assert_eq!(rig.key(after).expect("opens"), key, "{how:?}");
        assert_eq!(rig.names(), ["root.key"], "nothing is left beside it");
        let mode = fs::metadata(&rig.file.path).expect("exists").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        let content = fs::read(&rig.file.path).expect("read");
        let is_plain = matches!(how, NewProtection::KeyFile);
        assert_eq!(content.windows(32).any(|window| window == raw), is_plain, "{how:?}");
    }
}

#[test]
fn only_what_protects_a_root_key_opens_it() {
    let rig = Rig::new();
    rig.file.create(NewProtection::Passphrase(&passphrase("right")), &Unlock::default()).expect("created");
    assert!(matches!(rig.key(None), Err(RootKeyError::NoPassphrase { .. })));
    let wrong = rig.key(Some("wrong")).expect_err("wrong");
    assert!(matches!(wrong, RootKeyError::WrongPassphrase { .. }) && wrong.is_refusal(), "{wrong}");
    let right = rig.key(Some("right")).expect("right");

    rig.protect(NewProtection::Credential("credential"), Some("right"));
    assert_eq!(rig.key(None).expect("opens"), right);
    assert!(matches!(rig.file.load(&Unlock::default()), Err(RootKeyError::NoCredentials { .. })));
    fs::write(rig.dir.path().join("credential"), [9; 40]).expect("written");
    assert!(matches!(rig.key(None), Err(RootKeyError::WrongCredential { .. })));
    fs::write(rig.dir.path().join("credential"), [7; 31]).expect("written");
    assert!(matches!(rig.key(None), Err(RootKeyError::CredentialLength { length: 31, .. })));
    fs::remove_file(rig.dir.path().join("credential")).expect("removed");
    assert!(matches!(rig.key(None), Err(RootKeyError::Credential { .. })));
}

#[test]
fn a_credential_is_a_name_and_not_a_path() {
    let rig = Rig::new();
    for name in ["", ".", "..", "../root.key", "a/b", "a b", "é"] {
        let outcome = rig.file.create(NewProtection::Credential(name), &rig.unlock(None));
        assert!(matches!(outcome, Err(RootKeyError::CredentialName { .. })), "{name}");
    }
    assert!(rig.names().is_empty());
}

#[test]
fn a_record_with_parameters_of_nobody_is_refused_before_they_are_used() {
    let rig = Rig::new();
    let huge = ArgonParameters { memory_kib: u32::MAX, ..ArgonParameters::DEFAULT };
    let weak = ArgonParameters { memory_kib: 8, ..ArgonParameters::DEFAULT };
    let endless = ArgonParameters { passes: u32::MAX, ..ArgonParameters::DEFAULT };
    for cost in [huge, weak, endless] {
        let salt = [1; wrapping::SALT_BYTES];
        let under = WrappingKey::of_credential(&rig.dir.path().join("another"), &salt).expect("a key");
        let root = RootKey::init(|_| Ok::<_, KeyMemError>(())).expect("locked memory");
        let record = WrappedRootKey::seal(&root, &under, RootKeyProtection::Passphrase(cost), &salt);
        RecordFile::new(&rig.file.path).store(&record.expect("sealed")).expect("stored");
        assert!(matches!(rig.key(Some("any")), Err(RootKeyError::Parameters { .. })), "{cost:?}");
    }
}

#[test]
fn a_replacement_that_is_cut_short_leaves_one_root_key_and_no_copy() {
    for last in [Step::OldNamed, Step::Renamed, Step::Wiped, Step::Removed] {
        let rig = Rig::new();
        rig.file.create(NewProtection::KeyFile, &Unlock::default()).expect("created");
        let raw = fs::read(&rig.file.path).expect("read");
        // Another name for the old file shows what becomes of its bytes.
        let witness = rig.dir.path().join("witness");
        fs::hard_link(&rig.file.path, &witness).expect("linked");
        let new = replacement::new_path(&rig.file.path);
        let salt = [1; wrapping::SALT_BYTES];
        let under = WrappingKey::of_credential(&rig.dir.path().join("credential"), &salt).expect("a key");
        let key = rig.file.load(&Unlock::default()).expect("opens");
        let how = RootKeyProtection::Credential { name: "credential".to_owned() };
        let record = WrappedRootKey::seal(&key, &under, how, &salt).expect("sealed");
        RecordFile::new(&new).store(&record).expect("stored");
        let until = |step| if step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        replacement::put_in_place_in_steps(&rig.file.path, until).expect("as far as it went");

        assert_eq!(rig.key(None).expect("one of the two opens")[..], raw, "{last:?}");
        assert_eq!(rig.file.has_leftovers(), last != Step::Removed, "{last:?}");
        rig.file.clean_up().expect("cleaned up");
        assert_eq!(rig.key(None).expect("it still opens")[..], raw, "{last:?}");
        assert_eq!(rig.names(), ["root.key"], "{last:?}");
        let renamed = last != Step::OldNamed;
        assert_eq!(
            fs::read(&witness).expect("read") == vec![0; 32],
            renamed,
            "{last:?}: the old key is wiped"
        );
    }
}

#[test]
fn a_key_of_somebody_else_is_refused() {
    let rig = Rig::new();
    rig.file.create(NewProtection::KeyFile, &Unlock::default()).expect("created");
    let stranger = RootKeyFile::new(rig.file.path.clone(), rig.file.owner_uid.wrapping_add(4711));
    let owner = fs::metadata(&rig.file.path).expect("exists").uid();
    // Root's own file is as good as the owner's.
    assert_eq!(stranger.protection().is_ok(), owner == 0);
    if owner == 0 {
        std::os::unix::fs::chown(&rig.file.path, Some(4711), None).expect("root may give files away");
        assert!(matches!(rig.file.protection(), Err(RootKeyError::Foreign { uid: 4711, .. })));
    }
}
