//! Where an attachment's sockets are, and how they are made: the directory for its owner only, a name that fits
//! a socket address, a dead server's socket file replaced, anything else in the way refused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod, fchmod};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sealblk_volume::VolumeId;

/// `sun_path` holds 108 bytes, the last of which is zero.
const SOCKET_PATH_BYTES: usize = 107;
/// Clients that may wait to be accepted; as the Rust library's own listeners have it.
const BACKLOG: i32 = 128;

/// The directory of the sockets: `/run/sealblk`, or what the command line says.
#[derive(Clone, Debug)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// Uses `path`, which is created when the first socket is.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the volume's NBD socket is, unless the caller names another path.
    pub fn nbd_socket(&self, volume: &VolumeId) -> PathBuf {
        self.0.join(format!("{volume}.sock"))
    }

    /// Where the socket is by which `detach` reaches the serving process.
    pub fn control_socket(&self, volume: &VolumeId) -> PathBuf {
        self.0.join(format!("{volume}.ctl"))
    }
}

/// Why a Unix socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A server answers at the path.
    #[error("{} is in use: a server answers there", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// What is at the path is no socket.
    #[error("{} exists and is not a socket; it is left as it is", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The path does not fit a socket address.
    #[error("the socket path {} is {} bytes long; the kernel takes {SOCKET_PATH_BYTES}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot make the socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A listening Unix socket whose file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    path: PathBuf,
}

impl BoundSocket {
    /// Listens at `path`, in a directory that is made for its owner only if it is not there.
    ///
    /// A socket file at which nobody answers is what a killed server leaves: it is replaced.
    pub(crate) fn bind(path: &Path, openness: Openness) -> Result<(Self, UnixListener), SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(SocketError::TooLong { path: path.to_owned() });
        }
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        }
        remove_dead(path)?;
        let listener = listen(path, openness).map_err(|errno| failed(errno.into()))?;
        Ok((Self { path: path.to_owned() }, listener))
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Nothing depends on it: the next server replaces a socket file at which nobody answers.
        let _ = fs::remove_file(&self.path);
    }
}

/// Who can open a socket's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Openness {
    /// Its owner (mode 0600).
    Owner,
    /// Everybody who can reach it (mode 0666): the server asks the kernel who it is.
    Everybody,
}

/// Listens at `path`. Linux makes a socket's file with the mode of the unbound socket, so that there is no moment
/// at which others could connect, and no umask of the whole process to change; what is for others is opened to them
/// afterwards, past that umask.
fn listen(path: &Path, openness: Openness) -> rustix::io::Result<UnixListener> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if openness == Openness::Everybody {
        chmod(path, Mode::from_raw_mode(0o666))?;
    }
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes the socket file of a dead server at `path`; refuses a live one, and what is no socket.
pub(crate) fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("run/a.sock");
        let (first, listener) = BoundSocket::bind(&path, Openness::Owner).expect("a fresh socket");
        assert!(matches!(BoundSocket::bind(&path, Openness::Owner), Err(SocketError::InUse { .. })));
        drop(listener);
        std::mem::forget(first);
        let (second, _listener) =
            BoundSocket::bind(&path, Openness::Owner).expect("the dead socket is replaced");
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn sockets_are_for_their_owner_only() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("run/a.sock");
        let _bound = BoundSocket::bind(&path, Openness::Owner).expect("a fresh socket");
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&dir.path().join("run"))), (0o600, 0o700));
    }

    #[test]
    fn a_socket_for_other_users_can_be_opened_by_them_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a.sock");
        let _bound = BoundSocket::bind(&path, Openness::Everybody).expect("a fresh socket");
        let mode = fs::metadata(&path).expect("it exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn a_file_in_the_way_is_refused_and_left() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("a.sock");
        fs::write(&path, "precious").expect("a file");
        assert!(matches!(BoundSocket::bind(&path, Openness::Owner), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).expect("it is still there"), b"precious");
    }

    #[test]
    fn a_path_longer_than_a_socket_address_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x".repeat(108));
        let error = BoundSocket::bind(&path, Openness::Owner).expect_err("too long").to_string();
        assert!(error.contains("the kernel takes 107"), "{error}");
    }
}
