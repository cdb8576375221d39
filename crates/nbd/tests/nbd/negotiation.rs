//! Points 3 to 37 of the checklist: greeting and options.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockError, Geometry, MemoryDevice, MemoryLane};
use sealblk_nbd::negotiation::{MAX_OPTION_BYTES, Negotiation, Outcome, TlsMode, Violation};
use sealblk_nbd::{ConnectionError, Ended, Export};
use sealblk_testkit::nbd_client::{MODERN, OptionReply, RequestHeader, go_data, option_bytes};

use crate::numbers::{
    ABORT, ACK, ERR_INVALID, ERR_POLICY, ERR_SHUTDOWN, ERR_TLS_REQD, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP,
    EXPORT_NAME, EXTENDED_HEADERS, GO, INFO, LIST, LIST_META_CONTEXT, REP_INFO, SERVER, SET_META_CONTEXT,
    STARTTLS, STRUCTURED_REPLY,
};
use crate::support::{ALIAS, Client, DESCRIPTION, NAME, SIZE, Session, connect, info, memory};

fn greeted() -> (Client, Session) {
    let (mut client, session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    (client, session)
}

/// Sends an option; the answer must be this one error, with a text that may be shown.
fn assert_error(client: &mut Client, option: u32, data: &[u8], kind: u32) {
    let replies = client.option(option, data).expect("an answer");
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!((replies[0].option, replies[0].kind), (option, kind), "{replies:?}");
    let text = std::str::from_utf8(&replies[0].data).expect("UTF-8");
    assert!(!text.is_empty() && text.len() <= 4096 && !text.contains(char::is_control), "{text:?}");
}

/// The session is still in step: LIST gets its usual answer.
fn assert_in_step(client: &mut Client) {
    let replies = client.option(LIST, &[]).expect("an answer");
    assert_eq!(replies.iter().map(|reply| reply.kind).collect::<Vec<_>>(), [SERVER, SERVER, ACK]);
}

fn fact(replies: &[OptionReply], kind: u8) -> Vec<&[u8]> {
    let facts = replies.iter().filter(|reply| reply.kind == REP_INFO && reply.data[..2] == [0, kind]);
    facts.map(|reply| &reply.data[2..]).collect()
}

/// The whole negotiation of a client that sends `bytes`, without I/O: how it ended, and the replies.
fn negotiate(bytes: &[u8]) -> (Result<Option<Outcome>, Violation>, Vec<u8>) {
    let export = Export::new(info(), MemoryDevice::new(SIZE / 512).geometry());
    let mut negotiation = Negotiation::new(&export, TlsMode::Off);
    let (mut rest, mut replies) = (bytes, Vec::new());
    loop {
        replies.append(negotiation.replies());
        if rest.is_empty() {
            return (Ok(None), replies);
        }
        match negotiation.feed(rest) {
            Ok(fed) => {
                rest = &rest[fed.consumed..];
                if fed.ended.is_some() {
                    replies.append(negotiation.replies());
                    return (Ok(fed.ended), replies);
                }
            }
            Err(violation) => return (Err(violation), replies),
        }
    }
}

#[test]
fn a02_a03_the_greeting_is_newstyle_and_offers_fixed_newstyle_and_no_zeroes_only() {
    let (mut client, _session) = connect(&memory());
    assert_eq!(client.receive(18).expect("a greeting"), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn a04_client_flags_that_were_not_offered_end_the_connection() {
    for flags in [4_u32, 1 << 31, 7] {
        let (mut client, session) = connect(&memory());
        client.greet(flags).expect("a greeting");
        assert_eq!(client.receive_rest().expect("the end"), b"");
        let error = session.end().expect_err("a violation");
        assert!(matches!(error, ConnectionError::Negotiation(Violation::ClientFlags(seen)) if seen == flags));
    }
}

#[test]
fn a05_without_fixed_newstyle_only_export_name_is_served() {
    let (mut client, _session) = connect(&memory());
    client.greet(0).expect("a greeting");
    assert_error(&mut client, GO, &go_data(b"", &[]), ERR_INVALID);
    assert_error(&mut client, LIST, &[], ERR_INVALID);
    client.send_option(EXPORT_NAME, b"").expect("sent");
    assert_eq!(client.receive(8 + 2 + 124).expect("an answer")[..8], SIZE.to_be_bytes());
}

#[test]
fn a06_an_option_without_its_magic_ends_the_connection() {
    let (mut client, session) = greeted();
    client.send(b"IHAVEOPX\0\0\0\x03\0\0\0\0").expect("sent");
    assert_eq!(client.receive_rest().expect("the end"), b"");
    assert!(matches!(session.end(), Err(ConnectionError::Negotiation(Violation::OptionMagic(_)))));
}

#[test]
fn a07_strings_that_cannot_be_sent_are_refused_at_configuration() {
    let long = "x".repeat(4097);
    assert!(sealblk_nbd::ExportInfo::new(&long, &[], "").is_err());
    assert!(sealblk_nbd::ExportInfo::new("a", &["nul\0"], "").is_err());
    assert!(sealblk_nbd::ExportInfo::new("a", &[], &long).is_err());
    assert!(sealblk_nbd::ExportInfo::new(&long[..4096], &[], &long[..4096]).is_ok());
}

#[test]
fn a08_replies_carry_magic_option_type_and_length() {
    let (_, replies) = negotiate(&[&MODERN.to_be_bytes()[..], &option_bytes(ABORT, &[])].concat());
    assert_eq!(replies[18..], *b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x02\0\0\0\x01\0\0\0\0");
}

#[test]
fn a09_unknown_option_keeps_sync() {
    let (mut client, _session) = greeted();
    for option in [0, 4, 12, 0xffff_ffff] {
        for length in [0, 1, 100_000] {
            assert_error(&mut client, option, &vec![0x49; length], ERR_UNSUP);
        }
    }
    assert_in_step(&mut client);
}

#[test]
fn a10_every_error_leaves_the_session_in_step() {
    let (mut client, _session) = greeted();
    assert_error(&mut client, LIST, b"data", ERR_INVALID);
    assert_in_step(&mut client);
    assert_error(&mut client, GO, &go_data(b"nobody", &[0; 900]), ERR_UNKNOWN);
    assert_in_step(&mut client);
    let with_data = vec![0x49; 70_000];
    for (option, data, kind) in [
        (INFO, &b"\0\0\0"[..], ERR_INVALID),
        (GO, b"\xff\xff\xff\xff", ERR_INVALID),
        (0, &with_data, ERR_UNSUP),
        (LIST, &with_data, ERR_INVALID),
        (STARTTLS, b"", ERR_POLICY),
        (STARTTLS, &with_data, ERR_INVALID),
        (STRUCTURED_REPLY, &with_data, ERR_INVALID),
        (EXTENDED_HEADERS, b"x", ERR_INVALID),
        (SET_META_CONTEXT, &with_data, ERR_INVALID),
        (LIST_META_CONTEXT, b"\0\0", ERR_INVALID),
        (LIST_META_CONTEXT, b"\0\0\0\x01n\0\0\0\0", ERR_UNKNOWN),
    ] {
        assert_error(&mut client, option, data, kind);
        assert_in_step(&mut client);
    }
}

#[test]
fn a11_no_reply_before_the_whole_option_is_here() {
    let export = Export::new(info(), MemoryDevice::new(8).geometry());
    let mut negotiation = Negotiation::new(&export, TlsMode::Off);
    negotiation.feed(&MODERN.to_be_bytes()).expect("flags");
    negotiation.replies().clear();
    for option in [option_bytes(77, &[1; 5000]), option_bytes(INFO, &go_data(b"no such name", &[1, 2]))] {
        for byte in &option[..option.len() - 1] {
            negotiation.feed(&[*byte]).expect("no violation");
            assert!(negotiation.replies().is_empty());
        }
        negotiation.feed(&option[option.len() - 1..]).expect("no violation");
        assert!(!negotiation.replies().is_empty());
        negotiation.replies().clear();
    }
}

#[test]
fn a12_a_go_of_legal_size_is_served_and_larger_options_are_bounded() {
    let (mut client, _session) = greeted();
    let replies = client.option(INFO, &go_data(NAME.as_bytes(), &vec![3; 65535])).expect("an answer");
    assert_eq!(replies.last().expect("a reply").kind, ACK);
    assert_error(&mut client, GO, &vec![0; MAX_OPTION_BYTES as usize + 1], ERR_TOO_BIG);
    assert_error(&mut client, 99, &vec![0; 1 << 20], ERR_UNSUP);
    assert_in_step(&mut client);
    client.send(b"IHAVEOPT\0\0\0\x63\x00\x10\x00\x01").expect("sent");
    assert_eq!(client.receive_rest().expect("the end"), b"");
}

#[test]
fn a14_a_server_that_stops_answers_options_with_shutdown() {
    let (mut client, session) = greeted();
    assert_in_step(&mut client);
    let export = Export::new(info(), MemoryDevice::new(8).geometry());
    let mut negotiation = Negotiation::new(&export, TlsMode::Off);
    negotiation.feed(&MODERN.to_be_bytes()).expect("flags");
    negotiation.shut_down();
    for option in [LIST, GO, 77] {
        negotiation.replies().clear();
        negotiation.feed(&option_bytes(option, &go_data(b"", &[]))).expect("no violation");
        assert_eq!(negotiation.replies()[12..16], ERR_SHUTDOWN.to_be_bytes());
    }
    let fed = negotiation.feed(&option_bytes(ABORT, &[])).expect("no violation");
    assert_eq!(fed.ended, Some(Outcome::Aborted));
    // A client that says nothing does not hold the server up.
    session.stopper.drain();
    assert_eq!(client.receive_rest().expect("the end"), b"");
    assert!(matches!(session.end(), Err(ConnectionError::HandshakeTimeout)));
}

#[test]
fn a15_errors_do_not_end_the_negotiation() {
    let (mut client, _session) = greeted();
    for _ in 0..1000 {
        assert_error(&mut client, GO, &go_data(b"not here", &[]), ERR_UNKNOWN);
    }
    assert_in_step(&mut client);
}

#[test]
fn a16_cve_2020_10761_error_texts_are_short_and_clean() {
    let (mut client, _session) = greeted();
    assert_error(&mut client, GO, &go_data("\u{1b}[2J\n".repeat(800).as_bytes(), &[]), ERR_UNKNOWN);
    assert_error(&mut client, GO, &go_data("é".repeat(2048).as_bytes(), &[]), ERR_UNKNOWN);
    let replies = client.option(GO, &go_data("é".repeat(2048).as_bytes(), &[])).expect("an answer");
    let text = std::str::from_utf8(&replies[0].data).expect("UTF-8");
    assert_eq!(text.matches('é').count(), 40, "80 bytes of what the client said: {text}");
    assert!(text.len() < 200, "{text}");
}

#[test]
fn a17_a18_export_name_with_and_without_zeroes() {
    for (flags, length) in [(1, 134), (3, 10), (2, 10)] {
        let (mut client, session) = connect(&memory());
        client.greet(flags).expect("a greeting");
        client.send_option(EXPORT_NAME, NAME.as_bytes()).expect("sent");
        let answer = client.receive(length).expect("an answer");
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read(0, 512).expect("a reply"), Ok(vec![0; 512]));
        client.disconnect().expect("sent");
        assert_eq!(session.end().expect("an orderly end"), Ended::Disconnected);
    }
}

#[test]
fn a19_export_name_of_another_export_ends_the_session_without_a_byte() {
    let long = [b'x'; 4097];
    for name in [&b"nobody"[..], b"vol-0123456789abcdef0 ", b"\xff", &long] {
        let (mut client, session) = greeted();
        client.send_option(EXPORT_NAME, name).expect("sent");
        // A reset is an end too: the server does not read a name that is too long.
        assert_eq!(client.receive_rest().unwrap_or_default(), b"");
        assert!(matches!(session.end(), Err(ConnectionError::Negotiation(_))));
    }
}

#[test]
fn a21_every_name_of_the_export_is_served() {
    for name in ["", NAME, ALIAS] {
        let (mut client, _session) = connect(&memory());
        assert_eq!(client.go(name).expect("GO is answered").size, SIZE);
        // The name alone, with no length before it.
        let (mut client, _session) = greeted();
        client.send_option(EXPORT_NAME, name.as_bytes()).expect("sent");
        assert_eq!(client.receive(10).expect("an answer")[..8], SIZE.to_be_bytes());
        assert_eq!(client.read(0, 4).expect("a reply"), Ok(vec![0; 4]));
    }
}

#[test]
fn a22_abort_is_acknowledged_with_or_without_data() {
    for data in [&b""[..], b"goodbye"] {
        let (mut client, session) = greeted();
        assert_eq!(client.option(ABORT, data).expect("an answer")[0].kind, ACK);
        assert_eq!(client.receive_rest().expect("the end"), b"");
        drop(client);
        assert_eq!(session.end().expect("an orderly end"), Ended::Aborted);
    }
    // A client that vanishes without reading the answer has done nothing wrong.
    let (mut client, session) = greeted();
    client.send_option(ABORT, b"").expect("sent");
    drop(client);
    assert_eq!(session.end().expect("an orderly end"), Ended::Aborted);
}

#[test]
fn a23_a24_list_names_the_export_by_each_name_each_time_and_takes_no_data() {
    let (mut client, _session) = greeted();
    for _ in 0..3 {
        let replies = client.option(LIST, &[]).expect("an answer");
        for (reply, name) in replies.iter().zip([NAME, ALIAS]) {
            let length = u32::try_from(name.len()).expect("short").to_be_bytes();
            assert_eq!(reply.data, [&length[..], name.as_bytes(), DESCRIPTION.as_bytes()].concat());
        }
        assert_eq!(replies.len(), 3, "and the acknowledgement");
        assert_error(&mut client, LIST, b"x", ERR_INVALID);
    }
}

#[test]
fn a25_a_flood_of_options_is_answered_one_by_one_in_bounded_memory() {
    let long = "x".repeat(4096);
    let info = sealblk_nbd::ExportInfo::new(&long, &[], &long).expect("strings that can be sent");
    let export = Export::new(info, MemoryDevice::new(8).geometry());
    let mut negotiation = Negotiation::new(&export, TlsMode::Off);
    negotiation.feed(&MODERN.to_be_bytes()).expect("flags");
    let flood = option_bytes(LIST, &[]).repeat(1000);
    let mut rest = &flood[..];
    while !rest.is_empty() {
        negotiation.replies().clear();
        let fed = negotiation.feed(rest).expect("no violation");
        assert_eq!(fed.consumed, 16, "one option a call");
        assert!(negotiation.replies().len() <= 20 + 4 + 4096 + 4096 + 20);
        rest = &rest[fed.consumed..];
    }
}

#[test]
fn a26_malformed_info_is_invalid() {
    let good = go_data(NAME.as_bytes(), &[3]);
    let (mut client, _session) = greeted();
    for cut in 0..good.len() {
        assert_error(&mut client, INFO, &good[..cut], ERR_INVALID);
    }
    assert_error(&mut client, INFO, &[&good[..], b"\0"].concat(), ERR_INVALID);
    assert_error(&mut client, INFO, &[&good[..], b"\0\x03"].concat(), ERR_INVALID);
    assert_error(&mut client, GO, b"\xff\xff\xff\xff\0\0", ERR_INVALID);
    assert_error(&mut client, GO, b"\0\0\0\0\xff\xff\0\x03", ERR_INVALID);
    assert_in_step(&mut client);
}

#[test]
fn a27_size_and_flags_come_once_whatever_is_asked() {
    let (mut client, _session) = greeted();
    for asked in [&[][..], &[0, 0, 0], &[1, 1, 2, 2, 3, 3], &[4, 77, 0xffff]] {
        let replies = client.option(INFO, &go_data(b"", asked)).expect("an answer");
        assert_eq!(fact(&replies, 0).len(), 1);
        assert_eq!(fact(&replies, 0)[0].len(), 10);
        assert_eq!(fact(&replies, 3).len(), 1);
        assert_eq!(fact(&replies, 1).len(), usize::from(asked.contains(&1)));
        assert_eq!(replies.last().expect("a reply").kind, ACK);
    }
}

#[test]
fn a28_names_that_cannot_be_are_invalid() {
    let (mut client, _session) = greeted();
    for name in [&[b'a'; 4097][..], b"nul\0inside", b"\xff\xfe"] {
        assert_error(&mut client, GO, &go_data(name, &[]), ERR_INVALID);
    }
    assert_error(&mut client, GO, &go_data(&[b'a'; 4096], &[]), ERR_UNKNOWN);
    assert_in_step(&mut client);
}

#[test]
fn a29_after_an_unknown_name_the_right_one_is_served() {
    let (mut client, _session) = greeted();
    for name in ["/", "//", " ", "?", "テスト", "-n", "\\", "\n", "%%"] {
        assert_error(&mut client, GO, &go_data(name.as_bytes(), &[0, 1, 2, 3]), ERR_UNKNOWN);
    }
    assert_eq!(
        client.option(GO, &go_data(NAME.as_bytes(), &[])).expect("an answer").last().expect("one").kind,
        ACK
    );
    assert_eq!(client.read(0, 1).expect("a reply"), Ok(vec![0]));
}

#[test]
fn a30_canonical_name_and_description_are_sent_on_request() {
    let (mut client, _session) = greeted();
    let replies = client.option(INFO, &go_data(b"", &[1, 2])).expect("an answer");
    assert_eq!(fact(&replies, 1), [NAME.as_bytes()]);
    assert_eq!(fact(&replies, 2), [DESCRIPTION.as_bytes()]);
}

#[test]
fn a31_a32_request_sizes_are_sent_always_and_make_sense() {
    for (unit, minimum, preferred) in [(512, 1, 4096), (4096, 4096, 4096), (65536, 65536, 65536)] {
        let device = sealblk_block::ByteDevice::new(MemoryDevice::new(SIZE / 512).with_unit(unit));
        let (mut client, _session) = connect(&device);
        let exported = client.go("").expect("GO is answered");
        assert_eq!(exported.block_sizes, Some((minimum, preferred, 32 << 20)));
    }
}

#[test]
fn a33_go_without_information_requests_is_served() {
    let device = sealblk_block::ByteDevice::new(MemoryDevice::new(SIZE / 512).with_unit(4096));
    let (mut client, _session) = connect(&device);
    assert_eq!(client.go("").expect("no ERR_BLOCK_SIZE_REQD").size, SIZE);
}

#[test]
fn a34_info_and_go_say_the_same() {
    let (mut client, _session) = greeted();
    let data = go_data(b"", &[1, 2, 3]);
    let mut info = client.option(INFO, &data).expect("an answer");
    info.iter_mut().for_each(|reply| reply.option = GO);
    assert_eq!(client.option(GO, &data).expect("an answer"), info);
}

#[test]
fn a35_transmission_begins_right_after_the_ack_of_go() {
    // Without NO_ZEROES, and with the first request in the same segment as GO.
    let (mut client, _session) = connect(&memory());
    client.greet(1).expect("a greeting");
    let read = RequestHeader { cookie: 9, length: 4, ..RequestHeader::default() };
    client.send(&[option_bytes(GO, &go_data(b"", &[])), read.to_bytes()].concat()).expect("sent");
    while client.option_reply().expect("a reply").kind != ACK {}
    assert_eq!(client.reply().expect("a reply"), (9, 0));
    assert_eq!(client.receive(4).expect("data"), [0; 4]);
}

#[test]
fn a36_cve_2019_14851_options_in_any_order_are_harmless() {
    let (mut client, _session) = greeted();
    let info = go_data(b"", &[]);
    assert_eq!(client.option(INFO, &info).expect("an answer").last().expect("one").kind, ACK);
    assert_in_step(&mut client);
    assert_error(&mut client, INFO, &go_data(b"no", &[]), ERR_UNKNOWN);
    assert_eq!(client.option(GO, &info).expect("an answer").last().expect("one").kind, ACK);
    assert_eq!(client.read(SIZE - 1, 1).expect("a reply"), Ok(vec![0]));
}

#[test]
fn a39_without_tls_starttls_is_refused_and_tls_is_never_demanded() {
    let (mut client, _session) = greeted();
    let replies = client.option(STARTTLS, &[]).expect("an answer");
    assert_eq!(replies[0].kind, ERR_POLICY);
    assert_ne!(replies[0].kind, ERR_TLS_REQD);
    assert_in_step(&mut client);
}

#[test]
fn cve_2005_3534_cve_2022_26495_a_name_length_of_all_ones_is_invalid() {
    let (mut client, _session) = greeted();
    for option in [INFO, GO] {
        assert_error(&mut client, option, b"\xff\xff\xff\xff", ERR_INVALID);
        assert_error(&mut client, option, b"\xff\xff\xff\xff\0\0\0\0\0\0", ERR_INVALID);
    }
    assert_in_step(&mut client);
}

#[test]
fn cve_2017_15118_cve_2022_26496_names_of_3000_bytes_are_only_unknown() {
    let name = [b'n'; 3000];
    let (mut client, _session) = greeted();
    assert_error(&mut client, INFO, &go_data(&name, &[3]), ERR_UNKNOWN);
    assert_error(&mut client, GO, &go_data(&name, &[3]), ERR_UNKNOWN);
    client.send_option(EXPORT_NAME, &name).expect("sent");
    assert_eq!(client.receive_rest().expect("the end"), b"");
}

#[test]
fn cve_2017_15119_an_option_of_4_gib_is_not_waited_for() {
    for option in [EXPORT_NAME, LIST, GO, 99] {
        let header = [b"IHAVEOPT", &option.to_be_bytes()[..], &[0xff; 4]].concat();
        let (ended, _) = negotiate(&[&MODERN.to_be_bytes()[..], &header].concat());
        assert_eq!(ended, Err(Violation::OptionLength { option, length: u32::MAX }));
    }
}

#[test]
fn cve_2019_14850_the_device_is_opened_when_the_export_is_chosen_and_not_before() {
    let opened = Arc::new(AtomicUsize::new(0));
    let device = sealblk_block::ByteDevice::new(Counted(MemoryDevice::new(SIZE / 512), Arc::clone(&opened)));
    let (mut client, _session) = connect(&device);
    client.greet(MODERN).expect("a greeting");
    assert_error(&mut client, STARTTLS, b"", ERR_POLICY);
    assert_error(&mut client, GO, &go_data(b"nobody", &[]), ERR_UNKNOWN);
    assert_eq!(
        client.option(INFO, &go_data(b"", &[1, 2, 3])).expect("an answer").last().expect("one").kind,
        ACK
    );
    assert_in_step(&mut client);
    assert_eq!(opened.load(Ordering::SeqCst), 0);
    client.option(GO, &go_data(b"", &[])).expect("an answer");
    assert_eq!(opened.load(Ordering::SeqCst), 1);
}

/// Memory that counts how often it was opened.
struct Counted(MemoryDevice, Arc<AtomicUsize>);

impl BlockDevice for Counted {
    type Lane = MemoryLane;

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_lane(&self) -> Result<MemoryLane, BlockError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.open_lane()
    }
}

#[tokio::test(start_paused = true)]
async fn a48_cve_2024_7409_a_slow_negotiation_meets_its_deadline() {
    use tokio::io::AsyncWriteExt;
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let (device, limits) = (memory(), sealblk_nbd::Limits::default());
    let stopper = sealblk_nbd::Stopper::default();
    let began = tokio::time::Instant::now();
    let drip = async {
        // One byte a second of a legal session: each read makes progress, the whole never ends.
        for byte in [&MODERN.to_be_bytes()[..], &option_bytes(99, &[0; 1000])].concat() {
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let info = info();
    let serving = serve(server, &device, &info, &limits, stopper.signal());
    let (ended, ()) = tokio::join!(serving, drip);
    assert!(matches!(ended, Err(ConnectionError::HandshakeTimeout)));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(12), "{took:?}");
}

/// Serves and drops the stream at the end, as a thread does.
async fn serve(
    stream: tokio::io::DuplexStream,
    device: &sealblk_block::ByteDevice<MemoryDevice>,
    info: &sealblk_nbd::ExportInfo,
    limits: &sealblk_nbd::Limits,
    stop: sealblk_nbd::StopSignal,
) -> Result<Ended, ConnectionError> {
    sealblk_nbd::serve_connection(stream, device, info, limits, stop, &std::sync::Arc::default()).await
}
