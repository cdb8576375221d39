//! Metadata contexts: the kinds of knowledge about ranges that BLOCK_STATUS tells.
//!
//! Every export has `base:allocation`, from its device's extents. One may have contexts of its own beside it,
//! each a [`MetaContext`] that was given to [`crate::ExportInfo`]. A context's number is its place in the
//! export's list and its id on the wire is one more; so ids are unique, and small sets of contexts are
//! the bits of a number.

use std::fmt;
use std::sync::Arc;

/// The name of the context that every export has.
pub const ALLOCATION: &str = "base:allocation";
/// How many contexts an export has at most, `base:allocation` among them.
pub const MAX_CONTEXTS: usize = 8;

/// A metadata context of an export's own: something that is known about its bytes besides their allocation.
///
/// It is asked on the threads of connections, between requests for data: it answers from memory, at
/// once, and does not allocate.
pub trait MetaContext: Send + Sync + 'static {
    /// `namespace:leaf`, in a namespace that begins with `x-`; the same every time.
    fn name(&self) -> &str;

    /// Appends to `extents` what is known of `length` bytes from `offset`, which are inside the export: from
    /// its start, consecutive, none empty, covering at least the first byte and at most the range;
    /// stops early at `extents.capacity()`.
    fn extents(&self, offset: u64, length: u64, extents: &mut Vec<StatusExtent>);
}

/// A run of bytes with one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatusExtent {
    /// How many bytes.
    pub bytes: u64,
    /// What is known of them; the context says what the bits mean.
    pub flags: u32,
}

/// A context of an export's own, shared by its connections.
#[derive(Clone)]
pub(crate) struct OwnContext(pub(crate) Arc<dyn MetaContext>);

impl fmt::Debug for OwnContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.name())
    }
}

/// Some of an export's contexts.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct ContextSet(u8);

impl ContextSet {
    /// Adds the context of that number. Says whether it was not in the set before; one that cannot exist is not
    /// added.
    pub fn insert(&mut self, number: usize) -> bool {
        let bit = Self::bit(number);
        let new = self.0 & bit != bit;
        self.0 |= bit;
        new
    }

    /// Whether the context of that number is in it.
    pub fn contains(self, number: usize) -> bool {
        self.0 & Self::bit(number) != 0
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub fn len(self) -> usize {
        (0..MAX_CONTEXTS).filter(|number| self.contains(*number)).count()
    }

    /// The numbers of those in it, in order.
    pub fn numbers(self) -> impl Iterator<Item = usize> {
        (0..MAX_CONTEXTS).filter(move |number| self.contains(*number))
    }

    fn bit(number: usize) -> u8 {
        u32::try_from(number).ok().and_then(|number| 1_u8.checked_shl(number)).unwrap_or(0)
    }
}

/// The id on the wire of the context of that number.
pub fn id(number: usize) -> u32 {
    u32::try_from(number).expect("an export has few contexts") + 1
}

/// The number of the context with that id, if there can be one.
pub fn number(id: u32) -> Option<usize> {
    let number = usize::try_from(id.checked_sub(1)?).ok()?;
    (number < MAX_CONTEXTS).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_each_context_once_and_none_that_cannot_be() {
        let mut set = ContextSet::default();
        assert!(set.is_empty());
        assert!(set.insert(7) && set.insert(0) && !set.insert(7));
        assert!(!set.insert(8) && !set.insert(usize::MAX));
        assert!(set.numbers().eq([0, 7]));
        assert_eq!(set.len(), 2);
        assert!(!set.contains(8) && !set.contains(1));
    }

    #[test]
    fn ids_are_numbers_plus_one() {
        assert_eq!((id(0), number(1)), (1, Some(0)));
        assert_eq!((number(0), number(9), number(u32::MAX)), (None, None, None));
    }
}
