//! The asking side of the block stream. The peer is not believed: lengths and runs are checked against what was asked for
//! before anything is allocated.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sealblk_snapshot::{MAX_VOLUME_BYTES, block_bytes, block_count};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Run;
use super::wire::{Action, HELLO_BYTES, Hello, Outcome, REPLY_BYTES, Reply, Request, malformed};

/// How long the server may take for its hello.
const HELLO_TIME: Duration = Duration::from_secs(30);
/// Requests that are unanswered at the same time, if the server takes so many.
const WINDOW: u32 = 64;

/// A block as it came.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum StreamedBlock {
    /// Zeros throughout.
    Zero,
    /// Its bytes: exactly as many as it has.
    Data(Vec<u8>),
}

impl std::fmt::Debug for StreamedBlock {
    /// Without the bytes: they are a guest's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Zero => f.write_str("Zero"),
            Self::Data(bytes) => write!(f, "Data({} bytes)", bytes.len()),
        }
    }
}

/// The client of a block stream. Any number of requests may be made at once; a request whose future is dropped is answered
/// to nobody. Dropped, it goes away, which the server takes for giving up.
pub(crate) struct BlockStream {
    shared: Rc<Shared>,
    requests: UnboundedSender<Request>,
    window: Arc<Semaphore>,
    next_number: Cell<u32>,
    answer_time: Duration,
    /// Ended with the client.
    _tasks: JoinSet<()>,
}

/// What the tasks that read and write have in common with who asks.
struct Shared {
    size_bytes: u64,
    unanswered: RefCell<HashMap<u32, Unanswered>>,
    /// Why nothing more will be answered.
    over: RefCell<Option<(io::ErrorKind, String)>>,
}

struct Unanswered {
    request: Request,
    answer: oneshot::Sender<io::Result<Answer>>,
    _permit: OwnedSemaphorePermit,
}

enum Answer {
    Done,
    Run(Run),
    None,
    Block(StreamedBlock),
}

impl BlockStream {
    /// Greets the server at the other end of `stream`. `answer_time`: how long any request may take before it is an
    /// error (`TimedOut`); whatever the server does for an answer has its own, shorter, bound.
    ///
    /// Runs on a current-thread runtime with I/O and time, inside a local task set.
    pub(crate) async fn open(stream: UnixStream, answer_time: Duration) -> io::Result<Self> {
        let (mut from, mut to) = stream.into_split();
        let mut hello = [0; HELLO_BYTES];
        let greeted = async {
            to.write_all(&Hello { size_bytes: 0, window: 0 }.encode()).await?;
            from.read_exact(&mut hello).await
        };
        timeout(HELLO_TIME, greeted).await.map_err(|_| late())??;
        let Hello { size_bytes, window } = Hello::decode(&hello)?;
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || window == 0 {
            return Err(malformed("the server's hello is not a server's"));
        }
        let shared = Rc::new(Shared { size_bytes, unanswered: RefCell::default(), over: RefCell::default() });
        let (requests, queue) = unbounded_channel();
        let mut tasks = JoinSet::new();
        let of = Rc::clone(&shared);
        tasks.spawn_local(async move {
            if let Err(error) = write_requests(to, queue).await {
                of.end(&error);
            }
        });
        let of = Rc::clone(&shared);
        tasks.spawn_local(async move {
            if let Err(error) = of.read_replies(from).await {
                of.end(&error);
            }
        });
        let window = usize::try_from(window.min(WINDOW)).expect("a small number");
        Ok(Self {
            shared,
            requests,
            window: Arc::new(Semaphore::new(window)),
            next_number: Cell::new(0),
            answer_time,
            _tasks: tasks,
        })
    }

    /// Whether nothing more will be answered.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.over.borrow().is_some()
    }

    /// Size in bytes of what the blocks are of.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    /// The first run at or after `from` that is to be looked at.
    pub(crate) async fn next(&self, from: u64) -> io::Result<Option<Run>> {
        match self.ask(Action::Next, from, 0).await? {
            Answer::Run(run) => Ok(Some(run)),
            Answer::None => Ok(None),
            Answer::Done | Answer::Block(_) => Err(malformed("an answer to another question")),
        }
    }

    /// Block `index`.
    pub(crate) async fn read(&self, index: u64) -> io::Result<StreamedBlock> {
        match self.ask(Action::Read, index, 0).await? {
            Answer::Block(block) => Ok(block),
            Answer::Done | Answer::Run(_) | Answer::None => Err(malformed("an answer to another question")),
        }
    }

    /// Says that `blocks`, at most [`super::MOST_BLOCKS`], will not be asked for again.
    pub(crate) async fn release(&self, blocks: Range<u64>) -> io::Result<()> {
        self.done(Action::Release, blocks.start, blocks.end.saturating_sub(blocks.start)).await
    }

    /// Says that it is complete. Nothing may be asked afterwards.
    pub(crate) async fn complete(&self) -> io::Result<()> {
        self.done(Action::Complete, 0, 0).await
    }

    async fn done(&self, action: Action, block: u64, count: u64) -> io::Result<()> {
        match self.ask(action, block, count).await? {
            Answer::Done => Ok(()),
            Answer::Run(_) | Answer::None | Answer::Block(_) => {
                Err(malformed("an answer to another question"))
            }
        }
    }

    async fn ask(&self, action: Action, block: u64, count: u64) -> io::Result<Answer> {
        timeout(self.answer_time, self.ask_and_wait(action, block, count)).await.map_err(|_| late())?
    }

    async fn ask_and_wait(&self, action: Action, block: u64, count: u64) -> io::Result<Answer> {
        let permit = Arc::clone(&self.window).acquire_owned().await.expect("it is never closed");
        self.shared.check()?;
        let number = self.number();
        let request = Request { number, action, block, count };
        let (answer, answered) = oneshot::channel();
        let unanswered = Unanswered { request, answer, _permit: permit };
        self.shared.unanswered.borrow_mut().insert(number, unanswered);
        if self.requests.send(request).is_err() {
            self.shared.unanswered.borrow_mut().remove(&number);
        }
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(self.shared.check().err().unwrap_or_else(gone)),
        }
    }

    /// A number that no unanswered request has.
    fn number(&self) -> u32 {
        let unanswered = self.shared.unanswered.borrow();
        let mut number = self.next_number.get();
        while unanswered.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.next_number.set(number.wrapping_add(1));
        number
    }
}

