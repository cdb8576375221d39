//! Who may do what: the one place that decides (ebs.md C.6, C.7).
//!
//! In this order: a denial in the key's policy or in a policy of who asks ends it. A grant that the call names decides
//! alone. Otherwise any of these allows: the key's policy, to the principal; the key's policy, to its account, together
//! with a policy of its own; a grant to it. The pool's owner and root are the root of the pool's account, so the default
//! key policy lets them do everything and leaves everybody else to the policies that they were given.
//!
//! The owner may always read and put a key's policy: a policy that locked the owner out of his own files would protect
//! nothing and could not be mended.

use serde_json::{Value, json};

use super::LocalKms;
use super::call::Call;
use super::grants::GrantEntry;
use super::policy::{Asker, Facts, Policy, PolicyKind, Request, Verdict};
use super::records::{KeyManager, KeyRecord};
use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{GrantId, GrantOperation, Principal};

/// What another account's principals can be allowed at all (ebs.md C.7).
const ACROSS_ACCOUNTS: [&str; 16] = [
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "GetKeyRotationStatus",
    "GetPublicKey",
    "ListGrants",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
    "RevokeGrant",
    "Sign",
    "Verify",
    "GenerateMac",
];

/// One question: may the call's principal do this with this key.
pub(super) struct Ask<'a> {
    action: &'static str,
    key: &'a KeyRecord,
    context: Option<&'a EncryptionContext>,
    /// The grant that the call names.
    grant: Option<&'a GrantId>,
    /// For CreateGrant: what is to be passed on, which a grant to the caller must have.
    passing_on: Option<&'a GrantEntry>,
    facts: Vec<(&'static str, String)>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(action: &'static str, key: &'a KeyRecord) -> Self {
        Self { action, key, context: None, grant: None, passing_on: None, facts: Vec::new() }
    }

    /// The call carries this encryption context.
    pub(super) fn bound_to(self, context: impl Into<Option<&'a EncryptionContext>>) -> Self {
        Self { context: context.into(), ..self }
    }

    /// The call names the key so; an alias is a condition key of its own.
    pub(super) fn named(self, text: &str) -> Self {
        match text.find("alias/") {
            Some(at) => self.with("kms:RequestAlias", text.get(at..).unwrap_or_default()),
            None => self,
        }
    }

    /// The call names this grant.
    pub(super) fn under(self, grant: Option<&'a GrantId>) -> Self {
        Self { grant, ..self }
    }

    /// The call makes this grant.
    pub(super) fn making(self, grant: &'a GrantEntry) -> Self {
        Self { passing_on: Some(grant), ..self }
    }

    /// Something else that conditions can ask for.
    pub(super) fn with(mut self, condition_key: &'static str, value: impl Into<String>) -> Self {
        self.facts.push((condition_key, value.into()));
        self
    }
}

impl LocalKms {
    /// Whether the call's principal may do what `ask` says; the error names the principal, the action and the key.
    pub(super) fn authorize(&self, call: &Call, ask: &Ask<'_>) -> Result<(), KmsError> {
        let asker = self.asker(&call.principal);
        let facts = self.facts(call, ask, &asker)?;
        let request = Request { asker: &asker, action: ask.action, resource: &call.key, facts: &facts };
        if asker.account != self.scope.account && !ACROSS_ACCOUNTS.contains(&ask.action) {
            return Err(denied(call, ask.action, "it is of another account than the key"));
        }
        if self.is_owner(&call.principal) && ["GetKeyPolicy", "PutKeyPolicy"].contains(&ask.action) {
            return Ok(());
        }
        let by_key = self.key_policy(call, ask.key)?.verdict(&request);
        let by_identity = self.identity_verdict(call, &request)?;
        match (by_key, by_identity, ask.grant) {
            (Verdict::Denied, _, _) => Err(denied(call, ask.action, "the key policy denies it explicitly")),
            (_, Verdict::Denied, _) => {
                Err(denied(call, ask.action, "an identity policy denies it explicitly"))
            }
            (_, _, Some(grant)) => self.check_grant(call, ask, grant),
            (Verdict::Allowed, ..) | (Verdict::LeftToAccount, Verdict::Allowed, _) => Ok(()),
            _ if self.has_grant(call, ask)? => Ok(()),
            _ if ask.key.key_manager == KeyManager::Aws && self.via.is_none() => {
                let because =
                    "it is an AWS managed key, which can be used through volumes and snapshots only";
                Err(denied(call, ask.action, because))
            }
            _ => {
                let because =
                    format!("no key policy, identity policy or grant allows the kms:{} action", ask.action);
                Err(denied(call, ask.action, &because))
            }
        }
    }

