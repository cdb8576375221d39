//! Every kernel against an independent implementation, over random keys, lengths, places and alignments.

mod support;

use proptest::prelude::*;
use sealblk_xts::SECTOR_BYTES;
use support::{Oracle, ciphers, noise};

/// More than any batch of any kernel, several times over.
const MAX_SECTORS: usize = 300;

/// A run of sectors: the first one's number and how many. Numbers where carries and sign bits are come often.
fn runs() -> impl Strategy<Value = (u64, usize)> {
    let interesting = prop_oneof![
        any::<u64>(),
        0..1000u64,
        (1u64 << 31) - 400..(1 << 31) + 100,
        (1u64 << 32) - 400..(1 << 32) + 100,
        (1u64 << 63) - 400..(1 << 63) + 100,
        Just(u64::MAX),
    ];
    // Short runs as often as long ones: the remainders of batches are where mistakes live.
    let counts = prop_oneof![1..=40usize, 1..=MAX_SECTORS];
    (interesting, counts).prop_map(|(first, count)| (first.min(u64::MAX - (count as u64 - 1)), count))
}

fn keys() -> impl Strategy<Value = [u8; 64]> {
    any::<[u8; 64]>().prop_filter("halves differ", |key| key[..32] != key[32..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_kernel_agrees_with_xts_mode(
        key in keys(), (first, count) in runs(), seed in any::<u64>(),
        from_offset in 0..64usize, to_offset in 0..64usize,
    ) {
        let oracle = Oracle::new(&key);
        let bytes = count * SECTOR_BYTES;
        // Buffers at any address: aligned to nothing, and differently from each other.
        let input = noise(seed, bytes + from_offset);
        let input = &input[from_offset..];
        let (encrypted, decrypted) = (oracle.encrypt(first, input), oracle.decrypt(first, input));
        let mut output = vec![0; bytes + to_offset];
        let output = &mut output[to_offset..];
        for cipher in ciphers(key) {
            cipher.encrypt(first, input, output);
            prop_assert!(*output == encrypted, "{cipher:?} encrypts");
            cipher.decrypt(first, input, output);
            prop_assert!(*output == decrypted, "{cipher:?} decrypts");
            output.copy_from_slice(input);
            cipher.encrypt_in_place(first, output);
            prop_assert!(*output == encrypted, "{cipher:?} encrypts in place");
            output.copy_from_slice(input);
            cipher.decrypt_in_place(first, output);
            prop_assert!(*output == decrypted, "{cipher:?} decrypts in place");
        }
    }

    #[test]
    fn any_split_of_a_run_gives_the_same_bytes(
        (first, count) in runs(), seed in any::<u64>(), lengths in prop::collection::vec(1..=33usize, 1..24),
    ) {
        let plaintext = noise(seed, count * SECTOR_BYTES);
        for cipher in ciphers(support::some_key()) {
            let mut whole = plaintext.clone();
            cipher.encrypt_in_place(first, &mut whole);
            let (mut encrypted, mut decrypted) = (plaintext.clone(), whole.clone());
            let mut lengths = lengths.iter().cycle();
            let mut start = 0;
            while start < count {
                let end = count.min(start + lengths.next().expect("a cycle"));
                let part = start * SECTOR_BYTES..end * SECTOR_BYTES;
                cipher.encrypt_in_place(first + start as u64, &mut encrypted[part.clone()]);
                cipher.decrypt_in_place(first + start as u64, &mut decrypted[part]);
                start = end;
            }
            prop_assert!(encrypted == whole, "{cipher:?} encrypts in parts");
            prop_assert!(decrypted == plaintext, "{cipher:?} decrypts in parts");
        }
    }
}

#[test]
fn every_length_around_a_batch_agrees_with_xts_mode() {
    let key = support::some_key();
    let oracle = Oracle::new(&key);
    let input = noise(7, 70 * SECTOR_BYTES);
    for cipher in ciphers(key) {
        for count in 0..=70 {
            let input = &input[..count * SECTOR_BYTES];
            let mut output = input.to_vec();
            cipher.encrypt_in_place(u64::MAX - 69, &mut output);
            assert!(output == oracle.encrypt(u64::MAX - 69, input), "{cipher:?}, {count} sectors");
            cipher.decrypt_in_place(u64::MAX - 69, &mut output);
            assert!(output == input, "{cipher:?}, {count} sectors back");
        }
    }
}

#[test]
fn bytes_outside_the_run_stay_as_they_are() {
    let input = noise(3, 37 * SECTOR_BYTES);
    for cipher in ciphers(support::some_key()) {
        for count in 0..=36 {
            let mut framed = vec![0x5a; 64 + input.len() + 64];
            let end = 64 + count * SECTOR_BYTES;
            cipher.encrypt(9, &input[..count * SECTOR_BYTES], &mut framed[64..end]);
            assert!(
                framed[..64].iter().chain(&framed[end..]).all(|byte| *byte == 0x5a),
                "{cipher:?}, {count}"
            );
            framed.fill(0x5a);
            cipher.decrypt(9, &input[..count * SECTOR_BYTES], &mut framed[64..end]);
            assert!(
                framed[..64].iter().chain(&framed[end..]).all(|byte| *byte == 0x5a),
                "{cipher:?}, {count}"
            );
        }
    }
}
