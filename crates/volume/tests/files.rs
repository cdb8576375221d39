//! A volume in its directory, through real files: created, stored, attached again, any byte range; and the
//! volumes of earlier releases, which stay readable.

mod rig;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sealblk_block::{
    BlockDevice, BlockLane, ByteDevice, Durability, FileDevice, FileOptions, Lba, MemoryDevice, ZeroMode,
};
use sealblk_record::{RecordError, RecordFile};
use sealblk_testkit::Model;
use sealblk_volume::{Access, Backing, Materialized, Volume, VolumeDirectory, VolumeRecord};
use sealblk_xts::SectorCipher;

const MIB: u64 = 1 << 20;

/// A new encrypted volume in `directory`, stored but never attached.
fn create(directory: &VolumeDirectory, bytes: u64) -> RecordFile<VolumeRecord> {
    let record = rig::encrypted_record(bytes);
    directory.create_data(record.size_bytes).expect("data file");
    let file = RecordFile::new(directory.record_path());
    file.store(&record).expect("store");
    file
}

fn device(directory: &VolumeDirectory) -> FileDevice {
    let path = directory.backing_path(&Backing::File {}).expect("a file has a path");
    FileDevice::open(&path, &FileOptions::default()).expect("data file opens")
}

/// What attach does, in its order: load, unwrap (here: the test key), seal if it is the first time, open.
fn attach(directory: &VolumeDirectory) -> Volume<SectorCipher, FileDevice> {
    let file: RecordFile<VolumeRecord> = RecordFile::new(directory.record_path());
    let mut record = file.load().expect("load");
    let device = device(directory);
    if matches!(record.access(), Access::Encrypted(volume) if !volume.is_sealed()) {
        record = rig::seal(&record, &rig::key(1), &device).expect("first attach");
        file.store(&record).expect("store");
    }
    rig::open_encrypted(&record, &rig::key(1), device).expect("opens")
}

#[test]
fn a_volume_is_created_attached_written_and_attached_again() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = VolumeDirectory::new(temporary.path());
    create(&directory, 4 * MIB);
    let data = rig::pattern(1, 1000);
    let volume = attach(&directory);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 3000, &data).await;
        lane.flush().await.expect("flush");
    });
    drop(volume);
    let volume = attach(&directory);
    rig::run(async {
        let shown = rig::read_all(&volume).await;
        assert!(shown[..3000 * 512].iter().all(|byte| *byte == 0));
        assert_eq!(shown[3000 * 512..4000 * 512], data);
    });
    // The documented way out: the data file is what dm-crypt reads, header-less, from its first byte.
    let stored = fs::read(directory.data_path()).expect("data");
    assert_eq!(rig::Oracle::new(&rig::key_bytes(1)).decrypt(3000, &stored[3000 * 512..4000 * 512]), data);
    let allocated = directory.allocated_bytes(&Backing::File {}).expect("stat").expect("a file says");
    assert!((1000 * 512..2 * MIB).contains(&allocated), "{allocated} bytes for 512000 written");
}

#[test]
fn a_truncated_data_file_is_refused_at_attach() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = VolumeDirectory::new(temporary.path());
    create(&directory, 4 * MIB);
    drop(attach(&directory));
    let data = fs::OpenOptions::new().write(true).open(directory.data_path()).expect("open");
    data.set_len(4 * MIB - 512).expect("truncate");
    let record = RecordFile::<VolumeRecord>::new(directory.record_path()).load().expect("load");
    let error = rig::open_encrypted(&record, &rig::key(1), device(&directory)).expect_err("refused");
    let expected = "the volume has 4194304 bytes, the backing 4193792";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn a_damaged_or_unknown_record_is_refused_with_the_reason() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = VolumeDirectory::new(temporary.path());
    let file = create(&directory, MIB);
    let text = fs::read_to_string(file.path()).expect("read");
    let load_of = |text: &str| {
        fs::write(file.path(), text).expect("write");
        file.load().expect_err("refused")
    };
    let damaged = load_of(&text.replace("1048576", "1048577"));
    assert!(matches!(damaged, RecordError::Damaged { .. }), "{damaged}");
    let other = load_of(&text.replace("sealblk-volume", "sealblk-snapshot"));
    assert!(matches!(other, RecordError::WrongFormat { .. }), "{other}");
    assert!(matches!(load_of(&text[..text.len() / 2]), RecordError::Damaged { .. }));
    // With a checksum that fits, as a later release would write it.
    let later = rechecked(&text.replace("\"Version\": 2", "\"Version\": 3"));
    assert!(matches!(load_of(&later), RecordError::UnknownVersion { found: 3, supported: 2, .. }));
    let unknown = load_of(&rechecked(&text.replace("\"Discard\"", "\"Dedup\": true,\n  \"Discard\"")));
    assert!(unknown.to_string().contains("Dedup"), "{unknown}");
    // The control: a checksum made this way is accepted.
    fs::write(file.path(), rechecked(&text)).expect("write");
    file.load().expect("unchanged");
}

/// `text` with the checksum that fits it: of all before the line that it stands on.
fn rechecked(text: &str) -> String {
    use sha2::Digest;
    let (body, _) = text.rsplit_once("  \"Checksum\"").expect("a checksum");
    let digits: String = sha2::Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{body}  \"Checksum\": \"sha256:{digits}\"\n}}\n")
}

/// What a client asks for: any bytes.
#[derive(Clone, Debug)]
enum ByteOp {
    Write(usize, usize, u64),
    Zero(usize, usize),
    Read(usize, usize),
}

