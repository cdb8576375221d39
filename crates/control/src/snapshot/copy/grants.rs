//! The grants of copies, until they are retired. Each is noted before it is asked for, in the directory of the account whose
//! key it is on: so whoever makes, goes on with or deletes a snapshot next finds what a killed copy has left, also of one
//! that was killed before anything else knew of it.
//!
//! One at a time: whoever has the lock knows that what is noted is nobody's any more.

use sealblk_kms::{
    EncryptionContext, GrantId, GrantOperation, GrantRequest, KmsError, KmsErrorKind, Principal,
};
use sealblk_record::{Document, LockFile, RecordError, RecordFile};
use sealblk_volume::{KeyReference, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::attachment::GrantRecord;
use crate::error::ControlError;
use crate::grant::host_name;
use crate::pool::Pool;

/// What is noted; docs/FORMAT.md, `copying.json`.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Notes {
    grants: Vec<Note>,
}

impl Document for Notes {
    const FORMAT: &'static str = "sealblk-copying";
    const VERSION: u32 = 1;
}

/// A grant that there may be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Note {
    kms_key_id: String,
    /// The copy that it is for: the grant's name.
    snapshot_id: SnapshotId,
    encryption_context_id: String,
    grantee_principal: String,
    /// Absent until it is known: asked for once more under its name, the service tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant_id: Option<GrantId>,
}

impl Note {
    fn request(&self) -> GrantRequest {
        GrantRequest {
            key: self.kms_key_id.clone(),
            grantee: Principal(self.grantee_principal.clone()),
            operations: vec![GrantOperation::Decrypt],
            constraint: EncryptionContext::for_resource(&self.encryption_context_id),
            name: Some(self.snapshot_id.to_string()),
        }
    }
}

/// Why nothing was done under a grant.
pub(super) enum Refusal {
    /// Another key may do.
    Key(KmsError),
    /// The pool itself does not work.
    Here(ControlError),
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self::Here(error)
    }
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self::Here(error.into())
    }
}

/// Does `work` under a grant for `copy` on `key`, Decrypt only and bound to `context_id`, that ends with it. Of a key service
/// without grants there is none.
pub(super) fn under_grant<T>(
    pool: &Pool,
    key: &KeyReference,
    context_id: &str,
    copy: SnapshotId,
    work: impl FnOnce(Option<(&GrantId, &Principal)>) -> Result<T, KmsError>,
) -> Result<T, Refusal> {
    let mut book = Book::open(LockFile::exclusive(lock_path(pool))?, pool)?;
    book.retire_all();
    let note = Note {
        kms_key_id: key.to_string(),
        snapshot_id: copy,
        encryption_context_id: context_id.to_owned(),
        grantee_principal: format!("host:{}/{copy}", host_name()),
        grant_id: None,
    };
    let request = note.request();
    let place = book.notes.grants.len();
    book.notes.grants.push(note);
    book.store()?;
    let granted = match pool.kms.create_grant(&request) {
        Ok(grant) => Some(grant.id),
        Err(error) if error.kind == KmsErrorKind::NoGrants => None,
        Err(error) => {
            // A service that did not answer may have made it.
            if error.kind != KmsErrorKind::Unreachable {
                book.notes.grants.truncate(place);
                book.store()?;
            }
            return Err(Refusal::Key(error));
        }
    };
    if let (Some(note), Some(id)) = (book.notes.grants.get_mut(place), &granted) {
        note.grant_id = Some(id.clone());
        book.store()?;
    }
    let done = work(granted.as_ref().map(|grant| (grant, &request.grantee)));
    match granted {
        Some(_) => book.retire_all(),
        None => book.notes.grants.truncate(place),
    }
    book.store()?;
    done.map_err(Refusal::Key)
}

/// Retires what copies that were killed have left on keys of the account's. What cannot be retired now stays noted, and is no
/// error: such a grant lets nobody do what this host may not.
pub(crate) fn retire_left_grants(pool: &Pool) -> Result<(), ControlError> {
    if !record_file(pool).exists()? {
        return Ok(());
    }
    // Whoever has it does the same.
    let Some(lock) = LockFile::try_exclusive(lock_path(pool))? else { return Ok(()) };
    let mut book = Book::open(lock, pool)?;
    book.retire_all();
    book.store()
}

/// The notes, while nobody else has them.
struct Book<'p> {
    pool: &'p Pool,
    file: RecordFile<Notes>,
    stored: Notes,
    notes: Notes,
    _lock: LockFile,
}

impl<'p> Book<'p> {
    fn open(lock: LockFile, pool: &'p Pool) -> Result<Self, ControlError> {
        let file = record_file(pool);
        let stored = if file.exists()? { file.load()? } else { Notes::default() };
        Ok(Self { pool, file, notes: stored.clone(), stored, _lock: lock })
    }

    /// Ends every grant that is noted; what does not end stays noted.
    fn retire_all(&mut self) {
        let pool = self.pool;
        self.notes.grants.retain_mut(|note| !is_retired(pool, note));
    }

    fn store(&mut self) -> Result<(), ControlError> {
        if self.notes == self.stored {
            return Ok(());
        }
        if self.notes.grants.is_empty() {
            self.file.remove()?;
        } else {
            self.file.store(&self.notes)?;
        }
        self.stored = self.notes.clone();
        Ok(())
    }
}

/// Ends the grant of `note`, whose id is found out if need be; whether there is none now.
fn is_retired(pool: &Pool, note: &mut Note) -> bool {
    let grant_id = match note.grant_id.clone() {
        Some(known) => known,
        None => match pool.kms.create_grant(&note.request()) {
            Ok(grant) => grant.id,
            // A key that is gone has no grants.
            Err(error) => return matches!(error.kind, KmsErrorKind::NoGrants | KmsErrorKind::NotFound),
        },
    };
    note.grant_id = Some(grant_id.clone());
    pool.retire(&GrantRecord { kms_key_id: note.kms_key_id.clone(), grant_id }).is_ok()
}

fn record_file(pool: &Pool) -> RecordFile<Notes> {
    RecordFile::new(pool.pool_directory().of_account().join("copying.json"))
}

fn lock_path(pool: &Pool) -> std::path::PathBuf {
    pool.pool_directory().of_account().join("copying.lock")
}
