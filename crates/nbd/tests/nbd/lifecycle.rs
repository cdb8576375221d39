//! Points 100 to 106 of the checklist: how connections end, and what a client may not hold up.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use sealblk_block::{ByteDevice, MemoryDevice};
use sealblk_nbd::{ConnectionError, Ended, Limits};
use sealblk_testkit::nbd_client::{MODERN, RequestHeader, go_data, option_bytes};

use crate::gated::{Gate, GatedDevice};
use crate::support::*;

fn gated() -> (ByteDevice<GatedDevice>, Gate) {
    let gate = Gate::default();
    let device = GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() };
    (ByteDevice::new(device), gate)
}

fn reads(count: u64) -> Vec<u8> {
    let header =
        |cookie| RequestHeader { cookie, offset: 512 * cookie, length: 512, ..RequestHeader::default() };
    (0..count).flat_map(|cookie| header(cookie).to_bytes()).collect()
}

/// Receives the replies to [`reads`], in any order, and the end of the stream after them.
fn assert_all_answered(client: &mut Client, count: u64) {
    let mut seen: Vec<u64> = (0..count)
        .map(|_| {
            let (cookie, error) = client.reply().expect("a reply");
            assert_eq!(error, 0);
            client.receive(512).expect("data");
            cookie
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..count));
    assert_eq!(client.receive_rest().expect("the end"), b"");
}

#[test]
fn a88_disc_answers_everything_before_it_and_nothing_after() {
    let (device, gate) = gated();
    let (mut client, session) = transmitting(&device);
    gate.close_from(0);
    let disc = RequestHeader { command: 2, flags: 0xffff, offset: 9, length: 9, ..RequestHeader::default() };
    client.send(&[reads(20), disc.to_bytes(), reads(5)].concat()).expect("sent");
    gate.wait_for_arrivals(20);
    gate.open();
    assert_all_answered(&mut client, 20);
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Disconnected);
}

#[test]
fn a101_a_stop_with_64_requests_in_flight_loses_none() {
    let (device, gate) = gated();
    let (mut client, session) = transmitting(&device);
    gate.close_from(0);
    client.send(&reads(64)).expect("sent");
    // Only as many as there are workers wait in the device; the others are still in the socket.
    gate.wait_for_arrivals(Limits::default().workers);
    session.stopper.drain();
    gate.open();
    assert_all_answered(&mut client, 64);
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Stopped);
}

#[test]
fn a101_a_stopping_server_tells_a_client_that_goes_on_asking() {
    let (mut client, session) = transmitting(&memory());
    session.stopper.drain();
    let mut shut_down = false;
    // A client that never pauses is told after a second, and left when it pauses.
    while let Ok(reply) = client.read(0, 8) {
        match reply {
            Ok(_) => assert!(!shut_down),
            Err(error) => {
                assert_eq!(error, 108);
                shut_down = true;
                break;
            }
        }
    }
    assert!(shut_down);
    assert_eq!(client.receive_rest().expect("the end"), b"");
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Stopped);
}

#[test]
fn a102_a_session_cut_at_any_byte_ends_and_applies_no_partial_write() {
    let payload = [0xcd; 600];
    let write = RequestHeader { command: 1, cookie: 5, offset: 100, length: 600, flags: 0 };
    let read = RequestHeader { cookie: 6, offset: 0, length: 8, ..RequestHeader::default() };
    let stream = [
        &MODERN.to_be_bytes()[..],
        &option_bytes(3, &[]),
        &option_bytes(99, b"unknown"),
        &option_bytes(7, &go_data(NAME.as_bytes(), &[1, 2, 3])),
        &read.to_bytes(),
        &write.to_bytes(),
        &payload,
        &read.to_bytes(),
    ]
    .concat();
    let complete_write = stream.len() - 28;
    for cut in 0..=stream.len() {
        let device = memory();
        let (mut client, session) = connect(&device);
        client.send(&stream[..cut]).expect("sent");
        client.stream().shutdown(Shutdown::Write).expect("half-closed");
        client.receive_rest().expect("the end");
        drop(client);
        match session.end() {
            Ok(Ended::EndOfStream) | Err(ConnectionError::Truncated) => {}
            other => panic!("cut at {cut}: {other:?}"),
        }
        let (mut client, _session) = transmitting(&device);
        let expected = if cut >= complete_write { vec![0xcd; 600] } else { vec![0; 600] };
        assert_eq!(client.read(100, 600).expect("a reply").expect("data"), expected, "cut at {cut}");
    }
}

#[test]
fn a103_64_requests_and_a_half_close_get_64_replies() {
    let (device, gate) = gated();
    let (mut client, session) = transmitting(&device);
    gate.close_from(32);
    client.send(&reads(64)).expect("sent");
    client.stream().shutdown(Shutdown::Write).expect("half-closed");
    gate.wait_for_arrivals(64);
    gate.open();
    assert_all_answered(&mut client, 64);
    assert_eq!(session.end().expect("an orderly end"), Ended::EndOfStream);
}

#[test]
fn a104_a_client_that_vanishes_with_requests_in_flight_ends_the_connection() {
    let (device, gate) = gated();
    let (mut client, session) = transmitting(&device);
    gate.close_from(0);
    client.send(&reads(40)).expect("sent");
    gate.wait_for_arrivals(32);
    drop(client);
    gate.open();
    // Which of the two is seen first, the end of its stream or the failure to write, is up to chance.
    match session.end() {
        Ok(Ended::EndOfStream) | Err(ConnectionError::Socket(_)) => {}
        other => panic!("{other:?}"),
    }
}

