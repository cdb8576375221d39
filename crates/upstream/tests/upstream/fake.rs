//! A server by hand: a test says what it answers, byte by byte.

use std::error::Error as _;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Lba};
use sealblk_upstream::{UpstreamDevice, UpstreamError, UpstreamOptions};

use crate::rig::{run, uri};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED: u32 = 8;
pub(crate) const OPT_META: u32 = 10;
pub(crate) const ACK: u32 = 1;
pub(crate) const ERR_UNSUP: u32 = (1 << 31) | 1;
/// HAS_FLAGS, FLUSH, FUA.
pub(crate) const FLAGS: u16 = 0b1101;

/// A server by hand: `answer` is called with each connection.
pub(crate) struct Fake {
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
    pub(crate) met: Arc<AtomicUsize>,
}

impl Fake {
    pub(crate) fn start(answer: impl Fn(&mut Client) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let met = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&met);
        let answer = Arc::new(answer);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a client");
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut client = Client { stream, number };
                    // The client may be the one to hang up; that is judged on its side.
                    let _ = answer(&mut client);
                    let _ = client.stream.shutdown(Shutdown::Both);
                });
            }
        });
        Self { socket, _directory: directory, met }
    }

    pub(crate) fn open(&self) -> Result<UpstreamDevice, UpstreamError> {
        self.open_within(&hasty())
    }

    pub(crate) fn open_within(&self, options: &UpstreamOptions) -> Result<UpstreamDevice, UpstreamError> {
        UpstreamDevice::open(&uri(&self.socket), options)
    }

    /// What opening it fails with.
    pub(crate) fn refusal(&self) -> String {
        self.open().expect_err("the server is wrong").to_string()
    }

    /// What a read of its first sector fails with, by cause.
    pub(crate) fn read_error(&self) -> String {
        let device = self.open().expect("the negotiation is right");
        run(async {
            let lane = device.open_lane().expect("a lane");
            let (outcome, buffer) = lane.read(Lba(0), Buffer::new(1024)).await;
            assert_eq!(buffer.len(), 1024, "the buffer comes back");
            outcome.expect_err("the server is wrong").source().expect("a cause").to_string()
        })
    }
}

/// Gives up soon where a server went away. The negotiation has time: this very process may be busy with other tests.
pub(crate) fn hasty() -> UpstreamOptions {
    UpstreamOptions { reconnect: Duration::from_millis(30), ..UpstreamOptions::default() }
}

/// The fake server's side of a connection.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// How many came before.
    pub(crate) number: usize,
}

/// A request as the server sees it.
pub(crate) struct Seen {
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) length: u32,
}

impl Client {
    pub(crate) fn send(&mut self, bytes: &[&[u8]]) -> std::io::Result<()> {
        self.stream.write_all(&bytes.concat())
    }

    pub(crate) fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn greet(&mut self, flags: u16) -> std::io::Result<()> {
        self.send(&[b"NBDMAGICIHAVEOPT", &flags.to_be_bytes()])?;
        self.take::<4>().map(drop)
    }

    pub(crate) fn option(&mut self) -> std::io::Result<(u32, Vec<u8>)> {
        let header: [u8; 16] = self.take()?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut data = vec![0; number(12) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((number(8), data))
    }

    pub(crate) fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> std::io::Result<()> {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let length = (data.len() as u32).to_be_bytes();
        self.send(&[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &length, data])
    }

    /// Everything up to transmission, of an export of 64 sectors.
    pub(crate) fn negotiate(&mut self, structured: bool, flags: u16) -> std::io::Result<()> {
        self.greet(3)?;
        loop {
            let (option, _) = self.option()?;
            match option {
                OPT_STRUCTURED if structured => self.reply(option, ACK, &[])?,
                OPT_GO => {
                    self.reply(option, 3, &export_fact(flags))?;
                    return self.reply(option, ACK, &[]);
                }
                _ => self.reply(option, ERR_UNSUP, b"no")?,
            }
        }
    }

    /// The next request; a WRITE's payload is skipped.
    pub(crate) fn request(&mut self) -> std::io::Result<Seen> {
        let header: [u8; 28] = self.take()?;
        let command = u16::from_be_bytes([header[6], header[7]]);
        let cookie = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(header[24..].try_into().expect("four bytes"));
        if command == WRITE {
            self.stream.read_exact(&mut vec![0; length as usize])?;
        }
        Ok(Seen { command, cookie, length })
    }

    pub(crate) fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> std::io::Result<()> {
        let magic = 0x6744_6698_u32.to_be_bytes();
        self.send(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes(), data])
    }

    pub(crate) fn chunk(&mut self, cookie: u64, kind: u16, last: bool, body: &[u8]) -> std::io::Result<()> {
        let (magic, flags) = (0x668e_33ef_u32.to_be_bytes(), u16::from(last).to_be_bytes());
        let length = (body.len() as u32).to_be_bytes();
        self.send(&[&magic, &flags, &kind.to_be_bytes(), &cookie.to_be_bytes(), &length, body])
    }

    pub(crate) fn until_it_leaves(&mut self) -> std::io::Result<()> {
        std::io::copy(&mut self.stream, &mut std::io::sink()).map(drop)
    }
}

pub(crate) fn export_fact(flags: u16) -> Vec<u8> {
    [&0_u16.to_be_bytes()[..], &(64 * 512_u64).to_be_bytes(), &flags.to_be_bytes()].concat()
}
