//! DeleteVolume. The volume is gone at once, when its directory loses its name; its data goes after that.

use std::path::Path;
use std::{fs, io};

use sealblk_volume::{Backing, VolumeDirectory, VolumeId};

use crate::error::ControlError;
use crate::place::BackingPlace;
use crate::pool::{DELETED, Pool, load_record, sync_directory};
use crate::restore::{RestoreError, SnapshotHold};

/// What became of a deleted volume's data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeletedData {
    /// It is gone.
    Removed,
    /// It is in a file, device or export outside the pool, which was left as it is.
    Left {
        /// Where.
        place: BackingPlace,
    },
}

impl Pool {
    /// Deletes a volume that is not in use, retiring what grants it still has.
    ///
    /// Killed halfway, the volume is either still there or gone; the next create or delete removes the rest.
    pub fn delete_volume(&self, id: VolumeId) -> Result<DeletedData, ControlError> {
        {
            let _names = self.lock_names()?;
            self.remove_leftovers()?;
        }
        let held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        // A volume whose record is damaged can be deleted too; that its data lay elsewhere is then not known.
        let record = load_record(&held.directory).ok();
        let hold =
            record.as_ref().and_then(|record| SnapshotHold::of(self, record).transpose()).transpose()?;
        let backing = record.map(|record| record.backing);
        let deleted = self.volumes_dir().join(format!("{DELETED}{id}"));
        fs::rename(held.directory.path(), &deleted)
            .map_err(|source| ControlError::Pool { path: deleted.clone(), source })?;
        sync_directory(&self.volumes_dir())?;
        if let Some(hold) = hold {
            self.let_snapshot_go(id, &deleted, &hold)?;
        }
        match fs::remove_dir_all(&deleted) {
            // Another command has found what is left of a deleted volume.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(|source| ControlError::Pool { path: deleted, source })?,
        }
        Ok(match backing {
            Some(Backing::Path { path }) => DeletedData::Left { place: path.into() },
            // One that is not a URI any more is not known either.
            Some(Backing::Export { uri }) => uri.parse().map_or(DeletedData::Removed, |uri| {
                DeletedData::Left { place: BackingPlace::Export(Box::new(uri)) }
            }),
            Some(Backing::File {}) | None => DeletedData::Removed,
        })
    }

    /// Releases the snapshot that a deleted volume was being restored from. If that cannot be done now, the data goes, and
    /// what says what to release stays for the next create or delete.
    fn let_snapshot_go(&self, id: VolumeId, deleted: &Path, hold: &SnapshotHold) -> Result<(), ControlError> {
        let Err(error) = hold.release() else { return Ok(()) };
        match fs::remove_file(VolumeDirectory::new(deleted).data_path()) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ControlError::Pool { path: deleted.to_owned(), source });
            }
            _ => {}
        }
        let (snapshot, source) = (hold.snapshot, Box::new(error));
        Err(RestoreError::HoldLeft { id, snapshot, source }.into())
    }
}
