//! Secret bytes of a fixed size: data keys, and keys derived from them.

use std::fmt;

use crate::page::{Backing, Page, backing};
use crate::{KeyMemError, Locked};

/// Length of a volume's data key in bytes: two AES-256 keys (design §4.1).
pub const DATA_KEY_BYTES: usize = 64;

/// A volume's data key.
pub type DataKey = Secret<DATA_KEY_BYTES>;

/// `N` secret bytes in locked pages.
///
/// Not `Clone`, not `PartialEq`, `Debug` shows nothing, wiped on drop. In a child made by `fork` without
/// `exec` the pages do not exist: [`expose`](Self::expose) there is a fault, dropping does nothing.
pub struct Secret<const N: usize>(Locked<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Lets `fill` write the secret straight into locked memory, which holds zeros when `fill` gets it.
    ///
    /// Reading from a descriptor into it works (`read(2)`); O_DIRECT and registered io_uring buffers do not.
    /// After `fill` the stack it used is scrubbed ([`scrub_stack`](crate::scrub_stack)) and the pages are made
    /// read-only. Costs about ten system calls and a page of the process's `RLIMIT_MEMLOCK`.
    ///
    /// # Errors
    /// There is no lockable memory, or what `fill` returned; whatever it wrote by then is wiped and unmapped.
    pub fn init<E: From<KeyMemError>>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        Self::init_on(backing(), fill)
    }

    /// As [`init`](Self::init), in the kind of memory asked for instead of the best there is: for tests.
    ///
    /// # Errors
    /// As [`init`](Self::init); also that the kernel does not offer this kind.
    pub fn init_on<E: From<KeyMemError>>(
        backing: Backing,
        fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>,
    ) -> Result<Self, E> {
        Ok(Self(Locked::from_page(Page::fill(backing, fill)?)))
    }

    /// Reads the secret in the scope of `read`.
    ///
    /// What `read` copies out of it is no longer protected.
    pub fn expose<R>(&self, read: impl FnOnce(&[u8; N]) -> R) -> R {
        self.0.expose(read)
    }

    /// Which kind of memory this secret is in.
    pub fn backing(&self) -> Backing {
        self.0.backing()
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_gets_zeros_and_expose_gives_what_it_wrote() {
        let key = DataKey::init(|bytes| {
            assert!(bytes.iter().all(|&byte| byte == 0));
            for (place, byte) in (1u8..).zip(bytes.iter_mut()) {
                *byte = place;
            }
            Ok::<_, KeyMemError>(())
        });
        let key = key.expect("locked memory");
        assert!(key.expose(|bytes| bytes.iter().copied().eq(1..=64)));
    }

    #[test]
    fn error_of_fill_is_handed_on() {
        #[derive(Debug)]
        enum Failure {
            Memory,
            OutOfKeys,
        }
        impl From<KeyMemError> for Failure {
            fn from(_: KeyMemError) -> Self {
                Self::Memory
            }
        }
        let refused = DataKey::init(|_| Err(Failure::OutOfKeys));
        assert!(matches!(refused, Err(Failure::OutOfKeys)));
        assert!(!matches!(refused, Err(Failure::Memory)));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        let key = Secret::<4>::init(|bytes| {
            *bytes = [0xde, 0xad, 0xbe, 0xef];
            Ok::<_, KeyMemError>(())
        });
        assert_eq!(format!("{:?}", key.expect("locked memory")), "Secret<4>(redacted)");
    }

    #[test]
    fn secrets_of_no_bytes_and_of_many_pages_work() {
        let none = Secret::<0>::init(|_| Ok::<_, KeyMemError>(())).expect("locked memory");
        assert_eq!(none.expose(|bytes| bytes.len()), 0);
        let many = Secret::<10_000>::init(|bytes| {
            bytes.fill(7);
            Ok::<_, KeyMemError>(())
        });
        assert!(many.expect("locked memory").expose(|bytes| bytes.iter().all(|&byte| byte == 7)));
    }
}
