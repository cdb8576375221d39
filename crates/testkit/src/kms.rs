//! A key service in memory whose every data key is known to the test, so that it can be searched for in files, logs
//! and memory. It keeps contexts, key states and grants as a real one does, and can be told to fail. No cryptography:
//! its wrapped keys hold no key at all.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sealblk_keymem::{DATA_KEY_BYTES, DataKey, KeyMemError};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, Grant, GrantId, GrantOperation, GrantRequest, KeyMetadata, KeyState,
    Kms, KmsError, KmsErrorKind, ReEncryptRequest, WrappedKey,
};

const DEFAULT_ALIAS: &str = "alias/aws/ebs";
const MAGIC: &[u8] = b"FIXEDKEY";

/// A `Kms` that hands out one known data key.
///
/// `alias/aws/ebs` names its first key; [`FixedKeyKms::add_key`] makes more. It has no principals: whoever holds it
/// is the owner.
pub struct FixedKeyKms {
    data_key: [u8; DATA_KEY_BYTES],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: BTreeMap<String, KeyState>,
    grants: BTreeMap<String, GrantRequest>,
    next_grant: u64,
    calls: Vec<&'static str>,
    failure: Option<KmsErrorKind>,
}

impl FixedKeyKms {
    /// A service with one enabled key, whose every data key is `data_key`.
    pub fn new(data_key: [u8; DATA_KEY_BYTES]) -> Self {
        let kms = Self { data_key, state: Mutex::default() };
        kms.add_key();
        kms
    }

    /// Another enabled key; its ARN.
    pub fn add_key(&self) -> String {
        let mut state = self.state();
        let arn = format!("arn:aws:kms:test:000000000000:key/{}", key_id(state.keys.len()));
        state.keys.insert(arn.clone(), KeyState::Enabled);
        arn
    }

    /// Puts a key, named by its ARN, into a state.
    pub fn set_state(&self, arn: &str, state: KeyState) {
        self.state().keys.insert(arn.to_owned(), state);
    }

    /// From now on every call fails so; `None`: works again.
    pub fn fail_with(&self, failure: Option<KmsErrorKind>) {
        self.state().failure = failure;
    }

    /// The operations called so far, failed ones too, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// The grants that have not been retired.
    pub fn grants(&self) -> Vec<GrantRequest> {
        self.state().grants.values().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call; finds the key, which must be enabled if the call uses it.
    fn begin(&self, operation: &'static str, key: &str, uses_key: bool) -> Result<String, KmsError> {
        let mut state = self.state();
        state.calls.push(operation);
        if let Some(kind) = state.failure {
            return Err(error(kind, operation, key, "told to fail"));
        }
        let named = |arn: &str| arn == key || arn.ends_with(&format!("/{key}"));
        let first = format!("arn:aws:kms:test:000000000000:key/{}", key_id(0));
        let arn = match key {
            DEFAULT_ALIAS => Some(first),
            _ => state.keys.keys().find(|arn| named(arn)).cloned(),
        };
        let arn = arn.ok_or_else(|| error(KmsErrorKind::NotFound, operation, key, "does not exist"))?;
        match state.keys.get(&arn) {
            Some(KeyState::Disabled) if uses_key => {
                Err(error(KmsErrorKind::Disabled, operation, &arn, "is disabled"))
            }
            Some(KeyState::PendingDeletion) if uses_key => {
                Err(error(KmsErrorKind::PendingDeletion, operation, &arn, "is pending deletion"))
            }
            _ => Ok(arn),
        }
    }

    fn grant_allows(&self, arn: &str, request: &DecryptRequest<'_>) -> bool {
        let Some((id, grantee)) = request.grant else { return true };
        self.state().grants.get(&id.0).is_some_and(|grant| {
            grant.key == arn
                && grant.grantee == *grantee
                && grant.operations.contains(&GrantOperation::Decrypt)
                && grant.constraint.is_subset_of(request.context)
        })
    }
}

impl Kms for FixedKeyKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        let arn = self.begin("DescribeKey", key, false)?;
        let key_state = self.state().keys.get(&arn).copied().unwrap_or(KeyState::Enabled);
        let is_default = arn.ends_with(&key_id(0));
        let key_id = arn.rsplit('/').next().unwrap_or_default().to_owned();
        let key_manager = if is_default { "AWS" } else { "CUSTOMER" }.to_owned();
        Ok(KeyMetadata { key_manager, ..KeyMetadata::symmetric(key_id, arn, key_state) })
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        Ok(wrap(&self.begin("GenerateDataKeyWithoutPlaintext", key, true)?, context))
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        let arn = self.begin("Decrypt", request.key, true)?;
        if !self.grant_allows(&arn, request) {
            return Err(error(KmsErrorKind::Denied, "Decrypt", &arn, "the grant does not allow it"));
        }
        if *request.wrapped != wrap(&arn, request.context) {
            return Err(error(KmsErrorKind::InvalidCiphertext, "Decrypt", &arn, "another context or key"));
        }
        DataKey::init(|bytes| {
            *bytes = self.data_key;
            Ok::<(), KeyMemError>(())
        })
        .map_err(|e| error(KmsErrorKind::Misconfigured, "Decrypt", &arn, &e.to_string()))
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let arn = self.begin("Encrypt", key, true)?;
        if data_key.expose(|bytes| *bytes != self.data_key) {
            return Err(error(KmsErrorKind::InvalidRequest, "Encrypt", &arn, "another data key"));
        }
        Ok(wrap(&arn, context))
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let arn = self.begin("ReEncrypt", request.to_key, true)?;
        let source = self.state().keys.iter().find_map(|(source, state)| {
            let made_it = *request.wrapped == wrap(source, request.from_context);
            (source == request.from_key && made_it).then_some((source.clone(), *state))
        });
        match source {
            Some((_, KeyState::Enabled)) => Ok(wrap(&arn, request.to_context)),
            Some((source, _)) => Err(error(KmsErrorKind::Disabled, "ReEncrypt", &source, "is not enabled")),
            None => Err(error(KmsErrorKind::InvalidCiphertext, "ReEncrypt", &arn, "another context or key")),
        }
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        let arn = self.begin("CreateGrant", &request.key, true)?;
        let mut state = self.state();
        let request = GrantRequest { key: arn, ..request.clone() };
        let known = state.grants.iter().find(|(_, grant)| request.name.is_some() && **grant == request);
        if let Some((id, _)) = known {
            return Ok(Grant { id: GrantId(id.clone()) });
        }
        state.next_grant += 1;
        let id = format!("{:064x}", state.next_grant);
        state.grants.insert(id.clone(), request);
        Ok(Grant { id: GrantId(id) })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        let arn = self.begin("RetireGrant", key, false)?;
        let missing = || error(KmsErrorKind::NotFound, "RetireGrant", &arn, "no such grant");
        self.state().grants.remove(&grant.0).map(drop).ok_or_else(missing)
    }
}

