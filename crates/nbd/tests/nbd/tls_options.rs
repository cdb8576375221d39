//! Points 37 to 45 of the checklist: what the negotiation does about TLS, without any. The handshake itself is
//! elsewhere.

use sealblk_block::{BlockDevice, MemoryDevice};
use sealblk_nbd::Export;
use sealblk_nbd::negotiation::{Negotiation, Outcome, TlsMode, Violation};
use sealblk_nbd::session::{Agreement, Dialect};
use sealblk_testkit::nbd_client::{MODERN, go_data, option_bytes};

use crate::chunks::queries;
use crate::numbers::{
    ABORT, ACK, ERR_INVALID, ERR_POLICY, ERR_SHUTDOWN, ERR_TLS_REQD, EXPORT_NAME, EXTENDED_HEADERS, GO, INFO,
    LIST, LIST_META_CONTEXT, SERVER, SET_META_CONTEXT, STARTTLS, STRUCTURED_REPLY,
};
use crate::support::{NAME, info};

fn export() -> Export {
    Export::new(info(), MemoryDevice::new(8).geometry())
}

/// A negotiation whose greeting is over.
fn greeted(export: &Export, tls: TlsMode) -> Negotiation<'_> {
    let mut negotiation = Negotiation::new(export, tls);
    negotiation.feed(&MODERN.to_be_bytes()).expect("flags");
    negotiation.replies().clear();
    negotiation
}

/// Feeds one option; the types of its replies, and how it ended.
fn option(negotiation: &mut Negotiation<'_>, option: u32, data: &[u8]) -> (Vec<u32>, Option<Outcome>) {
    let bytes = option_bytes(option, data);
    let fed = negotiation.feed(&bytes).expect("no violation");
    assert_eq!(fed.consumed, bytes.len(), "the whole option is consumed");
    let mut kinds = Vec::new();
    let mut replies = negotiation.replies().as_slice();
    while let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, i, j, k, l, rest @ ..] = replies {
        assert_eq!(u32::from_be_bytes([*a, *b, *c, *d]), option, "the option is echoed");
        kinds.push(u32::from_be_bytes([*e, *f, *g, *h]));
        replies = &rest[u32::from_be_bytes([*i, *j, *k, *l]) as usize..];
    }
    negotiation.replies().clear();
    (kinds, fed.ended)
}

fn start_tls(negotiation: &mut Negotiation<'_>) {
    assert_eq!(option(negotiation, STARTTLS, b""), (vec![ACK], Some(Outcome::StartTls)));
    negotiation.tls_established();
}

#[test]
fn a38_a42_an_address_has_tls_or_not_from_the_first_option_to_the_last() {
    // SELECTIVETLS is not spoken: with TLS the answer to a name that is here, to one that is not and to LIST is
    // the same, and without it none of them is refused for that.
    let export = export();
    let mut required = greeted(&export, TlsMode::Required);
    let mut off = greeted(&export, TlsMode::Off);
    for _ in 0..3 {
        for data in [go_data(NAME.as_bytes(), &[]), go_data(b"nobody", &[]), go_data(b"", &[])] {
            assert_eq!(option(&mut required, INFO, &data), (vec![ERR_TLS_REQD], None));
            assert!(!option(&mut off, INFO, &data).0.contains(&ERR_TLS_REQD));
        }
        assert_eq!(option(&mut required, LIST, b""), (vec![ERR_TLS_REQD], None));
    }
}

#[test]
fn a37_before_tls_nobody_learns_which_exports_there_are() {
    let export = export();
    let text = |name: &[u8]| {
        let mut negotiation = greeted(&export, TlsMode::Required);
        negotiation.feed(&option_bytes(GO, &go_data(name, &[]))).expect("no violation");
        negotiation.replies().clone()
    };
    assert_eq!(text(NAME.as_bytes()), text(b"nobody"));
    assert_eq!(text(NAME.as_bytes()), text(&[0xff; 3000]));
}

#[test]
fn a39_without_tls_starttls_is_a_matter_of_policy() {
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Off);
    assert_eq!(option(&mut negotiation, STARTTLS, b""), (vec![ERR_POLICY], None));
    for unknown in 0..64 {
        if !matches!(unknown, EXPORT_NAME | ABORT | GO) {
            assert!(!option(&mut negotiation, unknown, b"").0.contains(&ERR_TLS_REQD));
        }
    }
}

#[test]
fn a40_starttls_carries_no_data() {
    let export = export();
    for tls in [TlsMode::Off, TlsMode::Required] {
        let mut negotiation = greeted(&export, tls);
        for data in [&b"x"[..], &[0; 100_000]] {
            assert_eq!(option(&mut negotiation, STARTTLS, data), (vec![ERR_INVALID], None));
        }
    }
    let mut negotiation = greeted(&export, TlsMode::Required);
    start_tls(&mut negotiation);
}

