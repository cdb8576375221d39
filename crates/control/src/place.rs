//! Where a volume's bytes are: a path of this host, or an export of an NBD server.

use std::fmt;
use std::path::{Path, PathBuf};

use sealblk_upstream::ExportUri;
use sealblk_volume::{Backing, VolumeDirectory};
use serde::{Serialize, Serializer};

use crate::backing::{self, BackingError};

/// A place that holds a volume's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackingPlace {
    /// A file or block device.
    Path(PathBuf),
    /// An export of an NBD server.
    Export(Box<ExportUri>),
}

impl BackingPlace {
    /// What a user means: an export if it begins with a scheme of NBD, else a path.
    pub fn meant_by(text: PathBuf) -> Result<Self, BackingError> {
        match text.to_str().filter(|text| ExportUri::is_meant_by(text)) {
            Some(uri) => Ok(Self::Export(Box::new(uri.parse()?))),
            None => Ok(Self::Path(text)),
        }
    }

    /// The path, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Export(_) => None,
        }
    }

    /// The place of the volume in `directory`, as its record says.
    pub(crate) fn of(directory: &VolumeDirectory, backing: &Backing) -> Result<Self, BackingError> {
        Ok(Self::outside(backing)?.unwrap_or_else(|| Self::Path(directory.data_path())))
    }

    /// The place that a record names, if it is not the pool's own file.
    pub(crate) fn outside(backing: &Backing) -> Result<Option<Self>, BackingError> {
        Ok(match backing {
            Backing::File {} => None,
            Backing::Path { path } => Some(Self::Path(path.clone())),
            Backing::Export { uri } => Some(Self::Export(Box::new(uri.parse()?))),
        })
    }

    /// Whether two places are one. Two exports are if their URIs are: a server has many addresses, and no way to
    /// ask it.
    pub(crate) fn is_same(&self, other: &Self) -> Result<bool, BackingError> {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => backing::is_same(a, b),
            (Self::Export(a), Self::Export(b)) => Ok(a == b),
            _ => Ok(false),
        }
    }
}

impl From<PathBuf> for BackingPlace {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for BackingPlace {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl fmt::Display for BackingPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Export(uri) => uri.fmt(f),
        }
    }
}

impl Serialize for BackingPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Path(path) => path.serialize(serializer),
            Self::Export(uri) => serializer.collect_str(uri),
        }
    }
}
