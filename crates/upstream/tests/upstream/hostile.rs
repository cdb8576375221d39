//! Servers that break the rules, lie, stop halfway, or are merely old: each is met with an error that names what
//! was wrong, in bounded time, or with what the protocol allows.

use std::error::Error as _;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, MemoryDevice, SectorRange, ZeroMode,
};
use sealblk_upstream::{UpstreamDevice, UpstreamError, UpstreamLane, UpstreamOptions};

use crate::rig::{OurServer, filled, run, uri, write};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_META: u32 = 10;
const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) | 1;
/// HAS_FLAGS, FLUSH, FUA.
const FLAGS: u16 = 0b1101;

/// A server by hand: `answer` is called with each connection.
struct Fake {
    socket: PathBuf,
    _directory: tempfile::TempDir,
    met: Arc<AtomicUsize>,
}

impl Fake {
    fn start(answer: impl Fn(&mut Client) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
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

    fn open(&self) -> Result<UpstreamDevice, UpstreamError> {
        UpstreamDevice::open(&uri(&self.socket), &hasty())
    }

    /// What opening it fails with.
    fn refusal(&self) -> String {
        self.open().expect_err("the server is wrong").to_string()
    }

    /// What a read of its first sector fails with, by cause.
    fn read_error(&self) -> String {
        let device = self.open().expect("the negotiation is right");
        run(async {
            let lane = device.open_lane().expect("a lane");
            let (outcome, buffer) = lane.read(Lba(0), Buffer::new(1024)).await;
            assert_eq!(buffer.len(), 1024, "the buffer comes back");
            outcome.expect_err("the server is wrong").source().expect("a cause").to_string()
        })
    }
}

fn hasty() -> UpstreamOptions {
    UpstreamOptions {
        handshake: Duration::from_millis(300),
        reconnect: Duration::from_millis(30),
        ..UpstreamOptions::default()
    }
}

/// The fake server's side of a connection.
struct Client {
    stream: UnixStream,
    /// How many came before.
    number: usize,
}

/// A request as the server sees it.
struct Seen {
    command: u16,
    cookie: u64,
    length: u32,
}

impl Client {
    fn send(&mut self, bytes: &[&[u8]]) -> std::io::Result<()> {
        self.stream.write_all(&bytes.concat())
    }

    fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn greet(&mut self, flags: u16) -> std::io::Result<()> {
        self.send(&[b"NBDMAGICIHAVEOPT", &flags.to_be_bytes()])?;
        self.take::<4>().map(drop)
    }

