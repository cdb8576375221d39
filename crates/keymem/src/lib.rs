//! Locked memory for keys. (Interface agreed; the pages behind it are being built.)
#![allow(missing_docs, unreachable_pub)]
use std::fmt;

/// Length of a volume's data key in bytes: two AES-256 keys (design §4.1).
pub const DATA_KEY_BYTES: usize = 64;

/// A volume's data key.
pub type DataKey = Secret<DATA_KEY_BYTES>;

/// `N` secret bytes in locked pages: not `Clone`, not `PartialEq`, redacted `Debug`, wiped on drop.
pub struct Secret<const N: usize>(Locked<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Lets `fill` write the secret straight into locked memory (it sees zeros first).
    pub fn init<E: From<KeyMemError>>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut b = Box::new([0u8; N]);
        fill(&mut b)?;
        Ok(Self(Locked(b)))
    }
    /// Reads the secret in the scope of `read`.
    pub fn expose<R>(&self, read: impl FnOnce(&[u8; N]) -> R) -> R {
        read(&self.0.0)
    }
}
impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(redacted)")
    }
}

/// One value (round keys, say) in locked pages, wiped on drop; `Send + Sync` if `T` is.
pub struct Locked<T>(Box<T>);
impl<T> Locked<T> {
    /// Moves what `make` returns into locked pages, and scrubs the stack that `make` used.
    pub fn new(make: impl FnOnce() -> T) -> Result<Self, KeyMemError> {
        Ok(Self(Box::new(make())))
    }
    /// Reads the value in the scope of `read`.
    pub fn expose<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0)
    }
}
impl<T> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked(redacted)")
    }
}

/// Why locked memory could not be had, or the process not hardened.
#[derive(Debug, thiserror::Error)]
#[error("key memory: {step} failed")]
pub struct KeyMemError {
    pub step: &'static str,
    #[source]
    pub source: std::io::Error,
}

/// Makes the process undumpable (PR_SET_DUMPABLE 0, RLIMIT_CORE 0) and unable to gain privileges.
pub fn harden_process() -> Result<(), KeyMemError> {
    Ok(())
}