#[test]
fn a41_before_tls_every_option_but_starttls_and_abort_is_refused_unseen() {
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Required);
    let options = [
        0,
        LIST,
        4,
        INFO,
        GO,
        STRUCTURED_REPLY,
        LIST_META_CONTEXT,
        SET_META_CONTEXT,
        EXTENDED_HEADERS,
        12,
        u32::MAX,
    ];
    for refused in options {
        for data in [&b""[..], b"\xff\xff\xff\xff", &go_data(b"", &[1, 2, 3]), &vec![0x49; 1 << 20]] {
            assert_eq!(option(&mut negotiation, refused, data), (vec![ERR_TLS_REQD], None), "{refused}");
        }
    }
    assert_eq!(option(&mut negotiation, ABORT, b""), (vec![ACK], Some(Outcome::Aborted)));
}

#[test]
fn a41_export_name_before_tls_ends_the_connection() {
    let export = export();
    for (flags, name) in [(MODERN, NAME), (MODERN, ""), (0, ""), (1, "nobody")] {
        let mut negotiation = Negotiation::new(&export, TlsMode::Required);
        negotiation.feed(&flags.to_be_bytes()).expect("flags");
        negotiation.replies().clear();
        let ended = negotiation.feed(&option_bytes(EXPORT_NAME, name.as_bytes()));
        assert_eq!(ended, Err(Violation::TlsRequired));
        assert!(negotiation.replies().is_empty());
    }
}

#[test]
fn a05_a_client_without_fixed_newstyle_gets_nothing_where_tls_is_required() {
    let export = export();
    let mut negotiation = Negotiation::new(&export, TlsMode::Required);
    negotiation.feed(&0_u32.to_be_bytes()).expect("flags");
    negotiation.replies().clear();
    for refused in [STARTTLS, GO, LIST] {
        assert_eq!(option(&mut negotiation, refused, b""), (vec![ERR_INVALID], None));
    }
}

#[test]
fn a22_abort_is_acknowledged_before_tls() {
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Required);
    assert_eq!(option(&mut negotiation, ABORT, b"goodbye"), (vec![ACK], Some(Outcome::Aborted)));
}

#[test]
fn a43_inside_tls_starttls_is_invalid_and_tls_is_not_demanded() {
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Required);
    start_tls(&mut negotiation);
    for _ in 0..2 {
        assert_eq!(option(&mut negotiation, STARTTLS, b""), (vec![ERR_INVALID], None));
    }
    assert_eq!(option(&mut negotiation, LIST, b"").0, [SERVER, SERVER, ACK]);
    let go = option(&mut negotiation, GO, &go_data(b"", &[]));
    assert_eq!((go.0.last(), go.1), (Some(&ACK), Some(Outcome::Transmission)));
}

#[test]
fn a44_cve_2021_3716_nothing_agreed_on_outside_tls_counts_inside() {
    // Outside, where TLS is required, nothing can be agreed on in the first place.
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Required);
    option(&mut negotiation, STRUCTURED_REPLY, b"");
    option(&mut negotiation, SET_META_CONTEXT, &queries("", &["base:allocation"]));
    start_tls(&mut negotiation);
    assert_eq!(negotiation.agreement(), Agreement::default());
    // Should it ever be agreed on, it is forgotten: the option is not refused as repeated.
    option(&mut negotiation, STRUCTURED_REPLY, b"");
    option(&mut negotiation, SET_META_CONTEXT, &queries("", &["base:allocation"]));
    assert_eq!(negotiation.agreement().dialect, Dialect::Structured);
    assert!(!negotiation.agreement().contexts.is_empty());
    negotiation.tls_established();
    assert_eq!(negotiation.agreement(), Agreement::default());
    assert_eq!(option(&mut negotiation, STRUCTURED_REPLY, b""), (vec![ACK], None));
}

#[test]
fn a45_bytes_behind_starttls_end_the_connection() {
    let export = export();
    for behind in [&b"\x16\x03\x01"[..], &option_bytes(STRUCTURED_REPLY, b""), b"I"] {
        let mut negotiation = greeted(&export, TlsMode::Required);
        let input = [&option_bytes(STARTTLS, b"")[..], behind].concat();
        let ended = negotiation.feed(&input);
        assert_eq!(ended, Err(Violation::PlaintextAfterStartTls(behind.len())));
    }
    // Where STARTTLS is refused it is an option like any other.
    let mut negotiation = greeted(&export, TlsMode::Off);
    let input = [option_bytes(STARTTLS, b""), option_bytes(LIST, b"")].concat();
    assert_eq!(negotiation.feed(&input).expect("no violation").consumed, 16);
}

#[test]
fn a14_a_server_that_stops_begins_no_tls() {
    let export = export();
    let mut negotiation = greeted(&export, TlsMode::Required);
    negotiation.shut_down();
    assert_eq!(option(&mut negotiation, STARTTLS, b""), (vec![ERR_SHUTDOWN], None));
    assert_eq!(option(&mut negotiation, ABORT, b"").1, Some(Outcome::Aborted));
}
