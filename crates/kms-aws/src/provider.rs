//! The calls (ebs.md A.6).

use std::collections::HashMap;

use aws_config::SdkConfig;
use aws_sdk_kms::Client;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{GrantConstraints, GrantOperation as AwsOperation};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, Kms,
    KmsError, KmsErrorKind, ReEncryptRequest, WrappedKey,
};
use tokio::runtime::Runtime;

use crate::answer::{data_key, key_metadata, wrapped};
use crate::error::{failed, not_its_format};

/// AWS KMS, reached through the SDK.
pub(crate) struct AwsKms {
    runtime: Runtime,
    client: Client,
    identity: aws_sdk_sts::Client,
}

impl AwsKms {
    pub(crate) fn new(runtime: Runtime, settings: &SdkConfig) -> Self {
        Self { runtime, client: Client::new(settings), identity: aws_sdk_sts::Client::new(settings) }
    }

    /// The ARN of whoever's credentials these are: the principal that a grant names. A host's own names (`host:…`)
    /// mean nothing to AWS.
    fn own_arn(&self, key: &str) -> Result<String, KmsError> {
        let answer = self.runtime.block_on(self.identity.get_caller_identity().send());
        let answer = answer.map_err(|error| {
            let mut told = failed("CreateGrant", key, &error);
            told.message = format!("AWS STS does not say whose credentials these are: {}", told.message);
            // Behind another endpoint there may be no STS, and then there are no grants either.
            if error.as_service_error().is_some() && told.kind == KmsErrorKind::Unsupported {
                told.kind = KmsErrorKind::NoGrants;
            }
            told
        })?;
        answer.arn.ok_or_else(|| not_its_format("CreateGrant", key, "an identity without an Arn"))
    }
}

impl Kms for AwsKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        let answer = self.runtime.block_on(self.client.describe_key().key_id(key).send());
        key_metadata(key, answer.map_err(|error| failed("DescribeKey", key, &error))?.key_metadata)
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        const OPERATION: &str = "GenerateDataKeyWithoutPlaintext";
        let call = self.client.generate_data_key_without_plaintext();
        let call = call.key_id(key).number_of_bytes(DATA_KEY_BYTES as i32);
        let answer = self.runtime.block_on(call.set_encryption_context(pairs(context)).send());
        wrapped(OPERATION, key, answer.map_err(|error| failed(OPERATION, key, &error))?.ciphertext_blob)
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        let call =
            self.client.decrypt().key_id(request.key).ciphertext_blob(Blob::new(request.wrapped.0.clone()));
        let answer = self.runtime.block_on(call.set_encryption_context(pairs(request.context)).send());
        let answer = answer.map_err(|error| failed("Decrypt", request.key, &error))?;
        if answer.key_id.as_deref() != Some(request.key) {
            return Err(not_its_format("Decrypt", request.key, "the plaintext of another key's ciphertext"));
        }
        data_key(request.key, answer.plaintext)
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let plaintext = data_key.expose(|bytes| Blob::new(bytes.as_slice()));
        let call = self.client.encrypt().key_id(key).plaintext(plaintext);
        let answer = self.runtime.block_on(call.set_encryption_context(pairs(context)).send());
        wrapped("Encrypt", key, answer.map_err(|error| failed("Encrypt", key, &error))?.ciphertext_blob)
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        const OPERATION: &str = "ReEncrypt";
        let call = self.client.re_encrypt().ciphertext_blob(Blob::new(request.wrapped.0.clone()));
        let call = call.source_key_id(request.from_key).destination_key_id(request.to_key);
        let call = call.set_source_encryption_context(pairs(request.from_context));
        let call = call.set_destination_encryption_context(pairs(request.to_context));
        let answer = self.runtime.block_on(call.send());
        let answer = answer.map_err(|error| failed(OPERATION, request.to_key, &error))?;
        wrapped(OPERATION, request.to_key, answer.ciphertext_blob)
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        const OPERATION: &str = "CreateGrant";
        let own = self.own_arn(&request.key)?;
        let constraints =
            GrantConstraints::builder().set_encryption_context_subset(pairs(&request.constraint)).build();
        let operations = request.operations.iter().map(|operation| aws_operation(*operation)).collect();
        let call =
            self.client.create_grant().key_id(&request.key).grantee_principal(&own).retiring_principal(&own);
        let call =
            call.set_operations(Some(operations)).constraints(constraints).set_name(request.name.clone());
        let answer = self.runtime.block_on(call.send()).map_err(|error| {
            let mut told = failed(OPERATION, &request.key, &error);
            // AWS itself has grants for every key that can be used here; what stands in for it may have none.
            if told.kind == KmsErrorKind::Unsupported {
                told.kind = KmsErrorKind::NoGrants;
            }
            told
        })?;
        let id = answer.grant_id.ok_or_else(|| not_its_format(OPERATION, &request.key, "no GrantId"))?;
        Ok(Grant { id: GrantId(id) })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        let call = self.client.retire_grant().key_id(key).grant_id(&grant.0);
        self.runtime.block_on(call.send()).map_err(|error| failed("RetireGrant", key, &error))?;
        Ok(())
    }
}

/// A context as the SDK takes it.
fn pairs(context: &EncryptionContext) -> Option<HashMap<String, String>> {
    Some(context.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn aws_operation(operation: GrantOperation) -> AwsOperation {
    // The seam's names are KMS's own.
    AwsOperation::from(format!("{operation:?}").as_str())
}
