//! New data keys, for the providers that do not have the service make them.

use std::io;

use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError};

const HALF: usize = DATA_KEY_BYTES / 2;

/// Why there is no data key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataKeyError {
    /// The kernel gave no random bytes.
    #[error("no random bytes")]
    Random(#[source] io::Error),
    /// There is no locked memory.
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
    /// The service gave a key that no volume may have (design §4.1).
    #[error("the two halves of the data key are equal")]
    EqualHalves,
}

/// 64 bytes from the kernel's random source, in locked memory.
pub(crate) fn generate() -> Result<DataKey, DataKeyError> {
    draw(|bytes| getrandom::fill(bytes).map_err(io::Error::from))
}

/// 64 bytes from `fill` into locked memory; drawn again while the two halves are equal (design §4.1).
fn draw(mut fill: impl FnMut(&mut [u8]) -> io::Result<()>) -> Result<DataKey, DataKeyError> {
    DataKey::init(|bytes| {
        loop {
            fill(bytes).map_err(DataKeyError::Random)?;
            if halves_differ(bytes) {
                return Ok(());
            }
        }
    })
}

/// Whether a data key is one that a volume may have.
pub(crate) fn halves_differ(bytes: &[u8; DATA_KEY_BYTES]) -> bool {
    let (data_half, tweak_half) = bytes.split_at(HALF);
    data_half != tweak_half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_equal_halves_are_drawn_again() {
        let mut draws = 0;
        let key = draw(|bytes| {
            draws += 1;
            bytes.fill(7);
            if draws == 3 {
                bytes[0] = 8;
            }
            Ok(())
        });
        key.expect("a key").expose(|bytes| assert!(halves_differ(bytes)));
        assert_eq!(draws, 3);
    }
}
