//! BLOCK_STATUS carried out: what the device and the export's own contexts know, as the chunks of a reply.
//!
//! Called by [`crate::lane`]. The whole reply is made in one buffer before any of it is sent, so that an error
//! in its last context is an error of all of it.

use std::cell::RefCell;

use sealblk_block::{Allocation, BlockError, BlockLane, Buffer, ByteExtent, ByteLane};

use crate::context::{MetaContext, StatusExtent};
use crate::reply::{MAX_EXTENTS, ReplyTo, StatusChunks};
use crate::request::StatusQuery;
use crate::session::Session;
use crate::wire::allocation;

/// What a lane answers BLOCK_STATUS with: room for extents, reused from one request to the next.
#[derive(Default)]
pub(crate) struct StatusDesk {
    /// One for each request that is under way at a time.
    of_device: RefCell<Vec<Vec<ByteExtent>>>,
    of_context: RefCell<Vec<StatusExtent>>,
}

/// A request for block status, and on which terms it was made.
pub(crate) struct Inquiry<'a> {
    pub(crate) session: &'a Session,
    pub(crate) to: ReplyTo,
    pub(crate) query: StatusQuery,
}

impl StatusDesk {
    /// Fills `buffer`, which is as long as the reply can be, with the reply to `inquiry`, and sets its length.
    pub(crate) async fn answer<L: BlockLane>(
        &self,
        device: &ByteLane<L>,
        inquiry: Inquiry<'_>,
        mut buffer: Buffer,
    ) -> (Result<(), BlockError>, Buffer) {
        let query = inquiry.query;
        let mut known = self.of_device.borrow_mut().pop().unwrap_or_default();
        let mut outcome = Ok(());
        if query.contexts.contains(0) {
            const DATA: Allocation = Allocation { hole: false, zero: false };
            let skipped = leave_room(&mut known, &query, ByteExtent { bytes: 0, allocation: DATA });
            outcome = device.extents(query.offset, query.length, &mut known).await;
            known.drain(..skipped);
        }
        if outcome.is_ok() {
            let length = self.write(&inquiry, &known, &mut buffer);
            buffer.set_len(length);
        }
        self.of_device.borrow_mut().push(known);
        (outcome, buffer)
    }

    /// Writes the chunks; says how long they are.
    fn write(&self, inquiry: &Inquiry<'_>, known: &[ByteExtent], buffer: &mut [u8]) -> usize {
        let Inquiry { session, to, query } = inquiry;
        let mut chunks = StatusChunks::new(session.agreement.dialect, *to, buffer);
        let last = query.contexts.numbers().last();
        for number in query.contexts.numbers() {
            let is_last = Some(number) == last;
            match session.export.own_context(number) {
                None => chunks.push(number, is_last, told(known.iter().map(in_base), query.length)),
                Some(context) => {
                    let own = &mut *self.of_context.borrow_mut();
                    ask(context, query, own);
                    chunks.push(number, is_last, told(own.iter().copied(), query.length));
                }
            }
        }
        chunks.len()
    }
}

/// Leaves only what `context` says of the range in `extents`.
fn ask(context: &dyn MetaContext, query: &StatusQuery, extents: &mut Vec<StatusExtent>) {
    let skipped = leave_room(extents, query, StatusExtent { bytes: 0, flags: 0 });
    context.extents(query.offset, query.length, extents);
    extents.drain(..skipped);
}

/// Leaves room in `extents` for as many as `query` wants and no more, for whoever fills it stops only where there
/// is no room. The rest is filled; says how many there are.
fn leave_room<T: Clone>(extents: &mut Vec<T>, query: &StatusQuery, filler: T) -> usize {
    extents.clear();
    extents.reserve_exact(MAX_EXTENTS);
    let room = if query.one { 1 } else { MAX_EXTENTS };
    let skipped = extents.capacity() - room;
    extents.resize(skipped, filler);
    skipped
}

/// A device's extent in the words of `base:allocation`.
fn in_base(extent: &ByteExtent) -> StatusExtent {
    let Allocation { hole, zero } = extent.allocation;
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    StatusExtent { bytes: extent.bytes, flags: flag(hole, allocation::HOLE) | flag(zero, allocation::ZERO) }
}

/// The extents as a client may be told them: none empty, none past the range, and if nobody knows anything, one
/// of which nothing is said.
fn told(extents: impl Iterator<Item = StatusExtent>, length: u64) -> impl Iterator<Item = StatusExtent> {
    let mut left = length;
    let mut inside = extents
        .map_while(move |StatusExtent { bytes, flags }| {
            let bytes = bytes.min(left);
            left -= bytes;
            (bytes > 0).then_some(StatusExtent { bytes, flags })
        })
        .peekable();
    let unknown = inside.peek().is_none().then_some(StatusExtent { bytes: length, flags: 0 });
    inside.chain(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(extents: &[(u64, u32)], length: u64) -> Vec<(u64, u32)> {
        let extents = extents.iter().map(|&(bytes, flags)| StatusExtent { bytes, flags });
        told(extents, length).map(|extent| (extent.bytes, extent.flags)).collect()
    }

    #[test]
    fn extents_end_with_the_range_and_there_is_always_one() {
        assert_eq!(tell(&[(10, 3), (20, 0), (5, 1)], 25), [(10, 3), (15, 0)]);
        assert_eq!(tell(&[(10, 3)], 25), [(10, 3)]);
        assert_eq!(tell(&[], 25), [(25, 0)]);
        assert_eq!(tell(&[(0, 7)], 25), [(25, 0)]);
    }
}
