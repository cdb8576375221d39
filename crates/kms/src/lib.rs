//! The key seam: what Sealblk asks of a key management service, and the providers that answer.
//!
//! `Kms` is the trait. Providers: `local` is the embedded key store, `transit` the engine of OpenBao and Vault, `pkcs11`
//! a token or HSM, `exec` an external program; AWS KMS is a crate of its own, for its dependencies. `helper` makes the calls of
//! any provider in a short-lived child process, so that the process that serves I/O holds a data key in locked memory
//! and nowhere else. `routed` chooses the provider by a key's name (`key_uri`) and the pool's `providers`.

#![forbid(unsafe_code)]

mod attempt;
mod context;
mod data_key;
mod error;
pub mod exec;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod helper;
mod key_uri;
pub mod local;
mod material_id;
mod passphrase;
pub mod pkcs11;
mod providers;
mod routed;
mod secret_file;
mod service;
pub mod transit;
mod trusted_file;
mod wrapping;

pub use context::EncryptionContext;
pub use error::{KmsError, KmsErrorKind};
pub use key_uri::{AwsKeyUri, ExecUri, KeyUri, KeyUriError, TransitUri, parse_address};
pub use material_id::wrapped_under;
pub use passphrase::{PASSPHRASE_BYTES_MAX, Passphrase, PassphraseError, PassphraseSource, Unlock};
pub use providers::{
    AppRole, AwsSettings, ExecSettings, Patience, Pkcs11Settings, Providers, TransitLogin, TransitSettings,
};
pub use routed::{Helpers, RoutedKms};
pub use service::{
    DecryptRequest, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, KeyState, Kms, Principal,
    ReEncryptRequest, WrappedKey,
};
