//! Points 69 to 99 of the checklist: requests and replies.

use std::io;

use sealblk_block::{BlockError, ByteDevice, Lba, MemoryDevice, Operation};
use sealblk_nbd::{ConnectionError, request};
use sealblk_testkit::nbd_client::RequestHeader;

use crate::gated::{Gate, GatedDevice};
use crate::support::*;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const FAST_ZERO: u16 = 16;
const ALL_COMMANDS: [u16; 6] = [READ, WRITE, FLUSH, TRIM, CACHE, WRITE_ZEROES];

fn request(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
    RequestHeader { command, flags, offset, length, cookie: 0x0102_0304_0506_0708 }
}

/// Sends a request, with a payload if the command has one; returns its outcome.
fn ask(client: &mut Client, header: RequestHeader) -> Result<Vec<u8>, u32> {
    let payload = if header.command == WRITE { vec![0x5a; header.length as usize] } else { Vec::new() };
    client.request(header, &payload).expect("a reply")
}

fn gated() -> (ByteDevice<GatedDevice>, Gate) {
    let gate = Gate::default();
    let device = GatedDevice { memory: MemoryDevice::new(SIZE / 512), gate: gate.clone() };
    (ByteDevice::new(device), gate)
}

#[test]
fn a69_bad_magic_ends_the_connection_after_the_accepted_requests() {
    let (mut client, session) = transmitting(&memory());
    let garbage = [0x42; 28];
    client.send(&[request(READ, 0, 0, 4).to_bytes(), garbage.to_vec()].concat()).expect("sent");
    assert_eq!(client.reply().expect("a reply").1, 0);
    assert_eq!(client.receive_rest().expect("the end"), [0; 4]);
    drop(client);
    assert!(matches!(session.end(), Err(ConnectionError::Request(request::Violation::Magic(0x4242_4242)))));
}

#[test]
fn a69_cookies_come_back_unchanged_and_may_repeat() {
    let (mut client, _session) = transmitting(&memory());
    for cookie in [0, u64::MAX, 7, 7, 7] {
        client.send_request(RequestHeader { cookie, ..request(FLUSH, 0, 0, 0) }, &[]).expect("sent");
        assert_eq!(client.reply().expect("a reply"), (cookie, 0));
    }
}

#[test]
fn a70_flags_say_what_is_supported() {
    let (mut client, _session) = connect(&memory());
    let always = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
    assert_eq!(client.go("").expect("GO is answered").flags, always);
    let read_only = ByteDevice::new(MemoryDevice::new(8).with_read_only());
    let (mut client, _session) = connect(&read_only);
    assert_eq!(client.go("").expect("GO is answered").flags, always | 1 << 1);
}

#[test]
fn a71_a_slow_request_does_not_hold_up_later_ones() {
    let (device, gate) = gated();
    let (mut client, _session) = transmitting(&device);
    gate.close_from(1000);
    for cookie in 0..8 {
        let offset = if cookie < 4 { 1000 * 512 } else { 0 };
        client.send_request(RequestHeader { cookie, ..request(READ, 0, offset, 512) }, &[]).expect("sent");
    }
    for cookie in 4..8 {
        assert_eq!(client.reply().expect("a reply"), (cookie, 0));
        client.receive(512).expect("data");
    }
    gate.open();
    let mut late: Vec<u64> = Vec::new();
    for _ in 0..4 {
        late.push(client.reply().expect("a reply").0);
        client.receive(512).expect("data");
    }
    late.sort_unstable();
    assert_eq!(late, [0, 1, 2, 3]);
}

#[test]
fn a72_payload_is_consumed_whatever_the_error() {
    let read_only = ByteDevice::new(MemoryDevice::new(SIZE / 512).with_read_only());
    let cases = [
        (memory(), request(WRITE, 0, SIZE, 100_000), ENOSPC),
        (memory(), request(WRITE, 0, u64::MAX, 4096), ENOSPC),
        (memory(), request(WRITE, NO_HOLE, 0, 70_000), EINVAL),
        (memory(), request(WRITE, 1 << 15, 0, 1), EINVAL),
        (read_only, request(WRITE, 0, 0, 4096), EPERM),
    ];
    for (device, header, error) in cases {
        let (mut client, _session) = transmitting(&device);
        assert_eq!(ask(&mut client, header), Err(error), "{header:?}");
        assert_eq!(client.read(0, 16).expect("still in step"), Ok(vec![0; 16]));
    }
}

