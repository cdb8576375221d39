//! The key seam: what Sealblk asks of a key management service, and the providers that answer.
//!
//! `Kms` is the trait. `local` is the embedded provider. `helper` makes the calls of any provider in a short-lived
//! child process, so that the process that serves I/O holds a data key in locked memory and nowhere else.

#![forbid(unsafe_code)]

mod context;
mod error;
pub mod helper;
pub mod local;
mod service;

pub use context::EncryptionContext;
pub use error::{KmsError, KmsErrorKind};
pub use service::{
    DecryptRequest, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, KeyState, Kms, Principal,
    WrappedKey,
};
