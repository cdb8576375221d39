//! Which transfers through the page cache a lane leaves to a thread of the kernel's, to have another core copy them.
//!
//! A small transfer is done before anybody else could be asked. Of a large one, the copy between page cache and buffer
//! is a third of what the lane has to do (the rest is the cipher and the socket), and a core that has nothing
//! else to do can make it meanwhile, if there is something else for the lane to do meanwhile: another request. Whether there is,
//! the lane cannot see from here; so every so often one transfer goes aside to find out, and as long as
//! transfers meet there, they go on doing so. With 128 KiB 16 deep and 1 MiB 8 deep on tmpfs an encrypted volume did 1.2 to 1.45
//! times as much so (one quiet run of four rounds, 2 cores; on a busy machine 0.95 to 1.26).

use std::cell::Cell;

/// From this size on, in bytes: handing over costs some 5 µs, copying 64 KiB 10.
const LARGE_BYTES: usize = 64 << 10;
/// How many are aside at once; the lane makes the next copy itself. More would not fit into the caches.
const AT_ONCE: u32 = 2;
/// While they do not meet, one of so many goes aside to find out.
const PROBE_EVERY: u32 = 32;

/// One lane's judgement of whether large transfers overlap.
pub(super) struct Aside {
    under_way: Cell<u32>,
    /// Whether another large transfer came while one was aside.
    met: Cell<bool>,
    worthwhile: Cell<bool>,
    since_probe: Cell<u32>,
}

/// A transfer that is aside, until it is dropped.
pub(super) struct Guest<'a>(&'a Aside);

impl Aside {
    /// `None`: there is one core only.
    pub(super) fn new() -> Option<Self> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (cores > 1).then(Self::untried)
    }

    fn untried() -> Self {
        Self {
            under_way: Cell::new(0),
            met: Cell::new(false),
            worthwhile: Cell::new(false),
            since_probe: Cell::new(0),
        }
    }

    /// Whether a transfer of `bytes` goes aside.
    pub(super) fn takes(&self, bytes: usize) -> Option<Guest<'_>> {
        if bytes < LARGE_BYTES {
            return None;
        }
        let under_way = self.under_way.get();
        if under_way > 0 {
            self.met.set(true);
        } else if !self.worthwhile.get() && !self.is_probe() {
            return None;
        }
        if under_way >= AT_ONCE {
            return None;
        }
        self.under_way.set(under_way + 1);
        Some(Guest(self))
    }

    fn is_probe(&self) -> bool {
        let since = self.since_probe.get() + 1;
        let probe = since >= PROBE_EVERY;
        self.since_probe.set(if probe { 0 } else { since });
        probe
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let aside = self.0;
        aside.under_way.set(aside.under_way.get() - 1);
        if aside.under_way.get() == 0 {
            aside.worthwhile.set(aside.met.replace(false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: usize = 128 << 10;

    #[test]
    fn a_lane_whose_requests_come_one_by_one_copies_itself_but_for_a_probe() {
        let aside = Aside::untried();
        let taken = (0..320).filter(|_| aside.takes(LARGE).is_some()).count();
        assert_eq!(taken, 10);
        assert!(aside.takes(4096).is_none());
    }

    #[test]
    fn once_transfers_meet_they_go_aside_until_they_no_longer_do() {
        let aside = Aside::untried();
        let probe = (0..PROBE_EVERY).find_map(|_| aside.takes(LARGE)).expect("a probe");
        let second = aside.takes(LARGE).expect("it meets the probe");
        assert!(aside.takes(LARGE).is_none(), "the lane does the third itself");
        drop((probe, second));
        let next = aside.takes(LARGE).expect("they met");
        drop(next);
        assert!(aside.takes(LARGE).is_none(), "that one was alone");
    }
}
