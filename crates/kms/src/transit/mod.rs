//! Keys in the transit engine of OpenBao or Vault.
//!
//! Data keys are made by the server (`datakey/wrapped`) and unwrapped by it (`decrypt`). The encryption context goes along
//! in its canonical form twice: as `associated_data`, which AEAD keys authenticate, and as `context`, from which a derived key
//! is derived (others ignore it). The engine has no grants: the policy of the token is what allows a host to unwrap. Its own
//! `rewrap` is of no use: it takes no associated data, so it could not keep the binding to the context.
//!
//! The server sends a data key as base64 in JSON. The buffers of this module that hold it are wiped; those of the TLS and
//! HTTP libraries are not, which is one reason why this runs in a process that dies (design §4.8).

mod api;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use zeroize::Zeroizing;

use self::api::{Api, Body, Session};
use crate::attempt::Attempt;
use crate::context::EncryptionContext;
use crate::data_key::{DataKeyError, halves_differ};
use crate::error::{KmsError, KmsErrorKind};
use crate::key_uri::{KeyUri, TransitUri};
use crate::providers::TransitLogin;
use crate::service::{KeyMetadata, KeyState, WrappedKey};
use crate::wrapping::WrappingService;

/// What every ciphertext of the engine starts with.
const CIPHERTEXT_PREFIX: &str = "vault:v";
/// 64 bytes in base64, padded.
const DATA_KEY_BASE64_BYTES: usize = 88;
/// What 88 characters of base64 may decode to.
const DECODED_BYTES_MAX: usize = 66;

/// How to reach a server, and be let in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TransitConfig {
    /// `https://HOST:PORT`: the only server that this login is for.
    pub address: String,
    /// Its certificate authorities, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// How to be let in.
    pub login: TransitLogin,
    /// How long one request may take, in milliseconds.
    pub timeout_ms: u64,
}

/// One server's transit engines.
#[derive(Debug)]
pub struct TransitKms {
    api: Api,
}

impl TransitKms {
    /// Reads the certificate authorities; contacts nobody yet.
    pub fn open(config: &TransitConfig) -> Result<Self, KmsError> {
        Ok(Self { api: Api::new(config)? })
    }

    fn begin<'a>(&'a self, attempt: Attempt<'a>) -> Result<(Session<'a>, TransitUri), KmsError> {
        let uri = match KeyUri::parse(attempt.key) {
            Ok(KeyUri::Transit(uri)) if uri.address == self.api.address() => uri,
            _ => return Err(attempt.fail(KmsErrorKind::InvalidRequest, "not a key of this server")),
        };
        Ok((self.api.log_in(attempt)?, uri))
    }
}

/// What the engine tells of a key.
#[derive(Deserialize)]
struct KeyInfo {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    supports_encryption: bool,
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Plaintext<'a> {
    plaintext: &'a str,
}

impl WrappingService for TransitKms {
    fn describe(&self, attempt: Attempt<'_>) -> Result<KeyMetadata, KmsError> {
        let (session, uri) = self.begin(attempt)?;
        describe(&session, &uri)
    }

    fn generate(&self, attempt: Attempt<'_>, context: &EncryptionContext) -> Result<WrappedKey, KmsError> {
        let (session, uri) = self.begin(attempt)?;
        let mut body = Body::with_context(context);
        body.number("bits", DATA_KEY_BYTES * 8);
        let reply = session.post(&uri.path("datakey/wrapped"), &body)?;
        wrapped(attempt, reply.data::<Ciphertext>()?)
    }

    fn wrap(
        &self,
        attempt: Attempt<'_>,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let (session, uri) = self.begin(attempt)?;
        // The engine makes a key that is not there, if the token may: a name with a slip in it would become a key.
        describe(&session, &uri)?;
        let mut plaintext = Zeroizing::new([0; DATA_KEY_BASE64_BYTES]);
        let written = data_key.expose(|bytes| STANDARD.encode_slice(bytes, &mut plaintext[..]));
        assert_eq!(written, Ok(DATA_KEY_BASE64_BYTES), "64 bytes are 88 characters");
        let mut body = Body::with_context(context);
        body.text("plaintext", std::str::from_utf8(&plaintext[..]).expect("base64 is ASCII"));
        let reply = session.post(&uri.path("encrypt"), &body)?;
        wrapped(attempt, reply.data::<Ciphertext>()?)
    }

    fn unwrap(
        &self,
        attempt: Attempt<'_>,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let ciphertext = ciphertext(attempt, wrapped)?;
        let (session, uri) = self.begin(attempt)?;
        let mut body = Body::with_context(context);
        body.text("ciphertext", ciphertext);
        let reply = session.post(&uri.path("decrypt"), &body)?;
        data_key(attempt, reply.data::<Plaintext<'_>>()?.plaintext)
    }
}

fn describe(session: &Session<'_>, uri: &TransitUri) -> Result<KeyMetadata, KmsError> {
    let info: KeyInfo = session.get(&uri.path("keys"))?.data()?;
    let metadata = KeyMetadata::symmetric(&uri.name, uri.to_string(), KeyState::Enabled);
    let authenticates = ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"].contains(&info.kind.as_str());
    if info.supports_encryption && authenticates {
        return Ok(metadata);
    }
    // Neither RSA nor a signing key can bind a context: refused by its kind (requirement 33).
    let usage = if info.supports_encryption { metadata.key_usage.clone() } else { "SIGN_VERIFY".to_owned() };
    let (key_spec, customer_master_key_spec) = (info.kind.clone(), info.kind);
    Ok(KeyMetadata {
        key_usage: usage,
        key_spec,
        customer_master_key_spec,
        encryption_algorithms: vec![],
        ..metadata
    })
}

fn ciphertext<'a>(attempt: Attempt<'_>, wrapped: &'a WrappedKey) -> Result<&'a str, KmsError> {
    let text = std::str::from_utf8(&wrapped.0).ok();
    let text =
        text.filter(|text| text.starts_with(CIPHERTEXT_PREFIX) && text.bytes().all(|c| c.is_ascii_graphic()));
    text.ok_or_else(|| {
        attempt.fail(KmsErrorKind::InvalidCiphertext, "the wrapped key is not one of a transit engine")
    })
}

fn wrapped(attempt: Attempt<'_>, reply: Ciphertext) -> Result<WrappedKey, KmsError> {
    let key = WrappedKey(reply.ciphertext.into_bytes());
    ciphertext(attempt, &key).map_err(|_| {
        attempt.fail(KmsErrorKind::Misconfigured, "the server answered with something that is no ciphertext")
    })?;
    Ok(key)
}

/// The data key that the server sent, into locked memory.
fn data_key(attempt: Attempt<'_>, plaintext: &str) -> Result<DataKey, KmsError> {
    let mut decoded = Zeroizing::new([0; DECODED_BYTES_MAX]);
    let length = match plaintext.len() {
        DATA_KEY_BASE64_BYTES => STANDARD.decode_slice(plaintext, &mut decoded[..]).ok(),
        _ => None,
    };
    let decoded = decoded.first_chunk::<DATA_KEY_BYTES>().expect("66 bytes have 64 at the front");
    if length != Some(DATA_KEY_BYTES) {
        let message = "what the server unwrapped is not a data key of 64 bytes";
        return Err(attempt.fail(KmsErrorKind::InvalidCiphertext, message));
    }
    if !halves_differ(decoded) {
        return Err(attempt.misconfigured(&DataKeyError::EqualHalves));
    }
    DataKey::init(|bytes| {
        *bytes = *decoded;
        Ok::<_, DataKeyError>(())
    })
    .map_err(|error| attempt.misconfigured(&error))
}
