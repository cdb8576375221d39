//! A file that holds one secret: a token, a PIN, one half of an AppRole.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// No such secret is longer, in bytes; the buffer is this large at once, so that no copy is left behind by growing.
const SECRET_BYTES_MAX: usize = 16 * 1024;
/// Others may do something with the file.
const MODE_OTHERS: u32 = 0o007;

/// Why there is no secret. Never repeats any of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretFileError {
    #[error("the file with the {what}, {}, cannot be read", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the file with the {what}, {}, is open to everybody (mode {mode:03o})", path.display())]
    Open { what: &'static str, path: PathBuf, mode: u32 },
    #[error("the file with the {what}, {}, is empty, too long or not one line of text", path.display())]
    Content { what: &'static str, path: PathBuf },
}

/// The one line of text in `path`, wiped when dropped. A descriptor is read as `/dev/fd/N`.
pub(crate) fn read(what: &'static str, path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let failed = |source| SecretFileError::Io { what, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & MODE_OTHERS != 0 {
        return Err(SecretFileError::Open { what, path: path.to_owned(), mode });
    }
    let wrong = || SecretFileError::Content { what, path: path.to_owned() };
    let mut bytes = Zeroizing::new(vec![0; SECRET_BYTES_MAX]);
    let mut length: usize = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let text = bytes.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or_else(wrong)?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    if line.is_empty() || length == SECRET_BYTES_MAX || line.contains(|c: char| c.is_control()) {
        return Err(wrong());
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        fs::write(&path, content).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        (dir, path)
    }

    #[test]
    fn one_line_is_read_with_or_without_its_end() {
        for content in ["hunter2", "hunter2\n"] {
            let (_dir, path) = file(content.as_bytes(), 0o640);
            assert_eq!(read("PIN", &path).expect("read").as_str(), "hunter2");
        }
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused() {
        let (_dir, path) = file(b"hunter2", 0o644);
        let error = read("PIN", &path).expect_err("open to everybody");
        assert!(matches!(error, SecretFileError::Open { mode: 0o644, .. }), "{error}");
    }

    #[test]
    fn what_is_not_one_line_is_refused_without_being_repeated() {
        for content in [&b""[..], b"\n", b"hunter\n2\n", b"hunter\xff", &vec![b'a'; 20_000]] {
            let (_dir, path) = file(content, 0o600);
            let error = read("PIN", &path).expect_err("not a secret");
            assert!(matches!(error, SecretFileError::Content { .. }), "{error}");
            assert!(!error.to_string().contains("hunter"), "{error}");
        }
    }
}
