//! One form of the root key in the place of another: whole or not at all, and nothing of the old one left.
//!
//! `root.key.new` is written and synced; the old file gets the second name `root.key.old`; the new one is renamed over
//! `root.key`; the old one is overwritten with zeros and removed. A process that is killed leaves one of these states,
//! each of which [`clean_up`] brings to an end: a `.new` that is not in place is wiped, an `.old` that is still in
//! place loses its second name only, one that is not is wiped.
//!
//! Overwriting reaches the bytes where the file system writes in place. It does not on one that copies on write or
//! journals data, nor behind a flash controller: SECURITY.md says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::RootKey;

/// How far a replacement has come, in order. A process can end after any of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The old file has its second name.
    OldNamed,
    /// The new file is in place.
    Renamed,
    /// The old file holds zeros.
    Wiped,
    /// The old file is gone.
    Removed,
}

/// Where the next form is written before it is put in place.
pub(super) fn new_path(path: &Path) -> PathBuf {
    path.with_extension("key.new")
}

fn old_path(path: &Path) -> PathBuf {
    path.with_extension("key.old")
}

/// What a killed replacement can leave beside the key.
pub(super) fn leftovers(path: &Path) -> [PathBuf; 2] {
    [new_path(path), old_path(path)]
}

/// Writes the key itself to a new file, synced.
pub(super) fn write_plain(path: &Path, key: &RootKey) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    key.expose(|bytes| file.write_all(bytes))?;
    file.sync_all()
}

/// Puts the new file, which is whole, in place; the old one, if there is one, is wiped. Durable when it returns.
pub(super) fn put_in_place(path: &Path) -> io::Result<()> {
    put_in_place_in_steps(path, |_| ControlFlow::Continue(()))
}

/// As [`put_in_place`], telling `reached` how far it is; `Break` leaves everything as it then is, as a killed process
/// would.
pub(super) fn put_in_place_in_steps(
    path: &Path,
    mut reached: impl FnMut(Step) -> ControlFlow<()>,
) -> io::Result<()> {
    let old = old_path(path);
    type Work<'a> = &'a dyn Fn() -> io::Result<()>;
    let steps: [(Step, Work<'_>); 4] = [
        (Step::OldNamed, &|| match fs::hard_link(path, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            linked => linked.and_then(|()| sync_parent(path)),
        }),
        (Step::Renamed, &|| fs::rename(new_path(path), path).and_then(|()| sync_parent(path))),
        (Step::Wiped, &|| overwrite(&old)),
        (Step::Removed, &|| remove_if_there(&old).and_then(|()| sync_parent(path))),
    ];
    for (step, work) in steps {
        work()?;
        if reached(step).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Brings a killed replacement to its end.
pub(super) fn clean_up(path: &Path) -> io::Result<()> {
    // The old key is not overwritten before it is certain that the new one is what a power failure leaves.
    sync_parent(path)?;
    for leftover in leftovers(path) {
        if !is_same_file(&leftover, path)? {
            overwrite(&leftover)?;
        }
        remove_if_there(&leftover)?;
    }
    sync_parent(path)
}

/// Overwrites a file, if it is there, with zeros, and waits until they are stored.
fn overwrite(path: &Path) -> io::Result<()> {
    let metadata = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    // Somebody's link to elsewhere is not ours to overwrite.
    if !metadata.is_file() {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let mut file = OpenOptions::new().write(true).open(path)?;
    io::copy(&mut io::Read::take(io::repeat(0), metadata.size()), &mut file)?;
    file.flush()?;
    file.sync_all()
}

fn is_same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let identity = |path: &Path| match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(|metadata| Some((metadata.dev(), metadata.ino()))),
    };
    let one = identity(one)?;
    Ok(one.is_some() && one == identity(other)?)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
