//! The pool: the directory that is a region (design §5), used by one account at a time. It knows its layout and its volumes'
//! names; what is done with them is in the sibling modules.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sealblk_kms::Kms;
use sealblk_record::{Document, LockFile, RecordFile};
use sealblk_snapshot::StoreOptions;
use sealblk_volume::{AccountId, VolumeDirectory, VolumeId, VolumeRecord};
use serde::{Deserialize, Serialize};

use crate::error::ControlError;
use crate::restore::RestoreProgram;
use crate::snapshot::RepositoryPlace;

/// `pool.json`: which region the pool plays, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct PoolRecord {
    /// The region in ARNs.
    pub region: String,
    /// The account that it belongs to, and that uses it unless another one says so.
    pub account: AccountId,
}

impl PoolRecord {
    /// A region's name: 1 to 63 lower-case letters, digits and dashes. It stands in ARNs.
    pub fn new(region: &str, account: AccountId) -> Result<Self, ControlError> {
        let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if region.is_empty() || region.len() > REGION_BYTES_MAX || !region.bytes().all(legal) {
            let given = region.chars().take(REGION_BYTES_MAX).collect::<String>().escape_debug().to_string();
            return Err(ControlError::Region { given });
        }
        Ok(Self { region: region.to_owned(), account })
    }
}

impl Document for PoolRecord {
    const FORMAT: &'static str = "sealblk-pool";
    const VERSION: u32 = 1;
}

impl Default for PoolRecord {
    fn default() -> Self {
        Self { region: "local".to_owned(), account: AccountId::default() }
    }
}

/// The longest name of a region, in bytes.
const REGION_BYTES_MAX: usize = 63;
/// Prefix of a volume's directory until the volume exists; what a killed create leaves.
pub(crate) const UNFINISHED: &str = ".new-";
/// Prefix of a volume's directory once the volume does not exist any more; what a killed delete leaves.
pub(crate) const DELETED: &str = ".deleted-";

/// A pool's directory, with its record, and the account that uses it here (`account.rs`).
#[derive(Clone, Debug)]
pub struct PoolDirectory {
    path: PathBuf,
    record: PoolRecord,
    account: AccountId,
    /// The directory of its volumes' directories.
    volumes: &'static str,
}

/// Where volumes are.
const VOLUMES: &str = "volumes";
/// Where volumes are that are not whole yet because an image is being imported into them.
const IMPORTING: &str = "importing";

impl PoolDirectory {
    /// Makes the pool in `path`, which must not be one yet: `PoolExists`. `prepare` is called before anybody else can
    /// take it for a pool; if it fails, or the process is killed, there is none, and a later call begins again.
    pub fn create<E: From<ControlError>>(
        path: &Path,
        record: PoolRecord,
        prepare: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<Self, E> {
        make_directories(path)?;
        let _lock = LockFile::exclusive(path.join(".lock")).map_err(ControlError::from)?;
        let file = RecordFile::<PoolRecord>::new(path.join("pool.json"));
        if file.exists().map_err(ControlError::from)? {
            return Err(ControlError::PoolExists { path: path.to_owned() }.into());
        }
        let account = record.account.clone();
        let pool = Self { path: path.to_owned(), account, record, volumes: VOLUMES };
        prepare(&pool)?;
        file.store(&pool.record).map_err(ControlError::from)?;
        Ok(pool)
    }

    /// Opens the pool in `path`; makes one there if there is none. Everything below is for its owner only (0700).
    pub fn open_or_create(path: &Path) -> Result<Self, ControlError> {
        make_directories(path)?;
        let file = RecordFile::<PoolRecord>::new(path.join("pool.json"));
        if !file.exists()? {
            // Two first users at once: one writes, the other reads what it wrote.
            let _lock = LockFile::exclusive(path.join(".lock"))?;
            if !file.exists()? {
                file.store(&PoolRecord::default())?;
            }
        }
        let record = file.load()?;
        let account = record.account.clone();
        Ok(Self { path: path.to_owned(), account, record, volumes: VOLUMES })
    }

    /// The same pool with other volumes: those into which an image is being imported.
    pub(crate) fn importing(&self) -> Self {
        Self { volumes: IMPORTING, ..self.clone() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which region it plays, and whose it is.
    pub fn record(&self) -> &PoolRecord {
        &self.record
    }

    /// The account that uses it: its own, unless [`Self::acting_as`] said otherwise.
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    pub(crate) fn with_account(self, account: AccountId) -> Self {
        Self { account, ..self }
    }

    /// Where it is said how to use other key services; the file need not exist.
    pub fn key_providers(&self) -> PathBuf {
        self.path.join("kms.json")
    }

    /// Where the pool keeps snapshots itself.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.path.join(self.volumes)
    }

    /// A volume's directory, whether it is there or not.
    pub(crate) fn volume(&self, id: VolumeId) -> VolumeDirectory {
        VolumeDirectory::new(self.volumes_dir().join(id.to_string()))
    }

    /// Refuses an id that no volume has, whosever.
    pub(crate) fn require_any(&self, id: VolumeId) -> Result<(), ControlError> {
        let path = self.volume(id).path().to_owned();
        match fs::metadata(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ControlError::VolumeNotFound { id }),
            Err(source) => Err(ControlError::Pool { path, source }),
        }
    }
}

fn make_directories(pool: &Path) -> Result<(), ControlError> {
    for path in [pool.to_owned(), pool.join("volumes"), pool.join("kms")] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| ControlError::Pool { path, source })?;
    }
    Ok(())
}

