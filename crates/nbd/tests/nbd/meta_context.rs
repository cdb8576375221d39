//! Points 62 to 68, 94 and 95 of the checklist: metadata contexts and block status.

use std::sync::Arc;

use sealblk_block::{ByteDevice, MemoryDevice};
use sealblk_nbd::negotiation::{Negotiation, TlsMode};
use sealblk_nbd::{Export, MetaContext, StatusExtent, UnusableContext};
use sealblk_testkit::nbd_client::{MODERN, go_data, option_bytes};

use crate::chunks::*;
use crate::numbers::{ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, LIST_META_CONTEXT, SET_META_CONTEXT};
use crate::support::*;

const BASE: &str = "base:allocation";
/// Memory is allocated in pages of this size.
const PAGE: u64 = 64 << 10;
const HOLE_AND_ZERO: u64 = 3;

/// A context for tests: bytes in even MiB are 1, those in odd MiB 0, but told in small pieces.
struct Stripes(&'static str);

impl MetaContext for Stripes {
    fn name(&self) -> &str {
        self.0
    }

    fn extents(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>) {
        let (mut at, end) = (offset, offset + length);
        while at < end && extents.len() < extents.capacity() {
            let to = (at / (256 << 10) + 1) * (256 << 10);
            extents.push(StatusExtent { bytes: to.min(end) - at, flags: u32::from((at >> 20) % 2 == 0) });
            at = to;
        }
    }
}

fn striped() -> sealblk_nbd::ExportInfo {
    info().with_context(Arc::new(Stripes("x-test:stripes"))).expect("a context")
}

/// A client that has agreed on structured replies and is still negotiating.
fn negotiating() -> (Client, Session) {
    let (mut client, session) = connect_to(&memory(), striped());
    client.greet(MODERN).expect("a greeting");
    assert_eq!(client.option(8, &[]).expect("an answer")[0].kind, 1);
    (client, session)
}

fn assert_error(client: &mut Client, option: u32, data: &[u8], kind: u32) {
    let replies = client.option(option, data).expect("an answer");
    assert_eq!((replies.len(), replies[0].kind), (1, kind), "{replies:?}");
    assert!(!replies[0].data.is_empty(), "an error has a text");
}

fn list(client: &mut Client, asked: &[&str]) -> Vec<String> {
    let told = contexts(&client.option(LIST_META_CONTEXT, &queries("", asked)).expect("an answer"));
    assert!(told.iter().all(|(id, _)| *id == 0), "ids are zero in a list");
    told.into_iter().map(|(_, name)| name).collect()
}

fn set(client: &mut Client, asked: &[&str]) -> Vec<(u32, String)> {
    contexts(&client.option(SET_META_CONTEXT, &queries(NAME, asked)).expect("an answer"))
}

/// Goes on to transmission; says whether BLOCK_STATUS is served there.
fn has_status(mut client: Client, name: &str) -> bool {
    let replies = client.option(7, &go_data(name.as_bytes(), &[])).expect("an answer");
    assert_eq!(replies.last().expect("a reply").kind, 1);
    let header = sealblk_testkit::nbd_client::RequestHeader { command: 7, length: 512, ..Default::default() };
    client.send_request(header, &[]).expect("sent");
    let kind = client.receive(20).expect("a chunk")[6..8].to_vec();
    assert!(kind == [0, 5] || kind == [0x80, 1], "{kind:?}");
    kind == [0, 5]
}

#[test]
fn a62_malformed_queries_are_invalid_and_counts_are_not_trusted() {
    let (mut client, _session) = negotiating();
    let good = queries(NAME, &[BASE]);
    let counted = |count: u32, rest: &[u8]| [&[0; 4][..], &count.to_be_bytes(), rest].concat();
    let nul = queries("", &["base:\0"]);
    let long = queries("", &[&"x".repeat(4097)]);
    let not_utf8 = counted(1, b"\0\0\0\x01\xff");
    for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
        for data in [
            &b""[..],
            b"\0\0\0",
            b"\xff\xff\xff\xff\0\0\0\0",
            &good[..good.len() - 1],
            &[&good[..], b"\0"].concat(),
            &counted(u32::MAX, b""),
            &counted(u32::MAX, &[0; 100_000]),
            &counted(0, b"\0\0\0\0"),
            &counted(1, b"\xff\xff\xff\xffbase:allocation"),
            &counted(1, b"\0\0\0\x10base:allocation"),
            &nul,
            &long,
            &not_utf8,
        ] {
            assert_error(&mut client, option, data, ERR_INVALID);
        }
        assert_error(&mut client, option, &vec![0; (256 << 10) + 1], ERR_TOO_BIG);
    }
    assert_eq!(list(&mut client, &[BASE]), [BASE], "in step");
}

