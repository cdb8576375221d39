//! What each option of the negotiation means, and how it is answered.
//!
//! Called by [`crate::negotiation`] with an option's whole data, after its length was checked. Every
//! answer is appended to the replies; none is sent here.

use crate::export::Export;
use crate::negotiation::Outcome;
use crate::session::Agreement;
use crate::wire::{self, Fields, info, option, option_reply};

/// How much of a name from the client is repeated in an error text. The text as a whole must stay below
/// 4096 bytes; CVE-2020-10761 was a server that asserted so and repeated the name unshortened.
const ECHOED_NAME_BYTES: usize = 80;

/// What an answered option does to the negotiation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// The next option may come.
    Continue,
    /// It is over.
    Ended(Outcome),
}

/// Appends a reply of type `kind` to `option`.
pub(crate) fn reply(replies: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let length = u32::try_from(data.len()).expect("replies are two strings long at most");
    replies.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
    replies.extend(option.to_be_bytes());
    replies.extend(kind.to_be_bytes());
    replies.extend(length.to_be_bytes());
    replies.extend(data);
}

/// Appends an error reply with a text for people.
pub(crate) fn error(replies: &mut Vec<u8>, option: u32, kind: u32, text: &str) -> Verdict {
    reply(replies, option, kind, text.as_bytes());
    Verdict::Continue
}

/// EXPORT_NAME: the whole data is the name. `None` when there is no such export: the session ends
/// without a byte, for the protocol has no error here.
pub(crate) fn export_name(
    export: &Export,
    agreement: &Agreement,
    name: &[u8],
    replies: &mut Vec<u8>,
) -> Option<Verdict> {
    let name = std::str::from_utf8(name).ok()?;
    if !export.is_called(name) {
        return None;
    }
    replies.extend(export.size_bytes().to_be_bytes());
    replies.extend(export.transmission_flags(agreement).to_be_bytes());
    Some(Verdict::Ended(Outcome::Transmission))
}

/// LIST: the one export under each of its names, the canonical one first.
pub(crate) fn list(export: &Export, replies: &mut Vec<u8>) -> Verdict {
    for name in export.names() {
        let length = u32::try_from(name.len()).expect("names have at most 4096 bytes");
        let mut data = Vec::with_capacity(name.len() + export.description().len() + 4);
        data.extend(length.to_be_bytes());
        data.extend(name.as_bytes());
        data.extend(export.description().as_bytes());
        reply(replies, option::LIST, option_reply::SERVER, &data);
    }
    reply(replies, option::LIST, option_reply::ACK, &[]);
    Verdict::Continue
}

/// INFO and GO, which differ only in what follows: one function, so that their answers cannot differ.
pub(crate) fn info_or_go(
    export: &Export,
    agreement: &Agreement,
    option: u32,
    data: &[u8],
    replies: &mut Vec<u8>,
) -> Verdict {
    let wanted = match InfoQuery::parse(data) {
        Ok(wanted) => wanted,
        Err(text) => return error(replies, option, option_reply::ERR_INVALID, text),
    };
    if !export.is_called(wanted.name) {
        return unknown_export(replies, option, wanted.name);
    }
    let mut fact = |kind: u16, value: &[u8]| {
        let mut data = Vec::with_capacity(value.len() + 2);
        data.extend(kind.to_be_bytes());
        data.extend(value);
        reply(replies, option, option_reply::INFO, &data);
    };
    let mut size_and_flags = [0; 10];
    size_and_flags[..8].copy_from_slice(&export.size_bytes().to_be_bytes());
    size_and_flags[8..].copy_from_slice(&export.transmission_flags(agreement).to_be_bytes());
    fact(info::EXPORT, &size_and_flags);
    let mut sizes = [0; 12];
    sizes[..4].copy_from_slice(&export.minimum_bytes().to_be_bytes());
    sizes[4..8].copy_from_slice(&export.preferred_bytes().to_be_bytes());
    sizes[8..].copy_from_slice(&wire::MAX_PAYLOAD_BYTES.to_be_bytes());
    fact(info::BLOCK_SIZE, &sizes);
    if wanted.canonical_name {
        fact(info::NAME, export.name().as_bytes());
    }
    if wanted.description {
        fact(info::DESCRIPTION, export.description().as_bytes());
    }
    reply(replies, option, option_reply::ACK, &[]);
    if option == option::GO { Verdict::Ended(Outcome::Transmission) } else { Verdict::Continue }
}

/// The answer to an option about an export that is not here.
pub(crate) fn unknown_export(replies: &mut Vec<u8>, option: u32, name: &str) -> Verdict {
    let text = format!("no export is called \"{}\"", echo(name));
    error(replies, option, option_reply::ERR_UNKNOWN, &text)
}

/// Takes a string off `fields`: a 32-bit length, and so many bytes of UTF-8 without a NUL, at most 4096. The error
/// is the text for the client.
pub(crate) fn string<'a>(fields: &mut Fields<'a>) -> Result<&'a str, &'static str> {
    let bytes = fields.counted_bytes().ok_or("a string is longer than the option")?;
    if bytes.len() > wire::MAX_STRING_BYTES {
        return Err("a string has more than 4096 bytes");
    }
    if bytes.contains(&0) {
        return Err("a string contains a NUL");
    }
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")
}

/// The data of INFO and GO, checked.
struct InfoQuery<'a> {
    name: &'a str,
    canonical_name: bool,
    description: bool,
}

impl<'a> InfoQuery<'a> {
    /// A 32-bit length and the name; a 16-bit count and as many 16-bit information types; nothing more.
    fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        let mut fields = Fields::new(data);
        let name = string(&mut fields)?;
        let count = fields.u16().ok_or("the count of information requests is missing")?;
        let mut query = Self { name, canonical_name: false, description: false };
        for _ in 0..count {
            match fields.u16().ok_or("fewer information requests than announced")? {
                info::NAME => query.canonical_name = true,
                info::DESCRIPTION => query.description = true,
                _ => {} // Unknown ones are ignored; size, flags and request sizes are sent anyway.
            }
        }
        if fields.is_empty() { Ok(query) } else { Err("bytes follow the last information request") }
    }
}

/// A client's string made fit to be shown: shortened, and without control characters.
fn echo(name: &str) -> String {
    let mut shown = String::with_capacity(ECHOED_NAME_BYTES + 3);
    for character in name.chars() {
        if shown.len() + character.len_utf8() > ECHOED_NAME_BYTES {
            shown.push_str("...");
            break;
        }
        shown.push(if character.is_control() { '?' } else { character });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echoed_name_is_short_and_printable() {
        let shown = echo(&"\u{1b}[2Jテ".repeat(1000));
        assert!(shown.len() <= ECHOED_NAME_BYTES + 3);
        assert!(!shown.contains(char::is_control));
        assert!(shown.ends_with("..."));
        assert_eq!(echo("vol-1"), "vol-1");
    }
}