    fn option(&mut self) -> std::io::Result<(u32, Vec<u8>)> {
        let header: [u8; 16] = self.take()?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut data = vec![0; number(12) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((number(8), data))
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> std::io::Result<()> {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let length = (data.len() as u32).to_be_bytes();
        self.send(&[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &length, data])
    }

    /// Everything up to transmission, of an export of 64 sectors.
    fn negotiate(&mut self, structured: bool, flags: u16) -> std::io::Result<()> {
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
    fn request(&mut self) -> std::io::Result<Seen> {
        let header: [u8; 28] = self.take()?;
        let command = u16::from_be_bytes([header[6], header[7]]);
        let cookie = u64::from_be_bytes(header[8..16].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(header[24..].try_into().expect("four bytes"));
        if command == WRITE {
            self.stream.read_exact(&mut vec![0; length as usize])?;
        }
        Ok(Seen { command, cookie, length })
    }

    fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> std::io::Result<()> {
        let magic = 0x6744_6698_u32.to_be_bytes();
        self.send(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes(), data])
    }

    fn chunk(&mut self, cookie: u64, kind: u16, last: bool, body: &[u8]) -> std::io::Result<()> {
        let (magic, flags) = (0x668e_33ef_u32.to_be_bytes(), u16::from(last).to_be_bytes());
        let length = (body.len() as u32).to_be_bytes();
        self.send(&[&magic, &flags, &kind.to_be_bytes(), &cookie.to_be_bytes(), &length, body])
    }

    fn until_it_leaves(&mut self) -> std::io::Result<()> {
        std::io::copy(&mut self.stream, &mut std::io::sink()).map(drop)
    }
}

fn export_fact(flags: u16) -> Vec<u8> {
    [&0_u16.to_be_bytes()[..], &(64 * 512_u64).to_be_bytes(), &flags.to_be_bytes()].concat()
}

#[test]
fn a_negotiation_that_breaks_a_rule_is_named() {
    type Script = fn(&mut Client) -> std::io::Result<()>;
    let cases: &[(Script, &str)] = &[
        (|client| client.send(&[b"HTTP/1.1 400 Bad"]), "does not begin with NBDMAGIC"),
        (|client| client.send(&[b"NBDMAGIC", &0x4202_8186_1253_u64.to_be_bytes()]), "before options"),
        (|client| client.send(&[b"NBDMAGICNBDMAGIC"]), "wrong magic"),
        (|client| client.send(&[b"NBDMAG"]), "cannot be reached"),
        (|client| client.until_it_leaves(), "in time"),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option + 1, ACK, &[])
            },
            "an option that was not asked",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
                client.send(&[&magic, &option.to_be_bytes(), &ACK.to_be_bytes(), &[0xff; 4]])
            },
            "longer than any may be",
        ),
        (
            |client| {
                client.greet(3)?;
                client.option()?;
                client.send(&[&[7; 20]])
            },
            "wrong magic",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, ACK, &[])
            },
            "does not tell the export's size",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                loop {
                    client.reply(OPT_GO, 3, &[0, 9])?;
                }
            },
            "without end",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, 3, &export_fact(FLAGS)[..11])
            },
            "wrong length",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ACK, &[])?;
                client.option()?;
                client.reply(OPT_META, 4, b"\0\0\0\x01base:other")
            },
            "was not asked for",
        ),
        (
            |client| {
                client.greet(3)?;
                let (option, _) = client.option()?;
                client.reply(option, ERR_UNSUP, &[])?;
                client.option()?;
                client.reply(OPT_GO, (1 << 31) | 6, b"no \x07 such thing")
            },
            "no such export (\"no ? such thing\")",
        ),
    ];
    for (script, expected) in cases {
        let script = *script;
        let refusal = Fake::start(script).refusal();
        assert!(refusal.contains(expected), "{refusal:?} should tell of {expected:?}");
    }
}

#[test]
fn an_export_that_cannot_hold_a_volume_is_refused_at_once() {
    for (flags, expected) in
        [(0b1111, "read-only"), (1, "neither FLUSH nor FUA"), (0b1100, "transmission flags")]
    {
        let fake = Fake::start(move |client| {
            client.negotiate(false, flags)?;
            client.until_it_leaves()
        });
        let refusal = fake.refusal();
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn a_server_from_before_go_is_spoken_to_in_its_way() {
    for (fixed, no_zeroes) in [(true, true), (true, false), (false, true), (false, false)] {
        let fake = Fake::start(move |client| {
            client.greet(u16::from(fixed) | u16::from(no_zeroes) << 1)?;
            loop {
                let (option, name) = client.option()?;
                if option != OPT_EXPORT_NAME {
                    assert!(fixed, "a server that is not fixed knows no other option");
                    client.reply(option, ERR_UNSUP, &[])?;
                    continue;
                }
                assert_eq!(name, b"");
                client.send(&[&(64 * 512_u64).to_be_bytes(), &FLAGS.to_be_bytes()])?;
                client.send(&[&vec![0; if no_zeroes { 0 } else { 124 }]])?;
                let read = client.request()?;
                client.simple(read.cookie, 0, &vec![5; read.length as usize])?;
                return client.until_it_leaves();
            }
        });
        let device = fake.open().expect("an old server will do");
        assert_eq!((device.geometry().sectors, device.geometry().unit_bytes), (64, 512));
        run(async {
            let lane = device.open_lane().expect("a lane");
            let (outcome, buffer) = lane.read(Lba(1), Buffer::new(512)).await;
            outcome.expect("a read");
            assert_eq!(*buffer, [5; 512]);
        });
    }
}

#[test]
fn a_reply_that_breaks_a_rule_ends_the_connection_and_is_named() {
    type Script = fn(&mut Client, Seen) -> std::io::Result<()>;
    let cases: &[(bool, Script, &str)] = &[
        (false, |client, _| client.send(&[&[9; 64]]), "wrong magic"),
        (false, |client, read| client.simple(read.cookie ^ 1, 0, &[0; 1024]), "was not made"),
        (false, |client, read| client.chunk(read.cookie, 0, true, &[]), "not agreed on"),
        (true, |client, read| client.simple(read.cookie, 0, &[0; 1024]), "simple reply"),
        (true, |client, read| client.chunk(read.cookie, 0, true, &[]), "only in part"),
        (true, |client, read| client.chunk(read.cookie, 0, false, &[]), "length that its type"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0; 8]), "length that its type"),
        (true, |client, read| client.chunk(read.cookie, 77, true, &[0; 9]), "unknown type"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0; 8 + 1025]), "beyond it"),
        (true, |client, read| client.chunk(read.cookie, 1, true, &[0xff; 8 + 1]), "elsewhere"),
        (true, |client, read| client.chunk(read.cookie, 2, true, &[0; 12]), "overlap, are empty"),
        (true, |client, read| client.chunk(read.cookie, 5, true, &[0; 12]), "does not fit its request"),
        (true, |client, read| client.chunk(read.cookie, 0x8001, true, &[0; 6]), "no error, or a text"),
        (
            true,
            |client, read| client.chunk(read.cookie, 0x8001, true, &[0, 0, 0, 5, 0, 9]),
            "no error, or a text",
        ),
        (
            true,
            |client, read| {
                client.chunk(read.cookie, 1, false, &[0; 8 + 512])?;
                client.chunk(read.cookie, 1, true, &[0; 8 + 512])
            },
            "overlap, are empty",
        ),
    ];
    for (structured, script, expected) in cases {
        let (structured, script) = (*structured, *script);
        let fake = Fake::start(move |client| {
            client.negotiate(structured, FLAGS)?;
            let read = client.request()?;
            assert_eq!((read.command, read.length), (READ, 1024));
            script(client, read)?;
            client.until_it_leaves()
        });
        let error = fake.read_error();
        assert!(error.contains(expected), "{error:?} should tell of {expected:?}");
        assert!(fake.met.load(Ordering::SeqCst) > 1, "it was tried again");
    }
}

