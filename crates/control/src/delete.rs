//! DeleteVolume. The volume is gone at once, when its directory loses its name; its data goes after that.

use std::fs;

use sealblk_volume::{Backing, VolumeId};

use crate::error::ControlError;
use crate::place::BackingPlace;
use crate::pool::{DELETED, Pool, load_record, sync_directory};

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
    /// Killed halfway, the volume is either still there or gone; the next create removes the rest.
    pub fn delete_volume(&self, id: VolumeId) -> Result<DeletedData, ControlError> {
        let held = self.hold(id)?;
        self.clean_up_after_predecessor(&held)?;
        // A volume whose record is damaged can be deleted too; that its data lay elsewhere is then not known.
        let backing = load_record(&held.directory).ok().map(|record| record.backing);
        let deleted = self.volumes_dir().join(format!("{DELETED}{id}"));
        fs::rename(held.directory.path(), &deleted)
            .map_err(|source| ControlError::Pool { path: deleted.clone(), source })?;
        sync_directory(&self.volumes_dir())?;
        fs::remove_dir_all(&deleted).map_err(|source| ControlError::Pool { path: deleted, source })?;
        Ok(match backing {
            Some(Backing::Path { path }) => DeletedData::Left { place: path.into() },
            // One that is not a URI any more is not known either.
            Some(Backing::Export { uri }) => uri.parse().map_or(DeletedData::Removed, |uri| {
                DeletedData::Left { place: BackingPlace::Export(Box::new(uri)) }
            }),
            Some(Backing::File {}) | None => DeletedData::Removed,
        })
    }
}
