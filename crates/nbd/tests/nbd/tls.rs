//! Points 38 to 52 of the checklist: TLS, with rustls as the client too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};
use sealblk_block::MemoryDevice;
use sealblk_nbd::{Limits, TlsClients, TlsError, TlsServer};
use sealblk_testkit::nbd_client::{MODERN, NbdClient, RequestHeader, go_data, option_bytes};

use crate::certificates::{Authority, Identity};
use crate::numbers::{
    ACK, ERR_INVALID, ERR_TLS_REQD, GO, LIST, REP_META_CONTEXT, SET_META_CONTEXT, STARTTLS, STRUCTURED_REPLY,
};
use crate::running::{Running, run_inside};
use crate::support::{NAME, SIZE};

pub(crate) type Inside = NbdClient<StreamOwned<ClientConnection, TcpStream>>;

/// A server with TLS, and everybody's certificates.
pub(crate) struct Rig {
    pub(crate) authority: Authority,
    directory: tempfile::TempDir,
    pub(crate) server: Running,
}

impl Rig {
    pub(crate) fn new(clients: TlsClients) -> Self {
        Self::within(clients, Limits::default())
    }

    pub(crate) fn within(clients: TlsClients, limits: Limits) -> Self {
        let authority = Authority::new("an authority");
        let directory = tempfile::tempdir().expect("a directory");
        authority.equip(directory.path(), &authority.issue("server", &["localhost"]));
        let tls = TlsServer::from_directory(directory.path(), clients).expect("certificates");
        let server = run_inside(MemoryDevice::new(SIZE / 512), limits, Some(Arc::new(tls)));
        Self { authority, directory, server }
    }

    /// A client that may go on with TLS: its stream, with nothing read ahead.
    pub(crate) fn upgrading(&self) -> TcpStream {
        let mut client = self.server.tcp();
        client.greet(MODERN).expect("the greeting");
        let replies = client.option(STARTTLS, &[]).expect("an answer");
        assert_eq!(replies[0].kind, ACK);
        client.stream().try_clone().expect("a clone")
    }

    /// A client inside TLS, unless the handshake fails for either side.
    pub(crate) fn enter(&self, config: Arc<ClientConfig>) -> io::Result<Inside> {
        handshake(self.upgrading(), config)
    }

    pub(crate) fn any_version(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        self.authority.client(identity, &[&TLS13, &TLS12])
    }
}

fn handshake(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<Inside> {
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(config, name).expect("a connection");
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let mut inside = NbdClient::new(stream);
    inside.option(LIST, &[])?;
    Ok(inside)
}

pub(crate) fn go(client: &mut Inside) {
    let replies = client.option(GO, &go_data(b"", &[])).expect("an answer");
    assert_eq!(replies.last().expect("an answer").kind, ACK);
}

/// The alert that the server sent, as rustls tells it.
fn alert(outcome: io::Result<Inside>) -> String {
    outcome.map(|_| ()).expect_err("the server lets nobody in like this").to_string()
}

#[test]
fn a47_tls_1_2_and_1_3_carry_every_size_of_request() {
    let rig = Rig::new(TlsClients::Any);
    for (version, number) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut client = rig.enter(rig.authority.client(None, &[version])).expect("let in");
        assert_eq!(client.stream().conn.protocol_version(), Some(number));
        go(&mut client);
        for length in [1, 511, 16_384, 16_385, 131_072, 1 << 20] {
            let data: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
            client.write(3, &data).expect("a reply").expect("written");
            assert_eq!(client.read(3, length as u32).expect("a reply").expect("data"), data);
        }
        client.disconnect().expect("sent");
        assert_eq!(client.receive_rest().expect("TLS's own goodbye"), b"");
        assert!(rig.server.wait_for_end().contains("Disconnected"));
    }
}

#[test]
fn a47_tls_1_1_is_refused_with_an_alert() {
    let rig = Rig::new(TlsClients::Any);
    let mut stream = rig.upgrading();
    // A ClientHello of TLS 1.1 without extensions: version 3.2, random, no session, two suites, no compression.
    let hello = [&[3, 2][..], &[9; 32], &[0], &[0, 4, 0xc0, 0x13, 0x00, 0x2f], &[1, 0]].concat();
    let length = u8::try_from(hello.len()).expect("short");
    let message = [&[1, 0, 0, length][..], &hello].concat();
    stream.write_all(&[&[22, 3, 1, 0, length + 4][..], &message].concat()).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an alert");
    assert_eq!(answer[0], 21, "an alert: {answer:?}");
    assert_eq!(answer[5], 2, "a fatal one: {answer:?}");
    assert!(rig.server.wait_for_end().contains("Tls"));
}

#[test]
fn a45_plaintext_behind_starttls_ends_the_connection() {
    let rig = Rig::new(TlsClients::Any);
    for injected in [&option_bytes(STRUCTURED_REPLY, &[])[..], &[0x16], &[0x16, 3, 1, 2, 0, 1]] {
        let mut client = rig.server.tcp();
        client.greet(MODERN).expect("the greeting");
        client.send(&[&option_bytes(STARTTLS, &[])[..], injected].concat()).expect("sent");
        // Its end, or its reset: nothing but the end may come, not even the ACK.
        assert_eq!(client.receive_rest().unwrap_or_default(), b"");
        assert!(rig.server.wait_for_end().contains("PlaintextAfterStartTls"));
    }
}

