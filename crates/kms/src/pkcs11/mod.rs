//! Keys in a PKCS#11 token.

pub(crate) mod uri;

pub use uri::Pkcs11Uri;
