//! Points 13, 53 to 56 and 81 to 85 of the checklist: replies in chunks. What is true of every reply, such as that
//! a READ's chunks cover it exactly once, [`crate::chunks`] checks on every reply.

use std::io;

use sealblk_block::{BlockError, ByteDevice, Lba, MemoryDevice, Operation};
use sealblk_testkit::nbd_client::{MODERN, go_data};

use crate::chunks::*;
use crate::gated::{Gate, GatedDevice};
use crate::numbers::{EXTENDED_HEADERS, LIST, STRUCTURED_REPLY};
use crate::support::*;

/// A session with chunks, with compact or extended headers, and `base:allocation`.
fn session(extended: bool) -> (ChunkClient, Session) {
    chunked_on(&memory(), info(), extended, &["base:allocation"])
}

/// The export's flags as INFO tells them.
fn flags(client: &mut Client) -> u16 {
    let replies = client.option(6, &go_data(b"", &[])).expect("an answer");
    let export = replies.iter().find(|reply| reply.kind == 3 && reply.data.starts_with(&[0, 0]));
    let data = &export.expect("INFO_EXPORT").data;
    u16::from_be_bytes([data[10], data[11]])
}

#[test]
fn a53_structured_replies_are_agreed_on_without_data() {
    let (mut client, _session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    let refused = client.option(STRUCTURED_REPLY, b"x").expect("an answer");
    assert_eq!(refused[0].kind, (1 << 31) + 3);
    let agreed = client.option(STRUCTURED_REPLY, b"").expect("an answer");
    assert_eq!((agreed.len(), agreed[0].kind, agreed[0].data.len()), (1, 1, 0));
}

#[test]
fn a13_what_was_agreed_on_is_not_agreed_on_twice() {
    for option in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
        let (mut client, _session) = connect(&memory());
        client.greet(MODERN).expect("a greeting");
        assert_eq!(client.option(option, b"").expect("an answer")[0].kind, 1);
        assert_eq!(client.option(option, b"").expect("an answer")[0].kind, (1 << 31) + 3);
        let names_and_ack = 3;
        assert_eq!(client.option(LIST, b"").expect("in step").len(), names_and_ack);
    }
}

#[test]
fn a54_a_read_is_answered_with_chunks_even_when_it_is_refused() {
    for extended in [false, true] {
        let (mut client, _session) = session(extended);
        for (flags, offset, length) in
            [(1 << 15, 0, 512), (0, SIZE, 1), (0, u64::MAX, 4096), (0, 0, MOST_PAYLOAD + 1), (REQ_ONE, 0, 1)]
        {
            let answer = client.ask(&Ask::new(READ, flags, offset, length));
            assert_eq!((answer.error, answer.kinds), (Some(EINVAL), vec![ERROR]), "{flags:#x} {offset}");
        }
        assert_eq!(client.read(SIZE - 3, 3), [0; 3]);
    }
}

#[test]
fn a54_errors_come_with_a_text_that_names_no_machine() {
    let gate = Gate::default();
    let device = ByteDevice::new(GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() });
    gate.fail_with(Some(|| BlockError::Io {
        operation: Operation::Read,
        at: Lba(0),
        source: io::Error::other("/a/path/of/this/machine"),
    }));
    let (mut client, _session) = chunked_on(&device, info(), false, &[]);
    client.send(&Ask::new(READ, 0, 0, 512));
    let header = client.client.receive(20).expect("a chunk");
    let length = u32::from_be_bytes(header[16..20].try_into().expect("four bytes"));
    let text = client.client.receive(length as usize).expect("an error");
    let text = String::from_utf8(text[6..].to_vec()).expect("UTF-8");
    assert!(text.contains("store") && !text.contains('/'), "{text}");
}

#[test]
fn a55_without_the_option_replies_are_simple() {
    let (mut client, _session) = transmitting(&memory());
    assert_eq!(client.read(0, 512).expect("a simple reply"), Ok(vec![0; 512]));
    assert_eq!(client.read(SIZE, 1).expect("a simple reply"), Err(EINVAL));
}