#[test]
fn a_second_answer_to_one_request_ends_the_connection() {
    let fake = Fake::start(|client| {
        client.negotiate(true, FLAGS)?;
        loop {
            let read = client.request()?;
            if read.command != READ {
                continue;
            }
            client.chunk(read.cookie, 1, true, &[0; 8 + 1024])?;
            if client.number == 0 {
                client.chunk(read.cookie, 0, true, &[])?;
            }
        }
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(10), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("the negotiation is right");
    run(async {
        let lane = device.open_lane().expect("a lane");
        while fake.met.load(Ordering::SeqCst) < 2 {
            lane.read(Lba(0), Buffer::new(1024)).await.0.expect("on this connection or the next");
        }
    });
}

#[test]
fn chunks_come_in_any_order_and_mixed_with_other_replies() {
    let fake = Fake::start(|client| {
        client.negotiate(true, FLAGS)?;
        let (one, other) = (client.request()?, client.request()?);
        let piece = |offset: u64, byte: u8| [&offset.to_be_bytes()[..], &[byte; 512]].concat();
        let base = 1024;
        client.chunk(other.cookie, 1, false, &piece(base + 512, 4))?;
        client.chunk(one.cookie, 1, false, &piece(512, 2))?;
        let hole = [&base.to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
        client.chunk(other.cookie, 2, false, &hole)?;
        client.chunk(one.cookie, 1, true, &piece(0, 1))?;
        client.chunk(other.cookie, 0, true, &[])?;
        client.until_it_leaves()
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let ((first, one), (second, other)) =
            tokio::join!(lane.read(Lba(0), filled(1024, 9)), lane.read(Lba(2), filled(1024, 9)));
        first.expect("a read");
        second.expect("a read");
        assert_eq!(*one, [[1; 512], [2; 512]].concat());
        assert_eq!(*other, [[0; 512], [4; 512]].concat());
    });
}

#[test]
fn errors_of_the_server_become_errors_of_the_device() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        for error in [28, 5, 1] {
            let write = client.request()?;
            assert_eq!(write.command, WRITE);
            client.simple(write.cookie, error, &[])?;
        }
        client.until_it_leaves()
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        for expected in ["NoSpace", "EIO", "PermissionDenied"] {
            let (outcome, _) = lane.write(Lba(0), filled(512, 1), Durability::Volatile).await;
            let error = format!(
                "{:?}",
                outcome.map_err(|error| match error {
                    BlockError::Io { ref source, .. } => format!("{error:?} {source}"),
                    other => format!("{other:?}"),
                })
            );
            assert!(error.contains(expected), "{error}");
        }
    });
    assert_eq!(fake.met.load(Ordering::SeqCst), 1, "an error is an answer, not a lost connection");
}

