//! How a caller names a key: id, key ARN, alias name or alias ARN (ebs.md A.2, C.3), and the scope (region and
//! account) that ARNs belong to. Parses names; whether such a key exists is the store's question.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest key reference that KMS takes, in bytes.
const REFERENCE_BYTES_MAX: usize = 2048;
/// The longest alias name, `alias/` included, in bytes.
const ALIAS_BYTES_MAX: usize = 256;
/// What every alias name starts with.
const ALIAS_PREFIX: &str = "alias/";

/// The region and account that a key store answers for; both appear in its ARNs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Scope {
    /// The region's name.
    pub region: String,
    /// The account's 12 digits.
    pub account: String,
}

impl Default for Scope {
    /// `local`, account 000000000000.
    fn default() -> Self {
        Self { region: "local".to_owned(), account: "000000000000".to_owned() }
    }
}

impl Scope {
    /// `arn:aws:kms:REGION:ACCOUNT:key/UUID`.
    pub(super) fn key_arn(&self, key: Uuid) -> String {
        format!("{}key/{key}", self.arn_prefix())
    }

    /// `arn:aws:kms:REGION:ACCOUNT:alias/NAME`; `name` includes `alias/`.
    pub(super) fn alias_arn(&self, name: &str) -> String {
        format!("{}{name}", self.arn_prefix())
    }

    /// The service that calls on behalf of who uses a volume or a snapshot: the value of `kms:ViaService`.
    pub(super) fn service(&self) -> String {
        format!("ec2.{}.amazonaws.com", self.region)
    }

    fn arn_prefix(&self) -> String {
        format!("arn:aws:kms:{}:{}:", self.region, self.account)
    }
}

/// A well-formed name of a key.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum KeyReference {
    /// The key itself.
    Id(Uuid),
    /// An alias name, `alias/` included.
    Alias(String),
}

/// Why a text names no key, with the words KMS has for it (ebs.md C.2).
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum ReferenceError {
    #[error(
        "1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member must have length \
         between 1 and 2048"
    )]
    Length,
    #[error("Invalid keyId '{0}'")]
    Shape(String),
    #[error("Invalid arn {0}")]
    ForeignArn(String),
}

impl KeyReference {
    /// Parses any of the four forms.
    pub(super) fn parse(text: &str, scope: &Scope) -> Result<Self, ReferenceError> {
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::Length);
        }
        let shape = || ReferenceError::Shape(text.to_owned());
        if !text.starts_with("arn:") {
            return Self::parse_alias(text).or_else(|| parse_id(text)).ok_or_else(shape);
        }
        let resource = text.strip_prefix(&scope.arn_prefix()).ok_or_else(|| {
            ReferenceError::ForeignArn(text.split(':').nth(3).unwrap_or_default().to_owned())
        })?;
        match resource.strip_prefix("key/") {
            Some(id) => parse_id(id),
            None => Self::parse_alias(resource),
        }
        .ok_or_else(shape)
    }

    /// An alias name, `alias/` included.
    pub(super) fn parse_alias(text: &str) -> Option<Self> {
        let name = text.strip_prefix(ALIAS_PREFIX)?;
        let legal = |c: u8| c.is_ascii_alphanumeric() || b":/_-".contains(&c);
        (!name.is_empty() && text.len() <= ALIAS_BYTES_MAX && name.bytes().all(legal))
            .then(|| Self::Alias(text.to_owned()))
    }
}

/// Only the canonical form: 36 characters, lower case.
fn parse_id(text: &str) -> Option<KeyReference> {
    let id = Uuid::try_parse(text).ok()?;
    (id.hyphenated().to_string() == text).then_some(KeyReference::Id(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    fn parse(text: &str) -> Result<KeyReference, ReferenceError> {
        KeyReference::parse(text, &Scope::default())
    }

    #[test]
    fn the_four_forms_name_the_same_things() {
        let id = Uuid::try_parse(ID).expect("a UUID");
        let alias = || Ok(KeyReference::Alias("alias/aws/ebs".to_owned()));
        assert_eq!(parse(ID), Ok(KeyReference::Id(id)));
        assert_eq!(parse(&Scope::default().key_arn(id)), Ok(KeyReference::Id(id)));
        assert_eq!(parse("alias/aws/ebs"), alias());
        assert_eq!(parse(&Scope::default().alias_arn("alias/aws/ebs")), alias());
    }

    #[test]
    fn other_shapes_are_refused_in_the_words_of_kms() {
        for text in ["x", "alias/", "alias/a b", &ID.to_uppercase(), &ID.replace('-', ""), &"a".repeat(2048)]
        {
            assert_eq!(parse(text), Err(ReferenceError::Shape(text.to_owned())));
        }
        assert_eq!(parse(""), Err(ReferenceError::Length));
        assert_eq!(parse(&"a".repeat(2049)), Err(ReferenceError::Length));
        let foreign = format!("arn:aws:kms:eu-west-1:000000000000:key/{ID}");
        assert_eq!(parse(&foreign).expect_err("another region").to_string(), "Invalid arn eu-west-1");
    }
}
