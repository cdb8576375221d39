//! The root key: 32 random bytes that wrap every backing key of the store, and the ways in which they are kept.
//!
//! One file, `root.key`, holds it, in one of two forms. **Key file**: the 32 bytes themselves. **Wrapped**: a record
//! (`sealblk-kms-root-key`) with the root key encrypted under a key that comes from a passphrase or from a credential
//! of the service manager (`wrapping`). The root key stays the same when its protection changes, so that neither keys
//! nor volumes are touched; `replacement` puts one form in the place of the other, whole or not at all, and wipes the
//! old one.
//!
//! Opened straight into locked memory for a call that needs it. What each form protects against is in SECURITY.md.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod replacement;
mod wrapping;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use sealblk_keymem::{KeyMemError, Secret};
use sealblk_record::{RecordError, RecordFile};

pub use self::wrapping::{ArgonParameters, RootKeyProtection};
use self::wrapping::{WrappedRootKey, WrappingKey};
use crate::passphrase::{Passphrase, PassphraseError, Unlock};

/// The key's length, and that of a file that holds nothing else, in bytes.
const ROOT_KEY_BYTES: usize = 32;
const GROUP_AND_WORLD: u32 = 0o077;

/// The key that wraps backing keys.
pub(super) type RootKey = Secret<ROOT_KEY_BYTES>;

/// How a root key is to be protected from now on.
#[derive(Clone, Copy, Debug)]
pub enum NewProtection<'a> {
    /// In a file that only its owner can read: for a host that starts by itself.
    KeyFile,
    /// Under a passphrase, by Argon2id.
    Passphrase(&'a Passphrase),
    /// Under a credential of the service manager with this name, at least 32 bytes that nobody can guess, read from the
    /// directory of [`Unlock::credentials`].
    Credential(&'a str),
}

/// Why the root key cannot be used; each names the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootKeyError {
    #[error("the root key {path} is missing, but keys wrapped under it exist: put it back from a backup")]
    Missing { path: PathBuf },
    #[error("keys are wrapped under the root key {path}: it is not replaced")]
    InUse { path: PathBuf },
    #[error("the root key {path} may be read by others (mode {mode:o}): make it 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the root key {path} belongs to uid {uid}, not to the key store's owner, uid {owner}")]
    Foreign { path: PathBuf, uid: u32, owner: u32 },
    #[error("the root key {path} is {length} bytes long instead of 32")]
    Length { path: PathBuf, length: u64 },
    #[error("the root key {path} cannot be {action}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error("the root key {path} has parameters that no release of ours wrote: {what}")]
    Parameters { path: PathBuf, what: &'static str },
    #[error("the root key {path} is protected by a passphrase, and none was given")]
    NoPassphrase { path: PathBuf },
    #[error("the root key {path} does not open: the passphrase is wrong, or the file is damaged")]
    WrongPassphrase { path: PathBuf },
    #[error(
        "the root key {path} is protected by the credential {name}, and there is no credentials directory: \
         run this in a unit with LoadCredential= or LoadCredentialEncrypted="
    )]
    NoCredentials { path: PathBuf, name: String },
    #[error("the root key {path} does not open: the credential {name} is another, or the file is damaged")]
    WrongCredential { path: PathBuf, name: String },
    #[error("the credential {path} cannot be read")]
    Credential { path: PathBuf, source: io::Error },
    #[error("the credential {path} has {length} bytes: 32 to 4096 random ones are needed")]
    CredentialLength { path: PathBuf, length: usize },
    #[error("a credential's name is 1 to 255 letters, digits, dots, dashes and underscores, not {name:?}")]
    CredentialName { name: String },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    #[error("no memory for Argon2id")]
    Memory,
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
}

impl RootKeyError {
    /// Whether whoever calls did not give what opens the root key, as opposed to a store that does not work.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoPassphrase { .. }
                | Self::WrongPassphrase { .. }
                | Self::NoCredentials { .. }
                | Self::WrongCredential { .. }
                | Self::Credential { .. }
                | Self::Passphrase(_)
        )
    }
}

