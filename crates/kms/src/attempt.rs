//! One call of an external provider: what its errors carry. Such a provider's own log has the call; this process has no
//! request id of it unless the service gave one.

use crate::error::{KmsError, KmsErrorKind};

/// A call under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    /// The action's name, as in KMS.
    pub(crate) operation: &'static str,
    /// The key's reference.
    pub(crate) key: &'a str,
}

impl Attempt<'_> {
    pub(crate) fn fail(&self, kind: KmsErrorKind, message: impl Into<String>) -> KmsError {
        KmsError {
            kind,
            operation: self.operation,
            key: self.key.to_owned(),
            message: message.into(),
            request_id: "none".to_owned(),
            source: None,
        }
    }

    /// The provider, or this host, is not set up as it must be.
    pub(crate) fn misconfigured(&self, error: &dyn std::error::Error) -> KmsError {
        let source = error.source().map(|cause| std::io::Error::other(cause.to_string()));
        KmsError { source, ..self.fail(KmsErrorKind::Misconfigured, error.to_string()) }
    }

    /// A provider without grants was asked for one.
    pub(crate) fn no_grants(&self) -> KmsError {
        self.fail(KmsErrorKind::NoGrants, "this provider has no grants; its own permissions decide")
    }
}
