//! The files of the key store: where each is, who may write it when, and how it is read and written.
//!
//! ```text
//! DIR/                 0700
//!   lock               held exclusively by whoever changes a record
//!   root.key           0600, wraps every backing key: 32 bytes, or a record with those wrapped themselves
//!   keys/UUID.json     one key: its metadata, its policy and its wrapped backing keys
//!   aliases.json       alias name to key id
//!   grants/UUID.json   the grants of one key
//!   identities.json    the policies of principals
//!   deletions.json     which keys are to be destroyed when
//!   audit.log …        0600, one JSON line per call (`audit`)
//! ```
//!
//! A record is replaced whole (`sealblk-record`), so reading needs no lock: it sees the old state or the new one.
//! Changing one is read, change, write under [`Store::lock`]; the file locks of one process's threads exclude each
//! other as those of two processes do.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sealblk_record::{Document, LockFile, RecordError, RecordFile};
use uuid::Uuid;

use super::audit::AuditTrail;
use super::grants::GrantList;
use super::material::{Material, MaterialError};
use super::records::{Aliases, Deletions, Identities, KeyRecord};
use super::root_key::{NewProtection, RootKey, RootKeyError, RootKeyFile, RootKeyProtection};
use crate::error::KmsErrorKind;
use crate::passphrase::Unlock;

const GROUP_AND_WORLD_WRITE: u32 = 0o022;

/// Why the store cannot be used. None of these is the caller's doing.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the key store {path} cannot be {action}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error("the key store {path} may be written by others (mode {mode:o}): make it 0700")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the key store's record {path} is that of another key, {id}")]
    Misplaced { path: PathBuf, id: Uuid },
    #[error("the key store's record {path} names no current material")]
    NoMaterial { path: PathBuf },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    RootKey(#[from] RootKeyError),
    #[error(transparent)]
    Material(#[from] MaterialError),
}

impl StoreError {
    /// What the caller can do about it.
    pub(super) fn kind(&self) -> KmsErrorKind {
        match self {
            Self::RootKey(error) if error.is_refusal() => KmsErrorKind::Denied,
            Self::RootKey(RootKeyError::CredentialName { .. }) => KmsErrorKind::InvalidRequest,
            _ => KmsErrorKind::Misconfigured,
        }
    }
}

/// The directory of a key store.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    owner_uid: u32,
    unlock: Unlock,
    /// A root key under a passphrase, once it is open: Argon2id is not done for each backing key.
    opened: OnceLock<Arc<RootKey>>,
    /// How many more records are written before the store behaves as if the process had been killed.
    #[cfg(test)]
    pub(super) writes_left: std::cell::Cell<Option<u32>>,
}

