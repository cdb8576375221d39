//! The six verbs of `Kms` on the embedded store. Each: resolve the key, ask whether the principal may, whether the
//! key is usable, then do it; in that order, so that an error says the first thing that is in the way.

use std::io;

use sealblk_keymem::DataKey;
use serde_json::{Value, json};
use uuid::Uuid;

use super::authorize::Ask;
use super::blob::{self, BackingKey, BlobError, Header};
use super::call::{Call, clip};
use super::granting::NewGrant;
use super::grants::GrantConstraints;
use super::material::{Material, MaterialError};
use super::records::KeyRecord;
use super::spec::KeyUsage;
use super::{LocalKms, Naming};
use crate::context::EncryptionContext;
use crate::data_key;
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantRequest, KeyMetadata, Kms, ReEncryptRequest, WrappedKey,
};

/// The longest encryption context in its canonical form, in bytes.
const CONTEXT_BYTES_MAX: usize = 8192;

impl Kms for LocalKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.reading("DescribeKey", key, json!({ "keyId": clip(key) }), |call| {
            let record = self.resolve(call, key, Naming::Any)?;
            self.authorize(call, &Ask::new("DescribeKey", &record).named(key))?;
            Ok(self.metadata(&record))
        })
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let parameters = json!({
            "keyId": clip(key),
            "numberOfBytes": sealblk_keymem::DATA_KEY_BYTES,
            "encryptionContext": context_value(context),
        });
        self.reading("GenerateDataKeyWithoutPlaintext", key, parameters, |call| {
            check_context(call, context)?;
            let record = self.resolve(call, key, Naming::Any)?;
            let ask = Ask::new("GenerateDataKeyWithoutPlaintext", &record);
            self.authorize(call, &ask.bound_to(context).named(key))?;
            self.check_usable(call, &record)?;
            let data_key = data_key::generate().map_err(|e| call.broken(MaterialError::from(e)))?;
            self.wrap(call, record, &data_key, context)
        })
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        let mut parameters = json!({
            "keyId": clip(request.key),
            "encryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "encryptionContext": context_value(request.context),
        });
        if let Some((grant, _)) = request.grant {
            parameters["grantId"] = clip(&grant.0).into();
        }
        self.reading("Decrypt", request.key, parameters, |call| {
            call.event.carries(request.wrapped);
            check_context(call, request.context)?;
            let record = self.resolve(call, request.key, Naming::Any)?;
            if let Some((_, grantee)) = request.grant {
                self.authorize_acting_as(call, grantee)?;
                call.event.acts_as(grantee);
                call.principal = grantee.clone();
            }
            let ask = Ask::new("Decrypt", &record).bound_to(request.context).named(request.key);
            self.authorize(call, &ask.under(request.grant.map(|(grant, _)| grant)))?;
            self.check_usable(call, &record)?;
            self.unwrap(call, &record, request.wrapped, request.context)
        })
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let parameters = json!({ "keyId": clip(key), "encryptionContext": context_value(context) });
        self.reading("Encrypt", key, parameters, |call| {
            check_context(call, context)?;
            let record = self.resolve(call, key, Naming::Any)?;
            self.authorize(call, &Ask::new("Encrypt", &record).bound_to(context).named(key))?;
            self.check_usable(call, &record)?;
            self.wrap(call, record, data_key, context)
        })
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let (from_context, to_context) = (request.from_context, request.to_context);
        let parameters = json!({
            "sourceKeyId": clip(request.from_key),
            "sourceEncryptionContext": context_value(from_context),
            "destinationKeyId": clip(request.to_key),
            "destinationEncryptionContext": context_value(to_context),
        });
        self.reading("ReEncrypt", request.to_key, parameters, |call| {
            check_context(call, from_context)?;
            check_context(call, to_context)?;
            let source = self.resolve(call, request.from_key, Naming::Any)?;
            let ask = Ask::new("ReEncryptFrom", &source).bound_to(from_context).named(request.from_key);
            self.authorize(call, &ask)?;
            self.check_usable(call, &source)?;
            call.key = clip(request.to_key);
            let destination = self.resolve(call, request.to_key, Naming::Any)?;
            let ask = Ask::new("ReEncryptTo", &destination).bound_to(to_context).named(request.to_key);
            self.authorize(call, &ask)?;
            self.check_usable(call, &destination)?;
            self.concerns(call, &source);
            let data_key = self.unwrap(call, &source, request.wrapped, from_context)?;
            self.concerns(call, &destination);
            self.wrap(call, destination, &data_key, to_context)
        })
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        let request = NewGrant {
            key: request.key.clone(),
            grantee: request.grantee.clone(),
            retiring: None,
            operations: request.operations.clone(),
            constraints: GrantConstraints::subset(request.constraint.clone()),
            name: request.name.clone(),
        };
        Ok(Grant { id: self.issue_grant(&request)?.grant_id })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        self.end_grant("RetireGrant", key, grant)
    }
}

