//! The names of the kernels, and which of them this processor has.

use std::fmt;
use std::str::FromStr;

/// One implementation of the sector cipher. All of them compute the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// The `aes` crate's multi-block interface: every processor, and ARM's AES instructions through that crate.
    Portable,
    /// x86-64 AES-NI with PCLMULQDQ: one block a register.
    AesNi,
    /// x86-64 VAES and VPCLMULQDQ with AVX2: two blocks a register.
    Vaes256,
    /// x86-64 VAES and VPCLMULQDQ with AVX-512F: four blocks a register.
    Vaes512,
}

/// All kernels, the fastest first.
const FASTEST_FIRST: [Kernel; 4] = [Kernel::Vaes512, Kernel::Vaes256, Kernel::AesNi, Kernel::Portable];

impl Kernel {
    /// The kernels that this processor (and its operating system) can run, the fastest first.
    ///
    /// Never empty: [`Kernel::Portable`] is the last one everywhere.
    pub fn available() -> impl Iterator<Item = Self> {
        FASTEST_FIRST.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The fastest kernel that this processor can run.
    pub fn fastest() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Whether this processor can run the kernel.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::AesNi | Self::Vaes256 | Self::Vaes512 => crate::arch::is_available(self),
        }
    }

    /// The name that [`Display`](fmt::Display) shows and [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::AesNi => "aes-ni",
            Self::Vaes256 => "vaes-256",
            Self::Vaes512 => "vaes-512",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No kernel has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no cipher kernel is called {name:?}; there are portable, aes-ni, vaes-256 and vaes-512")]
pub struct UnknownKernel {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Kernel {
    type Err = UnknownKernel;

    fn from_str(name: &str) -> Result<Self, UnknownKernel> {
        FASTEST_FIRST
            .into_iter()
            .find(|kernel| kernel.name() == name)
            .ok_or_else(|| UnknownKernel { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for kernel in FASTEST_FIRST {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        assert_eq!("VAES".parse::<Kernel>(), Err(UnknownKernel { name: "VAES".to_owned() }));
    }

    #[test]
    fn the_portable_kernel_is_always_there_and_always_last() {
        assert_eq!(Kernel::available().last(), Some(Kernel::Portable));
        assert_eq!(Kernel::available().next(), Some(Kernel::fastest()));
    }
}
