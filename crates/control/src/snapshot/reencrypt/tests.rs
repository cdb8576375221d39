//! Tests of re-encryption.

use proptest::collection::vec;
use proptest::prelude::*;
use sealblk_block::Lba;
use sealblk_keymem::KeyMemError;
use sealblk_volume::Cipher;

use super::*;

const BLOCK: usize = BLOCK_BYTES as usize;

fn key(seed: u8) -> DataKey {
    let key = DataKey::init(|bytes| {
        for (place, byte) in (0..).zip(bytes.iter_mut()) {
            *byte = seed.wrapping_mul(31).wrapping_add(place);
        }
        Ok::<_, KeyMemError>(())
    });
    key.expect("locked memory")
}

/// What the volume crate makes of one sector: read under one key, written under the other.
fn one_sector(from: Option<&SectorCipher>, to: &SectorCipher, at: Lba, sector: &mut [u8]) {
    if is_unwritten(sector) {
        return;
    }
    if let Some(from) = from {
        Cipher::decrypt(from, at, sector);
    }
    Cipher::encrypt(to, at, sector);
}

/// Blocks of up to 40 sectors more than one piece, some of them unwritten.
fn blocks() -> impl Strategy<Value = Vec<u8>> {
    let sector = prop_oneof![1 => Just(0_u8), 2 => any::<u8>()];
    vec(sector, 1..=PIECE_BYTES / SECTOR_BYTES + 40).prop_map(|sectors| {
        let bytes = sectors.iter().enumerate().flat_map(|(index, &seed)| {
            (0..SECTOR_BYTES).map(move |at| if seed == 0 { 0 } else { seed ^ (at as u8) ^ (index as u8) | 1 })
        });
        bytes.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_sector_is_what_reading_and_writing_it_gives(
        stored in blocks(), index in 0_u64..1 << 27, encrypted in any::<bool>(),
    ) {
        let (old, new) = (key(1), key(2));
        let work = Reencryption::new(encrypted.then_some(&old), &new).expect("ciphers");
        let from = encrypted.then(|| SectorCipher::new(&old).expect("a cipher"));
        let to = SectorCipher::new(&new).expect("a cipher");
        let mut expected = stored.clone();
        for (at, sector) in (index * SECTORS_PER_BLOCK..).zip(expected.chunks_exact_mut(SECTOR_BYTES)) {
            one_sector(from.as_ref(), &to, Lba(at), sector);
        }
        let found = work.block(index, stored.clone().into()).expect("a block");
        prop_assert!(found == expected);
        for (before, after) in stored.chunks_exact(SECTOR_BYTES).zip(found.chunks_exact(SECTOR_BYTES)) {
            prop_assert_eq!(is_unwritten(before), is_unwritten(after));
            prop_assert!(is_unwritten(before) || before != after);
        }
    }

    #[test]
    fn a_way_back_gives_the_same_bytes(stored in blocks(), index in 0_u64..1 << 27) {
        let (old, new) = (key(3), key(4));
        let there = Reencryption::new(Some(&old), &new).expect("ciphers");
        let back = Reencryption::new(Some(&new), &old).expect("ciphers");
        let between = there.block(index, stored.clone().into()).expect("a block");
        prop_assert!(back.block(index, between).expect("a block") == stored);
    }
}

#[test]
fn encrypted_zeros_stay_encrypted_zeros() {
    let (old, new) = (key(5), key(6));
    let mut stored = vec![0; BLOCK];
    SectorCipher::new(&old).expect("a cipher").encrypt_in_place(7 * SECTORS_PER_BLOCK, &mut stored);
    let work = Reencryption::new(Some(&old), &new).expect("ciphers");
    let mut found = work.block(7, stored.into()).expect("a block").to_vec();
    assert!(found.chunks_exact(SECTOR_BYTES).all(|sector| !is_unwritten(sector)));
    SectorCipher::new(&new).expect("a cipher").decrypt_in_place(7 * SECTORS_PER_BLOCK, &mut found);
    assert!(found.iter().all(|&byte| byte == 0));
}

#[test]
fn the_stores_own_buffer_is_used_and_a_shared_one_is_not_changed() {
    let work = Reencryption::new(None, &key(7)).expect("a cipher");
    let stored = Bytes::from(vec![9; BLOCK]);
    let shared = stored.clone();
    let first = work.block(0, shared).expect("a block");
    assert!(stored.iter().all(|&byte| byte == 9));
    let place = stored.as_ptr();
    let second = work.block(0, stored).expect("a block");
    assert_eq!(first, second);
    assert_eq!(second.as_ptr(), place);
}

#[test]
fn what_is_no_block_of_a_volume_is_refused_unchanged() {
    let work = Reencryption::new(None, &key(8)).expect("a cipher");
    for (index, bytes) in [(0, 511), (0, 513), (0, BLOCK + 512), (1 << 54, 512), (u64::MAX, BLOCK)] {
        let mut block = vec![3; bytes];
        assert_eq!(work.block_in_place(index, &mut block), Err(MisshapenBlock { index, bytes }));
        assert!(block.iter().all(|&byte| byte == 3));
    }
    work.block_in_place(u64::MAX, &mut []).expect_err("no volume is so large");
    work.block_in_place(1, &mut []).expect("nothing to do");
}