    /// Whether the call's principal may do what concerns no one key.
    pub(super) fn authorize_account(&self, call: &Call) -> Result<(), KmsError> {
        let asker = self.asker(&call.principal);
        let mut facts = Facts::default();
        self.add_common_facts(&mut facts, &asker);
        let request = Request { asker: &asker, action: call.operation, resource: "*", facts: &facts };
        match self.identity_verdict(call, &request)? {
            Verdict::Denied => Err(call.denied("an identity policy denies it explicitly")),
            _ if self.is_owner(&call.principal) => Ok(()),
            Verdict::Allowed => Ok(()),
            _ => Err(call.denied(&format!("no identity policy allows the kms:{} action", call.operation))),
        }
    }

    /// Whether the call's principal may do what concerns the store itself: its owner, and root.
    pub(super) fn authorize_owner(&self, call: &Call) -> Result<(), KmsError> {
        if self.is_owner(&call.principal) {
            return Ok(());
        }
        Err(call.denied(&format!("only the key store's owner, uid:{}, may", self.store.owner_uid())))
    }

    /// Whether a call may be made as `principal`: as oneself, by the service, or by who owns the store anyway.
    pub(super) fn authorize_acting_as(&self, call: &Call, principal: &Principal) -> Result<(), KmsError> {
        if self.via.is_some() || *principal == self.caller || self.is_owner(&self.caller) {
            return Ok(());
        }
        Err(call.denied(&format!("it cannot act as {principal}")))
    }

    /// The default key policy or the managed key's (ebs.md C.4, C.7), unless another was put.
    pub(super) fn key_policy_document(&self, key: &KeyRecord) -> Value {
        let root = format!("arn:aws:iam::{}:root", self.scope.account);
        match (&key.policy, key.key_manager) {
            (Some(policy), _) => policy.clone(),
            (None, KeyManager::Customer) => json!({
                "Version": "2012-10-17",
                "Id": "key-default-1",
                "Statement": [{
                    "Sid": "Enable the owner and identity policies",
                    "Effect": "Allow",
                    "Principal": { "AWS": root },
                    "Action": "kms:*",
                    "Resource": "*",
                }],
            }),
            (None, KeyManager::Aws) => json!({
                "Version": "2012-10-17",
                "Id": "auto-ebs-2",
                "Statement": [
                    {
                        "Sid": "Allow access through EBS for all principals in the account",
                        "Effect": "Allow",
                        "Principal": { "AWS": "*" },
                        "Action": [
                            "kms:Encrypt",
                            "kms:Decrypt",
                            "kms:ReEncrypt*",
                            "kms:GenerateDataKey*",
                            "kms:CreateGrant",
                            "kms:DescribeKey",
                        ],
                        "Resource": "*",
                        "Condition": { "StringEquals": {
                            "kms:CallerAccount": self.scope.account,
                            "kms:ViaService": self.scope.service(),
                        } },
                    },
                    {
                        "Sid": "Allow direct access to key metadata to the account",
                        "Effect": "Allow",
                        "Principal": { "AWS": root },
                        "Action": ["kms:Describe*", "kms:Get*", "kms:List*", "kms:RevokeGrant"],
                        "Resource": "*",
                    },
                ],
            }),
        }
    }

    /// Whether `principal` is the pool's owner, or root.
    pub(super) fn is_owner(&self, principal: &Principal) -> bool {
        [self.store.owner_uid(), 0].iter().any(|uid| principal.0 == format!("uid:{uid}"))
    }

    fn asker<'a>(&'a self, principal: &'a Principal) -> Asker<'a> {
        match principal.as_account() {
            Some(account) => Asker { principal, account, is_root: true },
            None => Asker { principal, account: &self.scope.account, is_root: self.is_owner(principal) },
        }
    }

