//! Attaching and detaching: who may, what it leaves, and what the key service sees of it.

mod rig;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rig::{Rig, plain};
use sealblk_control::{ControlError, CreateVolume, ErrorClass, VolumeDescription, VolumeState};
use sealblk_volume::Materialized;

const SOON: Duration = Duration::from_secs(20);

fn verdict<T>(result: Result<T, ControlError>) -> (&'static str, ErrorClass, String) {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => (error.code(), error.class(), error.to_string()),
    }
}

fn refused(rig: &Rig, volume: &VolumeDescription) -> (&'static str, ErrorClass, String) {
    verdict(rig.pool.attach_volume(&rig.runtime(), &rig.attach_request(volume.volume_id)))
}

#[test]
fn r17_a_grant_lasts_as_long_as_the_attachment() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    assert_eq!(rig.grants(&volume), 0);
    let serving = rig.serve(volume.volume_id);
    assert_eq!(rig.grants(&volume), 1);
    let described = rig.pool.describe_volume(volume.volume_id).expect("a description");
    let grant = described.attachments[0].grant_id.clone().expect("a grant");
    let key = volume.kms_key_id.clone().expect("a key");
    let entry = rig.kms().list_grants(key.as_str()).expect("grants").remove(0);
    assert_eq!(entry.grant_id, grant);
    assert!(entry.grantee_principal.0.ends_with(&format!("/{}", volume.volume_id)), "{entry:?}");
    serving.stop().expect("a clean end");
    assert_eq!(rig.grants(&volume), 0);
}

#[test]
fn r16_one_attachment_is_one_grant_and_one_decrypt_in_this_order() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let before = rig.calls().len();
    rig.serve(volume.volume_id).stop().expect("a clean end");
    assert_eq!(rig.calls()[before..], ["CreateGrant", "Decrypt", "RetireGrant"]);
}

#[test]
fn r19_a_disabled_key_stops_the_next_attachment_and_not_this_one() {
    let rig = Rig::new();
    let key = rig.kms().create_key("").expect("a key").arn;
    let request = CreateVolume { encrypted: Some(true), kms_key_id: Some(key.clone()), ..plain() };
    let volume = rig.create(&request).expect("a volume");
    let serving = rig.serve(volume.volume_id);
    rig.kms().disable_key(&key).expect("disabled");
    let state = rig.pool.describe_volume(volume.volume_id).expect("a description").state;
    assert_eq!(state, VolumeState::InUse);
    serving.stop().expect("a clean end, the grant retired");
    let (code, class, message) = refused(&rig, &volume);
    assert_eq!((code, class), ("CustomerKeyHasBeenRevoked", ErrorClass::Denied));
    assert!(message.contains(&key) && message.contains(&volume.volume_id.to_string()), "{message}");
    rig.kms().enable_key(&key).expect("enabled");
    rig.serve(volume.volume_id).stop().expect("usable again with no other step");
}

#[test]
fn r4_encrypted_and_unencrypted_volumes_are_attached_side_by_side() {
    let rig = Rig::new();
    let volumes = [rig.encrypted(), rig.encrypted(), rig.create(&plain()).expect("a volume")];
    let serving: Vec<_> = volumes.iter().map(|volume| rig.serve(volume.volume_id)).collect();
    for (volume, serving) in volumes.iter().zip(&serving) {
        let described = rig.pool.describe_volume(volume.volume_id).expect("a description");
        assert_eq!(described.state, VolumeState::InUse);
        assert_eq!(described.attachments[0].uris, serving.uris);
    }
    for serving in serving {
        serving.stop().expect("a clean end");
    }
}

#[test]
fn an_attached_volume_is_neither_attached_again_nor_deleted_nor_materialized() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let serving = rig.serve(volume.volume_id);
    let by_us = format!("by process {}", std::process::id());
    for (code, class, message) in [
        refused(&rig, &volume),
        verdict(rig.pool.delete_volume(volume.volume_id)),
        verdict(rig.pool.materialize_volume(volume.volume_id, &mut |_, _| {})),
    ] {
        assert_eq!((code, class), ("VolumeInUse", ErrorClass::State));
        assert!(message.contains(&by_us), "{message}");
    }
    serving.stop().expect("a clean end");
    rig.pool.delete_volume(volume.volume_id).expect("deleted");
}

