//! What is refused at attach, each with its reason, and with nothing changed.

mod rig;

use proptest::prelude::*;
use sealblk_block::{BlockDevice, Lba, MemoryDevice};
use sealblk_volume::{OpenError, SealError, SnapshotId, VolumeRecord};
use sealblk_xts::CipherError;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SECTORS: u64 = MIB / 512;

/// What somebody does to a record's JSON.
type Change = fn(&mut Value);

fn device() -> MemoryDevice {
    MemoryDevice::new(SECTORS + 1)
}

fn sealed() -> VolumeRecord {
    rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &device()).expect("a blank device is sealed")
}

/// The error that opening `record` with `key` gives.
fn refusal(record: &VolumeRecord, seed: u8, device: MemoryDevice) -> OpenError {
    rig::open_encrypted(record, &rig::key(seed), device).expect_err("must be refused")
}

fn changed(record: &VolumeRecord, change: impl FnOnce(&mut Value)) -> serde_json::Result<VolumeRecord> {
    let mut json = serde_json::to_value(record).expect("json");
    change(&mut json);
    serde_json::from_value(json)
}

#[test]
fn a_wrong_key_is_refused() {
    assert!(matches!(refusal(&sealed(), 2, device()), OpenError::Seal(SealError::WrongKey)));
    // Also by the step that would seal an unsealed record.
    let error = rig::seal(&sealed(), &rig::key(2), &device()).expect_err("refused");
    assert!(matches!(error, OpenError::Seal(SealError::WrongKey)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_key_with_any_bit_changed_is_refused(bit in 0_usize..512) {
        let mut bytes = rig::key_bytes(1);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let error = rig::open_encrypted(&sealed(), &rig::key_of(bytes), device()).expect_err("refused");
        prop_assert!(matches!(error, OpenError::Seal(SealError::WrongKey)));
    }
}

#[test]
fn every_sealed_field_is_noticed_when_changed() {
    let changes: [(&str, Change); 4] = [
        ("VolumeId", |json| json["VolumeId"] = json!("vol-0123456789abcdef2")),
        ("SizeBytes", |json| json["SizeBytes"] = json!(MIB + 512)),
        ("Discard", |json| json["Discard"] = json!(false)),
        ("Lineage", |json| json["Encryption"]["Lineage"] = json!("vol-0123456789abcdef2")),
    ];
    for (field, change) in changes {
        let record = changed(&sealed(), change).expect("still a record");
        let error = refusal(&record, 1, device());
        assert!(matches!(error, OpenError::Seal(SealError::Tampered)), "{field}: {error:?}");
        assert!(error.to_string().contains(field), "{error}");
    }
    // The seal itself, and what version 1 has only one value for.
    let record = changed(&sealed(), |json| {
        let mac = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        json["Encryption"]["Seal"]["Mac"] = mac;
    });
    let error = refusal(&record.expect("still a record"), 1, device());
    assert!(matches!(error, OpenError::Seal(SealError::Tampered)), "{error:?}");
}

#[test]
fn fields_that_are_not_sealed_may_change() {
    let record = changed(&sealed(), |json| {
        json["Backing"] = json!({"Type": "Path", "Path": "/dev/disk/by-id/another"});
        json["CreateTime"] = json!("2001-01-01T00:00:00Z");
    });
    rig::open_encrypted(&record.expect("a record"), &rig::key(1), device()).expect("opens");
}

#[test]
fn a_truncated_device_is_refused() {
    let short = || MemoryDevice::new(SECTORS - 1);
    let is_truncated = |error: OpenError| match error {
        OpenError::Truncated { expected_bytes, found_bytes } => {
            (expected_bytes, found_bytes) == (MIB, MIB - 512)
        }
        _ => false,
    };
    assert!(is_truncated(refusal(&sealed(), 1, short())));
    assert!(is_truncated(
        rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &short()).expect_err("refused")
    ));
    assert!(is_truncated(rig::open_plain(&rig::plain_record(MIB), short()).expect_err("refused")));
}

#[test]
fn a_size_that_ends_inside_a_device_unit_is_refused() {
    let record = VolumeRecord { ..rig::plain_record(MIB + 512) };
    let error =
        rig::open_plain(&record, MemoryDevice::new(SECTORS + 8).with_unit(4096)).expect_err("refused");
    assert!(matches!(error, OpenError::PartialUnit { unit_bytes: 4096, .. }), "{error:?}");
}

#[test]
fn an_unsealed_record_does_not_open() {
    assert!(matches!(refusal(&rig::encrypted_record(MIB), 1, device()), OpenError::Unsealed));
}

#[test]
fn an_unsealed_record_of_a_volume_with_data_is_refused_unless_it_says_which_key_the_data_is_under() {
    for sector in [0, 1, 777, SECTORS - 1] {
        let device = device();
        let mut one_byte = vec![0; 512];
        one_byte[511] = 1;
        rig::run(async { rig::write(&device.open_lane().expect("lane"), sector, &one_byte).await });
        // Naming a snapshot is not enough: anybody could.
        let named = Some(SnapshotId::from_random([1; 9]));
        for snapshot_id in [None, named] {
            let record = VolumeRecord { snapshot_id, ..rig::encrypted_record(MIB) };
            let error = rig::seal(&record, &rig::key(1), &device).expect_err("refused");
            let here = matches!(error, OpenError::UnsealedWithData { at } if at == Lba(sector));
            assert!(here, "{error:?}");
        }
        let restored = rig::restored_record(MIB, &rig::key(1));
        rig::seal(&restored, &rig::key(1), &device).expect("it is the snapshot's key");
    }
}

#[test]
fn a_volume_made_from_a_snapshot_takes_no_other_key_than_the_snapshots() {
    let restored = rig::restored_record(MIB, &rig::key(1));
    let error = rig::seal(&restored, &rig::key(2), &device()).expect_err("refused");
    assert!(matches!(error, OpenError::Seal(SealError::WrongKey)), "{error:?}");
    let sealed = rig::seal(&restored, &rig::key(1), &device()).expect("the snapshot's key");
    assert!(matches!(refusal(&sealed, 2, device()), OpenError::Seal(SealError::WrongKey)));
}

#[test]
fn allocated_zeros_do_not_hinder_the_first_attach() {
    for unit in [512, 4096] {
        let device = MemoryDevice::new(SECTORS + 8).with_unit(unit);
        let zeros = vec![0; 100 * 4096];
        rig::run(async { rig::write(&device.open_lane().expect("lane"), 800, &zeros).await });
        rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &device).expect("zeros are no data");
    }
}

