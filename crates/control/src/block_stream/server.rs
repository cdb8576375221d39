//! The serving side of the block stream.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sealblk_snapshot::{block_bytes, block_count};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::wire::{self, Action, HELLO_BYTES, Hello, Outcome, REQUEST_BYTES, Reply, Request, malformed};
use super::{MOST_BLOCKS, ServeBlocks, ServedBlock};

/// Requests that are answered at the same time, each with a block in memory.
const WINDOW: u32 = 16;
/// How long a peer may take from the beginning of a message to its end.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// How long a peer may leave a reply untaken, unless something else was said.
const TAKE_TIME: Duration = Duration::from_secs(60);
/// How long a server that gives up may take to say so.
const PARTING_TIME: Duration = Duration::from_secs(1);

/// For how long a client may ask for nothing, and take nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// Between two requests for ever: what is served costs nobody anything.
    Endless,
    /// So long; then it has lost what is served.
    Bounded(Duration),
}

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// The client said that it is complete, and so it is.
    Completed,
    /// The client went away.
    Left,
}

/// Serves `blocks` to the peer of `stream` until it says that it is complete or goes away; an error: it does not keep to the
/// protocol, or `patience` with it is over.
///
/// Runs on a current-thread runtime with I/O and time, inside a local task set. May be dropped at any time.
pub(crate) async fn serve<S: ServeBlocks>(
    stream: UnixStream,
    blocks: S,
    patience: Patience,
) -> io::Result<Ended> {
    let size_bytes = blocks.size_bytes();
    let (mut from, mut to) = stream.into_split();
    in_time(TAKE_TIME, to.write_all(&Hello { size_bytes, window: WINDOW }.encode())).await?;
    let mut hello = [0; HELLO_BYTES];
    in_time(MESSAGE_TIME, from.read_exact(&mut hello)).await?;
    if Hello::decode(&hello)? != (Hello { size_bytes: 0, window: 0 }) {
        return Err(malformed("the client's hello is not a client's"));
    }
    let server = Rc::new(Server {
        blocks,
        to: Mutex::new(to),
        count: block_count(size_bytes),
        patience,
        unanswered: Cell::new(0),
        last_heard: Cell::new(Instant::now()),
    });
    let mut answers = JoinSet::new();
    let ended = tokio::select! {
        ended = answer_all(&server, &mut from, &mut answers) => ended,
        silent_for = server.silence() => Err(server.part(silent_for).await),
    };
    // Nothing of `blocks` is in use any more when this returns.
    answers.shutdown().await;
    ended
}

/// Answers requests, several at once, until the last.
async fn answer_all<S: ServeBlocks>(
    server: &Rc<Server<S>>,
    from: &mut OwnedReadHalf,
    answers: &mut JoinSet<io::Result<()>>,
) -> io::Result<Ended> {
    let room = Arc::new(Semaphore::new(usize::try_from(WINDOW).expect("a small number")));
    loop {
        // A client that asks for more than it may waits here.
        let permit = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
        let request = tokio::select! {
            request = next_request(from) => request?,
            failed = failure(answers) => return Err(failed),
        };
        let Some(request) = request else { return Ok(Ended::Left) };
        let asked = Asked::of(server);
        if request.action == Action::Complete {
            while let Some(answered) = answers.join_next().await {
                finished(answered)?;
            }
            return server.complete(request).await;
        }
        let server = Rc::clone(server);
        answers.spawn_local(async move {
            let answered = server.answer(request).await;
            drop((permit, asked));
            answered
        });
    }
}

/// The next request; `None`: the client has gone.
async fn next_request(from: &mut OwnedReadHalf) -> io::Result<Option<Request>> {
    let mut bytes = [0; REQUEST_BYTES];
    let (first, rest) = bytes.split_first_mut().expect("a request has bytes");
    match from.read(std::slice::from_mut(first)).await {
        Ok(0) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        read => read?,
    };
    in_time(MESSAGE_TIME, from.read_exact(rest)).await?;
    Request::decode(&bytes).map(Some)
}

/// Waits for an answer that could not be given.
async fn failure(answers: &mut JoinSet<io::Result<()>>) -> io::Error {
    loop {
        match answers.join_next().await {
            None => std::future::pending().await,
            Some(answered) => {
                if let Err(error) = finished(answered) {
                    return error;
                }
            }
        }
    }
}

fn finished(answered: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    answered.unwrap_or_else(|failed| match failed.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => Err(io::Error::other(cancelled)),
    })
}

async fn in_time<T>(time: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer of a block stream stopped halfway");
    timeout(time, work).await.map_err(late)?
}

struct Server<S> {
    blocks: S,
    to: Mutex<OwnedWriteHalf>,
    count: u64,
    patience: Patience,
    /// While there are any, it is not the client that is waited for, unless it takes no reply.
    unanswered: Cell<usize>,
    /// When the last request came, or the last reply had been taken.
    last_heard: Cell<Instant>,
}

