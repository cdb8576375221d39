//! The verbs of policies: those of keys, and those of principals (`uid:1000`, `host:NAME`, `account:…`), which IAM has
//! in AWS. What a policy says: `policy`; what follows from it: `authorize`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::authorize::Ask;
use super::call::{Call, clip};
use super::policy::{Policy, PolicyKind};
use super::{LocalKms, Naming};
use crate::error::{KmsError, KmsErrorKind};
use crate::service::Principal;

const NAME_BYTES_MAX: usize = 128;
/// Policies of one principal, and principals with policies.
const POLICIES_MAX: usize = 100;

impl LocalKms {
    /// A key's policy. `key` is an id or ARN.
    pub fn get_key_policy(&self, key: &str) -> Result<Value, KmsError> {
        let parameters = json!({ "keyId": clip(key), "policyName": "default" });
        self.reading("GetKeyPolicy", key, parameters, |call| {
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("GetKeyPolicy", &record))?;
            Ok(self.key_policy_document(&record))
        })
    }

    /// Gives a customer key another policy, from the next call on. The pool's owner can always do this. `key` is an id
    /// or ARN.
    pub fn put_key_policy(&self, key: &str, policy: &Value) -> Result<(), KmsError> {
        let parameters =
            json!({ "keyId": clip(key), "policyName": "default", "policy": clip(&policy.to_string()) });
        self.changing("PutKeyPolicy", key, parameters, |call| {
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            self.refuse_managed(call, &record, "whose policy cannot be changed")?;
            self.authorize(call, &Ask::new("PutKeyPolicy", &record))?;
            check_policy(call, policy, PolicyKind::Key)?;
            record.policy = Some(policy.clone());
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    /// Gives a principal a policy, or replaces the one of that name.
    pub fn put_identity_policy(
        &self,
        principal: &Principal,
        name: &str,
        policy: &Value,
    ) -> Result<(), KmsError> {
        let mut parameters = identity_parameters(principal, Some(name));
        parameters["policyDocument"] = clip(&policy.to_string()).into();
        self.changing("PutIdentityPolicy", &principal.0, parameters, |call| {
            self.authorize_account(call)?;
            check_names(call, principal, name)?;
            check_policy(call, policy, PolicyKind::Identity)?;
            let mut identities = self.store.identities().map_err(|e| call.broken(e))?;
            let full = identities.policies.len() >= POLICIES_MAX;
            if full && !identities.policies.contains_key(&principal.0) {
                return Err(call.fail(KmsErrorKind::LimitExceeded, "too many principals have policies"));
            }
            let policies = identities.policies.entry(principal.0.clone()).or_default();
            if policies.len() >= POLICIES_MAX && !policies.contains_key(name) {
                return Err(call.fail(KmsErrorKind::LimitExceeded, "the principal has too many policies"));
            }
            policies.insert(name.to_owned(), policy.clone());
            self.store.put_identities(&identities).map_err(|e| call.broken(e))
        })
    }

    /// The policies of a principal, by name.
    pub fn list_identity_policies(&self, principal: &Principal) -> Result<BTreeMap<String, Value>, KmsError> {
        let parameters = identity_parameters(principal, None);
        self.reading("ListIdentityPolicies", &principal.0, parameters, |call| {
            self.authorize_account(call)?;
            let identities = self.store.identities().map_err(|e| call.broken(e))?;
            Ok(identities.policies.get(&principal.0).cloned().unwrap_or_default())
        })
    }

    /// Every principal that has a policy.
    pub fn list_identities(&self) -> Result<Vec<Principal>, KmsError> {
        self.reading("ListIdentities", "all principals", Value::Null, |call| {
            self.authorize_account(call)?;
            let identities = self.store.identities().map_err(|e| call.broken(e))?;
            Ok(identities.policies.into_keys().map(Principal).collect())
        })
    }

    /// Takes a policy from a principal.
    pub fn delete_identity_policy(&self, principal: &Principal, name: &str) -> Result<(), KmsError> {
        let parameters = identity_parameters(principal, Some(name));
        self.changing("DeleteIdentityPolicy", &principal.0, parameters, |call| {
            self.authorize_account(call)?;
            let mut identities = self.store.identities().map_err(|e| call.broken(e))?;
            let policies = identities.policies.get_mut(&principal.0);
            let Some(left) = policies.and_then(|policies| policies.remove(name).map(|_| policies.len()))
            else {
                let message = format!("{principal} has no policy {}", clip(name));
                return Err(call.fail(KmsErrorKind::NotFound, message));
            };
            if left == 0 {
                identities.policies.remove(&principal.0);
            }
            self.store.put_identities(&identities).map_err(|e| call.broken(e))
        })
    }
}

fn check_policy(call: &Call, policy: &Value, kind: PolicyKind) -> Result<(), KmsError> {
    match Policy::parse(policy, kind) {
        Ok(_) => Ok(()),
        Err(error) => Err(call.fail(KmsErrorKind::MalformedPolicy, error.to_string())),
    }
}

fn check_names(call: &Call, principal: &Principal, name: &str) -> Result<(), KmsError> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"+=,.@_-".contains(&c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(legal) {
        let message = "a policy's name has 1 to 128 letters, digits or +=,.@_-";
        return Err(call.fail(KmsErrorKind::InvalidRequest, message));
    }
    if !principal.is_well_formed() {
        let message = format!("{principal} is no principal: uid:1000, host:NAME or account:123456789012");
        return Err(call.fail(KmsErrorKind::InvalidRequest, message));
    }
    Ok(())
}

fn identity_parameters(principal: &Principal, name: Option<&str>) -> Value {
    json!({ "principal": clip(&principal.0), "policyName": name.map(clip) })
}
