//! Property: whatever its kind, a volume answers as a disk would, and what it stores is what the format says.

mod rig;

use proptest::prelude::*;
use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Durability, Lba, MemoryDevice, SECTOR_BYTES, SectorRange, ZeroMode,
};
use sealblk_testkit::Model;
use sealblk_volume::{Cipher, Volume};

/// The smallest volume, 1 MiB.
const SECTORS: u64 = 2048;

#[derive(Clone, Debug)]
enum Op {
    Read(SectorRange),
    Write(SectorRange, u64, Durability),
    Zero(SectorRange, ZeroMode, Durability),
    Discard(SectorRange),
    Flush,
}

/// Ranges of whole units, half of them in the first 64 sectors so that they meet; some longer than a piece
/// of encrypted zeros (512 sectors).
fn range(unit: u64) -> impl Strategy<Value = SectorRange> {
    let units = SECTORS / unit;
    let start = prop_oneof![0..64 / unit, 0..units];
    let count = prop_oneof![4 => 1..=32 / unit.min(32), 1 => 1..=units];
    (start, count).prop_map(move |(start, count)| SectorRange {
        start: Lba(start * unit),
        count: count.min(units - start) * unit,
    })
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![3 => Just(Durability::Volatile), 1 => Just(Durability::Durable)]
}

fn mode() -> impl Strategy<Value = ZeroMode> {
    prop_oneof![
        Just(ZeroMode::MayUnmap),
        Just(ZeroMode::KeepAllocated),
        Just(ZeroMode::FastOnly),
        Just(ZeroMode::FastKeepAllocated),
    ]
}

fn op(unit: u64) -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => range(unit).prop_map(Op::Read),
        4 => (range(unit), any::<u64>(), durability()).prop_map(|(range, seed, durability)| Op::Write(range, seed, durability)),
        2 => (range(unit), mode(), durability()).prop_map(|(range, mode, durability)| Op::Zero(range, mode, durability)),
        1 => range(unit).prop_map(Op::Discard),
        1 => Just(Op::Flush),
    ]
}

fn offset(range: SectorRange) -> usize {
    usize::try_from(range.start.byte_offset()).expect("a small volume")
}

fn sectors(range: SectorRange) -> usize {
    usize::try_from(range.count).expect("a small volume")
}

/// Does one operation on a lane and on the model.
async fn apply<L: BlockLane>(lane: &L, model: &mut Model, op: &Op) {
    match *op {
        Op::Read(range) => {
            let seen = rig::read(lane, range.start.0, sectors(range)).await;
            model.check(offset(range), &seen).expect("the model allows what is read");
        }
        Op::Write(range, seed, durability) => {
            let bytes = rig::pattern(seed, sectors(range));
            lane.write(range.start, rig::buffer(&bytes), durability).await.0.expect("write");
            model.write(offset(range), &bytes, durability == Durability::Durable);
        }
        Op::Zero(range, mode, durability) => match lane.zero(range, mode, durability).await {
            Ok(()) => {
                model.zero(offset(range), sectors(range) * SECTOR_BYTES, durability == Durability::Durable);
            }
            Err(BlockError::Unsupported { .. }) => {
                assert!(
                    matches!(mode, ZeroMode::FastOnly | ZeroMode::FastKeepAllocated),
                    "{mode:?} works everywhere"
                );
            }
            Err(error) => panic!("{error}"),
        },
        Op::Discard(range) => {
            lane.discard(range, Durability::Volatile).await.expect("discard");
            model.discard(offset(range), sectors(range) * SECTOR_BYTES);
        }
        Op::Flush => {
            lane.flush().await.expect("flush");
            model.flush();
        }
    }
}

