//! The embedded key store: a KMS in a directory, for a host that has no other.
//!
//! It keeps keys as KMS does (states, aliases, the managed default key, grants, encryption contexts, an audit log),
//! each backing key wrapped under one root key. It is not a server: whoever may read the directory has the keys,
//! so the directory belongs to one user, the owner. The owner, and root, may do everything; any other principal acts
//! only under a grant. Called by `helper` in its short-lived child, and by the command line for the administrative
//! verbs below, which are not part of the trait.
//!
//! `store` documents the files, `blob` the bytes of a wrapped key, `material` those of a wrapped backing key.

mod audit;
mod auditing;
mod blob;
mod call;
mod grants;
mod hex;
mod material;
mod protection;
mod reference;
mod root_key;
mod store;
mod verbs;

use std::path::Path;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

pub use self::audit::{AuditFinding, AuditPlace, AuditRecords, AuditReport};
use self::call::{Call, clip};
pub use self::grants::{GrantConstraints, GrantEntry};
use self::material::Material;
pub use self::reference::Scope;
use self::reference::{KeyReference, ReferenceError};
pub use self::root_key::{ArgonParameters, NewProtection, RootKeyProtection};
use self::store::{KeyManager, KeyRecord, Store, StoreError};
use crate::error::{KmsError, KmsErrorKind};
use crate::passphrase::Unlock;
use crate::service::{KeyMetadata, KeyState, Principal};

/// The managed default key's alias.
pub const DEFAULT_KEY_ALIAS: &str = "alias/aws/ebs";
/// The managed default key's description, as AWS words it (ebs.md C.4).
const DEFAULT_KEY_DESCRIPTION: &str = "Default key that protects my EBS volumes when no other key is defined";
const DESCRIPTION_BYTES_MAX: usize = 8192;

/// A key store in a directory, used by one principal.
///
/// Holds no key between calls: each reads what it needs into locked memory and wipes it when it returns. Only a root
/// key under a passphrase, once opened, stays in locked memory as long as the value. Any number of processes may have
/// the same directory open.
#[derive(Debug)]
pub struct LocalKms {
    store: Store,
    scope: Scope,
    caller: Principal,
}

/// Which ways to name a key a verb takes (ebs.md C.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Id, ARN, alias name, alias ARN: DescribeKey and the cryptographic verbs.
    Any,
    /// Id or ARN: everything that changes a key or its grants.
    IdOrArn,
}

impl LocalKms {
    /// Opens the key store in `dir`, creating the directory (0700) if it is not there; its parent must be. `caller` is
    /// who the calls are made as, `uid:N` of the process normally; `scope` is what ARNs carry.
    ///
    /// Errors are `Misconfigured` and name the path: a directory or root key that others can write or read, a root key
    /// that is missing although keys exist, or has another length than 32.
    pub fn open(dir: &Path, scope: Scope, caller: Principal) -> Result<Self, KmsError> {
        match Store::open(dir) {
            Ok(store) => Ok(Self { store, scope, caller }),
            Err(error) => Err(store_failure("OpenKeyStore", &dir.display().to_string(), &error)),
        }
    }

    /// The same store, with what opens its root key where that is not simply in a file. Nothing is asked for before a
    /// call needs the root key.
    pub fn unlocked_by(mut self, unlock: Unlock) -> Self {
        self.store.unlock_with(unlock);
        self
    }

    /// A new customer key, enabled. The description is free text of up to 8192 bytes.
    pub fn create_key(&self, description: &str) -> Result<KeyMetadata, KmsError> {
        let parameters = json!({ "description": clip(description), "keySpec": "SYMMETRIC_DEFAULT" });
        self.audited("CreateKey", "a new key", parameters, |call| {
            call.event.mutates();
            self.authorize_owner(call)?;
            if description.len() > DESCRIPTION_BYTES_MAX {
                let message = "1 validation error detected: Value at 'description' failed to satisfy constraint: \
                               Member must have length less than or equal to 8192";
                return Err(call.fail(KmsErrorKind::InvalidRequest, message));
            }
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            let key = self.make_key(KeyManager::Customer, description).map_err(|e| call.broken(e))?;
            self.concerns(call, &key);
            let metadata = self.metadata(&key);
            call.event.response_elements = json!({ "keyMetadata": metadata });
            Ok(metadata)
        })
    }

