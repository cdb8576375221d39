//! NIST's CAVP vectors (XTSVS), through every kernel.
//!
//! Their data units are two and three blocks long. A data unit of whole blocks is encrypted block by block, so
//! it equals the beginning of a 512-byte data unit with the same tweak value: each vector is put at the start of
//! a sector, and the sector goes through the kernel as any other. One of NIST's two files has 128-bit tweak
//! values, which the public methods cannot express; hence this test is inside the crate.

use sealblk_keymem::{DataKey, KeyMemError};

use crate::cipher::Direction;
use crate::sectors::Sectors;
use crate::{Kernel, SECTOR_BYTES, SectorCipher};

/// One record of a response file.
struct Vector {
    direction: Direction,
    key: [u8; 64],
    tweak_value: u128,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl Vector {
    /// Encrypts or decrypts as the record says, at the start of a sector, in place.
    fn assert_holds(&self, kernel: Kernel) {
        let key = DataKey::init::<KeyMemError>(|bytes| {
            *bytes = self.key;
            Ok(())
        })
        .expect("locked memory");
        let cipher = SectorCipher::with_kernel(&key, kernel).expect("a kernel of this machine");
        let (input, output) = match self.direction {
            Direction::Encrypt => (&self.plaintext, &self.ciphertext),
            Direction::Decrypt => (&self.ciphertext, &self.plaintext),
        };
        let mut sector = [0xa5; SECTOR_BYTES];
        sector[..input.len()].copy_from_slice(input);
        cipher.run(self.direction, self.tweak_value, Sectors::in_place(&mut sector));
        assert_eq!(&sector[..output.len()], output, "{kernel}, tweak value {:#x}", self.tweak_value);
    }
}

fn bytes_of_hex(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex"))
        .collect()
}

/// Reads a response file: `[ENCRYPT]` and `[DECRYPT]` sections of records of `NAME = VALUE` lines.
fn read(file: &str) -> Vec<Vector> {
    let mut vectors = Vec::new();
    let mut direction = None;
    let (mut key, mut tweak_value, mut plaintext) = (None, None, None);
    let mut ciphertext = None;
    for line in file.lines() {
        match line.trim().split_once(" = ") {
            None if line == "[ENCRYPT]" => direction = Some(Direction::Encrypt),
            None if line == "[DECRYPT]" => direction = Some(Direction::Decrypt),
            Some(("Key", hex)) => key = Some(bytes_of_hex(hex).try_into().expect("64 bytes")),
            Some(("i", hex)) => {
                tweak_value = Some(u128::from_le_bytes(bytes_of_hex(hex).try_into().expect("16 bytes")));
            }
            Some(("DataUnitSeqNumber", number)) => tweak_value = Some(number.parse().expect("a number")),
            Some(("PT", hex)) => plaintext = Some(bytes_of_hex(hex)),
            Some(("CT", hex)) => ciphertext = Some(bytes_of_hex(hex)),
            _ => {}
        }
        if plaintext.is_some() && ciphertext.is_some() {
            vectors.push(Vector {
                direction: direction.expect("a section"),
                key: key.take().expect("a key"),
                tweak_value: tweak_value.take().expect("a tweak value"),
                plaintext: plaintext.take().expect("a plaintext"),
                ciphertext: ciphertext.take().expect("a ciphertext"),
            });
        }
    }
    vectors
}

fn assert_all_hold(file: &str) {
    let vectors = read(file);
    for direction in [Direction::Encrypt, Direction::Decrypt] {
        assert_eq!(vectors.iter().filter(|vector| vector.direction == direction).count(), 300);
    }
    for kernel in Kernel::available() {
        vectors.iter().for_each(|vector| vector.assert_holds(kernel));
    }
}

#[test]
fn nist_vectors_with_128_bit_tweak_values() {
    assert_all_hold(include_str!("../tests/vectors/XTSGenAES256-tweak-128hexstr.rsp"));
}

#[test]
fn nist_vectors_with_data_unit_sequence_numbers() {
    assert_all_hold(include_str!("../tests/vectors/XTSGenAES256-tweak-dataunitseqno.rsp"));
}
