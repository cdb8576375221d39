//! Changing a small record when several processes may: read, change, write only if it is still what was read.
//!
//! Object stores compare an entity tag (`If-Match`); a local directory has none, so there the comparison is done under
//! a lock file. Nobody holds anything between operations: a killed process leaves nothing to clean up.

use std::path::PathBuf;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};
use sealblk_record::{Document, LockFile, MAX_RECORD_BYTES, from_bytes, to_bytes};

use crate::error::{SnapshotError, store as store_error};

/// What makes "write only if unchanged" one step.
#[derive(Clone, Debug)]
pub(crate) enum Exclusion {
    /// The store compares versions.
    Versions,
    /// A lock on this file.
    Lock(PathBuf),
}

/// A record as it was read, with what tells whether it still is so.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    bytes: Bytes,
    version: UpdateVersion,
}

/// The small records of a repository.
#[derive(Debug)]
pub(crate) struct Records {
    store: std::sync::Arc<dyn ObjectStore>,
    exclusion: Exclusion,
}

impl Records {
    pub(crate) fn new(store: std::sync::Arc<dyn ObjectStore>, exclusion: Exclusion) -> Self {
        Self { store, exclusion }
    }

    /// The record at `path`, if there is one.
    pub(crate) async fn load<T: Document>(&self, path: &Path) -> Result<Option<Stored<T>>, SnapshotError> {
        let got = match self.store.get(path).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(store_error("read", path))?,
        };
        let name = std::path::Path::new(path.as_ref());
        if got.meta.size > MAX_RECORD_BYTES {
            let path = name.to_owned();
            return Err(sealblk_record::RecordError::TooLarge { path, limit: MAX_RECORD_BYTES }.into());
        }
        let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
        let bytes = got.bytes().await.map_err(store_error("read", path))?;
        let value = from_bytes(name, &bytes)?;
        Ok(Some(Stored { value, bytes, version }))
    }

    /// Writes a record that is not there yet; `false` if one is, and is another.
    pub(crate) async fn create<T: Document>(&self, path: &Path, value: &T) -> Result<bool, SnapshotError> {
        let bytes = Bytes::from(to_bytes(std::path::Path::new(path.as_ref()), value)?);
        let options = PutOptions::from(PutMode::Create);
        match self.store.put_opts(path, bytes.clone().into(), options).await {
            Ok(_) => Ok(true),
            // A request that was sent again after its reply was lost meets what it wrote itself.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                self.is_now::<T>(path, &bytes).await.map(|stored| stored.is_some())
            }
            Err(error) => Err(store_error("write", path)(error)),
        }
    }

    /// Replaces `old` by `value`; `None` if the record is no longer `old`.
    pub(crate) async fn replace<T: Document>(
        &self,
        path: &Path,
        old: &Stored<T>,
        value: T,
    ) -> Result<Option<Stored<T>>, SnapshotError> {
        let bytes = Bytes::from(to_bytes(std::path::Path::new(path.as_ref()), &value)?);
        let _lock = self.lock().await?;
        let mode = match self.exclusion {
            Exclusion::Versions => PutMode::Update(old.version.clone()),
            Exclusion::Lock(_) => match self.load::<T>(path).await? {
                Some(now) if now.bytes == old.bytes => PutMode::Overwrite,
                _ => return Ok(None),
            },
        };
        match self.store.put_opts(path, bytes.clone().into(), PutOptions::from(mode)).await {
            Ok(put) => {
                let version = UpdateVersion { e_tag: put.e_tag, version: put.version };
                Ok(Some(Stored { value, bytes, version }))
            }
            Err(Error::Precondition { .. } | Error::NotFound { .. } | Error::AlreadyExists { .. }) => {
                self.is_now(path, &bytes).await
            }
            Err(error) => Err(store_error("write", path)(error)),
        }
    }

    /// Removes a record; nothing happens if there is none.
    pub(crate) async fn remove(&self, path: &Path) -> Result<(), SnapshotError> {
        let _lock = self.lock().await?;
        match self.store.delete(path).await {
            Err(Error::NotFound { .. }) => Ok(()),
            removed => removed.map_err(store_error("remove", path)),
        }
    }

    /// Finds out, when a repository is made, whether the store tells who came first: `path` holds `record`.
    pub(crate) async fn check_fitness<T: Document>(
        &self,
        path: &Path,
        record: &T,
    ) -> Result<(), SnapshotError> {
        if matches!(self.exclusion, Exclusion::Lock(_)) {
            return Ok(());
        }
        let bytes = Bytes::from(to_bytes(std::path::Path::new(path.as_ref()), record)?);
        let again = PutOptions::from(PutMode::Create);
        match self.store.put_opts(path, bytes.clone().into(), again).await {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Ok(_) => {
                return Err(SnapshotError::Unfit { reason: "it overwrites in spite of If-None-Match" });
            }
            Err(error) => return Err(store_error("write", path)(error)),
        }
        let other =
            UpdateVersion { e_tag: Some("\"00000000000000000000000000000000\"".into()), version: None };
        let update = PutOptions::from(PutMode::Update(other));
        match self.store.put_opts(path, bytes.into(), update).await {
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Ok(()),
            Ok(_) => Err(SnapshotError::Unfit { reason: "it overwrites in spite of If-Match" }),
            Err(error) => Err(store_error("write", path)(error)),
        }
    }

    async fn is_now<T: Document>(
        &self,
        path: &Path,
        bytes: &Bytes,
    ) -> Result<Option<Stored<T>>, SnapshotError> {
        Ok(self.load(path).await?.filter(|now| now.bytes == bytes))
    }

    async fn lock(&self) -> Result<Option<LockFile>, SnapshotError> {
        let Exclusion::Lock(path) = &self.exclusion else { return Ok(None) };
        let path = path.clone();
        let locked = tokio::task::spawn_blocking(move || LockFile::exclusive(path)).await;
        Ok(Some(locked.expect("taking a lock does not panic")?))
    }
}
