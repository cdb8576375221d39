//! Errors of a key service: each kind is a decision for the caller.

use serde::{Deserialize, Serialize};

/// What the caller can do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum KmsErrorKind {
    /// The service did not answer: retry later (exit code 6).
    Unreachable,
    /// The principal may not do this (exit code 5).
    Denied,
    /// No such key, alias or grant (exit code 3).
    NotFound,
    /// The key is disabled (exit code 5).
    Disabled,
    /// The key is scheduled for deletion (exit code 5).
    PendingDeletion,
    /// The key, alias or grant is not in the state that this needs: not pending deletion (exit code 4).
    InvalidState,
    /// The name is taken (exit code 4).
    AlreadyExists,
    /// There may be no more of these (exit code 4).
    LimitExceeded,
    /// The key cannot be used for this: asymmetric, wrong usage (exit code 5).
    InvalidKeyUsage,
    /// Such a key has no such operation: rotation of an asymmetric one (exit code 5).
    Unsupported,
    /// The wrapped key is another key's than the one named (exit code 5).
    IncorrectKey,
    /// Not this service's ciphertext, damaged, or another encryption context (exit code 5).
    InvalidCiphertext,
    /// A parameter is wrong (exit code 2).
    InvalidRequest,
    /// A policy is not one, or says what cannot be evaluated (exit code 2).
    MalformedPolicy,
    /// The provider has no grants: go on without one.
    NoGrants,
    /// The provider is not set up properly, or its store is damaged (exit code 1).
    Misconfigured,
}

impl KmsErrorKind {
    /// The error code that KMS's own interface and audit log have for this kind (ebs.md C.1, C.2).
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "DependencyTimeoutException",
            Self::Denied => "AccessDeniedException",
            Self::NotFound => "NotFoundException",
            Self::Disabled => "DisabledException",
            Self::PendingDeletion | Self::InvalidState => "KMSInvalidStateException",
            Self::AlreadyExists => "AlreadyExistsException",
            Self::LimitExceeded => "LimitExceededException",
            Self::InvalidKeyUsage => "InvalidKeyUsageException",
            Self::Unsupported | Self::NoGrants => "UnsupportedOperationException",
            Self::IncorrectKey => "IncorrectKeyException",
            Self::InvalidCiphertext => "InvalidCiphertextException",
            Self::InvalidRequest => "ValidationException",
            Self::MalformedPolicy => "MalformedPolicyDocumentException",
            Self::Misconfigured => "KMSInternalException",
        }
    }
}

/// A failed call: which operation, on which key, under which request id, and why.
#[derive(Debug, thiserror::Error)]
#[error("kms {operation} on {key}: {message} (request {request_id})")]
pub struct KmsError {
    /// What to decide by.
    pub kind: KmsErrorKind,
    /// The KMS action's name, for example `Decrypt`.
    pub operation: &'static str,
    /// The key as the caller named it, or its ARN once known.
    pub key: String,
    /// The state or reason in words; never key material.
    pub message: String,
    /// The id under which the audit log has this call.
    pub request_id: String,
    /// The cause, where there is one below.
    #[source]
    pub source: Option<std::io::Error>,
}
