//! One call on the key store: its request id, its audit record, and its errors. Every verb, the administrative ones
//! too, runs inside [`LocalKms::audited`], so that none can be without a record.

use serde_json::Value;

use super::LocalKms;
use super::audit::Event;
use super::store::StoreError;
use crate::error::{KmsError, KmsErrorKind};
use crate::service::Principal;

/// The longest part of a caller's text that an error or an audit record repeats, in bytes.
const ECHO_BYTES_MAX: usize = 2048;

/// A call under way.
pub(super) struct Call {
    pub(super) operation: &'static str,
    /// The key as the caller named it, or its ARN once known.
    pub(super) key: String,
    /// Who acts: the process's principal, or a grantee.
    pub(super) principal: Principal,
    pub(super) event: Event,
}

impl Call {
    pub(super) fn fail(&self, kind: KmsErrorKind, message: impl Into<String>) -> KmsError {
        KmsError {
            kind,
            operation: self.operation,
            key: self.key.clone(),
            message: message.into(),
            request_id: self.event.request_id.clone(),
            source: None,
        }
    }

    /// The store does not work, which is not the caller's doing; or its root key stays locked, which is.
    pub(super) fn broken(&self, error: impl Into<StoreError>) -> KmsError {
        let error = error.into();
        let source = std::error::Error::source(&error).map(|cause| std::io::Error::other(cause.to_string()));
        KmsError { source, ..self.fail(error.kind(), error.to_string()) }
    }

    /// The usual words of KMS for a missing permission.
    pub(super) fn denied(&self, because: &str) -> KmsError {
        let (principal, operation, key) = (&self.principal, self.operation, &self.key);
        let message = format!(
            "User: {principal} is not authorized to perform: kms:{operation} on resource: {key} because {because}"
        );
        self.fail(KmsErrorKind::Denied, message)
    }
}

impl LocalKms {
    /// Runs `body` as one call and records it, whatever comes of it. Without a record there is no result: a log that
    /// cannot be opened, or has no room, stops the call before it begins; one that cannot be written makes it fail.
    pub(super) fn audited<T>(
        &self,
        operation: &'static str,
        key: &str,
        parameters: Value,
        body: impl FnOnce(&mut Call) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let mut call = Call {
            operation,
            key: clip(key),
            principal: self.caller.clone(),
            event: Event::new(operation, &self.caller, &self.scope, parameters),
        };
        let trail = self.store.audit_trail();
        let unwritable = |call: &Call, source| {
            let message = format!("the audit log {} cannot be written", trail.path().display());
            KmsError { source: Some(source), ..call.fail(KmsErrorKind::Misconfigured, message) }
        };
        trail.prepare().map_err(|source| unwritable(&call, source))?;
        let outcome = body(&mut call);
        if let Err(error) = &outcome {
            call.event.failed(error.kind, &error.message);
        }
        let root = self.store.root_key_at_hand();
        trail.append(&call.event, root.as_deref()).map_err(|source| unwritable(&call, source))?;
        outcome
    }
}

/// A caller's text, cut to a length that is safe to repeat.
pub(super) fn clip(text: &str) -> String {
    text.get(..text.floor_char_boundary(ECHO_BYTES_MAX)).unwrap_or_default().to_owned()
}
