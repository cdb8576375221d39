//! ModifyVolume: growth with nobody at the volume and under clients' hands, names, and what a kill in the middle leaves.

mod rig;

use std::fs;
use std::os::unix::net::UnixStream;

use rig::{Rig, plain};
use sealblk_control::{ControlError, CreateVolume, ErrorClass, ModifyVolume, VolumeDescription};
use sealblk_testkit::nbd_client::{Exported, NbdClient};
use sealblk_volume::VolumeId;

const OLD: u64 = 1 << 20;
const NEW: u64 = 3 << 20;

fn grow(rig: &Rig, volume: VolumeId, size_bytes: u64) -> Result<VolumeDescription, ControlError> {
    rig.pool.modify_volume(&ModifyVolume { volume, size_bytes: Some(size_bytes), name: None })
}

fn rename(rig: &Rig, volume: VolumeId, name: Option<&str>) -> VolumeDescription {
    let name = Some(name.map(|name| name.parse().expect("a name")));
    rig.pool.modify_volume(&ModifyVolume { volume, size_bytes: None, name }).expect("renamed")
}

fn connect(rig: &Rig, volume: VolumeId, export: &str) -> (NbdClient<UnixStream>, Exported) {
    let socket = rig.path("run").join(format!("{volume}.sock"));
    let mut client = NbdClient::new(UnixStream::connect(socket).expect("it listens"));
    let exported = client.go(export).expect("an export");
    (client, exported)
}

/// A volume under a key that can be disabled.
fn under_own_key(rig: &Rig) -> VolumeDescription {
    let key = rig.kms().create_key("").expect("a key").arn;
    let request = CreateVolume { encrypted: Some(true), kms_key_id: Some(key), ..plain() };
    rig.create(&request).expect("a volume")
}

fn both_kinds(rig: &Rig) -> [VolumeId; 2] {
    [rig.encrypted().volume_id, rig.create(&plain()).expect("a volume").volume_id]
}

#[test]
fn a_volume_grows_under_its_clients_old_connections_keep_their_size_and_new_ones_use_the_growth() {
    let rig = Rig::new();
    for volume in both_kinds(&rig) {
        let serving = rig.serve(volume);
        let (mut old, exported) = connect(&rig, volume, "");
        assert_eq!(exported.size, OLD);
        old.write(OLD - 512, &[7; 512]).expect("an answer").expect("written");
        let grown = grow(&rig, volume, NEW).expect("grown");
        assert_eq!((grown.size_bytes.bytes(), grown.attachments.len()), (NEW, 1));

        let (mut new, exported) = connect(&rig, volume, "");
        assert_eq!(exported.size, NEW);
        assert_eq!(new.read(OLD - 512, 512).expect("an answer"), Ok(vec![7; 512]));
        assert_eq!(new.read(OLD, 1 << 20).expect("an answer"), Ok(vec![0; 1 << 20]));
        new.write(NEW - 100, &[9; 100]).expect("an answer").expect("written");
        new.flush().expect("an answer").expect("durable");
        old.read(OLD, 512).expect("an answer").expect_err("the old connection ends where it did");
        assert_eq!(old.read(OLD - 512, 512).expect("an answer"), Ok(vec![7; 512]));
        old.write(0, &[8; 512]).expect("an answer").expect("written");
        assert_eq!(new.read(0, 512).expect("an answer"), Ok(vec![8; 512]));
        grow(&rig, volume, NEW + (1 << 20)).expect("and again");
        drop((old, new));
        serving.stop().expect("a clean end");

        let serving = rig.serve(volume);
        let (mut client, exported) = connect(&rig, volume, "");
        assert_eq!(exported.size, NEW + (1 << 20));
        assert_eq!(client.read(NEW - 100, 100).expect("an answer"), Ok(vec![9; 100]));
        drop(client);
        serving.stop().expect("a clean end");
    }
}

#[test]
fn a_detached_volume_grows_with_its_key_if_its_record_is_sealed() {
    let rig = Rig::new();
    let volume = under_own_key(&rig);
    let id = volume.volume_id;
    let before = rig.calls().len();
    grow(&rig, id, OLD + 512).expect("no seal yet: no key");
    assert_eq!(rig.calls().len(), before);
    rig.serve(id).stop().expect("a clean end, and a seal");
    let before = rig.calls().len();
    grow(&rig, id, NEW).expect("grown");
    assert_eq!(rig.calls()[before..], ["CreateGrant", "Decrypt", "RetireGrant"]);
    assert_eq!(rig.grants(&volume), 0);
    let serving = rig.serve(id);
    assert_eq!(connect(&rig, id, "").1.size, NEW);
    serving.stop().expect("a clean end");
    rig.kms().disable_key(volume.kms_key_id.as_ref().expect("a key").as_str()).expect("disabled");
    let error = grow(&rig, id, 2 * NEW).expect_err("the key is unusable");
    assert_eq!((error.code(), error.class()), ("CustomerKeyHasBeenRevoked", ErrorClass::Denied));
    assert_eq!(rig.pool.describe_volume(id).expect("it").size_bytes.bytes(), NEW);
}