#[test]
fn a44_cve_2021_3716_what_was_agreed_on_outside_is_forgotten() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.server.tcp();
    client.greet(MODERN).expect("the greeting");
    assert_eq!(client.option(STRUCTURED_REPLY, &[]).expect("an answer")[0].kind, ERR_TLS_REQD);
    assert_eq!(client.option(STARTTLS, &[]).expect("an answer")[0].kind, ACK);
    let stream = client.stream().try_clone().expect("a clone");
    let mut inside = handshake(stream, rig.any_version(None)).expect("let in");
    // Without structured replies there are no contexts, and READ has a simple reply.
    let query = [&go_data(NAME.as_bytes(), &[])[..4 + NAME.len()], &[0, 0, 0, 0]].concat();
    let replies = inside.option(SET_META_CONTEXT, &query).expect("an answer");
    assert_eq!(replies[0].kind, ERR_INVALID);
    assert!(replies.iter().all(|reply| reply.kind != REP_META_CONTEXT));
    go(&mut inside);
    assert_eq!(inside.read(0, 4).expect("a simple reply"), Ok(vec![0; 4]));
}

#[test]
fn a43_inside_tls_starttls_is_invalid_and_tls_is_demanded_no_more() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.enter(rig.any_version(None)).expect("let in");
    assert_eq!(client.option(STARTTLS, &[]).expect("an answer")[0].kind, ERR_INVALID);
    for option in [STRUCTURED_REPLY, LIST, 99] {
        let replies = client.option(option, &[]).expect("an answer");
        assert!(replies.iter().all(|reply| reply.kind != ERR_TLS_REQD));
    }
    go(&mut client);
}

#[test]
fn a46_a_failed_handshake_ends_the_connection() {
    let rig = Rig::new(TlsClients::Any);
    let mut stream = rig.upgrading();
    // NBD instead of TLS.
    stream.write_all(&option_bytes(GO, &go_data(b"", &[]))).expect("sent");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer[0] == 21, "nothing but a TLS alert: {answer:?}");
    assert!(rig.server.wait_for_end().contains("Tls"));
    rig.enter(rig.any_version(None)).expect("others are let in");
}

#[test]
fn a48_one_deadline_covers_greeting_options_and_tls() {
    // Time enough for a client in order to come as far as each of these places.
    let limits = Limits { handshake: Duration::from_secs(3), ..Limits::default() };
    let rig = Rig::within(TlsClients::Any, limits);
    let config = rig.any_version(None);
    // Silent: before the greeting's answer, before TLS, within TLS's handshake, after it.
    let silent = rig.server.tcp();
    let upgraded = rig.upgrading();
    let mut half = rig.upgrading();
    half.write_all(&[22, 3, 1, 2, 0, 1, 0]).expect("sent");
    let inside = rig.enter(config).expect("let in");
    for _ in 0..4 {
        assert!(rig.server.wait_for_end().contains("HandshakeTimeout"));
    }
    drop((silent, upgraded, half, inside));
}

#[test]
fn a49_the_end_without_goodbye_is_an_end_in_order() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.enter(rig.any_version(None)).expect("let in");
    go(&mut client);
    for cookie in 0..20 {
        let header = RequestHeader { cookie, length: 4096, ..RequestHeader::default() };
        client.send_request(header, &[]).expect("sent");
    }
    client.stream().sock.shutdown(Shutdown::Write).expect("half-closed");
    for _ in 0..20 {
        assert_eq!(client.reply().expect("a reply").1, 0);
        client.receive(4096).expect("data");
    }
    // The server says goodbye all the same: without it rustls would call this an unexpected end.
    assert_eq!(client.receive_rest().expect("a goodbye"), b"");
    assert!(rig.server.wait_for_end().contains("EndOfStream"));
}

#[test]
fn a50_clients_need_a_certificate_of_the_authority() {
    let rig = Rig::new(TlsClients::Certified);
    let stranger = Authority::new("another authority").issue("client", &[]);
    let client = rig.authority.issue("client", &[]);
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let with = |identity: Option<&Identity>| rig.enter(rig.authority.client(identity, versions));
        let refused = alert(with(None));
        assert!(refused.contains("CertificateRequired") || refused.contains("HandshakeFailure"), "{refused}");
        let refused = alert(with(Some(&stranger)));
        assert!(refused.contains("UnknownCA") || refused.contains("DecryptError"), "{refused}");
        with(Some(&client)).expect("let in");
    }
}

