//! From a record to a volume: the only way to make one. Fails closed: an encrypted volume is opened with
//! the data key it was sealed with, or not at all. Called at attach, once the KMS has answered.

use std::ops::Range;
use std::sync::Arc;

use sealblk_block::{BlockDevice, BlockError, BlockLane, Buffer, Extent, Lba, SECTOR_BYTES, SectorRange};
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_xts::{CipherError, SectorCipher};

use crate::cipher::NullCipher;
use crate::custody::KeyHold;
use crate::growth::VolumeGrowth;
use crate::id::VolumeId;
use crate::piece::{piece_bytes, pieces};
use crate::record::{VolumeRecord, XtsEncryption};
use crate::seal::{Seal, SealError, Sealer};
use crate::volume::Volume;
use crate::wrapped::{KeyReference, WrappedDataKey};

/// How much of a device is read at once in search of data.
const SEARCH_BYTES: usize = 1024 * 1024;

/// What a record describes, by what it takes to open it. Made by [`VolumeRecord::access`].
#[derive(Debug)]
pub enum Access<'a> {
    /// Opens as it is.
    Plain(PlainVolume<'a>),
    /// Opens with its data key.
    Encrypted(EncryptedVolume<'a>),
}

/// The record of an unencrypted volume.
#[derive(Clone, Copy, Debug)]
pub struct PlainVolume<'a> {
    record: &'a VolumeRecord,
}

impl<'a> PlainVolume<'a> {
    pub(crate) fn new(record: &'a VolumeRecord) -> Self {
        Self { record }
    }

    /// The volume on `device`.
    pub fn open<D: BlockDevice>(&self, device: D) -> Result<Volume<NullCipher, D>, OpenError> {
        check_size(self.record, &device)?;
        let growth = VolumeGrowth::new(self.record.size_bytes, None);
        Ok(Volume::new(NullCipher, device, growth, self.record.discard))
    }
}

/// The record of an encrypted volume.
#[derive(Clone, Copy, Debug)]
pub struct EncryptedVolume<'a> {
    record: &'a VolumeRecord,
    encryption: &'a XtsEncryption,
}

impl<'a> EncryptedVolume<'a> {
    pub(crate) fn new(record: &'a VolumeRecord, encryption: &'a XtsEncryption) -> Self {
        Self { record, encryption }
    }

    /// The volume's identifier, which is also the encryption context of its data key.
    pub fn volume_id(&self) -> VolumeId {
        self.record.volume_id
    }

    /// The KMS key to ask for.
    pub fn kms_key_id(&self) -> &'a KeyReference {
        &self.encryption.kms_key_id
    }

    /// What to have unwrapped.
    pub fn wrapped_key(&self) -> &'a WrappedDataKey {
        &self.encryption.wrapped_key
    }

    /// Every key that the data key is wrapped under, with the wrapped key, in the order in which to try them.
    pub fn wrappings(&self) -> impl Iterator<Item = (&'a KeyReference, &'a WrappedDataKey)> {
        self.encryption.wrappings()
    }

    /// Whether the volume was attached before. If not, [`Self::seal`] comes before [`Self::open`].
    pub fn is_sealed(&self) -> bool {
        self.encryption.seal().is_some()
    }

    /// The record with its seal, for the caller to store before anything is served: the first attach. A
    /// record that has one is verified and returned as it is.
    ///
    /// A volume made from a snapshot under the snapshot's data key says what that key derives to, and takes no other.
    /// Any other volume that holds data before its first attach has lost its seal, or had it
    /// taken away: [`OpenError::UnsealedWithData`]. (One made from a snapshot under a key of its own is
    /// restored by attachments only, so after the seal.) Looking costs a read of what the store has allocated,
    /// up to the first byte that is not zero. Call inside the runtime that [`BlockDevice::open_lane`] asks for.
    pub async fn seal<D: BlockDevice>(&self, key: &DataKey, device: &D) -> Result<VolumeRecord, OpenError> {
        check_size(self.record, device)?;
        let fields = self.record.sealed_fields(self.encryption);
        if let Some(seal) = self.encryption.seal() {
            seal.verify(key, &fields)?;
            return Ok(self.record.clone());
        }
        if let Some(key_check) = self.encryption.expected_key_check() {
            key_check.verify(key)?;
        } else if let Some(at) = first_data(device, 0..self.record.size_bytes.sectors()).await? {
            return Err(OpenError::UnsealedWithData { at });
        }
        // A key that the cipher refuses is refused before it is sealed in.
        SectorCipher::new(key)?;
        let seal = Seal::new(key, &fields).map_err(SealError::from)?;
        Ok(self.record.with_seal(self.encryption, seal))
    }

    /// The volume on `device`, if `key` is the one it was sealed with and the record is as it was sealed.
    pub fn open<D: BlockDevice>(
        &self,
        key: &DataKey,
        device: D,
    ) -> Result<Volume<SectorCipher, D>, OpenError> {
        self.open_revocable(key, device).map(|(volume, _)| volume)
    }

    /// The same, with a hold on its key: it can be taken from the open volume, and given back.
    pub fn open_revocable<D: BlockDevice>(
        &self,
        key: &DataKey,
        device: D,
    ) -> Result<(Volume<SectorCipher, D>, KeyHold), OpenError> {
        let seal = self.encryption.seal().ok_or(OpenError::Unsealed)?;
        let fields = self.record.sealed_fields(self.encryption);
        let sealer = Sealer::new(key)?;
        sealer.verify(seal, &fields)?;
        check_size(self.record, &device)?;
        let cipher = SectorCipher::new(key)?;
        let growth = VolumeGrowth::new(self.record.size_bytes, Some(sealer));
        let volume = Volume::new(cipher, device, growth, self.record.discard);
        let hold = KeyHold::new(Arc::clone(volume.custody()), seal.clone(), fields);
        Ok((volume, hold))
    }
}