impl Shared {
    /// The error that the stream ended with, if it has.
    fn check(&self) -> io::Result<()> {
        match &*self.over.borrow() {
            None => Ok(()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        }
    }

    /// Nothing more will be answered; who waits is told.
    fn end(&self, error: &io::Error) {
        let error = if error.kind() == io::ErrorKind::UnexpectedEof { gone() } else { rebuilt(error) };
        self.over.borrow_mut().get_or_insert((error.kind(), error.to_string()));
        self.unanswered.borrow_mut().clear();
    }

    async fn read_replies(&self, mut from: OwnedReadHalf) -> io::Result<()> {
        loop {
            let mut head = [0; REPLY_BYTES];
            from.read_exact(&mut head).await?;
            let Reply { number, outcome } = Reply::decode(&head)?;
            if let Outcome::Over(length) = outcome {
                let text = String::from_utf8_lossy(&bytes(&mut from, length).await?).into_owned();
                let what = format!("the process at the other end of the block stream ended it: {text}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            let asked = self.unanswered.borrow().get(&number).map(|unanswered| unanswered.request);
            let request = asked.ok_or_else(|| malformed("an answer that nobody asked for"))?;
            let answer = self.answer(&mut from, request, outcome).await?;
            if let Some(unanswered) = self.unanswered.borrow_mut().remove(&number) {
                // Whoever asked may have gone.
                let _ = unanswered.answer.send(answer);
            }
        }
    }

    /// Reads the rest of an answer, and sees that it is one to `request`.
    async fn answer(
        &self,
        from: &mut OwnedReadHalf,
        request: Request,
        outcome: Outcome,
    ) -> io::Result<io::Result<Answer>> {
        Ok(Ok(match (request.action, outcome) {
            (_, Outcome::Error { kind, length }) => {
                let text = String::from_utf8_lossy(&bytes(from, length).await?).into_owned();
                return Ok(Err(io::Error::new(kind, text)));
            }
            (Action::Next, Outcome::None) => Answer::None,
            (Action::Next, Outcome::Run { start, end, in_origin }) => {
                if start < request.block || end <= start || end > block_count(self.size_bytes) {
                    return Err(malformed("a run that is none"));
                }
                Answer::Run(Run { blocks: start..end, in_origin })
            }
            (Action::Read, Outcome::Zero) => Answer::Block(StreamedBlock::Zero),
            (Action::Read, Outcome::Data(length)) => {
                if u64::from(length) != block_bytes(self.size_bytes, request.block) {
                    return Err(malformed("a block of a length that it does not have"));
                }
                Answer::Block(StreamedBlock::Data(bytes(from, length).await?))
            }
            (Action::Release | Action::Complete, Outcome::Done) => Answer::Done,
            _ => return Err(malformed("an answer to another question")),
        }))
    }
}

/// `length` bytes, which was checked.
async fn bytes(from: &mut OwnedReadHalf, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).expect("a block at most")];
    let read = from.read_exact(&mut bytes).await;
    read.map_err(|error| if error.kind() == io::ErrorKind::UnexpectedEof { broken_off() } else { error })?;
    Ok(bytes)
}

async fn write_requests(mut to: OwnedWriteHalf, mut queue: UnboundedReceiver<Request>) -> io::Result<()> {
    while let Some(request) = queue.recv().await {
        to.write_all(&request.encode()).await?;
    }
    Ok(())
}

fn rebuilt(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the process at the other end of the block stream is gone",
    )
}

/// Whoever waits too long for an answer to be taken can say nothing any more on that connection.
fn broken_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the process at the other end of the block stream broke off in the middle of an answer: it is gone, or had \
         waited too long for this process to take it, and gave up",
    )
}

fn late() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the process at the other end of the block stream does not answer",
    )
}
