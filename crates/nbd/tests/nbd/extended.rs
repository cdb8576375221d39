//! Points 20 and 57 to 61 of the checklist: extended headers. Point 61 was a decision: they are spoken.

use sealblk_block::{ByteDevice, MemoryDevice};
use sealblk_nbd::negotiation::Violation;
use sealblk_nbd::{ConnectionError, request};
use sealblk_testkit::nbd_client::{MODERN, RequestHeader, go_data};

use crate::chunks::*;
use crate::numbers::EXTENDED_HEADERS;
use crate::support::*;

const BASE: &str = "base:allocation";
const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

fn session(device: &ByteDevice<MemoryDevice>) -> (ChunkClient, Session) {
    chunked_on(device, info(), true, &[BASE])
}

fn greeted() -> (Client, Session) {
    let (mut client, session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    (client, session)
}

fn kind(client: &mut Client, option: u32, data: &[u8]) -> u32 {
    client.option(option, data).expect("an answer").last().expect("a reply").kind
}

/// The payload of a BLOCK_STATUS.
fn payload(length: u64, ids: &[u32]) -> Vec<u8> {
    let mut payload = length.to_be_bytes().to_vec();
    ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
    payload
}

/// A BLOCK_STATUS with a payload.
fn selective(offset: u64, payload: Vec<u8>) -> Ask {
    Ask::new(BLOCK_STATUS, PAYLOAD_LEN, offset, payload.len() as u64).carrying(payload)
}

#[test]
fn a20_export_name_after_extended_headers_ends_the_connection() {
    let (mut client, session) = greeted();
    assert_eq!(kind(&mut client, EXTENDED_HEADERS, b""), 1);
    client.send_option(1, NAME.as_bytes()).expect("sent");
    assert_eq!(client.receive_rest().unwrap_or_default(), b"");
    let error = session.end().expect_err("a violation");
    let expected = Violation::ExportNameAfterExtendedHeaders;
    assert!(matches!(error, ConnectionError::Negotiation(violation) if violation == expected));
}

#[test]
fn a57_extended_headers_supersede_structured_replies() {
    let (mut client, _session) = greeted();
    assert_eq!(kind(&mut client, EXTENDED_HEADERS, b"data"), (1 << 31) + 3);
    assert_eq!(kind(&mut client, 8, b""), 1);
    assert_eq!(kind(&mut client, EXTENDED_HEADERS, b""), 1);
    assert_eq!(kind(&mut client, 8, b""), (1 << 31) + 10);
    assert_eq!(kind(&mut client, 7, &go_data(b"", &[])), 1, "GO goes on as ever");
}

#[test]
fn a57_every_reply_has_an_extended_header_with_the_offset_of_its_request() {
    let (mut client, _session) = session(&memory());
    for command in [READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
        // The reader in `chunks` insists on magic and offset.
        assert_eq!(client.ask(&Ask::new(command, 0, 12_345, 678)).error, None, "command {command}");
        for offset in [SIZE, u64::MAX] {
            assert!(client.ask(&Ask::new(command, 0, offset, 678)).error.is_some());
        }
    }
    assert_eq!(client.write(54_321, b"data").error, None);
    assert_eq!(client.ask(&Ask::new(FLUSH, 0, 0, 0)).error, None);
    assert_eq!(client.ask(&Ask::new(99, 0, 7, 0)).error, Some(EINVAL));
}

#[test]
fn a57_a_compact_request_after_extended_headers_ends_the_connection() {
    let (mut client, session) = session(&memory());
    let header = RequestHeader { length: 512, ..RequestHeader::default() };
    client.client.send(&[header.to_bytes(), vec![0; 4]].concat()).expect("sent");
    assert_eq!(client.client.receive_rest().unwrap_or_default(), b"");
    drop(client);
    assert!(matches!(session.end(), Err(ConnectionError::Request(request::Violation::Magic(0x2560_9513)))));
}

#[test]
fn a57_lengths_have_64_bits() {
    let size = 16_u64 << 40;
    let device = ByteDevice::new(MemoryDevice::new(size / 512));
    let (mut client, _session) = session(&device);
    client.write(size - 5, b"tail!");
    assert_eq!(client.extents(0, 0, size).len(), 2);
    for command in [TRIM, CACHE, WRITE_ZEROES] {
        assert_eq!(client.ask(&Ask::new(command, 0, 0, size)).error, None);
        let outside = if command == WRITE_ZEROES { ENOSPC } else { EINVAL };
        for length in [size + 1, u64::MAX] {
            assert_eq!(client.ask(&Ask::new(command, 0, 0, length)).error, Some(outside));
            assert_eq!(client.ask(&Ask::new(command, 0, 1, length)).error, Some(outside));
        }
    }
    assert_eq!(client.read(size - 5, 5), [0; 5]);
    assert_eq!(client.extents(0, 0, size), [(size, 3)], "one extent of 16 TiB");
    assert_eq!(client.ask(&Ask::new(READ, 0, 0, size)).error, Some(EINVAL));
}

#[test]
fn a58_a_write_must_say_that_a_payload_follows() {
    let (mut client, session) = session(&memory());
    client.send(&Ask::new(WRITE, 0, 0, 512).carrying(vec![0x11; 512]));
    assert_eq!(client.client.receive_rest().unwrap_or_default(), b"");
    drop(client);
    assert!(matches!(session.end(), Err(ConnectionError::Request(request::Violation::UnannouncedPayload))));
    // Without a length there is nothing to misunderstand.
    let (mut client, _session) = self::session(&memory());
    assert_eq!(client.ask(&Ask::new(WRITE, 0, 0, 0)).error, None);
    assert_eq!(client.ask(&Ask::new(WRITE, PAYLOAD_LEN, 0, 0)).error, None);
}

#[test]
fn a58_a_payload_on_a_command_that_has_none_is_taken_and_refused() {
    let (mut client, _session) = session(&memory());
    for command in [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 8, 1000] {
        for length in [1, 8, 100_000] {
            let ask = Ask::new(command, PAYLOAD_LEN, 0, length).carrying(vec![0x21; length as usize]);
            assert_eq!(client.ask(&ask).error, Some(EINVAL), "command {command}");
        }
    }
    assert_eq!(client.read(0, 4), [0; 4]);
}

#[test]
fn a58_a_payload_over_32_mib_ends_the_connection() {
    for (command, length) in [(WRITE, MOST_PAYLOAD + 1), (READ, u64::MAX), (BLOCK_STATUS, 1 << 32)] {
        let (mut client, session) = session(&memory());
        client.send(&Ask::new(command, PAYLOAD_LEN, 0, length));
        assert_eq!(client.client.receive_rest().unwrap_or_default(), b"");
        drop(client);
        let ended = session.end();
        let expected = request::Violation::PayloadLength(length);
        assert!(matches!(ended, Err(ConnectionError::Request(violation)) if violation == expected));
    }
}

#[test]
fn a58_a80_payload_len_is_invalid_in_compact_headers() {
    let (mut client, _session) = chunked_on(&memory(), info(), false, &[BASE]);
    let ask = Ask::new(WRITE, PAYLOAD_LEN, 0, 512).carrying(vec![1; 512]);
    assert_eq!(client.ask(&ask).error, Some(EINVAL));
    for command in [READ, BLOCK_STATUS, TRIM] {
        assert_eq!(client.ask(&Ask::new(command, PAYLOAD_LEN, 0, 512)).error, Some(EINVAL));
    }
    assert_eq!(client.read(0, 4), [0; 4]);
}

#[test]
fn a59_a_payload_chooses_among_the_contexts_that_were_agreed_on() {
    let (mut client, _session) = session(&memory());
    assert_eq!(client.flags & BLOCK_STATUS_PAYLOAD, BLOCK_STATUS_PAYLOAD);
    let id = client.contexts[0];
    let answer = client.ask(&selective(0, payload(SIZE, &[id])));
    assert_eq!((answer.error, answer.kinds), (None, vec![STATUS_EXT]));
    assert_eq!(answer.extents[&id], [(SIZE, 3)]);
    let one = Ask { flags: PAYLOAD_LEN | REQ_ONE, ..selective(5, payload(100, &[id])) };
    assert_eq!(client.ask(&one).extents[&id], [(100, 3)]);
}

#[test]
fn a59_payloads_that_name_other_contexts_are_taken_and_refused() {
    let (mut client, _session) = session(&memory());
    let id = client.contexts[0];
    let wrong = [
        payload(SIZE, &[id, id]),
        payload(SIZE, &[id + 1]),
        payload(SIZE, &[0]),
        payload(SIZE, &[u32::MAX]),
        payload(SIZE, &[]),
        payload(SIZE, &[id; 5000]),
        payload(0, &[id]),
        payload(SIZE + 1, &[id]),
        payload(u64::MAX, &[id]),
        payload(SIZE, &[id])[..11].to_vec(),
        payload(SIZE, &[id])[..7].to_vec(),
        Vec::new(),
    ];
    for payload in wrong {
        let length = payload.len();
        assert_eq!(client.ask(&selective(0, payload)).error, Some(EINVAL), "{length} bytes");
    }
    let odd = Ask { flags: PAYLOAD_LEN | DF, ..selective(0, payload(SIZE, &[id])) };
    assert_eq!(client.ask(&odd).error, Some(EINVAL));
    assert_eq!(client.ask(&selective(u64::MAX, payload(1, &[id]))).error, Some(EINVAL));
    assert_eq!(client.extents(0, 0, SIZE), [(SIZE, 3)], "in step");
}

#[test]
fn a59_a_payload_is_offered_only_with_contexts() {
    let (mut client, _session) = chunked_on(&memory(), info(), true, &[]);
    assert_eq!(client.flags & BLOCK_STATUS_PAYLOAD, 0);
    assert_eq!(client.ask(&selective(0, payload(512, &[1]))).error, Some(EINVAL));
    let (client, _session) = chunked_on(&memory(), info(), false, &[BASE]);
    assert_eq!(client.flags & BLOCK_STATUS_PAYLOAD, 0);
}

#[test]
fn a60_go_is_never_refused_for_want_of_extended_headers() {
    for agreed in [&[][..], &[8], &[11]] {
        let (mut client, _session) = greeted();
        agreed.iter().for_each(|option| assert_eq!(kind(&mut client, *option, b""), 1));
        assert_eq!(kind(&mut client, 7, &go_data(b"", &[])), 1);
    }
}
