//! Deletion (ebs.md C.1): scheduled, cancelled, and, once the date has passed, carried out by whichever call comes next.
//!
//! The material is destroyed by unlinking the record that holds it, its previous generation and leftovers. What a file
//! system, a snapshot of it or a disk keeps of unlinked files is wrapped under the root key.

use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::authorize::Ask;
use super::call::clip;
use super::records::Deletion;
use super::store::StoreError;
use super::{LocalKms, Naming, SECONDS_PER_DAY};
use crate::error::{KmsError, KmsErrorKind};
use crate::service::{KeyMetadata, KeyState};

const WINDOW_DAYS: std::ops::RangeInclusive<u32> = 7..=30;

/// What ScheduleKeyDeletion answers; serialises with KMS's field names.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ScheduledDeletion {
    /// The key's ARN.
    pub key_id: String,
    /// From when on the key is gone for ever; seconds since the epoch.
    pub deletion_date: f64,
    /// `PendingDeletion`.
    pub key_state: KeyState,
    /// The waiting period.
    pub pending_window_in_days: u32,
}

impl LocalKms {
    /// Has a customer key destroyed, with its aliases and grants, in 7 to 30 days (30 if not given). Until then it cannot
    /// be used, and the deletion can be cancelled. `key` is an id or ARN.
    pub fn schedule_key_deletion(
        &self,
        key: &str,
        pending_window_in_days: Option<u32>,
    ) -> Result<ScheduledDeletion, KmsError> {
        let parameters = json!({ "keyId": clip(key), "pendingWindowInDays": pending_window_in_days });
        self.changing("ScheduleKeyDeletion", key, parameters, |call| {
            let days = pending_window_in_days.unwrap_or(*WINDOW_DAYS.end());
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            let ask = Ask::new("ScheduleKeyDeletion", &record);
            let ask = ask.with("kms:ScheduleKeyDeletionPendingWindowInDays", days.to_string());
            self.authorize(call, &ask)?;
            self.refuse_managed(call, &record, "which cannot be deleted")?;
            if !WINDOW_DAYS.contains(&days) {
                let message = format!(
                    "1 validation error detected: Value '{days}' at 'pendingWindowInDays' failed to satisfy \
                     constraint: Member must have value between 7 and 30"
                );
                return Err(call.fail(KmsErrorKind::InvalidRequest, message));
            }
            self.refuse_pending(call, &record)?;
            let deletion_date = self.now() + f64::from(days) * SECONDS_PER_DAY;
            // The note of where to look goes first: a key that is never destroyed would be worse than a look too many.
            let noted = self.store.deletions().and_then(|mut deletions| {
                deletions.due.insert(record.key_id, deletion_date);
                self.store.put_deletions(&deletions)
            });
            noted.map_err(|e| call.broken(e))?;
            record.key_state = KeyState::PendingDeletion;
            record.deletion = Some(Deletion { deletion_date, pending_window_in_days: days });
            self.store.put_key(&record).map_err(|e| call.broken(e))?;
            let scheduled = ScheduledDeletion {
                key_id: call.key.clone(),
                deletion_date,
                key_state: record.key_state,
                pending_window_in_days: days,
            };
            call.event.response_elements = json!({ "keyId": call.key, "deletionDate": deletion_date });
            Ok(scheduled)
        })
    }

    /// Keeps a key that is pending deletion; it is disabled then. `key` is an id or ARN.
    pub fn cancel_key_deletion(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.changing("CancelKeyDeletion", key, json!({ "keyId": clip(key) }), |call| {
            let mut record = self.resolve(call, key, Naming::IdOrArn)?;
            self.authorize(call, &Ask::new("CancelKeyDeletion", &record))?;
            if record.key_state != KeyState::PendingDeletion {
                let message = format!("{} is not pending deletion.", call.key);
                return Err(call.fail(KmsErrorKind::InvalidState, message));
            }
            record.key_state = KeyState::Disabled;
            record.deletion = None;
            self.store.put_key(&record).map_err(|e| call.broken(e))?;
            self.forget_deletion(record.key_id).map_err(|e| call.broken(e))?;
            Ok(self.metadata(&record))
        })
    }

    /// Destroys every key whose date has passed. The caller does not hold the lock.
    pub(super) fn destroy_what_is_due(&self) -> Result<(), StoreError> {
        let now = self.now();
        if self.store.deletions()?.due.values().all(|date| *date > now) {
            return Ok(());
        }
        let _lock = self.store.lock()?;
        for (id, date) in self.store.deletions()?.due {
            if date > now {
                continue;
            }
            match self.store.key(id)? {
                // Cancelled; the note of it was not taken back.
                Some(key) if !key.is_due(now) => self.forget_deletion(id)?,
                _ => self.destroy(id)?,
            }
        }
        Ok(())
    }

    /// The record goes last but for the note, so that a destruction that was interrupted is taken up again.
    fn destroy(&self, id: Uuid) -> Result<(), StoreError> {
        let mut aliases = self.store.aliases()?;
        let before = aliases.aliases.len();
        aliases.aliases.retain(|_, alias| alias.target_key_id != id);
        if aliases.aliases.len() != before {
            self.store.put_aliases(&aliases)?;
        }
        self.store.erase_key(id)?;
        self.note_own_doing("DeleteKey", id);
        self.forget_deletion(id)
    }

    fn forget_deletion(&self, id: Uuid) -> Result<(), StoreError> {
        let mut deletions = self.store.deletions()?;
        match deletions.due.remove(&id) {
            Some(_) => self.store.put_deletions(&deletions),
            None => Ok(()),
        }
    }
}
