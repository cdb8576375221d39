//! What crosses the two pipes between a process and its key helper.
//!
//! Request, on the helper's standard input, then end of file:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | length of the document, little-endian, at most 1 MiB |
//! | n | JSON: `{"Version":1,"Provider":{…},"Call":{…}}`, with `"Destination":{…}` to re-wrap for another provider |
//! | 1026 | a passphrase, only after `"PassphraseFollows":true`: 2 bytes of length, little-endian, and 1024 for the text |
//!
//! Reply, on its standard output, then end of file:
//!
//! | bytes | field |
//! |---|---|
//! | 4  | length of the document, little-endian, at most 1 MiB |
//! | n  | JSON: `{"Ok":…}` or `{"Error":{"Kind":…,"Operation":…,"Key":…,"Message":…,"RequestId":…}}` |
//! | 64 | the data key, only after `{"Ok":"DataKey"}` |
//!
//! The data key and the passphrase are never part of a document: they go from locked memory to locked memory through
//! the pipe.
//! Both ends come from one build, so there is one version and no negotiation.

use std::io::{self, Read};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ProviderConfig;
use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{Grant, GrantId, GrantRequest, KeyMetadata, Principal, WrappedKey};

/// The longest document either way, in bytes.
pub(super) const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// The length field's width in bytes.
pub(super) const LENGTH_BYTES: usize = 4;
const VERSION: u32 = 1;

/// The names of operations that an error can carry; anything else did not come from our own helper.
const OPERATIONS: [&str; 9] = [
    "DescribeKey",
    "GenerateDataKeyWithoutPlaintext",
    "Decrypt",
    "ReEncrypt",
    "CreateGrant",
    "RetireGrant",
    "OpenKeyStore",
    "Encrypt",
    "OpenProvider",
];

/// What the helper is asked to do, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Request {
    #[serde(deserialize_with = "known_version")]
    version: u32,
    pub(super) provider: ProviderConfig,
    /// Only with `ReEncrypt`: who wraps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) destination: Option<ProviderConfig>,
    /// Where the service manager's credentials are; the helper has no environment to find them in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) credentials: Option<PathBuf>,
    /// Whether a passphrase follows the document.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) passphrase_follows: bool,
    pub(super) call: Call,
}

impl Request {
    pub(super) fn new(provider: ProviderConfig, destination: Option<ProviderConfig>, call: Call) -> Self {
        let (credentials, passphrase_follows) = (None, false);
        Self { version: VERSION, provider, destination, credentials, passphrase_follows, call }
    }
}

/// One call of the trait, with its parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all_fields = "PascalCase", deny_unknown_fields)]
pub(super) enum Call {
    DescribeKey {
        key: String,
    },
    GenerateDataKeyWithoutPlaintext {
        key: String,
        context: EncryptionContext,
    },
    Decrypt {
        #[serde(with = "base64_bytes")]
        wrapped: WrappedKey,
        key: String,
        context: EncryptionContext,
        grant: Option<(GrantId, Principal)>,
        /// Whether only the outcome is wanted: the data key dies with the helper.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        discard: bool,
    },
    ReEncrypt {
        #[serde(with = "base64_bytes")]
        wrapped: WrappedKey,
        from_key: String,
        from_context: EncryptionContext,
        to_key: String,
        to_context: EncryptionContext,
    },
    CreateGrant(GrantRequest),
    RetireGrant {
        key: String,
        grant: GrantId,
    },
}

impl Call {
    /// Whether the embedded store may have to open its root key for it. Describing the default key may make it;
    /// grants are made and retired without any key.
    pub(super) fn may_need_the_root_key(&self) -> bool {
        !matches!(self, Self::CreateGrant(_) | Self::RetireGrant { .. })
    }

    /// The operation's name and the key it is about, for errors that the helper cannot tell of itself.
    pub(super) fn subject(&self) -> (&'static str, &str) {
        match self {
            Self::DescribeKey { key } => ("DescribeKey", key),
            Self::GenerateDataKeyWithoutPlaintext { key, .. } => ("GenerateDataKeyWithoutPlaintext", key),
            Self::Decrypt { key, .. } => ("Decrypt", key),
            Self::ReEncrypt { to_key, .. } => ("ReEncrypt", to_key),
            Self::CreateGrant(request) => ("CreateGrant", &request.key),
            Self::RetireGrant { key, .. } => ("RetireGrant", key),
        }
    }
}

/// The reply's document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Reply {
    Ok(Answer),
    Error(Failure),
}

/// The answer to one call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum Answer {
    Key(Box<KeyMetadata>),
    WrappedKey(#[serde(with = "base64_bytes")] WrappedKey),
    /// 64 bytes follow the document.
    DataKey,
    /// The data key was unwrapped and thrown away.
    Decryptable,
    Grant(Grant),
    Retired,
}

/// A `KmsError` on its way; the cause is folded into the message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Failure {
    kind: KmsErrorKind,
    operation: String,
    key: String,
    message: String,
    request_id: String,
}

impl From<KmsError> for Failure {
    fn from(error: KmsError) -> Self {
        let message = match &error.source {
            Some(source) => format!("{}: {source}", error.message),
            None => error.message,
        };
        let operation = error.operation.to_owned();
        Self { kind: error.kind, operation, key: error.key, message, request_id: error.request_id }
    }
}

impl Failure {
    /// The error as the provider raised it; `None` if no provider of ours has such an operation.
    pub(super) fn into_error(self) -> Option<KmsError> {
        let operation = OPERATIONS.into_iter().find(|name| *name == self.operation)?;
        let Self { kind, key, message, request_id, .. } = self;
        Some(KmsError { kind, operation, key, message, request_id, source: None })
    }
}

/// A document with its length before it.
pub(super) fn encode(document: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(document)?;
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= DOCUMENT_BYTES_MAX);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the document is too long"))?;
    Ok([&length.to_le_bytes()[..], &json].concat())
}

/// The length that a document's length field announces; `None` if it is more than a document may have.
pub(super) fn announced_length(field: [u8; LENGTH_BYTES]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(field)).ok().filter(|length| *length <= DOCUMENT_BYTES_MAX)
}

/// Reads one document from a stream that blocks.
pub(super) fn read<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut field = [0; LENGTH_BYTES];
    stream.read_exact(&mut field)?;
    let too_long = || io::Error::new(io::ErrorKind::InvalidData, "the document is too long");
    let mut json = vec![0; announced_length(field).ok_or_else(too_long)?];
    stream.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

fn known_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        other => Err(D::Error::custom(format!("unknown protocol version {other}"))),
    }
}

/// A wrapped key as a base64 string.
mod base64_bytes {
    use super::{Deserialize, Deserializer, Engine, STANDARD, Serializer, WrappedKey};
    use serde::de::Error;

    pub(super) fn serialize<S: Serializer>(wrapped: &WrappedKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&wrapped.0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WrappedKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(WrappedKey).map_err(D::Error::custom)
    }
}
