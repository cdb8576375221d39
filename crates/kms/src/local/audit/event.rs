//! One call as the audit log tells of it, with CloudTrail's field names (ebs.md C.9).
//!
//! Holds who asked for what, when, and what came of it; never plaintext, a wrapped key or key material. A wrapped key
//! appears as its SHA-256.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::super::hex;
use super::super::reference::Scope;
use crate::error::KmsErrorKind;
use crate::service::{Principal, WrappedKey};

/// One call, as the log tells of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::local) struct Event {
    event_version: &'static str,
    user_identity: UserIdentity,
    event_time: String,
    event_source: &'static str,
    pub(in crate::local) event_name: &'static str,
    aws_region: String,
    pub(in crate::local) request_parameters: Value,
    pub(in crate::local) response_elements: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_event_data: Option<AdditionalData>,
    #[serde(rename = "requestID")]
    pub(in crate::local) request_id: String,
    #[serde(rename = "eventID")]
    event_id: String,
    read_only: bool,
    resources: Vec<Resource>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UserIdentity {
    #[serde(rename = "type")]
    kind: &'static str,
    principal_id: String,
    account_id: String,
    /// The process's own principal, when another one acts through it under a grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    invoked_by: Option<String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct AdditionalData {
    #[serde(skip_serializing_if = "Option::is_none")]
    key_material_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext_sha256: Option<String>,
}

#[derive(Debug, Serialize)]
struct Resource {
    #[serde(rename = "ARN")]
    arn: String,
    #[serde(rename = "accountId")]
    account_id: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Event {
    /// A call that begins now, under a fresh request id.
    pub(in crate::local) fn new(
        name: &'static str,
        caller: &Principal,
        scope: &Scope,
        parameters: Value,
    ) -> Self {
        Self {
            event_version: "1.09",
            user_identity: UserIdentity {
                kind: "LocalPrincipal",
                principal_id: caller.0.clone(),
                account_id: caller.as_account().unwrap_or(&scope.account).to_owned(),
                invoked_by: None,
            },
            event_time: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            event_source: "kms.amazonaws.com",
            event_name: name,
            aws_region: scope.region.clone(),
            request_parameters: parameters,
            response_elements: Value::Null,
            additional_event_data: None,
            request_id: Uuid::new_v4().to_string(),
            event_id: Uuid::new_v4().to_string(),
            read_only: true,
            resources: Vec::new(),
            event_type: "AwsApiCall",
            management_event: true,
            recipient_account_id: scope.account.clone(),
            error_code: None,
            error_message: None,
        }
    }

    /// What the log has to tell of itself, written by whoever comes upon it with this call.
    pub(super) fn note(&self, name: &'static str, parameters: Value) -> Self {
        Self {
            user_identity: self.user_identity.clone(),
            event_time: self.event_time.clone(),
            event_name: name,
            aws_region: self.aws_region.clone(),
            request_parameters: parameters,
            response_elements: Value::Null,
            additional_event_data: None,
            request_id: self.request_id.clone(),
            event_id: Uuid::new_v4().to_string(),
            resources: Vec::new(),
            event_type: "AwsServiceEvent",
            recipient_account_id: self.recipient_account_id.clone(),
            error_code: None,
            error_message: None,
            ..*self
        }
    }

    /// The call changes the store.
    pub(in crate::local) fn mutates(&mut self) {
        self.read_only = false;
    }

    /// The call is made by `principal`, through the process's own principal.
    pub(in crate::local) fn acts_as(&mut self, principal: &Principal) {
        let process = std::mem::replace(&mut self.user_identity.principal_id, principal.0.clone());
        self.user_identity.invoked_by = Some(process);
    }

    /// The call is about this key.
    pub(in crate::local) fn concerns(&mut self, arn: &str, scope: &Scope) {
        if self.resources.iter().all(|known| known.arn != arn) {
            let account_id = scope.account.clone();
            self.resources.push(Resource { arn: arn.to_owned(), account_id, kind: "AWS::KMS::Key" });
        }
    }

    /// The call uses this backing key.
    pub(in crate::local) fn uses_material(&mut self, key_material_id: &str) {
        self.additional().key_material_id = Some(key_material_id.to_owned());
    }

    /// The call takes or gives this wrapped key; only its hash is recorded.
    pub(in crate::local) fn carries(&mut self, wrapped: &WrappedKey) {
        self.additional().ciphertext_sha256 = Some(hex::encode(&Sha256::digest(&wrapped.0)));
    }

    /// The call failed.
    pub(in crate::local) fn failed(&mut self, kind: KmsErrorKind, message: &str) {
        self.response_elements = Value::Null;
        self.error_code = Some(kind.code());
        self.error_message = Some(message.to_owned());
    }

    fn additional(&mut self) -> &mut AdditionalData {
        self.additional_event_data.get_or_insert_default()
    }
}
