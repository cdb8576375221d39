//! What the store's records hold, and how those of older releases are read. `store` says where they are.
//!
//! Version 2 of the key record has deletion, rotation and policy; version 2 of the aliases has dates; version 2 of the
//! grants (`grants`) has more operations and constraints and a retiring principal. A record of version 1 is read as one
//! of version 2 and written as such at its next change.

use std::collections::BTreeMap;

use sealblk_record::{Document, Fields};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::SECONDS_PER_DAY;
use super::material::Material;
use super::rotation::{DEFAULT_PERIOD_DAYS, RotationSchedule};
use super::spec::{KeySpec, KeyUsage};
use crate::service::KeyState;

/// The record `keys/UUID.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct KeyRecord {
    pub(super) key_id: Uuid,
    /// Seconds since the epoch.
    pub(super) creation_date: f64,
    pub(super) description: String,
    pub(super) key_state: KeyState,
    pub(super) key_manager: KeyManager,
    pub(super) key_usage: KeyUsage,
    pub(super) key_spec: KeySpec,
    /// Present while the state is `PendingDeletion`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) deletion: Option<Deletion>,
    /// Present while automatic rotation is on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) rotation: Option<RotationSchedule>,
    /// The key policy, if it is not the default one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) policy: Option<Value>,
    /// Which of `materials` wraps; the others only unwrap. Absent where there is no material: keys that are not
    /// symmetric.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) current_key_material_id: Option<String>,
    /// Oldest first.
    pub(super) materials: Vec<Material>,
}

/// When a key will be gone.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Deletion {
    /// Seconds since the epoch.
    pub(super) deletion_date: f64,
    pub(super) pending_window_in_days: u32,
}

/// Who a key belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum KeyManager {
    /// The user: may be disabled.
    #[serde(rename = "CUSTOMER")]
    Customer,
    /// The store itself, behind `alias/aws/ebs`: may not.
    #[serde(rename = "AWS")]
    Aws,
}

/// The record `aliases.json`: by alias name, `alias/` included.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Aliases {
    pub(super) aliases: BTreeMap<String, AliasRecord>,
}

/// One alias. Dates are seconds since the epoch, absent if version 1 recorded none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct AliasRecord {
    pub(super) target_key_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) creation_date: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) last_updated_date: Option<f64>,
}

/// The record `identities.json`: by principal, then by the policy's name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Identities {
    pub(super) policies: BTreeMap<String, BTreeMap<String, Value>>,
}

/// The record `deletions.json`: when which key is due. The key's own record decides; this one says where to look, so
/// that not every call must read every key. An entry is there from before a key's deletion is scheduled until after
/// the last of its files is gone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Deletions {
    pub(super) due: BTreeMap<Uuid, f64>,
}

impl Document for KeyRecord {
    const FORMAT: &'static str = "sealblk-kms-key";
    const VERSION: u32 = 2;

    /// The managed key's yearly rotation begins with its creation.
    fn migrate(version: u32, mut fields: Fields) -> Option<Fields> {
        if version != 1 {
            return None;
        }
        if fields.get("KeyManager").is_some_and(|manager| manager == "AWS") {
            let created = fields.get("CreationDate").and_then(Value::as_f64).unwrap_or_default();
            let next = created + f64::from(DEFAULT_PERIOD_DAYS) * SECONDS_PER_DAY;
            let schedule = json!({ "PeriodInDays": DEFAULT_PERIOD_DAYS, "NextRotationDate": next });
            fields.insert("Rotation".to_owned(), schedule);
        }
        Some(fields)
    }
}

impl Document for Aliases {
    const FORMAT: &'static str = "sealblk-kms-aliases";
    const VERSION: u32 = 2;

    fn migrate(version: u32, mut fields: Fields) -> Option<Fields> {
        if version != 1 {
            return None;
        }
        for (_, target) in fields.get_mut("Aliases").and_then(Value::as_object_mut).into_iter().flatten() {
            *target = json!({ "TargetKeyId": target.take() });
        }
        Some(fields)
    }
}

