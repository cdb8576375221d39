//! The root key file: 32 random bytes that wrap every backing key of the store. Created on first use, read straight
//! into locked memory for each call that needs it, never kept longer.
//!
//! It protects against a copy of the store without this file, and against other users of the host; not against
//! somebody who can read the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sealblk_keymem::{KeyMemError, Secret};

/// The file's length and the key's, in bytes.
const ROOT_KEY_BYTES: usize = 32;
const GROUP_AND_WORLD: u32 = 0o077;

/// The key that wraps backing keys.
pub(super) type RootKey = Secret<ROOT_KEY_BYTES>;

/// Why the root key cannot be used; each names the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootKeyError {
    #[error("the root key {path} is missing, but keys wrapped under it exist: put it back from a backup")]
    Missing { path: PathBuf },
    #[error("the root key {path} may be read by others (mode {mode:o}): make it 0600")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the root key {path} is {length} bytes long instead of 32")]
    Length { path: PathBuf, length: u64 },
    #[error("the root key {path} cannot be {action}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
}

/// Whether the file exists.
pub(super) fn exists(path: &Path) -> Result<bool, RootKeyError> {
    path.try_exists().map_err(io_error(path, "looked for"))
}

/// Checks existence, mode and length without reading the key.
pub(super) fn check(path: &Path) -> Result<(), RootKeyError> {
    open_checked(path).map(drop)
}

/// Reads the key into locked memory.
pub(super) fn load(path: &Path) -> Result<RootKey, RootKeyError> {
    let mut file = open_checked(path)?;
    RootKey::init(|bytes| file.read_exact(bytes).map_err(io_error(path, "read")))
}

/// Makes a new key. The caller holds the store's lock and has seen that there is none. The file appears whole: it
/// is written under another name, synced and renamed, so a crash leaves no short key behind.
pub(super) fn create(path: &Path) -> Result<(), RootKeyError> {
    let key = RootKey::init(|bytes| {
        getrandom::fill(bytes).map_err(io::Error::from).map_err(io_error(path, "filled with random bytes"))
    })?;
    let temporary = path.with_extension("key.new");
    write_new(&temporary, &key)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_parent(path))
        .map_err(io_error(path, "created"))
}

fn open_checked(path: &Path) -> Result<File, RootKeyError> {
    let file = File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => RootKeyError::Missing { path: path.to_owned() },
        _ => io_error(path, "opened")(source),
    })?;
    let metadata = file.metadata().map_err(io_error(path, "looked at"))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & GROUP_AND_WORLD != 0 {
        return Err(RootKeyError::Exposed { path: path.to_owned(), mode });
    }
    if metadata.size() != ROOT_KEY_BYTES as u64 {
        return Err(RootKeyError::Length { path: path.to_owned(), length: metadata.size() });
    }
    Ok(file)
}

fn write_new(path: &Path, key: &RootKey) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    key.expose(|bytes| file.write_all(bytes))?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

fn io_error(path: &Path, action: &'static str) -> impl Fn(io::Error) -> RootKeyError {
    let path = path.to_owned();
    move |source| RootKeyError::Io { path: path.clone(), action, source }
}