#[test]
fn a_server_that_says_it_is_shutting_down_is_waited_for() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        loop {
            let request = client.request()?;
            if client.number == 0 {
                client.simple(request.cookie, 108, &[])?;
            } else {
                let data = vec![3; if request.command == READ { request.length as usize } else { 0 }];
                client.simple(request.cookie, 0, &data)?;
            }
        }
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(10), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let (outcome, buffer) = lane.read(Lba(0), Buffer::new(512)).await;
        outcome.expect("the successor answers");
        assert_eq!(*buffer, [3; 512]);
    });
}

#[test]
fn a_request_that_kills_every_server_is_given_up() {
    let fake = Fake::start(|client| {
        client.negotiate(false, FLAGS)?;
        client.request().map(drop)
    });
    let options = UpstreamOptions { reconnect: Duration::from_secs(60), ..hasty() };
    let device = UpstreamDevice::open(&uri(&fake.socket), &options).expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        let (outcome, _) = lane.read(Lba(0), Buffer::new(512)).await;
        let error = outcome.expect_err("given up").source().expect("a cause").to_string();
        assert!(error.contains("each of 10 times"), "{error}");
    });
}

#[test]
fn without_fua_a_durable_write_is_a_write_and_a_flush() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let fake = Fake::start(move |client| {
        client.negotiate(false, 0b101)?;
        loop {
            let request = client.request()?;
            noted.lock().expect("nobody panics with it").push(request.command);
            client.simple(request.cookie, 0, &[])?;
        }
    });
    let device = fake.open().expect("it opens");
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(512, 1), Durability::Durable).await;
        // Neither TRIM nor WRITE_ZEROES is offered.
        let range = SectorRange { start: Lba(0), count: 8 };
        lane.discard(range, Durability::Volatile).await.expect("nothing to do");
        lane.zero(range, ZeroMode::MayUnmap, Durability::Volatile).await.expect("written");
        let fast = lane.zero(range, ZeroMode::FastOnly, Durability::Volatile).await;
        assert!(matches!(fast, Err(BlockError::Unsupported { .. })));
        let mut extents = Vec::with_capacity(4);
        lane.extents(range, &mut extents).await.expect("unknown is data");
        assert_eq!((extents.len(), extents[0].count, extents[0].allocation.zero), (1, 8, false));
    });
    assert_eq!(*seen.lock().expect("nobody panics with it"), [WRITE, FLUSH, WRITE]);
}

/// What a real server says, and how much it had heard before.
type Recording = Vec<(usize, Vec<u8>)>;

/// The work that is recorded, and done again against servers that are not quite right. Gives up on an operation that
/// is not answered at all: in transmission only the caller knows how long is too long.
async fn work(lane: &UpstreamLane) -> bool {
    let patience = Duration::from_millis(150);
    let range = SectorRange { start: Lba(0), count: 16 };
    let done = async {
        let mut well = lane.write(Lba(1), filled(1024, 3), Durability::Volatile).await.0.is_ok();
        well &= lane.read(Lba(0), Buffer::new(2048)).await.0.is_ok();
        well &= lane.extents(range, &mut Vec::with_capacity(8)).await.is_ok();
        well &= lane.zero(range, ZeroMode::MayUnmap, Durability::Durable).await.is_ok();
        well & lane.flush().await.is_ok()
    };
    tokio::time::timeout(patience, done).await.unwrap_or(false)
}

