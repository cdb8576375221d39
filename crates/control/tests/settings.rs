//! Encryption by default and the default key: what they change, and what they leave alone.

mod rig;

use std::fs;

use rig::{Rig, plain};
use sealblk_control::{
    ControlError, CreateVolume, ErrorClass, PoolDirectory, RepositoryName, RepositoryPlace, StoreOptions,
    VolumeDescription,
};
use sealblk_kms::Kms;

fn directory(rig: &Rig) -> PoolDirectory {
    PoolDirectory::open_or_create(&rig.path("pool")).expect("the pool")
}

fn key_of(volume: &VolumeDescription) -> String {
    volume.kms_key_id.as_ref().expect("an encrypted volume").as_str().to_owned()
}

#[test]
fn r35_r46_with_encryption_by_default_a_volume_is_encrypted_unasked() {
    let rig = Rig::new();
    let settings = directory(&rig).set_encryption_by_default(true).expect("on");
    assert!(settings.ebs_encryption_by_default);
    let default = rig.kms().describe_key("alias/aws/ebs").expect("the default key").arn;
    assert_eq!(key_of(&rig.create(&plain()).expect("a volume")), default);
    directory(&rig).set_encryption_by_default(false).expect("off");
    assert!(!rig.create(&plain()).expect("a volume").encrypted);
}

#[test]
fn r39_it_cannot_be_switched_off_for_one_volume() {
    let rig = Rig::new();
    directory(&rig).set_encryption_by_default(true).expect("on");
    let request = CreateVolume { encrypted: Some(false), ..plain() };
    assert!(rig.create(&request).expect("a volume").encrypted);
}

#[test]
fn r37_nothing_that_exists_changes() {
    let rig = Rig::new();
    let own = rig.kms().create_key("own").expect("a key").arn;
    let before = [rig.create(&plain()).expect("a volume"), rig.encrypted()];
    let record = |volume: &VolumeDescription| {
        fs::read(rig.path("pool/volumes").join(volume.volume_id.to_string()).join("volume.json"))
            .expect("a record")
    };
    let bytes = before.each_ref().map(record);
    directory(&rig).set_encryption_by_default(true).expect("on");
    rig.pool.modify_default_kms_key(&own).expect("another key");
    assert_eq!(before.each_ref().map(record), bytes);
    for volume in before {
        assert_eq!(rig.pool.describe_volume(volume.volume_id).expect("it is there"), volume);
    }
}

#[test]
fn r38_it_is_of_one_region() {
    let (one, other) = (Rig::new(), Rig::new());
    directory(&one).set_encryption_by_default(true).expect("on");
    assert!(!directory(&other).settings().expect("settings").ebs_encryption_by_default);
}

#[test]
fn r31_another_default_key_is_for_new_volumes_until_it_is_reset() {
    let rig = Rig::new();
    let own = rig.kms().create_key("own").expect("a key");
    let old = rig.encrypted();
    assert_eq!(directory(&rig).settings().expect("settings").default_kms_key(), "alias/aws/ebs");
    let settings = rig.pool.modify_default_kms_key(&own.key_id).expect("another key");
    assert_eq!(settings.default_kms_key(), own.arn, "told as an ARN");
    assert_eq!(key_of(&rig.encrypted()), own.arn);
    assert_ne!(key_of(&rig.pool.describe_volume(old.volume_id).expect("it is there")), own.arn);
    let settings = directory(&rig).reset_default_kms_key().expect("the managed key");
    assert_eq!(settings.default_kms_key(), "alias/aws/ebs");
    assert_eq!(key_of(&rig.encrypted()), key_of(&old));
}

#[test]
fn a_default_key_that_cannot_be_used_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let disabled = rig.kms().create_key("").expect("a key").arn;
    rig.kms().disable_key(&disabled).expect("disabled");
    let refused = |key: &str| match rig.pool.modify_default_kms_key(key) {
        Ok(_) => panic!("{key} should have been refused"),
        Err(error) => (error.class(), error.to_string()),
    };
    let (class, message) = refused(&disabled);
    assert_eq!(class, ErrorClass::Denied);
    assert!(message.contains(&disabled), "{message}");
    assert_eq!(refused("alias/nobody").0, ErrorClass::NotFound);
    assert_eq!(directory(&rig).settings().expect("settings").default_kms_key(), "alias/aws/ebs");
}

