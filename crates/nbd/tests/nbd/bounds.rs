//! Points 104 to 106 of the checklist: deadlines, and places that are not to be had by sitting in them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use sealblk_block::MemoryDevice;
use sealblk_nbd::{ConnectionError, Ended, Limits};
use sealblk_testkit::nbd_client::{MODERN, RequestHeader, option_bytes};

use crate::running::run;
use crate::support::*;

const SHORT: Duration = Duration::from_millis(300);

fn short() -> Limits {
    Limits { message_stall: SHORT, reply_stall: SHORT, ..Limits::default() }
}

#[test]
fn a106_a_message_that_stalls_ends_the_connection() {
    let write = RequestHeader { command: 1, length: 4096, ..RequestHeader::default() }.to_bytes();
    for begun in [&write[..1], &write[..27], &write, &[write.clone(), vec![1; 4095]].concat()] {
        let device = memory();
        let (mut client, session) = connect_within(&device, short());
        client.go("").expect("GO is answered");
        client.send(begun).expect("sent");
        assert_eq!(client.receive_rest().expect("the end"), b"");
        assert!(matches!(session.end(), Err(ConnectionError::MessageStalled)));
        let (mut client, _session) = transmitting(&device);
        assert_eq!(client.read(0, 4096).expect("a reply"), Ok(vec![0; 4096]), "nothing of it was written");
    }
}

#[test]
fn a106_a_discarded_payload_that_stalls_ends_the_connection_too() {
    let (mut client, session) = connect_within(&memory(), short());
    client.go("").expect("GO is answered");
    let outside = RequestHeader { command: 1, offset: SIZE, length: 4096, ..RequestHeader::default() };
    client.send(&[outside.to_bytes(), vec![0; 9]].concat()).expect("sent");
    assert_eq!(client.receive_rest().expect("the end"), b"");
    assert!(matches!(session.end(), Err(ConnectionError::MessageStalled)));
}

#[test]
fn a106_a_slow_message_that_moves_is_received() {
    // So much longer than the pauses that a busy machine does not make a stall of one.
    let stall = Duration::from_secs(3);
    let limits = Limits { message_stall: stall, ..Limits::default() };
    let (mut client, session) = connect_within(&memory(), limits);
    client.go("").expect("GO is answered");
    let write = RequestHeader { command: 1, length: 8, ..RequestHeader::default() };
    let began = Instant::now();
    for byte in [write.to_bytes(), b"slowpoke".to_vec()].concat() {
        client.send(&[byte]).expect("sent");
        // Slow on purpose: this client is what is tested.
        std::thread::sleep(stall / 30);
    }
    assert!(began.elapsed() > stall, "longer than a stall in all");
    assert_eq!(client.reply().expect("a reply"), (0, 0));
    assert_eq!(client.read(0, 8).expect("a reply"), Ok(b"slowpoke".to_vec()));
    client.disconnect().expect("sent");
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Disconnected);
}

#[test]
fn a104_a106_a_client_that_takes_no_replies_is_cut_and_sees_the_end() {
    let (mut client, session) = connect_within(&memory(), short());
    client.go("").expect("GO is answered");
    let read = RequestHeader { length: 1 << 20, ..RequestHeader::default() }.to_bytes();
    client.send(&read.repeat(20)).expect("sent");
    // It never reads until the server has given it up; then there is what the socket held, and the end.
    assert!(matches!(session.end(), Err(ConnectionError::ReplyStalled)));
    let rest = client.receive_rest().unwrap_or_default();
    assert!(rest.len() < 20 << 20);
}

#[test]
fn a106_a_stalled_client_does_not_disturb_another() {
    let server = run(MemoryDevice::new(SIZE / 512), short());
    let (mut good, mut bad) = (server.unix(), server.unix());
    good.go("").expect("GO is answered");
    bad.go("").expect("GO is answered");
    let read = RequestHeader { length: 1 << 20, ..RequestHeader::default() }.to_bytes();
    bad.send(&read.repeat(36)).expect("sent");
    let began = Instant::now();
    while began.elapsed() < SHORT * 3 {
        assert_eq!(good.read(0, 8).expect("a reply"), Ok(vec![0; 8]));
    }
    assert!(server.wait_for_end().contains("ReplyStalled"));
    assert_eq!(good.read(0, 8).expect("a reply"), Ok(vec![0; 8]));
}

#[test]
fn a106_one_peer_has_no_more_connections_than_its_share() {
    let server =
        run(MemoryDevice::new(SIZE / 512), Limits { max_connections_per_peer: 2, ..Limits::default() });
    let (mut first, mut second) = (server.tcp(), server.tcp());
    first.go("").expect("GO is answered");
    second.go("").expect("GO is answered");
    assert_eq!(server.tcp().stream().read(&mut [0; 18]).expect("the end"), 0);
    // Another peer: this host's user instead of its address.
    server.unix().go("").expect("GO is answered");
    drop(first);
    server.wait_for_end();
    server.wait_for_end();
    server.tcp().go("").expect("the place is free again");
}

#[test]
fn cve_2024_7409_clients_that_only_connect_cannot_keep_others_out() {
    let limits = Limits { max_connections: 4, handshake: Duration::from_secs(3600), ..Limits::default() };
    let server = run(MemoryDevice::new(SIZE / 512), limits);
    let mut established = server.unix();
    established.go("").expect("GO is answered");
    let mut idlers: Vec<_> = (0..200)
        .map(|number| {
            let mut idler = server.unix();
            // Some say a little, which buys them nothing.
            if number % 3 == 0 {
                let _ = idler
                    .stream()
                    .write_all(&[&MODERN.to_be_bytes()[..], &option_bytes(3, b"")[..9]].concat());
            }
            idler
        })
        .collect();
    for _ in 0..3 {
        let mut honest = server.unix();
        honest.go("").expect("an honest client is let in at once");
        assert_eq!(honest.read(0, 1).expect("a reply"), Ok(vec![0]));
        honest.disconnect().expect("sent");
    }
    assert_eq!(established.read(0, 1).expect("a reply"), Ok(vec![0]), "who transmits keeps its place");
    // The oldest made room: it is at its end, greeted or not even that.
    assert!(idlers[1].receive_rest().is_ok_and(|greeting| matches!(greeting.len(), 0 | 18)));
    drop((established, idlers));
    let report = server.stop();
    assert_eq!((report.panicked, report.cut, report.stuck), (0, 0, 0));
}
