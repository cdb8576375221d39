//! The verbs on keys themselves: create, list, enable, disable, describe in other words. `destroy` has deletion,
//! `rotation` rotation.

use serde_json::{Value, json};
use uuid::Uuid;

use super::authorize::Ask;
use super::call::{Call, clip};
use super::material::Material;
use super::policy::{Policy, PolicyKind};
use super::records::{AliasRecord, KeyManager, KeyRecord};
use super::reference::{KeyReference, ReferenceError};
use super::rotation::{DEFAULT_PERIOD_DAYS, RotationSchedule};
use super::spec::{KeySpec, KeyUsage};
use super::store::StoreError;
use super::{DEFAULT_KEY_ALIAS, LocalKms, Naming};
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{KeyMetadata, KeyState, pending_deletion};

/// The managed default key's description, as AWS words it (ebs.md C.4).
const DEFAULT_KEY_DESCRIPTION: &str = "Default key that protects my EBS volumes when no other key is defined";
const DESCRIPTION_BYTES_MAX: usize = 8192;

/// What CreateKey is asked for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct NewKey {
    /// Free text of up to 8192 bytes.
    pub description: String,
    /// The kind of key; only a symmetric one can wrap.
    pub spec: KeySpec,
    /// What it is for; may be left out where the spec has only one usage.
    pub usage: Option<KeyUsage>,
    /// The key policy; the default one if left out.
    pub policy: Option<Value>,
    /// An alias that it gets at once, `alias/` included.
    pub alias: Option<String>,
}

impl LocalKms {
    /// A new symmetric customer key, enabled. The description is free text of up to 8192 bytes.
    pub fn create_key(&self, description: &str) -> Result<KeyMetadata, KmsError> {
        self.create_key_as(&NewKey { description: description.to_owned(), ..NewKey::default() })
    }

    /// A new customer key, enabled.
    pub fn create_key_as(&self, request: &NewKey) -> Result<KeyMetadata, KmsError> {
        let parameters = json!({
            "description": clip(&request.description),
            "keySpec": request.spec,
            "keyUsage": request.usage,
            "policy": request.policy.as_ref().map(|policy| clip(&policy.to_string())),
            "aliasName": request.alias.as_deref().map(clip),
        });
        self.changing("CreateKey", "a new key", parameters, |call| {
            self.authorize_account(call)?;
            let usage = usage(call, request)?;
            self.check_new(call, request)?;
            let key = self.make_key(KeyManager::Customer, request, usage).map_err(|e| call.broken(e))?;
            self.concerns(call, &key);
            if let Some(alias) = &request.alias {
                let mut aliases = self.store.aliases().map_err(|e| call.broken(e))?;
                aliases.aliases.insert(alias.clone(), AliasRecord::new(key.key_id, self.now()));
                self.store.put_aliases(&aliases).map_err(|e| call.broken(e))?;
            }
            let metadata = self.metadata(&key);
            call.event.response_elements = json!({ "keyMetadata": metadata });
            Ok(metadata)
        })
    }

    /// All keys, sorted by id.
    pub fn list_keys(&self) -> Result<Vec<KeyMetadata>, KmsError> {
        self.reading("ListKeys", "all keys", Value::Null, |call| {
            self.authorize_account(call)?;
            let ids = self.store.key_ids().map_err(|e| call.broken(e))?;
            let keys = ids.into_iter().filter_map(|id| self.store.key(id).transpose());
            keys.map(|key| key.map(|key| self.metadata(&key)).map_err(|e| call.broken(e))).collect()
        })
    }

    /// Lets a disabled key be used again. `key` is an id or ARN. Enabling an enabled key changes nothing.
    pub fn enable_key(&self, key: &str) -> Result<(), KmsError> {
        self.set_state("EnableKey", key, KeyState::Enabled)
    }

    /// Stops a customer key from being used; what is attached stays so. `key` is an id or ARN.
    pub fn disable_key(&self, key: &str) -> Result<(), KmsError> {
        self.set_state("DisableKey", key, KeyState::Disabled)
    }

