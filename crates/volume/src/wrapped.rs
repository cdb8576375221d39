//! What a record says of its data key: the name of the KMS key that wraps it, and the wrapped bytes.
//! Neither is secret. Nothing here can unwrap anything.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest ARN taken, as KMS limits KeyId.
const MAX_ARN_BYTES: usize = 2048;
/// Longest wrapped key taken, as KMS limits CiphertextBlob.
const MAX_WRAPPED_BYTES: usize = 6144;

/// The ARN of a KMS key, `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`: never an alias, so that moving an alias
/// never changes which key a volume needs (design §4.10).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KmsKeyArn(String);

impl KmsKeyArn {
    /// The ARN's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KmsKeyArn {
    type Error = InvalidWrap;

    fn try_from(text: String) -> Result<Self, InvalidWrap> {
        let printable = text.bytes().all(|c| c.is_ascii_graphic());
        let mut parts = text.splitn(6, ':');
        let mut next = || parts.next().unwrap_or_default();
        let (arn, partition, service) = (next(), next(), next());
        let (_region, _account, resource) = (next(), next(), next());
        let names_a_key = resource.strip_prefix("key/").is_some_and(|id| !id.is_empty());
        let shaped = arn == "arn" && !partition.is_empty() && service == "kms" && names_a_key;
        if text.len() <= MAX_ARN_BYTES && printable && shaped {
            Ok(Self(text))
        } else {
            Err(InvalidWrap::KeyArn)
        }
    }
}

impl From<KmsKeyArn> for String {
    fn from(arn: KmsKeyArn) -> Self {
        arn.0
    }
}

impl fmt::Display for KmsKeyArn {
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
    /// Not a key's ARN.
    #[error("not a KMS key's ARN: expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID")]
    KeyArn,
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
        assert_eq!(KmsKeyArn::try_from(arn.to_owned()).expect("an ARN").as_str(), arn);
        let alias = "arn:aws:kms:eu-central-1:123456789012:alias/aws/ebs";
        for wrong in [
            "",
            "key/1234",
            "alias/aws/ebs",
            alias,
            "arn:aws:ec2:r:1:key/x",
            "arn:aws:kms:r:1:key/",
            "arn:aws:kms:r:1:key/a b",
        ] {
            assert_eq!(KmsKeyArn::try_from(wrong.to_owned()), Err(InvalidWrap::KeyArn), "{wrong}");
        }
    }

    #[test]
    fn a_wrapped_key_is_bounded() {
        assert_eq!(WrappedDataKey::from_bytes(vec![]), Err(InvalidWrap::Length));
        assert_eq!(WrappedDataKey::from_bytes(vec![0; 6145]), Err(InvalidWrap::Length));
        assert!(WrappedDataKey::from_bytes(vec![0; 6144]).is_ok());
    }
}