fn byte_range() -> impl Strategy<Value = (usize, usize)> {
    let size = usize::try_from(MIB).expect("small");
    let start = prop_oneof![0..5000_usize, 0..size];
    let length = prop_oneof![1..2000_usize, 1..size];
    (start, length).prop_map(move |(start, length)| (start, length.min(size - start)))
}

fn byte_op() -> impl Strategy<Value = ByteOp> {
    prop_oneof![
        (byte_range(), any::<u64>()).prop_map(|((at, length), seed)| ByteOp::Write(at, length, seed)),
        byte_range().prop_map(|(at, length)| ByteOp::Zero(at, length)),
        byte_range().prop_map(|(at, length)| ByteOp::Read(at, length)),
    ]
}

async fn exercise_bytes<D: BlockDevice>(device: ByteDevice<D>, ops: &[ByteOp]) {
    let lane = device.open_lane(4).expect("lane");
    let mut model = Model::new(usize::try_from(MIB).expect("small"));
    for op in ops {
        match *op {
            ByteOp::Write(at, length, seed) => {
                let bytes = &rig::pattern(seed, length.div_ceil(512))[..length];
                lane.write(at as u64, rig::buffer(bytes), Durability::Volatile).await.0.expect("write");
                model.write(at, bytes, false);
            }
            ByteOp::Zero(at, length) => {
                let mode = ZeroMode::MayUnmap;
                lane.zero(at as u64, length as u64, mode, Durability::Volatile).await.expect("zero");
                model.zero(at, length, false);
            }
            ByteOp::Read(at, length) => {
                let (result, seen) = lane.read(at as u64, rig::buffer(&vec![0xAA; length])).await;
                result.expect("read");
                model.check(at, &seen).expect("the model allows what is read");
            }
        }
    }
    model.check(0, &rig::read_all(device.device()).await).expect("the model allows the whole disk");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_byte_range_of_an_encrypted_volume_works(ops in prop::collection::vec(byte_op(), 1..30)) {
        for (unit, discard) in [(512, true), (4096, true), (512, false)] {
            let device = MemoryDevice::new(MIB / 512).with_unit(unit);
            let volume = rig::encrypted(device, &rig::key(1), discard);
            rig::run(exercise_bytes(ByteDevice::new(volume), &ops));
        }
    }

    #[test]
    fn any_byte_range_of_an_encrypted_volume_in_a_file_works(ops in prop::collection::vec(byte_op(), 1..30)) {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = VolumeDirectory::new(temporary.path());
        create(&directory, MIB);
        rig::run(exercise_bytes(ByteDevice::new(attach(&directory)), &ops));
    }
}

#[test]
fn a_block_that_is_zeroed_is_a_hole_in_the_data_file_again() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = VolumeDirectory::new(temporary.path());
    create(&directory, 4 * MIB);
    let allocated = || directory.allocated_bytes(&Backing::File {}).expect("stat").expect("a file says");
    let volume = attach(&directory);
    rig::run(async {
        let lane = volume.open_lane().expect("lane");
        rig::write(&lane, 0, &rig::pattern(1, 4096)).await;
        lane.flush().await.expect("flush");
        let full = allocated();
        let whole = sealblk_block::SectorRange { start: Lba(0), count: 4096 };
        lane.zero(whole, ZeroMode::MayUnmap, Durability::Durable).await.expect("zero");
        assert!(full >= 2 * MIB && allocated() <= full - 2 * MIB, "{full} then {}", allocated());
        assert!(rig::read_all(&volume).await.iter().all(|byte| *byte == 0));
    });
}

/// A volume that release 0.1 wrote (fixtures/v1/README.md).
fn fixture(into: &Path) -> VolumeDirectory {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    for name in ["volume.json", "data"] {
        fs::copy(from.join(name), into.join(name)).expect("the fixture is there");
    }
    VolumeDirectory::new(into)
}

/// What the fixture's client wrote.
fn fixture_plaintext() -> Vec<u8> {
    let mut plaintext = vec![0; usize::try_from(MIB).expect("small")];
    plaintext[..8 * 512].copy_from_slice(&rig::pattern(1, 8));
    plaintext[2047 * 512..].copy_from_slice(&rig::pattern(2, 1));
    plaintext
}

#[test]
fn a_volume_of_the_first_release_opens_and_reads_as_it_was_written() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = fixture(temporary.path());
    let record = RecordFile::<VolumeRecord>::new(directory.record_path()).load().expect("load");
    let volume = rig::open_encrypted(&record, &rig::key(1), device(&directory)).expect("opens");
    rig::run(async {
        assert_eq!(rig::read_all(&volume).await, fixture_plaintext());
        // All but the 8 + 1 sectors with data and the 8 with written zeros.
        let done = volume.materialize(|_| ()).await.expect("materialize");
        assert_eq!(done, Materialized::Complete { written_bytes: MIB - 17 * 512 });
    });
}

#[test]
fn this_release_writes_the_record_of_the_first_release_as_it_was_but_for_its_version() {
    let temporary = tempfile::tempdir().expect("a directory");
    let directory = fixture(temporary.path());
    let before = fs::read_to_string(directory.record_path()).expect("read");
    let file = RecordFile::<VolumeRecord>::new(directory.record_path());
    file.store(&file.load().expect("load")).expect("store");
    let expected = rechecked(&before.replace("\"Version\": 1", "\"Version\": 2"));
    assert_eq!(fs::read_to_string(directory.record_path()).expect("read"), expected);
}