#[test]
fn detach_returns_when_everything_is_over_and_the_second_finds_nothing_attached() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let serving = rig.serve(volume.volume_id);
    rig.pool.detach_volume(volume.volume_id, SOON).expect("detached");
    assert_eq!(rig.grants(&volume), 0);
    assert!(fs::read_dir(rig.path("run")).expect("the directory").next().is_none(), "sockets are left");
    let state = rig.pool.describe_volume(volume.volume_id).expect("a description").state;
    assert_eq!(state, VolumeState::Available);
    serving.wait().expect("a clean end");
    let (code, class, _) = verdict(rig.pool.detach_volume(volume.volume_id, SOON));
    assert_eq!((code, class), ("IncorrectState", ErrorClass::State));
}

#[test]
fn an_attachment_that_fails_leaves_nothing() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    fs::create_dir(rig.path("run")).expect("a directory");
    let in_the_way = rig.path("run").join(format!("{}.sock", volume.volume_id));
    fs::write(&in_the_way, "precious").expect("a file");
    let (_, _, message) = refused(&rig, &volume);
    assert!(message.contains("not a socket"), "{message}");
    assert_eq!(rig.grants(&volume), 0);
    assert_eq!(rig.pool.describe_volume(volume.volume_id).expect("it").state, VolumeState::Available);
    let directory = rig.path("pool/volumes").join(volume.volume_id.to_string());
    assert!(!directory.join("attachment.json").exists());
    fs::remove_file(in_the_way).expect("removed");
    rig.serve(volume.volume_id).stop().expect("a clean end");
}

#[test]
fn what_a_killed_server_left_is_cleaned_up_by_the_next_command() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let directory = rig.path("pool/volumes").join(volume.volume_id.to_string());
    // What is left behind: the announcement and the grant in it. The lock dies with the process.
    let leave = || {
        let serving = rig.serve(volume.volume_id);
        let announcement = fs::read(directory.join("attachment.json")).expect("an announcement");
        let key = volume.kms_key_id.as_ref().expect("a key").as_str();
        let grants = rig.path("pool/kms/grants").join(format!("{}.json", &key[key.len() - 36..]));
        let held = fs::read(&grants).expect("the grants");
        serving.stop().expect("a clean end");
        fs::write(directory.join("attachment.json"), announcement).expect("put back");
        fs::write(&grants, held).expect("put back");
        assert_eq!(rig.grants(&volume), 1);
    };
    leave();
    let (code, ..) = verdict(rig.pool.detach_volume(volume.volume_id, SOON));
    assert_eq!((code, rig.grants(&volume)), ("IncorrectState", 0));
    leave();
    rig.serve(volume.volume_id).stop().expect("a clean end");
    assert_eq!(rig.grants(&volume), 0);
    leave();
    rig.pool.delete_volume(volume.volume_id).expect("deleted");
    assert_eq!(rig.grants(&volume), 0);
}

#[test]
fn a_grant_that_could_not_be_retired_is_reported_and_retired_by_the_next_command() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let pool = rig.pool_with(|kms| Arc::new(rig::NoRetire(kms)));
    let attachment =
        pool.attach_volume(&rig.runtime(), &rig.attach_request(volume.volume_id)).expect("attached");
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = tokio::task::LocalSet::new()
        .block_on(&io, async { attachment.serve(&mut (), std::future::ready(())).await });
    let (_, class, _) = verdict(ended);
    assert_eq!((class, rig.grants(&volume)), (ErrorClass::Unreachable, 1));
    verdict(rig.pool.detach_volume(volume.volume_id, SOON));
    assert_eq!(rig.grants(&volume), 0);
}

#[test]
fn a_truncated_data_file_is_refused_before_the_key_is_asked_for() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let calls = rig.calls().len();
    fs::OpenOptions::new()
        .write(true)
        .open(volume.backing.path().expect("a file"))
        .and_then(|file| file.set_len(4096))
        .expect("cut");
    let (_, class, message) = refused(&rig, &volume);
    assert_eq!(class, ErrorClass::Failed);
    assert!(message.contains("4096") && message.contains("1048576"), "{message}");
    assert_eq!(rig.calls().len(), calls);
}

