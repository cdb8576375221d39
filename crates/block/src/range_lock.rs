//! The lock between whole-unit writes and read-modify-write cycles on the same units.
//!
//! A request that is not whole units reads the units at its edges, merges and writes them back; a write to
//! such a unit in between would be lost. So a read-modify-write holds its range **exclusively**, and whole-
//! unit writes hold theirs **plainly**: plain holders never wait for each other, only for exclusive ones,
//! and the other way round. Reads hold nothing.
//!
//! Exclusive holders are rare, plain ones are every write; so plain holding costs no shared lock. Each lane
//! has slots that only it writes. To hold plainly, a lane (1) publishes the range in a slot, (2) reads the
//! shared count of exclusive holders and aspirants; zero: it holds. To hold exclusively, a request (1) adds
//! itself to that count, (2) reads all slots, and holds once none overlaps. Both do a store and then a load
//! of what the other stores, all four sequentially consistent: in their single total order one of the two
//! stores comes first, and the load that follows the other sees it. So they never both pass unseen.
//! A plain holder that sees a count takes its slot back (which may be what the other waits for) and queues
//! in the table.
//!
//! A slot is two words, and a reader may see words of two different holders. It reads the end first; an end
//! that was current at that moment and belongs to a range still held has its own start beside it, since the
//! start is written before the end and changes only after the end was taken back. A holder that came later
//! stored its end after the reader's load, hence after the count went up, and sees the count.
//!
//! Releasing is the same pattern: take the slot back, then read the count; nonzero: wake the waiters. A
//! waiter registers for the wake-up before it reads the slots.
//!
//! The table is first come, first served, so nobody starves: an entry waits for overlapping earlier entries
//! (plain ones only for exclusive ones), and an exclusive one for overlapping slots, which only empty while
//! the count is nonzero.

use std::cell::RefCell;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What all lanes of a device share.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    exclusives: Padded<AtomicU32>,
    table: Mutex<Table>,
    changed: Notify,
}

/// On a cache line of its own, and of the neighbour that the processor fetches with it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// A published range of bytes; empty while `end` is 0.
#[derive(Debug, Default)]
struct Slot {
    start: AtomicU64,
    end: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    next_ticket: u64,
    /// In the order of tickets.
    entries: Vec<Entry>,
    lanes: Vec<Arc<[Padded<Slot>]>>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    exclusive: bool,
}

/// One lane's part in the lock. Not shared between threads.
#[derive(Debug)]
pub(crate) struct LaneRanges {
    lock: Arc<RangeLock>,
    slots: Arc<[Padded<Slot>]>,
    free: RefCell<Vec<usize>>,
}

/// A held range; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lane: &'a LaneRanges,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Slot(usize),
    Entry { ticket: u64, exclusive: bool },
}

impl RangeLock {
    /// A lane's part, with room for `depth` plain holders that take no shared lock.
    pub(crate) fn lane(self: &Arc<Self>, depth: usize) -> LaneRanges {
        let slots: Arc<[Padded<Slot>]> = (0..depth).map(|_| Padded::default()).collect();
        self.table().lanes.push(Arc::clone(&slots));
        LaneRanges { lock: Arc::clone(self), slots, free: RefCell::new((0..depth).rev().collect()) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics between two states of the table that belong together.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, range: Range<u64>, exclusive: bool) -> u64 {
        let mut table = self.table();
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        table.entries.push(Entry { ticket, range, exclusive });
        if exclusive {
            self.exclusives.0.fetch_add(1, SeqCst);
        }
        ticket
    }

    fn leave(&self, ticket: u64, exclusive: bool) {
        let mut table = self.table();
        table.entries.retain(|entry| entry.ticket != ticket);
        if exclusive {
            self.exclusives.0.fetch_sub(1, SeqCst);
        }
        drop(table);
        self.changed.notify_waiters();
    }
}

impl Table {
    /// Whether the entry with this ticket may hold its range now.
    fn admits(&self, ticket: u64) -> bool {
        let Some(mine) = self.entries.iter().find(|entry| entry.ticket == ticket) else { return false };
        let earlier = self.entries.iter().take_while(|entry| entry.ticket != ticket);
        let blocked = earlier
            .filter(|other| other.exclusive || mine.exclusive)
            .any(|other| overlap(&other.range, &mine.range));
        let published = || self.lanes.iter().flat_map(|lane| lane.iter()).any(|slot| slot.0.holds(mine));
        !(blocked || mine.exclusive && published())
    }
}

impl Slot {
    fn publish(&self, range: &Range<u64>) {
        self.start.store(range.start, SeqCst);
        self.end.store(range.end, SeqCst);
    }

    fn take_back(&self) {
        self.end.store(0, SeqCst);
    }

    fn holds(&self, entry: &Entry) -> bool {
        let end = self.end.load(SeqCst); // Before the start: see the module's header.
        let start = self.start.load(SeqCst);
        end != 0 && overlap(&(start..end), &entry.range)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl LaneRanges {
    /// Holds `range` (not empty) against exclusive holders.
    pub(crate) async fn plain(&self, range: Range<u64>) -> Held<'_> {
        match self.try_plain(&range) {
            Some(held) => held,
            None => self.queue(range, false).await,
        }
    }

    /// Holds `range` (not empty) against everybody.
    pub(crate) async fn exclusive(&self, range: Range<u64>) -> Held<'_> {
        self.queue(range, true).await
    }

    /// The common path: no lock, no shared line written.
    fn try_plain(&self, range: &Range<u64>) -> Option<Held<'_>> {
        let index = self.free.borrow_mut().pop()?;
        self.slots[index].0.publish(range);
        let held = Held { lane: self, place: Place::Slot(index) };
        // Dropping `held` takes the slot back and wakes whoever saw it.
        (self.lock.exclusives.0.load(SeqCst) == 0).then_some(held)
    }

    async fn queue(&self, range: Range<u64>, exclusive: bool) -> Held<'_> {
        let ticket = self.lock.enter(range, exclusive);
        let held = Held { lane: self, place: Place::Entry { ticket, exclusive } };
        loop {
            let mut changed = pin!(self.lock.changed.notified());
            changed.as_mut().enable(); // From here on a change is noticed, so look only now.
            if self.lock.table().admits(ticket) {
                return held;
            }
            changed.await;
        }
    }
}

impl Drop for LaneRanges {
    fn drop(&mut self) {
        // Nothing of this lane is held any more: what holds borrows the lane.
        self.lock.table().lanes.retain(|lane| !Arc::ptr_eq(lane, &self.slots));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        match self.place {
            Place::Slot(index) => {
                self.lane.slots[index].0.take_back();
                self.lane.free.borrow_mut().push(index);
                if self.lane.lock.exclusives.0.load(SeqCst) != 0 {
                    self.lane.lock.changed.notify_waiters();
                }
            }
            Place::Entry { ticket, exclusive } => self.lane.lock.leave(ticket, exclusive),
        }
    }
}

#[cfg(test)]
mod tests;