#[test]
fn a73_payloads_up_to_32_mib_are_taken_and_larger_ones_end_the_connection() {
    let device = ByteDevice::new(MemoryDevice::new((64 << 20) / 512));
    let (mut client, session) = transmitting(&device);
    assert_eq!(ask(&mut client, request(WRITE, 0, 0, 32 << 20)), Ok(Vec::new()));
    assert_eq!(client.read((32 << 20) - 2, 4).expect("a reply"), Ok(vec![0x5a, 0x5a, 0, 0]));
    client.send(&request(WRITE, 0, 0, (32 << 20) + 1).to_bytes()).expect("sent");
    assert_eq!(client.receive_rest().expect("the end"), b"");
    drop(client);
    let ended = session.end();
    assert!(
        matches!(ended, Err(ConnectionError::Request(request::Violation::PayloadLength(_)))),
        "{ended:?}"
    );
}

#[test]
fn a74_reads_longer_than_the_advertised_maximum_are_invalid() {
    let device = ByteDevice::new(MemoryDevice::new((64 << 20) / 512));
    let (mut client, _session) = transmitting(&device);
    assert_eq!(ask(&mut client, request(READ, 0, 0, (32 << 20) + 1)), Err(EINVAL));
    assert_eq!(ask(&mut client, request(READ, 0, 0, u32::MAX)), Err(EINVAL));
    assert_eq!(ask(&mut client, request(READ, 0, 5, 32 << 20)).expect("data").len(), 32 << 20);
}

#[test]
fn a75_commands_without_payload_take_ranges_of_any_length() {
    let size = 3_u64 << 30;
    let device = ByteDevice::new(MemoryDevice::new(size / 512));
    let (mut client, _session) = transmitting(&device);
    client.write(size - 4, b"tail").expect("a reply").expect("written");
    let all = u32::try_from(size).expect("below 4 GiB");
    for command in [TRIM, CACHE, WRITE_ZEROES] {
        assert_eq!(ask(&mut client, request(command, 0, 0, all)), Ok(Vec::new()), "command {command}");
    }
    assert_eq!(client.read(size - 4, 4).expect("a reply"), Ok(vec![0; 4]));
}

#[test]
fn a76_requests_of_zero_bytes_succeed() {
    let (mut client, _session) = transmitting(&memory());
    for command in [READ, WRITE, TRIM, WRITE_ZEROES, CACHE] {
        for offset in [0, 1, SIZE] {
            assert_eq!(ask(&mut client, request(command, 0, offset, 0)), Ok(Vec::new()));
        }
    }
}

#[test]
fn a77_a86_a87_a90_a91_a92_ranges_outside_the_export_are_refused() {
    let (mut client, _session) = transmitting(&memory());
    let ranges = [
        (SIZE, 1),
        (SIZE - 1, 2),
        (SIZE + 1, 0),
        (u64::MAX, 1),
        (u64::MAX, 4096),
        (u64::MAX - 511, 512),
        (1 << 63, 8),
    ];
    for (offset, length) in ranges {
        for (command, error) in
            [(READ, EINVAL), (WRITE, ENOSPC), (TRIM, EINVAL), (CACHE, EINVAL), (WRITE_ZEROES, ENOSPC)]
        {
            assert_eq!(
                ask(&mut client, request(command, 0, offset, length)),
                Err(error),
                "{command} {offset}"
            );
        }
    }
    assert_eq!(ask(&mut client, request(READ, 0, SIZE - 1, 1)), Ok(vec![0]));
    assert_eq!(ask(&mut client, request(TRIM, 0, 0, u32::MAX)), Err(EINVAL));
    assert_eq!(ask(&mut client, request(WRITE_ZEROES, 0, 1, u32::MAX)), Err(ENOSPC));
}

#[test]
fn a78_a94_a96_unknown_commands_are_invalid_and_have_no_payload() {
    let (mut client, _session) = transmitting(&memory());
    for command in [7, 8, 9, 100, 0xffff] {
        assert_eq!(ask(&mut client, request(command, 0, 0, 4096)), Err(EINVAL));
    }
    assert_eq!(client.read(0, 1).expect("still in step"), Ok(vec![0]));
}

