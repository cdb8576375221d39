//! Grants of one key (ebs.md C.6): what is recorded, what a new one must be, and whether one covers a call.
//!
//! A grant only allows; there is no expiry. Here it takes effect at once and ends at once: there are no grant tokens.

use sealblk_record::Document;
use serde::{Deserialize, Serialize};

use super::hex;
use crate::context::EncryptionContext;
use crate::service::{GrantId, GrantOperation, GrantRequest, Principal};

/// Grants per key: KMS allows 50,000; a record of this many stays well below what `sealblk-record` takes.
const GRANTS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 256;

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
    /// Who made it, and may retire it besides the store's owner.
    pub issuing_principal: Principal,
    /// What it allows.
    pub operations: Vec<GrantOperation>,
    /// What every call under it must carry.
    pub constraints: GrantConstraints,
    /// The name given for idempotency.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Seconds since the epoch.
    pub creation_date: f64,
}

/// The constraint of a grant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct GrantConstraints {
    /// Every pair of it must be in the call's encryption context.
    pub encryption_context_subset: EncryptionContext,
}

/// The record `grants/UUID.json`: the grants of one key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GrantList {
    pub(super) grants: Vec<GrantEntry>,
}

impl Document for GrantList {
    const FORMAT: &'static str = "sealblk-kms-grants";
    const VERSION: u32 = 1;
}

impl GrantList {
    /// The grant that the same caller asked for before, name and everything.
    pub(super) fn same_as(&self, request: &GrantRequest, issuer: &Principal) -> Option<&GrantEntry> {
        request.name.as_ref()?;
        self.grants.iter().find(|grant| {
            grant.name == request.name
                && grant.issuing_principal == *issuer
                && grant.grantee_principal == request.grantee
                && grant.operations == request.operations
                && grant.constraints.encryption_context_subset == request.constraint
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
    /// Why `principal` may not do `operation` with `context` under this grant; `None` if it may.
    pub(super) fn refuses(
        &self,
        operation: GrantOperation,
        principal: &Principal,
        context: &EncryptionContext,
    ) -> Option<&'static str> {
        if self.grantee_principal != *principal {
            Some("is for another principal")
        } else if !self.operations.contains(&operation) {
            Some("does not allow the operation")
        } else if !self.constraints.encryption_context_subset.is_subset_of(context) {
            Some("is constrained to another encryption context")
        } else {
            None
        }
    }
}

/// What is wrong with a request for a grant, in the words of KMS; `None` if nothing is.
pub(super) fn invalid(request: &GrantRequest) -> Option<&'static str> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b":/_-".contains(&c);
    if request.operations.is_empty() {
        Some(
            "1 validation error detected: Value '[]' at 'operations' failed to satisfy constraint: Member must not be empty",
        )
    } else if request.constraint.is_empty() {
        Some("a grant must be constrained to an encryption context")
    } else if request.grantee.0.is_empty() || request.grantee.0.len() > NAME_BYTES_MAX {
        Some(
            "1 validation error detected: Value at 'granteePrincipal' failed to satisfy constraint: Member must have length between 1 and 256",
        )
    } else if request
        .name
        .as_ref()
        .is_some_and(|name| name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(legal))
    {
        Some(
            "1 validation error detected: Value at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]{1,256}$",
        )
    } else {
        None
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
