//! The zero test: a sector of zeros is unwritten and decrypts to zeros (design §4.3); no other sector does.

mod support;

use proptest::prelude::*;
use sealblk_xts::{SECTOR_BYTES, SectorCipher};
use support::{Oracle, ciphers, noise, some_key};

/// What decryption must give: zeros for a sector of zeros, else what the oracle says.
fn expected(oracle: &Oracle, first_sector: u64, ciphertext: &[u8]) -> Vec<u8> {
    let mut plaintext = oracle.decrypt(first_sector, ciphertext);
    let sectors = plaintext.chunks_mut(SECTOR_BYTES).zip(ciphertext.chunks(SECTOR_BYTES));
    for (plaintext, _) in sectors.filter(|(_, ciphertext)| ciphertext.iter().all(|byte| *byte == 0)) {
        plaintext.fill(0);
    }
    plaintext
}

/// In place and into a buffer full of something else.
fn decrypt_both_ways(cipher: &SectorCipher, first_sector: u64, ciphertext: &[u8]) -> Vec<u8> {
    let mut in_place = ciphertext.to_vec();
    cipher.decrypt_in_place(first_sector, &mut in_place);
    let mut apart = vec![0xee; ciphertext.len()];
    cipher.decrypt(first_sector, ciphertext, &mut apart);
    assert!(in_place == apart, "{cipher:?}: in place and apart differ");
    apart
}

#[test]
fn only_unwritten_sectors_stay_zero() {
    for cipher in ciphers(some_key()) {
        for count in [1, 2, 15, 16, 17, 64] {
            let zeros = vec![0; count * SECTOR_BYTES];
            assert!(decrypt_both_ways(&cipher, 77, &zeros) == zeros, "{cipher:?}, {count} sectors");
        }
    }
}

#[test]
fn one_nonzero_byte_anywhere_makes_a_sector_written() {
    let oracle = Oracle::new(&some_key());
    for cipher in ciphers(some_key()) {
        for position in 0..SECTOR_BYTES {
            let mut ciphertext = [0; SECTOR_BYTES];
            ciphertext[position] = 1 << (position % 8);
            let plaintext = decrypt_both_ways(&cipher, 5, &ciphertext);
            assert!(plaintext == oracle.decrypt(5, &ciphertext), "{cipher:?}, byte {position}");
        }
    }
}

#[test]
fn encrypted_zeros_are_not_zeros_and_come_back() {
    for cipher in ciphers(some_key()) {
        let mut sectors = vec![0; 40 * SECTOR_BYTES];
        cipher.encrypt_in_place(0, &mut sectors);
        assert!(
            sectors.chunks(SECTOR_BYTES).all(|sector| sector.iter().any(|byte| *byte != 0)),
            "{cipher:?}"
        );
        cipher.decrypt_in_place(0, &mut sectors);
        assert!(sectors.iter().all(|byte| *byte == 0), "{cipher:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn written_and_unwritten_sectors_mix(
        written in prop::collection::vec(any::<bool>(), 1..=64), first in 0..=u64::MAX - 64, seed in any::<u64>(),
    ) {
        let mut ciphertext = noise(seed, written.len() * SECTOR_BYTES);
        for (sector, _) in ciphertext.chunks_mut(SECTOR_BYTES).zip(&written).filter(|(_, written)| !**written) {
            sector.fill(0);
        }
        let expected = expected(&Oracle::new(&some_key()), first, &ciphertext);
        for cipher in ciphers(some_key()) {
            prop_assert!(decrypt_both_ways(&cipher, first, &ciphertext) == expected, "{cipher:?}");
        }
    }
}
