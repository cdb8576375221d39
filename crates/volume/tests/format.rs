//! What is stored, byte for byte, and what is read where nothing was stored.

mod rig;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Durability, Extent, Lba, MemoryDevice, SectorRange, ZeroMode,
};
use sealblk_volume::{Access, Encryption, VolumeRecord, XtsEncryption};

const MIB: u64 = 1 << 20;
const SECTORS: u64 = MIB / 512;

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn r06_a_marker_is_on_the_device_of_a_plain_volume_and_not_of_an_encrypted_one() {
    let marker = b"the marker that must not be seen";
    let bytes = marker.repeat(128);
    let (open, shut) = (MemoryDevice::new(SECTORS), MemoryDevice::new(SECTORS));
    rig::run(async {
        rig::write(&rig::plain(open.clone(), true).open_lane().expect("lane"), 100, &bytes).await;
        assert!(holds(&rig::read_all(&open).await, marker));
    });
    let volume = rig::encrypted(shut.clone(), &rig::key(1), true);
    rig::run(async {
        rig::write(&volume.open_lane().expect("lane"), 100, &bytes).await;
        assert!(holds(&rig::read_all(&volume).await, marker));
        assert!(!holds(&rig::read_all(&shut).await, &marker[..16]));
    });
}

#[test]
fn r10_the_tweak_is_the_logical_sector_number_however_a_write_is_split() {
    let key = rig::key(1);
    let data = rig::pattern(7, 64);
    let expected = rig::Oracle::new(&rig::key_bytes(1)).encrypt(1000, &data);
    for split in [1, 2, 7, 63, 64] {
        let device = MemoryDevice::new(SECTORS);
        let volume = rig::encrypted(device.clone(), &key, true);
        rig::run(async {
            let lane = volume.open_lane().expect("lane");
            for (index, part) in data.chunks(split * 512).enumerate() {
                rig::write(&lane, 1000 + (index * split) as u64, part).await;
            }
            let stored = device.open_lane().expect("lane");
            assert_eq!(rig::read(&stored, 1000, 64).await, expected, "split in {split}");
        });
    }
}

#[test]
fn unwritten_trimmed_and_zeroed_sectors_are_zeros_above_and_below() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::encrypted(device.clone(), &rig::key(1), true);
    rig::run(async {
        assert!(rig::read_all(&volume).await.iter().all(|byte| *byte == 0), "unwritten");
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 0, &rig::pattern(1, 1024)).await;
        let range = |start| SectorRange { start: Lba(start), count: 256 };
        lane.zero(range(0), ZeroMode::MayUnmap, Durability::Volatile).await.expect("zero");
        lane.zero(range(256), ZeroMode::KeepAllocated, Durability::Volatile).await.expect("zero");
        lane.discard(range(512), Durability::Volatile).await.expect("discard");
        for shown in [rig::read_all(&volume).await, rig::read_all(&device).await] {
            assert!(shown[..768 * 512].iter().all(|byte| *byte == 0));
            assert!(shown[768 * 512..1024 * 512].iter().any(|byte| *byte != 0), "the rest stays");
        }
    });
}

#[test]
fn written_zeros_are_stored_encrypted_and_are_data() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::encrypted(device.clone(), &rig::key(1), true);
    rig::run(async {
        rig::write(&volume.open_lane().expect("lane"), 8, &[0; 4096]).await;
        let lane = device.open_lane().expect("lane");
        let expected = rig::Oracle::new(&rig::key_bytes(1)).encrypt(8, &[0; 4096]);
        assert_eq!(rig::read(&lane, 8, 8).await, expected);
    });
}