/// A request until it is answered.
struct Asked<S>(Rc<Server<S>>);

impl<S> Asked<S> {
    fn of(server: &Rc<Server<S>>) -> Self {
        server.unanswered.set(server.unanswered.get() + 1);
        Self(Rc::clone(server))
    }
}

impl<S> Drop for Asked<S> {
    fn drop(&mut self) {
        self.0.unanswered.set(self.0.unanswered.get() - 1);
        self.0.last_heard.set(Instant::now());
    }
}

impl<S> Server<S> {
    /// Returns when the client has asked for nothing for longer than it may: for how long.
    async fn silence(&self) -> Duration {
        let Patience::Bounded(most) = self.patience else { return std::future::pending().await };
        loop {
            let busy = self.unanswered.get() > 0;
            let since = if busy { Instant::now() } else { self.last_heard.get() };
            if since.elapsed() >= most {
                return most;
            }
            sleep_until(since + most).await;
        }
    }

    /// Tells the client that it has lost what was served; the error.
    async fn part(&self, silent_for: Duration) -> io::Error {
        let error = given_up(silent_for);
        let text = wire::message(&error);
        let length = u32::try_from(text.len()).expect("a short message");
        let reply = Reply { number: 0, outcome: Outcome::Over(length) };
        // A client that is not there for it finds its connection closed.
        let _ = timeout(PARTING_TIME, self.send(reply, text.as_bytes())).await;
        error
    }

    async fn send(&self, reply: Reply, tail: &[u8]) -> io::Result<()> {
        let mut to = self.to.lock().await;
        let sent = async {
            to.write_all(&reply.encode()).await?;
            to.write_all(tail).await
        };
        match self.patience {
            Patience::Endless => in_time(TAKE_TIME, sent).await,
            Patience::Bounded(most) => timeout(most, sent).await.map_err(|_| given_up(most))?,
        }
    }
}

fn given_up(silent_for: Duration) -> io::Error {
    let what = format!("nothing was asked for or taken for {} seconds: given up", silent_for.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: ServeBlocks> Server<S> {
    async fn answer(&self, request: Request) -> io::Result<()> {
        let answered = match request.action {
            Action::Next => self.next(request).await,
            Action::Read => return self.read(request).await,
            Action::Release => self.release(request).await,
            Action::Complete => Err(malformed("a stream is completed once")),
        };
        self.tell(request, answered).await
    }

    async fn complete(&self, request: Request) -> io::Result<Ended> {
        let completed = self.blocks.complete().await;
        let ended = if completed.is_ok() { Ended::Completed } else { Ended::Left };
        self.tell(request, completed.map(|()| Outcome::Done)).await?;
        Ok(ended)
    }

    async fn next(&self, request: Request) -> io::Result<Outcome> {
        if request.block >= self.count {
            return Ok(Outcome::None);
        }
        let run = self.blocks.next(request.block).await?;
        Ok(run.map_or(Outcome::None, |run| Outcome::Run {
            start: run.blocks.start,
            end: run.blocks.end,
            in_origin: run.in_origin,
        }))
    }

    async fn release(&self, request: Request) -> io::Result<Outcome> {
        let end = request.block.checked_add(request.count).filter(|&end| end <= self.count);
        let end = end.filter(|_| request.count <= MOST_BLOCKS).ok_or_else(outside)?;
        self.blocks.release(request.block..end).await?;
        Ok(Outcome::Done)
    }

    async fn read(&self, request: Request) -> io::Result<()> {
        if request.block >= self.count {
            return self.tell(request, Err(outside())).await;
        }
        match self.blocks.read(request.block).await {
            Ok(ServedBlock::Zero) => self.tell(request, Ok(Outcome::Zero)).await,
            Ok(ServedBlock::Data(data)) => {
                let length = block_bytes(self.blocks.size_bytes(), request.block);
                if u64::try_from(data.len()) != Ok(length) {
                    let what = format!("block {} has {length} bytes, not {}", request.block, data.len());
                    return self.tell(request, Err(io::Error::new(io::ErrorKind::InvalidData, what))).await;
                }
                let length = u32::try_from(length).expect("a block is 512 KiB at most");
                self.send(Reply { number: request.number, outcome: Outcome::Data(length) }, &data).await
            }
            Err(error) => self.tell(request, Err(error)).await,
        }
    }

    async fn tell(&self, request: Request, answered: io::Result<Outcome>) -> io::Result<()> {
        let number = request.number;
        match answered {
            Ok(outcome) => self.send(Reply { number, outcome }, &[]).await,
            Err(error) => {
                let text = wire::message(&error);
                let length = u32::try_from(text.len()).expect("a short message");
                let outcome = Outcome::Error { kind: error.kind(), length };
                self.send(Reply { number, outcome }, text.as_bytes()).await
            }
        }
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a block that there is not, or too many at once")
}
