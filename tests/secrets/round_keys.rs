//! AES-256's key schedule (FIPS 197, 5.2), written down once more for the tests: the bytes that a process holds
//! besides the key itself, and that give the key away as well.

/// The 15 round keys of encryption, and the 13 of decryption that differ from them (the equivalent inverse cipher's,
/// FIPS 197, 5.3.5).
pub(crate) fn round_keys(key: &[u8; 32]) -> Vec<[u8; 16]> {
    let sbox = substitution_box();
    let mut words: Vec<[u8; 4]> =
        key.chunks_exact(4).map(|word| word.try_into().expect("four bytes")).collect();
    let mut constant = 1;
    for index in 8..60 {
        let mut word = words[index - 1];
        if index % 8 == 0 {
            word.rotate_left(1);
            word = word.map(|byte| sbox[usize::from(byte)]);
            word[0] ^= constant;
            constant = double(constant);
        } else if index % 8 == 4 {
            word = word.map(|byte| sbox[usize::from(byte)]);
        }
        let before = words[index - 8];
        words.push(std::array::from_fn(|byte| word[byte] ^ before[byte]));
    }
    let mut keys: Vec<[u8; 16]> =
        words.chunks_exact(4).map(|four| four.concat().try_into().expect("sixteen bytes")).collect();
    keys.extend_from_within(1..14);
    keys[15..].iter_mut().for_each(inverse_mix_columns);
    keys
}

fn double(byte: u8) -> u8 {
    (byte << 1) ^ (if byte & 0x80 == 0 { 0 } else { 0x1b })
}

fn multiply(byte: u8, factor: u8) -> u8 {
    let powers = std::iter::successors(Some(byte), |&byte| Some(double(byte)));
    powers
        .take(8)
        .enumerate()
        .filter(|(bit, _)| factor >> bit & 1 == 1)
        .fold(0, |sum, (_, power)| sum ^ power)
}

fn substitution_box() -> [u8; 256] {
    std::array::from_fn(|index| {
        let byte = u8::try_from(index).expect("an index of 256");
        let inverse = (0..=255).find(|&other| multiply(byte, other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
    })
}

fn inverse_mix_columns(block: &mut [u8; 16]) {
    for column in block.chunks_exact_mut(4) {
        let old: [u8; 4] = (&*column).try_into().expect("four bytes");
        for (row, byte) in column.iter_mut().enumerate() {
            *byte = [14, 11, 13, 9]
                .iter()
                .enumerate()
                .fold(0, |sum, (at, &factor)| sum ^ multiply(old[(row + at) % 4], factor));
        }
    }
}

/// FIPS 197, appendix A.3: the first word made, and the last; and B of the equivalent inverse cipher in C.3.
#[test]
fn the_schedule_is_that_of_fips_197() {
    let key = [
        0x60, 0x3d, 0xeb, 0x10, 0x15, 0xca, 0x71, 0xbe, 0x2b, 0x73, 0xae, 0xf0, 0x85, 0x7d, 0x77, 0x81, 0x1f,
        0x35, 0x2c, 0x07, 0x3b, 0x61, 0x08, 0xd7, 0x2d, 0x98, 0x10, 0xa3, 0x09, 0x14, 0xdf, 0xf4,
    ];
    let keys = round_keys(&key);
    assert_eq!(keys.len(), 28);
    assert_eq!([keys[0], keys[1]].concat(), key);
    assert_eq!(keys[2][..4], [0x9b, 0xa3, 0x54, 0x11]);
    assert_eq!(keys[14][12..], [0x70, 0x6c, 0x63, 0x1e]);
    // InvMixColumns of MixColumns' well-known example.
    let mut column = [0x8e, 0x4d, 0xa1, 0xbc, 1, 1, 1, 1, 0x4d, 0x7e, 0xbd, 0xf8, 0xc6, 0xc6, 0xc6, 0xc6];
    inverse_mix_columns(&mut column);
    assert_eq!(column, [0xdb, 0x13, 0x53, 0x45, 1, 1, 1, 1, 0x2d, 0x26, 0x31, 0x4c, 0xc6, 0xc6, 0xc6, 0xc6]);
}
