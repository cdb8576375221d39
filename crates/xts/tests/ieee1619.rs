//! The 512-byte XTS-AES-256 vectors of IEEE Std 1619, through the public interface of every kernel.

mod support;

use sealblk_xts::SECTOR_BYTES;

struct Vector {
    sector: u64,
    key: [u8; 64],
    plaintext: [u8; SECTOR_BYTES],
    ciphertext: [u8; SECTOR_BYTES],
}

fn array<const N: usize>(hex: &str) -> [u8; N] {
    assert_eq!(hex.len(), 2 * N);
    std::array::from_fn(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex"))
}

fn vectors() -> Vec<Vector> {
    include_str!("vectors/ieee1619-xts-aes-256.txt")
        .split("\n\n")
        .filter(|record| record.starts_with("VECTOR"))
        .map(|record| {
            let field = |name: &str| {
                let mut lines = record.lines().filter_map(|line| line.split_once(" = "));
                lines.find(|(field, _)| *field == name).expect("every record has every field").1
            };
            Vector {
                sector: u64::from_str_radix(field("DataUnitSeqNumber"), 16).expect("hex"),
                key: array(field("Key")),
                plaintext: array(field("PT")),
                ciphertext: array(field("CT")),
            }
        })
        .collect()
}

#[test]
fn vectors_10_to_14_hold_in_both_directions() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 5);
    for vector in vectors {
        for cipher in support::ciphers(vector.key) {
            let mut sector = vector.plaintext;
            cipher.encrypt_in_place(vector.sector, &mut sector);
            assert_eq!(sector, vector.ciphertext, "{cipher:?}, sector {:#x}", vector.sector);
            cipher.decrypt_in_place(vector.sector, &mut sector);
            assert_eq!(sector, vector.plaintext, "{cipher:?}, sector {:#x}", vector.sector);
        }
    }
}
