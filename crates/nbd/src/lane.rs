//! A lane: everything that happens on one connection after its negotiation.
//!
//! A lane is one thread with a fixed set of workers, coroutines that all run [`Lane::serve_requests`]:
//! the whole life of a request, from first byte to last, in one function without a hand-over. The link
//! to the client is a baton. A worker keeps it as long as its requests complete without waiting (data in
//! the page cache), and so handles a batch of requests like a plain loop; when a request has to wait for
//! storage, the worker passes the baton on first. So slow requests overlap, as many as there are
//! workers, and complete in any order. In steady state nothing here allocates.
//!
//! Called by [`crate::connection`], once per connection.

use std::cell::{Cell, RefCell, RefMut};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sealblk_block::{BlockError, BlockLane, Buffer, ByteLane};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::baton::Baton;
use crate::buffers::Buffers;
use crate::connection::Limits;
use crate::link::{End, Link};
use crate::outbox::{Outbox, Tail};
use crate::reply::{Head, ReplyTo, WireError};
use crate::request::{Arrival, MAX_STATUS_PAYLOAD_BYTES, Request};
use crate::session::{Dialect, Session};
use crate::stats::{Meter, Timed};
use crate::status::{Inquiry, StatusDesk};
use crate::stop::StopSignal;
use crate::wire::EXTENDED_REQUEST_HEADER_BYTES;

/// A stopping lane serves what arrives within this time, for it was probably under way; later requests
/// are answered that the server is going away.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// One connection's transmission phase.
pub(crate) struct Lane<S, L> {
    device: ByteLane<L>,
    session: Session,
    link: Baton<Box<Link<S>>>,
    shared: Shared,
    status: StatusDesk,
    meter: Meter,
}

/// A request that was received whole: nothing is missing to carry it out.
struct Received {
    to: ReplyTo,
    request: Request,
    /// The room for what is to be sent, or a WRITE's payload.
    buffer: Option<Buffer>,
}

/// What a carried-out request leaves.
type Done = (Result<(), BlockError>, Option<Buffer>);

impl<S, L> Lane<S, L>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    L: BlockLane,
{
    pub(crate) fn new(
        device: ByteLane<L>,
        session: Session,
        link: Link<S>,
        limits: &Limits,
        meter: Meter,
    ) -> Rc<Self> {
        Rc::new(Self {
            device,
            session,
            link: Baton::new(Box::new(link), limits.workers),
            shared: Shared::new(limits.in_flight_bytes),
            status: StatusDesk::default(),
            meter,
        })
    }

    /// Serves until the client or the server ends it, and closes the connection.
    pub(crate) async fn run(self: Rc<Self>, workers: usize, mut stop: StopSignal) -> End {
        let mut running = JoinSet::new();
        for _ in 0..workers {
            running.spawn_local(Rc::clone(&self).serve_requests());
        }
        let mut stopping = pin!(async {
            stop.draining().await;
            self.shared.stop();
            tokio::time::sleep(STOP_GRACE).await;
            self.shared.refusing.set(true);
            std::future::pending::<()>().await;
        });
        loop {
            tokio::select! {
                joined = running.join_next() => match joined {
                    None => break,
                    Some(Ok(())) => {}
                    // A worker's panic is the connection's: the others may wait for a baton that is gone.
                    Some(Err(failed)) => std::panic::resume_unwind(failed.into_panic()),
                },
                () = &mut stopping => {}
            }
        }
        self.link.take().await.close().await;
        self.shared.end.take().expect("workers stop for a reason")
    }

    /// What every worker does: receive a request, check it, carry it out, queue its reply.
    async fn serve_requests(self: Rc<Self>) {
        let mut link = self.link.take().await;
        while self.shared.is_open() {
            let Received { to, request, buffer } = match self.receive(&mut link).await {
                Ok(Some(received)) => received,
                Ok(None) => continue,
                Err(end) => {
                    self.shared.end_with(end);
                    if let Err(end) = link.answer_the_rest(&self.shared).await {
                        self.shared.end_with(end);
                    }
                    break;
                }
            };
            let timed = self.meter.begin();
            let mut work = pin!(self.carry_out(to, &request, buffer));
            if let Poll::Ready(done) = poll_once(work.as_mut()).await {
                self.reply(to, &request, done, timed);
                continue;
            }
            self.shared.in_flight.update(|count| count + 1);
            self.link.pass(link);
            let done = work.await;
            self.reply(to, &request, done, timed);
            self.shared.in_flight.update(|count| count - 1);
            self.shared.nudge();
            link = self.link.take().await;
        }
        self.link.pass(link);
    }