#[test]
fn a56_a70_df_is_offered_exactly_with_chunks() {
    const SEND_DF: u16 = 1 << 7;
    let (mut client, _session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    assert_eq!(flags(&mut client) & SEND_DF, 0);
    client.option(STRUCTURED_REPLY, b"").expect("an answer");
    assert_eq!(flags(&mut client) & SEND_DF, SEND_DF);
    for extended in [false, true] {
        let (client, _session) = chunked_on(&memory(), info(), extended, &[]);
        assert_eq!(client.flags & SEND_DF, SEND_DF);
    }
    // And the flag is refused where it was not offered.
    let (mut client, _session) = transmitting(&memory());
    let header = sealblk_testkit::nbd_client::RequestHeader { flags: DF, length: 8, ..Default::default() };
    assert_eq!(client.request(header, &[]).expect("a reply"), Err(EINVAL));
}

#[test]
fn a81_commands_that_return_nothing_get_one_chunk_without_content() {
    for extended in [false, true] {
        let (mut client, _session) = session(extended);
        assert_eq!(client.write(0, b"data").kinds, [NONE]);
        for command in [FLUSH, TRIM, CACHE, WRITE_ZEROES] {
            let length = if command == FLUSH { 0 } else { 4096 };
            let answer = client.ask(&Ask::new(command, 0, 0, length));
            assert_eq!((answer.error, answer.kinds), (None, vec![NONE]), "command {command}");
        }
    }
}

#[test]
fn a76_a81_requests_of_zero_bytes_get_a_chunk_without_content() {
    for extended in [false, true] {
        let (mut client, _session) = session(extended);
        for command in [READ, TRIM, CACHE, WRITE_ZEROES] {
            for offset in [0, 1, SIZE] {
                assert_eq!(client.ask(&Ask::new(command, 0, offset, 0)).kinds, [NONE]);
            }
        }
        assert_eq!(client.write(SIZE, b"").kinds, [NONE]);
        assert_eq!(client.ask(&Ask::new(BLOCK_STATUS, 0, 0, 0)).error, Some(EINVAL));
    }
}

#[test]
fn a82_a_read_gives_the_bytes_that_are_there() {
    for extended in [false, true] {
        let (mut client, _session) = session(extended);
        let data: Vec<u8> = (0..70_000_u32).map(|index| index.to_le_bytes()[1] | 1).collect();
        assert_eq!(client.write(1001, &data).error, None);
        assert_eq!(client.read(1001, 70_000), data);
        let around = client.read(0, 100_000);
        assert!(around[..1001].iter().chain(&around[71_001..]).all(|byte| *byte == 0));
        assert_eq!(around[1001..71_001], data);
    }
}

#[test]
fn a83_df_gets_one_content_chunk_up_to_the_largest_payload() {
    let device = ByteDevice::new(MemoryDevice::new((64 << 20) / 512));
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&device, info(), extended, &[]);
        client.write(300_000, b"in the middle of zeros");
        for length in [65_536, 1 << 20, MOST_PAYLOAD] {
            let answer = client.ask(&Ask::new(READ, DF, 0, length));
            assert_eq!((answer.error, answer.kinds.len()), (None, 1), "{length}");
        }
        // A range with data and holes in it is data as a whole.
        assert_eq!(client.ask(&Ask::new(READ, DF, 0, 1 << 20)).kinds, [OFFSET_DATA]);
        assert_eq!(client.ask(&Ask::new(READ, DF, 1 << 20, 1 << 20)).kinds, [OFFSET_HOLE]);
    }
}

#[test]
fn a84_zeros_are_sent_as_a_hole_and_anything_else_as_data() {
    for extended in [false, true] {
        let (mut client, _session) = session(extended);
        assert_eq!(client.ask(&Ask::new(READ, 0, 0, SIZE)).kinds, [OFFSET_HOLE]);
        assert_eq!(client.ask(&Ask::new(READ, 0, SIZE - 1, 1)).kinds, [OFFSET_HOLE]);
        // One byte that is not zero, anywhere, makes all of it data.
        for at in [0, 1, 255, 256, 4095, 8190] {
            client.write(at, b"\x01");
            assert_eq!(client.ask(&Ask::new(READ, 0, 0, 8191)).kinds, [OFFSET_DATA], "at {at}");
            client.write(at, b"\x00");
        }
        assert_eq!(client.ask(&Ask::new(READ, 0, 0, 8191)).kinds, [OFFSET_HOLE]);
    }
}

#[test]
fn a85_a_read_that_fails_sends_no_content() {
    let gate = Gate::default();
    let device = ByteDevice::new(GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() });
    let failure: fn() -> BlockError = || BlockError::Latched { operation: Operation::Read };
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&device, info(), extended, &[]);
        client.write(0, &[0xcc; 4096]);
        gate.fail_with(Some(failure));
        let answer = client.ask(&Ask::new(READ, 0, 0, 4096));
        assert_eq!((answer.error, answer.kinds), (Some(EIO), vec![ERROR]));
        gate.fail_with(None);
        assert_eq!(client.read(0, 4096), [0xcc; 4096]);
    }
    // In a simple reply the error stands where success would: no success is taken back, and no connection ended.
    let (mut client, _session) = transmitting(&device);
    gate.fail_with(Some(failure));
    assert_eq!(client.read(0, 4096).expect("a reply"), Err(EIO));
    gate.fail_with(None);
    assert_eq!(client.read(0, 4096).expect("in step"), Ok(vec![0xcc; 4096]));
}

#[test]
fn a71_chunks_of_different_requests_come_in_any_order_and_each_reply_is_whole() {
    let gate = Gate::default();
    let device = ByteDevice::new(GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() });
    let (mut client, _session) = chunked_on(&device, info(), false, &["base:allocation"]);
    gate.close_from(1000);
    let slow = Ask { cookie: 1, ..Ask::new(READ, 0, 1000 * 512, 512) };
    let quick = Ask { cookie: 2, ..Ask::new(BLOCK_STATUS, 0, 0, SIZE) };
    client.send(&slow);
    client.send(&quick);
    assert_eq!(client.answer(&quick).error, None);
    gate.open();
    assert_eq!(client.answer(&slow).content, [0; 512]);
}

#[test]
fn a98_eoverflow_is_never_needed_and_enotsup_is_for_fast_zero() {
    let gate = Gate::default();
    let device = ByteDevice::new(GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() });
    gate.fail_with(Some(|| BlockError::Unsupported { operation: Operation::Zero }));
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&device, info(), extended, &[]);
        assert_eq!(client.ask(&Ask::new(WRITE_ZEROES, 16, 0, 512)).error, Some(ENOTSUP));
        assert_eq!(client.ask(&Ask::new(WRITE_ZEROES, 0, 0, 512)).error, Some(EINVAL));
        assert_eq!(client.ask(&Ask::new(READ, DF, 0, MOST_PAYLOAD + 1)).error, Some(EINVAL));
    }
}