/// The file of a store's root key, and who must own it.
#[derive(Clone, Debug)]
pub(super) struct RootKeyFile {
    path: PathBuf,
    owner_uid: u32,
}

/// What the file holds.
enum Form {
    Plain(File),
    Wrapped(WrappedRootKey),
}

impl RootKeyFile {
    pub(super) fn new(path: PathBuf, owner_uid: u32) -> Self {
        Self { path, owner_uid }
    }

    /// Whether the file exists.
    pub(super) fn exists(&self) -> Result<bool, RootKeyError> {
        self.path.try_exists().map_err(self.io_error("looked for"))
    }

    /// Checks existence, owner, mode and form without reading a key; how it is protected.
    pub(super) fn protection(&self) -> Result<RootKeyProtection, RootKeyError> {
        Ok(match self.form()? {
            Form::Plain(_) => RootKeyProtection::KeyFile,
            Form::Wrapped(wrapped) => wrapped.protection(&self.path)?,
        })
    }

    /// Opens the key into locked memory. A wrong passphrase costs as much time as the right one.
    pub(super) fn load(&self, unlock: &Unlock) -> Result<RootKey, RootKeyError> {
        let wrapped = match self.form()? {
            Form::Plain(mut file) => {
                return RootKey::init(|bytes| file.read_exact(bytes).map_err(self.io_error("read")));
            }
            Form::Wrapped(wrapped) => wrapped,
        };
        match wrapped.protection(&self.path)? {
            RootKeyProtection::KeyFile => Err(self.parameters("a record without a wrapping")),
            RootKeyProtection::Passphrase(parameters) => {
                let source = unlock.passphrase.as_ref().map(|source| source.get()).transpose()?.flatten();
                let passphrase =
                    source.ok_or_else(|| RootKeyError::NoPassphrase { path: self.path.clone() })?;
                let key = WrappingKey::of_passphrase(&passphrase, parameters, &wrapped.salt(&self.path)?)?;
                let wrong = || RootKeyError::WrongPassphrase { path: self.path.clone() };
                wrapped.open(&key, &self.path)?.ok_or_else(wrong)
            }
            RootKeyProtection::Credential { name } => {
                let key =
                    WrappingKey::of_credential(&self.credential(&name, unlock)?, &wrapped.salt(&self.path)?)?;
                let wrong = || RootKeyError::WrongCredential { path: self.path.clone(), name };
                wrapped.open(&key, &self.path)?.ok_or_else(wrong)
            }
        }
    }

    /// Makes a new key, in the place of one if there is one: the caller holds the store's lock and has seen that nothing
    /// is wrapped. The file appears whole: a crash leaves none, or a leftover that [`clean_up`](Self::clean_up) finds.
    pub(super) fn create(&self, how: NewProtection<'_>, unlock: &Unlock) -> Result<RootKey, RootKeyError> {
        let key = RootKey::init(|bytes| {
            getrandom::fill(bytes).map_err(io::Error::from).map_err(self.io_error("filled with random bytes"))
        })?;
        self.put(&key, how, unlock)?;
        Ok(key)
    }

    /// Whether a killed change left something to clean up.
    pub(super) fn has_leftovers(&self) -> bool {
        replacement::leftovers(&self.path).iter().any(|path| path.symlink_metadata().is_ok())
    }

    /// Wipes and removes what a killed change left. The caller holds the store's lock.
    pub(super) fn clean_up(&self) -> Result<(), RootKeyError> {
        replacement::clean_up(&self.path).map_err(self.io_error("cleaned up after"))
    }