#[test]
fn a63_list_tells_what_queries_mean_each_once() {
    let (mut client, _session) = negotiating();
    let all = [BASE, "x-test:stripes"];
    assert_eq!(list(&mut client, &[]), all);
    assert_eq!(list(&mut client, &["base:"]), [BASE]);
    assert_eq!(list(&mut client, &["x-test:", "base:", BASE, BASE]), all);
    assert_eq!(list(&mut client, &["x-test:stripes"]), ["x-test:stripes"]);
    for nothing in ["", ":", "base", "base:alloc", "qemu:", "x-test", "x-test:stripes:", "base:allocation "] {
        assert!(list(&mut client, &[nothing]).is_empty(), "{nothing:?}");
    }
    assert_error(&mut client, LIST_META_CONTEXT, &queries("nobody", &[]), ERR_UNKNOWN);
}

#[test]
fn a63_list_needs_no_structured_replies() {
    let (mut client, _session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    assert_eq!(list(&mut client, &[]), [BASE]);
}

#[test]
fn a64_set_selects_exact_names_once_with_unique_ids() {
    let (mut client, _session) = negotiating();
    assert_eq!(set(&mut client, &[]), []);
    assert_eq!(set(&mut client, &["base:", "base:other", "x-test:", "qemu:dirty-bitmap:a"]), []);
    let selected = set(&mut client, &["x-test:stripes", BASE, "base:", BASE, "x-test:stripes"]);
    let mut names: Vec<&str> = selected.iter().map(|(_, name)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [BASE, "x-test:stripes"]);
    assert_ne!(selected[0].0, selected[1].0);
}

#[test]
fn a64_set_needs_chunks() {
    let (mut client, _session) = connect(&memory());
    client.greet(MODERN).expect("a greeting");
    assert_error(&mut client, SET_META_CONTEXT, &queries("", &[BASE]), ERR_INVALID);
    // What failed has selected nothing, also for later.
    client.option(8, &[]).expect("an answer");
    assert!(!has_status(client, ""));
}

#[test]
fn a65_a_set_that_fails_leaves_no_context() {
    let failures = [
        (b"".to_vec(), ERR_INVALID),
        (queries("", &[&"x".repeat(4097)]), ERR_INVALID),
        (queries("nobody", &[BASE]), ERR_UNKNOWN),
        (vec![0; 300 << 10], ERR_TOO_BIG),
    ];
    for (data, error) in failures {
        let (mut client, _session) = negotiating();
        assert_eq!(set(&mut client, &[BASE]).len(), 1);
        assert_error(&mut client, SET_META_CONTEXT, &data, error);
        assert!(!has_status(client, ""), "after error {error:#x}");
    }
    let (mut client, _session) = negotiating();
    set(&mut client, &[BASE]);
    set(&mut client, &[]);
    assert!(!has_status(client, ""), "an empty selection replaces the one before");
}

#[test]
fn a66_contexts_belong_to_the_export_whatever_name_means_it() {
    for chosen in ["", NAME, ALIAS] {
        for used in ["", NAME, ALIAS] {
            let (mut client, _session) = negotiating();
            client.option(SET_META_CONTEXT, &queries(chosen, &[BASE])).expect("an answer");
            assert!(has_status(client, used), "{chosen:?} and {used:?}");
        }
    }
    let (mut client, _session) = negotiating();
    set(&mut client, &[BASE]);
    let replies = client.option(7, &go_data(b"another", &[])).expect("an answer");
    assert_eq!(replies[0].kind, ERR_UNKNOWN);
    assert!(has_status(client, NAME), "an export that is not here took nothing away");
}

#[test]
fn a67_many_queries_are_served_as_far_as_an_option_may_be_long() {
    let (mut client, _session) = negotiating();
    let mut many = vec!["q"; 20_000];
    many.push(BASE);
    assert_eq!(set(&mut client, &many).len(), 1);
    assert_eq!(list(&mut client, &many), [BASE]);
    // Nothing is kept of an option that is over.
    let export = Export::new(info(), sealblk_block::BlockDevice::geometry(&MemoryDevice::new(8)));
    let mut negotiation = Negotiation::new(&export, TlsMode::Off);
    negotiation.feed(&MODERN.to_be_bytes()).expect("flags");
    negotiation.feed(&option_bytes(LIST_META_CONTEXT, &queries("", &many))).expect("no violation");
    assert!(negotiation.replies().len() < 1000, "replies are as many as contexts, not as queries");
}

#[test]
fn a68_contexts_of_our_own_are_in_a_namespace_of_our_own() {
    for name in
        ["restored", "sealblk:restored", "base:restored", "x-:restored", "x-sealblk:", "x-sealblk", "x-a:\0"]
    {
        let refused = info().with_context(Arc::new(Stripes(name)));
        assert_eq!(refused.expect_err(name), UnusableContext::Name);
    }
    let refused = striped().with_context(Arc::new(Stripes("x-test:stripes")));
    assert_eq!(refused.expect_err("twice"), UnusableContext::Name);
    let names = ["x-a:1", "x-a:2", "x-a:3", "x-a:4", "x-a:5", "x-a:6", "x-a:7"];
    let mut full = info();
    for name in names {
        full = full.with_context(Arc::new(Stripes(name))).expect("there is room");
    }
    let refused = full.with_context(Arc::new(Stripes("x-a:8")));
    assert_eq!(refused.expect_err("one too many"), UnusableContext::TooMany);
}

#[test]
fn a94_block_status_is_invalid_where_it_was_not_agreed_on() {
    let (mut simple, _session) = transmitting(&memory());
    let header = sealblk_testkit::nbd_client::RequestHeader { command: 7, length: 512, ..Default::default() };
    assert_eq!(simple.request(header, &[]).expect("a reply"), Err(EINVAL));
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&memory(), info(), extended, &[]);
        assert_eq!(client.ask(&Ask::new(BLOCK_STATUS, 0, 0, 512)).error, Some(EINVAL));
        let (mut client, _session) = chunked_on(&memory(), info(), extended, &[BASE]);
        for (flags, offset, length) in
            [(0, SIZE, 1), (0, SIZE - 1, 2), (0, u64::MAX, 9), (DF, 0, 512), (1 << 14, 0, 512), (2, 0, 512)]
        {
            let answer = client.ask(&Ask::new(BLOCK_STATUS, flags, offset, length));
            assert_eq!(answer.error, Some(EINVAL), "{flags:#x} {offset}");
        }
    }
}

