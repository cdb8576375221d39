//! Keys in a PKCS#11 token: an AES-256 key that never leaves it wraps data keys by AES-GCM, inside the token.
//!
//! A wrapped key is 100 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0  | 7  | magic, ASCII `SEALP11` |
//! | 7  | 1  | version, 1 |
//! | 8  | 12 | GCM IV, from the kernel's random source |
//! | 20 | 64 | the data key, AES-256-GCM ciphertext |
//! | 84 | 16 | GCM tag |
//!
//! Associated data: bytes 0 to 7, then the canonical encryption context. Random IVs allow 2^32 wrappings under one key
//! (NIST SP 800-38D §8.3), which is as many volumes.
//!
//! A module is foreign code: it is loaded only where the pool lists it, only in the helper process, and when it crashes or
//! hangs, that process is all that does. Tokens have no grants: whoever has the PIN may unwrap.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod token;
pub(crate) mod uri;

use std::collections::BTreeMap;
use std::path::PathBuf;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::token::Token;
pub use self::uri::Pkcs11Uri;
use crate::attempt::Attempt;
use crate::context::EncryptionContext;
use crate::data_key::{self, DataKeyError};
use crate::error::{KmsError, KmsErrorKind};
use crate::key_uri::KeyUri;
use crate::service::{KeyMetadata, WrappedKey};
use crate::trusted_file;
use crate::wrapping::WrappingService;

/// Magic and version: a later version has another last byte.
const PREFIX: &[u8; 8] = b"SEALP11\x01";
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const TAG_BITS: u64 = 128;
const SEALED_BYTES: usize = DATA_KEY_BYTES + TAG_BYTES;

/// Which module, and how to log in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Pkcs11Config {
    /// The module's shared library.
    pub module: PathBuf,
    /// The file with the user PIN.
    pub pin_file: Option<PathBuf>,
    /// What the module reads from the environment; the helper's environment has it from the start.
    pub environment: BTreeMap<String, String>,
}

/// The tokens of one module.
#[derive(Debug)]
pub struct Pkcs11Kms {
    config: Pkcs11Config,
}

impl Pkcs11Kms {
    /// Looks at the module's file; loads it with the first call.
    pub fn open(config: &Pkcs11Config) -> Result<Self, KmsError> {
        let module = config.module.display().to_string();
        let attempt = Attempt { operation: "OpenProvider", key: &module };
        trusted_file::require("PKCS#11 module", &config.module)
            .map_err(|error| attempt.misconfigured(&error))?;
        Ok(Self { config: config.clone() })
    }

    fn token<'a>(&self, attempt: Attempt<'a>) -> Result<Token<'a>, KmsError> {
        match KeyUri::parse(attempt.key) {
            Ok(KeyUri::Pkcs11(uri)) => Token::log_in(&self.config, attempt, uri),
            _ => Err(attempt.fail(KmsErrorKind::InvalidRequest, "not a key in a token")),
        }
    }
}

impl WrappingService for Pkcs11Kms {
    fn describe(&self, attempt: Attempt<'_>) -> Result<KeyMetadata, KmsError> {
        self.token(attempt)?.describe()
    }

    fn wrap(
        &self,
        attempt: Attempt<'_>,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let token = self.token(attempt)?;
        let key = token.key()?;
        let mut iv = [0; IV_BYTES];
        getrandom::fill(&mut iv).map_err(|error| attempt.misconfigured(&error))?;
        let associated = associated_data(context);
        let mut iv_for_token = iv;
        let sealed = data_key.expose(|plain| {
            let mechanism = gcm(attempt, &mut iv_for_token, &associated)?;
            token.session.encrypt(&mechanism, key, plain).map_err(|error| token.failed(&error))
        })?;
        // A token that chooses IVs of its own, or cuts tags, would make keys that nobody can unwrap.
        if sealed.len() != SEALED_BYTES || iv_for_token != iv {
            let message = format!("the token's AES-GCM gave {} bytes, or another IV", sealed.len());
            return Err(attempt.fail(KmsErrorKind::Misconfigured, message));
        }
        Ok(WrappedKey([&PREFIX[..], &iv, &sealed].concat()))
    }

    fn unwrap(
        &self,
        attempt: Attempt<'_>,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let foreign =
            || attempt.fail(KmsErrorKind::InvalidCiphertext, "the wrapped key is not one of a PKCS#11 token");
        let (mut iv, sealed) = parse(wrapped).ok_or_else(foreign)?;
        let token = self.token(attempt)?;
        let key = token.key()?;
        let associated = associated_data(context);
        let mechanism = gcm(attempt, &mut iv, &associated)?;
        let plain = token.session.decrypt(&mechanism, key, &sealed);
        let plain = Zeroizing::new(plain.map_err(|error| token.failed(&error))?);
        let plain = <&[u8; DATA_KEY_BYTES]>::try_from(plain.as_slice()).map_err(|_| {
            attempt.fail(
                KmsErrorKind::InvalidCiphertext,
                "what the token unwrapped is not a data key of 64 bytes",
            )
        })?;
        if !data_key::halves_differ(plain) {
            return Err(attempt.misconfigured(&DataKeyError::EqualHalves));
        }
        let locked = DataKey::init(|bytes| {
            *bytes = *plain;
            Ok::<_, DataKeyError>(())
        });
        locked.map_err(|error| attempt.misconfigured(&error))
    }
}

fn gcm<'a>(attempt: Attempt<'_>, iv: &'a mut [u8], associated: &'a [u8]) -> Result<Mechanism<'a>, KmsError> {
    let params =
        GcmParams::new(iv, associated, TAG_BITS.into()).map_err(|error| attempt.misconfigured(&error))?;
    Ok(Mechanism::AesGcm(params))
}

fn associated_data(context: &EncryptionContext) -> Vec<u8> {
    let mut data = PREFIX.to_vec();
    context.append_canonical(&mut data);
    data
}

/// The IV, and ciphertext with tag; `None` when it is not one of ours.
fn parse(wrapped: &WrappedKey) -> Option<([u8; IV_BYTES], [u8; SEALED_BYTES])> {
    let (prefix, rest) = wrapped.0.split_first_chunk::<8>()?;
    let (iv, rest) = rest.split_first_chunk::<IV_BYTES>()?;
    let sealed = <[u8; SEALED_BYTES]>::try_from(rest).ok()?;
    (prefix == PREFIX).then_some((*iv, sealed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_blob_of_exactly_this_shape_is_taken() {
        let whole = [&PREFIX[..], &[7; IV_BYTES], &[9; SEALED_BYTES]].concat();
        assert_eq!(parse(&WrappedKey(whole.clone())), Some(([7; IV_BYTES], [9; SEALED_BYTES])));
        for length in 0..whole.len() {
            assert_eq!(parse(&WrappedKey(whole.get(..length).expect("a part").to_vec())), None);
        }
        assert_eq!(parse(&WrappedKey([&whole[..], &[0]].concat())), None);
        let mut later = whole;
        later[7] = 2;
        assert_eq!(parse(&WrappedKey(later)), None);
    }
}
