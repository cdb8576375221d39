//! What the public interface promises besides the bytes.

mod support;

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sealblk_xts::{CipherError, Kernel, SECTOR_BYTES, SectorCipher};
use support::{ciphers, data_key, some_key};

fn panics(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn equal_halves_are_refused_by_every_kernel() {
    let mut key = some_key();
    key.copy_within(..32, 32);
    for kernel in Kernel::available() {
        let refused = SectorCipher::with_kernel(&data_key(key), kernel);
        assert!(matches!(refused, Err(CipherError::EqualHalves)), "{kernel}");
    }
    // One bit is enough of a difference.
    key[63] ^= 1;
    assert!(SectorCipher::new(&data_key(key)).is_ok());
}

#[test]
fn a_new_cipher_runs_the_fastest_kernel() {
    let cipher = SectorCipher::new(&data_key(some_key())).expect("a cipher");
    assert_eq!(cipher.kernel(), Kernel::fastest());
    for kernel in Kernel::available() {
        let forced = SectorCipher::with_kernel(&data_key(some_key()), kernel).expect("a cipher");
        assert_eq!(forced.kernel(), kernel);
    }
}

#[test]
fn a_kernel_that_the_processor_lacks_is_an_error() {
    for kernel in [Kernel::AesNi, Kernel::Vaes256, Kernel::Vaes512].into_iter().filter(|k| !k.is_available())
    {
        let refused = SectorCipher::with_kernel(&data_key(some_key()), kernel);
        assert!(matches!(refused, Err(CipherError::KernelUnavailable { kernel: named }) if named == kernel));
    }
}

#[test]
fn ciphers_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<SectorCipher>();
    let cipher = SectorCipher::new(&data_key(some_key())).expect("a cipher");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut sectors = vec![3; 100 * SECTOR_BYTES];
                    cipher.encrypt_in_place(1, &mut sectors);
                    sectors
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn debug_and_errors_show_no_key() {
    let cipher = SectorCipher::with_kernel(&data_key(some_key()), Kernel::Portable).expect("a cipher");
    assert_eq!(format!("{cipher:?}"), "SectorCipher { kernel: Portable, .. }");
    let error = CipherError::EqualHalves;
    assert_eq!(error.to_string(), "the two halves of the data key are equal");
    assert!(error.source().is_none());
}

#[test]
fn partial_sectors_and_unequal_lengths_are_refused() {
    for cipher in ciphers(some_key()) {
        let mut buffer = vec![1; 3 * SECTOR_BYTES];
        let other = buffer.clone();
        assert!(panics(|| cipher.encrypt_in_place(0, &mut buffer[..SECTOR_BYTES - 1])));
        assert!(panics(|| cipher.decrypt_in_place(0, &mut buffer[..SECTOR_BYTES + 16])));
        assert!(panics(|| cipher.encrypt(0, &other[..SECTOR_BYTES], &mut buffer[..2 * SECTOR_BYTES])));
        assert!(panics(|| cipher.decrypt(0, &other[..100], &mut buffer[..100])));
        assert!(buffer == other, "{cipher:?} touched a buffer it refused");
    }
}

#[test]
fn the_last_sector_number_is_the_end() {
    for cipher in ciphers(some_key()) {
        let mut buffer = vec![1; 2 * SECTOR_BYTES];
        assert!(panics(|| cipher.encrypt_in_place(u64::MAX, &mut buffer)));
        cipher.encrypt_in_place(u64::MAX - 1, &mut buffer);
        cipher.encrypt_in_place(u64::MAX, &mut buffer[..SECTOR_BYTES]);
        cipher.encrypt_in_place(u64::MAX, &mut []);
    }
}
