//! Key services that wrap and unwrap what they are given, and do little more: data keys are made here unless the service makes
//! them, a re-encryption is both, and of grants they know nothing. What that makes of the seam is said once.

use sealblk_keymem::DataKey;

use crate::attempt::Attempt;
use crate::context::EncryptionContext;
use crate::data_key;
use crate::error::KmsError;
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantRequest, KeyMetadata, Kms, ReEncryptRequest, WrappedKey,
};

/// What such a service does; the key is the attempt's.
pub(crate) trait WrappingService {
    /// What is known of the key.
    fn describe(&self, attempt: Attempt<'_>) -> Result<KeyMetadata, KmsError>;

    /// A new data key under the key, for `context` and no other.
    fn generate(&self, attempt: Attempt<'_>, context: &EncryptionContext) -> Result<WrappedKey, KmsError> {
        let data_key = data_key::generate().map_err(|error| attempt.misconfigured(&error))?;
        self.wrap(attempt, &data_key, context)
    }

    /// The data key under the key, for `context` and no other.
    fn wrap(
        &self,
        attempt: Attempt<'_>,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError>;

    /// The data key again.
    fn unwrap(
        &self,
        attempt: Attempt<'_>,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError>;
}

impl<S: WrappingService> Kms for S {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.describe(Attempt { operation: "DescribeKey", key })
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.generate(Attempt { operation: "GenerateDataKeyWithoutPlaintext", key }, context)
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        self.unwrap(Attempt { operation: "Decrypt", key: request.key }, request.wrapped, request.context)
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.wrap(Attempt { operation: "Encrypt", key }, data_key, context)
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let attempt = Attempt { operation: "Decrypt", key: request.from_key };
        let data_key = self.unwrap(attempt, request.wrapped, request.from_context)?;
        self.encrypt(request.to_key, &data_key, request.to_context)
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        Err(Attempt { operation: "CreateGrant", key: &request.key }.no_grants())
    }

    fn retire_grant(&self, key: &str, _grant: &GrantId) -> Result<(), KmsError> {
        Err(Attempt { operation: "RetireGrant", key }.no_grants())
    }
}