    fn key_policy(&self, call: &Call, key: &KeyRecord) -> Result<Policy, KmsError> {
        let parsed = Policy::parse(&self.key_policy_document(key), PolicyKind::Key);
        parsed.map_err(|error| unreadable(call, "the key's policy", &error.to_string()))
    }

    fn identity_verdict(&self, call: &Call, request: &Request<'_>) -> Result<Verdict, KmsError> {
        let identities = self.store.identities().map_err(|e| call.broken(e))?;
        let mut verdict = Verdict::Silent;
        for (name, document) in identities.policies.get(&request.asker.principal.0).into_iter().flatten() {
            let policy = Policy::parse(document, PolicyKind::Identity).map_err(|error| {
                unreadable(call, &format!("the identity policy {name}"), &error.to_string())
            })?;
            match policy.verdict(request) {
                Verdict::Denied => return Ok(Verdict::Denied),
                Verdict::Allowed => verdict = Verdict::Allowed,
                Verdict::LeftToAccount | Verdict::Silent => {}
            }
        }
        Ok(verdict)
    }

    fn check_grant(&self, call: &Call, ask: &Ask<'_>, id: &GrantId) -> Result<(), KmsError> {
        let list = self.store.grants(ask.key.key_id).map_err(|e| call.broken(e))?;
        let because = match (list.find(id), operation(ask.action)) {
            (Some(entry), Some(operation)) => entry.refuses(operation, &call.principal, ask.context),
            (Some(_), None) => Some("does not allow the operation"),
            (None, _) => Some("does not exist"),
        };
        because.map_or(Ok(()), |because| {
            Err(denied(call, ask.action, &format!("grant {} {because}", super::call::clip(&id.0))))
        })
    }

    fn has_grant(&self, call: &Call, ask: &Ask<'_>) -> Result<bool, KmsError> {
        let Some(operation) = operation(ask.action) else { return Ok(false) };
        let list = self.store.grants(ask.key.key_id).map_err(|e| call.broken(e))?;
        Ok(list.grants.iter().any(|grant| {
            grant.refuses(operation, &call.principal, ask.context).is_none()
                && ask.passing_on.is_none_or(|passed| grant.may_be_passed_on_as(passed))
        }))
    }

    fn facts(&self, call: &Call, ask: &Ask<'_>, asker: &Asker<'_>) -> Result<Facts, KmsError> {
        let mut facts = Facts::default();
        self.add_common_facts(&mut facts, asker);
        for (key, value) in &ask.facts {
            facts.add(key, value.as_str());
        }
        for (name, value) in ask.context.into_iter().flat_map(EncryptionContext::pairs) {
            facts.add(&format!("kms:EncryptionContext:{name}"), value);
            facts.add("kms:EncryptionContextKeys", name);
        }
        facts.add("kms:KeySpec", ask.key.key_spec.name());
        facts.add("kms:KeyUsage", ask.key.key_usage.name());
        facts.add("kms:KeyOrigin", "AWS_KMS");
        facts.add("kms:MultiRegion", "false");
        for (name, alias) in self.store.aliases().map_err(|e| call.broken(e))?.aliases {
            if alias.target_key_id == ask.key.key_id {
                facts.add("kms:ResourceAliases", name);
            }
        }
        Ok(facts)
    }

    fn add_common_facts(&self, facts: &mut Facts, asker: &Asker<'_>) {
        facts.add("kms:CallerAccount", asker.account);
        facts.add("kms:GrantIsForAWSResource", self.via.is_some().to_string());
        if let Some(service) = &self.via {
            facts.add("kms:ViaService", service.as_str());
        }
    }
}

/// The usual words of KMS for a missing permission, whose name need not be the operation's: ReEncrypt needs two.
pub(super) fn denied(call: &Call, action: &str, because: &str) -> KmsError {
    let (principal, key) = (&call.principal, &call.key);
    let message = format!(
        "User: {principal} is not authorized to perform: kms:{action} on resource: {key} because {because}"
    );
    call.fail(KmsErrorKind::Denied, message)
}

/// The operation of grants that an action is, if it is one.
fn operation(action: &str) -> Option<GrantOperation> {
    serde_json::from_value(action.into()).ok()
}

fn unreadable(call: &Call, what: &str, reason: &str) -> KmsError {
    call.fail(KmsErrorKind::Misconfigured, format!("{what} cannot be evaluated: {reason}"))
}