#[test]
fn r54_a_key_alone_is_refused_also_with_encryption_by_default() {
    let rig = Rig::new();
    directory(&rig).set_encryption_by_default(true).expect("on");
    let request = CreateVolume { kms_key_id: Some("alias/aws/ebs".to_owned()), ..plain() };
    let error = rig.create(&request).expect_err("both are needed");
    assert_eq!(error.code(), "InvalidParameterDependency");
    assert!(rig.names().is_empty());
}

#[test]
fn changes_at_once_are_all_kept() {
    let rig = Rig::new();
    let own = rig.kms().create_key("own").expect("a key").arn;
    std::thread::scope(|scope| {
        let path = rig.path("pool");
        scope.spawn(move || {
            let directory = PoolDirectory::open_or_create(&path).expect("the pool");
            for round in 0..50 {
                directory.set_encryption_by_default(round % 2 == 1).expect("set");
            }
        });
        for _ in 0..10 {
            rig.pool.modify_default_kms_key(&own).expect("modified");
        }
    });
    let settings = directory(&rig).settings().expect("settings");
    assert!(settings.ebs_encryption_by_default, "the last of its writer's");
    assert_eq!(settings.default_kms_key(), own);
}

#[test]
fn the_snapshot_repository_is_kept_until_it_is_reset() {
    let rig = Rig::new();
    let at = || directory(&rig).settings().expect("settings").snapshot_repository().cloned();
    assert_eq!(at(), None);
    let options = [("endpoint".to_owned(), "https://s3.example".to_owned())].into();
    let name = RepositoryName { location: "s3://bucket/prefix".to_owned(), options };
    let place = RepositoryPlace::named(name.clone(), StoreOptions::default()).expect("a place");
    directory(&rig).set_snapshot_repository(&place).expect("set");
    directory(&rig).set_encryption_by_default(true).expect("on");
    assert_eq!(at(), Some(name));
    directory(&rig).reset_snapshot_repository().expect("reset");
    assert_eq!(at(), None);
}

#[test]
fn damaged_settings_are_an_error_and_not_a_guess() {
    let rig = Rig::new();
    directory(&rig).set_encryption_by_default(true).expect("on");
    let path = rig.path("pool/settings.json");
    let text = fs::read_to_string(&path).expect("the record").replace("true", "false");
    fs::write(&path, text).expect("written");
    let error = rig.create(&plain()).expect_err("nobody knows whether it must be encrypted");
    assert!(matches!(error, ControlError::Record(_)), "{error}");
    assert!(error.to_string().contains("settings.json"), "{error}");
    assert!(rig.names().is_empty());
}

#[test]
fn an_explanation_names_row_and_key_and_creates_nothing() {
    let rig = Rig::new();
    let explain = |request: &CreateVolume| rig.pool.explain_create_volume(request).expect("an explanation");
    let plain_volume = explain(&plain());
    assert_eq!((plain_volume.row, plain_volume.encrypted, plain_volume.kms_key_id), (1, false, None));
    let encrypted = CreateVolume { encrypted: Some(true), ..plain() };
    let default = rig.kms().describe_key("alias/aws/ebs").expect("the default key").arn;
    let explanation = explain(&encrypted);
    assert_eq!((explanation.row, explanation.kms_key_id.as_deref()), (6, Some(default.as_str())));
    directory(&rig).set_encryption_by_default(true).expect("on");
    assert_eq!(explain(&plain()).row, 11);
    assert_eq!(explain(&encrypted).row, 16);
    assert!(rig.names().is_empty());
    let refused = CreateVolume { kms_key_id: Some(default), ..plain() };
    assert!(rig.pool.explain_create_volume(&refused).is_err());
}