#[test]
fn a_key_of_equal_halves_is_refused_before_it_is_sealed_in() {
    let mut bytes = rig::key_bytes(1);
    bytes.copy_within(..32, 32);
    let error = rig::seal(&rig::encrypted_record(MIB), &rig::key_of(bytes), &device()).expect_err("refused");
    assert!(matches!(error, OpenError::Cipher(CipherError::EqualHalves)), "{error:?}");
}

#[test]
fn a_record_with_anything_unknown_or_missing_is_not_read() {
    let refused: [(&str, Change); 13] = [
        ("Shiny", |json| json["Shiny"] = json!(1)),
        ("Shiny", |json| json["Encryption"]["Shiny"] = json!(1)),
        ("Shiny", |json| json["Encryption"]["Seal"]["Shiny"] = json!(1)),
        ("Shiny", |json| json["Backing"]["Shiny"] = json!(1)),
        ("aes-128-cbc", |json| json["Encryption"]["Cipher"] = json!("aes-128-cbc")),
        ("only 512", |json| json["Encryption"]["DataUnitBytes"] = json!(4096)),
        ("only 0", |json| json["Encryption"]["TweakOrigin"] = json!(1)),
        ("multiple of 512", |json| json["SizeBytes"] = json!(MIB + 1)),
        ("64 TiB", |json| json["SizeBytes"] = json!(1_u64 << 60)),
        ("absolute", |json| json["Backing"] = json!({"Type": "Path", "Path": "relative"})),
        ("a KMS key's name", |json| json["Encryption"]["KmsKeyId"] = json!("alias/aws/ebs")),
        ("lower-case hexadecimal", |json| json["VolumeId"] = json!("vol-../../etc/passwd0")),
        ("WrappedKey", |json| {
            json["Encryption"].as_object_mut().expect("an object").remove("WrappedKey");
        }),
    ];
    for (named, change) in refused {
        let error = changed(&sealed(), change).expect_err(named);
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

#[test]
fn a_plain_record_with_a_stray_field_is_not_read() {
    let error = changed(&rig::plain_record(MIB), |json| json["Encryption"]["KmsKeyId"] = json!("x"));
    assert!(error.expect_err("refused").to_string().contains("KmsKeyId"));
}
