//! Kernels written for one processor architecture.
mod absent;
pub(crate) use absent::{VectorCipher, is_available};
