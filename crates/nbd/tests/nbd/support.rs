//! One connection for a test: a client on this thread, the server's side on another.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_block::{BlockDevice, ByteDevice, MemoryDevice};
use sealblk_nbd::{ConnectionError, Ended, ExportInfo, Limits, Stopper, serve_connection};
use sealblk_testkit::nbd_client::NbdClient;

/// The name of the export in these tests.
pub(crate) const NAME: &str = "vol-0123456789abcdef0";
/// Another name of it.
pub(crate) const ALIAS: &str = "data disk";
/// Its description.
pub(crate) const DESCRIPTION: &str = "a volume for tests";
/// The size of [`memory`].
pub(crate) const SIZE: u64 = 4 << 20;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;

pub(crate) type Client = NbdClient<UnixStream>;

/// The server's side of a connection.
pub(crate) struct Session {
    thread: JoinHandle<Result<Ended, ConnectionError>>,
    pub(crate) stopper: Stopper,
}

impl Session {
    /// Waits for its end.
    pub(crate) fn end(self) -> Result<Ended, ConnectionError> {
        self.thread.join().expect("a connection does not panic")
    }
}

pub(crate) fn memory() -> ByteDevice<MemoryDevice> {
    ByteDevice::new(MemoryDevice::new(SIZE / 512))
}

pub(crate) fn info() -> ExportInfo {
    ExportInfo::new(NAME, &[ALIAS], DESCRIPTION).expect("short strings")
}

/// A connection to `device`, nothing said yet. A read of the client that takes 20 seconds fails, so
/// that a server that does not answer fails the test instead of holding it.
pub(crate) fn connect<D: BlockDevice>(device: &ByteDevice<D>) -> (Client, Session) {
    serve(device, info(), Limits::default())
}

/// The same with other limits.
pub(crate) fn connect_within<D: BlockDevice>(device: &ByteDevice<D>, limits: Limits) -> (Client, Session) {
    serve(device, info(), limits)
}

/// The same for another export.
pub(crate) fn connect_to<D: BlockDevice>(device: &ByteDevice<D>, info: ExportInfo) -> (Client, Session) {
    serve(device, info, Limits::default())
}

fn serve<D: BlockDevice>(device: &ByteDevice<D>, info: ExportInfo, limits: Limits) -> (Client, Session) {
    let (client, server) = UnixStream::pair().expect("a pair of sockets");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    client.set_write_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    server.set_nonblocking(true).expect("a non-blocking socket");
    let stopper = Stopper::default();
    let (device, stop) = (device.clone(), stopper.signal());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
        runtime.block_on(async move {
            let stream = tokio::net::UnixStream::from_std(server).expect("a stream");
            serve_connection(stream, &device, &info, &limits, stop, &Arc::default()).await
        })
    });
    (NbdClient::new(client), Session { thread, stopper })
}

/// A connection in transmission.
pub(crate) fn transmitting<D: BlockDevice>(device: &ByteDevice<D>) -> (Client, Session) {
    let (mut client, session) = connect(device);
    client.go("").expect("GO is answered");
    (client, session)
}
