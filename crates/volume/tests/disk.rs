//! Property: whatever its kind, a volume answers as a disk would, and what it stores is what the format says.

mod rig;

use proptest::prelude::*;
use rig::op::{Op, SECTORS, apply, op};
use sealblk_block::{BlockDevice, Durability, Lba, MemoryDevice, SECTOR_BYTES, SectorRange, ZeroMode};
use sealblk_testkit::Model;
use sealblk_volume::{Cipher, Volume};

/// Runs `ops` on two lanes in turn; the plaintext at the end, which the model allows.
async fn exercise<C: Cipher, D: BlockDevice>(volume: &Volume<C, D>, ops: &[Op]) -> Vec<u8> {
    let lanes = [volume.open_lane().expect("a lane"), volume.open_lane().expect("a lane")];
    let mut model = Model::new(usize::try_from(SECTORS).expect("small") * SECTOR_BYTES);
    for (index, op) in ops.iter().enumerate() {
        apply(&lanes[index % 2], &mut model, op).await.expect("every operation succeeds");
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
