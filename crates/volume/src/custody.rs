//! Who has the cipher of an open volume. Lanes borrow it for one call at a time; the control side can take it from all
//! of them at once, and give it back.
//!
//! Each lane has a slot of its own with a lock that only the control side ever contends for: no cache line is shared
//! between lanes, and a borrow costs one uncontended lock (some 20 ns, by the call, not by the sector). When
//! [`Custody::take`] returns, no lane has the cipher and its round keys are wiped, whether the lanes are busy, idle
//! or about to wait: they are not asked to cooperate. Requests that come to need it wait, or fail.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sealblk_block::{BlockError, Lba, Operation};
use sealblk_keymem::DataKey;
use sealblk_xts::SectorCipher;
use tokio::sync::watch;

use crate::open::OpenError;
use crate::seal::{Seal, SealedFields};

/// What becomes of requests that need the cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Presence {
    /// They have it.
    Present,
    /// They wait for it.
    Frozen,
    /// They fail, for good.
    Gone,
}

/// The cipher of one open volume, and the lanes that may borrow it.
pub(crate) struct Custody<C> {
    lanes: Mutex<Lanes<C>>,
    state: watch::Sender<Presence>,
}

struct Lanes<C> {
    /// For lanes that are opened later.
    cipher: Option<Arc<C>>,
    slots: Vec<Weak<Slot<C>>>,
    /// Whether nobody is to wait any more.
    concluded: bool,
}

/// One lane's cipher, as long as it may have it.
struct Slot<C>(Mutex<Option<Arc<C>>>);

/// A panic of a cipher leaves nothing half done that these locks protect.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C> Custody<C> {
    pub(crate) fn new(cipher: C) -> Self {
        let lanes = Lanes { cipher: Some(Arc::new(cipher)), slots: Vec::new(), concluded: false };
        Self { lanes: Mutex::new(lanes), state: watch::Sender::new(Presence::Present) }
    }

    /// A new lane's way to the cipher.
    pub(crate) fn lane(&self) -> LaneCustody<C> {
        let mut lanes = lock(&self.lanes);
        let slot = Arc::new(Slot(Mutex::new(lanes.cipher.clone())));
        lanes.slots.retain(|slot| slot.strong_count() > 0);
        lanes.slots.push(Arc::downgrade(&slot));
        LaneCustody { slot, state: self.state.subscribe() }
    }

    /// Takes the cipher from all lanes. On return it is dropped: a call of it that was under way has ended. What is
    /// `Gone` stays so.
    fn take(&self, reason: Presence) {
        let mut lanes = lock(&self.lanes);
        if *self.state.borrow() == Presence::Gone {
            return;
        }
        let reason = if lanes.concluded { Presence::Gone } else { reason };
        // First the reason: whoever finds no cipher looks for it.
        self.state.send_replace(reason);
        lanes.cipher = None;
        for slot in lanes.slots.iter().filter_map(Weak::upgrade) {
            *lock(&slot.0) = None;
        }
    }

    /// From now on nobody waits: those who do fail.
    fn conclude(&self) {
        let mut lanes = lock(&self.lanes);
        lanes.concluded = true;
        self.state.send_if_modified(|state| {
            let waiting = *state == Presence::Frozen;
            if waiting {
                *state = Presence::Gone;
            }
            waiting
        });
    }

    /// Gives all lanes a cipher again, if they wait for one.
    fn give(&self, cipher: C) {
        let mut lanes = lock(&self.lanes);
        if *self.state.borrow() != Presence::Frozen {
            return;
        }
        let cipher = Arc::new(cipher);
        for slot in lanes.slots.iter().filter_map(Weak::upgrade) {
            *lock(&slot.0) = Some(Arc::clone(&cipher));
        }
        lanes.cipher = Some(cipher);
        self.state.send_replace(Presence::Present);
    }
}

/// One lane's way to the cipher.
pub(crate) struct LaneCustody<C> {
    slot: Arc<Slot<C>>,
    state: watch::Receiver<Presence>,
}

impl<C> LaneCustody<C> {
    fn borrow_now(&self) -> Option<Borrowed<'_, C>> {
        let slot = lock(&self.slot.0);
        slot.is_some().then_some(Borrowed(slot))
    }

    /// The cipher, for calls that do not wait; waits while it is frozen. An error says that it will not come back.
    pub(crate) async fn borrow(&self, operation: Operation, at: Lba) -> Result<Borrowed<'_, C>, BlockError> {
        loop {
            if let Some(borrowed) = self.borrow_now() {
                return Ok(borrowed);
            }
            let mut state = self.state.clone();
            let awaited = state.wait_for(|state| *state != Presence::Frozen).await.map(|state| *state).ok();
            if awaited != Some(Presence::Present) {
                let source = io::Error::other("the volume's key was taken away");
                return Err(BlockError::Io { operation, at, source });
            }
        }
    }
}

/// The cipher, held where no lane's slot can lose it meanwhile.
pub(crate) struct Borrowed<'a, C>(MutexGuard<'a, Option<Arc<C>>>);

impl<C> Deref for Borrowed<'_, C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.0.as_deref().expect("it was there when it was borrowed, and the lock is held since")
    }
}

/// The cipher of an open volume for work of the control side that clients wait for. What takes the key from the
/// volume's lanes takes it from here.
pub struct CipherLoan(LaneCustody<SectorCipher>);

impl CipherLoan {
    /// Has `work` done with the cipher, for sectors from `at` on; waits while the volume is frozen. An error says that
    /// the key will not come back.
    pub async fn lend<T>(&self, at: Lba, work: impl FnOnce(&SectorCipher) -> T) -> Result<T, BlockError> {
        let cipher = self.0.borrow(Operation::Write, at).await?;
        Ok(work(&cipher))
    }
}