/// Why a volume was not opened. Nothing was changed or served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The seal does not hold: wrong key, or a changed record.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The volume was never attached: [`EncryptedVolume::seal`] comes first.
    #[error("the volume's record has no seal yet")]
    Unsealed,
    /// The volume holds data, but its record has no seal that could tell whether the key is right.
    #[error(
        "the volume's record has no seal, but its backing holds data (at {at}) that no record accounts for"
    )]
    UnsealedWithData {
        /// The first sector that is not zero.
        at: Lba,
    },
    /// The backing lost its end.
    #[error("the backing is too short: the volume has {expected_bytes} bytes, the backing {found_bytes}")]
    Truncated {
        /// The volume's size.
        expected_bytes: u64,
        /// The backing's.
        found_bytes: u64,
    },
    /// The backing is read and written in units that the volume does not end at.
    #[error("the volume's {size_bytes} bytes are not a multiple of the backing's {unit_bytes}-byte blocks")]
    PartialUnit {
        /// The volume's size.
        size_bytes: u64,
        /// The backing's unit.
        unit_bytes: u32,
    },
    /// The key is unfit for the cipher, or there is no locked memory for its round keys.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The backing failed.
    #[error(transparent)]
    Device(#[from] BlockError),
}

impl From<KeyMemError> for OpenError {
    fn from(error: KeyMemError) -> Self {
        Self::Seal(SealError::KeyMemory(error))
    }
}

fn check_size<D: BlockDevice>(record: &VolumeRecord, device: &D) -> Result<(), OpenError> {
    let geometry = device.geometry();
    let size = record.size_bytes;
    if geometry.sectors < size.sectors() {
        let found_bytes = geometry.sectors.saturating_mul(SECTOR_BYTES as u64);
        return Err(OpenError::Truncated { expected_bytes: size.bytes(), found_bytes });
    }
    if !size.bytes().is_multiple_of(geometry.unit_bytes.into()) {
        return Err(OpenError::PartialUnit { size_bytes: size.bytes(), unit_bytes: geometry.unit_bytes });
    }
    Ok(())
}

/// The first of `sectors` that holds a byte other than zero, if one does. Reads only what the device does not
/// already say is zero. The range is whole units of the device. Call inside the runtime that
/// [`BlockDevice::open_lane`] asks for.
pub async fn first_data<D: BlockDevice>(device: &D, sectors: Range<u64>) -> Result<Option<Lba>, BlockError> {
    let unit = u64::from(device.geometry().unit_bytes) / SECTOR_BYTES as u64;
    let lane = device.open_lane()?;
    let mut buffer = Buffer::new(SEARCH_BYTES);
    // One at a time: each starts where the last one ended, rounded to whole units.
    let mut extents: Vec<Extent> = Vec::with_capacity(1);
    let Range { start: mut at, end: sectors } = sectors;
    while at < sectors {
        extents.clear();
        lane.extents(SectorRange { start: Lba(at), count: sectors - at }, &mut extents).await?;
        let extent = extents.first().expect("a device knows something of the first sector");
        let whole_units = extent.count / unit * unit;
        if extent.allocation.zero && whole_units > 0 {
            at += whole_units;
            continue;
        }
        let count = extent.count.next_multiple_of(unit).min(sectors - at);
        for piece in pieces(SectorRange { start: Lba(at), count }, SEARCH_BYTES) {
            let result;
            buffer.set_len(piece_bytes(piece));
            (result, buffer) = lane.read(piece.start, buffer).await;
            result?;
            if let Some(byte) = buffer.iter().position(|byte| *byte != 0) {
                return Ok(Some(Lba(piece.start.0 + (byte / SECTOR_BYTES) as u64)));
            }
            tokio::task::yield_now().await;
        }
        at += count;
    }
    Ok(None)
}
