//! A request on the wire: 28 bytes, and for a WRITE its payload.

use sealblk_nbd::wire;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// Of [`wire::command`].
    pub(crate) command: u16,
    /// Of [`wire::command_flag`].
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

impl Request {
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        into.extend(wire::REQUEST_MAGIC.to_be_bytes());
        into.extend(self.flags.to_be_bytes());
        into.extend(self.command.to_be_bytes());
        into.extend(self.cookie.to_be_bytes());
        into.extend(self.offset.to_be_bytes());
        into.extend(self.length.to_be_bytes());
    }
}
