//! Creating and deleting volumes: what is refused, what is stored, what is left.

mod rig;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rig::{Rig, Unreachable, plain};
use sealblk_control::{ControlError, CreateVolume, DeletedData, ErrorClass, Pool, PoolDirectory, VolumeId};
use sealblk_kms::Kms;
use sealblk_kms::local::{KeySpec, KeyUsage, NewKey};
use sealblk_record::LockFile;

fn verdict<T>(result: Result<T, ControlError>) -> (&'static str, ErrorClass, String) {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => (error.code(), error.class(), error.to_string()),
    }
}

#[test]
fn r30_an_encrypted_volume_is_under_the_default_key_unless_another_is_named() {
    let rig = Rig::new();
    let default = rig.kms().describe_key("alias/aws/ebs").expect("the default key").arn;
    let own = rig.kms().create_key("own").expect("a key").arn;
    let under = |key: Option<&str>| {
        let request = CreateVolume { encrypted: Some(true), kms_key_id: key.map(str::to_owned), ..plain() };
        rig.create(&request).expect("a volume").kms_key_id.expect("a key").as_str().to_owned()
    };
    assert_eq!(under(None), default);
    assert_eq!(under(Some("alias/aws/ebs")), default, "the ARN is stored, never the alias");
    assert_eq!(under(Some(&own)), own);
    let volume = rig.create(&plain()).expect("a volume");
    assert!(!volume.encrypted && volume.kms_key_id.is_none() && volume.wrapped_key.is_none());
}

#[test]
fn r14_creating_makes_one_data_key_and_decrypts_nothing() {
    let rig = Rig::new();
    rig.encrypted();
    let calls = rig.calls();
    assert_eq!(
        calls.iter().filter(|call| *call == "GenerateDataKeyWithoutPlaintext").count(),
        1,
        "{calls:?}"
    );
    assert!(!calls.iter().any(|call| call == "Decrypt" || call == "CreateGrant"), "{calls:?}");
}

#[test]
fn r54_a_key_without_encrypted_is_refused_and_stores_nothing() {
    let rig = Rig::new();
    let request = CreateVolume { kms_key_id: Some("alias/aws/ebs".to_owned()), ..plain() };
    let (code, class, _) = verdict(rig.create(&request));
    assert_eq!((code, class), ("InvalidParameterDependency", ErrorClass::Usage));
    let (code, ..) = verdict(rig.create(&CreateVolume { encrypted: Some(false), ..request }));
    assert_eq!(code, "InvalidParameterCombination");
    assert!(rig.names().is_empty());
}

#[test]
fn r2_without_a_key_service_no_encrypted_volume_is_made_and_unencrypted_ones_are() {
    let rig = Rig::new();
    let directory = PoolDirectory::open_or_create(&rig.path("pool")).expect("the pool");
    let pool = Pool::new(directory, Arc::new(Unreachable));
    let request = CreateVolume { encrypted: Some(true), ..plain() };
    let (_, class, message) = verdict(pool.create_volume(&request, &mut |_, _| {}));
    assert_eq!(class, ErrorClass::Unreachable);
    assert!(message.contains("DescribeKey") && message.contains("alias/aws/ebs"), "{message}");
    assert!(rig.names().is_empty());
    pool.create_volume(&plain(), &mut |_, _| {}).expect("no key is needed");
}

#[test]
fn an_unusable_key_is_named_before_anything_is_stored() {
    let rig = Rig::new();
    let key = rig.kms().create_key("").expect("a key").arn;
    rig.kms().disable_key(&key).expect("disabled");
    let under =
        |key: &str| CreateVolume { encrypted: Some(true), kms_key_id: Some(key.to_owned()), ..plain() };
    let (code, class, message) = verdict(rig.create(&under(&key)));
    assert_eq!((code, class), ("DisabledException", ErrorClass::Denied));
    assert!(message.contains(&key) && message.contains("it is disabled"), "{message}");
    let (code, class, _) = verdict(rig.create(&under("alias/nobody")));
    assert_eq!((code, class), ("NotFoundException", ErrorClass::NotFound));
    assert!(rig.names().is_empty());
}

