//! The audit log: one JSON line per call, successful or not, with CloudTrail's field names (ebs.md C.9).
//!
//! Holds who asked for what, when, and what came of it; never plaintext, a wrapped key or key material. A wrapped key
//! appears as its SHA-256. Lines are whole and in order whatever the number of processes: each is appended under the
//! file's lock and synced before the call it tells of returns. A torn line, left by a power failure, stays as it is;
//! the next record starts on a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::hex;
use super::reference::Scope;
use crate::error::KmsErrorKind;
use crate::service::{Principal, WrappedKey};

/// One call, as the log tells of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    event_version: &'static str,
    user_identity: UserIdentity,
    event_time: String,
    event_source: &'static str,
    pub(super) event_name: &'static str,
    aws_region: String,
    pub(super) request_parameters: Value,
    pub(super) response_elements: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_event_data: Option<AdditionalData>,
    #[serde(rename = "requestID")]
    pub(super) request_id: String,
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

#[derive(Debug, Serialize)]
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
    pub(super) fn new(name: &'static str, caller: &Principal, scope: &Scope, parameters: Value) -> Self {
        Self {
            event_version: "1.09",
            user_identity: UserIdentity {
                kind: "LocalPrincipal",
                principal_id: caller.0.clone(),
                account_id: scope.account.clone(),
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

    /// The call changes the store.
    pub(super) fn mutates(&mut self) {
        self.read_only = false;
    }

    /// The call is made by `principal`, through the process's own principal.
    pub(super) fn acts_as(&mut self, principal: &Principal) {
        let process = std::mem::replace(&mut self.user_identity.principal_id, principal.0.clone());
        self.user_identity.invoked_by = Some(process);
    }

    /// The call is about this key.
    pub(super) fn concerns(&mut self, arn: &str, scope: &Scope) {
        if self.resources.iter().all(|known| known.arn != arn) {
            let account_id = scope.account.clone();
            self.resources.push(Resource { arn: arn.to_owned(), account_id, kind: "AWS::KMS::Key" });
        }
    }

    /// The call uses this backing key.
    pub(super) fn uses_material(&mut self, key_material_id: &str) {
        self.additional().key_material_id = Some(key_material_id.to_owned());
    }

    /// The call takes or gives this wrapped key; only its hash is recorded.
    pub(super) fn carries(&mut self, wrapped: &WrappedKey) {
        self.additional().ciphertext_sha256 = Some(hex::encode(&Sha256::digest(&wrapped.0)));
    }

    /// The call failed.
    pub(super) fn failed(&mut self, kind: KmsErrorKind, message: &str) {
        self.response_elements = Value::Null;
        self.error_code = Some(kind.code());
        self.error_message = Some(message.to_owned());
    }

    fn additional(&mut self) -> &mut AdditionalData {
        self.additional_event_data.get_or_insert_default()
    }
}

/// The log, opened for one record.
pub(super) struct AuditLog(File);

impl AuditLog {
    /// Opens or creates the log. Done before a call does anything, so that a log that cannot be written stops it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        options.open(path).map(Self)
    }

    /// Appends one record and syncs it.
    pub(super) fn append(mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        retry_on_intr(|| flock(&self.0, FlockOperation::LockExclusive))?;
        if !self.ends_with_newline()? {
            line.insert(0, b'\n');
        }
        self.0.write_all(&line)?;
        self.0.sync_data()
    }

    fn ends_with_newline(&self) -> io::Result<bool> {
        let length = self.0.metadata()?.len();
        let Some(last) = length.checked_sub(1) else { return Ok(true) };
        let mut byte = [0];
        self.0.read_exact_at(&mut byte, last)?;
        Ok(byte == *b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event::new("Decrypt", &Principal("uid:0".to_owned()), &Scope::default(), Value::Null)
    }

    #[test]
    fn a_torn_line_does_not_swallow_the_next_record() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "{\"torn").expect("written");
        AuditLog::open(&path).and_then(|log| log.append(&event())).expect("appended");
        let text = std::fs::read_to_string(&path).expect("read");
        let last = text.lines().last().expect("a line");
        let record: Value = serde_json::from_str(last).expect("the last line is a whole record");
        assert_eq!(record["eventName"], "Decrypt");
    }
}
