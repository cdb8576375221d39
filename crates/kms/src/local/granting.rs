//! The verbs of grants (ebs.md C.6): create, list, retire, revoke. What a grant is and allows: `grants`.

use serde::Serialize;
use serde_json::json;

use super::authorize::Ask;
use super::call::{Call, clip};
use super::grants::{self, GrantConstraints, GrantEntry};
use super::material::MaterialError;
use super::records::KeyRecord;
use super::verbs::{check_context, context_value};
use super::{LocalKms, Naming};
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{GrantId, GrantOperation, KeyState, Principal};

/// What CreateGrant is asked for, all of it; the trait's request is the part that volumes need.
#[derive(Clone, PartialEq, Debug)]
pub struct NewGrant {
    /// Key id or ARN.
    pub key: String,
    /// Who may act under the grant.
    pub grantee: Principal,
    /// Who may retire it, besides those who may anyway.
    pub retiring: Option<Principal>,
    /// What it allows.
    pub operations: Vec<GrantOperation>,
    /// What calls under it must carry.
    pub constraints: GrantConstraints,
    /// Idempotency: the same request with the same name gives the same grant.
    pub name: Option<String>,
}

/// What CreateGrant answers; serialises with KMS's field names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IssuedGrant {
    /// The grant's id; that of an earlier one if the request was the same.
    pub grant_id: GrantId,
    /// Another name for it, new each time.
    pub grant_token: String,
}

impl LocalKms {
    /// Lets a principal act under constraints until the grant is retired or revoked.
    ///
    /// On a volume's behalf the caller must itself be allowed what the grant allows: nobody has a volume unlocked who
    /// could not unlock it.
    pub fn issue_grant(&self, request: &NewGrant) -> Result<IssuedGrant, KmsError> {
        let context = |context: &Option<_>| context.as_ref().map(context_value);
        let parameters = json!({
            "keyId": clip(&request.key),
            "granteePrincipal": clip(&request.grantee.0),
            "retiringPrincipal": request.retiring.as_ref().map(|principal| clip(&principal.0)),
            "operations": request.operations,
            "constraints": {
                "encryptionContextSubset": context(&request.constraints.encryption_context_subset),
                "encryptionContextEquals": context(&request.constraints.encryption_context_equals),
            },
            "name": request.name.as_deref().map(clip),
        });
        self.changing("CreateGrant", &request.key, parameters, |call| {
            if let Some(context) = request.constraints.context() {
                check_context(call, context)?;
            }
            let record = self.resolve(call, &request.key, Naming::IdOrArn)?;
            let entry = self.new_entry(call, request)?;
            self.authorize_grant(call, &record, &entry)?;
            if let Some(fault) = entry.fault(&record) {
                return Err(call.fail(KmsErrorKind::InvalidRequest, fault));
            }
            self.require_enabled(call, &record)?;
            let id = self.record_grant(call, &record, entry)?;
            let token = grants::new_token(record.key_id, &id);
            let grant_token = token.map_err(|e| call.broken(MaterialError::Random(e)))?;
            call.event.response_elements = json!({ "grantId": id, "keyId": call.key });
            Ok(IssuedGrant { grant_id: id, grant_token })
        })
    }

