//! The negotiation as the protocol's text has it: a model that is told whole options and says what may be answered.
//!
//! Written from the conformance checklist (A.2 to A.9) alone, without a look at the server's code. Where the text
//! leaves a choice, the model allows each of its branches.

use std::collections::BTreeSet;

use super::bytes::Bytes;
use super::exports::{ALIAS, CONTEXTS, NAME};

pub(crate) const UNSUPPORTED: u32 = 0x8000_0001;
pub(crate) const POLICY: u32 = 0x8000_0002;
pub(crate) const INVALID: u32 = 0x8000_0003;
pub(crate) const TLS_REQUIRED: u32 = 0x8000_0005;
pub(crate) const UNKNOWN: u32 = 0x8000_0006;
pub(crate) const TOO_BIG: u32 = 0x8000_0009;
pub(crate) const EXTENDED_REQUIRED: u32 = 0x8000_000a;

const LARGEST_READ: u32 = 256 << 10;
const LARGEST_DRAINED: u32 = 1 << 20;
const LONGEST_STRING: usize = 4096;

/// TLS on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tls {
    Off,
    /// Required, and not there yet.
    Before,
    Inside,
}

/// Framing that was agreed on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(crate) enum Framing {
    Simple,
    Structured,
    Extended,
}

/// What a server may do with an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Expected {
    /// One error, of one of these types; the negotiation goes on.
    Refused(Vec<u32>),
    /// The end of the connection, without a byte.
    Closed,
    /// Either of both.
    RefusedOrClosed,
    /// ACK.
    Acked,
    /// ACK; then the connection ends.
    Aborted,
    /// ACK; then TLS begins.
    StartTls,
    /// The export's name, then ACK.
    Listed,
    /// What is asked for of the export, then ACK; after GO the client is in transmission.
    Informed { asked: BTreeSet<u16>, go: bool },
    /// Exactly these metadata contexts, then ACK; with ids of their own if they were set.
    Contexts { names: Vec<&'static str>, set: bool },
    /// The answer to EXPORT_NAME, and transmission.
    Exported { padded: bool },
}

/// A client's standing.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) tls: Tls,
    pub(crate) framing: Framing,
    pub(crate) contexts: Vec<&'static str>,
    client_flags: u32,
}

impl Model {
    pub(crate) fn new(tls: Tls) -> Self {
        Self { tls, framing: Framing::Simple, contexts: Vec::new(), client_flags: 0 }
    }

    /// The client's flags; says whether the connection lives on (4).
    pub(crate) fn client_flags(&mut self, flags: u32) -> bool {
        self.client_flags = flags;
        flags & !3 == 0
    }

    /// Whether the announced length alone may end the connection (12, 19).
    pub(crate) fn too_long(option: u32, length: u32) -> bool {
        length > LARGEST_DRAINED || option == 1 && length as usize > LONGEST_STRING
    }

    /// Whether an option ends the connection whatever its data, so that nobody has to wait for that (5, 20, 41).
    pub(crate) fn is_hopeless(&self, option: u32) -> bool {
        let hopeless_name = self.tls == Tls::Before || self.framing == Framing::Extended;
        if option == 1 { hopeless_name } else { self.client_flags & 1 == 0 && option != 2 }
    }

    /// A whole option (A.2 to A.9).
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Expected {
        // An old client knows no option but EXPORT_NAME, and no TLS (5); ABORT harms nobody (22).
        if self.client_flags & 1 == 0 && !matches!(option, 1 | 2) {
            return Expected::RefusedOrClosed;
        }
        match (option, self.tls) {
            (2, _) => Expected::Aborted,
            (5, Tls::Before) if data.is_empty() => self.start_tls(),
            (5, Tls::Before) => refused(&[INVALID, TOO_BIG]),
            (1, Tls::Before) => Expected::Closed,
            (_, Tls::Before) => refused(&[TLS_REQUIRED]),
            (1, _) => self.export_name(data),
            _ if data.len() > LARGEST_READ as usize => self.too_big(option),
            (5, Tls::Off) if data.is_empty() => refused(&[POLICY, UNSUPPORTED]),
            (5, Tls::Off) => refused(&[POLICY, UNSUPPORTED, INVALID]),
            (5, Tls::Inside) => refused(&[INVALID]),
            (3 | 8 | 11, _) if !data.is_empty() => refused(&[INVALID, EXTENDED_REQUIRED]),
            (3, _) => Expected::Listed,
            (6 | 7, _) => Self::information(data, option == 7),
            (8 | 11, _) => self.frame(option),
            (9 | 10, _) => self.meta_contexts(data, option == 10),
            _ => refused(&[UNSUPPORTED]),
        }
    }