impl Store {
    /// Creates what is missing of the directory and checks what is there.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        for path in [dir, &dir.join("keys"), &dir.join("grants")] {
            create_private(path).map_err(io_error(path, "created"))?;
        }
        let metadata = fs::metadata(dir).map_err(io_error(dir, "looked at"))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & GROUP_AND_WORLD_WRITE != 0 {
            return Err(StoreError::Exposed { path: dir.to_owned(), mode });
        }
        let store = Self {
            dir: dir.to_owned(),
            owner_uid: metadata.uid(),
            unlock: Unlock::default(),
            opened: OnceLock::new(),
            #[cfg(test)]
            writes_left: std::cell::Cell::new(None),
        };
        if store.root_key_file().has_leftovers() {
            let _lock = store.lock()?;
            store.root_key_file().clean_up()?;
        }
        store.check_root_key()?;
        Ok(store)
    }

    /// Gives the store what opens its root key, where that is not simply in a file.
    pub(super) fn unlock_with(&mut self, unlock: Unlock) {
        self.unlock = unlock;
    }

    /// The uid that the directory belongs to.
    pub(super) fn owner_uid(&self) -> u32 {
        self.owner_uid
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn audit_trail(&self) -> AuditTrail {
        AuditTrail::new(&self.dir)
    }

    /// Waits for the lock that every change is made under.
    pub(super) fn lock(&self) -> Result<LockFile, StoreError> {
        Ok(LockFile::exclusive(self.dir.join("lock"))?)
    }

    /// The root key, which must exist by now. One under a passphrase stays open, in locked memory, as long as the store.
    pub(super) fn root_key(&self) -> Result<Arc<RootKey>, StoreError> {
        let file = self.root_key_file();
        if let RootKeyProtection::Passphrase(_) = file.protection()? {
            if let Some(open) = self.opened.get() {
                return Ok(Arc::clone(open));
            }
            let key = Arc::new(file.load(&self.unlock)?);
            return Ok(Arc::clone(self.opened.get_or_init(|| key)));
        }
        Ok(Arc::new(file.load(&self.unlock)?))
    }

    /// The root key, if nobody has to be asked for it: for the audit log's seal.
    pub(super) fn root_key_at_hand(&self) -> Option<Arc<RootKey>> {
        match self.root_key_file().protection() {
            Ok(RootKeyProtection::Passphrase(_)) => self.opened.get().cloned(),
            Ok(_) => self.root_key().ok(),
            Err(_) => None,
        }
    }

    /// The root key, made at first use: a key file. The caller holds the lock.
    pub(super) fn root_key_or_new(&self) -> Result<Arc<RootKey>, StoreError> {
        let file = self.root_key_file();
        if !file.exists()? && self.key_ids()?.is_empty() {
            drop(file.create(NewProtection::KeyFile, &self.unlock)?);
        }
        self.root_key()
    }

    /// Makes the root key. The caller holds the lock. One that keys are wrapped under is left alone.
    pub(super) fn create_root_key(&self, how: NewProtection<'_>) -> Result<(), StoreError> {
        if !self.key_ids()?.is_empty() {
            return Err(RootKeyError::InUse { path: self.dir.join("root.key") }.into());
        }
        let key = self.root_key_file().create(how, &self.unlock)?;
        self.opened.get_or_init(|| Arc::new(key));
        Ok(())
    }

    /// Protects the root key in another way. The caller holds the lock.
    pub(super) fn protect_root_key(&self, how: NewProtection<'_>) -> Result<(), StoreError> {
        let key = self.root_key()?;
        self.root_key_file().put(&key, how, &self.unlock)?;
        self.opened.get_or_init(|| key);
        Ok(())
    }

    /// How the root key is protected; `None`: there is none yet.
    pub(super) fn root_key_protection(&self) -> Result<Option<RootKeyProtection>, StoreError> {
        let file = self.root_key_file();
        Ok(if file.exists()? { Some(file.protection()?) } else { None })
    }

    /// The ids of all keys, sorted.
    pub(super) fn key_ids(&self) -> Result<Vec<Uuid>, StoreError> {
        let dir = self.dir.join("keys");
        let unreadable = io_error(&dir, "listed");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(&unreadable)? {
            let name = entry.map_err(&unreadable)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json")).map(Uuid::try_parse);
            ids.extend(id.and_then(Result::ok));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    pub(super) fn key(&self, id: Uuid) -> Result<Option<KeyRecord>, StoreError> {
        match absent_is_none(self.key_file(id).load())? {
            Some(key) if key.key_id != id => {
                Err(StoreError::Misplaced { path: self.key_path(id), id: key.key_id })
            }
            found => Ok(found),
        }
    }

    pub(super) fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        self.put(&self.key_file(key.key_id), key)
    }

    /// Removes a key's record and its grants, with their previous generations; nothing is there to remove where a
    /// removal was interrupted.
    pub(super) fn erase_key(&self, id: Uuid) -> Result<(), StoreError> {
        self.erase(&self.grants_file(id))?;
        self.erase(&self.key_file(id))
    }

    pub(super) fn aliases(&self) -> Result<Aliases, StoreError> {
        Ok(absent_is_none(self.aliases_file().load())?.unwrap_or_default())
    }

    pub(super) fn put_aliases(&self, aliases: &Aliases) -> Result<(), StoreError> {
        self.put(&self.aliases_file(), aliases)
    }

    pub(super) fn grants(&self, key: Uuid) -> Result<GrantList, StoreError> {
        Ok(absent_is_none(self.grants_file(key).load())?.unwrap_or_default())
    }

    pub(super) fn put_grants(&self, key: Uuid, grants: &GrantList) -> Result<(), StoreError> {
        self.put(&self.grants_file(key), grants)
    }

    pub(super) fn identities(&self) -> Result<Identities, StoreError> {
        Ok(absent_is_none(self.identities_file().load())?.unwrap_or_default())
    }

    pub(super) fn put_identities(&self, identities: &Identities) -> Result<(), StoreError> {
        self.put(&self.identities_file(), identities)
    }

    pub(super) fn deletions(&self) -> Result<Deletions, StoreError> {
        Ok(absent_is_none(self.deletions_file().load())?.unwrap_or_default())
    }

    pub(super) fn put_deletions(&self, deletions: &Deletions) -> Result<(), StoreError> {
        self.put(&self.deletions_file(), deletions)
    }

    fn put<T: Document>(&self, file: &RecordFile<T>, record: &T) -> Result<(), StoreError> {
        self.about_to_write(file.path())?;
        Ok(file.store(record)?)
    }

    fn erase<T: Document>(&self, file: &RecordFile<T>) -> Result<(), StoreError> {
        self.about_to_write(file.path())?;
        absent_is_none(file.remove()).map(drop)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests count here")]
    fn about_to_write(&self, _: &Path) -> Result<(), StoreError> {
        Ok(())
    }

    #[cfg(test)]
    fn about_to_write(&self, path: &Path) -> Result<(), StoreError> {
        match self.writes_left.get() {
            Some(0) => {
                Err(io_error(path, "written: the process is as if killed")(io::ErrorKind::Other.into()))
            }
            left => {
                self.writes_left.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }

    /// The material of `key` that wraps.
    pub(super) fn current_material<'k>(&self, key: &'k KeyRecord) -> Result<&'k Material, StoreError> {
        let current =
            |material: &&Material| Some(&material.key_material_id) == key.current_key_material_id.as_ref();
        let missing = || StoreError::NoMaterial { path: self.key_path(key.key_id) };
        key.materials.iter().find(current).ok_or_else(missing)
    }

    /// A root key that is exposed, cut short, or gone while keys depend on it is found before any call needs it.
    fn check_root_key(&self) -> Result<(), StoreError> {
        let file = self.root_key_file();
        if file.exists()? || !self.key_ids()?.is_empty() {
            file.protection()?;
        }
        Ok(())
    }

    fn root_key_file(&self) -> RootKeyFile {
        RootKeyFile::new(self.dir.join("root.key"), self.owner_uid)
    }

    fn key_file(&self, id: Uuid) -> RecordFile<KeyRecord> {
        RecordFile::new(self.key_path(id))
    }

    fn key_path(&self, id: Uuid) -> PathBuf {
        self.dir.join("keys").join(format!("{id}.json"))
    }

    fn aliases_file(&self) -> RecordFile<Aliases> {
        RecordFile::new(self.dir.join("aliases.json"))
    }

    fn identities_file(&self) -> RecordFile<Identities> {
        RecordFile::new(self.dir.join("identities.json"))
    }

    fn deletions_file(&self) -> RecordFile<Deletions> {
        RecordFile::new(self.dir.join("deletions.json"))
    }

    fn grants_file(&self, key: Uuid) -> RecordFile<GrantList> {
        RecordFile::new(self.dir.join("grants").join(format!("{key}.json")))
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

fn absent_is_none<T>(loaded: Result<T, RecordError>) -> Result<Option<T>, StoreError> {
    match loaded {
        Ok(record) => Ok(Some(record)),
        Err(RecordError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn io_error(path: &Path, action: &'static str) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path: path.clone(), action, source }
}
