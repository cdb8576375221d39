//! What a record says of its data key: the name of the KMS key that wraps it, and the wrapped bytes.
//! Neither is secret. Nothing here can unwrap anything.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest reference taken, as KMS limits KeyId.
const MAX_REFERENCE_BYTES: usize = 2048;
/// Longest wrapped key taken, as KMS limits CiphertextBlob.
const MAX_WRAPPED_BYTES: usize = 6144;

/// The key services that have names of their own for keys (docs/KMS.md); a bare ARN is a key of the embedded store.
const PROVIDERS: [&str; 4] = ["aws-kms:", "transit:", "pkcs11:", "exec:"];

/// The lasting name of a KMS key: `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`, or a URI of another key service. Never an
/// alias, so that moving an alias never changes which key a volume needs (design §4.10).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyReference(String);

impl KeyReference {
    /// The reference's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyReference {
    type Error = InvalidWrap;

    fn try_from(text: String) -> Result<Self, InvalidWrap> {
        let printable = text.bytes().all(|c| c.is_ascii_graphic());
        let names_a_key = match PROVIDERS.iter().find_map(|provider| text.strip_prefix(provider)) {
            Some(rest) => !rest.is_empty() && !rest.starts_with("alias/") && !rest.contains(":alias/"),
            None => is_key_arn(&text),
        };
        if text.len() <= MAX_REFERENCE_BYTES && printable && names_a_key {
            Ok(Self(text))
        } else {
            Err(InvalidWrap::KeyReference)
        }
    }
}

fn is_key_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (arn, partition, service) = (next(), next(), next());
    let (_region, _account, resource) = (next(), next(), next());
    let names_a_key = resource.strip_prefix("key/").is_some_and(|id| !id.is_empty());
    arn == "arn" && !partition.is_empty() && service == "kms" && names_a_key
}

impl From<KeyReference> for String {
    fn from(reference: KeyReference) -> Self {
        reference.0
    }
}

impl fmt::Display for KeyReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A data key encrypted under a KMS key: 1 to 6144 bytes that only that KMS understands. In JSON: base64
/// (RFC 4648 §4, padded), as KMS's CiphertextBlob.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedDataKey(Vec<u8>);

impl WrappedDataKey {
    /// Takes what a KMS answered.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, InvalidWrap> {
        if (1..=MAX_WRAPPED_BYTES).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(InvalidWrap::Length)
        }
    }

    /// The bytes to give to the KMS.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WrappedDataKey {
    /// The length only: the bytes are not secret, but nobody reads them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappedDataKey({} bytes)", self.0.len())
    }
}

impl Serialize for WrappedDataKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for WrappedDataKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(|_| D::Error::custom(InvalidWrap::Base64))?;
        Self::from_bytes(bytes).map_err(D::Error::custom)
    }
}

/// Why something is no key name, or no wrapped key. None repeats what was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidWrap {
    /// Not a key's ARN or URI.
    #[error(
        "not a KMS key's name: expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID, or the URI of a key (docs/KMS.md)"
    )]
    KeyReference,
    /// Not base64.
    #[error("a wrapped key is base64 (RFC 4648 §4, padded)")]
    Base64,
    /// Empty, or longer than any KMS makes it.
    #[error("a wrapped key has 1 to {MAX_WRAPPED_BYTES} bytes")]
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_arn_is_taken_and_an_alias_is_not() {
        let arn = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";
        assert_eq!(KeyReference::try_from(arn.to_owned()).expect("an ARN").as_str(), arn);
        let alias = "arn:aws:kms:eu-central-1:123456789012:alias/aws/ebs";
        for wrong in [
            "",
            "key/1234",
            "alias/aws/ebs",
            alias,
            "arn:aws:ec2:r:1:key/x",
            "arn:aws:kms:r:1:key/",
            "arn:aws:kms:r:1:key/a b",
            "aws-kms:",
            "aws-kms:alias/x?region=r",
            "aws-kms:arn:aws:kms:r:1:alias/x",
            "vault:https://h/transit/keys/ebs",
        ] {
            assert_eq!(KeyReference::try_from(wrong.to_owned()), Err(InvalidWrap::KeyReference), "{wrong}");
        }
    }

    #[test]
    fn the_uri_of_another_service_is_taken() {
        for text in [
            "aws-kms:arn:aws:kms:eu-central-1:123456789012:key/1234abcd?endpoint=http://127.0.0.1:5000",
            "transit:https://vault.example:8200/transit/keys/ebs",
            "pkcs11:token=t;object=ebs%20key",
            "exec:/usr/libexec/wrap?key=main",
        ] {
            assert_eq!(KeyReference::try_from(text.to_owned()).expect(text).as_str(), text);
        }
    }

    #[test]
    fn a_wrapped_key_is_bounded() {
        assert_eq!(WrappedDataKey::from_bytes(vec![]), Err(InvalidWrap::Length));
        assert_eq!(WrappedDataKey::from_bytes(vec![0; 6145]), Err(InvalidWrap::Length));
        assert!(WrappedDataKey::from_bytes(vec![0; 6144]).is_ok());
    }
}
