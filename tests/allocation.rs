//! A request costs no allocation (design §1), from the socket through the cipher to the file and back: counted
//! over a million requests on an encrypted volume, in every dialect of the protocol, on the lane's own thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sealblk_block::{ByteDevice, FileDevice, FileOptions};
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_nbd::{Ended, ExportInfo, Limits, Statistics, Stopper, serve_connection};
use sealblk_testkit::nbd_client::{MODERN, NbdClient, RequestHeader, go_data};
use sealblk_volume::map::MappedDevice;
use sealblk_volume::{
    Access, Backing, Encryption, KeyReference, VolumeId, VolumeRecord, VolumeSize, WrappedDataKey,
    XtsEncryption,
};

const SIZE: u64 = 64 << 20;
const DEPTH: u64 = 32;
const WARM_UP_BATCHES: u64 = 500;
/// For each of the three dialects.
const BATCHES: u64 = 1_000_000 / 3 / DEPTH + 1;

thread_local! {
    static IS_LANE: Cell<bool> = const { Cell::new(false) };
}

/// Allocations made on the lane's thread.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting on one thread.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the heap (the
// cell is const-initialised and has no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_LANE.with(Cell::get) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise: `pointer` came from `alloc` above, hence from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How the client and the lane speak.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Dialect {
    Simple,
    Structured,
    Extended,
}

// One test for all, for there is one counter.
#[test]
fn a_million_requests_cost_no_allocation_in_any_dialect() {
    for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
        count_allocations(dialect);
    }
}

fn count_allocations(dialect: Dialect) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("data");
    std::fs::File::create(&file).and_then(|data| data.set_len(SIZE)).expect("a sparse file");
    let (client, server) = UnixStream::pair().expect("a socket pair");
    let lane = thread::spawn(move || {
        IS_LANE.with(|flag| flag.set(true));
        serve(server, &file)
    });
    let mut client = NbdClient::new(client);
    negotiate(&mut client, dialect);

    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut seen = Vec::new();
    for batch in 0..WARM_UP_BATCHES + BATCHES {
        if batch == WARM_UP_BATCHES {
            seen.push(ALLOCATIONS.load(Ordering::Relaxed));
        }
        exchange(&mut client, dialect, batch);
    }
    seen.push(ALLOCATIONS.load(Ordering::Relaxed));
    send(&mut client, dialect, RequestHeader { command: 2, ..RequestHeader::default() }, &[]);
    assert!(matches!(lane.join().expect("the lane does not panic"), Ended::Disconnected));
    assert!(before > 0, "the counter counts: a runtime allocates");
    assert_eq!(seen[1] - seen[0], 0, "allocations in {} requests, {dialect:?}", BATCHES * DEPTH);
}

/// Serves one connection on this thread, as the server does on each of its own.
fn serve(stream: UnixStream, file: &std::path::Path) -> Ended {
    let key = DataKey::init(|bytes| {
        bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        Ok::<_, KeyMemError>(())
    });
    let key = key.expect("locked memory");
    let runtime = tokio::runtime::LocalRuntime::new().expect("a runtime");
    runtime.block_on(async {
        let device = FileDevice::open(file, &FileOptions::default()).expect("a device");
        let unsealed = record();
        let Access::Encrypted(access) = unsealed.access() else { panic!("an encrypted volume") };
        let sealed = access.seal(&key, &device).await.expect("a blank volume is sealed");
        let Access::Encrypted(access) = sealed.access() else { panic!("an encrypted volume") };
        let size = sealed.size_bytes;
        let mapped = MappedDevice::<_, FileDevice>::without_map(device, size, false);
        let device = ByteDevice::new(access.open(&key, mapped).expect("the right key"));
        let info = ExportInfo::new("volume", &[], "").expect("a name");
        let (stopper, statistics) = (Stopper::default(), Arc::new(Statistics::default()));
        stream.set_nonblocking(true).expect("a socket");
        let stream = tokio::net::UnixStream::from_std(stream).expect("a socket of this runtime");
        serve_connection(stream, &device, &info, &Limits::default(), stopper.signal(), &statistics)
            .await
            .expect("an orderly end")
    })
}