fn record() -> Recording {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("server");
    let _server = OurServer::start(MemoryDevice::new(64), &socket);
    let log = Arc::new(Mutex::new(Vec::<(bool, Vec<u8>)>::new()));
    let between = directory.path().join("between");
    let listener = UnixListener::bind(&between).expect("a socket");
    let copied = Arc::clone(&log);
    let thread = std::thread::spawn(move || {
        let client = listener.accept().expect("a client").0;
        let server = UnixStream::connect(socket).expect("the server");
        let again = |stream: &UnixStream| stream.try_clone().expect("a second handle");
        let (back_from, back_to, log) = (again(&server), again(&client), Arc::clone(&copied));
        let back = std::thread::spawn(move || copy(back_from, back_to, false, &log));
        copy(client, server, true, &copied);
        back.join().expect("it ends");
    });
    let device = UpstreamDevice::open(&uri(&between), &UpstreamOptions::default()).expect("it opens");
    run(async { assert!(work(&device.open_lane().expect("a lane")).await) });
    drop(device);
    thread.join().expect("it ends");
    let mut recording: Recording = Vec::new();
    let mut heard = 0;
    for (from_client, bytes) in log.lock().expect("nobody panics with it").drain(..) {
        if from_client { heard += bytes.len() } else { recording.push((std::mem::take(&mut heard), bytes)) }
    }
    recording
}

fn copy(mut from: UnixStream, mut to: UnixStream, from_client: bool, log: &Mutex<Vec<(bool, Vec<u8>)>>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        log.lock().expect("nobody panics with it").push((from_client, bytes[..count].to_vec()));
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Plays `recording`, changed by `change` at its byte `place`, to every client.
fn play(recording: &Recording, place: usize, change: Change) -> Fake {
    let recording = recording.clone();
    Fake::start(move |client| {
        let mut said = 0;
        for (heard, bytes) in &recording {
            client.stream.read_exact(&mut vec![0; *heard])?;
            let mut bytes = bytes.clone();
            if let Some(at) = place.checked_sub(said).filter(|at| *at < bytes.len()) {
                match change {
                    Change::Flip => bytes[at] ^= 0xff,
                    Change::Close | Change::Stall => bytes.truncate(at),
                }
                client.send(&[&bytes])?;
                match change {
                    Change::Flip => {}
                    Change::Close => return Ok(()),
                    Change::Stall => return client.until_it_leaves(),
                }
            } else {
                client.send(&[&bytes])?;
            }
            said += bytes.len();
        }
        client.until_it_leaves()
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Flip,
    Close,
    Stall,
}

/// Tries every place in turn on a few threads; the counts of places and of those where all went well.
fn try_places(change: Change, step: usize) -> (usize, usize) {
    let recording = Arc::new(record());
    let length: usize = recording.iter().map(|(_, bytes)| bytes.len()).sum();
    // READ's content carries no rule, and there is a lot of it.
    let places: Vec<usize> =
        (0..length).step_by(step).filter(|at| at % 64 < 40 || length - at < 200).collect();
    let (next, well) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = places.len();
    let places = Arc::new(places);
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (recording, places) = (Arc::clone(&recording), Arc::clone(&places));
            let (next, well) = (Arc::clone(&next), Arc::clone(&well));
            std::thread::spawn(move || {
                while let Some(place) = places.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let fake = play(&recording, *place, change);
                    let Ok(device) = fake.open() else { continue };
                    run(async {
                        let Ok(lane) = device.open_lane() else { return };
                        if work(&lane).await {
                            well.fetch_add(1, Ordering::SeqCst);
                        }
                    });
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    (count, well.load(Ordering::SeqCst))
}

#[test]
fn a_server_that_stops_after_any_byte_is_an_error() {
    let (places, well) = try_places(Change::Close, 1);
    assert!(places > 300, "{places}");
    assert_eq!(well, 0, "nothing is complete without its last byte");
}

#[test]
fn a_server_that_stalls_after_any_byte_is_an_error() {
    let (_, well) = try_places(Change::Stall, 7);
    assert_eq!(well, 0);
}

#[test]
fn any_changed_byte_is_an_error_or_other_data_and_never_a_panic() {
    let (places, well) = try_places(Change::Flip, 1);
    assert!(well < places, "most bytes matter");
}

/// A file that is no socket, and a socket that nobody listens at.
#[test]
fn nobody_there_is_told_from_a_refusal() {
    let directory = tempfile::tempdir().expect("a directory");
    let unreachable = |path: &Path| {
        UpstreamDevice::open(&uri(path), &hasty()).expect_err("nobody is there").is_unreachable()
    };
    assert!(unreachable(&directory.path().join("none")));
    std::fs::write(directory.path().join("file"), b"").expect("a file");
    assert!(unreachable(&directory.path().join("file")));
    let refusing = Fake::start(|client| client.send(&[b"NBDMAGICNBDMAGIC"]));
    assert!(!refusing.open().expect_err("it is wrong").is_unreachable());
}
