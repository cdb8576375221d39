//! LIST_META_CONTEXT and SET_META_CONTEXT: which contexts there are, and which the client wants.
//!
//! Called by [`crate::negotiation`] like [`crate::options`]. A client announces how many queries it sends; that
//! number is compared with what is there and never trusted.

use crate::context::{self, ContextSet};
use crate::export::Export;
use crate::options::{self, Verdict};
use crate::session::Agreement;
use crate::wire::{Fields, option, option_reply};

/// LIST: every context that a query means, or all if there is no query.
pub(crate) fn list(export: &Export, data: &[u8], replies: &mut Vec<u8>) -> Verdict {
    const OPTION: u32 = option::LIST_META_CONTEXT;
    match select(export, data, is_listed_by) {
        Err(refusal) => refusal.answer(OPTION, replies),
        Ok(Selection { contexts, queries }) => {
            let meant = |number: usize| queries == 0 || contexts.contains(number);
            for (_, name) in export.context_names().enumerate().filter(|(number, _)| meant(*number)) {
                reply(replies, OPTION, 0, name);
            }
            options::reply(replies, OPTION, option_reply::ACK, &[]);
            Verdict::Continue
        }
    }
}

/// SET: exactly the contexts that queries name are those of the session; after an error, none is.
pub(crate) fn set(export: &Export, agreement: &mut Agreement, data: &[u8], replies: &mut Vec<u8>) -> Verdict {
    const OPTION: u32 = option::SET_META_CONTEXT;
    agreement.contexts = ContextSet::default();
    if !agreement.dialect.has_chunks() {
        const TEXT: &str = "contexts need STRUCTURED_REPLY or EXTENDED_HEADERS first";
        return options::error(replies, OPTION, option_reply::ERR_INVALID, TEXT);
    }
    match select(export, data, |name, query| name == query) {
        Err(refusal) => refusal.answer(OPTION, replies),
        Ok(Selection { contexts, .. }) => {
            for (number, name) in export.context_names().enumerate().filter(|(n, _)| contexts.contains(*n)) {
                reply(replies, OPTION, context::id(number), name);
            }
            options::reply(replies, OPTION, option_reply::ACK, &[]);
            agreement.contexts = contexts;
            Verdict::Continue
        }
    }
}

/// Whether a LIST's query means the context `name`: by its name, or by its namespace with the colon.
fn is_listed_by(name: &str, query: &str) -> bool {
    name == query || name.split_inclusive(':').next() == Some(query)
}

fn reply(replies: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    let data = [&id.to_be_bytes()[..], name.as_bytes()].concat();
    options::reply(replies, option, option_reply::META_CONTEXT, &data);
}

/// Why there is no selection.
enum Refusal<'a> {
    Malformed(&'static str),
    UnknownExport(&'a str),
}

impl Refusal<'_> {
    fn answer(self, option: u32, replies: &mut Vec<u8>) -> Verdict {
        match self {
            Self::Malformed(text) => options::error(replies, option, option_reply::ERR_INVALID, text),
            Self::UnknownExport(name) => options::unknown_export(replies, option, name),
        }
    }
}

/// What an option's queries select.
struct Selection {
    contexts: ContextSet,
    /// How many there are, those that select nothing included.
    queries: usize,
}

/// Reads an option: a string, the export's name; a 32-bit count and as many strings, the queries; nothing
/// more. `selects` says whether a context of that name is meant by a query.
fn select<'a>(
    export: &Export,
    data: &'a [u8],
    selects: impl Fn(&str, &str) -> bool,
) -> Result<Selection, Refusal<'a>> {
    let mut fields = Fields::new(data);
    let name = options::string(&mut fields).map_err(Refusal::Malformed)?;
    let announced = fields.u32().ok_or(Refusal::Malformed("the count of queries is missing"))?;
    let mut selection = Selection { contexts: ContextSet::default(), queries: 0 };
    for _ in 0..announced {
        if fields.is_empty() {
            return Err(Refusal::Malformed("fewer queries than announced"));
        }
        let query = options::string(&mut fields).map_err(Refusal::Malformed)?;
        selection.queries += 1;
        for (number, _) in export.context_names().enumerate().filter(|(_, name)| selects(name, query)) {
            selection.contexts.insert(number);
        }
    }
    if !fields.is_empty() {
        return Err(Refusal::Malformed("bytes follow the last query"));
    }
    if export.is_called(name) { Ok(selection) } else { Err(Refusal::UnknownExport(name)) }
}
