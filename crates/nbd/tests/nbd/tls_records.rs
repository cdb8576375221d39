//! Inside TLS after the handshake: suites, sizes of records, keys that are renewed, and what a client may not send.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::{ClientConfig, ClientConnection, SupportedCipherSuite};
use sealblk_nbd::{Limits, TlsClients};
use sealblk_testkit::nbd_client::RequestHeader;

use crate::tls::{Inside, Rig, go};

/// How a client speaks TLS that offers one suite only.
fn offering(rig: &Rig, suite: SupportedCipherSuite) -> Arc<ClientConfig> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![suite];
    rig.authority.client_of(provider, None, &[suite.version()])
}

/// Those that a server with a certificate on an elliptic curve can speak.
fn suites() -> impl Iterator<Item = SupportedCipherSuite> {
    let usable = |suite: &SupportedCipherSuite| {
        suite.tls13().is_some() || format!("{:?}", suite.suite()).contains("ECDSA")
    };
    ring::ALL_CIPHER_SUITES.iter().copied().filter(usable)
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + length) as u8).collect()
}

fn round_trip(client: &mut Inside, length: usize) {
    let data = data(length);
    client.write(1, &data).expect("a reply").expect("written");
    assert_eq!(client.read(1, length as u32).expect("a reply").expect("data"), data);
}

/// A record with a request to read one byte, not sent yet.
fn sealed_request(client: &mut Inside) -> Vec<u8> {
    let request = RequestHeader { length: 1, ..RequestHeader::default() }.to_bytes();
    let connection = &mut client.stream().conn;
    connection.writer().write_all(&request).expect("taken");
    let mut record = Vec::new();
    connection.write_tls(&mut record).expect("a record");
    record
}

/// The alert that comes when `bytes` are sent as they are.
fn alert(client: &mut Inside, bytes: &[u8]) -> String {
    client.stream().sock.write_all(bytes).expect("sent");
    client.receive(1).expect_err("the server ends the connection").to_string()
}

#[test]
fn every_suite_carries_data_in_both_directions() {
    let rig = Rig::new(TlsClients::Any);
    assert_eq!(suites().count(), 6);
    for suite in suites() {
        let mut client = rig.enter(offering(&rig, suite)).expect("let in");
        assert_eq!(client.stream().conn.negotiated_cipher_suite(), Some(suite));
        go(&mut client);
        for length in [1, 16_384 - 28, 16_384, 200_000] {
            round_trip(&mut client, length);
        }
    }
}

#[test]
fn records_may_be_small_and_a_batch_of_requests_may_share_one() {
    let rig = Rig::new(TlsClients::Any);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut config = Arc::unwrap_or_clone(rig.authority.client(None, &[version]));
        config.max_fragment_size = Some(33);
        let mut client = rig.enter(Arc::new(config)).expect("let in");
        go(&mut client);
        round_trip(&mut client, 100_000);
        let mut client = rig.enter(rig.authority.client(None, &[version])).expect("let in");
        go(&mut client);
        let header = |cookie| RequestHeader { cookie, length: 512, ..RequestHeader::default() }.to_bytes();
        client.send(&(0..64).flat_map(header).collect::<Vec<u8>>()).expect("sent");
        for _ in 0..64 {
            assert_eq!(client.reply().expect("a reply").1, 0);
            client.receive(512).expect("data");
        }
    }
}

#[test]
fn keys_are_renewed_when_the_client_asks() {
    let rig = Rig::new(TlsClients::Any);
    for suite in suites().filter(|suite| suite.tls13().is_some()) {
        let mut client = rig.enter(offering(&rig, suite)).expect("let in");
        go(&mut client);
        for round in 0..100 {
            client.stream().conn.refresh_traffic_keys().expect("asked");
            round_trip(&mut client, 1 + 700 * round);
        }
    }
}

#[test]
fn a_client_that_does_nothing_but_renew_its_key_is_sent_away() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.enter(rig.authority.client(None, &[&rustls::version::TLS13])).expect("let in");
    go(&mut client);
    for _ in 0..33 {
        client.stream().conn.refresh_traffic_keys().expect("asked");
    }
    let error = client.request(RequestHeader { length: 1, ..RequestHeader::default() }, &[]);
    let error = error.expect_err("enough is enough").to_string();
    assert!(error.contains("UnexpectedMessage"), "{error}");
    assert!(rig.server.wait_for_end().contains("TooManyKeyUpdateRequests"));
}

