//! Many clients at a time, and what one of them must not be able to do to the others.

use std::io::Read;
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockError, Geometry, MemoryDevice, MemoryLane, Operation};
use sealblk_nbd::{Limits, ServeReport};
use sealblk_testkit::nbd_client::{NbdClient, RequestHeader};

use crate::gated::{Gate, GatedDevice};
use crate::running::run;
use crate::support::SIZE;

fn memory() -> MemoryDevice {
    MemoryDevice::new(SIZE / 512)
}

#[test]
fn unix_and_tcp_clients_see_the_same_bytes() {
    let server = run(memory(), Limits::default());
    let mut unix = server.unix();
    let mut tcp = NbdClient::new(std::net::TcpStream::connect(server.tcp).expect("a connection"));
    assert_eq!(unix.go("").expect("GO is answered"), tcp.go("").expect("GO is answered"));
    unix.write(12_345, b"over a socket").expect("a reply").expect("written");
    assert_eq!(tcp.read(12_345, 13).expect("a reply").expect("data"), b"over a socket");
    tcp.disconnect().expect("sent");
    unix.disconnect().expect("sent");
    drop((unix, tcp));
    server.wait_for_end();
    server.wait_for_end();
    assert_eq!(server.stop(), ServeReport { served: 2, ..ServeReport::default() });
}

#[test]
fn cve_2017_9524_a_flood_of_clients_that_close_at_once_does_no_harm() {
    let server = run(memory(), Limits { max_connections: 1000, ..Limits::default() });
    for _ in 0..1000 {
        drop(server.unix());
    }
    for _ in 0..1000 {
        server.wait_for_end();
    }
    let mut client = server.unix();
    client.go("").expect("GO is answered");
    assert_eq!(client.read(0, 3).expect("a reply"), Ok(vec![0; 3]));
    drop(client);
    server.wait_for_end();
    let report = server.stop();
    assert_eq!((report.served, report.panicked, report.stuck), (1001, 0, 0));
}

#[test]
fn cve_2011_1925_cve_2013_7441_cve_2015_0847_clients_that_fail_to_negotiate_leave_the_listener_alone() {
    let server = run(memory(), Limits { max_connections: 100, ..Limits::default() });
    let silent: Vec<_> = (0..10).map(|_| server.unix()).collect();
    for number in 0..30 {
        let mut client = server.unix();
        client.greet(3).expect("a greeting");
        match number % 3 {
            0 => {}
            1 => client.send_option(1, b"an export that is not here").expect("sent"),
            _ => client.send(b"not an option at all").expect("sent"),
        }
        drop(client);
        server.wait_for_end();
    }
    let mut client = server.unix();
    client.go("").expect("GO is answered");
    assert_eq!(client.read(0, 3).expect("a reply"), Ok(vec![0; 3]));
    drop((client, silent));
    let report = server.stop();
    assert_eq!((report.served, report.panicked, report.stuck), (41, 0, 0));
}

#[test]
fn a106_connections_over_the_cap_are_closed_and_slots_come_back() {
    let server = run(memory(), Limits { max_connections: 2, ..Limits::default() });
    let (mut first, mut second) = (server.unix(), server.unix());
    first.go("").expect("GO is answered");
    second.go("").expect("GO is answered");
    let mut third = server.unix();
    assert_eq!(third.stream().read(&mut [0; 18]).expect("the end"), 0);
    first.disconnect().expect("sent");
    drop(first);
    server.wait_for_end();
    server.unix().go("").expect("the slot is free again");
    assert_eq!(second.read(0, 1).expect("a reply"), Ok(vec![0]));
    drop(second);
    let report = server.stop();
    assert_eq!((report.served, report.refused), (3, 1));
}

#[test]
fn a101_stopping_under_load_answers_what_was_accepted() {
    let gate = Gate::default();
    let server = run(GatedDevice { memory: memory(), gate: gate.clone() }, Limits::default());
    let mut client = server.unix();
    client.go("").expect("GO is answered");
    gate.close_from(0);
    for cookie in 0..64 {
        let header = RequestHeader { cookie, command: 1, offset: 512 * cookie, length: 512, flags: 0 };
        client.send_request(header, &[7; 512]).expect("sent");
    }
    gate.wait_for_arrivals(32);
    let opener = std::thread::spawn(move || {
        for _ in 0..64 {
            assert_eq!(client.reply().expect("a reply").1, 0);
        }
        assert_eq!(client.receive_rest().expect("the end"), b"");
    });
    gate.open();
    let report = server.stop();
    opener.join().expect("64 replies");
    assert_eq!((report.served, report.cut, report.failed), (1, 0, 0));
}

#[test]
fn cve_2024_7409_a_client_that_does_not_go_is_cut_when_the_server_stops() {
    let gate = Gate::default();
    let limits = Limits { drain: Duration::from_millis(300), ..Limits::default() };
    let server = run(GatedDevice { memory: memory(), gate: gate.clone() }, limits);
    let mut client = server.unix();
    client.go("").expect("GO is answered");
    gate.close_from(0);
    client.send(&RequestHeader { length: 512, ..RequestHeader::default() }.to_bytes()).expect("sent");
    gate.wait_for_arrivals(1);
    // In the middle of a message, with a request that never completes.
    client.send(&RequestHeader::default().to_bytes()[..20]).expect("sent");
    let report = server.stop();
    assert_eq!((report.served, report.cut, report.stuck), (1, 1, 0));
    assert_eq!(client.receive_rest().unwrap_or_default(), b"");
}

/// Opens a lane, or panics, or fails: by the number of the connection.
struct Flaky(MemoryDevice, std::sync::atomic::AtomicUsize);

impl BlockDevice for Flaky {
    type Lane = MemoryLane;

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_lane(&self) -> Result<MemoryLane, BlockError> {
        match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            1 => panic!("a lane that panics, for a test"),
            2 => Err(BlockError::Unsupported { operation: Operation::Open }),
            _ => self.0.open_lane(),
        }
    }
}

#[test]
fn a_panic_or_failure_of_one_connection_leaves_the_others_alone() {
    let server = run(Flaky(memory(), std::sync::atomic::AtomicUsize::new(0)), Limits::default());
    let mut good = server.unix();
    good.go("").expect("GO is answered");
    for _ in 0..2 {
        server.unix().go("").expect_err("the connection ends");
        server.wait_for_end();
    }
    assert_eq!(good.read(0, 1).expect("a reply"), Ok(vec![0]));
    server.unix().go("").expect("GO is answered");
    drop(good);
    let report = server.stop();
    assert_eq!((report.served, report.panicked, report.failed), (4, 1, 1));
}
