//! Which bytes of a READ its chunks have brought: each exactly once, in the end all.

/// The most gaps that a reply may have open at a time. Servers send a handful of chunks in order; one that
/// sends every second byte is after our memory.
const MAX_RUNS: usize = 4096;

/// The bytes that have come, as runs that do not touch, in order.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    runs: Vec<(u32, u32)>,
}

/// A chunk brought bytes for the second time, or the reply is in too many pieces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overlap;

impl Coverage {
    /// Notes that the bytes from `start` to before `end` have come.
    pub(crate) fn add(&mut self, start: u32, end: u32) -> Result<(), Overlap> {
        let is_full = self.runs.len() >= MAX_RUNS;
        let place = self.runs.partition_point(|run| run.0 < start);
        let (before, after) = self.runs.split_at_mut(place);
        let before = before.last_mut().filter(|run| run.1 >= start);
        let after = after.first_mut().filter(|run| run.0 <= end);
        let overlaps =
            before.as_ref().is_some_and(|run| run.1 > start) || after.as_ref().is_some_and(|run| run.0 < end);
        if overlaps || start >= end {
            return Err(Overlap);
        }
        match (before, after) {
            (Some(before), Some(after)) => {
                before.1 = after.1;
                self.runs.remove(place);
            }
            (Some(before), None) => before.1 = end,
            (None, Some(after)) => after.0 = start,
            (None, None) if !is_full => self.runs.insert(place, (start, end)),
            (None, None) => return Err(Overlap),
        }
        Ok(())
    }

    /// Whether all of the first `len` bytes have come.
    pub(crate) fn is_whole(&self, len: u32) -> bool {
        self.runs == [(0, len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_a_whole() {
        let mut coverage = Coverage::default();
        for (start, end) in [(10, 20), (30, 40), (0, 10), (20, 30)] {
            assert!(!coverage.is_whole(40));
            assert_eq!(coverage.add(start, end), Ok(()));
        }
        assert!(coverage.is_whole(40));
        assert!(!coverage.is_whole(41));
    }

    #[test]
    fn a_byte_comes_once_and_a_piece_has_one() {
        for (start, end) in [(10, 20), (0, 11), (19, 30), (12, 13), (0, 30), (5, 5), (20, 10)] {
            let mut coverage = Coverage::default();
            assert_eq!(coverage.add(10, 20), Ok(()));
            assert_eq!(coverage.add(start, end), Err(Overlap), "{start}..{end}");
        }
    }

    #[test]
    fn a_reply_in_endless_pieces_is_refused() {
        let mut coverage = Coverage::default();
        let added = (0..5000).take_while(|at| coverage.add(at * 2, at * 2 + 1).is_ok()).count();
        assert_eq!(added, MAX_RUNS);
    }
}
