//! A session with a real server, played again with one byte changed, or cut or stopped there: at every byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Durability, Lba, MemoryDevice, SectorRange, ZeroMode};
use sealblk_upstream::{UpstreamDevice, UpstreamLane, UpstreamOptions};

use crate::fake::{Fake, hasty};
use crate::rig::{OurServer, filled, run, uri};

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
                    // Some of these servers say no more, and may be given up at any time.
                    let options = UpstreamOptions { handshake: Duration::from_millis(300), ..hasty() };
                    let Ok(device) = fake.open_within(&options) else { continue };
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