#[test]
fn r33_keys_that_are_not_symmetric_are_refused_and_nothing_is_stored() {
    let rig = Rig::new();
    for (spec, usage) in [
        (KeySpec::RSA_2048, Some(KeyUsage::ENCRYPT_DECRYPT)),
        (KeySpec::ECC_NIST_P256, Some(KeyUsage::SIGN_VERIFY)),
        (KeySpec::HMAC_256, None),
    ] {
        let key = rig.kms().create_key_as(&NewKey { spec, usage, ..NewKey::default() }).expect("a key").arn;
        let request = CreateVolume { encrypted: Some(true), kms_key_id: Some(key.clone()), ..plain() };
        let (code, class, message) = verdict(rig.create(&request));
        assert_eq!((code, class), ("InvalidKeyUsageException", ErrorClass::Denied));
        for part in [&key, &spec.name(), "only symmetric encryption keys can"] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
    assert!(rig.names().is_empty());
}

#[test]
fn a_key_that_waits_for_its_deletion_is_named_with_its_date() {
    let rig = Rig::new();
    let key = rig.kms().create_key("").expect("a key").arn;
    rig.kms().schedule_key_deletion(&key, Some(7)).expect("scheduled");
    let words = rig.kms().describe_key(&key).expect("described").state_in_words();
    let request = CreateVolume { encrypted: Some(true), kms_key_id: Some(key.clone()), ..plain() };
    let (code, class, message) = verdict(rig.create(&request));
    assert_eq!((code, class), ("KMSInvalidStateException", ErrorClass::Denied));
    assert!(words.starts_with("pending deletion until 20") && message.contains(&words), "{message}");
    assert!(rig.names().is_empty());
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    let rig = Rig::new();
    for size_bytes in [0, 512, (1 << 20) + 1, (64 << 40) + 512] {
        let (code, class, _) = verdict(rig.create(&CreateVolume { size_bytes: Some(size_bytes), ..plain() }));
        assert_eq!((code, class), ("InvalidParameterValue", ErrorClass::Usage), "{size_bytes}");
    }
    assert!(rig.names().is_empty());
}

#[test]
fn everything_in_the_pool_is_for_its_owner_only() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    for name in ["pool", "pool/volumes", "pool/kms", &format!("pool/volumes/{}", volume.volume_id)] {
        let mode = fs::metadata(rig.path(name)).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
    let mode =
        fs::metadata(volume.backing.path().expect("a file")).expect("the data file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_killed_commands_left_is_removed_by_the_next_create() {
    let rig = Rig::new();
    for name in [".new-vol-0123456789abcdef0", ".deleted-vol-0123456789abcdef1"] {
        let path = rig.path("pool/volumes").join(name);
        fs::create_dir(&path).expect("a directory");
        fs::write(path.join("data"), "left").expect("a file");
    }
    let volume = rig.create(&plain()).expect("a volume");
    assert_eq!(rig.names(), [volume.volume_id.to_string()]);
}

#[test]
fn a_create_that_is_still_at_work_is_no_leftover() {
    let rig = Rig::new();
    let path = rig.path("pool/volumes/.new-vol-0123456789abcdef0");
    fs::create_dir(&path).expect("a directory");
    let _at_work = LockFile::exclusive(path.join("lock")).expect("a lock");
    rig.create(&plain()).expect("a volume");
    assert!(path.exists());
}

#[test]
fn a_new_backing_file_is_sparse_and_stays_when_its_volume_is_deleted() {
    let rig = Rig::new();
    let path = rig.path("disk.img");
    let request = CreateVolume { size_bytes: Some(1 << 30), backing: Some(path.clone().into()), ..plain() };
    let volume = rig.create(&request).expect("a volume");
    let metadata = fs::metadata(&path).expect("the file");
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 0));
    let left = rig.pool.delete_volume(volume.volume_id).expect("deleted");
    assert_eq!(left, DeletedData::Left { place: fs::canonicalize(&path).expect("it is there").into() });
}