    /// All keys, sorted by id.
    pub fn list_keys(&self) -> Result<Vec<KeyMetadata>, KmsError> {
        self.audited("ListKeys", "all keys", serde_json::Value::Null, |call| {
            self.authorize_owner(call)?;
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

    /// The grants of a key, oldest first. `key` is an id or ARN.
    pub fn list_grants(&self, key: &str) -> Result<Vec<GrantEntry>, KmsError> {
        self.audited("ListGrants", key, json!({ "keyId": clip(key) }), |call| {
            self.authorize_owner(call)?;
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            Ok(self.store.grants(record.key_id).map_err(|e| call.broken(e))?.grants)
        })
    }

    fn set_state(&self, operation: &'static str, key: &str, state: KeyState) -> Result<(), KmsError> {
        self.audited(operation, key, json!({ "keyId": clip(key) }), |call| {
            call.event.mutates();
            self.authorize_owner(call)?;
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            if record.key_manager == KeyManager::Aws {
                return Err(call.denied("it is an AWS managed key, whose state cannot be changed"));
            }
            if record.key_state == KeyState::PendingDeletion {
                return Err(self.pending_deletion(call));
            }
            record.key_state = state;
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    /// Finds the key that `text` names; from then on the call's errors carry its ARN.
    fn resolve(&self, call: &mut Call, text: &str, naming: Naming) -> Result<KeyRecord, KmsError> {
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

    fn key_of_alias(&self, name: &str) -> Result<Option<KeyRecord>, StoreError> {
        match self.store.aliases()?.aliases.get(name) {
            Some(id) => self.store.key(*id),
            None => Ok(None),
        }
    }

    /// The managed default key; made, with its alias, at the first call that asks for it.
    fn default_key(&self) -> Result<KeyRecord, StoreError> {
        if let Some(key) = self.key_of_alias(DEFAULT_KEY_ALIAS)? {
            return Ok(key);
        }
        let _lock = self.store.lock()?;
        if let Some(key) = self.key_of_alias(DEFAULT_KEY_ALIAS)? {
            return Ok(key);
        }
        // A crash between the two writes below leaves a managed key without an alias: it is taken up here.
        let key = match self.managed_key_without_alias()? {
            Some(key) => key,
            None => self.make_key(KeyManager::Aws, DEFAULT_KEY_DESCRIPTION)?,
        };
        let mut aliases = self.store.aliases()?;
        aliases.aliases.insert(DEFAULT_KEY_ALIAS.to_owned(), key.key_id);
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
    fn make_key(&self, manager: KeyManager, description: &str) -> Result<KeyRecord, StoreError> {
        let root = self.store.root_key_or_new()?;
        let (key_id, creation_date) = (Uuid::new_v4(), now());
        let material = Material::generate(&root, key_id, creation_date)?;
        let key = KeyRecord {
            key_id,
            creation_date,
            description: description.to_owned(),
            key_state: KeyState::Enabled,
            key_manager: manager,
            key_usage: "ENCRYPT_DECRYPT".to_owned(),
            key_spec: "SYMMETRIC_DEFAULT".to_owned(),
            current_key_material_id: material.key_material_id.clone(),
            materials: vec![material],
        };
        self.store.put_key(&key)?;
        Ok(key)
    }

    fn concerns(&self, call: &mut Call, key: &KeyRecord) {
        call.key = self.scope.key_arn(key.key_id);
        call.event.concerns(&call.key, &self.scope);
    }

    fn metadata(&self, key: &KeyRecord) -> KeyMetadata {
        KeyMetadata {
            aws_account_id: self.scope.account.clone(),
            creation_date: key.creation_date,
            description: key.description.clone(),
            key_usage: key.key_usage.clone(),
            key_manager: match key.key_manager {
                KeyManager::Customer => "CUSTOMER",
                KeyManager::Aws => "AWS",
            }
            .to_owned(),
            key_spec: key.key_spec.clone(),
            customer_master_key_spec: key.key_spec.clone(),
            current_key_material_id: Some(key.current_key_material_id.clone()),
            ..KeyMetadata::symmetric(key.key_id.to_string(), self.scope.key_arn(key.key_id), key.key_state)
        }
    }

    fn is_owner(&self, principal: &Principal) -> bool {
        [self.store.owner_uid(), 0].iter().any(|uid| principal.0 == format!("uid:{uid}"))
    }

    fn authorize_owner(&self, call: &Call) -> Result<(), KmsError> {
        if self.is_owner(&call.principal) {
            return Ok(());
        }
        Err(call.denied(&format!("only the key store's owner, uid:{}, may", self.store.owner_uid())))
    }

    fn pending_deletion(&self, call: &Call) -> KmsError {
        call.fail(KmsErrorKind::PendingDeletion, format!("{} is pending deletion.", call.key))
    }
}

/// A failure of the store outside any call.
fn store_failure(operation: &'static str, key: &str, error: &StoreError) -> KmsError {
    KmsError {
        kind: error.kind(),
        operation,
        key: key.to_owned(),
        message: error.to_string(),
        request_id: "none".to_owned(),
        source: std::error::Error::source(error).map(|cause| std::io::Error::other(cause.to_string())),
    }
}

/// Seconds since the epoch, to the millisecond.
#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits for 285 millennia")]
fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

fn now() -> f64 {
    seconds(Timestamp::now())
}
