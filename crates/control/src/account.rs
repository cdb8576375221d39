//! Accounts: on whose behalf a command acts, whose a volume or a snapshot is, and who may see it. The one place that
//! decides that.
//!
//! A pool is a region. It belongs to one account (`pool.json`); other accounts use it too, each with defaults and a key
//! store of its own below `accounts/ID/`. Accounts keep apart what belongs apart, and let sharing mean something; they
//! are no boundary against who can open the pool's directory, and may say which account to be.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sealblk_snapshot::SnapshotError;
use sealblk_volume::{AccountId, SnapshotId, VolumeId, VolumeRecord};

use crate::error::ControlError;
use crate::pool::{Pool, PoolDirectory, load_record};
use crate::snapshot::{ShareError, SnapshotMetadata};

/// Below the pool: what the accounts have that are not its own.
const ACCOUNTS: &str = "accounts";
/// Of an account: its embedded key store.
const KEY_STORE: &str = "kms";

/// Where an account's settings and key store are.
pub(crate) fn account_directory(pool: &Path, home: &AccountId, account: &AccountId) -> PathBuf {
    if account == home { pool.to_owned() } else { pool.join(ACCOUNTS).join(account.as_str()) }
}

impl PoolDirectory {
    /// The same pool, used by `account`. Makes the place for its settings and keys, for the pool's owner only (0700).
    pub fn acting_as(self, account: AccountId) -> Result<Self, ControlError> {
        let path = account_directory(self.path(), &self.record().account, &account);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| ControlError::Pool { path, source })?;
        Ok(self.with_account(account))
    }

    /// The same pool, used by the account that it belongs to: what is one for the whole region is there.
    #[must_use]
    pub fn of_region(&self) -> Self {
        self.clone().with_account(self.record().account.clone())
    }

    /// Where the account's settings and key store are.
    pub(crate) fn of_account(&self) -> PathBuf {
        account_directory(self.path(), &self.record().account, self.account())
    }

    /// Where the account's embedded key store is.
    pub fn key_store(&self) -> PathBuf {
        self.of_account().join(KEY_STORE)
    }

    /// The embedded key stores of the other accounts: a key's ARN says whose it is.
    pub fn other_key_stores(&self) -> Result<BTreeMap<AccountId, PathBuf>, ControlError> {
        let path = self.path().join(ACCOUNTS);
        let failed = |source| ControlError::Pool { path: path.clone(), source };
        let home = self.record().account.clone();
        let mut stores = BTreeMap::from([(home, self.path().join(KEY_STORE))]);
        match fs::read_dir(&path) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(failed)?.file_name();
                    let account = name.to_str().and_then(|name| name.parse::<AccountId>().ok());
                    stores.extend(account.map(|account| (account, path.join(name).join(KEY_STORE))));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        stores.remove(self.account());
        stores.retain(|_, store| store.is_dir());
        Ok(stores)
    }

    /// Refuses an id that no volume has, and in the same words a volume that is another account's.
    pub(crate) fn require(&self, id: VolumeId) -> Result<(), ControlError> {
        self.require_any(id)?;
        match load_record(&self.volume(id)) {
            Ok(record) => self.require_own(&record),
            // Nobody knows whose it was: the pool's own account sees it, and can delete it.
            Err(_) if *self.account() == self.record().account => Ok(()),
            Err(_) => Err(ControlError::VolumeNotFound { id }),
        }
    }

    /// Refuses a volume of another account.
    pub(crate) fn require_own(&self, record: &VolumeRecord) -> Result<(), ControlError> {
        let own = owner_of(record, &self.record().account) == self.account();
        own.then_some(()).ok_or(ControlError::VolumeNotFound { id: record.volume_id })
    }

    /// The owner as a new volume's record has it.
    pub(crate) fn recorded_owner(&self) -> Option<AccountId> {
        (*self.account() != self.record().account).then(|| self.account().clone())
    }
}

impl Pool {
    /// On whose behalf it acts: who owns what it makes.
    pub fn account(&self) -> &AccountId {
        self.pool_directory().account()
    }

    /// The account that a volume belongs to.
    pub(crate) fn owner_of<'r>(&'r self, record: &'r VolumeRecord) -> &'r AccountId {
        owner_of(record, &self.pool_directory().record().account)
    }

    /// Whether the snapshot is the account's own: only then may it be changed, shared and deleted.
    pub(crate) fn owns(&self, snapshot: &SnapshotMetadata) -> bool {
        snapshot.owner_id == *self.account()
    }

    /// Refuses a snapshot that is neither the account's own nor shared with it, as if it did not exist.
    pub(crate) fn require_visible(
        &self,
        id: SnapshotId,
        snapshot: &SnapshotMetadata,
    ) -> Result<(), ControlError> {
        self.may_use(snapshot).then_some(()).ok_or_else(|| SnapshotError::NotFound { id }.into())
    }

    /// Refuses a snapshot that is not the account's own: one that it may see, in words that say so.
    pub(crate) fn require_owned(
        &self,
        id: SnapshotId,
        snapshot: &SnapshotMetadata,
    ) -> Result<(), ControlError> {
        self.require_visible(id, snapshot)?;
        let owner = &snapshot.owner_id;
        self.owns(snapshot)
            .then_some(())
            .ok_or_else(|| ShareError::NotOwner { id, owner: owner.clone() }.into())
    }

    /// Whether the account may see a snapshot, make volumes and copies of it: its own, and what others share with it.
    pub(crate) fn may_use(&self, snapshot: &SnapshotMetadata) -> bool {
        snapshot.is_usable_by(self.account())
    }
}

fn owner_of<'r>(record: &'r VolumeRecord, home: &'r AccountId) -> &'r AccountId {
    record.owner_id.as_ref().unwrap_or(home)
}
