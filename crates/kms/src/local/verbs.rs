//! The six verbs of `Kms` on the embedded store. Each: resolve the key, ask whether the principal may, whether the
//! key is usable, then do it; in that order, so that an error says the first thing that is in the way.

use std::io;

use sealblk_keymem::DataKey;
use serde_json::{Value, json};
use uuid::Uuid;

use super::blob::{self, BackingKey, BlobError, Header};
use super::call::{Call, clip};
use super::grants::{self, GrantConstraints, GrantEntry};
use super::material::{Material, MaterialError};
use super::store::KeyRecord;
use super::{LocalKms, Naming, now};
use crate::context::EncryptionContext;
use crate::data_key;
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, KeyState, Kms,
    ReEncryptRequest, WrappedKey,
};

/// The longest encryption context in its canonical form, in bytes.
const CONTEXT_BYTES_MAX: usize = 8192;

impl Kms for LocalKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.audited("DescribeKey", key, json!({ "keyId": clip(key) }), |call| {
            self.authorize_owner(call)?;
            Ok(self.metadata(&self.resolve(call, key, Naming::Any)?))
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
        self.audited("GenerateDataKeyWithoutPlaintext", key, parameters, |call| {
            self.authorize_owner(call)?;
            check_context(call, context)?;
            let record = self.resolve(call, key, Naming::Any)?;
            self.check_usable(call, &record)?;
            let data_key = data_key::generate().map_err(|e| call.broken(MaterialError::from(e)))?;
            self.wrap(call, &record, &data_key, context)
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
        self.audited("Decrypt", request.key, parameters, |call| {
            call.event.carries(request.wrapped);
            if let Some((_, grantee)) = request.grant {
                call.event.acts_as(grantee);
                call.principal = grantee.clone();
            }
            check_context(call, request.context)?;
            let record = self.resolve(call, request.key, Naming::Any)?;
            self.authorize_decrypt(call, &record, request)?;
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
        self.audited("Encrypt", key, parameters, |call| {
            self.authorize_owner(call)?;
            check_context(call, context)?;
            let record = self.resolve(call, key, Naming::Any)?;
            self.check_usable(call, &record)?;
            self.wrap(call, &record, data_key, context)
        })
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let parameters = json!({
            "sourceKeyId": clip(request.from_key),
            "sourceEncryptionContext": context_value(request.from_context),
            "destinationKeyId": clip(request.to_key),
            "destinationEncryptionContext": context_value(request.to_context),
        });
        self.audited("ReEncrypt", request.to_key, parameters, |call| {
            self.authorize_owner(call)?;
            check_context(call, request.from_context)?;
            check_context(call, request.to_context)?;
            let source = self.resolve(call, request.from_key, Naming::Any)?;
            self.check_usable(call, &source)?;
            let data_key = self.unwrap(call, &source, request.wrapped, request.from_context)?;
            call.key = clip(request.to_key);
            let destination = self.resolve(call, request.to_key, Naming::Any)?;
            self.check_usable(call, &destination)?;
            self.wrap(call, &destination, &data_key, request.to_context)
        })
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        let parameters = json!({
            "keyId": clip(&request.key),
            "granteePrincipal": clip(&request.grantee.0),
            "operations": request.operations,
            "constraints": { "encryptionContextSubset": context_value(&request.constraint) },
            "name": request.name.as_deref().map(clip),
        });
        self.audited("CreateGrant", &request.key, parameters, |call| {
            call.event.mutates();
            self.authorize_owner(call)?;
            check_context(call, &request.constraint)?;
            if let Some(fault) = grants::invalid(request) {
                return Err(call.fail(KmsErrorKind::InvalidRequest, fault));
            }
            let record = self.resolve(call, &request.key, Naming::IdOrArn)?;
            self.check_usable(call, &record)?;
            let id = self.record_grant(call, &record, request)?;
            call.event.response_elements = json!({ "grantId": id, "keyId": call.key });
            Ok(Grant { id })
        })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        let parameters = json!({ "keyId": clip(key), "grantId": clip(&grant.0) });
        self.audited("RetireGrant", key, parameters, |call| {
            call.event.mutates();
            if !grants::is_id(grant) {
                return Err(call.fail(KmsErrorKind::InvalidRequest, "a grant id is 64 lower-case hex digits"));
            }
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            let mut list = self.store.grants(record.key_id).map_err(|e| call.broken(e))?;
            let Some(entry) = list.find(grant) else {
                let message = format!("Grant ID {} not found", grant.0);
                return Err(call.fail(KmsErrorKind::NotFound, message));
            };
            if entry.issuing_principal != call.principal {
                self.authorize_owner(call)?;
            }
            list.remove(grant);
            self.store.put_grants(record.key_id, &list).map_err(|e| call.broken(e))
        })
    }
}

impl LocalKms {
    /// The owner needs no grant; anybody who names one is held to it, the owner too.
    fn authorize_decrypt(
        &self,
        call: &Call,
        key: &KeyRecord,
        request: &DecryptRequest<'_>,
    ) -> Result<(), KmsError> {
        let Some((id, grantee)) = request.grant else {
            return self.authorize_owner(call);
        };
        let list = self.store.grants(key.key_id).map_err(|e| call.broken(e))?;
        let because = match list.find(id) {
            Some(entry) => entry.refuses(GrantOperation::Decrypt, grantee, request.context),
            None => Some("does not exist"),
        };
        because.map_or(Ok(()), |because| Err(call.denied(&format!("grant {} {because}", clip(&id.0)))))
    }

    fn check_usable(&self, call: &Call, key: &KeyRecord) -> Result<(), KmsError> {
        if key.key_usage != "ENCRYPT_DECRYPT" || key.key_spec != "SYMMETRIC_DEFAULT" {
            let message = format!(
                "{} key usage is {} which is not valid for {}.",
                call.key, key.key_usage, call.operation
            );
            return Err(call.fail(KmsErrorKind::InvalidKeyUsage, message));
        }
        match key.key_state {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => {
                Err(call.fail(KmsErrorKind::Disabled, format!("{} is disabled.", call.key)))
            }
            KeyState::PendingDeletion => Err(self.pending_deletion(call)),
        }
    }

    fn wrap(
        &self,
        call: &mut Call,
        key: &KeyRecord,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let material = self.store.current_material(key).map_err(|e| call.broken(e))?;
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
            let message =
                "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(call.fail(KmsErrorKind::InvalidCiphertext, message));
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

    /// Adds the grant to the key's list, or finds the one that the same request made before.
    fn record_grant(
        &self,
        call: &Call,
        key: &KeyRecord,
        request: &GrantRequest,
    ) -> Result<GrantId, KmsError> {
        let _lock = self.store.lock().map_err(|e| call.broken(e))?;
        let mut list = self.store.grants(key.key_id).map_err(|e| call.broken(e))?;
        if let Some(known) = list.same_as(request, &call.principal) {
            return Ok(known.grant_id.clone());
        }
        if list.is_full() {
            return Err(
                call.fail(KmsErrorKind::InvalidRequest, "the limit of grants on this key has been reached")
            );
        }
        let id = grants::new_id().map_err(|e| call.broken(MaterialError::Random(e)))?;
        list.grants.push(GrantEntry {
            grant_id: id.clone(),
            key_id: call.key.clone(),
            grantee_principal: request.grantee.clone(),
            issuing_principal: call.principal.clone(),
            operations: request.operations.clone(),
            constraints: GrantConstraints { encryption_context_subset: request.constraint.clone() },
            name: request.name.clone(),
            creation_date: now(),
        });
        self.store.put_grants(key.key_id, &list).map_err(|e| call.broken(e))?;
        Ok(id)
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

fn check_context(call: &Call, context: &EncryptionContext) -> Result<(), KmsError> {
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
fn context_value(context: &EncryptionContext) -> Value {
    let mut canonical = Vec::new();
    context.append_canonical(&mut canonical);
    if canonical.len() > CONTEXT_BYTES_MAX { Value::Null } else { json!(context) }
}

fn getrandom_fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(io::Error::from)
}