#[test]
fn a_no_discard_volume_ignores_trim_and_refuses_fast_zero() {
    let device = MemoryDevice::new(SECTORS);
    let volume = rig::encrypted(device.clone(), &rig::key(1), false);
    let range = SectorRange { start: Lba(0), count: SECTORS };
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        let data = rig::pattern(3, 2048);
        rig::write(&lane, 0, &data).await;
        lane.discard(range, Durability::Durable).await.expect("discard");
        for mode in [ZeroMode::FastOnly, ZeroMode::FastKeepAllocated] {
            let refused = lane.zero(range, mode, Durability::Volatile).await;
            assert!(matches!(refused, Err(BlockError::Unsupported { .. })), "{refused:?}");
        }
        assert_eq!(rig::read_all(&volume).await, data);
        // 1 MiB is four pieces.
        lane.zero(range, ZeroMode::MayUnmap, Durability::Durable).await.expect("zero");
        assert!(rig::read_all(&volume).await.iter().all(|byte| *byte == 0));
        let expected = rig::Oracle::new(&rig::key_bytes(1)).encrypt(0, &vec![0; 1 << 20]);
        assert_eq!(rig::read_all(&device).await, expected);
    });
}

#[test]
fn holes_of_the_device_are_holes_that_read_as_zeros() {
    let volume = rig::encrypted(MemoryDevice::new(SECTORS), &rig::key(1), true);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 1024, &rig::pattern(1, 1)).await;
        let mut extents: Vec<Extent> = Vec::with_capacity(8);
        lane.extents(SectorRange { start: Lba(0), count: SECTORS }, &mut extents).await.expect("extents");
        let first = extents.first().expect("one");
        assert!(first.allocation.hole && first.allocation.zero);
        assert_eq!(first.count, 1024);
        let second = extents.get(1).expect("another");
        assert!(!second.allocation.hole && !second.allocation.zero);
    });
}

#[test]
fn a_volume_shorter_than_its_device_leaves_the_rest_alone() {
    let device = MemoryDevice::new(SECTORS + 64);
    let tail = rig::pattern(9, 64);
    let record = rig::encrypted_record(MIB);
    rig::run(async { rig::write(&device.open_lane().expect("lane"), SECTORS, &tail).await });
    // The tail is not the volume's, so that it does not count as data of the volume.
    let sealed = rig::seal(&record, &rig::key(1), &device).expect("blank");
    let volume = rig::open_encrypted(&sealed, &rig::key(1), device.clone()).expect("opens");
    assert_eq!(volume.geometry().sectors, SECTORS);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        let range = SectorRange { start: Lba(0), count: SECTORS };
        lane.zero(range, ZeroMode::KeepAllocated, Durability::Volatile).await.expect("zero");
        assert_eq!(rig::read(&device.open_lane().expect("lane"), SECTORS, 64).await, tail);
    });
}

#[test]
#[should_panic(expected = "within the volume")]
fn a_request_beyond_the_volume_never_reaches_the_device() {
    let device = MemoryDevice::new(SECTORS + 64);
    let sealed = rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &device).expect("blank");
    let volume = rig::open_encrypted(&sealed, &rig::key(1), device).expect("opens");
    rig::run(async { rig::read(&volume.open_lane().expect("lane"), SECTORS - 1, 2).await });
}

#[test]
fn r13_ciphertext_moves_unchanged_to_a_volume_of_the_same_data_key() {
    let (source, target) = (MemoryDevice::new(SECTORS), MemoryDevice::new(SECTORS));
    let key = rig::key(1);
    let data = rig::pattern(5, 2048);
    let volume = rig::encrypted(source.clone(), &key, true);
    rig::run(async {
        rig::write(&volume.open_lane().expect("lane"), 0, &data).await;
        rig::write(&target.open_lane().expect("lane"), 0, &rig::read_all(&source).await).await;
    });
    // Another volume of the same lineage, restored from a snapshot.
    let restored = VolumeRecord { volume_id: rig::volume_id(2), ..rig::restored_record(MIB, &key) };
    let original = rig::encrypted_record(MIB);
    let key_id = |record: &VolumeRecord| match &record.encryption {
        Encryption::Aes256Xts(encryption) => encryption.data_key_id(),
        Encryption::Plain {} => unreachable!("they are encrypted"),
    };
    assert_eq!(key_id(&restored), key_id(&original));
    let sealed = rig::seal(&restored, &key, &target).expect("its snapshot accounts for the data");
    let volume = rig::open_encrypted(&sealed, &key, target).expect("opens");
    assert_eq!(rig::run(rig::read_all(&volume)), data);
}

