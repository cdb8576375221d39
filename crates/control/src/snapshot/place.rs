//! Where a pool's snapshots are: a directory, or a prefix of an S3-compatible bucket.

use sealblk_snapshot::{Location, Repository, StoreOptions};

use crate::error::ControlError;
use crate::pool::PoolDirectory;

/// A repository that is not open yet.
#[derive(Clone, Debug)]
pub struct RepositoryPlace {
    location: Location,
    options: StoreOptions,
}

impl RepositoryPlace {
    /// The pool's own: a directory beside its volumes.
    pub fn own(pool: &PoolDirectory) -> Self {
        Self { location: Location::Directory(pool.snapshots()), options: StoreOptions::default() }
    }

    /// A directory or `s3://BUCKET/PREFIX`, reached as `options` say.
    pub fn new(location: &str, options: StoreOptions) -> Result<Self, ControlError> {
        Ok(Self { location: location.parse()?, options })
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Opens it, and makes an empty one if there is none. In a runtime with I/O and time.
    pub(crate) async fn open(&self) -> Result<Repository, ControlError> {
        Ok(Repository::open(&self.location, &self.options).await?)
    }
}
