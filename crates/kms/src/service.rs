//! The trait `Kms` and the values that cross it.

use std::fmt;

use jiff::Timestamp;
use sealblk_keymem::DataKey;
use serde::{Deserialize, Serialize};

use crate::context::EncryptionContext;
use crate::error::KmsError;

/// A data key encrypted under a KMS key: opaque bytes, safe to store and to show. 1 to 6144 bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappedKey(pub Vec<u8>);

/// Who calls: a local user `uid:1000`, a host `host:NAME` or an attachment there `host:NAME/vol-…`, another account's
/// root `account:123456789012`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Principal(pub String);

impl Principal {
    /// The root of an account, as the keys of another account see it.
    pub fn of_account(account: &str) -> Self {
        Self(format!("account:{account}"))
    }

    /// The account whose root it is, if it is one.
    pub fn as_account(&self) -> Option<&str> {
        self.0.strip_prefix("account:")
    }

    /// Whether it has one of those forms; others are compared and shown, but no policy names them.
    pub fn is_well_formed(&self) -> bool {
        let (kind, name) = self.0.split_once(':').unwrap_or_default();
        match kind {
            "uid" => name.parse::<u32>().is_ok(),
            "host" => !name.is_empty() && name.len() <= 250,
            "account" => name.len() == 12 && name.bytes().all(|c| c.is_ascii_digit()),
            _ => false,
        }
    }
}

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
    /// The account that the key belongs to: 12 digits, or empty where a provider has no accounts.
    #[serde(rename = "AWSAccountId")]
    pub aws_account_id: String,
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
    /// When a key that is pending deletion will be gone, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deletion_date: Option<f64>,
    /// The waiting period that its deletion was scheduled with, in days.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pending_deletion_window_in_days: Option<u32>,
    /// Where the material comes from: `AWS_KMS` if the service made it.
    pub origin: String,
    /// `CUSTOMER`, or `AWS` for the managed default key.
    pub key_manager: String,
    /// `key_spec` under its older name.
    pub customer_master_key_spec: String,
    /// `SYMMETRIC_DEFAULT` for a key that volumes can use.
    pub key_spec: String,
    /// What the key encrypts with; empty for one that does not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub encryption_algorithms: Vec<String>,
    /// What the key signs with; empty for one that does not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub signing_algorithms: Vec<String>,
    /// What the key makes message authentication codes with; empty for one that does not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub mac_algorithms: Vec<String>,
    /// Whether the same key is in several regions.
    pub multi_region: bool,
    /// The backing key that wraps now, where the service tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub current_key_material_id: Option<String>,
}

impl KeyMetadata {
    /// An enabled or disabled symmetric customer key about which nothing else is known; for a provider to complete.
    pub fn symmetric(key_id: impl Into<String>, arn: impl Into<String>, key_state: KeyState) -> Self {
        let spec = "SYMMETRIC_DEFAULT".to_owned();
        Self {
            aws_account_id: String::new(),
            key_id: key_id.into(),
            arn: arn.into(),
            creation_date: 0.0,
            enabled: key_state == KeyState::Enabled,
            description: String::new(),
            key_usage: "ENCRYPT_DECRYPT".to_owned(),
            key_state,
            deletion_date: None,
            pending_deletion_window_in_days: None,
            origin: "AWS_KMS".to_owned(),
            key_manager: "CUSTOMER".to_owned(),
            customer_master_key_spec: spec.clone(),
            key_spec: spec.clone(),
            encryption_algorithms: vec![spec],
            signing_algorithms: Vec::new(),
            mac_algorithms: Vec::new(),
            multi_region: false,
            current_key_material_id: None,
        }
    }

    /// The state in words: `enabled`, `disabled`, `pending deletion until 2026-12-01`.
    pub fn state_in_words(&self) -> String {
        match self.key_state {
            KeyState::Enabled => "enabled".to_owned(),
            KeyState::Disabled => "disabled".to_owned(),
            KeyState::PendingDeletion => pending_deletion(self.deletion_date),
        }
    }
}

/// `pending deletion`, and until when (the day, in UTC) if that is known.
pub(crate) fn pending_deletion(until: Option<f64>) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "a date beyond what 64 bits hold is not shown")]
    let day = until.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
    day.map_or_else(
        || "pending deletion".to_owned(),
        |day| format!("pending deletion until {}", day.strftime("%Y-%m-%d")),
    )
}

/// An action that a grant can allow (ebs.md C.6), as KMS names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum GrantOperation {
    Decrypt,
    Encrypt,
    GenerateDataKey,
    GenerateDataKeyWithoutPlaintext,
    ReEncryptFrom,
    ReEncryptTo,
    CreateGrant,
    RetireGrant,
    DescribeKey,
    GenerateDataKeyPair,
    GenerateDataKeyPairWithoutPlaintext,
    Sign,
    Verify,
    GetPublicKey,
    GenerateMac,
    VerifyMac,
    DeriveSharedSecret,
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

/// What ReEncrypt is asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReEncryptRequest<'a> {
    /// The wrapped data key.
    pub wrapped: &'a WrappedKey,
    /// The key that must have wrapped it (restricts, as KMS's SourceKeyId does): key ARN.
    pub from_key: &'a str,
    /// Must equal the context at wrapping.
    pub from_context: &'a EncryptionContext,
    /// What to wrap it under: id, ARN or alias.
    pub to_key: &'a str,
    /// What to bind it to.
    pub to_context: &'a EncryptionContext,
}

/// The actions Sealblk needs of a key service. `key` is a key id, key ARN, alias name or alias ARN
/// where it says so, else a key ARN. Of a provider that has no ARNs it is the key's URI (`KeyUri`).
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

    /// Whether [`Self::decrypt`] would unwrap it now: the same call, audited as such, whose result is thrown away where
    /// it was made.
    fn check_decrypt(&self, request: &DecryptRequest<'_>) -> Result<(), KmsError> {
        self.decrypt(request).map(drop)
    }

    /// Wraps a data key that the caller holds in locked memory, for `context` under `key` (id, ARN or alias). Only
    /// helpers call it, to carry a data key from one provider to another.
    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError>;

    /// Wraps the same data key under another key, or for another context; the plaintext stays inside the service, or
    /// where the service has no such call, in the helper's locked memory.
    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError>;

    /// Lets a principal act under constraints until the grant is retired. A provider that has no grants answers
    /// `NoGrants`: whoever may call it then acts by its own permission.
    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError>;

    /// Ends a grant. Retiring one that is gone already is `NotFound`.
    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError>;
}
