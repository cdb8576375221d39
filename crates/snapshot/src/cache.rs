//! The index pages read last: a bounded number of them, so that reading a snapshot in any order neither fetches a page
//! for every block nor keeps an index in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::page::{Page, Place, Reference};

/// Pages kept: at most 64 KiB each, so 8 MiB; enough for 128 places that are read in turn.
const PAGES: usize = 128;

#[derive(Debug, Default)]
struct Kept {
    pages: HashMap<(Place, Reference), (Arc<Page>, u64)>,
    /// Counts uses, to tell what was used longest ago.
    clock: u64,
}

/// The pages used last.
#[derive(Debug)]
pub(crate) struct PageCache(Mutex<Kept>);

impl PageCache {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    pub(crate) fn get(&self, place: Place, reference: &Reference) -> Option<Arc<Page>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let clock = kept.clock;
        let (page, used) = kept.pages.get_mut(&(place, *reference))?;
        *used = clock;
        Some(Arc::clone(page))
    }

    pub(crate) fn insert(&self, place: Place, reference: Reference, page: Arc<Page>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let clock = kept.clock;
        kept.pages.insert((place, reference), (page, clock));
        if kept.pages.len() > PAGES {
            let oldest = kept.pages.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            if let Some(oldest) = oldest {
                kept.pages.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sealblk_record::SnapshotId;

    use super::*;
    use crate::hash::ContentHash;
    use crate::page::Entry;

    #[test]
    fn it_keeps_what_is_used_and_no_more_than_it_may() {
        let cache = PageCache::new();
        let reference =
            Reference { generation: SnapshotId::from_random([1; 9]), hash: ContentHash::of(b"page") };
        let place = |position| Place { level: 0, position };
        let page = |position| {
            let entry = Entry { slot: 0, blocks: 1, reference };
            Arc::new(Page::new(place(position), vec![entry]).expect("not empty"))
        };
        for position in 0..1000 {
            cache.insert(place(position), reference, page(position));
            assert!(cache.get(place(0), &reference).is_some(), "used all the time");
        }
        let kept = (0..1000).filter(|position| cache.get(place(*position), &reference).is_some()).count();
        assert_eq!(kept, PAGES);
    }
}