    /// Receives one request whole. One that is refused is answered here: `None`.
    async fn receive(&self, link: &mut Link<S>) -> Result<Option<Received>, End> {
        let mut header = [0; EXTENDED_REQUEST_HEADER_BYTES];
        let header = &mut header[..self.dialect().request_header_bytes()];
        link.next_header(&self.shared, header).await?;
        let (to, payload_bytes, verdict) = match Arrival::check(header, &self.session) {
            Ok(Arrival::Request { to, payload_bytes, verdict }) => (to, payload_bytes, verdict),
            Ok(Arrival::SelectiveStatus { to, payload_bytes, status }) => {
                let mut payload = [0; MAX_STATUS_PAYLOAD_BYTES];
                let payload = &mut payload[..payload_bytes];
                link.receive(&self.shared, payload).await?;
                (to, 0, status.complete(payload, &self.session))
            }
            Ok(Arrival::Disconnect) => return Err(Ok(crate::Ended::Disconnected)),
            Err(violation) => return Err(Err(violation.into())),
        };
        let verdict = if self.shared.refusing.get() { Err(WireError::ShuttingDown) } else { verdict };
        let request = match verdict {
            Ok(request) => request,
            Err(error) => {
                link.discard(&self.shared, payload_bytes).await?;
                self.meter.refuse();
                let (head, text) = self.dialect().error(to, error);
                self.shared.queue(head, Tail::Text(text));
                return Ok(None);
            }
        };
        let buffer = match request {
            Request::Read { length, .. } => Some(link.buffer(&self.shared, in_memory(length)).await?),
            Request::BlockStatus(query) => {
                let most = self.dialect().status_bytes(query.contexts.len());
                Some(link.buffer(&self.shared, most).await?)
            }
            Request::Write { length, .. } => {
                let mut payload = link.buffer(&self.shared, in_memory(length)).await?;
                link.receive(&self.shared, &mut payload).await?;
                Some(payload)
            }
            _ => None,
        };
        Ok(Some(Received { to, request, buffer }))
    }

    /// Does what `request` asks for.
    async fn carry_out(&self, to: ReplyTo, request: &Request, buffer: Option<Buffer>) -> Done {
        const BUFFER: &str = "requests with data were given a buffer";
        match *request {
            Request::Read { offset, .. } => {
                let (outcome, buffer) = self.device.read(offset, buffer.expect(BUFFER)).await;
                (outcome, Some(buffer))
            }
            Request::Write { offset, durability, .. } => {
                let (outcome, buffer) = self.device.write(offset, buffer.expect(BUFFER), durability).await;
                (outcome, Some(buffer))
            }
            Request::Zero { offset, length, mode, durability } => {
                (self.device.zero(offset, length, mode, durability).await, None)
            }
            Request::Discard { offset, length, durability } => {
                (self.device.discard(offset, length, durability).await, None)
            }
            Request::Flush => (self.device.flush().await, None),
            Request::BlockStatus(query) => {
                let inquiry = Inquiry { session: &self.session, to, query };
                let (outcome, buffer) =
                    self.status.answer(&self.device, inquiry, buffer.expect(BUFFER)).await;
                (outcome, Some(buffer))
            }
            Request::Cache { .. } | Request::Nothing => (Ok(()), None),
        }
    }

    /// Queues the reply to a request that was carried out. What a failed one left in its buffer is nobody's
    /// business, and what a WRITE left is scratch.
    fn reply(&self, to: ReplyTo, request: &Request, (outcome, buffer): Done, timed: Option<Timed>) {
        self.meter.finish(timed, request, outcome.is_ok());
        let dialect = self.dialect();
        let (head, tail) = match (outcome, buffer) {
            (Err(error), unsent) => {
                self.give_back(unsent);
                let (head, text) = dialect.error(to, WireError::of(&error, request));
                (head, Tail::Text(text))
            }
            (Ok(()), Some(data)) => match *request {
                Request::Read { length, .. } => self.reply_to_read(to, length, data),
                Request::BlockStatus(_) => (Head::empty(), Tail::Data(data)),
                _ => {
                    self.give_back(Some(data));
                    (dialect.success(to), Tail::Text(""))
                }
            },
            (Ok(()), None) => (dialect.success(to), Tail::Text("")),
        };
        self.shared.queue(head, tail);
    }

