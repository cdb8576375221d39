//! Rotation (ebs.md C.5): a new backing key for new wrappings, on demand or by a schedule; the old ones stay, for what
//! they have wrapped. Nothing is wrapped anew.
//!
//! A scheduled rotation takes place when the key is next used to wrap, or looked at by a verb below, at or after its
//! date: nothing runs meanwhile. However many dates have passed, it is one rotation, and the next is a period later. A
//! key that is disabled or pending deletion is not rotated until it is enabled again.

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::authorize::Ask;
use super::call::{Call, clip};
use super::material::Material;
use super::records::{KeyManager, KeyRecord};
use super::store::StoreError;
use super::{LocalKms, Naming, SECONDS_PER_DAY};
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{KeyState, Principal};

/// The period where none is given, and the managed key's.
pub(super) const DEFAULT_PERIOD_DAYS: u32 = 365;
const PERIOD_DAYS: std::ops::RangeInclusive<u32> = 90..=2560;
const ON_DEMAND_ROTATIONS_MAX: usize = 25;
/// Who rotates by a schedule, and destroys on a date: the store itself.
pub(super) const THE_STORE: &str = "kms.amazonaws.com";

/// Automatic rotation of a key.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct RotationSchedule {
    pub(super) period_in_days: u32,
    /// Seconds since the epoch.
    pub(super) next_rotation_date: f64,
}

impl RotationSchedule {
    pub(super) fn from(now: f64, period_in_days: u32) -> Self {
        let next_rotation_date = now + f64::from(period_in_days) * SECONDS_PER_DAY;
        Self { period_in_days, next_rotation_date }
    }
}

/// What made a key's material.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RotationType {
    /// The schedule.
    Automatic,
    /// Somebody asked for it.
    OnDemand,
}

/// What GetKeyRotationStatus tells; serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RotationStatus {
    /// The key's ARN.
    pub key_id: String,
    /// Whether automatic rotation is on.
    pub key_rotation_enabled: bool,
    /// Its period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_period_in_days: Option<u32>,
    /// When it will next take place, at the first use from then on; seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_rotation_date: Option<f64>,
}

/// One backing key of a key, as ListKeyRotations tells of it; serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RotationEntry {
    /// The key's ARN.
    pub key_id: String,
    /// 64 hex digits.
    pub key_material_id: String,
    /// `CURRENT` or `NON_CURRENT`.
    pub key_material_state: &'static str,
    /// Seconds since the epoch; absent for the first material, which no rotation made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_date: Option<f64>,
    /// Absent for the first material.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_type: Option<RotationType>,
}

impl LocalKms {
    /// New material for a symmetric customer key, now. At most 25 times in the key's life. `key` is an id or ARN.
    pub fn rotate_key_on_demand(&self, key: &str) -> Result<(), KmsError> {
        self.changing("RotateKeyOnDemand", key, json!({ "keyId": clip(key) }), |call| {
            let mut record = self.rotatable(call, key)?;
            if record.key_manager == KeyManager::Aws {
                return Err(call.denied("it is an AWS managed key, which is rotated by its schedule only"));
            }
            self.require_enabled(call, &record)?;
            let so_far = |material: &&Material| material.rotation_type == Some(RotationType::OnDemand);
            if record.materials.iter().filter(so_far).count() >= ON_DEMAND_ROTATIONS_MAX {
                let message = format!(
                    "The on-demand rotations limit has been reached for the given keyId. No more on-demand \
                     rotations can be performed for this key: {}",
                    call.key
                );
                return Err(call.fail(KmsErrorKind::LimitExceeded, message));
            }
            self.rotate(&mut record, RotationType::OnDemand).map_err(|e| call.broken(e))?;
            call.event.response_elements = json!({ "keyId": call.key });
            Ok(())
        })
    }