#[test]
fn a50_cve_2013_6410_names_are_compared_whole_with_common_name_and_dns_names() {
    let allowed = TlsClients::Named(vec!["backup".to_owned(), "host-1.example".to_owned()]);
    let rig = Rig::new(allowed);
    let let_in = |name: &str, dns_names: &[&str]| {
        rig.enter(rig.any_version(Some(&rig.authority.issue(name, dns_names)))).is_ok()
    };
    assert!(let_in("backup", &[]));
    assert!(let_in("anybody", &["host-2.example", "host-1.example"]));
    for name in ["backup2", "backu", "Backup", "backup ", "", "*"] {
        assert!(!let_in(name, &[]), "{name}");
    }
    for name in ["host-1.example.org", "ost-1.example", "*.example"] {
        assert!(!let_in("anybody", &[name]), "{name}");
    }
    let refused = alert(rig.enter(rig.any_version(Some(&rig.authority.issue("other", &[])))));
    assert!(refused.contains("AccessDenied"), "{refused}");
    assert!(Rig::new(TlsClients::Named(Vec::new())).enter(rig.any_version(None)).is_err());
}

#[test]
fn a50_a_revoked_certificate_is_refused_from_the_next_connection_on() {
    let rig = Rig::new(TlsClients::Certified);
    let (lost, kept) = (rig.authority.issue("lost", &[]), rig.authority.issue("kept", &[]));
    let mut before = rig.enter(rig.any_version(Some(&lost))).expect("not revoked yet");
    rig.authority.revoke(rig.directory.path(), &lost);
    let refused = alert(rig.enter(rig.any_version(Some(&lost))));
    assert!(refused.contains("CertificateRevoked"), "{refused}");
    rig.enter(rig.any_version(Some(&kept))).expect("let in");
    go(&mut before);
}

#[test]
fn renewed_certificates_hold_from_the_next_connection_on_and_broken_ones_let_nobody_in() {
    let rig = Rig::new(TlsClients::Any);
    let shown = |client: &mut Inside| client.stream().conn.peer_certificates().expect("one")[0].to_vec();
    let mut first = rig.enter(rig.any_version(None)).expect("let in");
    rig.authority.equip(rig.directory.path(), &rig.authority.issue("renewed", &["localhost"]));
    let mut second = rig.enter(rig.any_version(None)).expect("let in");
    assert_ne!(shown(&mut first), shown(&mut second));
    std::fs::write(rig.directory.path().join("server-key.pem"), "no key").expect("written");
    rig.enter(rig.any_version(None)).map(|_| ()).expect_err("there is no key");
    assert!(rig.server.wait_for_end().contains("Certificates"));
    go(&mut second);
}

#[test]
fn a52_a_client_without_tls_gets_nothing() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.server.tcp();
    client.greet(MODERN).expect("the greeting");
    let replies = client.option(GO, &go_data(b"", &[])).expect("an answer");
    assert_eq!((replies.len(), replies[0].kind), (1, ERR_TLS_REQD));
    client.send_option(1, b"").expect("sent");
    assert_eq!(client.receive_rest().unwrap_or_default(), b"");
    // The Unix socket of the same server has none, and needs none.
    rig.server.unix().go("").expect("GO is answered");
}

#[test]
fn a101_a_stop_with_64_requests_in_flight_inside_tls_loses_none() {
    let rig = Rig::new(TlsClients::Any);
    let mut client = rig.enter(rig.any_version(None)).expect("let in");
    go(&mut client);
    for cookie in 0..64 {
        let header = RequestHeader { cookie, length: 16_384, ..RequestHeader::default() };
        client.send_request(header, &[]).expect("sent");
    }
    let reader = std::thread::spawn(move || {
        for _ in 0..64 {
            assert_eq!(client.reply().expect("a reply").1, 0);
            client.receive(16_384).expect("data");
        }
        assert_eq!(client.receive_rest().expect("a goodbye"), b"");
    });
    let report = rig.server.stop();
    reader.join().expect("64 replies");
    assert_eq!((report.cut, report.failed), (0, 0));
}

#[test]
fn unusable_certificates_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let load = |path: &Path| TlsServer::from_directory(path, TlsClients::Certified);
    let missing = load(directory.path()).expect_err("nothing is there");
    assert!(missing.to_string().contains("server-cert.pem"), "{missing}");
    let authority = Authority::new("an authority");
    authority.equip(directory.path(), &authority.issue("server", &["localhost"]));
    load(directory.path()).expect("usable");
    std::fs::write(directory.path().join("ca-cert.pem"), "").expect("written");
    let empty = load(directory.path()).expect_err("no authority");
    assert!(matches!(&empty, TlsError::Empty { path, .. } if path.ends_with("ca-cert.pem")), "{empty}");
    let other = tempfile::tempdir().expect("a directory");
    authority.equip(other.path(), &authority.issue("server", &["localhost"]));
    std::fs::copy(other.path().join("server-key.pem"), directory.path().join("server-key.pem"))
        .expect("copied");
    authority.equip(other.path(), &authority.issue("server", &["localhost"]));
    std::fs::copy(other.path().join("ca-cert.pem"), directory.path().join("ca-cert.pem")).expect("copied");
    let mismatch = load(directory.path()).expect_err("another certificate's key");
    assert!(matches!(mismatch, TlsError::Unusable { .. }), "{mismatch}");
}