/// Sends `bytes` again and again until the socket takes no more for a while; says how many bytes it took.
fn send_until_stopped(client: &mut Client, bytes: &[u8], most: usize) -> usize {
    client.stream().set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let mut sent = 0;
    while sent < most {
        match client.stream().write(&bytes[sent % bytes.len()..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                break;
            }
        }
    }
    sent
}

#[test]
fn a105_a_client_that_sends_and_never_reads_is_stopped_and_answered_in_the_end() {
    // Replies of 64 KiB fill the memory bound; replies of 16 bytes fill the bound of their number.
    for length in [65_536, 0] {
        let limits = Limits { in_flight_bytes: 32 << 20, ..Limits::default() };
        let (mut client, session) = connect_within(&memory(), limits);
        client.go("").expect("GO is answered");
        let read = RequestHeader { length, ..RequestHeader::default() }.to_bytes();
        let most = 100_000 * read.len();
        let sent = send_until_stopped(&mut client, &read, most);
        assert!(sent < most, "nothing stopped the client");
        let mut rest =
            sealblk_testkit::nbd_client::NbdClient::new(client.stream().try_clone().expect("a clone"));
        let missing = read[sent % read.len()..].to_vec();
        let sender = std::thread::spawn(move || rest.send(&missing).expect("the server reads on"));
        for _ in 0..=sent / read.len() {
            assert_eq!(client.reply().expect("a reply"), (0, 0));
            client.receive(length as usize).expect("data");
        }
        sender.join().expect("the rest was sent");
        client.disconnect().expect("sent");
        drop(client);
        assert_eq!(session.end().expect("an orderly end"), Ended::Disconnected);
    }
}

#[test]
fn a105_replies_to_fast_requests_are_sent_while_slow_ones_wait() {
    // With one worker less than needed the link is free only when a worker is done: replies still leave.
    let (device, gate) = gated();
    let limits = Limits { workers: 2, ..Limits::default() };
    let (mut client, session) = connect_within(&device, limits);
    client.go("").expect("GO is answered");
    gate.close_from(8);
    let slow = RequestHeader { cookie: 1, offset: 8 * 512, length: 1, ..RequestHeader::default() };
    client.send_request(slow, &[]).expect("sent");
    gate.wait_for_arrivals(1);
    for _ in 0..100 {
        assert_eq!(client.read(0, 1).expect("a reply"), Ok(vec![0]));
    }
    gate.open();
    assert_eq!(client.reply().expect("a reply"), (1, 0));
    assert_eq!(client.receive(1).expect("data"), [0]);
    client.disconnect().expect("sent");
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Disconnected);
}

#[test]
fn a_client_that_zeroes_or_trims_everything_for_long_does_not_hold_up_what_others_write() {
    const PIECE: u64 = 64 << 20;
    let gate = Gate::default();
    let memory = MemoryDevice::new(4 * PIECE / 512);
    let device = ByteDevice::new(GatedDevice { memory, gate: gate.clone() });
    let whole =
        [(6, 0, 4 * PIECE), (6, 1, 4 * PIECE - 2), (6, 512, 4 * PIECE - 512), (4, 513, 4 * PIECE - 513)];
    for (command, offset, length) in whole {
        let (mut zeroing, _session) = transmitting(&device);
        let (mut other, _other_session) = transmitting(&device);
        other.write(4 * PIECE - 900, &[9; 900]).expect("a reply").expect("written");
        // Its second piece hangs in the store.
        let (arrived, flushed) = (gate.arrivals(), gate.flushes());
        gate.close_from(PIECE / 512);
        let length = u32::try_from(length).expect("below 4 GiB");
        let header = RequestHeader { command, flags: 1, cookie: 3, offset, length };
        zeroing.send_request(header, &[]).expect("sent");
        gate.wait_for_arrivals(arrived + 2);
        // Whole units, and not whole ones.
        for (at, length) in [(4096, 4096), (5001, 77), (512, 512), (0, 5)] {
            other.write(at, &vec![7; length]).expect("a reply").expect("written");
        }
        gate.open();
        assert_eq!(zeroing.reply().expect("a reply"), (3, 0));
        assert_eq!(gate.flushes(), flushed + 1, "durable once, for all of it");
        let end = u64::from(length) + offset;
        let tail = other.read(end - 800, 800).expect("a reply");
        assert_eq!(tail, Ok(vec![0; 800]));
        assert_eq!(
            other.read(5001, 77).expect("a reply"),
            Ok(vec![7; 77]),
            "written after its piece was zeroed"
        );
    }
}

#[test]
fn a106_an_idle_connection_is_kept() {
    // Longer than the handshake's deadline, which is short here: it must not count any more.
    let limits = Limits { handshake: Duration::from_secs(2), ..Limits::default() };
    let (client, _session) = connect_within(&memory(), limits);
    let mut client = client;
    client.go("").expect("GO is answered");
    client.write(0, b"x").expect("a reply").expect("written");
    client.stream().set_read_timeout(Some(Duration::from_secs(4))).expect("a timeout");
    let kind = client.receive(1).expect_err("nothing comes").kind();
    assert_eq!(kind, std::io::ErrorKind::WouldBlock, "the connection must not end");
    assert_eq!(client.read(0, 1).expect("a reply"), Ok(vec![b'x']));
}
