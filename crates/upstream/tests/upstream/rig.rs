//! What the tests share: our own server on a thread, a go-between that cuts connections, and a surrounding for lanes.

use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, Buffer, ByteDevice, Durability, Lba};
use sealblk_nbd::{ExportInfo, Limits, Listener, Server, Users};
use sealblk_upstream::{ExportUri, UpstreamDevice, UpstreamOptions};
use tokio::sync::oneshot;

/// Runs `work` as a lane's thread would.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The URI of the default export at `socket`.
pub(crate) fn uri(socket: &Path) -> ExportUri {
    format!("nbd+unix:///?socket={}", socket.display()).parse().expect("a URI")
}

/// Opens what is at `socket`, with patience for `reconnect`.
pub(crate) fn open(socket: &Path, reconnect: Duration) -> UpstreamDevice {
    let options = UpstreamOptions { reconnect, ..UpstreamOptions::default() };
    UpstreamDevice::open(&uri(socket), &options).expect("the export opens")
}

/// Long enough for every restart in a test, short enough for a failing one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Our own server; stopped when dropped.
pub(crate) struct OurServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OurServer {
    /// Serves `device` at `socket`.
    pub(crate) fn start<D: BlockDevice>(device: D, socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket option");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            run(async {
                let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
                let info = ExportInfo::new("export", &[], "").expect("a name");
                let limits = Limits { drain: Duration::from_millis(100), ..Limits::default() };
                let server = Server::new(ByteDevice::new(device), info, limits);
                let over = async {
                    let _ = stopped.await;
                };
                let listener = Listener::Unix { socket: listener, users: Users::Any };
                server.serve(vec![listener], over, &mut ()).await;
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for OurServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }
}

/// A go-between: what connects to `socket` is led to wherever it points at the time.
pub(crate) struct GoBetween {
    pub(crate) socket: PathBuf,
    way: Arc<Mutex<Way>>,
}

#[derive(Default)]
struct Way {
    target: Option<PathBuf>,
    open: Vec<UnixStream>,
}

impl GoBetween {
    pub(crate) fn start(socket: PathBuf, target: &Path) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let way = Arc::new(Mutex::new(Way { target: Some(target.to_owned()), open: Vec::new() }));
        let shared = Arc::clone(&way);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                lead(client.expect("a client"), &shared);
            }
        });
        Self { socket, way }
    }

    /// Cuts every connection and refuses new ones until told where they lead.
    pub(crate) fn cut(&self) {
        let mut way = self.way.lock().expect("nobody panics with it");
        way.target = None;
        for stream in way.open.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Where new connections lead from now on.
    pub(crate) fn lead_to(&self, target: &Path) {
        self.way.lock().expect("nobody panics with it").target = Some(target.to_owned());
    }
}

fn lead(client: UnixStream, way: &Arc<Mutex<Way>>) {
    let mut way = way.lock().expect("nobody panics with it");
    let Some(server) = way.target.as_ref().and_then(|target| UnixStream::connect(target).ok()) else {
        return;
    };
    let again = |stream: &UnixStream| stream.try_clone().expect("a second handle");
    way.open.extend([again(&client), again(&server)]);
    for (from, to) in [(again(&client), again(&server)), (server, client)] {
        std::thread::spawn(move || pass_on(from, to));
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// splitmix64: the same numbers for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A buffer of `bytes` bytes of value `byte`.
pub(crate) fn filled(bytes: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::new(bytes);
    buffer.fill(byte);
    buffer
}

/// Reads all of `lane`'s first `bytes` bytes.
pub(crate) async fn read_all(lane: &impl BlockLane, bytes: usize) -> Vec<u8> {
    let (outcome, buffer) = lane.read(Lba(0), Buffer::new(bytes)).await;
    outcome.expect("a read");
    buffer.to_vec()
}

/// Writes `buffer` at sector `at`, and gets it back.
pub(crate) async fn write(lane: &impl BlockLane, at: u64, buffer: Buffer, durability: Durability) {
    let len = buffer.len();
    let (outcome, buffer) = lane.write(Lba(at), buffer, durability).await;
    outcome.expect("a write");
    assert_eq!(buffer.len(), len, "the buffer comes back");
}
