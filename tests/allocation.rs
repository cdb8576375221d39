//! A request costs no allocation (design §1), from the socket through the cipher to the file and back: counted
//! over a million requests on an encrypted volume, on the lane's own thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sealblk_block::{ByteDevice, FileDevice, FileOptions};
use sealblk_keymem::{DataKey, KeyMemError};
use sealblk_nbd::{Ended, ExportInfo, Limits, Statistics, Stopper, serve_connection};
use sealblk_testkit::nbd_client::{NbdClient, RequestHeader};
use sealblk_volume::{
    Access, Backing, Encryption, KeyReference, VolumeId, VolumeRecord, VolumeSize, WrappedDataKey,
    XtsEncryption,
};

const SIZE: u64 = 64 << 20;
const DEPTH: u64 = 32;
const WARM_UP_BATCHES: u64 = 1000;
const BATCHES: u64 = 1_000_000 / DEPTH;

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

#[test]
fn a_million_requests_cost_no_allocation() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("data");
    std::fs::File::create(&file).and_then(|data| data.set_len(SIZE)).expect("a sparse file");
    let (client, server) = UnixStream::pair().expect("a socket pair");
    let lane = thread::spawn(move || {
        IS_LANE.with(|flag| flag.set(true));
        serve(server, &file)
    });
    let mut client = NbdClient::new(client);
    client.go("volume").expect("an export");

    let mut seen = Vec::new();
    for batch in 0..WARM_UP_BATCHES + BATCHES {
        if batch == WARM_UP_BATCHES {
            seen.push(ALLOCATIONS.load(Ordering::Relaxed));
        }
        exchange(&mut client, batch);
    }
    seen.push(ALLOCATIONS.load(Ordering::Relaxed));
    client.disconnect().expect("disconnected");
    assert!(matches!(lane.join().expect("the lane does not panic"), Ended::Disconnected));
    assert!(seen[0] > 0, "the counter counts: opening a lane allocates");
    assert_eq!(seen[1] - seen[0], 0, "allocations in {} requests", BATCHES * DEPTH);
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
        let device = ByteDevice::new(access.open(&key, device).expect("the right key"));
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
        backing: Backing::File {},
        encryption: Encryption::Aes256Xts(XtsEncryption::new(arn, wrapped, id)),
        discard: true,
        snapshot_id: None,
    }
}

/// Half of `DEPTH` requests reads, half writes, all sent before the first reply is read.
fn exchange(client: &mut NbdClient<UnixStream>, batch: u64) {
    const LENGTH: u32 = 4096;
    let payload = [batch as u8; LENGTH as usize];
    let mut reads = 0;
    for number in 0..DEPTH {
        let offset = (batch * DEPTH + number).wrapping_mul(0x9e37_79b9) % (SIZE / 4096) * 4096;
        let header =
            RequestHeader { command: (number % 2) as u16, cookie: number, offset, length: LENGTH, flags: 0 };
        client.send_request(header, if number % 2 == 1 { &payload } else { &[] }).expect("sent");
    }
    for _ in 0..DEPTH {
        let (cookie, error) = client.reply().expect("a reply");
        assert_eq!(error, 0);
        if cookie.is_multiple_of(2) {
            client.receive(LENGTH as usize).expect("data");
            reads += 1;
        }
    }
    assert_eq!(reads, DEPTH / 2);
}