    /// Protects the key that the file holds in another way, or under another passphrase or credential. The caller holds
    /// the store's lock. Killed at any point it leaves the old file or the new one; when it returns the old one is
    /// overwritten.
    pub(super) fn put(
        &self,
        key: &RootKey,
        how: NewProtection<'_>,
        unlock: &Unlock,
    ) -> Result<(), RootKeyError> {
        self.clean_up()?;
        let new = replacement::new_path(&self.path);
        match how {
            NewProtection::KeyFile => {
                replacement::write_plain(&new, key).map_err(self.io_error("written"))?;
            }
            NewProtection::Passphrase(passphrase) => {
                let (salt, parameters) = (self.new_salt()?, ArgonParameters::DEFAULT);
                let under = WrappingKey::of_passphrase(passphrase, parameters, &salt)?;
                let how = RootKeyProtection::Passphrase(parameters);
                RecordFile::new(&new).store(&WrappedRootKey::seal(key, &under, how, &salt)?)?;
            }
            NewProtection::Credential(name) => {
                let salt = self.new_salt()?;
                let under = WrappingKey::of_credential(&self.credential(name, unlock)?, &salt)?;
                let how = RootKeyProtection::Credential { name: name.to_owned() };
                RecordFile::new(&new).store(&WrappedRootKey::seal(key, &under, how, &salt)?)?;
            }
        }
        // A file of root's in another user's store would lock that user out.
        let owned = std::os::unix::fs::chown(&new, Some(self.owner_uid), None);
        owned.map_err(self.io_error("given to the store's owner"))?;
        replacement::put_in_place(&self.path).map_err(self.io_error("put in place"))
    }

    fn form(&self) -> Result<Form, RootKeyError> {
        let mut file = File::open(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RootKeyError::Missing { path: self.path.clone() },
            _ => self.io_error("opened")(source),
        })?;
        let metadata = file.metadata().map_err(self.io_error("looked at"))?;
        self.check_access(&metadata)?;
        if metadata.size() == ROOT_KEY_BYTES as u64 {
            return Ok(Form::Plain(file));
        }
        let mut first = [0];
        let begins_a_record = file.read(&mut first).map_err(self.io_error("read"))? == 1 && first == *b"{";
        if !begins_a_record {
            return Err(RootKeyError::Length { path: self.path.clone(), length: metadata.size() });
        }
        Ok(Form::Wrapped(RecordFile::new(&self.path).load()?))
    }

    fn check_access(&self, metadata: &fs::Metadata) -> Result<(), RootKeyError> {
        let (path, mode) = (self.path.clone(), metadata.permissions().mode() & 0o7777);
        if mode & GROUP_AND_WORLD != 0 {
            return Err(RootKeyError::Exposed { path, mode });
        }
        if ![self.owner_uid, 0].contains(&metadata.uid()) {
            return Err(RootKeyError::Foreign { path, uid: metadata.uid(), owner: self.owner_uid });
        }
        Ok(())
    }

    /// The file of a credential.
    fn credential(&self, name: &str, unlock: &Unlock) -> Result<PathBuf, RootKeyError> {
        if !wrapping::is_credential_name(name) {
            return Err(RootKeyError::CredentialName { name: name.chars().take(255).collect() });
        }
        let missing = || RootKeyError::NoCredentials { path: self.path.clone(), name: name.to_owned() };
        Ok(unlock.credentials.as_ref().ok_or_else(missing)?.join(name))
    }

    fn new_salt(&self) -> Result<[u8; wrapping::SALT_BYTES], RootKeyError> {
        let mut salt = [0; wrapping::SALT_BYTES];
        getrandom::fill(&mut salt).map_err(io::Error::from).map_err(self.io_error("salted"))?;
        Ok(salt)
    }

    fn parameters(&self, what: &'static str) -> RootKeyError {
        RootKeyError::Parameters { path: self.path.clone(), what }
    }

    fn io_error(&self, action: &'static str) -> impl Fn(io::Error) -> RootKeyError + use<> {
        let path = self.path.clone();
        move |source| RootKeyError::Io { path: path.clone(), action, source }
    }
}

#[cfg(test)]
mod tests;
