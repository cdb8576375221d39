//! Aliases (ebs.md C.4): names that point at keys and can be made to point elsewhere. Names below `alias/aws/` are the
//! store's own.

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::authorize::Ask;
use super::call::{Call, clip};
use super::records::{AliasRecord, Aliases};
use super::reference::KeyReference;
use super::{DEFAULT_KEY_ALIAS, LocalKms, Naming};
use crate::error::{KmsError, KmsErrorKind};

const RESERVED: &str = "alias/aws/";

/// One alias, as ListAliases tells of it; serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AliasEntry {
    /// `alias/…`.
    pub alias_name: String,
    /// Its ARN.
    pub alias_arn: String,
    /// The key's id; absent for the managed key's alias before that key's first use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_key_id: Option<String>,
    /// Seconds since the epoch, where recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_date: Option<f64>,
    /// Seconds since the epoch, where recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated_date: Option<f64>,
}

impl AliasRecord {
    pub(super) fn new(target: Uuid, now: f64) -> Self {
        Self { target_key_id: target, creation_date: Some(now), last_updated_date: Some(now) }
    }
}

impl LocalKms {
    /// A new name, `alias/` included, for a key. `key` is an id or ARN.
    pub fn create_alias(&self, alias: &str, key: &str) -> Result<(), KmsError> {
        self.changing("CreateAlias", key, parameters(alias, Some(key)), |call| {
            self.check_new_alias(call, alias)?;
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("CreateAlias", &record).with("kms:RequestAlias", alias))?;
            self.refuse_managed(call, &record, "which has its own alias")?;
            self.refuse_pending(call, &record)?;
            let mut aliases = self.store.aliases().map_err(|e| call.broken(e))?;
            aliases.aliases.insert(alias.to_owned(), AliasRecord::new(record.key_id, self.now()));
            self.store.put_aliases(&aliases).map_err(|e| call.broken(e))
        })
    }

    /// Makes an alias point at another key of the same kind. `key` is an id or ARN.
    pub fn update_alias(&self, alias: &str, key: &str) -> Result<(), KmsError> {
        self.changing("UpdateAlias", key, parameters(alias, Some(key)), |call| {
            check_alias_name(call, alias)?;
            let mut aliases = self.store.aliases().map_err(|e| call.broken(e))?;
            let entry = aliases.aliases.get_mut(alias).ok_or_else(|| self.no_such_alias(call, alias))?;
            let old = self.store.key(entry.target_key_id).map_err(|e| call.broken(e))?;
            let new = self.resolve(call, key, Naming::IdOrArn)?;
            for record in old.iter().chain([&new]) {
                self.concerns(call, record);
                self.authorize(call, &Ask::new("UpdateAlias", record).with("kms:RequestAlias", alias))?;
            }
            self.refuse_managed(call, &new, "which has its own alias")?;
            self.refuse_pending(call, &new)?;
            let same_kind = |old: &super::records::KeyRecord| {
                old.key_usage == new.key_usage && old.key_spec.is_symmetric() == new.key_spec.is_symmetric()
            };
            if !old.as_ref().is_none_or(same_kind) {
                let message = "an alias can only be moved to a key of the same type and usage";
                return Err(call.fail(KmsErrorKind::InvalidRequest, message));
            }
            entry.target_key_id = new.key_id;
            entry.last_updated_date = Some(self.now());
            self.store.put_aliases(&aliases).map_err(|e| call.broken(e))
        })
    }

    /// Removes an alias; the key stays as it is.
    pub fn delete_alias(&self, alias: &str) -> Result<(), KmsError> {
        self.changing("DeleteAlias", alias, parameters(alias, None), |call| {
            check_alias_name(call, alias)?;
            let mut aliases = self.store.aliases().map_err(|e| call.broken(e))?;
            let entry = aliases.aliases.remove(alias).ok_or_else(|| self.no_such_alias(call, alias))?;
            match self.store.key(entry.target_key_id).map_err(|e| call.broken(e))? {
                Some(key) => {
                    self.concerns(call, &key);
                    self.authorize(call, &Ask::new("DeleteAlias", &key).with("kms:RequestAlias", alias))?;
                }
                None => self.authorize_account(call)?,
            }
            self.store.put_aliases(&aliases).map_err(|e| call.broken(e))
        })
    }

    /// All aliases, or those of one key (id or ARN), sorted by name.
    pub fn list_aliases(&self, key: Option<&str>) -> Result<Vec<AliasEntry>, KmsError> {
        let of = key.map(clip);
        self.reading("ListAliases", key.unwrap_or("all aliases"), json!({ "keyId": of }), |call| {
            self.authorize_account(call)?;
            let target = match key {
                Some(key) => Some(self.resolve(call, key, Naming::IdOrArn)?.key_id),
                None => None,
            };
            let aliases = self.store.aliases().map_err(|e| call.broken(e))?;
            Ok(self.alias_entries(&aliases, target))
        })
    }

    fn alias_entries(&self, aliases: &Aliases, target: Option<Uuid>) -> Vec<AliasEntry> {
        let entry = |name: &str, alias: Option<&AliasRecord>| AliasEntry {
            alias_name: name.to_owned(),
            alias_arn: self.scope.alias_arn(name),
            target_key_id: alias.map(|alias| alias.target_key_id.to_string()),
            creation_date: alias.and_then(|alias| alias.creation_date),
            last_updated_date: alias.and_then(|alias| alias.last_updated_date),
        };
        let wanted = |alias: &AliasRecord| target.is_none_or(|target| alias.target_key_id == target);
        let known = aliases.aliases.iter().filter(|(_, alias)| wanted(alias));
        let mut entries: Vec<_> = known.map(|(name, alias)| entry(name, Some(alias))).collect();
        if target.is_none() && !aliases.aliases.contains_key(DEFAULT_KEY_ALIAS) {
            entries.push(entry(DEFAULT_KEY_ALIAS, None));
            entries.sort_by(|a, b| a.alias_name.cmp(&b.alias_name));
        }
        entries
    }

    /// Refuses a name that no new alias can have.
    pub(super) fn check_new_alias(&self, call: &Call, alias: &str) -> Result<(), KmsError> {
        check_alias_name(call, alias)?;
        if self.store.aliases().map_err(|e| call.broken(e))?.aliases.contains_key(alias) {
            let message = format!("An alias with the name {} already exists", self.scope.alias_arn(alias));
            return Err(call.fail(KmsErrorKind::AlreadyExists, message));
        }
        Ok(())
    }

    fn no_such_alias(&self, call: &Call, alias: &str) -> KmsError {
        let message = format!("Alias {} is not found.", self.scope.alias_arn(alias));
        call.fail(KmsErrorKind::NotFound, message)
    }
}

fn check_alias_name(call: &Call, alias: &str) -> Result<(), KmsError> {
    if KeyReference::parse_alias(alias).is_none() {
        let message = format!(
            "1 validation error detected: Value '{}' at 'aliasName' failed to satisfy constraint: Member must satisfy \
             regular expression pattern: ^alias/[a-zA-Z0-9:/_-]+$ and have length less than or equal to 256",
            clip(alias)
        );
        return Err(call.fail(KmsErrorKind::InvalidRequest, message));
    }
    if alias.starts_with(RESERVED) {
        return Err(call.denied("names that begin with alias/aws/ are reserved"));
    }
    Ok(())
}

fn parameters(alias: &str, key: Option<&str>) -> serde_json::Value {
    json!({ "aliasName": clip(alias), "targetKeyId": key.map(clip) })
}