    /// Gives a key other words to know it by, up to 8192 bytes. `key` is an id or ARN.
    pub fn update_key_description(&self, key: &str, description: &str) -> Result<(), KmsError> {
        let parameters = json!({ "keyId": clip(key), "description": clip(description) });
        self.changing("UpdateKeyDescription", key, parameters, |call| {
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("UpdateKeyDescription", &record))?;
            self.refuse_managed(call, &record, "which cannot be changed")?;
            check_description(call, description)?;
            self.refuse_pending(call, &record)?;
            description.clone_into(&mut record.description);
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    fn set_state(&self, operation: &'static str, key: &str, state: KeyState) -> Result<(), KmsError> {
        self.changing(operation, key, json!({ "keyId": clip(key) }), |call| {
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            self.refuse_managed(call, &record, "whose state cannot be changed")?;
            self.authorize(call, &Ask::new(operation, &record))?;
            self.refuse_pending(call, &record)?;
            if record.key_state == state {
                return Ok(());
            }
            record.key_state = state;
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    /// What DescribeKey tells of a key.
    pub(super) fn metadata(&self, key: &KeyRecord) -> KeyMetadata {
        KeyMetadata {
            aws_account_id: self.scope.account.clone(),
            creation_date: key.creation_date,
            description: key.description.clone(),
            key_usage: key.key_usage.name(),
            deletion_date: key.deletion.map(|deletion| deletion.deletion_date),
            pending_deletion_window_in_days: key.deletion.map(|deletion| deletion.pending_window_in_days),
            key_manager: match key.key_manager {
                KeyManager::Customer => "CUSTOMER",
                KeyManager::Aws => "AWS",
            }
            .to_owned(),
            key_spec: key.key_spec.name(),
            customer_master_key_spec: key.key_spec.name(),
            encryption_algorithms: key.algorithms(KeyUsage::ENCRYPT_DECRYPT),
            signing_algorithms: key.algorithms(KeyUsage::SIGN_VERIFY),
            mac_algorithms: key.algorithms(KeyUsage::GENERATE_VERIFY_MAC),
            current_key_material_id: key.current_key_material_id.clone(),
            ..KeyMetadata::symmetric(key.key_id.to_string(), self.scope.key_arn(key.key_id), key.key_state)
        }
    }

    /// Finds the key that `text` names; from then on the call's errors carry its ARN.
    pub(super) fn resolve(&self, call: &mut Call, text: &str, naming: Naming) -> Result<KeyRecord, KmsError> {
        let reference = KeyReference::parse(text, &self.scope).map_err(|error| match error {
            ReferenceError::Length => call.fail(KmsErrorKind::InvalidRequest, error.to_string()),
            _ => call.fail(KmsErrorKind::NotFound, error.to_string()),
        })?;
        let found = match reference {
            KeyReference::Id(id) => {
                call.key = self.scope.key_arn(id);
                self.store.key(id)
            }
            KeyReference::Alias(_) if naming == Naming::IdOrArn => {
                return Err(call.fail(KmsErrorKind::NotFound, format!("Invalid keyId '{text}'")));
            }
            KeyReference::Alias(name) if name == DEFAULT_KEY_ALIAS => self.default_key().map(Some),
            KeyReference::Alias(name) => {
                call.key = self.scope.alias_arn(&name);
                self.key_of_alias(&name)
            }
        };
        match found.map_err(|e| call.broken(e))? {
            Some(key) => {
                self.concerns(call, &key);
                Ok(key)
            }
            None if call.key.contains(":alias/") => {
                Err(call.fail(KmsErrorKind::NotFound, format!("Alias {} is not found.", call.key)))
            }
            None => Err(call.fail(KmsErrorKind::NotFound, format!("Key '{}' does not exist", call.key))),
        }
    }

    /// The call is about this key.
    pub(super) fn concerns(&self, call: &mut Call, key: &KeyRecord) {
        call.key = self.scope.key_arn(key.key_id);
        call.event.concerns(&call.key, &self.scope);
    }

    /// Refuses what may not be done to the managed key.
    pub(super) fn refuse_managed(&self, call: &Call, key: &KeyRecord, which: &str) -> Result<(), KmsError> {
        match key.key_manager {
            KeyManager::Aws => Err(call.denied(&format!("it is an AWS managed key, {which}"))),
            KeyManager::Customer => Ok(()),
        }
    }

    /// Refuses what may not be done to a key that is pending deletion.
    pub(super) fn refuse_pending(&self, call: &Call, key: &KeyRecord) -> Result<(), KmsError> {
        if key.key_state != KeyState::PendingDeletion {
            return Ok(());
        }
        let until = pending_deletion(key.deletion.map(|deletion| deletion.deletion_date));
        Err(call.fail(KmsErrorKind::PendingDeletion, format!("{} is {until}.", call.key)))
    }

    pub(super) fn key_of_alias(&self, name: &str) -> Result<Option<KeyRecord>, StoreError> {
        match self.store.aliases()?.aliases.get(name) {
            Some(alias) => self.store.key(alias.target_key_id),
            None => Ok(None),
        }
    }

    /// The managed default key; made, with its alias, at the first call that asks for it. The caller does not hold the
    /// lock.
    fn default_key(&self) -> Result<KeyRecord, StoreError> {
        if let Some(key) = self.key_of_alias(DEFAULT_KEY_ALIAS)? {
            return Ok(key);
        }
        let _lock = self.store.lock()?;
        if let Some(key) = self.key_of_alias(DEFAULT_KEY_ALIAS)? {
            return Ok(key);
        }
        // A crash between the two writes below leaves a managed key without an alias: it is taken up here.
        let request = NewKey { description: DEFAULT_KEY_DESCRIPTION.to_owned(), ..NewKey::default() };
        let key = match self.managed_key_without_alias()? {
            Some(key) => key,
            None => self.make_key(KeyManager::Aws, &request, KeyUsage::ENCRYPT_DECRYPT)?,
        };
        let mut aliases = self.store.aliases()?;
        aliases.aliases.insert(DEFAULT_KEY_ALIAS.to_owned(), AliasRecord::new(key.key_id, self.now()));
        self.store.put_aliases(&aliases)?;
        Ok(key)
    }

    fn managed_key_without_alias(&self) -> Result<Option<KeyRecord>, StoreError> {
        for id in self.store.key_ids()? {
            if let Some(key) = self.store.key(id)?
                && key.key_manager == KeyManager::Aws
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Makes and stores a key; the caller holds the lock.
    fn make_key(
        &self,
        manager: KeyManager,
        request: &NewKey,
        usage: KeyUsage,
    ) -> Result<KeyRecord, StoreError> {
        let (key_id, creation_date) = (Uuid::new_v4(), self.now());
        // Also for a key without material: a store that has keys and no root key has lost it.
        let root = self.store.root_key_or_new()?;
        let materials = if request.spec.is_symmetric() {
            vec![Material::generate(&root, key_id, creation_date)?]
        } else {
            Vec::new()
        };
        let yearly = RotationSchedule::from(creation_date, DEFAULT_PERIOD_DAYS);
        let key = KeyRecord {
            key_id,
            creation_date,
            description: request.description.clone(),
            key_state: KeyState::Enabled,
            key_manager: manager,
            key_usage: usage,
            key_spec: request.spec,
            deletion: None,
            rotation: (manager == KeyManager::Aws).then_some(yearly),
            policy: request.policy.clone(),
            current_key_material_id: materials.first().map(|material| material.key_material_id.clone()),
            materials,
        };
        self.store.put_key(&key)?;
        Ok(key)
    }

    /// Whether a key can be made as asked for.
    fn check_new(&self, call: &Call, request: &NewKey) -> Result<(), KmsError> {
        check_description(call, &request.description)?;
        if let Some(policy) = &request.policy {
            Policy::parse(policy, PolicyKind::Key)
                .map_err(|error| call.fail(KmsErrorKind::MalformedPolicy, error.to_string()))?;
        }
        request.alias.as_deref().map_or(Ok(()), |alias| self.check_new_alias(call, alias))
    }
}

fn check_description(call: &Call, description: &str) -> Result<(), KmsError> {
    if description.len() <= DESCRIPTION_BYTES_MAX {
        return Ok(());
    }
    let message = "1 validation error detected: Value at 'description' failed to satisfy constraint: Member must have \
                   length less than or equal to 8192";
    Err(call.fail(KmsErrorKind::InvalidRequest, message))
}

/// The usage that was asked for, or the only one that the spec has.
fn usage(call: &Call, request: &NewKey) -> Result<KeyUsage, KmsError> {
    let (spec, usages) = (request.spec, request.spec.usages());
    match (request.usage, usages) {
        (Some(usage), usages) if usages.contains(&usage) => Ok(usage),
        (Some(usage), _) => {
            let message = format!("KeyUsage {usage:?} is not compatible with KeySpec {spec:?}");
            Err(call.fail(KmsErrorKind::InvalidRequest, message))
        }
        (None, [only]) => Ok(*only),
        (None, _) => {
            let message = format!("You must specify a KeyUsage value for a key of KeySpec {spec:?}");
            Err(call.fail(KmsErrorKind::InvalidRequest, message))
        }
    }
}