impl Document for Identities {
    const FORMAT: &'static str = "sealblk-kms-identities";
    const VERSION: u32 = 1;
}

impl Document for Deletions {
    const FORMAT: &'static str = "sealblk-kms-deletions";
    const VERSION: u32 = 1;
}

impl KeyRecord {
    /// Whether the time has come to destroy it.
    pub(super) fn is_due(&self, now: f64) -> bool {
        self.key_state == KeyState::PendingDeletion
            && self.deletion.is_some_and(|deletion| deletion.deletion_date <= now)
    }

    /// The algorithms that it has for `usage`.
    pub(super) fn algorithms(&self, usage: KeyUsage) -> Vec<String> {
        super::spec::algorithms(self.key_spec, self.key_usage, usage)
    }
}

#[cfg(test)]
mod tests {
    use sealblk_record::RecordFile;

    use super::super::grants::GrantList;
    use super::*;

    const KEY: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    /// A record as release 0.1 wrote it before version 2.
    macro_rules! version_1 {
        ($name:ident, $format:literal) => {
            #[derive(Serialize, Deserialize)]
            #[serde(transparent)]
            struct $name(Value);
            impl Document for $name {
                const FORMAT: &'static str = $format;
                const VERSION: u32 = 1;
            }
        };
    }
    version_1!(KeyV1, "sealblk-kms-key");
    version_1!(AliasesV1, "sealblk-kms-aliases");
    version_1!(GrantsV1, "sealblk-kms-grants");

    /// Writes `old` and reads it as what it is today.
    fn read_as<Old: Document, New: Document>(old: &Old) -> New {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("record.json");
        RecordFile::<Old>::new(&path).store(old).expect("written");
        RecordFile::<New>::new(&path).load().expect("an old record is readable")
    }

    fn key_v1(manager: &str) -> KeyV1 {
        let material = "ab".repeat(32);
        KeyV1(json!({
            "KeyId": KEY,
            "CreationDate": 1000.5,
            "Description": "old",
            "KeyState": "Disabled",
            "KeyManager": manager,
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT",
            "CurrentKeyMaterialId": material,
            "Materials": [{ "KeyMaterialId": material, "CreationDate": 1000.5, "WrappedMaterial": "AAAA" }],
        }))
    }

    #[test]
    fn a_key_of_version_1_is_read_and_the_managed_one_is_rotated_yearly() {
        let key: KeyRecord = read_as(&key_v1("CUSTOMER"));
        assert_eq!((key.description.as_str(), key.key_state), ("old", KeyState::Disabled));
        assert_eq!((key.rotation, key.materials.len()), (None, 1));
        assert_eq!(key.current_key_material_id, Some("ab".repeat(32)));
        let managed: KeyRecord = read_as(&key_v1("AWS"));
        let rotation = managed.rotation.expect("a schedule");
        assert_eq!((rotation.period_in_days, rotation.next_rotation_date), (365, 1000.5 + 365.0 * 86_400.0));
    }

    #[test]
    fn aliases_and_grants_of_version_1_are_read() {
        let aliases: Aliases = read_as(&AliasesV1(json!({ "Aliases": { "alias/aws/ebs": KEY } })));
        let alias = aliases.aliases.get("alias/aws/ebs").expect("the alias");
        assert_eq!((alias.target_key_id.to_string().as_str(), alias.creation_date), (KEY, None));
        let grants: GrantList = read_as(&GrantsV1(json!({ "Grants": [{
            "GrantId": "0".repeat(64),
            "KeyId": format!("arn:aws:kms:local:000000000000:key/{KEY}"),
            "GranteePrincipal": "host:a/vol-0123456789abcdef0",
            "IssuingPrincipal": "uid:0",
            "Operations": ["Decrypt"],
            "Constraints": { "EncryptionContextSubset": { "aws:ebs:id": "vol-0123456789abcdef0" } },
            "Name": "vol-0123456789abcdef0",
            "CreationDate": 1000.5,
        }] })));
        assert_eq!(grants.grants[0].constraints.kind(), Some("EncryptionContextSubset"));
    }
}