    /// TLS forgets everything (44).
    fn start_tls(&mut self) -> Expected {
        *self = Self { client_flags: self.client_flags, ..Self::new(Tls::Inside) };
        Expected::StartTls
    }

    fn too_big(&mut self, option: u32) -> Expected {
        if option == 10 {
            self.contexts.clear();
        }
        refused(&[TOO_BIG, UNSUPPORTED, INVALID])
    }

    fn export_name(&self, data: &[u8]) -> Expected {
        let known = std::str::from_utf8(data).is_ok_and(is_export);
        if !known || self.framing == Framing::Extended {
            return Expected::Closed;
        }
        Expected::Exported { padded: self.client_flags & 2 == 0 }
    }

    fn frame(&mut self, option: u32) -> Expected {
        let asked = if option == 8 { Framing::Structured } else { Framing::Extended };
        if self.framing > asked {
            return refused(&[EXTENDED_REQUIRED]);
        }
        if self.framing == asked {
            return refused(&[INVALID]);
        }
        self.framing = asked;
        Expected::Acked
    }

    fn information(data: &[u8], go: bool) -> Expected {
        let Some((name, asked)) = parse_information(data) else { return refused(&[INVALID]) };
        match judge_name(name) {
            Some(refusal) => refusal,
            None => Expected::Informed { asked, go },
        }
    }

    fn meta_contexts(&mut self, data: &[u8], set: bool) -> Expected {
        if set {
            self.contexts.clear();
            if self.framing == Framing::Simple {
                return refused(&[INVALID]);
            }
        }
        let Some((name, queries)) = parse_queries(data) else { return refused(&[INVALID]) };
        let unfit = queries.iter().any(|query| !is_string(query));
        if unfit || judge_name(name).is_some() {
            let mut errors = if unfit { vec![INVALID, TOO_BIG] } else { Vec::new() };
            if let Some(Expected::Refused(more)) = judge_name(name) {
                errors.extend(more);
            }
            return Expected::Refused(errors);
        }
        let all = !set && queries.is_empty();
        let matches = |name: &str| {
            let wildcard = |query: &[u8]| !set && query.ends_with(b":") && name.as_bytes().starts_with(query);
            all || queries.iter().any(|query| *query == name.as_bytes() || wildcard(query))
        };
        let names: Vec<&'static str> = CONTEXTS.into_iter().filter(|name| matches(name)).collect();
        if set {
            self.contexts.clone_from(&names);
        }
        Expected::Contexts { names, set }
    }
}

fn refused(errors: &[u32]) -> Expected {
    Expected::Refused(errors.to_vec())
}

fn is_export(name: &str) -> bool {
    ["", NAME, ALIAS].contains(&name)
}

/// Whether bytes may be a string at all (7).
fn is_string(bytes: &[u8]) -> bool {
    bytes.len() <= LONGEST_STRING && !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

/// What is wrong with the name of an export, if something is (28, 29).
fn judge_name(name: &[u8]) -> Option<Expected> {
    if !is_string(name) {
        return Some(refused(&[INVALID, TOO_BIG, UNKNOWN]));
    }
    let known = std::str::from_utf8(name).is_ok_and(is_export);
    (!known).then(|| refused(&[UNKNOWN]))
}

/// Name and requests of INFO and GO (26).
fn parse_information(data: &[u8]) -> Option<(&[u8], BTreeSet<u16>)> {
    let mut bytes = Bytes(data);
    let length = bytes.word()?;
    let name = bytes.take(length as usize)?;
    let count = bytes.half()?;
    let asked: Option<BTreeSet<u16>> = (0..count).map(|_| bytes.half()).collect();
    bytes.0.is_empty().then_some((name, asked?))
}

/// Name and queries of LIST_META_CONTEXT and SET_META_CONTEXT (62).
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut bytes = Bytes(data);
    let length = bytes.word()?;
    let name = bytes.take(length as usize)?;
    let count = bytes.word()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let length = bytes.word()?;
        queries.push(bytes.take(length as usize)?);
    }
    bytes.0.is_empty().then_some((name, queries))
}