#[test]
fn records_that_are_none_are_answered_with_an_alert() {
    let rig = Rig::new(TlsClients::Any);
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    let empty = [23, 3, 3, 0, 0];
    for (version, wrong, expected) in [
        (&rustls::version::TLS13, &forged[..], "BadRecordMac"),
        (&rustls::version::TLS12, &forged, "BadRecordMac"),
        (&rustls::version::TLS13, &empty, "BadRecordMac"),
        (&rustls::version::TLS12, &empty, "BadRecordMac"),
        (&rustls::version::TLS13, &[23, 3, 3, 0xff, 0xff], "RecordOverflow"),
        (&rustls::version::TLS12, &[23, 3, 3, 0x50, 0], "RecordOverflow"),
        (&rustls::version::TLS13, &[99, 3, 3, 0, 1, 0], "DecodeError"),
        (&rustls::version::TLS13, &[23, 4, 3, 0, 1, 0], "DecodeError"),
        // Outside the handshake nothing may come in plaintext, a change of cipher or an alert included.
        (&rustls::version::TLS13, &[20, 3, 3, 0, 1, 1], "UnexpectedMessage"),
        (&rustls::version::TLS13, &[21, 3, 3, 0, 2, 1, 0], "UnexpectedMessage"),
        (&rustls::version::TLS12, &[21, 3, 3, 0, 2, 1, 0], "BadRecordMac"),
    ] {
        let mut client = rig.enter(rig.authority.client(None, &[version])).expect("let in");
        go(&mut client);
        let said = alert(&mut client, wrong);
        assert!(said.contains(expected), "{wrong:?}: {said}");
        let end = rig.server.wait_for_end();
        assert!(end.contains("Ended(Err("), "{end}");
    }
}

#[test]
fn a_record_that_was_seen_before_is_refused() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.enter(rig.any_version(None)).expect("let in");
    go(&mut client);
    let record = sealed_request(&mut client);
    client.stream().sock.write_all(&record).expect("sent");
    assert_eq!(client.reply().expect("a reply").1, 0);
    client.receive(1).expect("data");
    let said = alert(&mut client, &record);
    assert!(said.contains("BadRecordMac"), "{said}");
}

#[test]
fn a_record_may_end_with_the_connection_at_any_byte() {
    let rig = Rig::new(TlsClients::Any);
    for cut in 0..50 {
        let mut client = rig.enter(rig.any_version(None)).expect("let in");
        go(&mut client);
        let record = sealed_request(&mut client);
        client.stream().sock.write_all(&record[..cut]).expect("sent");
        client.stream().sock.shutdown(std::net::Shutdown::Write).expect("shut");
        assert_eq!(client.receive_rest().expect("a goodbye"), b"");
        let end = rig.server.wait_for_end();
        assert!(end.contains("EndOfStream"), "{end}");
    }
}

/// A handshake in which `change` is made to all that the client sends; whether it came to anything.
fn changed_handshake(rig: &Rig, change: &mut dyn FnMut(&mut Vec<u8>)) -> io::Result<()> {
    let mut stream = rig.upgrading();
    let name = "localhost".try_into().expect("a name");
    let mut client = ClientConnection::new(rig.any_version(None), name).expect("a connection");
    loop {
        while client.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes)?;
            change(&mut bytes);
            stream.write_all(&bytes)?;
        }
        if !client.is_handshaking() {
            return Ok(());
        }
        if client.read_tls(&mut stream)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        client.process_new_packets().map_err(io::Error::other)?;
    }
}

#[test]
fn a46_a_handshake_with_any_byte_changed_ends_the_connection_and_nothing_else() {
    let mut length = 0;
    changed_handshake(&Rig::new(TlsClients::Any), &mut |bytes| length += bytes.len()).expect("unchanged");
    // A changed length is waited for.
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let rig = Rig::within(TlsClients::Any, limits);
    for wrong in 0..length {
        let mut at = 0;
        let mut change = |bytes: &mut Vec<u8>| {
            if let Some(byte) = wrong.checked_sub(at).and_then(|wrong| bytes.get_mut(wrong)) {
                *byte ^= 1 << (wrong % 8);
            }
            at += bytes.len();
        };
        // The client may think that all is well: its last message is the one that is wrong.
        let _ = changed_handshake(&rig, &mut change);
        let end = rig.server.wait_for_end();
        assert!(!end.contains("Panicked"), "byte {wrong}: {end}");
    }
}

#[test]
fn a_handshake_may_come_in_records_of_a_few_bytes() {
    let rig = Rig::new(TlsClients::Any);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let identity = rig.authority.issue("client", &[]);
        let mut config = Arc::unwrap_or_clone(rig.authority.client(Some(&identity), &[version]));
        config.max_fragment_size = Some(32);
        go(&mut rig.enter(Arc::new(config)).expect("let in"));
    }
}