#[test]
fn a94_a95_extents_are_those_of_the_device_to_the_byte() {
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&memory(), info(), extended, &[BASE]);
        assert_eq!(client.extents(0, 0, SIZE), [(SIZE, HOLE_AND_ZERO)]);
        client.write(5 * PAGE + 100, b"data");
        client.write(6 * PAGE, b"data");
        let after = SIZE - 7 * PAGE;
        assert_eq!(
            client.extents(0, 0, SIZE),
            [(5 * PAGE, HOLE_AND_ZERO), (2 * PAGE, 0), (after, HOLE_AND_ZERO)]
        );
        assert_eq!(client.extents(0, 5 * PAGE - 1, 3), [(1, HOLE_AND_ZERO), (2, 0)]);
        assert_eq!(client.extents(0, 7 * PAGE - 1, 1), [(1, 0)]);
        // What is trimmed or zeroed is a hole again.
        client.ask(&Ask::new(TRIM, 0, 5 * PAGE, PAGE));
        client.ask(&Ask::new(WRITE_ZEROES, 0, 6 * PAGE, PAGE));
        assert_eq!(client.extents(0, 0, SIZE), [(SIZE, HOLE_AND_ZERO)]);
    }
}

#[test]
fn a94_req_one_gets_one_extent_inside_the_request() {
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&memory(), info(), extended, &[BASE]);
        for page in (0..SIZE / PAGE).step_by(2) {
            client.write(page * PAGE, b"x");
        }
        // After a large answer too: the room of it must not be filled again.
        assert_eq!(client.extents(0, 0, SIZE).len() as u64, SIZE / PAGE);
        assert_eq!(client.extents(REQ_ONE, 0, SIZE), [(PAGE, 0)]);
        assert_eq!(client.extents(REQ_ONE, PAGE, SIZE - PAGE), [(PAGE, HOLE_AND_ZERO)]);
        assert_eq!(client.extents(REQ_ONE, 0, 77), [(77, 0)]);
    }
}

