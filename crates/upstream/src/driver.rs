//! The life of a connection, on a thread of its own: established, at work, lost, restored.
//!
//! The **primary** connection lives as long as the device and is the only one that restores the session after a
//! loss. **Extra** connections exist where the server allows several: each takes one lane's jobs while it works,
//! and hands them to the primary while it does not. So there is one place where jobs wait for a server to come
//! back, and one clock for how long.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::UpstreamError;
use crate::export::Export;
use crate::handshake::Target;
use crate::job::{Failure, Job, Work};
use crate::link::Link;
use crate::replay::replay;
use crate::reply::LinkError;
use crate::session::{ConnectionId, Limits, Phase, Session};
use crate::stream::Stream;

/// How often a request is made that loses its connection each time: it may be what the server dies of.
const MAX_ATTEMPTS: u32 = 10;
/// Rests between attempts to come back: doubled each time, up to the maximum.
const FIRST_REST: Duration = Duration::from_millis(50);
const MAX_REST: Duration = Duration::from_secs(2);
/// A connection that lasted so long, or answered anything, shows a server that works.
const STEADY: Duration = Duration::from_secs(5);

/// A connection that is ready for requests.
struct Established {
    stream: Stream,
    export: Export,
    epoch: u64,
}

/// How a connection's work ended.
enum Ended {
    /// Nobody has jobs for it any more.
    Closed,
    /// It is lost; `again` is to be made again. `worked`: it was good for something.
    Lost { again: VecDeque<Job>, worked: bool },
}