#[test]
fn a79_fua_is_accepted_on_every_command() {
    let (mut client, _session) = transmitting(&memory());
    for command in ALL_COMMANDS {
        let length = if command == FLUSH { 0 } else { 512 };
        let expected = if command == READ { vec![0; 512] } else { Vec::new() };
        assert_eq!(ask(&mut client, request(command, FUA, 0, length)), Ok(expected));
        if command == WRITE {
            assert_eq!(ask(&mut client, request(WRITE_ZEROES, FUA, 0, 512)), Ok(Vec::new()));
        }
    }
}

#[test]
fn a80_flags_belong_to_their_commands() {
    let (mut client, _session) = transmitting(&memory());
    for command in ALL_COMMANDS {
        for bit in 1..16 {
            let flag = 1_u16 << bit;
            if command == WRITE_ZEROES && (flag == NO_HOLE || flag == FAST_ZERO) {
                continue;
            }
            let length = if command == FLUSH { 0 } else { 512 };
            assert_eq!(
                ask(&mut client, request(command, flag, 0, length)),
                Err(EINVAL),
                "{command} {flag:#x}"
            );
        }
    }
}

#[test]
fn a86_every_byte_range_is_served() {
    let (mut client, _session) =
        transmitting(&ByteDevice::new(MemoryDevice::new(SIZE / 512).with_unit(4096)));
    let data: Vec<u8> = (0..9000_u32).map(|index| index.to_le_bytes()[0] | 1).collect();
    for offset in [0, 1, 511, 512, 4095, 4097, SIZE - 9000] {
        client.write(offset, &data).expect("a reply").expect("written");
        assert_eq!(client.read(offset, 9000).expect("a reply").expect("data"), data);
        assert_eq!(client.read(offset + 7, 3).expect("a reply").expect("data"), data[7..10]);
    }
}

#[test]
fn a87_a90_a92_a_read_only_export_refuses_changes() {
    let (mut client, _session) =
        transmitting(&ByteDevice::new(MemoryDevice::new(SIZE / 512).with_read_only()));
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        for (offset, length) in [(0, 512), (0, 0), (SIZE, 512)] {
            assert_eq!(ask(&mut client, request(command, 0, offset, length)), Err(EPERM));
        }
    }
    assert_eq!(ask(&mut client, request(FLUSH, 0, 0, 0)), Ok(Vec::new()));
    assert_eq!(ask(&mut client, request(CACHE, 0, 0, 512)), Ok(Vec::new()));
}

#[test]
fn a87_fua_makes_the_write_that_carries_it_durable_and_no_other() {
    let (device, gate) = gated();
    let (mut client, _session) = transmitting(&device);
    for (number, command) in (1..).zip([WRITE, WRITE_ZEROES, TRIM]) {
        assert_eq!(ask(&mut client, request(command, 0, 0, 4096)), Ok(Vec::new()));
        assert_eq!(gate.durable(), number - 1);
        assert_eq!(ask(&mut client, request(command, FUA, 0, 4096)), Ok(Vec::new()));
        assert_eq!(gate.durable(), number);
    }
    // Of a range that is not whole sectors, each part.
    assert_eq!(ask(&mut client, request(WRITE, FUA, 100, 3000)), Ok(Vec::new()));
    assert!(gate.durable() > 3);
    assert_eq!(ask(&mut client, request(READ, FUA, 0, 4096)).expect("data").len(), 4096);
}

#[test]
fn a93_fast_zeroing_that_is_not_fast_fails_at_once_and_changes_nothing() {
    let (device, gate) = gated();
    gate.zero_slowly();
    let (mut client, _session) = transmitting(&device);
    client.write(0, &[0xee; 20_000]).expect("a reply").expect("written");
    for (offset, length) in [(0, 4096), (100, 19_000), (1, 1), (511, 2), (512, 512), (0, 20_000)] {
        for flags in [FAST_ZERO, FAST_ZERO | NO_HOLE, FAST_ZERO | FUA] {
            assert_eq!(ask(&mut client, request(WRITE_ZEROES, flags, offset, length)), Err(ENOTSUP));
        }
    }
    assert_eq!(client.read(0, 20_000).expect("a reply"), Ok(vec![0xee; 20_000]));
    assert_eq!(ask(&mut client, request(WRITE_ZEROES, 0, 100, 19_000)), Ok(Vec::new()));
    let seen = client.read(0, 20_000).expect("a reply").expect("data");
    assert!(seen[100..19_100].iter().all(|byte| *byte == 0));
}

