//! How fast each cipher kernel of this processor is, on one thread, in the cache.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sealblk_control::ControlError;
use sealblk_keymem::DataKey;
use sealblk_xts::{Kernel, SECTOR_BYTES, SectorCipher};
use serde::Serialize;

use super::{BenchError, median};
use crate::exit::Failure;

/// Bytes of one call: a sector, a page, a batch.
pub(crate) const CALL_BYTES: [usize; 3] = [512, 4 << 10, 64 << 10];
/// Each figure is the median of so many.
const ROUNDS: usize = 5;
/// The clock is read once for so many bytes.
const BETWEEN_LOOKS_BYTES: usize = 128 << 10;

/// One kernel at one size.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CipherRate {
    /// The kernel's name.
    pub(crate) kernel: &'static str,
    /// Bytes of one call.
    pub(crate) call_bytes: usize,
    /// Encryption, in bytes a second.
    pub(crate) encrypt_bytes_per_second: f64,
    /// Decryption of written sectors, in bytes a second.
    pub(crate) decrypt_bytes_per_second: f64,
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// Measures every kernel at every size in both directions, interleaved, in about `time`.
///
/// `interrupted` ends it early, with an error.
pub(crate) fn measure(time: Duration, interrupted: &AtomicBool) -> Result<Vec<CipherRate>, Failure> {
    let key = random_key()?;
    let ciphers: Vec<SectorCipher> = Kernel::available()
        .map(|kernel| SectorCipher::with_kernel(&key, kernel))
        .collect::<Result<_, _>>()
        .map_err(BenchError::from)?;
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for cipher in &ciphers {
        cells.extend(CALL_BYTES.map(|bytes| Cell {
            cipher,
            bytes,
            encrypt: Vec::new(),
            decrypt: Vec::new(),
        }));
    }
    let slice = time / u32::try_from(cells.len() * 2 * ROUNDS).expect("a few dozen slices");
    for _ in 0..ROUNDS {
        for cell in &mut cells {
            if interrupted.load(Ordering::Relaxed) {
                return Err(BenchError::Interrupted.into());
            }
            let (cipher, bytes) = (cell.cipher, cell.bytes);
            cell.encrypt.push(rate(cipher, bytes, Direction::Encrypt, slice));
            cell.decrypt.push(rate(cipher, bytes, Direction::Decrypt, slice));
        }
    }
    Ok(cells.into_iter().map(Cell::figure).collect())
}

/// One kernel at one size, and what its rounds gave.
struct Cell<'a> {
    cipher: &'a SectorCipher,
    bytes: usize,
    encrypt: Vec<f64>,
    decrypt: Vec<f64>,
}

impl Cell<'_> {
    fn figure(self) -> CipherRate {
        CipherRate {
            kernel: self.cipher.kernel().name(),
            call_bytes: self.bytes,
            encrypt_bytes_per_second: median(self.encrypt),
            decrypt_bytes_per_second: median(self.decrypt),
        }
    }
}

/// Bytes a second of calls of `bytes` bytes each, for about `time`.
fn rate(cipher: &SectorCipher, bytes: usize, direction: Direction, time: Duration) -> f64 {
    let mut sectors = vec![0xa5; bytes];
    let calls = BETWEEN_LOOKS_BYTES / bytes;
    let mut sector = 0;
    let mut done = 0_u64;
    let began = Instant::now();
    loop {
        for _ in 0..calls {
            let sectors = black_box(sectors.as_mut_slice());
            match direction {
                Direction::Encrypt => cipher.encrypt_in_place(sector, sectors),
                Direction::Decrypt => cipher.decrypt_in_place(sector, sectors),
            }
            sector += (bytes / SECTOR_BYTES) as u64;
        }
        done += (calls * bytes) as u64;
        let elapsed = began.elapsed();
        if elapsed >= time {
            return done as f64 / elapsed.as_secs_f64();
        }
    }
}

/// A key that nothing was ever encrypted under and nothing will be kept of.
fn random_key() -> Result<DataKey, ControlError> {
    DataKey::init(|bytes| {
        // Straight into locked memory: a file's read has no buffer of its own.
        let mut source = File::open("/dev/urandom").map_err(ControlError::Random)?;
        source.read_exact(bytes).map_err(ControlError::Random)
    })
}