    /// Turns automatic rotation on, every `period_in_days` (90 to 2560; 365 if not given) from now. Turning it on
    /// again with the same period changes nothing. `key` is an id or ARN.
    pub fn enable_key_rotation(&self, key: &str, period_in_days: Option<u32>) -> Result<(), KmsError> {
        let parameters = json!({ "keyId": clip(key), "rotationPeriodInDays": period_in_days });
        self.changing("EnableKeyRotation", key, parameters, |call| {
            let mut record = self.rotatable(call, key)?;
            self.refuse_managed(call, &record, "whose rotation is always on")?;
            self.require_enabled(call, &record)?;
            let known = record.rotation.map(|schedule| schedule.period_in_days);
            let period = period_in_days.or(known).unwrap_or(DEFAULT_PERIOD_DAYS);
            if !PERIOD_DAYS.contains(&period) {
                let message = format!(
                    "1 validation error detected: Value '{period}' at 'rotationPeriodInDays' failed to satisfy \
                     constraint: Member must have value between 90 and 2560"
                );
                return Err(call.fail(KmsErrorKind::InvalidRequest, message));
            }
            if known == Some(period) {
                return Ok(());
            }
            record.rotation = Some(RotationSchedule::from(self.now(), period));
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    /// Turns automatic rotation off. `key` is an id or ARN.
    pub fn disable_key_rotation(&self, key: &str) -> Result<(), KmsError> {
        self.changing("DisableKeyRotation", key, json!({ "keyId": clip(key) }), |call| {
            let mut record = self.rotatable(call, key)?;
            self.refuse_managed(call, &record, "whose rotation is always on")?;
            self.require_enabled(call, &record)?;
            if record.rotation.take().is_none() {
                return Ok(());
            }
            self.store.put_key(&record).map_err(|e| call.broken(e))
        })
    }

    /// Whether a key is rotated automatically, and when next. `key` is an id or ARN.
    pub fn get_key_rotation_status(&self, key: &str) -> Result<RotationStatus, KmsError> {
        self.reading("GetKeyRotationStatus", key, json!({ "keyId": clip(key) }), |call| {
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("GetKeyRotationStatus", &record))?;
            let record = self.rotated_if_due(record).map_err(|e| call.broken(e))?;
            Ok(RotationStatus {
                key_id: call.key.clone(),
                key_rotation_enabled: record.rotation.is_some(),
                rotation_period_in_days: record.rotation.map(|schedule| schedule.period_in_days),
                next_rotation_date: record.rotation.map(|schedule| schedule.next_rotation_date),
            })
        })
    }

    /// A key's materials, oldest first: the one that it was made with, and one for each rotation. `key` is an id or ARN.
    pub fn list_key_rotations(&self, key: &str) -> Result<Vec<RotationEntry>, KmsError> {
        self.reading("ListKeyRotations", key, json!({ "keyId": clip(key) }), |call| {
            let record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("ListKeyRotations", &record))?;
            let record = self.rotated_if_due(record).map_err(|e| call.broken(e))?;
            let entry = |material: &Material| {
                let is_current = record.current_key_material_id.as_ref() == Some(&material.key_material_id);
                RotationEntry {
                    key_id: call.key.clone(),
                    key_material_id: material.key_material_id.clone(),
                    key_material_state: if is_current { "CURRENT" } else { "NON_CURRENT" },
                    rotation_date: material.rotation_type.map(|_| material.creation_date),
                    rotation_type: material.rotation_type,
                }
            };
            Ok(record.materials.iter().map(entry).collect())
        })
    }

    /// The key as it is after a rotation that is due. The caller does not hold the lock.
    pub(super) fn rotated_if_due(&self, key: KeyRecord) -> Result<KeyRecord, StoreError> {
        if !self.rotation_is_due(&key) {
            return Ok(key);
        }
        let _lock = self.store.lock()?;
        // Somebody else may have rotated it, or taken it away, meanwhile.
        match self.store.key(key.key_id)? {
            Some(mut current) if self.rotation_is_due(&current) => {
                self.rotate(&mut current, RotationType::Automatic)?;
                self.note_own_doing("RotateKey", current.key_id);
                Ok(current)
            }
            Some(current) => Ok(current),
            None => Ok(key),
        }
    }

    fn rotation_is_due(&self, key: &KeyRecord) -> bool {
        key.key_state == KeyState::Enabled
            && key.rotation.is_some_and(|schedule| schedule.next_rotation_date <= self.now())
    }

    /// Adds material, makes it the current one and stores the key. The caller holds the lock.
    fn rotate(&self, key: &mut KeyRecord, how: RotationType) -> Result<(), StoreError> {
        let root = self.store.root_key()?;
        let now = self.now();
        let material = Material { rotation_type: Some(how), ..Material::generate(&root, key.key_id, now)? };
        key.current_key_material_id = Some(material.key_material_id.clone());
        key.materials.push(material);
        if let (RotationType::Automatic, Some(schedule)) = (how, &mut key.rotation) {
            *schedule = RotationSchedule::from(now, schedule.period_in_days);
        }
        self.store.put_key(key)
    }

    /// The key, if the caller may rotate it and it is of a kind that is.
    fn rotatable(&self, call: &mut Call, key: &str) -> Result<KeyRecord, KmsError> {
        let record = self.resolve(call, key, Naming::IdOrArn)?;
        self.authorize(call, &Ask::new(call.operation, &record))?;
        if !record.key_spec.is_symmetric() {
            let message = format!("{} key spec is {:?}, which is not rotated.", call.key, record.key_spec);
            return Err(call.fail(KmsErrorKind::Unsupported, message));
        }
        Ok(record)
    }

    /// Records what the store does by itself, in the course of somebody's call. A record that cannot be written makes
    /// that call's own record fail too, and so the call.
    pub(super) fn note_own_doing(&self, operation: &'static str, key: Uuid) {
        let store = Principal(THE_STORE.to_owned());
        let arn = self.scope.key_arn(key);
        let outcome = self.audited(operation, &arn, json!({ "keyId": arn }), |call| {
            call.event.mutates();
            call.event.acts_as(&store);
            call.event.concerns(&arn, &self.scope);
            Ok(())
        });
        drop(outcome);
    }
}
