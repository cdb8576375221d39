//! From a held volume to an open one: its backing, and for an encrypted one its grant, data key and seal.
//! Common to attach and materialize.

use sealblk_block::Caching;
use sealblk_volume::{
    Access, CipherStatistics, EncryptedVolume, KeyHold, NullCipher, OpenError, SectorCipher, Volume,
    VolumeGrowth, VolumeRecord,
};

use crate::attachment::Announcement;
use crate::error::ControlError;
use crate::grant::HeldGrant;
use crate::hold::HeldVolume;
use crate::keep::{self, StoredVolume};
use crate::offline;
use crate::pool::{Pool, change_record};
use crate::store::StoreDevice;

/// An open volume; the encrypted one holds round keys, wiped when it is dropped, and the grant they came by.
pub(crate) enum OpenVolume<'p> {
    Plain(Volume<NullCipher, StoredVolume>),
    Encrypted(Volume<SectorCipher, StoredVolume>, HeldGrant<'p>, KeyHold),
}

impl OpenVolume<'_> {
    /// What is below its cipher.
    pub(crate) fn stored(&self) -> &StoredVolume {
        match self {
            Self::Plain(volume) => volume.device(),
            Self::Encrypted(volume, ..) => volume.device(),
        }
    }

    /// What grows it.
    pub(crate) fn growth(&self) -> VolumeGrowth {
        match self {
            Self::Plain(volume) => volume.growth(),
            Self::Encrypted(volume, ..) => volume.growth(),
        }
    }

    /// What its cipher does, if it has one.
    pub(crate) fn cipher_statistics(&self) -> CipherStatistics {
        match self {
            Self::Plain(volume) => volume.cipher_statistics(),
            Self::Encrypted(volume, ..) => volume.cipher_statistics(),
        }
    }
}

/// How to open the backing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenHow {
    pub(crate) read_only: bool,
    pub(crate) caching: Option<Caching>,
}

impl Pool {
    /// Opens what `record` describes. The first opening of an encrypted volume seals its record.
    pub(crate) fn open_volume(
        &self,
        held: &mut HeldVolume,
        record: &VolumeRecord,
        how: OpenHow,
        announcement: &mut Announcement,
    ) -> Result<OpenVolume<'_>, ControlError> {
        let id = held.id;
        let failed = |source| ControlError::Open { id, source };
        let device = StoreDevice::open(held, record, how)?;
        match record.access() {
            Access::Plain(volume) => {
                let stored = keep::open_stored(&held.directory, record, device, how.read_only)?;
                Ok(OpenVolume::Plain(volume.open(stored).map_err(failed)?))
            }
            Access::Encrypted(volume) => {
                let (grant, key) = HeldGrant::unlock(self, &volume, announcement)?;
                let sealed = if volume.is_sealed() {
                    offline::run(volume.seal(&key, &device))?.map_err(failed)?
                } else {
                    // Of the record as it is now: it may have been re-wrapped since it was read.
                    change_record(&held.directory, |record| {
                        let volume = sealed_volume(&record).ok_or_else(|| failed(OpenError::Unsealed))?;
                        offline::run(volume.seal(&key, &device))?.map_err(failed)
                    })?
                };
                let stored = keep::open_stored(&held.directory, &sealed, device, how.read_only)?;
                let volume = sealed_volume(&sealed).ok_or_else(|| failed(OpenError::Unsealed))?;
                let (volume, hold) = volume.open_revocable(&key, stored).map_err(failed)?;
                Ok(OpenVolume::Encrypted(volume, grant, hold))
            }
        }
    }
}

fn sealed_volume(record: &VolumeRecord) -> Option<EncryptedVolume<'_>> {
    match record.access() {
        Access::Encrypted(volume) => Some(volume),
        Access::Plain(_) => None,
    }
}
