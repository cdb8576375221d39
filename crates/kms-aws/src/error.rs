//! From the SDK's errors to the seam's: each kind is a decision for the caller.

use std::error::Error;
use std::io;

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use sealblk_kms::{KmsError, KmsErrorKind};

/// Something here, not a call, is wrong.
pub(crate) fn misconfigured(message: impl Into<String>, source: Option<io::Error>) -> KmsError {
    KmsError {
        kind: KmsErrorKind::Misconfigured,
        operation: "OpenProvider",
        key: "AWS KMS".to_owned(),
        message: message.into(),
        request_id: "none".to_owned(),
        source,
    }
}

/// The service answered, and not with what it documents.
pub(crate) fn not_its_format(operation: &'static str, key: &str, message: &str) -> KmsError {
    KmsError {
        kind: KmsErrorKind::Misconfigured,
        operation,
        key: key.to_owned(),
        message: format!("AWS KMS answered with {message}"),
        request_id: "none".to_owned(),
        source: None,
    }
}

/// A failed call of the SDK.
pub(crate) fn failed<E>(operation: &'static str, key: &str, error: &SdkError<E, HttpResponse>) -> KmsError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let request_id = error.request_id().unwrap_or("none").to_owned();
    let (kind, message) = match error {
        SdkError::ServiceError(refused) => refusal(refused.err()),
        SdkError::TimeoutError(_) => (KmsErrorKind::Unreachable, "AWS KMS did not answer in time".to_owned()),
        SdkError::DispatchFailure(failure) if failure.is_io() || failure.is_timeout() => {
            (KmsErrorKind::Unreachable, format!("AWS KMS cannot be reached: {}", causes(error)))
        }
        SdkError::ResponseError(_) => {
            (KmsErrorKind::Unreachable, format!("the answer of AWS KMS is not one: {}", causes(error)))
        }
        // No credentials, mostly.
        _ => (KmsErrorKind::Misconfigured, format!("the call cannot be made: {}", causes(error))),
    };
    KmsError { kind, operation, key: key.to_owned(), message, request_id, source: None }
}

/// What the service says of a call that it refuses.
fn refusal(error: &impl ProvideErrorMetadata) -> (KmsErrorKind, String) {
    let code = error.code().unwrap_or("an error without a code");
    let said = error.message().unwrap_or("no message");
    (kind(code, said), format!("{code}: {said}"))
}

fn kind(code: &str, message: &str) -> KmsErrorKind {
    match code {
        "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "OptInRequired" => KmsErrorKind::Denied,
        "NotFoundException" => KmsErrorKind::NotFound,
        "DisabledException" => KmsErrorKind::Disabled,
        // One code for several states; the message is all that tells them apart.
        "KMSInvalidStateException" if message.contains("pending deletion") => KmsErrorKind::PendingDeletion,
        "KMSInvalidStateException" => KmsErrorKind::InvalidState,
        "InvalidKeyUsageException" => KmsErrorKind::InvalidKeyUsage,
        "IncorrectKeyException" => KmsErrorKind::IncorrectKey,
        "InvalidCiphertextException" => KmsErrorKind::InvalidCiphertext,
        "LimitExceededException" => KmsErrorKind::LimitExceeded,
        "UnsupportedOperationException"
        | "UnknownOperationException"
        | "InvalidAction"
        | "NotImplemented" => KmsErrorKind::Unsupported,
        "ValidationException" | "InvalidArnException" | "InvalidGrantTokenException" => {
            KmsErrorKind::InvalidRequest
        }
        "DependencyTimeoutException"
        | "KMSInternalException"
        | "KeyUnavailableException"
        | "InternalFailure"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestExpired"
        | "ThrottlingException" => KmsErrorKind::Unreachable,
        _ => KmsErrorKind::Misconfigured,
    }
}

/// An error's causes in one line, without its own words: the SDK's say only that there was one.
fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_pending_deletion_is_told_from_other_states() {
        let message = "arn:aws:kms:eu-west-1:111122223333:key/k is pending deletion.";
        assert_eq!(kind("KMSInvalidStateException", message), KmsErrorKind::PendingDeletion);
        assert_eq!(kind("KMSInvalidStateException", "… is pending import."), KmsErrorKind::InvalidState);
    }

    #[test]
    fn what_may_pass_is_unreachable_and_what_nobody_knows_is_not() {
        assert_eq!(kind("ThrottlingException", ""), KmsErrorKind::Unreachable);
        assert_eq!(kind("SomethingNew", ""), KmsErrorKind::Misconfigured);
    }
}