/// Runs `ops` on two lanes in turn; the plaintext at the end, which the model allows.
async fn exercise<C: Cipher, D: BlockDevice>(volume: &Volume<C, D>, ops: &[Op]) -> Vec<u8> {
    let lanes = [volume.open_lane().expect("a lane"), volume.open_lane().expect("a lane")];
    let mut model = Model::new(usize::try_from(SECTORS).expect("small") * SECTOR_BYTES);
    for (index, op) in ops.iter().enumerate() {
        apply(&lanes[index % 2], &mut model, op).await;
    }
    let plaintext = rig::read_all(volume).await;
    model.check(0, &plaintext).expect("the model allows the whole disk");
    plaintext
}

/// What the format says `plaintext` is stored as: sector by sector, either the oracle's ciphertext or, where
/// the sector is zero and `unwritten` sectors are allowed, zeros.
fn assert_stored(stored: &[u8], plaintext: &[u8], unwritten: bool) {
    let oracle = rig::Oracle::new(&rig::key_bytes(1));
    let ciphertext = oracle.encrypt(0, plaintext);
    let sectors = |bytes: &'_ [u8]| bytes.chunks_exact(SECTOR_BYTES).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let all = sectors(stored).into_iter().zip(sectors(plaintext)).zip(sectors(&ciphertext));
    for (sector, ((stored, plaintext), ciphertext)) in all.enumerate() {
        let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        let hole = is_zero(&stored) && is_zero(&plaintext) && unwritten;
        assert!(hole || stored == ciphertext, "sector {sector} is stored as the format does not say");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn r06_r10_an_encrypted_volume_is_a_disk_and_stores_what_xts_mode_computes(
        ops in prop::collection::vec(op(1), 1..40),
    ) {
        let device = MemoryDevice::new(SECTORS);
        let volume = rig::encrypted(device.clone(), &rig::key(1), true);
        let plaintext = rig::run(exercise(&volume, &ops));
        assert_stored(&rig::run(rig::read_all(&device)), &plaintext, true);
    }

    #[test]
    fn an_encrypted_volume_is_a_disk_on_a_device_of_4096_byte_units(ops in prop::collection::vec(op(8), 1..40)) {
        let device = MemoryDevice::new(SECTORS).with_unit(4096);
        let volume = rig::encrypted(device.clone(), &rig::key(1), true);
        let plaintext = rig::run(exercise(&volume, &ops));
        assert_stored(&rig::run(rig::read_all(&device)), &plaintext, true);
    }

    #[test]
    fn a_no_discard_volume_is_a_disk_and_what_was_written_or_zeroed_is_never_a_hole(
        ops in prop::collection::vec(op(1), 1..40),
    ) {
        let device = MemoryDevice::new(SECTORS);
        let volume = rig::encrypted(device.clone(), &rig::key(1), false);
        let everything = Op::Zero(
            SectorRange { start: Lba(0), count: SECTORS }, ZeroMode::MayUnmap, Durability::Volatile,
        );
        let ops: Vec<Op> = std::iter::once(everything).chain(ops).collect();
        let plaintext = rig::run(exercise(&volume, &ops));
        assert_stored(&rig::run(rig::read_all(&device)), &plaintext, false);
    }

    #[test]
    fn r22_r23_the_same_requests_read_the_same_on_encrypted_and_unencrypted_volumes(
        ops in prop::collection::vec(op(1), 1..40),
    ) {
        let under = MemoryDevice::new(SECTORS);
        let plain = rig::plain(under.clone(), true);
        let encrypted = rig::encrypted(MemoryDevice::new(SECTORS), &rig::key(1), true);
        prop_assert_eq!(plain.geometry(), encrypted.geometry());
        let read = rig::run(exercise(&plain, &ops));
        prop_assert_eq!(&read, &rig::run(exercise(&encrypted, &ops)));
        // The null cipher stores what it is given.
        prop_assert_eq!(&read, &rig::run(rig::read_all(&under)));
    }

    #[test]
    fn a_plain_no_discard_volume_is_a_disk(ops in prop::collection::vec(op(1), 1..40)) {
        rig::run(exercise(&rig::plain(MemoryDevice::new(SECTORS), false), &ops));
    }
}