    /// The grants of a key, oldest first. `key` is an id or ARN.
    pub fn list_grants(&self, key: &str) -> Result<Vec<GrantEntry>, KmsError> {
        self.reading("ListGrants", key, json!({ "keyId": clip(key) }), |call| {
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("ListGrants", &record))?;
            Ok(self.store.grants(record.key_id).map_err(|e| call.broken(e))?.grants)
        })
    }

    /// The grants of all keys that name `principal` to retire them.
    pub fn list_retirable_grants(&self, principal: &Principal) -> Result<Vec<GrantEntry>, KmsError> {
        let parameters = json!({ "retiringPrincipal": clip(&principal.0) });
        self.reading("ListRetirableGrants", "all keys", parameters, |call| {
            if call.principal != *principal {
                self.authorize_account(call)?;
            }
            let mut retirable = Vec::new();
            for id in self.store.key_ids().map_err(|e| call.broken(e))? {
                let grants = self.store.grants(id).map_err(|e| call.broken(e))?.grants;
                let by_principal = |grant: &GrantEntry| grant.retiring_principal.as_ref() == Some(principal);
                retirable.extend(grants.into_iter().filter(by_principal));
            }
            Ok(retirable)
        })
    }

    /// Ends a grant that a token names.
    pub fn retire_grant_by_token(&self, token: &str) -> Result<(), KmsError> {
        let Some((key, grant)) = grants::parse_token(token) else {
            return self.audited("RetireGrant", "a grant token", json!({}), |call| {
                call.event.mutates();
                Err(call.fail(KmsErrorKind::InvalidRequest, "the grant token is not one"))
            });
        };
        self.end_grant("RetireGrant", &self.scope.key_arn(key), &grant)
    }

    /// Ends a grant, by the authority of the key: whoever may revoke grants on it. `key` is an id or ARN.
    pub fn revoke_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        self.end_grant("RevokeGrant", key, grant)
    }

    /// RetireGrant or RevokeGrant.
    pub(super) fn end_grant(
        &self,
        operation: &'static str,
        key: &str,
        grant: &GrantId,
    ) -> Result<(), KmsError> {
        let parameters = json!({ "keyId": clip(key), "grantId": clip(&grant.0) });
        self.changing(operation, key, parameters, |call| {
            if !grants::is_id(grant) {
                return Err(call.fail(KmsErrorKind::InvalidRequest, "a grant id is 64 lower-case hex digits"));
            }
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            let mut list = self.store.grants(record.key_id).map_err(|e| call.broken(e))?;
            let Some(entry) = list.find(grant) else {
                let message = format!("Grant ID {} not found", grant.0);
                return Err(call.fail(KmsErrorKind::NotFound, message));
            };
            if operation == "RevokeGrant" || !self.may_retire(call, entry) {
                self.authorize(call, &Ask::new(operation, &record))?;
            }
            list.remove(grant);
            self.store.put_grants(record.key_id, &list).map_err(|e| call.broken(e))
        })
    }

    /// Who may retire without leave of the key's policy.
    fn may_retire(&self, call: &Call, grant: &GrantEntry) -> bool {
        let me = &call.principal;
        let as_grantee =
            grant.grantee_principal == *me && grant.operations.contains(&GrantOperation::RetireGrant);
        let service = self.via.as_ref().map(|service| Principal(service.clone()));
        let retiring = [Some(me), service.as_ref()].contains(&grant.retiring_principal.as_ref())
            && grant.retiring_principal.is_some();
        as_grantee || retiring || grant.issuing_principal == *me || self.is_owner(me)
    }

    /// The entry that a request would make; on a volume's behalf, the service retires it.
    fn new_entry(&self, call: &Call, request: &NewGrant) -> Result<GrantEntry, KmsError> {
        let mut operations = request.operations.clone();
        operations.sort_unstable();
        operations.dedup();
        let service = self.via.as_ref().map(|service| Principal(service.clone()));
        Ok(GrantEntry {
            grant_id: grants::new_id().map_err(|e| call.broken(MaterialError::Random(e)))?,
            key_id: call.key.clone(),
            grantee_principal: request.grantee.clone(),
            retiring_principal: request.retiring.clone().or(service),
            issuing_principal: call.principal.clone(),
            operations,
            constraints: request.constraints.clone(),
            name: request.name.clone(),
            creation_date: self.now(),
        })
    }

    fn authorize_grant(&self, call: &Call, key: &KeyRecord, entry: &GrantEntry) -> Result<(), KmsError> {
        let mut ask = Ask::new("CreateGrant", key).making(entry);
        for operation in &entry.operations {
            ask = ask.with("kms:GrantOperations", format!("{operation:?}"));
        }
        ask = ask.with("kms:GranteePrincipal", entry.grantee_principal.0.as_str());
        if let Some(principal) = &entry.retiring_principal {
            ask = ask.with("kms:RetiringPrincipal", principal.0.as_str());
        }
        if let Some(kind) = entry.constraints.kind() {
            ask = ask.with("kms:GrantConstraintType", kind);
        }
        let context = entry.constraints.context();
        self.authorize(call, &ask.bound_to(context))?;
        if self.via.is_none() {
            return Ok(());
        }
        let may = |operation| self.authorize(call, &Ask::new(action(operation), key).bound_to(context));
        entry.operations.iter().copied().try_for_each(may)
    }

    /// Adds the grant to the key's list, or finds the one that the same request made before. The caller holds the lock.
    fn record_grant(&self, call: &Call, key: &KeyRecord, entry: GrantEntry) -> Result<GrantId, KmsError> {
        let mut list = self.store.grants(key.key_id).map_err(|e| call.broken(e))?;
        if let Some(known) = list.same_as(&entry) {
            return Ok(known.grant_id.clone());
        }
        if list.is_full() {
            let message = "the limit of grants on this key has been reached";
            return Err(call.fail(KmsErrorKind::LimitExceeded, message));
        }
        let id = entry.grant_id.clone();
        list.grants.push(entry);
        self.store.put_grants(key.key_id, &list).map_err(|e| call.broken(e))?;
        Ok(id)
    }

    /// Refuses a key that is disabled or pending deletion.
    pub(super) fn require_enabled(&self, call: &Call, key: &KeyRecord) -> Result<(), KmsError> {
        match key.key_state {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => {
                Err(call.fail(KmsErrorKind::Disabled, format!("{} is disabled.", call.key)))
            }
            KeyState::PendingDeletion => self.refuse_pending(call, key),
        }
    }
}

/// The action that an operation of a grant is.
fn action(operation: GrantOperation) -> &'static str {
    use GrantOperation as Op;
    match operation {
        Op::Decrypt => "Decrypt",
        Op::Encrypt => "Encrypt",
        Op::GenerateDataKey => "GenerateDataKey",
        Op::GenerateDataKeyWithoutPlaintext => "GenerateDataKeyWithoutPlaintext",
        Op::ReEncryptFrom => "ReEncryptFrom",
        Op::ReEncryptTo => "ReEncryptTo",
        Op::CreateGrant => "CreateGrant",
        Op::RetireGrant => "RetireGrant",
        Op::DescribeKey => "DescribeKey",
        Op::GenerateDataKeyPair => "GenerateDataKeyPair",
        Op::GenerateDataKeyPairWithoutPlaintext => "GenerateDataKeyPairWithoutPlaintext",
        Op::Sign => "Sign",
        Op::Verify => "Verify",
        Op::GetPublicKey => "GetPublicKey",
        Op::GenerateMac => "GenerateMac",
        Op::VerifyMac => "VerifyMac",
        Op::DeriveSharedSecret => "DeriveSharedSecret",
    }
}
