//! What a client is told about the export: names, size, flags and request sizes.
//!
//! The one place where a device's [`Geometry`] becomes protocol facts. Made anew for every connection,
//! so that a device that grew shows its new size. [`crate::negotiation`] sends it,
//! [`crate::request`] checks against it.

use std::sync::Arc;

use sealblk_block::{Geometry, SECTOR_BYTES};

use crate::context::{self, MetaContext, OwnContext};
use crate::session::Agreement;
use crate::wire::{MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, transmission_flag};

/// How an export is named, and what it knows of itself. The empty name always means it too.
#[derive(Clone, Debug)]
pub struct ExportInfo {
    name: String,
    aliases: Vec<String>,
    description: String,
    contexts: Vec<OwnContext>,
}

/// A name or description that cannot be sent: over 4096 bytes, or with a NUL inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an export's name or description has at most 4096 bytes and no NUL")]
pub struct UnsendableString;

/// A metadata context that an export cannot have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnusableContext {
    /// A name that is not `x-namespace:leaf`, or cannot be sent.
    #[error("a metadata context is called x-namespace:leaf, and differently from all others")]
    Name,
    /// There are as many as an export can have.
    #[error("an export has at most {} metadata contexts", context::MAX_CONTEXTS)]
    TooMany,
}

impl ExportInfo {
    /// An export with its canonical `name`, further names that clients may use, and a text for people.
    pub fn new(name: &str, aliases: &[&str], description: &str) -> Result<Self, UnsendableString> {
        if !is_sendable(name) || !is_sendable(description) || !aliases.iter().all(|alias| is_sendable(alias))
        {
            return Err(UnsendableString);
        }
        Ok(Self {
            name: name.to_owned(),
            aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
            description: description.to_owned(),
            contexts: Vec::new(),
        })
    }

    /// The same export with a metadata context of its own beside `base:allocation`.
    pub fn with_context(mut self, context: Arc<dyn MetaContext>) -> Result<Self, UnusableContext> {
        let name = context.name();
        let well_formed = name.starts_with("x-")
            && name.split_once(':').is_some_and(|(namespace, leaf)| namespace.len() > 2 && !leaf.is_empty())
            && is_sendable(name);
        if !well_formed || self.contexts.iter().any(|other| other.0.name() == name) {
            return Err(UnusableContext::Name);
        }
        if self.contexts.len() + 1 >= context::MAX_CONTEXTS {
            return Err(UnusableContext::TooMany);
        }
        self.contexts.push(OwnContext(context));
        Ok(self)
    }
}

fn is_sendable(text: &str) -> bool {
    text.len() <= MAX_STRING_BYTES && !text.contains('\0')
}

/// An export as one connection sees it.
#[derive(Clone, Debug)]
pub struct Export {
    info: ExportInfo,
    size_bytes: u64,
    read_only: bool,
    minimum_bytes: u32,
    preferred_bytes: u32,
}

impl Export {
    /// The export `info` over a device of shape `geometry`.
    ///
    /// Any byte range is served (design §4.4). A minimum above 1 is advertised only for a device whose
    /// unit is larger than a sector, where smaller writes would cost a read each.
    pub fn new(info: ExportInfo, geometry: Geometry) -> Self {
        let sector_bytes = u32::try_from(SECTOR_BYTES).expect("512 fits");
        let minimum_bytes = if geometry.unit_bytes > sector_bytes { geometry.unit_bytes } else { 1 };
        Self {
            info,
            size_bytes: geometry.sectors.saturating_mul(u64::from(sector_bytes)),
            read_only: geometry.read_only,
            minimum_bytes,
            preferred_bytes: geometry.preferred_bytes.max(4096).max(minimum_bytes).min(MAX_PAYLOAD_BYTES),
        }
    }

    /// Whether a client that says `name` means this export.
    pub fn is_called(&self, name: &str) -> bool {
        name.is_empty() || name == self.info.name || self.info.aliases.iter().any(|alias| alias == name)
    }

    /// The canonical name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Every name that clients may use but the empty one, the canonical one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.info.name.as_str()).chain(self.info.aliases.iter().map(String::as_str))
    }

    /// The text for people; may be empty.
    pub fn description(&self) -> &str {
        &self.info.description
    }

    /// The names of the metadata contexts, in the order of their numbers.
    pub fn context_names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(context::ALLOCATION).chain(self.info.contexts.iter().map(|own| own.0.name()))
    }

    /// The context of that number, if it is one of the export's own.
    pub(crate) fn own_context(&self, number: usize) -> Option<&dyn MetaContext> {
        self.info.contexts.get(number.checked_sub(1)?).map(|own| &*own.0)
    }

    /// Size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The smallest request that is served without a read before a write: a power of two.
    pub fn minimum_bytes(&self) -> u32 {
        self.minimum_bytes
    }

    /// The request size at which the export works best: a power of two, at least 4096.
    pub fn preferred_bytes(&self) -> u32 {
        self.preferred_bytes
    }

    /// The transmission flags for a client that has agreed on `agreement`. CAN_MULTI_CONN holds because all lanes of a device see the same sectors
    /// and a flush on one covers writes acknowledged on all ([`sealblk_block::BlockLane`]).
    pub fn transmission_flags(&self, agreement: &Agreement) -> u16 {
        use transmission_flag::*;
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        let chunks = if agreement.dialect.has_chunks() { SEND_DF } else { 0 };
        let status = if agreement.has_status_payload() { BLOCK_STATUS_PAYLOAD } else { 0 };
        HAS_FLAGS
            | read_only
            | chunks
            | status
            | SEND_FLUSH
            | SEND_FUA
            | SEND_TRIM
            | SEND_WRITE_ZEROES
            | CAN_MULTI_CONN
            | SEND_CACHE
            | SEND_FAST_ZERO
    }
}