impl fmt::Debug for CipherLoan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CipherLoan").finish_non_exhaustive()
    }
}

/// The control side's hold on the key of one open volume, for as long as the volume is open.
///
/// It can take the key away and give back that key and no other. Clones hold the same key.
#[derive(Clone)]
pub struct KeyHold {
    custody: Arc<Custody<SectorCipher>>,
    /// What the volume was opened with; a record that was changed since does not matter here.
    seal: Seal,
    fields: Arc<SealedFields>,
}

impl KeyHold {
    pub(crate) fn new(custody: Arc<Custody<SectorCipher>>, seal: Seal, fields: SealedFields) -> Self {
        Self { custody, seal, fields: Arc::new(fields) }
    }

    /// A loan of the key that is held, for one thread.
    pub fn loan(&self) -> CipherLoan {
        CipherLoan(self.custody.lane())
    }

    /// Wipes the round keys. Requests that need them wait from now on; flushes, which do not, go on. Returns when no
    /// thread has the key. Nothing if they [`fail`](Self::fail) already.
    pub fn freeze(&self) {
        self.custody.take(Presence::Frozen);
    }

    /// Wipes the round keys. Requests that need them fail from now on, those too that were waiting; this is final.
    pub fn fail(&self) {
        self.custody.take(Presence::Gone);
    }

    /// No more freezes, because the volume is about to be closed: requests that wait fail, and a key that is taken from now
    /// on is gone. A volume that has its key keeps it.
    pub fn conclude(&self) {
        self.custody.conclude();
    }

    /// Whether the volume is frozen.
    pub fn is_frozen(&self) -> bool {
        *self.custody.state.borrow() == Presence::Frozen
    }

    /// Whether the key was taken for good.
    pub fn is_gone(&self) -> bool {
        *self.custody.state.borrow() == Presence::Gone
    }

    /// Ends a freeze with the key that the volume was opened with: what waited goes on. Any other key is
    /// refused, and the volume stays frozen.
    pub fn restore(&self, key: &DataKey) -> Result<(), OpenError> {
        self.seal.verify(key, &self.fields)?;
        self.custody.give(SectorCipher::new(key)?);
        Ok(())
    }
}

impl fmt::Debug for KeyHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHold").field("state", &*self.custody.state.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// A cipher that says when it is dropped.
    struct Witness {
        _alive: Arc<()>,
    }

    fn custody() -> (Custody<Witness>, Weak<()>) {
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        (Custody::new(Witness { _alive: alive }), watched)
    }

    /// Whether a borrow succeeds, fails, or waits.
    fn borrowed(lane: &LaneCustody<Witness>) -> Option<bool> {
        match pin!(lane.borrow(Operation::Read, Lba(0))).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome.is_ok()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn r19_taking_drops_the_cipher_of_idle_lanes_and_of_later_ones() {
        let (custody, alive) = custody();
        let lanes = [custody.lane(), custody.lane()];
        assert!(lanes.iter().all(|lane| borrowed(lane) == Some(true)));
        custody.take(Presence::Frozen);
        assert_eq!(alive.strong_count(), 0, "nobody has it");
        let later = custody.lane();
        assert!(lanes.iter().chain([&later]).all(|lane| borrowed(lane).is_none()), "they wait");

        let (again, _) = self::custody();
        let cipher = lock(&again.lanes).cipher.take().expect("a cipher");
        custody.give(Arc::into_inner(cipher).expect("nobody else has it"));
        assert!(lanes.iter().chain([&later]).all(|lane| borrowed(lane) == Some(true)), "they go on");
    }

    #[test]
    fn a_borrowed_cipher_is_waited_for() {
        let (custody, alive) = custody();
        let lane = custody.lane();
        std::thread::scope(|scope| {
            let slot = lock(&lane.slot.0);
            let taker = scope.spawn(|| custody.take(Presence::Frozen));
            // The reason is given before the slot is asked for.
            while *custody.state.borrow() == Presence::Present {
                std::thread::yield_now();
            }
            assert!(slot.is_some() && alive.strong_count() > 0);
            drop(slot);
            taker.join().expect("it ends");
        });
        assert_eq!(alive.strong_count(), 0);
    }

    #[test]
    fn what_is_gone_does_not_come_back() {
        let (custody, _) = custody();
        let lane = custody.lane();
        custody.take(Presence::Gone);
        assert_eq!(borrowed(&lane), Some(false));
        custody.take(Presence::Frozen);
        custody.give(Witness { _alive: Arc::new(()) });
        assert_eq!(borrowed(&lane), Some(false));
        assert_eq!(borrowed(&custody.lane()), Some(false));
    }

    #[test]
    fn nobody_waits_once_it_is_concluded() {
        for freeze_first in [true, false] {
            let (custody, alive) = custody();
            let lane = custody.lane();
            if freeze_first {
                custody.take(Presence::Frozen);
                custody.conclude();
            } else {
                custody.conclude();
                assert_eq!(borrowed(&lane), Some(true), "what is there stays");
                custody.take(Presence::Frozen);
            }
            assert_eq!(borrowed(&lane), Some(false), "{freeze_first}");
            assert_eq!(alive.strong_count(), 0);
        }
    }

    #[test]
    fn a_lane_that_was_closed_is_forgotten() {
        let (custody, _) = custody();
        (0..100).for_each(|_| drop(custody.lane()));
        assert!(lock(&custody.lanes).slots.len() <= 1);
    }
}
