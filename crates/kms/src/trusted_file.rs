//! A file that code is taken from: a PKCS#11 module, a program. Whoever can change it can have every data key.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The owner's group, or others, may write.
const MODE_WRITABLE: u32 = 0o022;

/// Why a file's code is not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("the {what} {} cannot be used", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the {what} {} is not used: {why}", path.display())]
    Unsafe { what: &'static str, path: PathBuf, why: &'static str },
}

/// Refuses a path that is relative, no regular file, owned by another user than root and this one, or writable by more
/// than its owner.
pub(crate) fn require(what: &'static str, path: &Path) -> Result<(), TrustError> {
    let refuse = |why| Err(TrustError::Unsafe { what, path: path.to_owned(), why });
    if !path.is_absolute() {
        return refuse("its path is not absolute");
    }
    let failed = |source| TrustError::Io { what, path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return refuse("it is not a regular file");
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        return refuse("it belongs to neither root nor this user");
    }
    if metadata.mode() & MODE_WRITABLE != 0 {
        return refuse("others than its owner may write to it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_file_that_nobody_else_can_change_is_trusted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("module.so");
        assert!(matches!(require("module", &path), Err(TrustError::Io { .. })));
        fs::write(&path, "").expect("written");
        for (mode, trusted) in [(0o644, true), (0o755, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            assert_eq!(require("module", &path).is_ok(), trusted, "{mode:o}");
        }
        assert!(require("module", dir.path()).is_err(), "a directory");
        assert!(require("module", Path::new("module.so")).is_err(), "a relative path");
    }
}
