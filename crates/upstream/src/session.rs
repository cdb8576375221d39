//! What all connections to an export share: which generation of connections counts, and what was acknowledged.
//!
//! **Epochs.** When any connection is lost, nobody knows whether its server is the one that the others still
//! talk to. So all connections of an epoch end with the first of them; an answer that arrives on one that has
//! not noticed yet no longer counts ([`Session::acknowledge`] decides under the lock). The primary connection
//! alone comes back, makes the journal's changes again and flushes them, and only then the next epoch begins.
//!
//! **Flushes** go to every connection that unflushed changes were made on, so that they do not depend on what
//! the server makes of several connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::error::UpstreamError;
use crate::export::Export;
use crate::handshake::Target;
use crate::job::Job;
use crate::journal::{Change, Journal};
use crate::order::Order;

/// Tells connections of one export apart, also over time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// A generation of connections, and whether it has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Phase {
    pub(crate) epoch: u64,
    /// Requests may be made; else the primary connection is being restored.
    pub(crate) up: bool,
}

/// See the module's header.
pub(crate) struct Session {
    pub(crate) target: Target,
    /// The export, as the first connection met it.
    pub(crate) export: Export,
    pub(crate) order: Arc<Order>,
    pub(crate) limits: Limits,
    /// Held while making room in the journal, so that one flush serves all who wait for it.
    pub(crate) making_room: tokio::sync::Mutex<()>,
    latched: AtomicBool,
    connections: AtomicU64,
    phase: watch::Sender<Phase>,
    state: Mutex<State>,
}

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) handshake: Duration,
    pub(crate) reconnect: Duration,
    pub(crate) retained_bytes: usize,
}

#[derive(Default)]
struct State {
    epoch: u64,
    journal: Journal,
    members: BTreeMap<ConnectionId, mpsc::WeakUnboundedSender<Job>>,
    /// What went wrong last, for errors.
    trouble: String,
}

impl Session {
    pub(crate) fn new(target: Target, export: Export, limits: Limits) -> Self {
        Self {
            target,
            export,
            order: Arc::default(),
            limits,
            making_room: tokio::sync::Mutex::default(),
            latched: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            phase: watch::Sender::new(Phase { epoch: 0, up: true }),
            state: Mutex::default(),
        }
    }

    /// An id that no other connection has or had.
    pub(crate) fn new_connection(&self) -> ConnectionId {
        ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// The present phase, and a way to see it change.
    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Tells where flushes for `id` are to go.
    pub(crate) fn enroll(&self, id: ConnectionId, jobs: mpsc::WeakUnboundedSender<Job>) {
        self.state().members.insert(id, jobs);
    }

    /// The connection `id` is no more. What was made on it and is not flushed stays in the journal.
    pub(crate) fn leave(&self, id: ConnectionId) {
        self.state().members.remove(&id);
    }

    /// An answer on connection `by` of `epoch` says that `change` was made. `false`: the epoch is over, and
    /// the answer does not count.
    pub(crate) fn acknowledge(&self, epoch: u64, by: ConnectionId, change: Option<(Change, bool)>) -> bool {
        let mut state = self.state();
        if state.epoch != epoch {
            return false;
        }
        if let Some((change, forced)) = change {
            state.journal.note(by, change, forced);
        }
        true
    }

    /// A flush on connection `by`, asked for at `mark`, has succeeded. As for [`Self::acknowledge`].
    pub(crate) fn flushed(&self, epoch: u64, by: ConnectionId, mark: u64) -> bool {
        let mut state = self.state();
        if state.epoch != epoch {
            return false;
        }
        state.journal.forget(by, mark);
        true
    }

    /// A connection of `epoch` is lost, and with it the epoch.
    pub(crate) fn lose(&self, epoch: u64, why: &dyn std::fmt::Display) {
        let mut state = self.state();
        if state.epoch == epoch && self.phase.borrow().up {
            state.epoch += 1;
            state.trouble = why.to_string();
            self.phase.send_replace(Phase { epoch: state.epoch, up: false });
        }
    }

    /// As [`Self::lose`], for the present epoch.
    pub(crate) fn lose_present(&self, why: &str) {
        let epoch = self.state().epoch;
        self.lose(epoch, &why);
    }

    /// What is to be made again before the present epoch may begin; `None`: it has begun.
    pub(crate) fn recovery(&self) -> Option<(u64, Vec<Change>)> {
        let state = self.state();
        let phase = *self.phase.borrow();
        (!phase.up).then(|| (state.epoch, state.journal.changes()))
    }

    /// All of it was made again, and is durable: `epoch` begins.
    pub(crate) fn recovered(&self, epoch: u64) {
        let mut state = self.state();
        state.journal.clear();
        self.phase.send_replace(Phase { epoch, up: true });
    }

    /// Notes why an attempt to come back failed.
    pub(crate) fn note_trouble(&self, error: &UpstreamError) {
        self.state().trouble = error.with_causes();
    }

    /// What went wrong last.
    pub(crate) fn trouble(&self) -> String {
        self.state().trouble.clone()
    }

    /// The journal's mark: what is acknowledged from now on comes after it.
    pub(crate) fn mark(&self) -> u64 {
        self.state().journal.mark()
    }

    /// Whether so much is kept that it should be flushed.
    pub(crate) fn is_full(&self) -> bool {
        self.state().journal.held_bytes() >= self.limits.retained_bytes
    }

    /// Who has to flush for everything before `mark` to be durable; a connection that is gone has no way.
    pub(crate) fn dirty_before(&self, mark: u64) -> Vec<(ConnectionId, Option<mpsc::UnboundedSender<Job>>)> {
        let state = self.state();
        let member = |id| state.members.get(&id).and_then(mpsc::WeakUnboundedSender::upgrade);
        state.journal.dirty_before(mark).into_iter().map(|id| (id, member(id))).collect()
    }

    /// Whether a flush has failed: nobody knows what is durable.
    pub(crate) fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// No write or flush succeeds from here on.
    pub(crate) fn latch(&self) {
        self.latched.store(true, Ordering::Release);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