    /// The reply to a READ: its data, or that it is all zeros where that can be said. Looking costs next to
    /// nothing, for it ends with the first byte that is not zero; and zeros that are not sent are copied
    /// neither here nor at the client's.
    fn reply_to_read(&self, to: ReplyTo, length: u32, data: Buffer) -> (Head, Tail) {
        if let Some(head) = self.dialect().hole(to, length)
            && is_zero(&data)
        {
            self.give_back(Some(data));
            return (head, Tail::Text(""));
        }
        (self.dialect().data(to, length), Tail::Data(data))
    }

    fn give_back(&self, buffer: Option<Buffer>) {
        buffer.into_iter().for_each(|buffer| self.shared.buffers().give_back(buffer));
    }

    fn dialect(&self) -> Dialect {
        self.session.agreement.dialect
    }
}

/// Whether all bytes are zero. In pieces, each of which the compiler looks at in a few instructions.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// A length as a size in memory.
fn in_memory(length: u32) -> usize {
    usize::try_from(length).expect("checked requests have at most 32 MiB")
}

/// Polls `future` once: its output, if it needed no waiting.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// What the workers of a lane share besides the link.
pub(crate) struct Shared {
    buffers: RefCell<Buffers>,
    outbox: RefCell<Outbox>,
    /// The worker that holds the link, if it sleeps.
    holder: Cell<Option<Waker>>,
    /// Requests that wait for storage.
    in_flight: Cell<usize>,
    /// Why no further request will be received, once that is so.
    end: Cell<Option<End>>,
    ended: Cell<bool>,
    stopping: Cell<bool>,
    refusing: Cell<bool>,
}

impl Shared {
    fn new(in_flight_bytes: usize) -> Self {
        Self {
            buffers: RefCell::new(Buffers::new(in_flight_bytes)),
            outbox: RefCell::new(Outbox::new()),
            holder: Cell::new(None),
            in_flight: Cell::new(0),
            end: Cell::new(None),
            ended: Cell::new(false),
            stopping: Cell::new(false),
            refusing: Cell::new(false),
        }
    }

    pub(crate) fn buffers(&self) -> RefMut<'_, Buffers> {
        self.buffers.borrow_mut()
    }

    pub(crate) fn outbox(&self) -> RefMut<'_, Outbox> {
        self.outbox.borrow_mut()
    }

    /// Whether the lane was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Whether no accepted request is without its reply, and none of those unsent.
    pub(crate) fn is_all_answered(&self) -> bool {
        self.in_flight.get() == 0 && self.outbox.borrow().is_empty()
    }

    /// Sends queued replies as far as the stream takes them.
    pub(crate) fn poll_send<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.outbox.borrow_mut().poll_send(stream, &mut self.buffers.borrow_mut(), context)
    }

    /// Drops all replies, now and from now on.
    pub(crate) fn give_up_sending(&self) {
        self.outbox.borrow_mut().close(&mut self.buffers.borrow_mut());
    }

    /// The worker that holds the link goes to sleep; [`Self::nudge`] wakes it.
    pub(crate) fn nudge_when_queued(&self, waker: &Waker) {
        let waker = match self.holder.take() {
            Some(known) if known.will_wake(waker) => known,
            _ => waker.clone(),
        };
        self.holder.set(Some(waker));
    }

    fn nudge(&self) {
        if let Some(waker) = self.holder.take() {
            waker.wake();
        }
    }

    fn queue(&self, head: Head, tail: Tail) {
        self.outbox.borrow_mut().push(head, tail, &mut self.buffers.borrow_mut());
    }

    fn is_open(&self) -> bool {
        !self.ended.get()
    }

    /// Notes why the lane ends; the first reason stays, unless a failure follows an orderly end.
    fn end_with(&self, end: End) {
        self.ended.set(true);
        let reason = match self.end.take() {
            Some(Ok(_)) | None => end,
            failure => failure.expect("it is not None"),
        };
        self.end.set(Some(reason));
    }

    fn stop(&self) {
        self.stopping.set(true);
        self.nudge();
    }
}