/// An open pool, and the key service that its volumes' keys come from.
pub struct Pool {
    directory: PoolDirectory,
    pub(crate) kms: Arc<dyn Kms + Send + Sync>,
    pub(crate) repository: RepositoryPlace,
    /// How stores that volumes' records name are reached, besides what the records say.
    pub(crate) store_environment: StoreOptions,
    /// What reads snapshots for the processes that serve volumes.
    pub(crate) restore_program: Option<RestoreProgram>,
}

impl Pool {
    /// A pool whose keys come from `kms`, which is called for encrypted volumes only, and whose snapshots are in its own
    /// directory.
    pub fn new(directory: PoolDirectory, kms: Arc<dyn Kms + Send + Sync>) -> Self {
        let repository = RepositoryPlace::own(&directory);
        Self { directory, kms, repository, store_environment: StoreOptions::default(), restore_program: None }
    }

    /// The same, with its snapshots elsewhere.
    #[must_use]
    pub fn with_repository(self, repository: RepositoryPlace) -> Self {
        Self { repository, ..self }
    }

    /// The same, with a program that reads snapshots for the processes that serve volumes; without one a volume that is
    /// not restored yet cannot be attached.
    #[must_use]
    pub fn with_restore_program(self, program: RestoreProgram) -> Self {
        Self { restore_program: Some(program), ..self }
    }

    /// The same, with what the environment says about reaching stores: for the snapshots that volumes are restored from,
    /// wherever those are.
    #[must_use]
    pub fn with_store_environment(self, store_environment: StoreOptions) -> Self {
        Self { store_environment, ..self }
    }

    pub(crate) fn pool_directory(&self) -> &PoolDirectory {
        &self.directory
    }

    pub(crate) fn volumes_dir(&self) -> PathBuf {
        self.directory.volumes_dir()
    }

    pub(crate) fn directory(&self, id: VolumeId) -> VolumeDirectory {
        self.directory.volume(id)
    }

    /// Held while names appear in `volumes/`, and while backings are compared.
    pub(crate) fn lock_names(&self) -> Result<LockFile, ControlError> {
        Ok(LockFile::exclusive(self.volumes_dir().join(".lock"))?)
    }

    /// The record of a volume of the account's, and its directory.
    pub(crate) fn load(&self, id: VolumeId) -> Result<(VolumeDirectory, VolumeRecord), ControlError> {
        self.require(id)?;
        self.load_any(id)
    }

    /// The record of a volume, whosever, and its directory.
    pub(crate) fn load_any(&self, id: VolumeId) -> Result<(VolumeDirectory, VolumeRecord), ControlError> {
        let directory = self.directory(id);
        self.directory.require_any(id)?;
        let record = load_record(&directory)?;
        if record.volume_id != id {
            return Err(ControlError::Misplaced { id, found: record.volume_id });
        }
        Ok((directory, record))
    }

    /// Refuses an id that no volume of the account has.
    pub(crate) fn require(&self, id: VolumeId) -> Result<(), ControlError> {
        self.directory.require(id)
    }

    /// Every volume's id, whosever, sorted.
    pub(crate) fn volume_ids(&self) -> Result<Vec<VolumeId>, ControlError> {
        let mut ids: Vec<VolumeId> = self.names()?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Every name in `volumes/`, those of unfinished and deleted volumes too.
    pub(crate) fn names(&self) -> Result<Vec<String>, ControlError> {
        let path = self.volumes_dir();
        let failed = |source| ControlError::Pool { path: path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }
}

pub(crate) fn load_record(directory: &VolumeDirectory) -> Result<VolumeRecord, ControlError> {
    Ok(RecordFile::<VolumeRecord>::new(directory.record_path()).load()?)
}

/// Replaces a volume's record by what `change` makes of the present one; nobody else changes it meanwhile. Readers see
/// the old or the new one. The volume's own lock is another matter: a record may change while the volume is attached.
pub(crate) fn change_record(
    directory: &VolumeDirectory,
    change: impl FnOnce(VolumeRecord) -> Result<VolumeRecord, ControlError>,
) -> Result<VolumeRecord, ControlError> {
    let _lock = LockFile::exclusive(directory.path().join("volume.json.lock"))?;
    let record = change(load_record(directory)?)?;
    RecordFile::new(directory.record_path()).store(&record)?;
    Ok(record)
}

/// Makes a change of names in `dir` durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), ControlError> {
    fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| ControlError::Pool { path: dir.to_owned(), source })
}
