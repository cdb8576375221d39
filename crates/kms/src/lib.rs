//! The key seam: what Sealblk asks of a key management service, and the providers that answer.

mod context;
mod error;
mod service;

pub use context::EncryptionContext;
pub use error::{KmsError, KmsErrorKind};
pub use service::{
    DecryptRequest, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, KeyState, Kms, Principal, WrappedKey,
};