impl LocalKms {
    /// Refuses a key that cannot wrap, whatever its state, and one that is not enabled.
    fn check_usable(&self, call: &Call, key: &KeyRecord) -> Result<(), KmsError> {
        if key.key_usage != KeyUsage::ENCRYPT_DECRYPT {
            let message = format!(
                "{} key usage is {:?} which is not valid for {}.",
                call.key, key.key_usage, call.operation
            );
            return Err(call.fail(KmsErrorKind::InvalidKeyUsage, message));
        }
        if !key.key_spec.is_symmetric() {
            let message = format!(
                "{} key spec is {:?} which is not valid for {}.",
                call.key, key.key_spec, call.operation
            );
            return Err(call.fail(KmsErrorKind::InvalidKeyUsage, message));
        }
        self.require_enabled(call, key)
    }

    fn wrap(
        &self,
        call: &mut Call,
        key: KeyRecord,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let key = self.rotated_if_due(key).map_err(|e| call.broken(e))?;
        let material = self.store.current_material(&key).map_err(|e| call.broken(e))?;
        let material_id = material.id().ok_or_else(|| call.broken(MaterialError::Unauthentic))?;
        call.event.uses_material(&material.key_material_id);
        let backing = self.backing_key(call, key.key_id, material)?;
        let mut nonce = [0; 32];
        getrandom_fill(&mut nonce).map_err(|e| call.broken(MaterialError::Random(e)))?;
        let header = Header { key_id: key.key_id, material_id, nonce };
        let sealed = blob::seal(&header, &backing, context, data_key);
        let wrapped = sealed.map_err(|error| blob_failure(call, error))?;
        call.event.carries(&wrapped);
        Ok(wrapped)
    }

    fn unwrap(
        &self,
        call: &mut Call,
        key: &KeyRecord,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let Some(blob) = blob::parse(wrapped) else { return Err(invalid_ciphertext(call)) };
        if blob.header.key_id != key.key_id {
            if self.store.key(blob.header.key_id).map_err(|e| call.broken(e))?.is_none() {
                return Err(invalid_ciphertext(call));
            }
            let message =
                "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(call.fail(KmsErrorKind::IncorrectKey, message));
        }
        let named = key.materials.iter().find(|material| material.id() == Some(blob.header.material_id));
        let Some(material) = named else { return Err(invalid_ciphertext(call)) };
        call.event.uses_material(&material.key_material_id);
        let backing = self.backing_key(call, key.key_id, material)?;
        blob::open(&blob, &backing, context).map_err(|error| blob_failure(call, error))
    }

    fn backing_key(&self, call: &Call, key: Uuid, material: &Material) -> Result<BackingKey, KmsError> {
        let root = self.store.root_key().map_err(|e| call.broken(e))?;
        material.open(&root, key).map_err(|e| call.broken(e))
    }
}

/// Wrong context, damage and foreign bytes alike: KMS does not tell them apart, and neither can the cipher.
fn invalid_ciphertext(call: &Call) -> KmsError {
    let message =
        "the wrapped key is damaged, is not this key store's, or was made for another encryption context";
    call.fail(KmsErrorKind::InvalidCiphertext, message)
}

fn blob_failure(call: &Call, error: BlobError) -> KmsError {
    match error {
        BlobError::Unauthentic => invalid_ciphertext(call),
        BlobError::KeyMemory(error) => call.broken(MaterialError::KeyMemory(error)),
    }
}

/// Refuses a context that nothing can be bound to.
pub(super) fn check_context(call: &Call, context: &EncryptionContext) -> Result<(), KmsError> {
    if context.is_empty() {
        return Err(call.fail(KmsErrorKind::InvalidRequest, "an encryption context is needed"));
    }
    if context_value(context).is_null() {
        return Err(
            call.fail(KmsErrorKind::InvalidRequest, "the encryption context is longer than 8192 bytes")
        );
    }
    Ok(())
}

/// The context for the log; null when it is too long for one.
pub(super) fn context_value(context: &EncryptionContext) -> Value {
    let mut canonical = Vec::new();
    context.append_canonical(&mut canonical);
    if canonical.len() > CONTEXT_BYTES_MAX { Value::Null } else { json!(context) }
}

fn getrandom_fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::from)
}
