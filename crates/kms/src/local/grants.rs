//! Grants of one key (ebs.md C.6): what is recorded, what a new one must be, and whether one covers a call.
//! `granting` has the verbs.
//!
//! A grant only allows; there is no expiry. Here it takes effect at once and ends at once. A grant token is only another
//! name for a grant, for retiring it; it proves nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealblk_record::{Document, Fields};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::hex;
use super::records::KeyRecord;
use super::spec;
use crate::context::EncryptionContext;
use crate::service::{GrantId, GrantOperation, Principal};

/// Grants per key: KMS allows 50,000; a record of this many stays well below what `sealblk-record` takes.
const GRANTS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 256;
/// Version, key id, grant id, and 16 random bytes that make each token another.
const TOKEN_BYTES: usize = 1 + 16 + 32 + 16;
const TOKEN_VERSION: u8 = 1;

/// One grant, as ListGrants tells of it; serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GrantEntry {
    /// The grant's id.
    pub grant_id: GrantId,
    /// The key's ARN.
    pub key_id: String,
    /// Who may act under it.
    pub grantee_principal: Principal,
    /// Who may retire it besides the grantee, the issuer and the key's owner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retiring_principal: Option<Principal>,
    /// Who made it.
    pub issuing_principal: Principal,
    /// What it allows.
    pub operations: Vec<GrantOperation>,
    /// What every call with an encryption context under it must carry.
    #[serde(skip_serializing_if = "GrantConstraints::is_empty", default)]
    pub constraints: GrantConstraints,
    /// The name given for idempotency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Seconds since the epoch.
    pub creation_date: f64,
}

/// The constraints of a grant; at most one of the two.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GrantConstraints {
    /// Every pair of it must be in the call's encryption context.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encryption_context_subset: Option<EncryptionContext>,
    /// The call's encryption context must be this.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub encryption_context_equals: Option<EncryptionContext>,
}

impl GrantConstraints {
    /// Every call must carry at least these pairs.
    pub fn subset(context: EncryptionContext) -> Self {
        Self { encryption_context_subset: Some(context), encryption_context_equals: None }
    }

    /// Every call must carry exactly these pairs.
    pub fn equals(context: EncryptionContext) -> Self {
        Self { encryption_context_subset: None, encryption_context_equals: Some(context) }
    }

    fn is_empty(&self) -> bool {
        self.contexts().next().is_none()
    }

    fn contexts(&self) -> impl Iterator<Item = &EncryptionContext> {
        [&self.encryption_context_subset, &self.encryption_context_equals].into_iter().flatten()
    }

    /// What a call with exactly the constraint's pairs would carry.
    pub(super) fn context(&self) -> Option<&EncryptionContext> {
        self.contexts().next()
    }

    /// The value of the condition key `kms:GrantConstraintType`.
    pub(super) fn kind(&self) -> Option<&'static str> {
        match (&self.encryption_context_subset, &self.encryption_context_equals) {
            (Some(_), _) => Some("EncryptionContextSubset"),
            (None, Some(_)) => Some("EncryptionContextEquals"),
            (None, None) => None,
        }
    }

    fn hold(&self, context: &EncryptionContext) -> bool {
        self.encryption_context_subset.as_ref().is_none_or(|subset| subset.is_subset_of(context))
            && self.encryption_context_equals.as_ref().is_none_or(|equal| equal == context)
    }

    /// Whether every call that these let through passes `looser` too.
    fn are_as_strict_as(&self, looser: &Self) -> bool {
        match &looser.encryption_context_equals {
            Some(equal) => self.encryption_context_equals.as_ref() == Some(equal),
            None => match (&looser.encryption_context_subset, self.context()) {
                (None, _) => true,
                (Some(subset), Some(own)) => subset.is_subset_of(own),
                (Some(_), None) => false,
            },
        }
    }
}

/// The record `grants/UUID.json`: the grants of one key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GrantList {
    pub(super) grants: Vec<GrantEntry>,
}

impl Document for GrantList {
    const FORMAT: &'static str = "sealblk-kms-grants";
    const VERSION: u32 = 2;

    /// Version 1 had the operation Decrypt only, the subset constraint always, and no retiring principal.
    fn migrate(version: u32, fields: Fields) -> Option<Fields> {
        (version == 1).then_some(fields)
    }
}

