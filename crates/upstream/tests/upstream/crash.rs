//! A server whose store forgets what was not flushed: what it acknowledged comes back from here.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use sealblk_block::{
    BlockDevice, BlockError, BlockLane, Buffer, Durability, Lba, MemoryDevice, Operation, SectorRange,
    ZeroMode,
};
use sealblk_testkit::crash_device::{CrashDevice, Plug};
use sealblk_testkit::fault_device::{Effect, Fault, FaultDevice};
use sealblk_upstream::{UpstreamDevice, UpstreamOptions};

use crate::rig::{GoBetween, OurServer, PATIENCE, filled, open, read_all, run, uri, write};
use crate::shadow::{SECTORS, exercise};

/// A server over a store that can be made to crash and start anew, behind a go-between.
struct Crashing {
    directory: tempfile::TempDir,
    between: GoBetween,
    server: Option<OurServer>,
    device: CrashDevice,
    generation: u32,
}

impl Crashing {
    fn start(seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let device = CrashDevice::new(SECTORS, seed, Plug::Stays);
        let socket = directory.path().join("server-0");
        let server = Some(OurServer::start(device.clone(), &socket));
        let between = GoBetween::start(directory.path().join("between"), &socket);
        Self { directory, between, server, device, generation: 0 }
    }

    /// The connections break, then the store loses its power, and another server finds what survived.
    fn crash(&mut self) {
        self.between.cut();
        drop(self.server.take());
        self.device = self.device.restart(Plug::Stays);
        self.generation += 1;
        let socket = self.socket();
        self.server = Some(OurServer::start(self.device.clone(), &socket));
        self.between.lead_to(&socket);
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join(format!("server-{}", self.generation))
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_store_forgets_what_was_not_flushed() {
    for (lanes, seed) in [(1, 11), (1, 12), (3, 13), (4, 14)] {
        // Held to the end: with the crashing over, its last server is still needed.
        let store = Rc::new(RefCell::new(Crashing::start(seed)));
        let device = open(&store.borrow().between.socket, PATIENCE);
        let crashing = Rc::clone(&store);
        exercise(&device, lanes, 600, seed, async move {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                crashing.borrow_mut().crash();
            }
        });
        assert!(store.borrow().generation > 0, "it crashed while there was work");
    }
}

#[test]
fn unflushed_writes_come_back_in_their_order() {
    let mut store = Crashing::start(3);
    let device = open(&store.between.socket, PATIENCE);
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(4096, 1), Durability::Volatile).await;
        lane.zero(SectorRange { start: Lba(0), count: 2 }, ZeroMode::MayUnmap, Durability::Volatile)
            .await
            .expect("zeros");
        write(&lane, 1, filled(512, 2), Durability::Durable).await;
        write(&lane, 2, filled(512, 3), Durability::Volatile).await;
        store.crash();
        let found = read_all(&lane, 4096).await;
        let expected = [vec![0; 512], vec![2; 512], vec![3; 512], vec![1; 5 * 512]].concat();
        assert_eq!(found, expected);
        // What came back is durable at the server that is there now.
        lane.flush().await.expect("a flush");
        store.crash();
        assert_eq!(read_all(&lane, 4096).await, expected);
    });
}

#[test]
fn what_is_kept_is_bounded_by_flushing_unasked() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let device = FaultDevice::new(MemoryDevice::new(4096));
    let _server = OurServer::start(device.clone(), &socket);
    let options = UpstreamOptions { retained_bytes: 256 << 10, ..UpstreamOptions::default() };
    let upstream = UpstreamDevice::open(&uri(&socket), &options).expect("it opens");
    run(async {
        let lane = upstream.open_lane().expect("a lane");
        for at in 0..64 {
            write(&lane, at * 64, filled(32 << 10, 1), Durability::Volatile).await;
        }
    });
    let flushes = device.count(Operation::Flush);
    assert!((7..=9).contains(&flushes), "2 MiB in steps of 256 KiB: {flushes}");
}

#[test]
fn a_failed_flush_is_latched() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let device = FaultDevice::new(MemoryDevice::new(64));
    let effect = Effect::Fail(std::io::ErrorKind::Other);
    device.add(Fault { operation: Operation::Flush, nth: Some(1), effect });
    let _server = OurServer::start(device, &socket);
    let upstream = open(&socket, PATIENCE);
    run(async {
        let lane = upstream.open_lane().expect("a lane");
        write(&lane, 0, filled(512, 1), Durability::Volatile).await;
        let first = lane.flush().await.expect_err("the server says so");
        assert!(matches!(first, BlockError::Io { operation: Operation::Flush, .. }), "{first}");
        assert!(matches!(lane.flush().await, Err(BlockError::Latched { .. })));
        let (refused, _) = lane.write(Lba(0), filled(512, 2), Durability::Volatile).await;
        assert!(matches!(refused, Err(BlockError::Latched { .. })));
        assert_eq!(read_all(&lane, 512).await, [1; 512]);
    });
}

#[test]
fn a_server_that_stays_away_fails_requests_and_is_used_again_when_it_is_back() {
    let mut store = Crashing::start(5);
    let device = open(&store.between.socket, Duration::from_millis(200));
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(512, 7), Durability::Volatile).await;
        store.between.cut();
        let (gone, buffer) = lane.read(Lba(0), Buffer::new(512)).await;
        let gone = gone.expect_err("nobody is there");
        let text = std::error::Error::source(&gone).expect("a cause").to_string();
        assert!(text.contains("did not come back within"), "{text}");
        assert_eq!(buffer.len(), 512);
        store.crash();
        // Fails until the connection is back; what was acknowledged is there then.
        let found = loop {
            let (outcome, buffer) = lane.read(Lba(0), Buffer::new(512)).await;
            if outcome.is_ok() {
                break buffer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(*found, [7; 512]);
    });
}

#[test]
fn an_export_that_changed_its_size_is_not_guessed_at() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, second) = (directory.path().join("1"), directory.path().join("2"));
    let _first = OurServer::start(MemoryDevice::new(64), &first);
    let _second = OurServer::start(MemoryDevice::new(65), &second);
    let between = GoBetween::start(directory.path().join("between"), &first);
    let device = open(&between.socket, PATIENCE);
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(512, 7), Durability::Volatile).await;
        between.cut();
        between.lead_to(&second);
        let (outcome, _) = lane.read(Lba(0), Buffer::new(512)).await;
        let text = std::error::Error::source(&outcome.expect_err("changed")).expect("a cause").to_string();
        assert!(text.contains("it has another size"), "{text}");
        assert!(lane.flush().await.is_err());
        assert!(matches!(lane.flush().await, Err(BlockError::Latched { .. })));
    });
}