#[test]
fn a89_flush_reaches_the_device_and_has_no_range() {
    let (device, gate) = gated();
    let (mut client, _session) = transmitting(&device);
    assert_eq!(client.flush().expect("a reply"), Ok(()));
    assert_eq!(gate.flushes(), 1);
    assert_eq!(ask(&mut client, request(FLUSH, 0, 0, 512)), Err(EINVAL));
    assert_eq!(ask(&mut client, request(FLUSH, 0, 512, 0)), Err(EINVAL));
    assert_eq!(gate.flushes(), 1);
}

#[test]
fn a92_a93_zeroed_ranges_read_as_zeros_in_every_mode() {
    let (mut client, _session) = transmitting(&memory());
    for flags in [0, NO_HOLE, FAST_ZERO, NO_HOLE | FAST_ZERO, FUA | NO_HOLE] {
        client.write(0, &[0xee; 20_000]).expect("a reply").expect("written");
        assert_eq!(ask(&mut client, request(WRITE_ZEROES, flags, 100, 19_000)), Ok(Vec::new()));
        let seen = client.read(0, 20_000).expect("a reply").expect("data");
        assert!(seen[..100].iter().chain(&seen[19_100..]).all(|byte| *byte == 0xee));
        assert!(seen[100..19_100].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a90_a_trim_of_areas_never_written_succeeds() {
    let (mut client, _session) = transmitting(&memory());
    let all = u32::try_from(SIZE).expect("small");
    assert_eq!(ask(&mut client, request(TRIM, 0, 0, all)), Ok(Vec::new()));
    assert_eq!(ask(&mut client, request(TRIM, 0, 3, 1000)), Ok(Vec::new()));
    assert_eq!(client.read(0, 4096).expect("a reply"), Ok(vec![0; 4096]));
}

#[test]
fn a97_a98_errors_of_the_store_become_numbers_of_the_protocol() {
    let (device, gate) = gated();
    let (mut client, _session) = transmitting(&device);
    let io_error = || BlockError::Io {
        operation: Operation::Read,
        at: Lba(0),
        source: io::Error::from_raw_os_error(116),
    };
    let cases: [(fn() -> BlockError, u32); 5] = [
        (io_error, EIO),
        (|| BlockError::NoSpace { operation: Operation::Write, at: Lba(0) }, ENOSPC),
        (|| BlockError::ReadOnly { operation: Operation::Write }, EPERM),
        (|| BlockError::Latched { operation: Operation::Flush }, EIO),
        (|| BlockError::Unsupported { operation: Operation::Zero }, EINVAL),
    ];
    for (failure, error) in cases {
        gate.fail_with(Some(failure));
        for command in [READ, WRITE, FLUSH, TRIM, WRITE_ZEROES] {
            let length = if command == FLUSH { 0 } else { 4096 };
            assert_eq!(ask(&mut client, request(command, 0, 0, length)), Err(error), "command {command}");
        }
    }
    // ENOTSUP is an answer to FAST_ZERO and to nothing else: the last failure above is still set.
    for flags in [FAST_ZERO, FAST_ZERO | NO_HOLE] {
        assert_eq!(ask(&mut client, request(WRITE_ZEROES, flags, 0, 4096)), Err(ENOTSUP));
    }
    gate.fail_with(None);
    assert_eq!(client.read(0, 4).expect("still in step"), Ok(vec![0; 4]));
}

#[test]
fn a100_nothing_but_a_violation_ends_the_connection() {
    let (mut client, session) = transmitting(&memory());
    for command in (0..40).filter(|command| *command != 2) {
        for flags in [0, 1, 0xffff, 1 << 15] {
            for (offset, length) in [(0, 0), (0, 1), (SIZE, 1), (u64::MAX, 512), (7, 60_000)] {
                let _ = ask(&mut client, request(command, flags, offset, length));
            }
        }
    }
    assert!(client.read(0, 1).expect("a reply").is_ok());
    client.disconnect().expect("sent");
    drop(client);
    assert!(session.end().is_ok());
}

#[test]
fn a99_connections_see_one_device() {
    let (device, gate) = gated();
    let (mut a, _session_a) = transmitting(&device);
    let (mut b, _session_b) = transmitting(&device);
    let (mut c, _session_c) = transmitting(&device);
    for round in 0..50_u8 {
        a.write(u64::from(round) * 100, &[round + 1; 100]).expect("a reply").expect("written");
        b.flush().expect("a reply").expect("flushed");
        assert_eq!(c.read(u64::from(round) * 100, 100).expect("a reply"), Ok(vec![round + 1; 100]));
    }
    assert_eq!(gate.flushes(), 50);
}