fn record() -> VolumeRecord {
    let id: VolumeId = "vol-0123456789abcdef0".parse().expect("an id");
    let arn = "arn:aws:kms:local:000000000000:key/92b078da-5324-49dd-a7cc-bd851b12aa6b".to_owned();
    let arn = KeyReference::try_from(arn).expect("an ARN");
    let wrapped = WrappedDataKey::from_bytes(vec![1; 168]).expect("some bytes");
    VolumeRecord {
        volume_id: id,
        size_bytes: VolumeSize::from_bytes(SIZE).expect("a size"),
        create_time: jiff::Timestamp::UNIX_EPOCH,
        owner_id: None,
        backing: Backing::File {},
        encryption: Encryption::Aes256Xts(XtsEncryption::new(arn, wrapped, id)),
        discard: true,
        name: None,
        snapshot_id: None,
        restoring: None,
    }
}

/// From the greeting to GO; with chunks, block status is agreed on too.
fn negotiate(client: &mut NbdClient<UnixStream>, dialect: Dialect) {
    client.greet(MODERN).expect("a greeting");
    let option = if dialect == Dialect::Extended { 11 } else { 8 };
    if dialect != Dialect::Simple {
        let contexts = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
        assert_eq!(client.option(option, &[]).expect("an answer")[0].kind, 1);
        assert_eq!(client.option(10, contexts).expect("an answer").len(), 2);
    }
    let replies = client.option(7, &go_data(b"volume", &[])).expect("an answer");
    assert_eq!(replies.last().expect("a reply").kind, 1, "an export");
}

/// Half of `DEPTH` requests reads, half writes, all sent before the first reply is read; with chunks, a few of them
/// ask for block status instead.
fn exchange(client: &mut NbdClient<UnixStream>, dialect: Dialect, batch: u64) {
    const LENGTH: u32 = 4096;
    let payload = [batch as u8; LENGTH as usize];
    for number in 0..DEPTH {
        let offset = (batch * DEPTH + number).wrapping_mul(0x9e37_79b9) % (SIZE / 4096) * 4096;
        let status = dialect != Dialect::Simple && number % 16 == 4;
        let command = if status { 7 } else { (number % 2) as u16 };
        let header = RequestHeader { command, cookie: number, offset, length: LENGTH, flags: 0 };
        send(client, dialect, header, if command == 1 { &payload } else { &[] });
    }
    let data = (0..DEPTH).filter(|_| receive(client, dialect)).count() as u64;
    // Zeros that were never written may come as a hole.
    assert!(data <= DEPTH / 2 && (dialect != Dialect::Simple || data == DEPTH / 2));
}

fn send(client: &mut NbdClient<UnixStream>, dialect: Dialect, header: RequestHeader, payload: &[u8]) {
    let mut bytes = header.to_bytes();
    if dialect == Dialect::Extended {
        bytes[..4].copy_from_slice(&0x21e4_1c71_u32.to_be_bytes());
        bytes[5] = if payload.is_empty() { 0 } else { 32 };
        bytes.truncate(24);
        bytes.extend(u64::from(header.length).to_be_bytes());
    }
    client.send(&[&bytes, payload].concat()).expect("sent");
}

/// Receives a reply, a success; says whether it brought data.
fn receive(client: &mut NbdClient<UnixStream>, dialect: Dialect) -> bool {
    if dialect == Dialect::Simple {
        let (cookie, error) = client.reply().expect("a reply");
        assert_eq!(error, 0);
        let is_read = cookie.is_multiple_of(2);
        client.receive(if is_read { 4096 } else { 0 }).expect("data");
        return is_read;
    }
    let header = client.receive(if dialect == Dialect::Extended { 32 } else { 20 }).expect("a chunk");
    assert_eq!((header[5], header[6]), (1, 0), "the last chunk, and no error");
    let length = u32::from_be_bytes(header[header.len() - 4..].try_into().expect("four bytes"));
    client.receive(length as usize).expect("a payload");
    header[7] == 1
}
