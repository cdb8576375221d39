//! Tests only: a process that dies between any two writes of any mutation leaves the old state or the new one, and the next
//! call finds a store that works. What a death inside one write leaves is `sealblk-record`'s to test.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::{LocalKms, NewKey, Scope};
use crate::context::EncryptionContext;
use crate::service::{DecryptRequest, KeyState, Kms, Principal, WrappedKey};

const DAY: Duration = Duration::from_secs(86_400);

/// A store with a used key that has an alias and a grant.
struct Scene {
    dir: TempDir,
    key: String,
    wrapped: WrappedKey,
}

fn context() -> EncryptionContext {
    EncryptionContext::for_resource("vol-0123456789abcdef0")
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kms = open(&dir);
        let request = NewKey { alias: Some("alias/mine".to_owned()), ..NewKey::default() };
        let key = kms.create_key_as(&request).expect("created").arn;
        let wrapped = kms.generate_data_key_without_plaintext(&key, &context()).expect("a data key");
        Self { dir, key, wrapped }
    }

    fn open(&self) -> LocalKms {
        open(&self.dir)
    }

    fn state(&self) -> KeyState {
        self.open().describe_key(&self.key).expect("described").key_state
    }

    /// Whatever happened, every record is whole and what was wrapped is not lost.
    fn check(&self, what: &str) {
        let kms = self.open();
        kms.list_keys().expect(what);
        kms.list_aliases(None).expect(what);
        kms.list_grants(&self.key).expect(what);
        kms.list_key_rotations(&self.key).expect(what);
        if self.state() == KeyState::PendingDeletion {
            kms.cancel_key_deletion(&self.key).expect(what);
        }
        kms.enable_key(&self.key).expect(what);
        let own = context();
        let request = DecryptRequest { wrapped: &self.wrapped, key: &self.key, context: &own, grant: None };
        kms.decrypt(&request).expect(what);
        let wrapped = kms.generate_data_key_without_plaintext(&self.key, &own).expect(what);
        kms.decrypt(&DecryptRequest { wrapped: &wrapped, ..request }).expect(what);
        kms.describe_key("alias/aws/ebs").expect(what);
        let keys = kms.list_keys().expect(what);
        assert_eq!(keys.iter().filter(|key| key.key_manager == "AWS").count(), 1, "{what}");
    }
}

fn open(dir: &TempDir) -> LocalKms {
    let caller = Principal("uid:0".to_owned());
    LocalKms::open(&dir.path().join("kms"), Scope::default(), caller).expect("opened").via_service()
}

/// Makes `change` die before its first write, its second, and so on, each time in a scene of its own, until it gets
/// through; how many writes it has.
fn at_every_write(what: &str, change: &dyn Fn(&Scene, LocalKms)) -> u32 {
    for writes in 0..20 {
        let scene = Scene::new();
        let kms = scene.open();
        kms.store.writes_left.set(Some(writes));
        change(&scene, kms);
        let done = DONE.with(|done| done.replace(false));
        scene.check(&format!("{what}, dead after {writes} writes"));
        if done {
            return writes;
        }
    }
    panic!("{what} never comes to an end");
}

std::thread_local! {
    /// Whether the change under test was told to have succeeded.
    static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn note<T>(outcome: Result<T, crate::KmsError>) {
    DONE.with(|done| done.set(outcome.is_ok()));
}

#[test]
fn every_mutation_that_dies_between_two_writes_leaves_the_old_state_or_the_new() {
    let one = at_every_write;
    let writes = [
        one("CreateKey", &|_, kms| note(kms.create_key(""))),
        one("CreateKey with an alias", &|_, kms| {
            note(kms.create_key_as(&NewKey { alias: Some("alias/b".to_owned()), ..NewKey::default() }));
        }),
        one("the default key", &|_, kms| note(kms.describe_key("alias/aws/ebs"))),
        one("DisableKey", &|scene, kms| note(kms.disable_key(&scene.key))),
        one("ScheduleKeyDeletion", &|scene, kms| note(kms.schedule_key_deletion(&scene.key, Some(7)))),
        one("CreateAlias", &|scene, kms| note(kms.create_alias("alias/b", &scene.key))),
        one("DeleteAlias", &|_, kms| note(kms.delete_alias("alias/mine"))),
        one("RotateKeyOnDemand", &|scene, kms| note(kms.rotate_key_on_demand(&scene.key))),
        one("EnableKeyRotation", &|scene, kms| note(kms.enable_key_rotation(&scene.key, Some(90)))),
        one("PutKeyPolicy", &|scene, kms| {
            let policy = kms.get_key_policy(&scene.key).expect("a policy");
            note(kms.put_key_policy(&scene.key, &policy));
        }),
        one("PutIdentityPolicy", &|_, kms| {
            let policy = json!({ "Statement": { "Effect": "Allow", "Action": "kms:*", "Resource": "*" } });
            note(kms.put_identity_policy(&Principal("uid:7".to_owned()), "all", &policy));
        }),
    ];
    assert_eq!(writes, [1, 2, 2, 1, 2, 1, 1, 1, 1, 1, 1], "the writes that each has");
}

#[test]
fn a_cancelled_deletion_that_dies_is_pending_or_cancelled() {
    let scene = Scene::new();
    scene.open().schedule_key_deletion(&scene.key, Some(7)).expect("scheduled");
    let dying = scene.open();
    dying.store.writes_left.set(Some(1));
    dying.cancel_key_deletion(&scene.key).expect_err("dead after the first of two writes");
    assert_eq!(scene.state(), KeyState::Disabled, "the key's own record decides");
    let later = scene.open().with_clock_ahead(DAY * 40);
    later.list_keys().expect("listed");
    assert_eq!(scene.state(), KeyState::Disabled, "a note that was not taken back destroys nothing");
    scene.check("after the note was taken back");
}

#[test]
fn a_destruction_that_dies_is_taken_up_again_and_leaves_no_file() {
    for writes in 0..20 {
        let scene = Scene::new();
        scene.open().schedule_key_deletion(&scene.key, Some(7)).expect("scheduled");
        let due = || scene.open().with_clock_ahead(DAY * 8);
        let dying = due();
        dying.store.writes_left.set(Some(writes));
        let died = dying.list_keys().is_err();
        drop(dying);
        assert!(due().list_keys().expect("listed").is_empty(), "dead after {writes} writes");
        assert!(due().describe_key(&scene.key).is_err());
        assert!(due().describe_key("alias/mine").is_err());
        for folder in ["keys", "grants"] {
            let entries = std::fs::read_dir(scene.dir.path().join("kms").join(folder)).expect("listed");
            let left: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
            assert!(left.is_empty(), "dead after {writes} writes: {left:?}");
        }
        if !died {
            assert_eq!(writes, 4, "aliases, grants, key, note");
            return;
        }
    }
    panic!("the destruction never comes to an end");
}
