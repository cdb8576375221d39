//! The trait `Kms` and the values that cross it.

use std::fmt;

use sealblk_keymem::DataKey;
use serde::{Deserialize, Serialize};

use crate::context::EncryptionContext;
use crate::error::KmsError;

/// A data key encrypted under a KMS key: opaque bytes, safe to store and to show. 1 to 6144 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappedKey(pub Vec<u8>);

/// Who calls: `uid:1000`, `host:NAME/vol-…`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Principal(pub String);

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A grant's id: 64 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GrantId(pub String);

/// A key's state (ebs.md C.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
}

/// What DescribeKey tells (ebs.md C.10); serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyMetadata {
    /// UUID.
    pub key_id: String,
    /// `arn:aws:kms:REGION:ACCOUNT:key/UUID`; what a volume stores.
    pub arn: String,
    /// Seconds since the epoch.
    pub creation_date: f64,
    /// Whether `key_state` is `Enabled`.
    pub enabled: bool,
    /// Free text.
    pub description: String,
    /// Always `ENCRYPT_DECRYPT` for a key that volumes can use.
    pub key_usage: String,
    /// The state.
    pub key_state: KeyState,
    /// `CUSTOMER`, or `AWS` for the managed default key.
    pub key_manager: String,
    /// `SYMMETRIC_DEFAULT` for a key that volumes can use.
    pub key_spec: String,
}

/// An action that a grant allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum GrantOperation {
    Decrypt,
}

/// What CreateGrant is asked for (ebs.md C.6).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GrantRequest {
    /// Key ARN.
    pub key: String,
    /// Who may act under the grant.
    pub grantee: Principal,
    /// What it allows.
    pub operations: Vec<GrantOperation>,
    /// Every call under the grant must carry at least these pairs (`EncryptionContextSubset`).
    pub constraint: EncryptionContext,
    /// Idempotency: the same request with the same name gives the same grant.
    pub name: Option<String>,
}

/// What CreateGrant answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// The new grant's id.
    pub id: GrantId,
}

/// What Decrypt is asked for.
#[derive(Clone, Debug)]
pub struct DecryptRequest<'a> {
    /// The wrapped data key.
    pub wrapped: &'a WrappedKey,
    /// The key that must have wrapped it (restricts, as KMS's KeyId does): key ARN.
    pub key: &'a str,
    /// Must equal the context at wrapping.
    pub context: &'a EncryptionContext,
    /// The grant under which the caller acts, and as whom; `None`: the caller's own permission.
    pub grant: Option<(&'a GrantId, &'a Principal)>,
}

/// The six actions Sealblk needs of a key service. `key` is a key id, key ARN, alias name or alias ARN
/// where it says so, else a key ARN.
///
/// Calls block; the caller bounds them in time by making them in a process of their own. An
/// implementation writes an audit record for every call, successful or not, and never puts key
/// material in an error, a log or a return value other than `decrypt`'s locked memory.
pub trait Kms {
    /// Looks a key up by id, ARN or alias. A provider's managed default key (`alias/aws/ebs`) comes
    /// into being at its first look-up.
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError>;

    /// A new 64-byte data key from the service's random source, wrapped under `key` (id, ARN or alias)
    /// and bound to `context`.
    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError>;

    /// Unwraps a data key into locked memory.
    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError>;

    /// Wraps the same data key under `to_key` (id, ARN or alias) for `to_context`; the plaintext stays
    /// inside the service.
    fn re_encrypt(
        &self,
        wrapped: &WrappedKey,
        from_context: &EncryptionContext,
        to_key: &str,
        to_context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError>;

    /// Lets a principal act under constraints until the grant is retired.
    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError>;

    /// Ends a grant. Retiring one that is gone already is `NotFound`.
    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError>;
}
