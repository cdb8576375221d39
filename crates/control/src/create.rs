//! CreateVolume: an empty volume or one from a snapshot, encrypted or not. Everything that can be refused is refused before anything is
//! stored; what is stored takes the volume's name only when it is whole.
//!
//! No plaintext key is ever here: the key service answers with a wrapped one.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;

use jiff::Timestamp;
use sealblk_kms::{EncryptionContext, KeyMetadata, KeyState, ReEncryptRequest, WrappedKey};
use sealblk_record::{LockFile, RecordFile};
use sealblk_volume::{
    Backing, Encryption, KeyReference, RecoveryKey, SnapshotId, VolumeDirectory, VolumeId, VolumeName,
    VolumeRecord, VolumeSize, WrappedDataKey, XtsEncryption,
};

use crate::backing::{self, PreparedBacking};
use crate::describe::VolumeDescription;
use crate::error::ControlError;
use crate::export;
use crate::outcome::{EncryptionRequest, Outcome, OutcomeError, Source, outcome};
use crate::place::BackingPlace;
use crate::pool::{DELETED, Pool, UNFINISHED, load_record, sync_directory};
use crate::restore::{RestoreError, SnapshotHold, SnapshotSource, release_leftover};

/// What CreateVolume is asked for.
#[derive(Clone, Debug)]
pub struct CreateVolume {
    /// Size in bytes: a multiple of 512, 1 MiB to 64 TiB. `None`: the snapshot's.
    pub size_bytes: Option<u64>,
    /// The snapshot, of the pool's repository, that its data comes from; `None`: it is empty.
    pub snapshot_id: Option<SnapshotId>,
    /// `Encrypted`, if given.
    pub encrypted: Option<bool>,
    /// `KmsKeyId`, if given: id, ARN or alias.
    pub kms_key_id: Option<String>,
    /// Further keys that the data key is wrapped under, for when the first cannot be used; each as `kms_key_id`.
    pub recovery_kms_key_ids: Vec<String>,
    /// A file, block device or NBD export to keep the data in; `None`: a sparse file in the pool.
    pub backing: Option<BackingPlace>,
    /// Whether TRIM may give space back to the store.
    pub discard: bool,
    /// What people call it.
    pub name: Option<VolumeName>,
    /// Whether what `backing` holds may be overwritten with zeros.
    pub erase: bool,
}

impl CreateVolume {
    /// What is asked about encryption.
    pub(crate) fn encryption(&self) -> EncryptionRequest<'_> {
        EncryptionRequest { encrypted: self.encrypted, kms_key_id: self.kms_key_id.as_deref() }
    }

    /// The snapshot that is asked for, if one is.
    pub(crate) fn source(&self, pool: &Pool) -> Result<Option<SnapshotSource>, ControlError> {
        self.snapshot_id.map(|id| SnapshotSource::find(pool, id)).transpose()
    }

    /// The volume's size.
    pub(crate) fn size(&self, source: Option<&SnapshotSource>) -> Result<VolumeSize, ControlError> {
        match (source, self.size_bytes) {
            (Some(source), asked) => source.size(asked),
            (None, Some(bytes)) => Ok(VolumeSize::from_bytes(bytes)?),
            (None, None) => Err(RestoreError::NoSize.into()),
        }
    }
}

