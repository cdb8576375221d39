//! Any bytes at all: the parsers answer or refuse, and never panic (CVE-2017-7539 was an assertion on data that
//! nobody expected).

use proptest::prelude::*;
use sealblk_block::{BlockDevice, MemoryDevice};
use sealblk_nbd::negotiation::{Negotiation, Outcome, TlsMode};
use sealblk_nbd::request::{Arrival, MAX_STATUS_PAYLOAD_BYTES};
use sealblk_nbd::session::{Agreement, Dialect, Session};
use sealblk_nbd::{Export, context::ContextSet};
use sealblk_testkit::nbd_client::{go_data, option_bytes};

use crate::chunks::queries;
use crate::support::{NAME, SIZE, info};

fn export() -> Export {
    Export::new(info(), MemoryDevice::new(SIZE / 512).geometry())
}

/// Data of options: well formed, nearly so, and neither.
fn option_data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::sample::select(vec![
            vec![],
            go_data(NAME.as_bytes(), &[1, 2, 3]),
            go_data(b"", &[]),
            queries(NAME, &["base:allocation"]),
            queries("", &["base:", "x-"]),
            vec![0xff; 8],
        ]),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

/// A stream of options that are mostly in step; sometimes one is cut or has a byte changed.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let option = (prop_oneof![6 => 0..13_u32, 1 => any::<u32>()], option_data(), any::<u16>(), 0..12_u8);
    let option = option.prop_map(|(option, data, at, damage)| {
        let mut bytes = option_bytes(option, &data);
        let at = usize::from(at) % bytes.len();
        match damage {
            0 => bytes[at] ^= 0x41,
            1 => bytes.truncate(at),
            _ => {}
        }
        bytes
    });
    prop::collection::vec(option, 0..12).prop_map(|options| options.concat())
}

/// Reads replies to options; says how many were the last to their option.
fn final_replies(mut bytes: &[u8]) -> usize {
    let mut last = 0;
    while let Some((header, rest)) = bytes.split_at_checked(20) {
        assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let field = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (kind, length) = (field(12), field(16) as usize);
        assert!(kind >> 31 == 0 || (length > 0 && length <= 4096), "an error has a text");
        last += usize::from(kind == 1 || kind >> 31 == 1);
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty(), "a reply is whole");
    last
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn cve_2017_7539_options_of_any_bytes_get_one_last_reply_each(
        flags in prop_oneof![5 => Just(3_u32), 1 => any::<u32>()], stream in stream(), split in 1..64_usize,
        tls in prop::sample::select(vec![TlsMode::Off, TlsMode::Required]),
    ) {
        let export = export();
        let mut negotiation = Negotiation::new(&export, tls);
        negotiation.replies().clear();
        let bytes = [&flags.to_be_bytes()[..], &stream].concat();
        'stream: for piece in bytes.chunks(split) {
            let mut rest = piece;
            while !rest.is_empty() {
                let Ok(fed) = negotiation.feed(rest) else { break 'stream };
                prop_assert!(fed.consumed > 0, "it gets on");
                let exported = fed.ended == Some(Outcome::Transmission) && !negotiation.replies().starts_with(&[0, 3]);
                if !exported {
                    let answered = !negotiation.replies().is_empty();
                    prop_assert_eq!(final_replies(negotiation.replies()), usize::from(answered));
                }
                negotiation.replies().clear();
                match fed.ended {
                    Some(Outcome::StartTls) => negotiation.tls_established(),
                    Some(_) => break 'stream,
                    None => {}
                }
                rest = &rest[fed.consumed..];
            }
        }
    }

    #[test]
    fn headers_and_status_payloads_of_any_bytes_are_judged(
        magic in prop::sample::select(vec![0x2560_9513_u32, 0x21e4_1c71, 0]), bytes in any::<[u8; 28]>(),
        payload in prop::collection::vec(any::<u8>(), 0..=MAX_STATUS_PAYLOAD_BYTES), small in any::<bool>(),
    ) {
        let mut contexts = ContextSet::default();
        contexts.insert(0);
        for dialect in [Dialect::Simple, Dialect::Structured, Dialect::Extended] {
            let session = Session { export: export(), agreement: Agreement { dialect, contexts } };
            let mut header = [&magic.to_be_bytes()[..], &bytes].concat();
            if small {
                // A command and a length that mean something.
                header[6] = 0;
                header[7] %= 8;
                header[16..29].fill(0);
            }
            header.truncate(dialect.request_header_bytes());
            match Arrival::check(&header, &session) {
                Ok(Arrival::Request { payload_bytes, .. }) => prop_assert!(payload_bytes <= 32 << 20),
                Ok(Arrival::SelectiveStatus { payload_bytes, status, .. }) => {
                    prop_assert!(payload_bytes <= MAX_STATUS_PAYLOAD_BYTES);
                    let _ = status.complete(&payload, &session);
                }
                Ok(Arrival::Disconnect) | Err(_) => {}
            }
        }
    }
}
