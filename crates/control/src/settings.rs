//! The account's defaults in this region: encryption by default, the key that is used where no other is named
//! (ebs.md A.4, "Account defaults"; requirements 28 to 42 and 68), and where snapshots are kept.
//!
//! They are one record in the pool. A change is effective for the next operation and touches nothing that exists.

use sealblk_record::{Document, LockFile, RecordFile};
use sealblk_volume::KeyReference;
use serde::{Deserialize, Serialize};

use crate::create::usable_key;
use crate::error::ControlError;
use crate::outcome::EncryptionDefaults;
use crate::pool::{Pool, PoolDirectory};
use crate::snapshot::{RepositoryName, RepositoryPlace};

/// The key that is the default until another is chosen: the managed one.
const MANAGED_KEY: &str = "alias/aws/ebs";

/// `settings.json`, of one account. One without it has the defaults.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Settings {
    /// Whether new volumes and copies of snapshots are encrypted, whatever their request says.
    pub ebs_encryption_by_default: bool,
    /// The key chosen as default; `None`: the managed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_kms_key: Option<KeyReference>,
    /// Where snapshots are kept; `None`: in the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot_repository: Option<RepositoryName>,
}

impl Document for Settings {
    const FORMAT: &'static str = "sealblk-settings";
    const VERSION: u32 = 1;
}

impl Settings {
    /// The default key as EC2 tells it: the alias of the managed key, or the ARN of the one chosen instead.
    pub fn default_kms_key(&self) -> &str {
        self.default_kms_key.as_ref().map_or(MANAGED_KEY, KeyReference::as_str)
    }

    /// Where snapshots are kept where no other place is named; `None`: in the pool. It is the word of the account that
    /// the pool belongs to that counts ([`PoolDirectory::of_region`]).
    pub fn snapshot_repository(&self) -> Option<&RepositoryName> {
        self.snapshot_repository.as_ref()
    }

    pub(crate) fn defaults(&self) -> EncryptionDefaults<'_> {
        EncryptionDefaults { by_default: self.ebs_encryption_by_default, key: self.default_kms_key() }
    }
}

impl PoolDirectory {
    /// The settings now.
    pub fn settings(&self) -> Result<Settings, ControlError> {
        let file = self.settings_file();
        if file.exists()? { Ok(file.load()?) } else { Ok(Settings::default()) }
    }

    /// Enable- or DisableEbsEncryptionByDefault. Saying what is so already is no error.
    pub fn set_encryption_by_default(&self, on: bool) -> Result<Settings, ControlError> {
        self.change_settings(|settings| settings.ebs_encryption_by_default = on)
    }

    /// ResetEbsDefaultKmsKeyId: the managed key is the default again.
    pub fn reset_default_kms_key(&self) -> Result<Settings, ControlError> {
        self.change_settings(|settings| settings.default_kms_key = None)
    }

    /// Keeps snapshots of the whole region, every account's, at `place` from now on; those elsewhere stay where they are.
    pub fn set_snapshot_repository(&self, place: &RepositoryPlace) -> Result<Settings, ControlError> {
        self.of_region().change_settings(|settings| settings.snapshot_repository = place.name().cloned())
    }

    /// Keeps snapshots in the pool from now on.
    pub fn reset_snapshot_repository(&self) -> Result<Settings, ControlError> {
        self.of_region().change_settings(|settings| settings.snapshot_repository = None)
    }

    fn settings_file(&self) -> RecordFile<Settings> {
        RecordFile::new(self.of_account().join("settings.json"))
    }

    /// Two changes at once are both kept: each reads what the other wrote.
    fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<Settings, ControlError> {
        let _lock = LockFile::exclusive(self.of_account().join(".lock"))?;
        let before = self.settings()?;
        let mut after = before.clone();
        change(&mut after);
        if after != before {
            self.settings_file().store(&after)?;
        }
        Ok(after)
    }
}

impl Pool {
    /// ModifyEbsDefaultKmsKeyId: `key` (id, ARN or alias; what an alias stands for now is stored) becomes the default.
    /// A key that volumes cannot use now is refused, with the reason.
    pub fn modify_default_kms_key(&self, key: &str) -> Result<Settings, ControlError> {
        let key = usable_key(self.kms.describe_key(key)?)?;
        self.pool_directory().change_settings(|settings| settings.default_kms_key = Some(key))
    }
}