impl Pool {
    /// Creates a volume. `progress` is told how many of how many bytes of an existing backing are looked at
    /// or erased.
    ///
    /// On an error nothing is left but, if erasing was allowed and begun, an erased backing.
    pub fn create_volume(
        &self,
        request: &CreateVolume,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VolumeDescription, ControlError> {
        let source = request.source(self)?;
        let size = request.size(source.as_ref())?;
        let id = VolumeId::generate().map_err(|error| ControlError::Random(error.into()))?;
        let encryption = self.choose_encryption(id, request, source.as_ref())?;

        let mut unfinished = self.claim(id, size, request, encryption, source.as_ref())?;
        unfinished.hold_snapshot(self)?;
        match &request.backing {
            None => unfinished.directory.create_data(size).map_err(backing::BackingError::from)?,
            Some(BackingPlace::Path(path)) => {
                unfinished.backing = Some(backing::prepare(path, size, request.erase, progress)?);
            }
            Some(BackingPlace::Export(uri)) => export::prepare(uri, size, request.erase, progress)?,
        }
        unfinished.publish(self, id)?;
        self.describe_volume(id)
    }

    /// What the outcome rule says, looked up and with a data key made for it, or taken over from the snapshot.
    fn choose_encryption(
        &self,
        id: VolumeId,
        request: &CreateVolume,
        source: Option<&SnapshotSource>,
    ) -> Result<Encryption, ControlError> {
        let settings = self.pool_directory().settings()?;
        let from = source.map_or(Source::Empty, SnapshotSource::as_source);
        let Outcome::Encrypted { key } = outcome(request.encryption(), settings.defaults(), from)? else {
            let no_key = OutcomeError::KeyWithoutEncrypted;
            let plain = request.recovery_kms_key_ids.is_empty();
            return if plain { Ok(Encryption::Plain {}) } else { Err(no_key.into()) };
        };
        let arn = usable_key(self.kms.describe_key(key)?)?;
        // All keys are looked at before the first call that makes something.
        let others = request.recovery_kms_key_ids.iter();
        let others =
            others.map(|key| usable_key(self.kms.describe_key(key)?)).collect::<Result<Vec<_>, _>>()?;
        let encryption = match source.and_then(|source| Some((source, source.under(&arn)?))) {
            Some((source, snapshot)) => source.take_over_key(self, id, snapshot, others)?,
            None => {
                source.map_or(Ok(()), |source| source.check_key(self, id))?;
                self.make_key(id, arn, others)?
            }
        };
        Ok(Encryption::Aes256Xts(encryption))
    }

    /// A data key of the volume's own under `arn`, and under `others` too.
    fn make_key(
        &self,
        id: VolumeId,
        arn: KeyReference,
        others: Vec<KeyReference>,
    ) -> Result<XtsEncryption, ControlError> {
        let context = EncryptionContext::for_resource(&id.to_string());
        let wrapped = self.kms.generate_data_key_without_plaintext(arn.as_str(), &context)?;
        let recovery = others.into_iter().map(|other| {
            let rewrapped = self.kms.re_encrypt(&ReEncryptRequest {
                wrapped: &wrapped,
                from_key: arn.as_str(),
                from_context: &context,
                to_key: other.as_str(),
                to_context: &context,
            })?;
            Ok(RecoveryKey { kms_key_id: other, wrapped_key: storable(rewrapped)? })
        });
        let recovery = recovery.collect::<Result<Vec<_>, ControlError>>()?;
        Ok(XtsEncryption::new(arn, storable(wrapped)?, id).with_recovery_keys(recovery))
    }

    /// Makes the volume's directory under a name that no command shows, with its record, so that its backing
    /// is taken from now on.
    fn claim(
        &self,
        id: VolumeId,
        size: VolumeSize,
        request: &CreateVolume,
        encryption: Encryption,
        source: Option<&SnapshotSource>,
    ) -> Result<Unfinished, ControlError> {
        let backing = match &request.backing {
            None => Backing::File {},
            Some(BackingPlace::Path(path)) => Backing::Path { path: backing::resolve(path)? },
            Some(BackingPlace::Export(uri)) => Backing::Export { uri: uri.to_string() },
        };
        let restoring = source.map(|source| source.restoring(self, &encryption)).transpose()?;
        let record = VolumeRecord {
            volume_id: id,
            size_bytes: size,
            create_time: Timestamp::now(),
            owner_id: self.pool_directory().recorded_owner(),
            backing,
            encryption,
            discard: request.discard,
            name: request.name.clone(),
            snapshot_id: source.map(SnapshotSource::id),
            restoring: restoring.map(Box::new),
        };
        let _names = self.lock_names()?;
        self.remove_leftovers()?;
        if let Some(place) = BackingPlace::outside(&record.backing)? {
            self.refuse_taken(&place)?;
        }
        Unfinished::make(self, &record)
    }

    /// Removes what killed creates and deletes left. The caller holds the lock on names, so that a directory
    /// whose own lock is free belongs to nobody.
    pub(crate) fn remove_leftovers(&self) -> Result<(), ControlError> {
        for name in self.names()? {
            let path = self.volumes_dir().join(&name);
            let deleted = name.starts_with(DELETED);
            if !deleted && !name.starts_with(UNFINISHED) {
                continue;
            }
            let lock = VolumeDirectory::new(&path).lock_path();
            let abandoned = deleted || !lock.exists() || LockFile::try_exclusive(&lock)?.is_some();
            if abandoned && release_leftover(self, &VolumeDirectory::new(&path)) {
                fs::remove_dir_all(&path).map_err(|source| ControlError::Pool { path, source })?;
            }
        }
        Ok(())
    }

    /// Refuses a backing that a volume of this pool has, or is about to have.
    fn refuse_taken(&self, place: &BackingPlace) -> Result<(), ControlError> {
        for name in self.names()? {
            let id = name.strip_prefix(UNFINISHED).unwrap_or(&name);
            let Ok(id) = id.parse::<VolumeId>() else { continue };
            let directory = VolumeDirectory::new(self.volumes_dir().join(&name));
            let record = load_record(&directory)?;
            if place.is_same(&BackingPlace::of(&directory, &record.backing)?)? {
                return Err(backing::BackingError::Taken { place: place.clone(), by: id }.into());
            }
        }
        Ok(())
    }
}

pub(crate) fn storable(wrapped: WrappedKey) -> Result<WrappedDataKey, ControlError> {
    WrappedDataKey::from_bytes(wrapped.0)
        .map_err(|_| ControlError::KeyAnswer { reason: "a wrapped key has 1 to 6144 bytes" })
}

/// The key's ARN, if volumes can be encrypted under it now.
pub(crate) fn usable_key(key: KeyMetadata) -> Result<KeyReference, ControlError> {
    if key.key_spec != "SYMMETRIC_DEFAULT" || key.key_usage != "ENCRYPT_DECRYPT" {
        return Err(ControlError::KeyKind { key: key.arn, spec: key.key_spec, usage: key.key_usage });
    }
    if key.key_state != KeyState::Enabled {
        let in_words = key.state_in_words();
        return Err(ControlError::KeyState { key: key.arn, state: key.key_state, in_words });
    }
    KeyReference::try_from(key.arn)
        .map_err(|_| ControlError::KeyAnswer { reason: "its Arn is neither a key's ARN nor its URI" })
}

/// A volume that nobody can see yet; removed when dropped.
struct Unfinished {
    directory: VolumeDirectory,
    record: VolumeRecord,
    /// Tells others that this is not a leftover; also keeps an attach out until the volume is whole.
    lock: LockFile,
    /// Released unless the volume gets its name.
    hold: Option<SnapshotHold>,
    /// Put back as it was unless the volume gets its name.
    backing: Option<PreparedBacking>,
    published: bool,
}

impl Unfinished {
    fn make(pool: &Pool, record: &VolumeRecord) -> Result<Self, ControlError> {
        let path = pool.volumes_dir().join(format!("{UNFINISHED}{}", record.volume_id));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| ControlError::Pool { path: path.clone(), source })?;
        let directory = VolumeDirectory::new(path);
        let begin = || {
            let lock = LockFile::exclusive(directory.lock_path())?;
            RecordFile::new(directory.record_path()).store(record)?;
            Ok(lock)
        };
        match begin() {
            Ok(lock) => {
                let record = record.clone();
                Ok(Self { directory, record, lock, hold: None, backing: None, published: false })
            }
            Err(error) => {
                // The first error is the one to tell; what is left is found by the next create.
                let _ = fs::remove_dir_all(directory.path());
                Err(error)
            }
        }
    }

    /// Holds the snapshot that the record names, if it names one, and makes the map.
    fn hold_snapshot(&mut self, pool: &Pool) -> Result<(), ControlError> {
        self.hold = SnapshotHold::of(pool, &self.record)?;
        self.hold.as_ref().map_or(Ok(()), |hold| hold.begin(&self.directory, &self.record))
    }

    /// Gives the whole volume its name.
    fn publish(mut self, pool: &Pool, id: VolumeId) -> Result<(), ControlError> {
        let path = pool.directory(id).path().to_owned();
        // Not over another volume: rename replaces an empty directory only, and a volume's never is.
        fs::rename(self.directory.path(), &path).map_err(|source| ControlError::Pool { path, source })?;
        self.published = true;
        if let Some(backing) = &mut self.backing {
            backing.keep();
        }
        sync_directory(&pool.volumes_dir())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The lock is held until after this, by the field's own drop.
        let _ = &self.lock;
        // What cannot be released now is released by who finds the directory.
        let released = || self.hold.as_ref().is_none_or(|hold| hold.release().is_ok());
        if !self.published && released() {
            // There is an error to tell already; what cannot be removed is found by the next create.
            let _ = fs::remove_dir_all(self.directory.path());
        }
    }
}
