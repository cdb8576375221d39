//! A set of block numbers: which blocks changed, which have data. Small when few are in it, a bit a block when many.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::geometry::{FANOUT, child, leaf_of};

const WORDS: usize = 16;

/// 1024 bits: the blocks under one leaf of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LeafSet([u64; WORDS]);

impl LeafSet {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);
    pub(crate) const FULL: Self = Self([u64::MAX; WORDS]);

    pub(crate) fn contains(&self, slot: u16) -> bool {
        let (word, bit) = Self::place(slot);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    pub(crate) fn insert(&mut self, slot: u16) {
        let (word, bit) = Self::place(slot);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(crate) fn intersect(&self, other: &Self) -> Self {
        let mut both = *self;
        both.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word &= other);
        both
    }

    /// The slots in the set, ascending.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u16> + use<> {
        let set = *self;
        (0..FANOUT as u16).filter(move |slot| set.contains(*slot))
    }

    fn place(slot: u16) -> (usize, u64) {
        (usize::from(slot / 64), 1 << (slot % 64))
    }
}

/// A set of block numbers.
///
/// 128 bytes and a map entry for each run of 1024 blocks that has one in the set: some 5 MiB for every block of a 16 TiB
/// volume, next to nothing for a few.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct BlockSet {
    leaves: BTreeMap<u64, LeafSet>,
}

impl BlockSet {
    /// No block.
    pub const fn new() -> Self {
        Self { leaves: BTreeMap::new() }
    }

    /// Adds a block.
    pub fn insert(&mut self, block: u64) {
        let (leaf, slot) = leaf_of(block);
        self.leaves.entry(leaf).or_insert(LeafSet::EMPTY).insert(slot);
    }

    /// Adds every block of a range.
    pub fn insert_range(&mut self, blocks: Range<u64>) {
        let mut block = blocks.start;
        while block < blocks.end {
            let (leaf, slot) = leaf_of(block);
            let next = leaf.saturating_add(1).saturating_mul(FANOUT).min(blocks.end);
            let set = self.leaves.entry(leaf).or_insert(LeafSet::EMPTY);
            if slot == 0 && next - block == FANOUT {
                *set = LeafSet::FULL;
            } else {
                (block..next).for_each(|block| set.insert(leaf_of(block).1));
            }
            block = next;
        }
    }

    /// Whether a block is in the set.
    pub fn contains(&self, block: u64) -> bool {
        let (leaf, slot) = leaf_of(block);
        self.leaves.get(&leaf).is_some_and(|set| set.contains(slot))
    }

    /// How many blocks are in the set.
    pub fn len(&self) -> u64 {
        self.leaves.values().map(LeafSet::len).sum()
    }

    /// Whether no block is in the set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The blocks in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.leaves.iter().flat_map(|(&leaf, set)| set.slots().map(move |slot| child(leaf, slot)))
    }

    /// The first run of blocks in the set at or after `from`, as far as the run of 1024 that it begins in.
    pub fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let (first, _) = leaf_of(from);
        self.leaves.range(first..).find_map(|(&leaf, set)| {
            let mut slots = set.slots().skip_while(|slot| child(leaf, *slot) < from);
            let start = slots.next()?;
            let more = slots.zip(start + 1..).take_while(|(slot, next)| slot == next).count() as u64;
            Some(child(leaf, start)..child(leaf, start) + more + 1)
        })
    }

    /// The blocks in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let both = |(leaf, set): (&u64, &LeafSet)| {
            let both = set.intersect(other.leaves.get(leaf)?);
            (both != LeafSet::EMPTY).then_some((*leaf, both))
        };
        Self { leaves: self.leaves.iter().filter_map(both).collect() }
    }

    /// The positions of the leaves that have a block in the set, ascending.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = u64> + '_ {
        self.leaves.iter().filter(|(_, set)| **set != LeafSet::EMPTY).map(|(leaf, _)| *leaf)
    }

    /// The blocks of one leaf.
    pub(crate) fn leaf(&self, position: u64) -> LeafSet {
        self.leaves.get(&position).copied().unwrap_or(LeafSet::EMPTY)
    }
}

impl Extend<u64> for BlockSet {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, blocks: I) {
        blocks.into_iter().for_each(|block| self.insert(block));
    }
}

impl FromIterator<u64> for BlockSet {
    fn from_iter<I: IntoIterator<Item = u64>>(blocks: I) -> Self {
        let mut set = Self::new();
        set.extend(blocks);
        set
    }
}

impl FromIterator<Range<u64>> for BlockSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert_range(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(ranges in prop::collection::vec((0_u64..5000, 0_u64..2500), 0..8), more in prop::collection::vec(0_u64..5000, 0..20)) {
            let ranges: Vec<Range<u64>> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let mut plain: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            plain.extend(&more);
            let mut set: BlockSet = ranges.into_iter().collect();
            set.extend(more.iter().copied());
            prop_assert_eq!(set.len(), plain.len() as u64);
            prop_assert!(set.iter().eq(plain.iter().copied()));
            let few: BlockSet = more.iter().copied().collect();
            prop_assert_eq!(&set.intersection(&few), &few);
            let runs = std::iter::successors(set.next_run(0), |run| set.next_run(run.end));
            prop_assert!(runs.flatten().eq(set.iter()));
        }
    }

    #[test]
    fn every_block_of_16_tib_is_a_few_mib() {
        let set: BlockSet = std::iter::once(0..1 << 25).collect();
        assert_eq!(set.leaves.len(), 32 * 1024);
        assert_eq!(set.len(), 1 << 25);
    }
}