#[test]
fn a94_every_context_that_was_chosen_gets_one_chunk() {
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&memory(), striped(), extended, &["x-test:stripes", BASE]);
        let kind = if extended { STATUS_EXT } else { STATUS };
        client.write(0, b"x");
        let answer = client.ask(&Ask::new(BLOCK_STATUS, 0, 1000, 3 << 20));
        assert_eq!(answer.kinds, [kind, kind]);
        let mut told: Vec<_> = answer.extents.into_values().collect();
        told.sort_unstable();
        let mib = 1 << 20;
        // Pieces of 256 KiB come as runs of equal status.
        let expected = [
            vec![(PAGE - 1000, 0), (3 * mib - (PAGE - 1000), HOLE_AND_ZERO)],
            vec![(mib - 1000, 1), (mib, 0), (mib, 1), (1000, 0)],
        ];
        assert_eq!(told, expected);
        let only = chunked_on(&memory(), striped(), extended, &["x-test:stripes"]);
        let (mut client, _session) = only;
        assert_eq!(client.extents(REQ_ONE, 0, SIZE), [(256 << 10, 1)]);
    }
}

#[test]
fn a94_a_fragmented_export_is_told_in_portions() {
    let size = 1024 * PAGE;
    let device = ByteDevice::new(MemoryDevice::new(size / 512));
    let (mut client, _session) = chunked_on(&device, info(), true, &[BASE]);
    for page in (0..1024).step_by(2) {
        client.write(page * PAGE, b"x");
    }
    let (mut at, mut seen) = (0, Vec::new());
    while at < size {
        let answer = client.ask(&Ask { cookie: at, ..Ask::new(BLOCK_STATUS, 0, at, size - at) });
        let extents = answer.extents.into_values().next().expect("one context");
        assert!(extents.len() <= 512);
        at += extents.iter().map(|(length, _)| length).sum::<u64>();
        seen.extend(extents);
    }
    let expected = (0..1024).map(|page| (PAGE, if page % 2 == 0 { 0 } else { HOLE_AND_ZERO }));
    assert!(seen.into_iter().eq(expected));
}

#[test]
fn a94_cve_2025_47711_cve_2025_47712_status_of_ranges_around_4_gib() {
    let size = 8_u64 << 30;
    let device = ByteDevice::new(MemoryDevice::new(size / 512));
    for extended in [false, true] {
        let (mut client, _session) = chunked_on(&device, info(), extended, &[BASE]);
        let limit = 1_u64 << 32;
        for length in [limit - 1, limit - 512, limit - 65_536, limit, limit + 1, size - 1, size] {
            for offset in [0, 1, 511, 512, 65_536] {
                if offset + length > size || (!extended && length >= limit) {
                    continue;
                }
                for flags in [0, REQ_ONE] {
                    let told = client.extents(flags, offset, length);
                    assert_eq!(told.len(), 1);
                    assert!(told[0].0 <= length && told[0].0 >= length.min(0xffff_0000), "{told:?}");
                }
            }
        }
    }
}