/// Connects, and then works on a thread of its own until nobody holds the sender any more.
pub(crate) fn start_primary(
    target: Target,
    limits: Limits,
) -> Result<(Arc<Session>, mpsc::UnboundedSender<Job>), UpstreamError> {
    let (jobs, inbox) = mpsc::unbounded_channel();
    let (ready, opened) = std::sync::mpsc::sync_channel(1);
    let weak = jobs.downgrade();
    start_thread(move |runtime| {
        runtime.block_on(async {
            let reached = timeout(limits.handshake, target.reach()).await;
            let (stream, export) = match reached.unwrap_or(Err(UpstreamError::TimedOut)) {
                Ok(reached) => reached,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let session = Arc::new(Session::new(target, export, limits));
            let id = session.new_connection();
            session.enroll(id, weak);
            if ready.send(Ok(Arc::clone(&session))).is_err() {
                return;
            }
            let primary =
                Primary { session, id, inbox, waiting: VecDeque::new(), rest: Duration::ZERO, lost: None };
            primary.run(Established { stream, export, epoch: 0 }).await;
        });
    })?;
    let session = opened.recv().map_err(|_| UpstreamError::Start(io::Error::other("it ended at once")))??;
    Ok((session, jobs))
}

/// Starts another connection, for one lane.
pub(crate) fn start_extra(
    session: Arc<Session>,
    primary: mpsc::UnboundedSender<Job>,
) -> Result<mpsc::UnboundedSender<Job>, UpstreamError> {
    let (jobs, inbox) = mpsc::unbounded_channel();
    let id = session.new_connection();
    session.enroll(id, jobs.downgrade());
    start_thread(move |runtime| {
        runtime.block_on(async {
            Extra { session: Arc::clone(&session), id, inbox, primary }.run().await;
            session.leave(id);
        });
    })?;
    Ok(jobs)
}

fn start_thread(body: impl FnOnce(tokio::runtime::Runtime) + Send + 'static) -> Result<(), UpstreamError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(UpstreamError::Start)?;
    let thread = std::thread::Builder::new().name("sealblk-upstream".to_owned());
    thread.spawn(move || body(runtime)).map_err(UpstreamError::Start)?;
    Ok(())
}

/// Works until the connection, its epoch, or the need for it ends.
async fn serve(
    session: &Session,
    id: ConnectionId,
    established: Established,
    waiting: &mut VecDeque<Job>,
    inbox: &mut mpsc::UnboundedReceiver<Job>,
) -> Ended {
    let Established { stream, export, epoch } = established;
    let link = Link::new(session, id, epoch, export);
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = tokio::io::BufReader::with_capacity(64 * 1024, reader);
    let mut phases = session.phases();
    let begun = Instant::now();
    let over = tokio::select! {
        sent = link.send(&mut writer, waiting, inbox) => sent,
        received = link.receive(&mut reader) => received,
        // An error would be a session that is gone, but it is borrowed.
        _ = phases.wait_for(|phase| phase.epoch != epoch) => Err(LinkError::Stale),
    };
    let worked = link.made_progress() || begun.elapsed() >= STEADY;
    let Err(error) = over else { return Ended::Closed };
    session.lose(epoch, &with_cause(&error));
    let mut again = VecDeque::new();
    for mut job in link.unfinished() {
        job.attempts += 1;
        if job.attempts < MAX_ATTEMPTS {
            again.push_back(job);
        } else {
            let failure = Failure::Repeatedly { attempts: job.attempts, last: session.trouble() };
            job.finish(Err(failure), Vec::new());
        }
    }
    again.append(waiting);
    Ended::Lost { again, worked }
}

fn with_cause(error: &LinkError) -> String {
    match error {
        LinkError::Broken(cause) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}

/// See the module's header.
struct Primary {
    session: Arc<Session>,
    id: ConnectionId,
    inbox: mpsc::UnboundedReceiver<Job>,
    waiting: VecDeque<Job>,
    /// Before the next attempt to come back.
    rest: Duration,
    /// When the server was last known to work, if it is not now.
    lost: Option<Instant>,
}

impl Primary {
    async fn run(mut self, mut established: Established) {
        loop {
            let served = serve(&self.session, self.id, established, &mut self.waiting, &mut self.inbox).await;
            match served {
                Ended::Closed => return,
                Ended::Lost { again, worked } => {
                    self.waiting = again;
                    if worked || self.lost.is_none() {
                        self.lost = Some(Instant::now());
                        self.rest = Duration::ZERO;
                    }
                }
            }
            established = match self.come_back().await {
                Some(established) => established,
                None => return,
            };
        }
    }

    /// Restores the session, while jobs gather; fails them once it takes too long, and then each as it comes,
    /// but goes on trying. `None`: nobody has jobs any more.
    async fn come_back(&mut self) -> Option<Established> {
        let limit = self.session.limits.reconnect;
        let deadline = self.lost.unwrap_or_else(Instant::now) + limit;
        let session = Arc::clone(&self.session);
        let mut restore = std::pin::pin!(restore(&session, &mut self.rest));
        let mut overdue = false;
        loop {
            tokio::select! {
                biased;
                restored = &mut restore => match restored {
                    Ok(established) => return Some(established),
                    Err(changed) => {
                        let failure = Failure::Changed(changed.with_causes());
                        fail_for_ever(&mut self.waiting, &mut self.inbox, &failure).await;
                        return None;
                    }
                },
                job = self.inbox.recv() => match job {
                    None => return None,
                    Some(job) if overdue => job.finish(Err(lost(&session)), Vec::new()),
                    Some(job) => self.waiting.push_back(job),
                },
                () = sleep_until(deadline), if !overdue => {
                    overdue = true;
                    for job in self.waiting.drain(..) {
                        job.finish(Err(lost(&session)), Vec::new());
                    }
                }
            }
        }
    }
}

fn lost(session: &Session) -> Failure {
    Failure::Lost { after: session.limits.reconnect, last: session.trouble() }
}

async fn fail_for_ever(
    waiting: &mut VecDeque<Job>,
    inbox: &mut mpsc::UnboundedReceiver<Job>,
    failure: &Failure,
) {
    for job in waiting.drain(..) {
        job.finish(Err(failure.clone()), Vec::new());
    }
    while let Some(job) = inbox.recv().await {
        job.finish(Err(failure.clone()), Vec::new());
    }
}

/// Reaches the server again, makes it whole, and begins the next epoch. Tries until it succeeds, or until what
/// is there is not the export any more.
async fn restore(session: &Session, rest: &mut Duration) -> Result<Established, UpstreamError> {
    loop {
        sleep(*rest).await;
        *rest = (*rest * 2).clamp(FIRST_REST, MAX_REST);
        let Some((epoch, changes)) = session.recovery() else { continue };
        let attempt = async {
            let (mut stream, export) = reach_again(session).await?;
            let bounded = timeout(session.limits.reconnect, replay(&mut stream, &export, &changes));
            bounded.await.unwrap_or(Err(UpstreamError::TimedOut))?;
            Ok(Established { stream, export, epoch })
        };
        match attempt.await {
            Ok(established) => {
                session.recovered(epoch);
                return Ok(established);
            }
            Err(changed @ UpstreamError::Changed(_)) => return Err(changed),
            Err(error) => session.note_trouble(&error),
        }
    }
}

/// A fresh connection to the same export.
async fn reach_again(session: &Session) -> Result<(Stream, Export), UpstreamError> {
    let reached = timeout(session.limits.handshake, session.target.reach()).await;
    let (stream, export) = reached.unwrap_or(Err(UpstreamError::TimedOut))?;
    session.export.require_same(&export)?;
    Ok((stream, export))
}

/// See the module's header.
struct Extra {
    session: Arc<Session>,
    id: ConnectionId,
    inbox: mpsc::UnboundedReceiver<Job>,
    primary: mpsc::UnboundedSender<Job>,
}

impl Extra {
    async fn run(&mut self) {
        let mut phases = self.session.phases();
        let mut tried = None;
        loop {
            // One attempt for each epoch: a server that wants no more connections is not pestered.
            let phase = self.next_phase(&mut phases, tried).await;
            let Some(Phase { epoch, .. }) = phase else { return };
            tried = Some(epoch);
            let Some(joined) = self.join(epoch).await else { return };
            let Ok(established) = joined else { continue };
            let mut waiting = VecDeque::new();
            match serve(&self.session, self.id, established, &mut waiting, &mut self.inbox).await {
                Ended::Closed => return,
                Ended::Lost { again, worked } => {
                    again.into_iter().for_each(|job| self.hand_over(job));
                    if !worked {
                        // It ends the others with itself, so it is left at that.
                        return self.hand_over_all().await;
                    }
                }
            }
        }
    }

    /// The next epoch that was not tried, once it has begun; jobs go to the primary until then. `None`: no
    /// more jobs will come.
    async fn next_phase(&mut self, phases: &mut watch::Receiver<Phase>, tried: Option<u64>) -> Option<Phase> {
        let is_new = |phase: &Phase| phase.up && Some(phase.epoch) != tried;
        loop {
            tokio::select! {
                biased;
                phase = phases.wait_for(is_new) => return phase.ok().map(|phase| *phase),
                job = self.inbox.recv() => self.hand_over(job?),
            }
        }
    }

    /// Connects within `epoch`; jobs go to the primary meanwhile. `None`: no more jobs will come.
    ///
    /// Before the first request, every connection that has something unflushed flushes it. A server that was
    /// started anew, without the others having noticed yet, is so found out before it shows old data here.
    async fn join(&mut self, epoch: u64) -> Option<Result<Established, UpstreamError>> {
        let session = Arc::clone(&self.session);
        let mut joining = std::pin::pin!(async {
            let (stream, export) = reach_again(&session).await?;
            flush_dirty(&session).await;
            Ok(Established { stream, export, epoch })
        });
        loop {
            tokio::select! {
                biased;
                joined = &mut joining => return Some(joined),
                job = self.inbox.recv() => self.hand_over(job?),
            }
        }
    }

    async fn hand_over_all(&mut self) {
        while let Some(job) = self.inbox.recv().await {
            self.hand_over(job);
        }
    }

    fn hand_over(&self, job: Job) {
        if let Err(mpsc::error::SendError(job)) = self.primary.send(job) {
            job.finish(Err(Failure::Ended), Vec::new());
        }
    }
}

/// Has every connection flush that acknowledged something since its last flush, and waits. A flush that fails
/// latches.
async fn flush_dirty(session: &Session) {
    let mark = session.mark();
    for (_, jobs) in session.dirty_before(mark) {
        let (flush, done) = Job::new(Work::Flush { mark }, None);
        // A connection that is gone was lost, and with it the epoch: nothing is believed of it anyway.
        if jobs.is_some_and(|jobs| jobs.send(flush).is_ok())
            && done.await.is_ok_and(|done| done.outcome.is_err())
        {
            session.latch();
        }
    }
}
