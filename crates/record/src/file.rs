//! A record in its file: whole at every moment, with the generation before beside it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::document::{Document, Rejection, decode, to_bytes};
use crate::error::RecordError;

/// The largest record, in bytes: what is larger is refused before it is read.
pub const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;

/// The file that holds a record of type `T`. It need not exist.
///
/// Nothing is kept open or cached. Readers may come at any time; of those who store or remove, one at a time:
/// hold a [`LockFile`](crate::LockFile) from `load` to `store`, or an update can be lost. Two who store
/// without one still leave a whole record, of one of them; the other may get an error.
#[derive(Debug)]
pub struct RecordFile<T> {
    path: PathBuf,
    holds: PhantomData<fn() -> T>,
}

/// How far a store has come, in order. A process can end after any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    LeftoversRemoved,
    TemporaryCreated,
    TemporarySynced,
    PreviousKept,
    Renamed,
    DirectorySynced,
}

impl<T: Document> RecordFile<T> {
    /// The record at `path`: a file name in an existing directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), holds: PhantomData }
    }

    /// Where the record is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the content before the last store is, if there was one: the path with `.prev` appended.
    pub fn previous_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".prev");
        path.into()
    }

    /// Whether the record exists, whole or not.
    ///
    /// # Errors
    /// [`RecordError::Io`] if that cannot be told.
    pub fn exists(&self) -> Result<bool, RecordError> {
        self.path.try_exists().map_err(RecordError::io("look for", &self.path))
    }

    /// Reads the record.
    ///
    /// # Errors
    /// Every kind but [`RecordError::Unstorable`]. The previous generation is named, never returned.
    pub fn load(&self) -> Result<T, RecordError> {
        let bytes = read_limited(&self.path)?;
        decode(&bytes).map_err(|rejection| self.rejected(rejection))
    }

    /// Writes the record, whole or not at all; durable when it returns.
    ///
    /// A new file has mode 0600. Whatever the record was before is then the previous generation, unless it was
    /// damaged. Temporary files that a killed process left for this record are removed.
    ///
    /// # Errors
    /// [`RecordError::Io`]: the record has its old content; only if the step was to sync the directory, it has
    /// the new one, which may not survive a power failure. [`RecordError::TooLarge`] and
    /// [`RecordError::Unstorable`]: nothing was touched.
    pub fn store(&self, document: &T) -> Result<(), RecordError> {
        self.store_in_steps(document, |_| ControlFlow::Continue(()))
    }

    /// Removes the record, then its previous generation and leftovers; durable when it returns.
    ///
    /// # Errors
    /// [`RecordError::Missing`]: there was none; what a killed removal left beside it is gone now. [`RecordError::Io`]:
    /// it may or may not be gone.
    pub fn remove(&self) -> Result<(), RecordError> {
        let removed = match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RecordError::Missing { path: self.path.clone() })
            }
            removed => Ok(removed.map_err(RecordError::io("remove", &self.path))?),
        };
        self.sync_directory()?;
        remove_if_there(&self.previous_path())?;
        self.remove_leftovers()?;
        self.sync_directory()?;
        removed
    }

    /// [`store`](Self::store), telling `reached` how far it is; `Break` leaves everything as it then is, as a
    /// killed process would.
    fn store_in_steps(
        &self,
        document: &T,
        mut reached: impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<(), RecordError> {
        let bytes = to_bytes(&self.path, document)?;
        let temporary = self.new_temporary_path();
        type Work<'a> = &'a dyn Fn() -> Result<(), RecordError>;
        let steps: [(Step, Work<'_>); 6] = [
            (Step::LeftoversRemoved, &|| self.remove_leftovers()),
            (Step::TemporaryCreated, &|| create(&temporary).map(drop)),
            (Step::TemporarySynced, &|| write_and_sync(&temporary, &bytes)),
            (Step::PreviousKept, &|| self.keep_previous()),
            (Step::Renamed, &|| rename(&temporary, &self.path)),
            (Step::DirectorySynced, &|| self.sync_directory()),
        ];
        for (step, work) in steps {
            if let Err(error) = work() {
                // The first error is the one to report; a leftover is harmless.
                let _ = fs::remove_file(&temporary);
                return Err(error);
            }
            if reached(step).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes the current content the previous generation as well.
    fn keep_previous(&self) -> Result<(), RecordError> {
        let previous = self.previous_path();
        match self.load() {
            Ok(_) => {}
            // The first of a new line: what an earlier record of this name left is not its past.
            Err(RecordError::Missing { .. }) => return remove_if_there(&previous),
            // Not worth keeping, least of all in the place of a whole one.
            Err(_) => return Ok(()),
        }
        let temporary = self.new_temporary_path();
        if fs::hard_link(&self.path, &temporary).is_err() {
            // File systems without hard links, and files of another owner (protected_hardlinks).
            let bytes = read_limited(&self.path)?;
            create(&temporary)?;
            write_and_sync(&temporary, &bytes)?;
        }
        rename(&temporary, &previous)?;
        // rename(2) does nothing at all if both names already are the same file, as they are if the last store
        // ended between this step and the next.
        remove_if_there(&temporary)
    }

    /// Removes what killed writers of this record left.
    fn remove_leftovers(&self) -> Result<(), RecordError> {
        let directory = self.directory();
        let prefix = self.temporary_prefix();
        let entries = fs::read_dir(directory).map_err(RecordError::io("list", directory))?;
        for entry in entries {
            let name = entry.map_err(RecordError::io("list", directory))?.file_name();
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(prefix.as_encoded_bytes()) && bytes.ends_with(b".tmp") {
                remove_if_there(&directory.join(name))?;
            }
        }
        Ok(())
    }

    fn sync_directory(&self) -> Result<(), RecordError> {
        let directory = self.directory();
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(RecordError::io("sync the directory", directory))
    }

    fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// How the names of this record's temporary files begin: a dot, its name, a tilde.
    fn temporary_prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(self.path.file_name().unwrap_or(OsStr::new("record")));
        prefix.push("~");
        prefix
    }

    /// A name that no other process and no other store uses, in the directory of the record.
    fn new_temporary_path(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut name = self.temporary_prefix();
        name.push(format!("{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        self.directory().join(name)
    }

    fn rejected(&self, rejection: Rejection) -> RecordError {
        let previous = self.previous_path();
        let damaged = matches!(rejection, Rejection::Damaged { .. });
        let whole = damaged && read_limited(&previous).is_ok_and(|bytes| decode::<T>(&bytes).is_ok());
        rejection.at::<T>(self.path.clone(), whole.then_some(previous))
    }
}

/// The bytes of the file at `path`, if they are not more than a record can have.
fn read_limited(path: &Path) -> Result<Vec<u8>, RecordError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RecordError::Missing { path: path.to_owned() });
        }
        opened => opened.map_err(RecordError::io("open", path))?,
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large" from "just fits", whatever the file's length says.
    let read =
        file.take(MAX_RECORD_BYTES + 1).read_to_end(&mut bytes).map_err(RecordError::io("read", path))?;
    match u64::try_from(read) {
        Ok(length) if length <= MAX_RECORD_BYTES => Ok(bytes),
        _ => Err(RecordError::TooLarge { path: path.to_owned(), limit: MAX_RECORD_BYTES }),
    }
}

fn create(path: &Path) -> Result<File, RecordError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(RecordError::io("create", path))
}

fn write_and_sync(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(RecordError::io("open", path))?;
    file.write_all(bytes).map_err(RecordError::io("write", path))?;
    file.sync_all().map_err(RecordError::io("sync", path))
}

fn rename(from: &Path, to: &Path) -> Result<(), RecordError> {
    fs::rename(from, to).map_err(RecordError::io("put a new record in the place of", to))
}

fn remove_if_there(path: &Path) -> Result<(), RecordError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(RecordError::io("remove", path)),
    }
}

#[cfg(test)]
mod tests;