#[test]
fn r11_rewrapping_the_data_key_needs_no_new_seal() {
    let device = MemoryDevice::new(SECTORS);
    let key = rig::key(1);
    let sealed = rig::seal(&rig::encrypted_record(MIB), &key, &device).expect("blank");
    let mut json = serde_json::to_value(&sealed).expect("json");
    json["Encryption"]["WrappedKey"] = "YW5vdGhlciB3cmFwcGluZw==".into();
    json["Encryption"]["KmsKeyId"] = "arn:aws:kms:eu-central-1:000000000000:key/another".into();
    let rewrapped: VolumeRecord = serde_json::from_value(json).expect("a record");
    rig::open_encrypted(&rewrapped, &key, device).expect("opens");
}

#[test]
fn r12_the_record_holds_no_part_of_the_data_key() {
    use base64::Engine;
    let sealed =
        rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &MemoryDevice::new(SECTORS)).expect("blank");
    let shown = format!("{}{sealed:?}", serde_json::to_string(&sealed).expect("json"));
    let key = rig::key_bytes(1);
    for part in [&key[..], &key[..32], &key[32..]] {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(part);
        // Without the last characters, which depend on what follows.
        assert!(!shown.contains(&hex) && !shown.contains(&base64[..40]));
        assert!(!holds(shown.as_bytes(), part));
    }
    assert!(matches!(sealed.access(), Access::Encrypted(volume) if volume.is_sealed()));
}

#[test]
fn a_record_survives_json() {
    let sealed =
        rig::seal(&rig::encrypted_record(MIB), &rig::key(1), &MemoryDevice::new(SECTORS)).expect("blank");
    for record in [rig::plain_record(MIB), rig::encrypted_record(MIB), sealed] {
        let json = serde_json::to_string(&record).expect("json");
        assert_eq!(serde_json::from_str::<VolumeRecord>(&json).expect("parses"), record);
    }
    // The two kinds are told apart by the cipher's name alone.
    assert!(matches!(rig::encrypted_record(MIB).encryption, Encryption::Aes256Xts(XtsEncryption { .. })));
}

#[test]
fn a_record_says_where_missing_blocks_come_from_and_one_without_that_is_read() {
    let key = rig::key(1);
    let whole = rig::restored_record(MIB, &key);
    let mut json = serde_json::to_value(&whole).expect("JSON");
    assert!(json.get("Restoring").is_none());
    let arn = "arn:aws:kms:eu-central-1:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    let check = json["Encryption"]["ExpectedKeyCheck"].clone();
    json["Restoring"] = serde_json::json!({
        "SnapshotRepository": { "Location": "s3://bucket/prefix", "Options": { "region": "eu-central-1" } },
        "EncryptAnew": {
            "Cipher": "aes-256-xts", "KmsKeyId": arn, "WrappedKey": "d3JhcHBlZA==",
            "EncryptionContextId": "snap-0123456789abcdef0", "Lineage": rig::volume_id(3), "KeyCheck": check,
        },
    });
    let read: VolumeRecord = serde_json::from_value(json.clone()).expect("a record");
    let source = read.source_key().expect("a source");
    assert_eq!((source.kms_key_id.as_str(), source.lineage), (arn, rig::volume_id(3)));
    assert_eq!(serde_json::to_value(&read).expect("JSON"), json);
    let mut plain = json.clone();
    plain["Restoring"]["EncryptAnew"] = serde_json::json!({ "Cipher": "none" });
    let plain: VolumeRecord = serde_json::from_value(plain).expect("a record");
    assert!(plain.source_key().is_none() && plain.restoring.is_some());
    for unknown in ["/Restoring", "/Restoring/EncryptAnew", "/Restoring/SnapshotRepository"] {
        let mut strange = json.clone();
        strange.pointer_mut(unknown).expect("there")["Whatever"] = true.into();
        assert!(serde_json::from_value::<VolumeRecord>(strange).is_err(), "{unknown}");
    }
}