#[test]
fn an_attached_volume_grows_while_its_key_is_disabled() {
    let rig = Rig::new();
    let volume = under_own_key(&rig);
    let serving = rig.serve(volume.volume_id);
    rig.kms().disable_key(volume.kms_key_id.as_ref().expect("a key").as_str()).expect("disabled");
    grow(&rig, volume.volume_id, NEW).expect("the attachment has what it takes");
    assert_eq!(connect(&rig, volume.volume_id, "").1.size, NEW);
    serving.stop().expect("a clean end");
}

#[test]
fn volumes_only_grow_and_something_must_be_asked_for() {
    let rig = Rig::new();
    for (volume, attached) in both_kinds(&rig).into_iter().flat_map(|id| [(id, false), (id, true)]) {
        let serving = attached.then(|| rig.serve(volume));
        let error = grow(&rig, volume, OLD + 1).expect_err("no size");
        assert_eq!(error.code(), "InvalidParameterValue");
        grow(&rig, volume, 2 * OLD).expect("grown, or so large already");
        let error = grow(&rig, volume, OLD).expect_err("smaller");
        assert_eq!((error.code(), error.class()), ("InvalidParameterValue", ErrorClass::Usage));
        assert_eq!(error.to_string(), "New size cannot be smaller than existing size");
        let nothing = ModifyVolume { volume, size_bytes: None, name: None };
        let error = rig.pool.modify_volume(&nothing).expect_err("nothing asked for");
        assert_eq!((error.code(), error.class()), ("InvalidParameterValue", ErrorClass::Usage));
        serving.map_or(Ok(()), rig::Serving::stop).expect("a clean end");
    }
}

#[test]
fn what_lies_behind_the_end_of_a_backing_does_not_become_part_of_the_volume() {
    let rig = Rig::new();
    let path = rig.path("disk.img");
    let request = CreateVolume { backing: Some(path.clone().into()), ..plain() };
    let volume = rig.create(&request).expect("a volume").volume_id;
    let file = fs::OpenOptions::new().write(true).open(&path).expect("the backing");
    std::os::unix::fs::FileExt::write_all_at(&file, b"somebody else's", 2 << 20).expect("written");
    for attached in [false, true] {
        let serving = attached.then(|| rig.serve(volume));
        let error = grow(&rig, volume, NEW).expect_err("there is data");
        assert_eq!((error.code(), error.class()), ("IncorrectState", ErrorClass::State), "{error}");
        assert!(error.to_string().contains("2097152"), "{error}");
        assert_eq!(rig.pool.describe_volume(volume).expect("it").size_bytes.bytes(), OLD);
        serving.map_or(Ok(()), rig::Serving::stop).expect("a clean end");
    }
    grow(&rig, volume, 2 << 20).expect("up to there");
}

/// Every file of the volume as it is between two steps of a growth is one of these mixtures.
#[test]
fn killed_between_two_steps_the_volume_has_the_old_size_or_the_new_one() {
    let rig = Rig::new();
    for id in both_kinds(&rig) {
        let serving = rig.serve(id);
        connect(&rig, id, "").0.write(4096, &[7; 512]).expect("an answer").expect("written");
        serving.stop().expect("a clean end");
        let directory = rig.path("pool/volumes").join(id.to_string());
        let keep = |name: &str| fs::read(directory.join(name)).expect("a file");
        let (record, map) = (keep("volume.json"), keep("map"));
        grow(&rig, id, 80 << 20).expect("grown");
        let (record_after, map_after) = (keep("volume.json"), keep("map"));
        for (record, map, size) in
            [(&record, &map, OLD), (&record, &map_after, OLD), (&record_after, &map_after, 80 << 20)]
        {
            fs::write(directory.join("volume.json"), record).expect("put back");
            fs::write(directory.join("map"), map).expect("put back");
            let serving = rig.serve(id);
            let (mut client, exported) = connect(&rig, id, "");
            assert_eq!(exported.size, size);
            assert_eq!(client.read(4096, 512).expect("an answer"), Ok(vec![7; 512]));
            assert_eq!(client.read(size - 512, 512).expect("an answer"), Ok(vec![0; 512]));
            drop(client);
            serving.stop().expect("a clean end");
        }
    }
}

#[test]
fn a_name_is_shown_changed_at_any_time_and_an_export_name_of_the_next_attachment() {
    let rig = Rig::new();
    let name = Some("db-1".parse().expect("a name"));
    let request = CreateVolume { encrypted: Some(true), name, ..plain() };
    let volume = rig.create(&request).expect("a volume");
    let (id, name) = (volume.volume_id, |volume: &VolumeDescription| volume.name.clone().map(String::from));
    assert_eq!(name(&volume).as_deref(), Some("db-1"));
    let serving = rig.serve(id);
    for export in ["db-1", "", &id.to_string()] {
        assert_eq!(connect(&rig, id, export).1.size, OLD, "{export}");
    }
    assert_eq!(name(&rename(&rig, id, Some("db-2"))).as_deref(), Some("db-2"));
    connect(&rig, id, "db-1");
    serving.stop().expect("a clean end");
    let serving = rig.serve(id);
    connect(&rig, id, "db-2");
    assert_eq!(rename(&rig, id, None).name, None);
    serving.stop().expect("a clean end, and the seal holds");
    rig.serve(id).stop().expect("and holds");
}