#[test]
fn a_backing_that_is_not_blank_is_named_and_left_unless_erased() {
    let rig = Rig::new();
    let path = rig.path("disk.img");
    let mut image = vec![0; 2 << 20];
    image[1080..1082].copy_from_slice(&[0x53, 0xef]);
    fs::write(&path, &image).expect("a file with ext4's magic number");
    let request = CreateVolume { backing: Some(path.clone().into()), ..plain() };
    let (code, class, message) = verdict(rig.create(&request));
    assert_eq!((code, class), ("IncorrectState", ErrorClass::State));
    assert!(message.contains("ext") && message.contains("--erase"), "{message}");
    assert!(rig.names().is_empty());
    assert_eq!(fs::read(&path).expect("the file"), image);
    rig.create(&CreateVolume { erase: true, ..request }).expect("a volume");
    assert!(fs::read(&path).expect("the file").iter().all(|&byte| byte == 0));
}

#[test]
fn a_short_blank_file_is_made_long_enough() {
    let rig = Rig::new();
    let path = rig.path("disk.img");
    fs::write(&path, []).expect("an empty file");
    rig.create(&CreateVolume { backing: Some(path.clone().into()), ..plain() }).expect("a volume");
    assert_eq!(fs::metadata(&path).expect("the file").len(), 1 << 20);
}

#[test]
fn a_backing_belongs_to_one_volume_whatever_it_is_called() {
    let rig = Rig::new();
    let path = rig.path("disk.img");
    let backed = |path: PathBuf| CreateVolume { backing: Some(path.into()), ..plain() };
    let first = rig.create(&backed(path.clone())).expect("a volume");
    fs::hard_link(&path, rig.path("hard")).expect("a link");
    std::os::unix::fs::symlink(&path, rig.path("soft")).expect("a link");
    let own = rig.create(&plain()).expect("a volume").backing.path().expect("a file").to_owned();
    for other in [path, rig.path("hard"), rig.path("soft"), own] {
        let (code, class, message) = verdict(rig.create(&backed(other)));
        assert_eq!((code, class), ("VolumeInUse", ErrorClass::State), "{message}");
    }
    rig.pool.delete_volume(first.volume_id).expect("deleted");
    rig.create(&backed(rig.path("hard"))).expect("free again");
}

#[test]
fn what_cannot_be_a_backing_is_refused_and_leaves_no_volume() {
    let rig = Rig::new();
    let backed = |path: &str| CreateVolume { backing: Some(Path::new(path).into()), ..plain() };
    let (code, class, message) = verdict(rig.create(&backed("/dev/null")));
    assert_eq!((code, class), ("InvalidParameterValue", ErrorClass::Usage), "{message}");
    let (_, class, _) = verdict(rig.create(&backed("/nowhere/at/all/disk.img")));
    assert_eq!(class, ErrorClass::NotFound);
    assert!(rig.names().is_empty());
}

#[test]
fn a_deleted_volume_does_not_exist_any_more() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    assert_eq!(rig.pool.delete_volume(volume.volume_id).expect("deleted"), DeletedData::Removed);
    assert!(rig.names().is_empty());
    let (code, class, message) = verdict(rig.pool.delete_volume(volume.volume_id));
    assert_eq!((code, class), ("InvalidVolume.NotFound", ErrorClass::NotFound));
    assert!(message.contains(&volume.volume_id.to_string()), "{message}");
    verdict(rig.pool.describe_volume("vol-0123456789abcdef0".parse::<VolumeId>().expect("an id")));
}

#[test]
fn a_damaged_record_hides_no_other_volume() {
    let rig = Rig::new();
    let (whole, damaged) = (rig.create(&plain()).expect("a volume"), rig.create(&plain()).expect("a volume"));
    let record = rig.path("pool/volumes").join(damaged.volume_id.to_string()).join("volume.json");
    let text = fs::read_to_string(&record).expect("the record").replace("1048576", "1048577");
    fs::write(&record, text).expect("damaged");
    let listed = serde_json::to_value(rig.pool.list_volumes().expect("a list")).expect("JSON");
    let states: std::collections::BTreeMap<_, _> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|volume| {
            (volume["VolumeId"].as_str().expect("an id"), volume["State"].as_str().expect("a state"))
        })
        .collect();
    assert_eq!(states[whole.volume_id.to_string().as_str()], "available");
    assert_eq!(states[damaged.volume_id.to_string().as_str()], "error");
    verdict(rig.pool.describe_volume(damaged.volume_id));
    rig.pool.delete_volume(damaged.volume_id).expect("it can be got rid of");
}
