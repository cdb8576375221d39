//! Why there is no locked memory, or why the process could not be hardened.

use std::io;

/// A step of setting up key memory that the kernel refused.
///
/// Every one means the same to the caller: do not go on with a key in this process. `Display` names the step
/// and, where a limit is the usual cause, the limit; the kernel's reason is the `source()`.
#[derive(Debug, thiserror::Error)]
#[error("key memory: cannot {step}")]
pub struct KeyMemError {
    /// What was attempted, to be read after "cannot": "lock pages in memory …".
    pub step: &'static str,
    /// The kernel's reason.
    #[source]
    pub source: io::Error,
}

impl KeyMemError {
    /// For `map_err`: the error of `step`.
    pub(crate) fn at(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self { step, source: errno.into() }
    }
}
