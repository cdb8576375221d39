//! Kernels written for one processor architecture; the only place in this crate where unsafe code is.
//!
//! Outside it there is a safe type, [`VectorCipher`]: it exists only for a kernel whose instructions the
//! processor was seen to have, and it is given slices whose lengths [`Sectors`](crate::sectors::Sectors) has
//! checked. Those two facts are what the unsafe code below it rests on. `cipher` calls it.
#![allow(unsafe_code, reason = "processor intrinsics; loads and stores through pointers")]

#[cfg(not(target_arch = "x86_64"))]
mod absent;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use absent::{VectorCipher, is_available};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{VectorCipher, is_available};