fn key_id(index: usize) -> String {
    format!("00000000-0000-4000-8000-{index:012x}")
}

/// Magic, ARN, a zero byte, canonical context: enough to check all that Decrypt checks.
fn wrap(arn: &str, context: &EncryptionContext) -> WrappedKey {
    let mut bytes = [MAGIC, arn.as_bytes(), &[0]].concat();
    context.append_canonical(&mut bytes);
    WrappedKey(bytes)
}

fn error(kind: KmsErrorKind, operation: &'static str, key: &str, message: &str) -> KmsError {
    KmsError {
        kind,
        operation,
        key: key.to_owned(),
        message: message.to_owned(),
        request_id: "fixed-key".to_owned(),
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> EncryptionContext {
        EncryptionContext::for_resource("vol-0123456789abcdef0")
    }

    #[test]
    fn the_known_key_comes_back_under_its_own_context_only() {
        let kms = FixedKeyKms::new([7; 64]);
        let arn = kms.describe_key(DEFAULT_ALIAS).expect("described").arn;
        let wrapped = kms.generate_data_key_without_plaintext(&arn, &context()).expect("generated");
        let (own, other) = (context(), EncryptionContext::for_resource("vol-0123456789abcdef1"));
        let ask =
            |context| kms.decrypt(&DecryptRequest { wrapped: &wrapped, key: &arn, context, grant: None });
        ask(&own).expect("decrypted").expose(|bytes| assert_eq!(*bytes, [7; 64]));
        assert_eq!(ask(&other).expect_err("another context").kind, KmsErrorKind::InvalidCiphertext);
    }

    #[test]
    fn a_disabled_key_and_an_outage_fail_as_a_real_service_does() {
        let kms = FixedKeyKms::new([7; 64]);
        let arn = kms.add_key();
        kms.set_state(&arn, KeyState::Disabled);
        let disabled = kms.generate_data_key_without_plaintext(&arn, &context());
        assert_eq!(disabled.expect_err("disabled").kind, KmsErrorKind::Disabled);
        kms.fail_with(Some(KmsErrorKind::Unreachable));
        assert_eq!(kms.describe_key(&arn).expect_err("an outage").kind, KmsErrorKind::Unreachable);
        assert_eq!(kms.calls(), ["GenerateDataKeyWithoutPlaintext", "DescribeKey"]);
    }

    #[test]
    fn a_retired_grant_no_longer_allows() {
        let kms = FixedKeyKms::new([7; 64]);
        let arn = kms.describe_key(DEFAULT_ALIAS).expect("described").arn;
        let wrapped = kms.generate_data_key_without_plaintext(&arn, &context()).expect("generated");
        let grantee = sealblk_kms::Principal("host:test".to_owned());
        let request = GrantRequest {
            key: arn.clone(),
            grantee: grantee.clone(),
            operations: vec![GrantOperation::Decrypt],
            constraint: context(),
            name: None,
        };
        let id = kms.create_grant(&request).expect("granted").id;
        let ask = || {
            let grant = Some((&id, &grantee));
            kms.decrypt(&DecryptRequest { wrapped: &wrapped, key: &arn, context: &context(), grant })
        };
        ask().expect("allowed by the grant");
        kms.retire_grant(&arn, &id).expect("retired");
        assert_eq!(ask().expect_err("retired").kind, KmsErrorKind::Denied);
        assert!(kms.grants().is_empty());
    }
}
