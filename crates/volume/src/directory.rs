//! A volume's directory in the pool: the names in it, and its data file. Which volumes exist and what
//! state they are in is `sealblk-control`'s matter.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::id::SnapshotId;
use crate::map::map_bytes;
use crate::record::Backing;
use crate::size::VolumeSize;

/// Names of spools: `snapshot-snap-….cow`.
const SPOOL_PREFIX: &str = "snapshot-";
const SPOOL_SUFFIX: &str = ".cow";

/// `st_blocks` counts these, whatever the file system's block is.
const STAT_BLOCK_BYTES: u64 = 512;

/// The directory `volumes/vol-…` of one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeDirectory {
    path: PathBuf,
}

impl VolumeDirectory {
    /// The directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The record: a `RecordFile<VolumeRecord>`.
    pub fn record_path(&self) -> PathBuf {
        self.path.join("volume.json")
    }

    /// The data file of a volume whose backing is [`Backing::File`].
    pub fn data_path(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The block map.
    pub fn map_path(&self) -> PathBuf {
        self.path.join("map")
    }

    /// Where the snapshot in progress puts blocks aside.
    pub fn spool_path(&self, snapshot: SnapshotId) -> PathBuf {
        self.path.join(format!("{SPOOL_PREFIX}{snapshot}{SPOOL_SUFFIX}"))
    }

    /// The file that is locked while the volume is attached, or worked on offline.
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Where a volume's bytes are, if a path leads there.
    pub fn backing_path(&self, backing: &Backing) -> Option<PathBuf> {
        match backing {
            Backing::File {} => Some(self.data_path()),
            Backing::Path { path } => Some(path.clone()),
            Backing::Export { .. } => None,
        }
    }

    /// Makes the data file: new, sparse, mode 0600, of exactly `size` bytes, durable with its name. An
    /// existing file is an error, whatever is in it. When it fails, no file is left.
    pub fn create_data(&self, size: VolumeSize) -> Result<(), CreateDataError> {
        self.create_sparse(self.data_path(), size, size.bytes())
    }

    /// Makes the block map of a volume of `size`, of which it says nothing yet: as [`Self::create_data`].
    pub fn create_map(&self, size: VolumeSize) -> Result<(), CreateDataError> {
        self.create_sparse(self.map_path(), size, map_bytes(size))
    }

    /// Makes the block map long enough for a volume of `size`, durably, if there is one. It says no more than before.
    pub fn lengthen_map(&self, size: VolumeSize) -> Result<(), CreateDataError> {
        let path = self.map_path();
        let failed = |source: io::Error| CreateDataError::from_io(&path, size, source);
        let file = match OpenOptions::new().write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let bytes = map_bytes(size);
        if file.metadata().map_err(failed)?.len() < bytes {
            file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the spool of a snapshot: as [`Self::create_data`]. Use [`Self::remove_spools`] to remove it.
    pub fn create_spool(&self, snapshot: SnapshotId, size: VolumeSize) -> Result<(), CreateDataError> {
        self.create_sparse(self.spool_path(snapshot), size, size.bytes())
    }

    /// Removes the spools of snapshots that are over, or were killed. The caller holds the volume.
    pub fn remove_spools(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let is_spool = name
                .to_str()
                .and_then(|name| name.strip_prefix(SPOOL_PREFIX)?.strip_suffix(SPOOL_SUFFIX))
                .is_some_and(|id| id.parse::<SnapshotId>().is_ok());
            if is_spool {
                fs::remove_file(self.path.join(name))?;
            }
        }
        Ok(())
    }

    fn create_sparse(&self, path: PathBuf, size: VolumeSize, bytes: u64) -> Result<(), CreateDataError> {
        let failed = |source: io::Error| CreateDataError::from_io(&path, size, source);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        let written = file.set_len(bytes).and_then(|()| file.sync_all());
        if let Err(source) = written.and_then(|()| File::open(&self.path)?.sync_all()) {
            // The first error is the one to tell. A file that cannot be removed is found by the next create.
            let _ = fs::remove_file(&path);
            return Err(failed(source));
        }
        Ok(())
    }

    /// Bytes that the store has allocated for the volume: of a file what `stat` says, which may exceed the
    /// size by metadata; of a block device or an export `None`, for they do not say.
    pub fn allocated_bytes(&self, backing: &Backing) -> io::Result<Option<u64>> {
        let Some(path) = self.backing_path(backing) else { return Ok(None) };
        let metadata = fs::metadata(path)?;
        let is_device = metadata.file_type().is_block_device();
        Ok((!is_device).then(|| metadata.blocks().saturating_mul(STAT_BLOCK_BYTES)))
    }
}

/// Why the data file was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateDataError {
    /// There is one already; it was not touched.
    #[error("{path} exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system is full, or takes no file of this size.
    #[error("{path}: no space for a file of {size_bytes} bytes on this file system")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The volume's size.
        size_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("{path} could not be created")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl CreateDataError {
    fn from_io(path: &Path, size: VolumeSize, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            io::ErrorKind::StorageFull | io::ErrorKind::FileTooLarge | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path, size_bytes: size.bytes(), source }
            }
            _ => Self::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_data_file_is_sparse_private_and_of_the_exact_size() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = VolumeDirectory::new(temporary.path());
        let size = VolumeSize::from_bytes((1 << 30) + 512).expect("a size");
        directory.create_data(size).expect("create");
        let metadata = fs::metadata(directory.data_path()).expect("metadata");
        assert_eq!(metadata.len(), size.bytes());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let allocated =
            directory.allocated_bytes(&Backing::File {}).expect("allocated").expect("a file says");
        assert!(allocated < 1 << 20, "{allocated}");
    }

    #[test]
    fn an_existing_data_file_is_not_touched() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = VolumeDirectory::new(temporary.path());
        fs::write(directory.data_path(), "precious").expect("write");
        let error = directory.create_data(VolumeSize::MIN).expect_err("exists");
        assert!(matches!(error, CreateDataError::Exists { .. }), "{error:?}");
        assert_eq!(fs::read(directory.data_path()).expect("read"), b"precious");
    }

    #[test]
    fn spools_are_removed_and_nothing_else() {
        let temporary = tempfile::tempdir().expect("a directory");
        let directory = VolumeDirectory::new(temporary.path());
        directory.create_data(VolumeSize::MIN).expect("data");
        directory.create_map(VolumeSize::MIN).expect("map");
        let spools = [1, 2].map(|number| SnapshotId::from_random([number; 9]));
        spools.iter().for_each(|id| directory.create_spool(*id, VolumeSize::MIN).expect("spool"));
        fs::write(temporary.path().join("snapshot-of-my-own.cow"), "").expect("write");
        directory.remove_spools().expect("remove");
        assert!(spools.iter().all(|id| !directory.spool_path(*id).exists()));
        assert_eq!(fs::read_dir(temporary.path()).expect("list").count(), 3);
    }

    #[test]
    fn a_size_that_the_file_system_does_not_take_is_no_space() {
        let failed = |kind: io::ErrorKind| {
            CreateDataError::from_io(Path::new("/x/data"), VolumeSize::MIN, io::Error::from(kind))
        };
        assert!(matches!(failed(io::ErrorKind::FileTooLarge), CreateDataError::NoSpace { .. }));
        assert!(matches!(failed(io::ErrorKind::StorageFull), CreateDataError::NoSpace { .. }));
        assert!(matches!(failed(io::ErrorKind::PermissionDenied), CreateDataError::Io { .. }));
    }
}
