//! CreateVolume: an empty volume, encrypted or not. Everything that can be refused is refused before anything is
//! stored; what is stored takes the volume's name only when it is whole.
//!
//! No plaintext key is ever here: the key service answers with a wrapped one.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;

use jiff::Timestamp;
use sealblk_kms::{EncryptionContext, KeyMetadata, KeyState, ReEncryptRequest, WrappedKey};
use sealblk_record::{LockFile, RecordFile};
use sealblk_volume::{
    Backing, Encryption, KeyReference, RecoveryKey, VolumeDirectory, VolumeId, VolumeName, VolumeRecord,
    VolumeSize, WrappedDataKey, XtsEncryption,
};

use crate::backing::{self, PreparedBacking};
use crate::describe::VolumeDescription;
use crate::error::ControlError;
use crate::export;
use crate::outcome::{EncryptionRequest, Outcome, OutcomeError, Source, outcome};
use crate::place::BackingPlace;
use crate::pool::{DELETED, Pool, UNFINISHED, load_record, sync_directory};

/// What CreateVolume is asked for.
#[derive(Clone, Debug)]
pub struct CreateVolume {
    /// Size in bytes: a multiple of 512, 1 MiB to 64 TiB.
    pub size_bytes: u64,
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

/// What a volume will be encrypted under.
struct ChosenKey {
    arn: KeyReference,
    wrapped: WrappedDataKey,
    recovery: Vec<RecoveryKey>,
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
        let size = VolumeSize::from_bytes(request.size_bytes)?;
        let id = VolumeId::generate().map_err(|error| ControlError::Random(error.into()))?;
        let key = self.choose_key(id, request)?;

        let mut unfinished = self.claim(id, size, request, key)?;
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

    /// What the outcome rule says, looked up and with a data key made for it.
    fn choose_key(&self, id: VolumeId, request: &CreateVolume) -> Result<Option<ChosenKey>, ControlError> {
        let asked =
            EncryptionRequest { encrypted: request.encrypted, kms_key_id: request.kms_key_id.as_deref() };
        let settings = self.pool_directory().settings()?;
        let Outcome::Encrypted { key } = outcome(asked, settings.defaults(), Source::Empty)? else {
            let no_key = OutcomeError::KeyWithoutEncrypted;
            return if request.recovery_kms_key_ids.is_empty() { Ok(None) } else { Err(no_key.into()) };
        };
        let arn = usable_key(self.kms.describe_key(key)?)?;
        let context = EncryptionContext::for_resource(&id.to_string());
        // All keys are looked at before the first call that makes something.
        let others = request.recovery_kms_key_ids.iter();
        let others =
            others.map(|key| usable_key(self.kms.describe_key(key)?)).collect::<Result<Vec<_>, _>>()?;
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
        Ok(Some(ChosenKey { arn, wrapped: storable(wrapped)?, recovery }))
    }

    /// Makes the volume's directory under a name that no command shows, with its record, so that its backing
    /// is taken from now on.
    fn claim(
        &self,
        id: VolumeId,
        size: VolumeSize,
        request: &CreateVolume,
        key: Option<ChosenKey>,
    ) -> Result<Unfinished, ControlError> {
        let backing = match &request.backing {
            None => Backing::File {},
            Some(BackingPlace::Path(path)) => Backing::Path { path: backing::resolve(path)? },
            Some(BackingPlace::Export(uri)) => Backing::Export { uri: uri.to_string() },
        };
        let encryption = match key {
            None => Encryption::Plain {},
            Some(key) => Encryption::Aes256Xts(
                XtsEncryption::new(key.arn, key.wrapped, id).with_recovery_keys(key.recovery),
            ),
        };
        let record = VolumeRecord {
            volume_id: id,
            size_bytes: size,
            create_time: Timestamp::now(),
            owner_id: self.pool_directory().recorded_owner(),
            backing,
            encryption,
            discard: request.discard,
            name: request.name.clone(),
            snapshot_id: None,
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
    fn remove_leftovers(&self) -> Result<(), ControlError> {
        for name in self.names()? {
            let path = self.volumes_dir().join(&name);
            let deleted = name.starts_with(DELETED);
            if !deleted && !name.starts_with(UNFINISHED) {
                continue;
            }
            let lock = VolumeDirectory::new(&path).lock_path();
            let abandoned = deleted || !lock.exists() || LockFile::try_exclusive(&lock)?.is_some();
            if abandoned {
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
    /// Tells others that this is not a leftover; also keeps an attach out until the volume is whole.
    lock: LockFile,
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
            Ok(lock) => Ok(Self { directory, lock, backing: None, published: false }),
            Err(error) => {
                // The first error is the one to tell; what is left is found by the next create.
                let _ = fs::remove_dir_all(directory.path());
                Err(error)
            }
        }
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
        if !self.published {
            // There is an error to tell already; what cannot be removed is found by the next create.
            let _ = fs::remove_dir_all(self.directory.path());
        }
    }
}
