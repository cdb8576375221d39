//! The crate `nbd` as an independent client: EXPORT_NAME, one request at a time, header written field by field.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nbd::client::{NbdClient, NbdExt, handshake};

/// A server that does not answer for so long is a failure, not a reason to wait.
const REPLY: Duration = Duration::from_secs(60);

/// One connection.
pub struct Client<S: Read + Write> {
    nbd: NbdClient<S>,
    size: u64,
    read_only: bool,
}

impl Client<UnixStream> {
    /// Connects to `export` on a Unix socket.
    #[track_caller]
    pub fn connect(socket: &Path, export: &str) -> Self {
        Self::try_connect(socket, export).unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
    }

    /// As `connect`, for a server that may be gone.
    pub fn try_connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(REPLY))?;
        stream.set_write_timeout(Some(REPLY))?;
        let shape = handshake(&mut stream, export.as_bytes())?;
        Ok(Self { nbd: NbdClient::new(stream, &shape), size: shape.size, read_only: shape.readonly })
    }
}

impl<S: Read + Write> Client<S> {
    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the export says so.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Reads `len` bytes at `at` in one request.
    pub fn read(&mut self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.nbd.seek(SeekFrom::Start(at))?;
        self.nbd.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes `bytes` at `at` in one request.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.nbd.seek(SeekFrom::Start(at))?;
        self.nbd.write_all(bytes)
    }

    /// FLUSH.
    pub fn flush(&mut self) -> io::Result<()> {
        self.nbd.flush()
    }

    /// TRIM.
    pub fn trim(&mut self, at: u64, len: usize) -> io::Result<()> {
        self.nbd.seek(SeekFrom::Start(at))?;
        self.nbd.trim(len)
    }
}
