//! The pool's `kms.json`: which key services besides the embedded store it may use. What the settings mean is
//! `sealblk-kms`'s part; here they are read and changed.

use sealblk_kms::Providers;
use sealblk_record::{LockFile, RecordError, RecordFile};

use crate::error::ControlError;
use crate::pool::PoolDirectory;

impl PoolDirectory {
    /// The settings; the usual ones if nothing was ever set.
    pub fn load_key_providers(&self) -> Result<Providers, ControlError> {
        match RecordFile::new(self.key_providers()).load() {
            Ok(providers) => Ok(providers),
            Err(RecordError::Missing { .. }) => Ok(Providers::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes the settings; calls of key services take them from then on.
    pub fn change_key_providers(
        &self,
        change: impl FnOnce(&mut Providers),
    ) -> Result<Providers, ControlError> {
        let _lock = LockFile::exclusive(self.key_providers().with_extension("json.lock"))?;
        let mut providers = self.load_key_providers()?;
        change(&mut providers);
        RecordFile::new(self.key_providers()).store(&providers)?;
        Ok(providers)
    }
}