impl GrantList {
    /// The grant that the same caller asked for before, name and everything.
    pub(super) fn same_as(&self, new: &GrantEntry) -> Option<&GrantEntry> {
        new.name.as_ref()?;
        self.grants.iter().find(|grant| {
            let asked = GrantEntry {
                grant_id: grant.grant_id.clone(),
                creation_date: grant.creation_date,
                ..new.clone()
            };
            **grant == asked
        })
    }

    pub(super) fn find(&self, id: &GrantId) -> Option<&GrantEntry> {
        self.grants.iter().find(|grant| grant.grant_id == *id)
    }

    pub(super) fn remove(&mut self, id: &GrantId) {
        self.grants.retain(|grant| grant.grant_id != *id);
    }

    pub(super) fn is_full(&self) -> bool {
        self.grants.len() >= GRANTS_MAX
    }
}

impl GrantEntry {
    /// Why `principal` may not do `operation` with `context` under this grant; `None` if it may. Constraints are for
    /// operations that carry a context.
    pub(super) fn refuses(
        &self,
        operation: GrantOperation,
        principal: &Principal,
        context: Option<&EncryptionContext>,
    ) -> Option<&'static str> {
        if self.grantee_principal != *principal {
            Some("is for another principal")
        } else if !self.operations.contains(&operation) {
            Some("does not allow the operation")
        } else if context.is_some_and(|context| !self.constraints.hold(context)) {
            Some("is constrained to another encryption context")
        } else {
            None
        }
    }

    /// Whether its grantee may make `other` by it: no more operations, no looser constraints.
    pub(super) fn may_be_passed_on_as(&self, other: &Self) -> bool {
        other.operations.iter().all(|operation| self.operations.contains(operation))
            && other.constraints.are_as_strict_as(&self.constraints)
    }

    /// What is wrong with a grant that is asked for on `key`, in the words of KMS; `None` if nothing is.
    pub(super) fn fault(&self, key: &KeyRecord) -> Option<String> {
        let legal = |c: u8| c.is_ascii_alphanumeric() || b":/_-".contains(&c);
        let long = |principal: &Principal| principal.0.is_empty() || principal.0.len() > NAME_BYTES_MAX;
        let constraint = |at: &str, what: &str| {
            Some(format!(
                "1 validation error detected: Value at '{at}' failed to satisfy constraint: Member must {what}"
            ))
        };
        let cannot = |&&operation: &&GrantOperation| !spec::can(key.key_spec, key.key_usage, operation);
        if self.operations.is_empty() {
            constraint("operations", "not be empty")
        } else if let Some(operation) = self.operations.iter().find(cannot) {
            let (spec, usage) = (key.key_spec, key.key_usage);
            Some(format!("a key of spec {spec:?} and usage {usage:?} has no operation {operation:?}"))
        } else if self.constraints.contexts().count() > 1 {
            Some(
                "a grant has one of EncryptionContextSubset and EncryptionContextEquals, not both".to_owned(),
            )
        } else if self.constraints.contexts().any(EncryptionContext::is_empty) {
            Some("a grant's encryption context constraint must not be empty".to_owned())
        } else if long(&self.grantee_principal) {
            constraint("granteePrincipal", "have length between 1 and 256")
        } else if self.retiring_principal.as_ref().is_some_and(long) {
            constraint("retiringPrincipal", "have length between 1 and 256")
        } else if self
            .name
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(legal))
        {
            constraint("name", "satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]{1,256}$")
        } else {
            None
        }
    }
}

/// A new random grant id.
pub(super) fn new_id() -> std::io::Result<GrantId> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(GrantId(hex::encode(&bytes)))
}

/// Whether a text has a grant id's shape: 64 lower-case hex digits.
pub(super) fn is_id(text: &GrantId) -> bool {
    hex::decode_32(&text.0).is_some()
}

/// A new token for a grant.
pub(super) fn new_token(key: Uuid, grant: &GrantId) -> std::io::Result<String> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let id = hex::decode_32(&grant.0).unwrap_or_default();
    Ok(URL_SAFE_NO_PAD.encode([&[TOKEN_VERSION][..], key.as_bytes(), &id, &random].concat()))
}

/// The key and the grant that a token names; `None` if it is not one.
pub(super) fn parse_token(token: &str) -> Option<(Uuid, GrantId)> {
    let bytes: [u8; TOKEN_BYTES] = URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok()?;
    let (version, rest) = bytes.split_first()?;
    let (key, rest) = rest.split_first_chunk::<16>()?;
    let (grant, _) = rest.split_first_chunk::<32>()?;
    (*version == TOKEN_VERSION).then(|| (Uuid::from_bytes(*key), GrantId(hex::encode(grant))))
}