#[test]
fn a_backing_is_attached_by_one_pool_at_a_time() {
    let rigs = [Rig::new(), Rig::new()];
    let backing = Some(rigs[0].path("disk.img").into());
    let volumes = rigs.each_ref().map(|rig| {
        rig.create(&CreateVolume { backing: backing.clone(), ..plain() }).expect("a blank backing")
    });
    let serving = rigs[0].serve(volumes[0].volume_id);
    let (code, class, message) = refused(&rigs[1], &volumes[1]);
    assert_eq!((code, class), ("IncorrectState", ErrorClass::State));
    assert!(message.contains("disk.img"), "{message}");
    serving.stop().expect("a clean end");
    rigs[1].serve(volumes[1].volume_id).stop().expect("free again");
}

#[test]
fn the_record_of_another_volume_is_refused() {
    let rig = Rig::new();
    let (a, b) = (rig.encrypted(), rig.encrypted());
    let record = |volume: &VolumeDescription| {
        rig.path("pool/volumes").join(volume.volume_id.to_string()).join("volume.json")
    };
    fs::copy(record(&a), record(&b)).expect("copied");
    let (_, _, message) = refused(&rig, &b);
    assert!(message.contains(&a.volume_id.to_string()), "{message}");
}

#[test]
fn a_wrapped_key_of_another_volume_is_refused() {
    let rig = Rig::new();
    let (a, b) = (rig.encrypted(), rig.encrypted());
    let text = |volume: &VolumeDescription| serde_json::to_string(&volume.wrapped_key).expect("JSON");
    let path = rig.path("pool/volumes").join(b.volume_id.to_string()).join("volume.json");
    let file = sealblk_record::RecordFile::<sealblk_volume::VolumeRecord>::new(&path);
    let record = serde_json::to_string(&file.load().expect("the record")).expect("JSON");
    let swapped = record.replace(&text(&b), &text(&a));
    assert_ne!(swapped, record);
    file.store(&serde_json::from_str(&swapped).expect("a record")).expect("stored");
    let (code, class, _) = refused(&rig, &b);
    assert_eq!((code, class), ("CustomerKeyHasBeenRevoked", ErrorClass::Denied));
    assert_eq!(rig.grants(&b), 0);
}

#[test]
fn tcp_off_loopback_is_refused_before_anything_is_touched() {
    let rig = Rig::new();
    let volume = rig.encrypted();
    let calls = rig.calls().len();
    let mut request = rig.attach_request(volume.volume_id);
    request.endpoints.listen =
        vec!["127.0.0.1:0".parse().expect("one"), "0.0.0.0:0".parse().expect("another")];
    let (code, class, message) = verdict(rig.pool.attach_volume(&rig.runtime(), &request));
    assert_eq!((code, class), ("InvalidParameterValue", ErrorClass::Usage));
    assert!(message.contains("0.0.0.0:0") && message.contains("loopback"), "{message}");
    assert_eq!(rig.calls().len(), calls);
}

#[test]
fn materialize_fills_an_encrypted_volume_and_leaves_an_unencrypted_one() {
    let rig = Rig::new();
    let (encrypted, unencrypted) = (rig.encrypted(), rig.create(&plain()).expect("a volume"));
    let mut last = (0, 0);
    let done = rig.pool.materialize_volume(encrypted.volume_id, &mut |done, total| last = (done, total));
    assert_eq!(done.expect("materialized"), Materialized::Complete { written_bytes: 1 << 20 });
    assert_eq!(last, (1 << 20, 1 << 20));
    let data = fs::read(encrypted.backing.path().expect("a file")).expect("the data");
    assert!(data.chunks(512).all(|sector| sector.iter().any(|&byte| byte != 0)));
    assert_eq!(rig.grants(&encrypted), 0);
    let done = rig.pool.materialize_volume(unencrypted.volume_id, &mut |_, _| {});
    assert_eq!(done.expect("nothing to do"), Materialized::NotEncrypted);
    rig.serve(encrypted.volume_id).stop().expect("a clean end");
}
